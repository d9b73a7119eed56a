"""Bad input gives a typed error that says what to do, and leaves nothing behind."""

import pytest
import torch
from torch import nn

import lens
from lens.errors import BackendError, InputError, LensError, PassError

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
        (lambda: lens.trace(nn.ReLU(), x, fast_paths="maybe"), InputError, "fast_paths"),
        (lambda: lens.get_model_structure(None, x), InputError, "NoneType"),
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
