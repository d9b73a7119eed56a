"""Every attribute of the paper's Supplementary Table 1 against a value that is computed in another way.

The second source is the program written by hand in ``table_cases``, run with plain torch; graphs are networkx's.
"""

from __future__ import annotations

import copy
import inspect
import time

import networkx as nx
import pytest
import torch
from attrs import define
from table_cases import CASES, Case, Fact, Leaf, Line, run
from torch import nn

import lens
from lens.entry import LayerEntry, OpEntry
from lens.history import ModelHistory

MODEL_NAMES = [
    "model_name",
    "random_seed_used",
    "model_is_recurrent",
    "model_max_recurrent_loops",
    "model_is_branching",
    "model_has_conditional_branching",
    "layer_list",
    "input_layers",
    "output_layers",
    "buffer_layers",
    "internally_initialized_layers",
    "internally_terminated_bool_layers",
    "layers_computed_with_params",
    "num_tensors_total",
    "tensor_fsize_total",
    "tensor_fsize_saved",
    "num_tensors_saved",
    "total_param_tensors",
    "total_param_layers",
    "total_params",
    "total_params_fsize",
    "module_addresses",
    "module_types",
    "module_num_passes",
    "module_pass_children",
    "top_level_module_passes",
    "pass_start_time",
    "pass_end_time",
    "elapsed_time_total",
    "elapsed_time_function_calls",
    "elapsed_time_lens_logging",
]
ENTRY_NAMES = [
    "layer_label",
    "layer_label_w_pass",
    "operation_num",
    "layer_type",
    "layer_type_num",
    "layer_total_num",
    "pass_num",
    "layer_passes_total",
    "lookup_keys",
    "tensor_contents",
    "tensor_shape",
    "tensor_dtype",
    "tensor_fsize",
    "creation_args",
    "creation_kwargs",
    "func_applied",
    "func_applied_name",
    "func_time_elapsed",
    "func_rng_states",
    "func_position_args_non_tensor",
    "func_keyword_args_non_tensor",
    "function_is_inplace",
    "gradfunc_name",
    "is_part_of_iterable_output",
    "iterable_output_index",
    "computed_with_params",
    "num_param_tensors",
    "parent_param_shapes",
    "num_params_total",
    "parent_params_fsize",
    "same_layer_operations",
    "parent_layers",
    "orig_ancestors",
    "child_layers",
    "sibling_layers",
    "spouse_layers",
    "is_input_layer",
    "has_input_ancestor",
    "min_distance_from_input",
    "max_distance_from_input",
    "is_output_layer",
    "is_output_ancestor",
    "output_descendents",
    "min_distance_from_output",
    "max_distance_from_output",
    "is_buffer_layer",
    "buffer_address",
    "initialized_inside_model",
    "internally_initialized_parents",
    "internally_initialized_ancestors",
    "terminated_inside_model",
    "is_terminal_bool_layer",
    "in_cond_branch",
    "is_computed_inside_submodule",
    "containing_module_origin",
    "containing_module_origin_nested",
    "modules_entered",
    "is_submodule_output",
    "modules_exited",
    "is_bottom_level_submodule_output",
]


@define
class Run:
    """A traced case beside what its program says."""

    case: Case
    history: ModelHistory
    facts: dict[str, Fact]
    graph: nx.DiGraph
    before: float
    after: float

    def line(self, name: str) -> Line | None:
        line = self.facts[name].line
        return line if isinstance(line, Line) else None

    def leaf(self, name: str) -> Leaf | None:
        line = self.facts[name].line
        return line if isinstance(line, Leaf) else None

    def where(self, names, test) -> list[str]:
        return sorted((n for n in names if test(n)), key=list(self.facts).index)


def trace_case(name: str, backend: str = "torch_function") -> Run:
    torch.manual_seed(0)
    case = CASES[name]()
    before = time.time()
    history = lens.trace(copy.deepcopy(case.model), case.args, seed=case.seed, backend=backend)
    after = time.time()
    facts = run(case)
    graph = nx.DiGraph()
    graph.add_nodes_from(facts)
    graph.add_edges_from((parent, fact.name) for fact in facts.values() for parent in fact.parents)
    return Run(case, history, facts, graph, before, after)


@pytest.fixture(scope="module", params=list(CASES))
def traced(request) -> Run:
    return trace_case(request.param)


