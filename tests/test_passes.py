"""The pass manager and the first passes: text in, text out."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from attrs import evolve, field, frozen

from lens.errors import GraphError, PassError
from lens.history import ModelHistory
from lens.ir.elements import Bundle
from lens.ir.facets import Ancestry, Distances, Facet, Granularity, Labels, Orphans, Recurrence
from lens.ir.parser import parse
from lens.ir.payloads import PayloadStore
from lens.ir.printer import print_graph
from lens.ir.rewrite import GraphMap, Restructured, keep_ops
from lens.passes.distances import DistancesPass
from lens.passes.granularity import GranularityPass
from lens.passes.labels import LabelsPass
from lens.passes.manager import PassManager
from lens.passes.orphans import OrphansPass
from lens.passes.pipeline import parse_pipeline
from lens.passes.protocol import PassResult, why_no_pass
from lens.registry import pass_classes, providers
from lens.replay.interpreter import Interpreter
from lens.validate.invariants import violations

COMPOSITES = """\
graph {
  leaf %0: f32[2] = input "x"
  leaf %1: f32[2] = constant "hidden"
  inputs @x
  {
    {
      %2: f32[2] = torch.inner(@x)
    } %3: f32[2] ~%2 = lib.middle(@x) yields (%2)
    read bool %3 = True
    %4: f32[2] = torch.second(%3)
  } %5: f32[2] ~%4 = lib.outer(@x) yields (%4)
  {
    %6: f32[2] = torch.lost(%5)
  } %7: f32[2] = lib.opaque(%5) yields (_)
  %8: f32[2] = torch.last(%5, %7)
  outputs %8
}
"""


def run(text, *passes):
    result = PassManager(tuple(passes), providers()).run(parse(text))
    return result.graph


def lines(graph):
    return [line.strip() for line in print_graph(graph, meta=False, facets=False).splitlines()[1:-1]]


def test_leaf_granularity_dissolves_what_it_sees_through():
    assert lines(run(COMPOSITES, GranularityPass("leaf"))) == [
        'leaf %0: f32[2] = input "x"',
        "inputs @x",
        "%1: f32[2] = torch.inner(@x)",
        "read bool %1 = True",
        "%2: f32[2] = torch.second(%1)",
        "%3: f32[2] = lib.opaque(%2)",
        "%4: f32[2] = torch.last(%2, %3)",
        "outputs %4",
    ]


def test_a_composite_of_which_nothing_tells_what_it_yields_is_kept():
    text = 'graph {\n leaf %0: f32[2] = input "x"\n inputs @x\n {\n %1: f32[2] = torch.relu(@x)\n }'
    text += " %2: f32[2] = torch.nn.functional.relu(@x)\n outputs %2\n}\n"
    graph = parse(text)
    assert [op.hands_on for op in graph.ops] == [False, False]
    assert lines(run(text, GranularityPass("leaf")))[2:-1] == ["%1: f32[2] = torch.nn.functional.relu(@x)"]
    x = torch.tensor([-1.0, 1.0])
    assert Interpreter(graph).run({0: x}, want=[2])[2].tolist() == [0, 1]


def test_api_granularity_keeps_the_outermost():
    graph = run(COMPOSITES, GranularityPass("api"))
    assert lines(graph)[2:] == [
        "%1: f32[2], %2: f32[2] = lib.outer(@x) -> %1",
        "read bool %2 = True",
        "%3: f32[2] = lib.opaque(%1)",
        "%4: f32[2] = torch.last(%1, %3)",
        "outputs %4",
    ]
    assert graph[Granularity].level == "api"


ORPHANS = """\
graph {
  leaf %0: f32[2] = input "x"
  leaf %1: i64[] = buffer "counter"
  leaf %2: f32[2] = input "unused"
  inputs (@x, @unused)
  %3: i64[] ~@counter = torch.Tensor.add_(@counter, 1)
  %4: f32[2] = torch.rand(2)
  %5: f32[2] = torch.ones(2)
  %6: f32[2] = torch.dead_end(@x, %5)
  %7: bool[] = torch.condition(%4)
  read bool %7 = True
  %8: f32[2] = torch.relu(@x)
  outputs %8
}
"""


def test_orphans_are_pruned_and_remembered():
    graph = run(ORPHANS, OrphansPass())
    assert [op.function.name for op in graph.ops] == ["rand", "ones", "dead_end", "condition", "relu"]
    assert [leaf.addresses for leaf in graph.leaves] == [("x",), ("unused",)]
    assert [orphan.function for orphan in graph[Orphans].ops] == ["torch.Tensor.add_"]
    assert graph.reads[0].position == 4


def test_distances():
    graph = run(
        """\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.a(@x)
  %2: f32[2] = torch.b(%1)
  %3: f32[2] = torch.c(%1, %2)
  %4: f32[2] = torch.rand(2)
  %5: f32[2] = torch.d(%3, %4)
  %6: f32[2] = torch.dead(%3)
  outputs %5
}
""",
        DistancesPass(),
    )
    distances = graph[Distances]
    assert distances.min_from_input == (1, 2, 2, None, 3, 3)
    assert distances.max_from_input == (1, 2, 3, None, 4, 4)
    assert distances.min_to_output == (3, 3, 2, 2, 1, None)
    assert distances.max_to_output == (4, 3, 2, 2, 1, None)
    assert graph[Ancestry].from_input == (True, True, True, False, True, True)


def test_distances_go_over_parents_and_over_memory_where_there_is_no_other_way():
    graph = run(
        """\
