"""``python -m benchmarks [SUBJECT ...]``: runs them and writes ``out/bench/SUBJECT.json`` and ``.md``."""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from benchmarks import hooks, large, memory, scaling, table
from benchmarks.models import CASES

SUBJECTS = ("table", "memory", "scaling", "hooks", "large")
OUT = Path("out/bench")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--models", default=",".join(CASES), help="names with commas between them")
    parser.add_argument(
        "--jobs", default=",".join(table.available_jobs()), help="of the table, with commas between them"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu where other programs disturb")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a job of the table may take")
    parser.add_argument("--ops", type=int, default=1_000_000, help="how far the scaling goes")
    options = parser.parse_args()
    for kind, given, known in (
        ("subject", options.subjects, SUBJECTS),
        ("model", options.models.split(","), CASES),
        ("job", options.jobs.split(","), table.available_jobs()),
    ):
        for name in given:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    for subject in options.subjects or SUBJECTS:
        print(f"\n## {subject}\n", flush=True)
        results, text = run(subject, options)
        OUT.mkdir(parents=True, exist_ok=True)
        document = {"subject": subject, "machine": machine(), "results": results}
        (OUT / f"{subject}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        (OUT / f"{subject}.md").write_text(text, encoding="utf-8")
        print(text)


def run(subject: str, options: argparse.Namespace) -> tuple[list, str]:
    """The results of one subject, as data and as Markdown."""
    models = options.models.split(",")
    if subject == "table":
        results = []
        for model in models:
            begin = time.perf_counter()
            jobs = tuple(options.jobs.split(","))
            results.append(table.measure(model, jobs, options.rounds, options.limit, options.clock))
            print(f"  {model}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            print(table.markdown(results[-1:]), file=sys.stderr, flush=True)  # should the rest be cut off
        return results, table.markdown(results)
    if subject == "memory":
        results = [row for model in models for row in memory.measure(model, options.jobs.split(","))]
        return results, memory.markdown(results)
    if subject == "scaling":
        results = scaling.measure(options.ops)
        return results, scaling.markdown(results)
    if subject == "hooks":
        results = hooks.measure(options.rounds, options.clock)
        return results, hooks.markdown(results)
    results = large.measure()
    return results, large.markdown(results)


def machine() -> dict:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "processor": platform.machine()}


if __name__ == "__main__":
    main()