def base(name: str) -> str:
    return name.partition(":")[0]


def is_input(r: Run, name: str) -> bool:
    return r.leaf(name) is not None and r.leaf(name).position is not None


def is_buffer(r: Run, name: str) -> bool:
    return r.leaf(name) is not None and r.leaf(name).position is None


def is_made_inside(r: Run, name: str) -> bool:
    return r.line(name) is not None and not r.facts[name].parents and not r.facts[name].params


def is_terminal_bool(r: Run, name: str) -> bool:
    tensor = r.facts[name].tensor
    return (
        not r.graph.out_degree(name)
        and name not in r.case.outputs
        and str(tensor.dtype) == "torch.bool"
        and tensor.numel() == 1
    )


def passes(r: Run, name: str) -> list[str]:
    return [n for n in r.facts if base(n) == base(name)]


def distances(r: Run, name: str, backwards: bool) -> list[int]:
    """The lengths of all paths from the inputs, or to the outputs, in operations, the entry itself counted."""
    ends = [n for n in r.facts if (n in r.case.outputs if backwards else is_input(r, n))]
    if name in ends:
        return [0]
    lengths = []
    for end in ends:
        pair = (name, end) if backwards else (end, name)
        for path in nx.all_simple_paths(r.graph, *pair):
            lengths.append(sum(r.line(n) is not None for n in path))
    return lengths


def extreme(pick, lengths: list[int]) -> int | None:
    return pick(lengths) if lengths else None


def modules(r: Run, name: str) -> list[str]:
    line = r.facts[name].line
    return [] if line is None else list(line.modules)


def non_tensor(values):
    def holds(value) -> bool:
        return isinstance(value, torch.Tensor) or (isinstance(value, (list, tuple)) and any(map(holds, value)))

    return [value for value in values if not holds(value)]


def numel(shape) -> int:
    return torch.Size(shape).numel()


def has_params(r: Run, name: str) -> bool:
    return bool(r.facts[name].params)


