"""Conditions from evidence: construct, line, arm; branches; the heuristic; containment."""

import linecache
import types

import pytest
import torch
from counting import calls_per_op
from models import Body, Conditional, TwoBranches
from torch import nn

import lens
from lens.ir.elements import Location
from lens.ir.facets import Conditionals, Containment
from lens.ir.parser import parse
from lens.passes.conditionals import ConditionalsPass
from lens.passes.constructs import SourceReader
from lens.passes.containment import ContainmentPass
from lens.passes.manager import PassManager
from lens.registry import providers
from lens.validate.invariants import violations


def conditions(function, x=None):
    history = lens.trace(Body(function), torch.ones(2, 4) * 3 if x is None else x)
    return [(c.construct, c.arm) for c in history.graph[Conditionals].conditions]


def several_on_a_line(x):
    if (x > 5).all() or (x > 0).all(): y = x + 1  # fmt: skip  # noqa: E701
    return y if (y > 0).all() and not (y > 99).all() else x


def elif_chain(x):
    if x.sum() < 0:
        return x
    elif x.max() > 2:  # noqa: RET505
        return x * 2
    return x


def loops_and_asserts(x):
    rounds = 0
    while x.sum() > 3 and rounds < 2:
        x = x * 0.5
        rounds += 1
    assert (x == x).all(), "not a number"
    return x


def numbers(x):
    if x.sum().item() > 3:
        x = x + 1
    if not float(x.max()) > 2.5:
        x = x - 1
    steps = int(x.sum())  # used, but no test shows it
    match int(x.argmax()):
        case 0:
            return x * steps
    return x


def comprehension(x):
    rows = [row for row in x if row.sum() > 0]
    return torch.stack(rows)


def nested_function(x):
    def positive(t):
        return bool(t.sum() > 0)

    return x + 1 if positive(x) else x


def and_for_its_own_sake(x):
    flag = (x > 0).all() and (x > 1).all()
    other = not (x > 99).all()
    return x + 1 if isinstance(flag, torch.Tensor) and other else x


def builtin_any(x):
    if any(row.sum() > 1 for row in x):
        return x + 1
    return x


def _positive(x):
    return x.sum() > 0


def arms_that_only_the_run_shows(x):
    flag = True
    if _positive(x) and flag:
        x = x + 1
    if x is None:
        return x
    elif _positive(x) and not flag:  # noqa: RET505
        x = x + 2
    else:
        x = x * 2
    return x - 1 if _positive(x) and flag else x


def an_arm_without_operations(x):
    flag = True
    if _positive(x) and flag:
        flag = False
    return x


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (several_on_a_line, [("if", None), ("if", True), ("ternary", None), ("ternary", True)]),
        (elif_chain, [("if", False), ("elif", True)]),
        (loops_and_asserts, [("while", True), ("while", True), ("while", None), ("assert", True)]),
        (numbers, [("if", True), ("if", False), ("match", None)]),
        (comprehension, [("comprehension", True), ("comprehension", True)]),
        (nested_function, [("unknown", None)]),
        (and_for_its_own_sake, [("and", None), ("not", True)]),
        (builtin_any, [("if", True)]),
        (arms_that_only_the_run_shows, [("if", True), ("elif", False), ("ternary", True)]),
        (an_arm_without_operations, [("if", None)]),
    ],
)
def test_constructs_and_arms(function, expected):
    assert conditions(function) == expected


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("0 < x < 1", [None, False]),
        ("0 < x < 3", [None, None]),
        ("x + 1 in [x, x + 1]", [None, True]),
        ("x not in [x + 1, x + 0]", [None, False]),
        ("[x, x + 1] != [x + 0, x + 1]", [None, None]),
        ("[x, x + 1] == [x + 0, x + 2]", [None, False]),
        ("(x, x + 1) < (x + 0, x)", [None, None, False]),
        ("a == b", [None, False]),
        ("a != b", [None, None]),
        ("math.isnan(x)", [None]),
        ("math.isclose(x, 1.0)", [None]),
        ("operator.not_(x > 1)", [False]),
        ("functools.reduce(max, a) > 9", [None, False]),
        ("[x + 1, x + 0].index(x)", [None, None]),
        ("[True, False, True][x.long() - 1]", [None]),
        ("any([y, x > 5])", [None]),
        ("not bool(x > 1)", [False]),
        ("operator.truth(x > 1)", [True]),
        ("x.is_nonzero()", [True]),
        ("int(x * 0.4)", [False]),
        ("(0 < x) & (x < 3)", [True]),
        ("(True and x.item()) > 1.5", [True]),
        ("above_one(x)", [True]),
    ],
)
@pytest.mark.parametrize("backend", ["torch_function", "torch_dispatch"])
def test_the_arm_is_told_as_far_as_it_follows_from_what_was_read(test, expected, backend):
    source = f"""\
import functools, math, operator
above_one = lambda x: x > 1
def f(x):
    a, b, y = [x + 0, x + 1], [x + 0, x + 2], x > 1
    flag = False
    if {test}:
        flag = True
    return x * 2, flag
"""
    file = f"<ipython-input-{test}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    function = run_source(source, file)
    history = lens.trace(Body(function), torch.tensor(2.0), backend=backend)
    arms = [condition.arm for condition in history.graph[Conditionals].conditions]
    assert arms == expected
    assert set(arms) <= {None, function(torch.tensor(2.0))[1]}