graph {
  fn torch.Tensor.mul_: mutates
  leaf %0: f32[4] = input "x"
  leaf %1: f32[4] = external
  inputs @x
  %2: f32[4] = torch.clone(@x)
  %3: f32[2] ~%2 = torch.a(%2)
  %4: f32[2] ~%3 = torch.Tensor.mul_(%3, 2) writes %2 => %5: f32[4] ~%2
  %6: f32[4] ~%1 = torch.Tensor.mul_(%1, 2) writes %5 => %7: f32[4] ~%5
  %8: f32[4] = torch.b(%7)
  outputs %8
}
""",
        DistancesPass(),
    )
    distances = graph[Distances]
    assert distances.min_from_input == (1, 2, 3, 3, 4)
    assert distances.max_from_input == (1, 2, 3, 4, 5)
    assert distances.min_to_output == (4, 4, 3, 2, 1)
    assert violations(ModelHistory(graph, PayloadStore()))["distances"] == []


def test_labels_name_operators_by_their_operation():
    names = [
        "add_", "__add__", "__radd__", "__iadd__", "__rsub__", "true_divide", "conv2d", "T.__get__",
        "adaptive_avg_pool2d", "__getitem__", "scaled_dot_product_attention",
    ]  # fmt: skip
    ops = "\n".join(f"  %{i + 1}: f32[2] = torch.{name}(@x)" for i, name in enumerate(names))
    graph = run(f'graph {{\n  leaf %0: f32[2] = input "x"\n  inputs @x\n{ops}\n}}', LabelsPass())
    assert [labels[0] for labels in graph[Labels].results] == [
        "add_1_1", "add_2_2", "add_3_3", "add_4_4", "rsub_1_5", "div_1_6", "conv2d_1_7", "t_1_8",
        "adaptiveavgpool2d_1_9", "getitem_1_10", "scaleddotproductattention_1_11",
    ]  # fmt: skip


def test_pipelines_are_text():
    text = 'granularity{level="api"},orphans,labels'
    passes = parse_pipeline(text, pass_classes())
    assert passes == (GranularityPass("api"), OrphansPass(), LabelsPass())
    assert parse_pipeline("granularity{level=leaf}, labels", pass_classes())[0] == GranularityPass()


@frozen
class Choosy:
    value: object = "default"
    name = "choosy"
    requires = ()
    provides = ()
    preserves = ()

    def run(self, graph, context):
        return PassResult()


@pytest.mark.parametrize(
    "value",
    ["a,b", "a}b", "{", "a=b", " x ", "", '"', "true", "1", "\u00e9", [1, [2, 3]], {"k": {"l": 1}}, 1.5, None, True],
)
def test_options_are_json(value):
    text = f"choosy{{value={json.dumps(value)}}},choosy,choosy{{value={json.dumps([value])}}}"
    assert parse_pipeline(text, {"choosy": Choosy}) == (Choosy(value), Choosy(), Choosy([value]))


def test_options_may_be_words():
    text = " choosy { value = 3d , } , choosy{value=two words},choosy{value=[1},choosy{}, "
    made = parse_pipeline(text.rstrip(), {"choosy": Choosy})
    assert made == (Choosy("3d"), Choosy("two words"), Choosy("[1"), Choosy())


@frozen
class Flagged(Choosy):
    on: bool = False
    name = "flagged"


def test_words_of_python_are_what_they_are_there():
    text = 'choosy{value=False},choosy{value=True},choosy{value=None},choosy{value="None"},flagged{on=True}'
    made = parse_pipeline(text, {"choosy": Choosy, "flagged": Flagged})
    assert made == (Choosy(False), Choosy(True), Choosy(None), Choosy("None"), Flagged(on=True))


def test_a_class_that_is_no_attrs_class_says_itself_what_it_takes():
    def make(width):
        return Choosy(width)

    assert parse_pipeline("plain{width=3}", {"plain": make}) == (Choosy(3),)
    with pytest.raises(PassError, match=r"does not take these options: .*'other'"):
        parse_pipeline("plain{other=3}", {"plain": make})


def test_an_option_goes_by_the_name_that_it_is_given_by():
    @frozen
    class Private(Choosy):
        _width: int = 2
        name = "private"

    made = parse_pipeline("private{width=3}", {"private": Private})
    assert made == (Private(width=3),)


@pytest.mark.parametrize("value", ["no", "1", "None"])
def test_a_flag_takes_nothing_else(value):
    with pytest.raises(PassError, match=r"on of pass 'flagged' cannot be .*\n.*\n.*True or False"):
        parse_pipeline(f"flagged{{on={value}}}", {"flagged": Flagged})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels labels", "not a pipeline"),
        ("labels,,labels", "not a pipeline"),
        ("choosy{value}", "not a pipeline"),
        ("choosy{value=1", "not a pipeline"),
        ("choosy{value=a}b}", "not a pipeline"),
        ("choosy{other=1}", r"pass 'choosy' has no option 'other'\n  where: choosy{other=1}\n.*its options are value"),
        (
            "granularity{level=foo}",
            r"does not take these options: 'level' must be in \('leaf', 'api'\) \(got 'foo'\)\n",
        ),
    ],
)
def test_bad_pipelines_are_told(text, message):
    with pytest.raises(PassError, match=message):
        parse_pipeline(text, {**pass_classes(), "choosy": Choosy})


def test_what_an_option_raises_and_an_option_that_comes_twice_are_told():
    @frozen
    class Choosy(OrphansPass):
        level: object = field(default=1, converter={"low": 1, 1: 1}.__getitem__)

    with pytest.raises(
        PassError, match=r"'choosy' does not take these options: KeyError: 'hihg'\n.*choosy{level=hihg}"
    ):
        parse_pipeline("choosy{level=hihg}", {"choosy": Choosy})
    with pytest.raises(PassError, match="option 'level' is given twice"):
        parse_pipeline("choosy{level=low,level=low}", {"choosy": Choosy})


@frozen
class Needy:
    name = "needy"
    requires = (Distances,)
    provides = ()
    preserves = ()

    def run(self, graph, context):
        assert graph[Distances]
        return PassResult()


def test_requirements_are_filled_from_providers():
    result = PassManager((Needy(),), providers()).run(parse(ORPHANS))
    assert [record.name for record in result.records] == ["distances", "needy"]
    with pytest.raises(PassError, match="no known pass provides"):
        PassManager((Needy(),)).run(parse(ORPHANS))


@frozen
class AfterLabels(Needy):
    """Requires what its other requirement drops."""

    requires = (Labels, Orphans)

    def run(self, graph, context):
        assert len(graph[Labels].results) == len(graph.ops)
        assert graph[Orphans].ops
        return PassResult()


def test_a_requirement_that_another_drops_is_filled_again():
    result = PassManager((AfterLabels(),), providers()).run(parse(ORPHANS))
    assert [record.name for record in result.records] == [
        "recurrence", "labels", "orphans", "recurrence", "labels", "needy",
    ]  # fmt: skip
    made = {Labels: providers()[Labels], Recurrence: providers()[Recurrence], Orphans: Forgetful()}
    with pytest.raises(PassError, match="requires the facet 'orphans', which is not there after its provider"):
        PassManager((AfterLabels(),), made).run(parse(ORPHANS))


@frozen
class Forgetful:
    """Provides nothing."""

    name = "forgetful"
    requires = ()
    provides = ()
    preserves = ()

    def run(self, graph, context):
        return PassResult()


@frozen
class Broken:
    how: str
    name = "broken"
    requires = ()
    provides = ()
    preserves = ()

    def run(self, graph, context):
        if self.how == "raises":
            raise ZeroDivisionError("by zero")
        if self.how == "extra":
            return PassResult((Granularity("leaf"),))
        if self.how == "wrong type":
            return None
        if self.how == "no tuple":
            return PassResult(Granularity("leaf"))
        if self.how == "no facet":
            return PassResult((Granularity,))
        if self.how == "no map":
            return PassResult((), graph)
        if self.how == "half":
            return PassResult((), Restructured(graph, None))
        changed = keep_ops(graph, graph.ops)
        ops = (evolve(changed.graph.ops[0], operands=(99,)), *changed.graph.ops[1:])
        return PassResult((), evolve(changed, graph=evolve(changed.graph, ops=ops)))


@frozen
class Undeclared:
    name: str = "undeclared"
    requires: object = ()
    provides: object = ()
    preserves: object = ()

    def run(self, graph, context):
        raise AssertionError("it is not to be run")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"requires": Labels}, r"'undeclared' is no pass: its requires is no tuple of facet types, but .*Labels"),
        ({"provides": Granularity}, r"its provides is no tuple of facet types, but .*Granularity"),
        ({"provides": ("labels",)}, r"its provides is .*'labels' \(it is no subclass"),
        ({"preserves": (Facet,)}, r"its preserves is .*Facet.* \(it has no name"),
        ({"name": None}, "None is no pass: its name is a NoneType"),
    ],
)
def test_what_a_pass_declares_is_checked_before_any_pass_runs(declared, message):
    with pytest.raises(PassError, match=message):
        PassManager((Broken("raises"), Undeclared(**declared))).run(parse(CHAIN))


@frozen
class Complaining(Facet):
    name = "complaining"

    def verify(self, graph):
        return [3]


def test_a_complaint_that_is_no_text_is_told_all_the_same():
    class Complains:
        name, requires, provides, preserves = "complains", (), (Complaining,), ()

        def run(self, graph, context):
            return PassResult((Complaining(),))

    with pytest.raises(PassError, match="pass 'complains' failed: GraphError: 3"):
        PassManager((Complains(),)).run(parse(CHAIN))


class Wrong(Facet):
    name = "wrong"

    def verify(self, graph):
        yield "op 1: is wrong"


class NoText(Exception):
    def __str__(self):
        raise ValueError("no text")


@frozen
class Does:
    """A pass that does what it is told."""

    body: object
    provides: tuple = ()
    name = "does"
    requires = ()
    preserves = ()

    def run(self, graph, context):
        return self.body(graph)


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (lambda graph: raises(NoText()), r"'does' failed: NoText: no message\n  where: {here}:\d+\n"),
        (lambda graph: raises(ValueError("x" * 9999)), r"'does' failed: ValueError: x{{200}}\n  where: {here}:\d+\n"),
        (lambda graph: setattr(graph, "ops", ()), r"'does' failed: FrozenInstanceError: .*\n  where: {here}:\d+\n"),
        (
            lambda graph: graph[Labels],
            r"GraphError: the graph has no Labels .*\n  where: {here}:\d+, graph of .*\n  to do",
        ),
        (
            lambda graph: PassResult((Wrong(),)),
            r"'does' failed: GraphError: op 1: is wrong\n  where: .*\n  0: .*\n> 1: ",
        ),
    ],
)
def test_an_error_of_a_pass_is_told_in_a_line_with_its_place(body, told):
    with pytest.raises(PassError, match=told.format(here=__file__)):
        PassManager((Does(body, (Wrong,) if "Wrong" in body.__code__.co_names else ()),)).run(parse(CHAIN))


def moved(new_map):
    return Does(lambda graph: PassResult((), Restructured(keep_ops(graph, graph.ops).graph, new_map)))


@pytest.mark.parametrize(
    ("new_map", "what"),
    [
        (GraphMap(()), "there are 0 ops for 2"),
        (GraphMap((0, 99)), "op 99 does not exist"),
        (GraphMap((0, 0)), "two ops become one"),
        (GraphMap((0, 1), {0: 77}), "value 77 does not exist"),
        (GraphMap((0, 1), {-1: 0}), "value -1 does not exist"),
        (GraphMap((0, 1), {0: 0}, {9: 1}), "op 9 does not exist"),
        (GraphMap((0, 1), [0, 1, 2]), "values or absorbed no mapping"),
    ],
)
def test_a_map_that_leads_nowhere_is_an_error_of_the_pass(new_map, what):
    with pytest.raises(PassError, match=f"pass 'does' restructured the graph to a graph with a map in which .*{what}"):
        PassManager((moved(new_map),)).run(parse(CHAIN))


def test_a_value_stays_of_its_type():
    graph = parse(CHAIN.replace("%2: f32[2]", "%2: f32[3]"))
    PassManager((moved(GraphMap((0, 1), {0: 0, 1: 0, 2: 2})),)).run(graph)
    with pytest.raises(PassError, match="%2 becomes a value of another type, %1"):
        PassManager((moved(GraphMap((0, 1), {2: 1})),)).run(graph)


def test_facets_that_a_pass_took_over_unasked_are_dropped():
    same = GraphMap((0, 1), {0: 0, 1: 1, 2: 2})
    renames = Does(lambda graph: PassResult((), Restructured(evolve(graph, ops=graph.ops), same)))
    assert run(CHAIN, LabelsPass(), renames).facets == ()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: PassManager(LabelsPass()), "the passes of a manager are a LabelsPass, and no tuple"),
        (lambda: PassManager((), verify="paranoid"), "verify cannot be 'paranoid'"),
        (lambda: PassManager((LabelsPass,)).run(parse(CHAIN)), "'labels' is no pass: it is a class"),
    ],
)
def test_what_a_manager_is_given_is_checked(make, what):
    with pytest.raises(PassError, match=what):
        make()


def test_a_facet_is_asked_for_by_its_type():
    for kind in ("labels", int):
        with pytest.raises(GraphError, match="is no type of a facet"):
            parse(CHAIN)[kind]


CHAIN = """
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.relu(@x)
  %2: f32[2] = torch.sin(%1)
  outputs %2
}
"""


def test_a_dropped_op_whose_result_is_read_is_named():
    graph = parse(CHAIN)
    with pytest.raises(GraphError, match=r"op 1 of the old graph needs %1, the result of op 0 \(torch.relu\)"):
        keep_ops(graph, graph.ops[1:])
    with pytest.raises(GraphError, match="the output of the old graph needs %2"):
        keep_ops(graph, graph.ops[:1])
    assert keep_ops(graph, graph.ops[1:], {1: 0}).graph.ops[0].operands == (0,)


@pytest.mark.parametrize("substitute", [{1: 1}, {1: 2, 2: 1}, {0: 1, 1: 2, 2: 1}])
def test_substitutes_in_a_circle_are_an_error(substitute):
    graph = parse(CHAIN)
    with pytest.raises(GraphError, match="in a circle"):
        keep_ops(graph, graph.ops, substitute)


def test_a_long_chain_of_substitutes_takes_linear_time():
    count = 20_000
    graph = parse(CHAIN)
    relu, sin = graph.ops
    ops = [evolve(relu, id=i, operands=(i,), results=(i + 1,)) for i in range(count)]
    ops.append(evolve(sin, id=count, operands=(count,), results=(count + 1,)))
    values = [graph.values[0], *(evolve(graph.values[1], id=i + 1, producer=i) for i in range(count + 1))]
    chain = evolve(graph, ops=tuple(ops), values=tuple(values), outputs=Bundle(graph.outputs.form, (count + 1,)))
    start = time.perf_counter()
    made = keep_ops(chain, ops[-1:], {i + 1: i for i in range(count)})
    assert time.perf_counter() - start < 2
    assert made.graph.ops[0].operands == (0,)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "ZeroDivisionError: by zero"),
        ("extra", "not declared: .*Granularity"),
        ("wrong type", "NoneType"),
        ("no tuple", r"no tuple of facets\n.*facets=Granularity"),
        ("no facet", "no tuple of facets"),
        ("no map", "to a Graph"),
        ("half", "to a Graph with a NoneType"),
        ("invalid graph", "does not exist"),
    ],
)
def test_a_pass_that_breaks_its_contract_is_named(how, message):
    graph = parse(ORPHANS)
    with pytest.raises(PassError, match=message) as caught:
        PassManager((Broken(how),)).run(graph)
    assert "'broken'" in str(caught.value)
    if how == "invalid graph":
        assert "> 0: " in str(caught.value)  # the window around the op
    assert graph == parse(ORPHANS)


@frozen
class Immovable(Facet):
    name = "immovable"

    def remap(self, graph_map):
        raise ZeroDivisionError("by zero")


@frozen
class Twice:
    name = "twice"
    requires = ()
    provides = (Immovable,)
    preserves = ()
    often: int = 2

    def run(self, graph, context):
        return PassResult((Immovable(),) * self.often)


@frozen
class Mover(Broken):
    preserves = (Immovable,)

    def run(self, graph, context):
        return PassResult((), keep_ops(graph, graph.ops))


def test_a_pass_is_named_if_its_facet_comes_twice_or_cannot_be_carried_over():
    with pytest.raises(PassError, match="'twice' does not return the facets"):
        PassManager((Twice(),)).run(parse(ORPHANS))
    with pytest.raises(PassError, match="'broken' failed: ZeroDivisionError: by zero"):
        PassManager((Twice(1), Mover(""))).run(parse(ORPHANS))


def test_preserved_facets_are_carried_over_and_others_dropped():
    graph = run(ORPHANS, DistancesPass(), LabelsPass(), OrphansPass())
    assert graph.get(Labels) is None
    assert graph[Distances].min_from_input == (None, None, 1, None, 1)


OVERWRITING = """\
graph {
  fn torch.Tensor.add_: mutates
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.clone(@x)
  {
    %2: f32[2] ~@x = torch.Tensor.add_(@x, 1)
    %3: f32[2] ~%1 = torch.Tensor.add_(%1, 1)
    %4: f32[2] ~%3 = torch.view(%3)
    %5: f32[2] = torch.sin(%4)
  } %6: f32[2] ~%5 = lib.outer(@x, %1) yields (%5)
  %7: f32[2] = torch.sum(%6, %2, %3, %4)
  outputs %7
}
"""


def test_what_a_closed_composite_wrote_is_an_effect_and_what_it_made_a_result():
    assert lines(run(OVERWRITING, GranularityPass("api")))[3:-1] == [
        "%2: f32[2], %3: f32[2] ~%5 = lib.outer(@x, %1) -> %2 writes @x => %4: f32[2] ~@x writes %1 => %5: f32[2] ~%1",
        "%6: f32[2] = torch.sum(%2, %4, %5, %3)",
    ]


def test_what_is_inside_a_composite_and_what_it_hands_through_are_no_orphans():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.ones(2)
  {
    %2: f32[2] = torch.rand(2)
    %3: f32[2] = torch.inner(@x)
  } %4: f32[2] ~%1 = lib.outer(@x) yields (%1)
  outputs %4
}
""")
    assert PassManager((OrphansPass(),)).run(graph).graph[Orphans].ops == ()