#: Attribute of an entry -> what it must be, from the run and the label.
ENTRY = {
    "layer_label": lambda r, n: base(n),
    "layer_label_w_pass": lambda r, n: n if ":" in n else f"{n}:1",
    "operation_num": lambda r, n: r.facts[n].operation,
    "layer_type": lambda r, n: n.split("_")[0],
    "layer_type_num": lambda r, n: int(base(n).split("_")[1]),
    "layer_total_num": lambda r, n: int(base(n).split("_")[2]) if r.line(n) else None,
    "pass_num": lambda r, n: int(n.partition(":")[2] or 1),
    "layer_passes_total": lambda r, n: len(passes(r, n)),
    "tensor_shape": lambda r, n: tuple(r.facts[n].tensor.shape),
    "tensor_dtype": lambda r, n: str(r.facts[n].tensor.dtype).removeprefix("torch."),
    "tensor_fsize": lambda r, n: r.facts[n].tensor.numel() * r.facts[n].tensor.element_size(),
    "func_applied": lambda r, n: r.line(n) and r.line(n).function,
    "func_applied_name": lambda r, n: r.line(n) and r.line(n).function.__name__,
    "func_position_args_non_tensor": lambda r, n: non_tensor(r.facts[n].args),
    "func_keyword_args_non_tensor": lambda r, n: r.line(n).kwargs if r.line(n) else {},
    "function_is_inplace": lambda r, n: bool(r.line(n)) and r.line(n).in_place,
    "gradfunc_name": lambda r, n: r.facts[n].grad,
    "is_part_of_iterable_output": lambda r, n: bool(r.line(n)) and len(r.line(n).names) > 1,
    "iterable_output_index": lambda r, n: r.facts[n].index if r.line(n) and len(r.line(n).names) > 1 else None,
    "computed_with_params": has_params,
    "num_param_tensors": lambda r, n: len(r.facts[n].params),
    "parent_param_shapes": lambda r, n: [tuple(p.shape) for p in r.facts[n].params],
    "num_params_total": lambda r, n: sum(p.numel() for p in r.facts[n].params),
    "parent_params_fsize": lambda r, n: sum(p.numel() * p.element_size() for p in r.facts[n].params),
    "same_layer_operations": lambda r, n: [p for p in passes(r, n) if p != n],
    "parent_layers": lambda r, n: r.facts[n].parents,
    "child_layers": lambda r, n: r.where(r.graph.successors(n), bool),
    "orig_ancestors": lambda r, n: r.where(nx.ancestors(r.graph, n), lambda a: not r.graph.in_degree(a)),
    "sibling_layers": lambda r, n: r.where({c for p in r.graph.predecessors(n) for c in r.graph[p]}, lambda s: s != n),
    "spouse_layers": lambda r, n: r.where({p for c in r.graph[n] for p in r.graph.predecessors(c)}, lambda s: s != n),
    "is_input_layer": is_input,
    "has_input_ancestor": lambda r, n: any(is_input(r, a) for a in {n, *nx.ancestors(r.graph, n)}),
    "min_distance_from_input": lambda r, n: extreme(min, distances(r, n, False)),
    "max_distance_from_input": lambda r, n: extreme(max, distances(r, n, False)),
    "is_output_layer": lambda r, n: n in r.case.outputs,
    "is_output_ancestor": lambda r, n: any(d in r.case.outputs for d in {n, *nx.descendants(r.graph, n)}),
    "output_descendents": lambda r, n: r.where(nx.descendants(r.graph, n), lambda d: d in r.case.outputs),
    "min_distance_from_output": lambda r, n: extreme(min, distances(r, n, True)),
    "max_distance_from_output": lambda r, n: extreme(max, distances(r, n, True)),
    "is_buffer_layer": is_buffer,
    "buffer_address": lambda r, n: r.leaf(n).address if is_buffer(r, n) else None,
    "initialized_inside_model": is_made_inside,
    "internally_initialized_parents": lambda r, n: r.where(r.graph.predecessors(n), lambda p: is_made_inside(r, p)),
    "internally_initialized_ancestors": lambda r, n: r.where(
        nx.ancestors(r.graph, n), lambda a: is_made_inside(r, a)
    ),
    "terminated_inside_model": lambda r, n: not r.graph.out_degree(n) and n not in r.case.outputs,
    "is_terminal_bool_layer": is_terminal_bool,
    "in_cond_branch": lambda r, n: bool(r.line(n)) and r.line(n).condition,
    "is_computed_inside_submodule": lambda r, n: bool(modules(r, n)),
    "containing_module_origin": lambda r, n: modules(r, n)[-1] if modules(r, n) else None,
    "containing_module_origin_nested": modules,
    "modules_entered": lambda r, n: list(r.case.enters.get(n, ())),
    "is_submodule_output": lambda r, n: bool(r.line(n) and r.line(n).exits),
    "modules_exited": lambda r, n: list(r.line(n).exits) if r.line(n) else [],
    "is_bottom_level_submodule_output": lambda r, n: bool(r.line(n)) and r.line(n).alone,
}  # fmt: skip
#: Attributes that are compared by tests of their own.
ELSEWHERE = {
    "lookup_keys",
    "tensor_contents",
    "creation_args",
    "creation_kwargs",
    "func_time_elapsed",
    "func_rng_states",
}


def test_the_whole_table_is_tested():
    assert set(ENTRY) | ELSEWHERE == set(ENTRY_NAMES)
    assert set(MODEL) - {"total_params_trainable"} | {"pass_start_time", "pass_end_time"} | TIMES == set(MODEL_NAMES)


@pytest.mark.parametrize("name", ENTRY_NAMES + MODEL_NAMES)
def test_every_attribute_has_a_type_and_a_line_of_documentation(name):
    owner = OpEntry if name in ENTRY_NAMES else ModelHistory
    attribute = inspect.getattr_static(owner, name)
    assert isinstance(attribute, property)
    assert inspect.signature(attribute.fget).return_annotation is not inspect.Signature.empty
    first, _, rest = inspect.getdoc(attribute).partition("\n")
    assert first.endswith(".")
    assert not rest


def test_the_program_is_what_ran(traced):
    assert [entry._row.name for entry in traced.history] == list(traced.facts)


@pytest.mark.parametrize("attribute", list(ENTRY))
def test_entry(traced, attribute):
    for name in traced.facts:
        entry = traced.history[name]
        assert isinstance(entry, OpEntry)
        assert getattr(entry, attribute) == ENTRY[attribute](traced, name), name