def test_a_test_that_raises_has_no_arm():
    def function(x):
        if int(x.item()) > 3:
            return x
        return x + 1

    with pytest.raises(ValueError, match="cannot convert float NaN") as caught:
        lens.trace(Body(function), torch.tensor(torch.nan))
    conditions = caught.value.lens_history.graph[Conditionals].conditions
    assert [condition.arm for condition in conditions] == [None]


def test_lines_are_told():
    history = lens.trace(Body(elif_chain), torch.ones(2, 4) * 3)
    first, second = history.graph[Conditionals].conditions
    assert second.line == first.line + 2


def run_source(source, file):
    module = types.ModuleType("cell")
    exec(compile(source, file, "exec"), module.__dict__)
    return module.f


def test_a_notebook_cell_is_read_from_linecache():
    source = "def f(x):\n    if x.sum() > 0:\n        return x + 1\n    return x\n"
    linecache.cache["<ipython-input-1>"] = (len(source), None, source.splitlines(True), "<ipython-input-1>")
    assert conditions(run_source(source, "<ipython-input-1>")) == [("if", True)]


def test_without_the_source_the_construct_is_unknown():
    source = "def f(x):\n    if x.sum() > 0:\n        return x + 1\n    return x\n"
    assert conditions(run_source(source, "<nowhere>")) == [("unknown", None)]


def test_the_branch_of_figure_2f():
    history = lens.trace(Conditional(), torch.ones(3) * 9)
    assert [e.layer_label for e in history if e.in_cond_branch] == ["sub_1_1", "mean_1_2", "gt_1_3"]
    facet = history.graph[Conditionals]
    assert facet.starts == (True, False, False, False)
    assert facet.final == (False, False, True, False)
    assert history.model_has_conditional_branching
    assert history.internally_terminated_bool_layers == ["gt_1_3"]
    assert not lens.trace(TwoBranches(), torch.ones(2, 4)).model_has_conditional_branching


def test_a_condition_that_shares_the_models_computation_starts_where_it_leaves_it():
    def function(x):
        y = torch.sin(x)
        if y.abs().max() > 0.5:
            y = y * 2
        return y

    history = lens.trace(Body(function), torch.ones(3))
    assert [e.layer_type for e in history if e.in_cond_branch] == ["abs", "max", "gt"]
    starts = history.graph[Conditionals].starts
    assert [op.function.name for op in history.graph.ops if starts[op.id]] == ["abs"]