CLOSED = """\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  {
    %1: f32[2] = torch.inner(@x)
  } %2: f32[2] = lib.opaque(@x) yields (_)
"""
SHOWN = """\
  {
    %3: f32[2] = torch.used(%2)
  } %4: f32[2] ~%1 = lib.shown(%2) yields (%1)
"""


@pytest.mark.parametrize("rest", [SHOWN + "  outputs %4\n}\n", "  outputs %1\n}\n"], ids=["handed through", "itself"])
def test_what_the_model_returns_out_of_a_closed_composite_is_a_result_of_it(rest):
    found = lines(run(CLOSED + rest, GranularityPass("leaf")))
    assert found[2] == "%1: f32[2], %2: f32[2] = lib.opaque(@x) -> %1"
    assert found[-1] == "outputs %2"


@pytest.mark.parametrize("part", ["name", "requires", "provides", "preserves", "run"])
def test_a_part_that_a_pass_lacks_is_named(part):
    parts = {"name": "p", "requires": (), "provides": (), "preserves": (), "run": print}
    assert why_no_pass(SimpleNamespace(**parts)) == ""
    assert why_no_pass(SimpleNamespace(**{**parts, part: 3})) != ""
    parts.pop(part)
    assert why_no_pass(SimpleNamespace(**parts)) == f"it has no {part}"