def test_no_attribute_is_the_same_everywhere():
    runs = [trace_case(name) for name in CASES]
    for attribute, expected in ENTRY.items():
        assert len({str(expected(r, n)) for r in runs for n in r.facts}) > 1, attribute
    for attribute, expected in MODEL.items():
        assert attribute == "random_seed_used" or len({str(expected(r)) for r in runs}) > 1, attribute


def test_entries_under_decoration():
    for case in CASES:
        traced = trace_case(case, "decoration")
        for attribute, expected in ENTRY.items():
            for name in traced.facts:
                assert getattr(traced.history[name], attribute) == expected(traced, name), (case, attribute, name)


def test_a_saved_trace_says_the_same(traced, tmp_path):
    loaded = lens.load(traced.history.save(tmp_path / "t.lens"))
    for attribute in MODEL:
        assert getattr(loaded, attribute) == MODEL[attribute](traced)
    for name, fact in traced.facts.items():
        entry = loaded[name]
        for attribute, expected in ENTRY.items():
            assert getattr(entry, attribute) == expected(traced, name), (attribute, name)
        assert entry.func_time_elapsed == traced.history[name].func_time_elapsed
        assert entry.lookup_keys == traced.history[name].lookup_keys
        assert_same(entry.tensor_contents, traced.history[name].tensor_contents)
        assert (entry.func_rng_states is None) == (fact.state is None)
        if fact.state is not None:
            assert torch.equal(entry.func_rng_states["cpu"], fact.state)