class Guarded(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.first, self.second, self.ending = nn.Linear(4, 4), nn.Linear(4, 4), ending

    def forward(self, x):
        x = self.first(x).relu()
        if x.mean() > 99:
            return None
        x = self.second(x)
        assert not x.isnan().any()
        return self.ending(x)


@pytest.mark.parametrize(
    ("ending", "stop_at"),
    [
        (torch.sin, None),
        (lambda x: x.sum().item(), None),
        (lambda x: print(x.sin().shape), None),
        (lambda x: x.sin().cos(), "sin"),
    ],
)
def test_a_run_without_outputs_has_the_branches_of_one_with(ending, stop_at):
    history = lens.trace(Guarded(ending), torch.ones(1, 4), stop_at=stop_at)
    assert [e.layer_type for e in history if e.in_cond_branch] == ["mean", "gt", "isnan", "any"]
    starts = history.graph[Conditionals].starts
    assert [op.function.name for op in history.graph.ops if starts[op.id]] == ["mean", "isnan"]


def test_the_heuristic_for_backends_without_reads():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.sub(@x, 5)
  %2: bool[] = torch.gt(%1, 3)
  %3: bool[2] = torch.lt(@x, 0)
  %4: f32[2] = torch.sin(@x)
  outputs %4
}
""")
    facet = PassManager((ConditionalsPass(),), providers()).run(graph).graph[Conditionals]
    assert facet.conditions == ()
    assert facet.in_branch == (True, True, False, False)
    assert facet.final == (False, True, False, False)


def test_containment_goes_backwards_from_the_consumers():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  leaf %1: f32[2] = buffer "a.scale"
  inputs @x
  %2: f32[2] = torch.rand(2)
  %3: f32[2] = torch.neg(%2)
  scope "" "Net" #1 (@x) {
    scope "a" "Scale" #1 (@x) {
      %4: f32[2] = torch.mul(%3, @a.scale)
    } -> (%4)
  } -> (%4)
  %5: f32[2] = torch.unused(@x)
  outputs %4
}
""")
    facet = PassManager((ContainmentPass(),)).run(graph).graph[Containment]
    assert facet.ops == (1, 1, 1, None)
    assert facet.leaves == (None, 1)


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_what_a_block_computes_from_an_input_outside_of_modules_stays_outside(backend):
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.ReLU()))
    x = torch.ones(2, 3)
    with lens.tracing(model, backend=backend) as history:
        model(x * 2 + torch.rand(2, 3))
        model(torch.zeros(2, 3))
    modules = {
        name: history[name].containing_module_origin_nested[:1] for name in ("mul_1", "add_1", "relu_1", "zeros_1")
    }
    assert modules == {"mul_1": [], "add_1": [], "relu_1": ["0:1"], "zeros_1": ["0:2"]}
    assert violations(history)["containment"] == []


def test_buffers_have_the_module_of_their_consumer():
    history = lens.trace(nn.Sequential(nn.BatchNorm1d(4)).eval(), torch.ones(2, 4))
    assert history["0.running_mean"].containing_module_origin == "0"


def test_a_source_with_many_tests_is_looked_through_in_proportion_to_them():
    def written_out(count):
        lines = [f"    if x.sum() > {-n}:\n        x = x * 1.5\n" for n in range(count)]
        source = "def f(x):\n" + "".join(lines) + "    return x\n"
        file = f"<{count} tests>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        return lens.trace(Body(run_source(source, file)), torch.ones(2), save="none", passes="orphans,distances")

    work = ConditionalsPass()
    few, many = calls_per_op(lambda history: work.run(history.graph, None), *map(written_out, (19, 40, 640)))[1:]
    assert many < 1.3 * few


def test_a_test_inside_a_test_is_the_inner_one():
    source = "def f(x):\n    y = 1 if (2 if x.sum() > 0 else 0) == 2 else 3\n    return x * y\n"
    linecache.cache["<nested>"] = (len(source), None, source.splitlines(True), "<nested>")
    assert conditions(run_source(source, "<nested>")) == [("ternary", True)]