def test_a_call_that_is_in_a_dropped_one_goes_with_it():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs (@x,)
  scope "" "Net" #1 (@x) {
    scope "a" "Outer" #1 (@x) {
      scope "a.b" "Inner" #1 (@x) {
      } -> ()
      %1: f32[2] = torch.relu(@x)
    } -> (%1)
    %2: f32[2] = torch.sin(@x)
  } -> (%2)
  outputs %2
}
""")
    kept = keep_ops(graph, graph.ops[1:], drop_scope=lambda scope: scope.address == "a").graph
    assert [scope.address for scope in kept.scopes] == [""]


def test_an_open_composite_absorbs_nothing():
    graph = parse(COMPOSITES)
    assert keep_ops(graph, graph.ops).map.absorbed == {}


def test_the_dropped_op_that_made_what_is_missing_is_named():
    graph = parse(CHAIN)
    with pytest.raises(GraphError, match=r"the output of the old graph needs %2, the result of op 1 \(torch.sin\)"):
        keep_ops(graph, graph.ops[:1])


def test_a_pass_of_fewer_results_has_fewer_labels():
    graph = run(
        """\
graph {
  leaf %0: f32[2] = input "x"
  leaf %1: f32[2] = parameter "w"
  inputs @x
  %2: f32[2], %3: f32[2] = lib.f(@x, @w) -> [%2, %3]
  %4: f32[2] = lib.f(@x, @w)
  outputs %4
}
""",
        LabelsPass(),
    )
    assert graph[Labels].results == (("f_1_1", "f_2_2"), ("f_1_1",))


@frozen
class Passing(Facet):
    name = "passing"

    def remap(self, graph_map):
        return None


@frozen
class Noting(Forgetful):
    provides = (Passing,)

    def run(self, graph, context):
        return PassResult((Passing(),))


@frozen
class Rebuilding(Forgetful):
    preserves = (Passing,)

    def run(self, graph, context):
        return PassResult((), keep_ops(graph, graph.ops))


def test_a_facet_that_does_not_outlast_a_restructuring_is_dropped():
    assert run(CHAIN, Noting()).get(Passing) == Passing()
    assert run(CHAIN, Noting(), Rebuilding()).get(Passing) is None
