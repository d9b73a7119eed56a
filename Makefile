# Everything is installed into .venv (benchmarks: .venv-bench); nothing else is touched.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo docs gallery test lint format bench operators zoo clean

demo: $(VENV)/models.stamp
	$(PY) examples/demo.py

test: $(VENV)/test.stamp
	$(PY) -m pytest -n 2

# About 60 models as pictures, with an index: out/gallery/index.html.
gallery: $(VENV)/test.stamp
	$(PY) gallery/build.py

# The documentation as a site: out/site/index.html.
docs: $(VENV)/test.stamp
	$(PY) -m mkdocs build

lint: $(VENV)/lint.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

zoo: $(VENV)/test.stamp
	$(PIP) torch_geometric scipy
	$(PY) -m lens_zoo --backend torch_function torch_dispatch --table docs/zoo.md

format: $(VENV)/lint.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Every subject, against the pinned TorchLens, into out/bench; for a part: make bench BENCH="table --models rnn300".
BENCH ?=
bench: .venv-bench/stamp
	.venv-bench/bin/python -m benchmarks $(BENCH)

operators: $(VENV)/test.stamp
	$(PY) benchmarks/operator_coverage.py

clean:
	rm -rf $(VENV) .venv-bench out

.venv-bench/stamp: pyproject.toml constraints.txt
	$(MAKE) VENV=.venv-bench .venv-bench/models.stamp
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		transformers torchlens
	touch $@

# torch first and by itself, so that the constraint decides which build is taken.
$(VENV)/base.stamp: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/models.stamp: $(VENV)/base.stamp
	$(PIP) --no-deps torchvision
	$(PIP) numpy pillow
	touch $@

# Model Explorer without its 128 MB of readers for other formats.
$(VENV)/test.stamp: $(VENV)/models.stamp
	$(PIP) --editable '.[test,docs]'
	$(PIP) timm transformers
	$(PIP) --no-deps ai-edge-model-explorer
	$(PIP) dacite flask ipython portpicker requests termcolor watchdog
	touch $@

$(VENV)/lint.stamp: $(VENV)/base.stamp
	$(PIP) --editable '.[lint]'
	touch $@
