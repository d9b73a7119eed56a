"""Programs out of what lens does not see into, or what is no plain call: exact, or an error that names the operation."""

import copy
import pickle

import onnx
import pytest
import torch
from models import Body
from region_models import MODELS, X
from test_programs import imported, same

import lens
from lens.errors import RenderError

#: Regions that are no program: what they need is of the run alone.
REFUSED = {
    "subclass_that_wraps": "what it calls is not in the trace",
    "backward_inside": "reads a gradient, which stands beside its tensor",
    "gradient_inside": "walks the autograd graph",
}
#: They call a lambda, or TorchScript.
LOCAL = {
    "vmapped",
    "gradient",
    "gradient_and_value",
    "jacobian",
    "hessian_matrix",
    "pullback",
    "transforms_inside_each_other",
    "ensemble",
    "flexible_attention",
    "scripted_module",
    "scripted_whole",
    "frozen",
    "traced_module",
    "scripted_function",
}
#: A meta tensor has no numbers to compare; the others have state that lens does not see: the model's own generator, a
#: counter inside a scripted module, an input that cannot be copied.
NOT_COMPARED = {"on_meta", "generator", "scripted_module_that_writes", "subclass_as_input"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_COMPARED])
def test_regions_run_exactly_in_a_program_or_are_refused(name):
    factory, _, _, inputs = MODELS[name]
    torch.manual_seed(0)
    model = factory()
    plain, state = copy.deepcopy(model), torch.get_rng_state()

    def call(function):
        torch.set_rng_state(state)
        return function(*copy.deepcopy(inputs))

    expected = call(plain)  # first: what torch makes once in a process, as jagged tensors do, is there then
    torch.set_rng_state(state)
    history = lens.trace(model, copy.deepcopy(inputs))
    if name in REFUSED:
        with pytest.raises(RenderError, match=REFUSED[name]) as raised:
            history.to_fx()
        assert ".py:" in raised.value.where
        return
    program = history.to_fx()
    assert same(call(program), expected)
    if name in LOCAL:
        with pytest.raises(RenderError, match=r"\(torch.\S+\) needs an object that cannot be pickled"):
            pickle.dumps(program)
    else:
        assert same(call(pickle.loads(pickle.dumps(program))), expected)


SHADOWED = {
    "stft": lambda x: torch.view_as_real(torch.stft(x.flatten(), 4, window=torch.ones(4), return_complex=True)),
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0], x[1]),
    "block_diag": lambda x: torch.block_diag(x, x[:1]),
    "tensordot": lambda x: torch.tensordot(x, x.t(), dims=1),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:1]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


@pytest.mark.parametrize("name", SHADOWED)
def test_functions_in_c_whose_name_is_another_function_of_torch(name, tmp_path):
    """``torch.fx`` writes out both as ``torch.stft``."""
    program = lens.trace(Body(SHADOWED[name]), X).to_fx()
    expected = SHADOWED[name](X)
    assert same(program(X), expected)
    assert same(pickle.loads(pickle.dumps(program))(X), expected)
    program.to_folder(tmp_path)
    assert same(imported(tmp_path).FxModule()(X), expected)


def test_objects_that_are_no_modules_are_written_out(tmp_path):
    model = MODELS["quantized_module"][0]()
    lens.trace(model, X).to_fx().to_folder(tmp_path)
    assert same(imported(tmp_path).FxModule()(X), model(X))
    with pytest.raises(RenderError, match=r"scriptmethod_1_1 \(torch.jit.script_method\) needs an object"):
        lens.trace(MODELS["scripted_module"][0](), X).export(tmp_path, "fx")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("scripted_module", r"scriptmethod_1_1 \(torch.jit.script_method\)"),
        ("quantized_module", r"lineardynamic_1_1 \(torch.ops.quantized.linear_dynamic\)"),
        ("gradient", r"grad_1_1 \(torch.func.grad\)"),
        ("nested", r"nestedtensorfromtensorlist_1_2"),
        ("packed_sequences", r"zeros_\w+ \(torch.zeros\)"),
        ("sparse", r"tosparse_1_1 \(torch.Tensor.to_sparse\)"),
        ("custom_operators", r"twice_1_1 \(torch.ops.lens_tests.twice.default\)"),
        ("on_meta", r"weight is on the meta device"),
    ],
)
def test_what_cannot_go_to_onnx_says_which_operation_and_has_a_structure(name, what, tmp_path):
    factory, _, _, inputs = MODELS[name]
    history = lens.trace(factory(), inputs)
    with pytest.raises(RenderError, match=what) as raised:
        history.to_onnx(tmp_path / "model.onnx")
    assert "to_onnx_structure" in raised.value.hint
    assert not (tmp_path / "model.onnx").exists()
    onnx.checker.check_model(history.to_onnx_structure(tmp_path / "graph.onnx"), full_check=True)