def assert_same(a, b):
    if isinstance(b, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(b, (list, tuple)):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_tensor_contents(traced):
    for name, fact in traced.facts.items():
        if fact.name not in ("buffer_1", "buffer_2"):  # read after the run, they are what the run left
            assert_same(traced.history[name].tensor_contents, fact.tensor)


def test_creation_args_and_kwargs(traced):
    for name, fact in traced.facts.items():
        assert_same(traced.history[name].creation_args, fact.args)
        assert traced.history[name].creation_kwargs == (traced.line(name).kwargs if traced.line(name) else {})


def test_lookup_keys(traced):
    history = traced.history
    keys = {n: set(history[n].lookup_keys) for n in traced.facts}
    for place, name in enumerate(traced.facts):
        short = base(name).rpartition("_")[0]
        wanted = {base(name), f"{base(name)}:{name.partition(':')[2] or 1}", place}
        line, leaf = traced.line(name), traced.leaf(name)
        if line is not None:
            wanted |= {short, f"{short}:{name.partition(':')[2] or 1}"}
            for module in line.exits:
                address = module.partition(":")[0]
                wanted |= {address, f"{address}:{module.partition(':')[2] or 1}"}
        if leaf is not None:
            wanted.add(leaf.address)
        assert keys[name] == wanted, name
    for name in traced.facts:
        for key in history[name].lookup_keys:
            found = history[key]
            assert history[name] in (found.passes if isinstance(found, LayerEntry) else [found])


def test_random_states(traced):
    for name, fact in traced.facts.items():
        states = traced.history[name].func_rng_states
        if fact.state is None:
            assert states is None
        else:
            assert list(states) == ["cpu"]
            assert torch.equal(states["cpu"], fact.state)


def layer_names(r: Run) -> list[str]:
    return list(dict.fromkeys(map(base, r.facts)))


def layers_where(r: Run, test) -> list[str]:
    return list(dict.fromkeys(base(n) for n in r.facts if test(r, n)))


def hooked(model: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """The module calls of a plain run, as hooks see them, and pairs of outer and inner call ("" is the model)."""
    calls: list[str] = []
    inside: list[tuple[str, str]] = []
    stack: list[str] = []
    counts: dict[str, int] = {}
    addresses = {module: name for name, module in model.named_modules()}

    def enter(module, _):
        name = addresses[module]
        counts[name] = counts.get(name, 0) + 1
        if name:
            calls.append(f"{name}:{counts[name]}")
            inside.append((stack[-1], calls[-1]))
        stack.append(calls[-1] if name else "")

    for module in model.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(lambda *_: stack.pop() and None)
    model(*args)
    return calls, inside


def module_calls(r: Run):
    return hooked(copy.deepcopy(r.case.model), r.case.args)


def parameters(r: Run) -> list[nn.Parameter]:
    return list(r.case.model.parameters())


def submodules(r: Run) -> dict[str, nn.Module]:
    return {name: module for name, module in r.case.model.named_modules() if name}


def tensors(r: Run) -> list[torch.Tensor]:
    return [fact.tensor for name, fact in r.facts.items() if name not in r.case.outputs]


#: Attribute of the history -> what it must be.
MODEL = {
    "model_name": lambda r: type(r.case.model).__name__,
    "random_seed_used": lambda r: r.case.seed,
    "model_is_recurrent": lambda r: any(":" in n for n in r.facts),
    "model_max_recurrent_loops": lambda r: max(len(passes(r, n)) for n in r.facts),
    "model_is_branching": lambda r: any(r.graph.out_degree(n) > 1 for n in r.facts),
    "model_has_conditional_branching": lambda r: any(r.line(n) and r.line(n).condition for n in r.facts),
    "layer_list": layer_names,
    "input_layers": lambda r: layers_where(r, is_input),
    "output_layers": lambda r: list(r.case.outputs),
    "buffer_layers": lambda r: layers_where(r, is_buffer),
    "internally_initialized_layers": lambda r: layers_where(r, is_made_inside),
    "internally_terminated_bool_layers": lambda r: layers_where(r, is_terminal_bool),
    "layers_computed_with_params": lambda r: layers_where(r, has_params),
    "num_tensors_total": lambda r: len(tensors(r)),
    "tensor_fsize_total": lambda r: sum(t.nbytes for t in tensors(r)),
    "tensor_fsize_saved": lambda r: sum(t.nbytes for t in tensors(r)),
    "num_tensors_saved": lambda r: len(tensors(r)),
    "total_param_tensors": lambda r: len(parameters(r)),
    "total_param_layers": lambda r: len(layers_where(r, has_params)),
    "total_params": lambda r: sum(p.numel() for p in parameters(r)),
    "total_params_trainable": lambda r: sum(p.numel() for p in parameters(r) if p.requires_grad),
    "total_params_fsize": lambda r: sum(p.nbytes for p in parameters(r)),
    "module_addresses": lambda r: list(submodules(r)),
    "module_types": lambda r: {name: type(module).__name__ for name, module in submodules(r).items()},
    "module_num_passes": lambda r: {
        name: sum(call.rpartition(":")[0] == name for call in module_calls(r)[0]) for name in submodules(r)
    },
    "module_pass_children": lambda r: {
        call: [inner for outer, inner in module_calls(r)[1] if outer == call] for call in module_calls(r)[0]
    },
    "top_level_module_passes": lambda r: [inner for outer, inner in module_calls(r)[1] if not outer],
}
TIMES = {"elapsed_time_total", "elapsed_time_function_calls", "elapsed_time_lens_logging"}


@pytest.mark.parametrize("attribute", list(MODEL))
def test_model(traced, attribute):
    assert getattr(traced.history, attribute) == MODEL[attribute](traced)


def test_times(traced):
    h = traced.history
    assert traced.before <= h.pass_start_time <= h.pass_end_time <= traced.after + 1e-3
    operations = {e.operation_num: e.func_time_elapsed for e in h if e.operation_num}
    assert h.elapsed_time_function_calls == pytest.approx(sum(operations.values()))
    assert 0 < h.elapsed_time_function_calls <= h.pass_end_time - h.pass_start_time
    assert h.elapsed_time_lens_logging > 0
    total = h.elapsed_time_function_calls + h.elapsed_time_lens_logging
    assert h.elapsed_time_total == pytest.approx(total)
    assert h.pass_end_time - h.pass_start_time <= h.elapsed_time_total <= traced.after - traced.before + 1e-3


NAP = 0.03


def test_the_time_of_an_operation_is_that_of_its_call():
    library = torch.library.Library("lens_table_test", "DEF")
    library.define("nap(Tensor x) -> Tensor")
    library.impl("nap", lambda x: (time.sleep(NAP), x + 1)[1], "CPU")
    model = nn.Module()
    model.forward = lambda x: torch.ops.lens_table_test.nap(torch.relu(x)) * 2
    history = lens.trace(model, torch.ones(2))
    nap = next(entry for entry in history if "nap" in entry.layer_type)
    assert nap.func_time_elapsed >= NAP
    assert history["relu_1"].func_time_elapsed < NAP
    assert history["input_1"].func_time_elapsed is None
    assert next(iter(history.summary("time")))["layer"] == nap.layer_label


def test_a_part_saved_counts_as_saved():
    case = CASES["noise_and_buffer"]()
    history = lens.trace(case.model, case.args, save=["relu_1", "linear_1"])
    assert (history.num_tensors_saved, history.tensor_fsize_saved) == (2, 2 * 2 * 4 * 4)
    assert [history[0], history[-1]] == [history["linear_1"], history["relu_1"]]
    assert 1 in history["relu_1"].lookup_keys
    assert not any(isinstance(key, int) for key in history["add_1"].lookup_keys)
    assert history["add_1"].creation_args[1] == "rand_1_3"
    assert torch.equal(history["add_1"].creation_args[0], history["relu_1"].tensor_contents)


@pytest.mark.parametrize("loaded", [False, True])
def test_arguments_that_the_trace_does_not_keep_are_described(tmp_path, loaded):
    def forward(x):
        return model.fc(x) + torch.rand(4, generator=generator)

    model, generator = nn.Module(), torch.Generator()
    model.fc, model.forward = nn.Linear(4, 4), forward
    history = lens.trace(model, torch.randn(3, 4), save="all" if loaded else "none")
    if loaded:
        history = lens.load(history.save(tmp_path / "t.lens"))
    assert history["linear_1"].creation_args[1:] == ("@fc.weight", "@fc.bias")
    rand = history["rand_1"]
    assert rand.creation_kwargs == rand.func_keyword_args_non_tensor == {"generator": "<torch._C.Generator>"}
    assert lens.trace(model, torch.randn(3, 4))["rand_1"].creation_kwargs["generator"] is generator


def test_autocast_is_no_argument():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        history = lens.trace(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(3, 4))
    entry = history["gelu_1"]
    assert entry.creation_kwargs == entry.func_keyword_args_non_tensor == {"approximate": "none"}
    again = entry.func_applied(*entry.creation_args, **entry.creation_kwargs)
    assert torch.equal(again, entry.tensor_contents)


def test_module_outputs_are_those_that_hooks_see():
    from lens.model_specs import import_torchvision

    model = import_torchvision().models.resnet18().eval()
    outputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out.clone()}))
    history = lens.trace(model, torch.randn(1, 3, 32, 32))
    called_twice = {name for name in outputs if name.endswith(".relu")}
    for name in set(outputs) - called_twice - {"bn1"}:  # what bn1 returned is overwritten in place afterwards
        entry = history.one(f"{name}:1")
        assert torch.equal(entry.tensor_contents, outputs[name]), name
        assert name in entry.modules_exited
    assert sorted(outputs) == sorted(a for a, calls in history.module_num_passes.items() if calls)


