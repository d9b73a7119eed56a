"""Bad input gives a typed error that says what to do, and leaves nothing behind."""

import pytest
import torch
from torch import nn

import lens
from lens.errors import BackendError, InputError, LensError, PassError
from lens.passes.labels import LabelsPass

x = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lens.trace("model", x), InputError, "this is a str"),
        (lambda: lens.trace(nn.ReLU, x), InputError, r"Model\(\)"),
        (lambda: lens.trace(nn.ReLU(), (x, x, x)), InputError, "too many positional"),
        (lambda: lens.trace(nn.ReLU()), InputError, "missing a required argument"),
        (lambda: lens.trace(nn.ReLU(), x, {"flag": 1}), InputError, "flag"),
        (lambda: lens.trace(nn.ReLU(), x, {1: 2}), InputError, "kwargs"),
        (lambda: lens.trace(nn.ReLU(), x, backend="nothing"), BackendError, "torch_function"),
        (lambda: lens.trace(nn.ReLU(), x, save=3.5), InputError, "save="),
        (lambda: lens.trace(nn.ReLU(), x, save=[]), InputError, "save="),
        (lambda: lens.trace(nn.ReLU(), x, save=[17]), InputError, "number 17"),
        (lambda: lens.trace(nn.ReLU(), x, passes="nothing"), PassError, "known passes"),
        (lambda: lens.trace(nn.ReLU(), x, passes="labels,,"), PassError, "not a pipeline"),
        (lambda: lens.trace(nn.ReLU(), x, passes="granularity{level=x}"), PassError, "options"),
        (lambda: lens.trace(nn.ReLU(), x, passes="granularity{depth=1}"), PassError, "options"),
        (lambda: lens.trace(nn.ReLU(), x, passes=[3]), InputError, "hold a int: it has no name"),
        (lambda: lens.trace(nn.ReLU(), x, passes=LabelsPass), InputError, "be or hold a LabelsPass: it is a class"),
        (lambda: lens.trace(nn.ReLU(), x).with_facets("labels"), InputError, "'labels' .it is no subclass of"),
        (lambda: lens.trace(nn.ReLU(), x, fast_paths="maybe"), InputError, "fast_paths"),
        (lambda: lens.get_model_structure(None, x), InputError, "NoneType"),
        (lambda: lens.get_model_structure(nn.ReLU(), x, backnd="decoration"), InputError, "give backend"),
        (lambda: lens.get_model_activations(nn.ReLU(), x, transfrom=torch.half), InputError, "give transform"),
        (lambda: lens.get_model_activations(nn.ReLU(), x, depth=1), InputError, "vis_opt"),
        (lambda: lens.show_model_graph(nn.ReLU(), x, transform=torch.half), InputError, "no option 'transform'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, LensError)
    assert "to do:" in str(caught.value) or caught.value.hint == ""


def test_errors_say_what_where_and_what_to_do():
    text = str(LensError("what", where="there", hint="this"))
    assert text == "what\n  where: there\n  to do: this"


def test_the_papers_four_functions(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    history = lens.get_model_activations(model, x, ["relu_1"], vis_opt=tmp_path / "a.svg", seed=1)
    assert history["relu_1"].is_saved
    assert (tmp_path / "a.svg").exists()
    structure = lens.get_model_structure(model, x)
    assert structure.num_tensors_saved == 0
    assert structure.layer_list == history.layer_list
    assert lens.show_model_graph(model, x, tmp_path / "b.png").endswith("b.png")
    assert lens.validate_saved_activations(model, x, seed=3) is True


def test_the_papers_functions_pass_the_options_of_trace_and_draw_on(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    options = {"transform": torch.float16, "detach": True, "stop_at": "1", "fast_paths": "open", "seed": 5}
    history = lens.get_model_activations(model, x, ["0", "1"], backend="decoration", **options)
    assert (history.graph.meta.backend, history.graph.meta.fast_paths) == ("decoration", "open")
    assert (history.graph.meta.stopped, history.random_seed_used) == ("1", 5)
    kept = history["linear_1"].tensor_contents
    assert kept.dtype == torch.float16
    assert not kept.requires_grad
    structure = lens.get_model_structure(model, x, backend="torch_dispatch", stop_at="0", passes="orphans,labels")
    assert [record.name for record in structure.pass_records] == ["orphans", "recurrence", "labels"]
    assert structure.layer_list[-1].startswith("addmm_1_")

    monkeypatch.chdir(tmp_path)
    lens.get_model_activations(model, x, vis_opt="a.dot", theme="dark", depth=1)
    assert "#1b1e24" in (tmp_path / "a.dot").read_text()
    lens.show_model_graph(model, x, "b.dot", stop_at="relu", direction="right", backend="decoration")
    text = (tmp_path / "b.dot").read_text()
    assert "rankdir=LR" in text
    assert "relu_1_2" in text
    assert "linear_2" not in text
    lens.get_model_activations(model, x, vis_opt="rolled")
    assert (tmp_path / "model.svg").exists()
    lens.get_model_activations(model, x, vis_opt="none")
    assert lens.validate_saved_activations(model, x, backend="decoration")