def test_without_columns_a_line_with_one_test_tells_its_construct():
    source = "if a: b\nelif c and (d if e else f): g\nh\n"
    linecache.cache["<lines>"] = (len(source), None, source.splitlines(True), "<lines>")
    roles = [SourceReader().role(Location("<lines>", line, "f")) for line in (1, 2, 3)]
    assert [role and role.construct for role in roles] == ["if", "unknown", None]
    there = SourceReader().role(Location("<lines>", 1, "f", 1, 3, 4))
    places = [Location("<lines>", 1, "f", 1, 6, 7), Location("<lines>", 2, "f", 2, 28, 29), Location("<lines>", 2, "f")]
    assert [there.arm_of(place) for place in places] == [True, False, None]


def test_the_result_that_has_a_consumer_says_where_an_operation_belongs():
    graph = parse("""\
graph {
  leaf %0: f32[4] = input "x"
  inputs @x
  %1: f32[2], %2: f32[2] = torch.split(@x, 2) -> [%1, %2]
  %3: f32[2] = torch.neg(%2)
  %4: f32[2] = torch.sin(%3)
  scope "" "Net" #1 (@x) {
    %5: f32[2] = torch.mul(%3, %3)
  } -> (%5)
  outputs %5
}
""")
    facet = PassManager((ContainmentPass(),)).run(graph).graph[Containment]
    assert facet.ops == (0, 0, None, 0)


# To the cases of test_the_arm_is_told_as_far_as_it_follows_from_what_was_read:
@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("[x, 1] == [x + 0, 2]", [None]),
        ("x.gt(1)", [True]),
        ("x.item() > flag", [None]),
        ("1 > x.item()", [False]),
        ("x is None or x > 5", [False]),
        ("x is None or x > 1", [True]),
        ("x == 2.0", [True]),
    ],
)
def test_arms(test, expected):
    source = f"def f(x):\n    flag = False\n    if {test}:\n        flag = True\n    return x * 2, flag\n"
    linecache.cache[f"<{test}>"] = (len(source), None, source.splitlines(True), f"<{test}>")
    assert [arm for _, arm in conditions(run_source(source, f"<{test}>"), torch.tensor(2.0))] == expected


def a_minus(x):
    scale = -x.max().item()
    return x * scale


def a_not(x):
    flag = not (x > 99).all()
    return x, flag


def test_not_for_its_own_sake_is_a_condition_and_a_minus_is_none():
    assert conditions(a_minus) == []
    assert conditions(a_not) == [("not", True)]


def test_the_heuristic_leaves_out_what_is_read_further():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: bool[] = torch.gt(@x, 3)
  %2: bool[] = torch.logical_not(%1)
  %3: f32[2] = torch.sin(@x)
  outputs %3
}
""")
    facet = PassManager((ConditionalsPass(),), providers()).run(graph).graph[Conditionals]
    assert facet.final == (False, True, False)


def test_a_comparison_that_is_made_again_at_once_is_no_comparison_of_lists():
    source = "def f(x):\n    least = 0\n    while x > least:\n        least += 1\n    return x\n"
    linecache.cache["<while>"] = (len(source), None, source.splitlines(True), "<while>")
    told = conditions(run_source(source, "<while>"), torch.tensor(2.0))
    assert told == [("while", True), ("while", True), ("while", False)]


def test_a_boolean_that_nothing_asked_for_is_no_condition_where_reads_are_seen():
    history = lens.trace(Body(lambda x: (x.sum() > 0, x.sin())[1]), torch.ones(2))
    assert history["gt_1"].is_terminal_bool_layer
    assert not history.model_has_conditional_branching


def _shifted(x):
    return x - 1


def an_arm_that_begins_elsewhere(x):
    flag = True
    if _positive(x) and flag:
        x = _shifted(x)
        x = x + 1
    return x


def test_an_arm_is_seen_behind_a_call_of_another_function():
    assert conditions(an_arm_that_begins_elsewhere) == [("if", True)]