def test_names_without_meaning_say_so():
    case = CASES["noise_and_buffer"]()
    history = lens.trace(case.model, case.args)
    for name in ("input_1", "buffer_1", "output_1"):
        entry = history[name]
        for attribute in ("operation_num", "layer_total_num", "func_applied", "func_applied_name", "func_time_elapsed"):
            assert getattr(entry, attribute) is None
            assert "None" in inspect.getdoc(getattr(OpEntry, attribute)) or attribute == "func_applied_name"
        assert entry.creation_args == ()
        assert entry.flops is entry.macs is None
    assert history["rand_1"].min_distance_from_input is None
    assert history["add_1"].iterable_output_index is None


@pytest.mark.parametrize("name", ["bert", "t5", "mobilenet_v3", "lstm", "masked_encoder"])
def test_every_attribute_of_real_models_can_be_read(name):
    from real_models import REAL_MODELS

    model, args, kwargs = REAL_MODELS[name]()
    history = lens.trace(model.eval(), args, kwargs, seed=1)
    for attribute in MODEL_NAMES:
        getattr(history, attribute)
    for entry in history:
        for attribute in ENTRY_NAMES:
            getattr(entry, attribute)
        assert entry.layer_label in str(entry)
        assert entry.operation_num is None or entry.flops is not None
        for key in entry.lookup_keys:
            found = history[key]
            assert entry in (found.passes if isinstance(found, LayerEntry) else [found])
    assert history.diff(lens.trace(model, args, kwargs, seed=1)).same
