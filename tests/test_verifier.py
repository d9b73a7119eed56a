"""The verifier finds every kind of broken graph, and names the op."""

import pytest
from attrs import evolve

from lens.errors import GraphError
from lens.ir.elements import LeafId, OpId, ScopeId, ValueId
from lens.ir.facets import Ancestry
from lens.ir.parser import parse
from lens.ir.templates import Slot
from lens.ir.verifier import find_problems, verify

SOUND = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs (@x,)
  scope "" "Net" #1 (@x) {
    scope "a" "ReLU" #1 (@x) {
      %1: f32[2] = torch.relu(@x)
    } -> (%1)
    %2: f32[2] ~%1 = torch.Tensor.add_(%1, 1)
    read bool %2 = True
  } -> (%2)
  outputs %2
}
""")


def with_value(number, **changes):
    values = list(SOUND.values)
    values[number] = evolve(values[number], **changes)
    return evolve(SOUND, values=tuple(values))


def with_op(number, **changes):
    ops = list(SOUND.ops)
    ops[number] = evolve(ops[number], **changes)
    return evolve(SOUND, ops=tuple(ops))


BROKEN = {
    "ids": evolve(SOUND, ops=SOUND.ops[::-1]),
    "references": with_op(0, operands=(ValueId(9),)),
    "producer": with_op(1, results=(ValueId(1),)),
    "order": with_op(0, operands=(ValueId(2),)),
    "slots": with_op(0, args=()),
    "scopes": evolve(SOUND, scopes=(SOUND.scopes[0], evolve(SOUND.scopes[1], stop=5))),
    "composites": with_op(1, interior=3),
    "aliases": evolve(SOUND, values=(SOUND.values[0], evolve(SOUND.values[1], alias_of=ValueId(2)), SOUND.values[2])),
    "alias circle": with_value(1, alias_of=ValueId(1)),
    "reads": evolve(SOUND, reads=(evolve(SOUND.reads[0], position=1),)),
}


def test_a_sound_graph_has_no_problems():
    assert find_problems(SOUND) == []
    verify(SOUND)


@pytest.mark.parametrize("rule", BROKEN)
def test_every_rule_finds_its_break(rule):
    assert rule in {problem.rule for problem in find_problems(BROKEN[rule])}
    with pytest.raises(GraphError, match=rf"\[{rule}\]|breaks"):
        verify(BROKEN[rule])


def test_the_error_shows_the_lines_around_the_op():
    with pytest.raises(GraphError) as caught:
        verify(BROKEN["order"])
    assert "> 0: %1: f32[2] = torch.relu(%2)" in str(caught.value)


def test_an_op_outside_its_scope_is_found():
    assert any(p.rule == "scopes" and p.op == OpId(1) for p in find_problems(with_op(1, scope=ScopeId(1))))


@pytest.mark.parametrize(
    "broken",
    [
        with_value(1, alias_of=ValueId(-1)),
        with_value(1, producer=OpId(7)),
        with_value(0, leaf=LeafId(-1)),
        evolve(SOUND, scopes=(SOUND.scopes[0], evolve(SOUND.scopes[1], parent=ScopeId(-1)))),
        evolve(SOUND, reads=(evolve(SOUND.reads[0], scope=ScopeId(5)),)),
    ],
)
def test_numbers_that_name_nothing_are_found(broken):
    assert [p.rule for p in find_problems(broken)] == ["references"]


@pytest.mark.parametrize("slot", [-1, -9, 1])
def test_a_result_that_is_none_is_found(slot):
    assert [p.rule for p in find_problems(with_op(0, form=Slot(slot)))] == ["slots"]


def test_a_tensor_in_what_was_read_is_found():
    broken = evolve(SOUND, reads=(evolve(SOUND.reads[0], result=Slot(0)),))
    assert [p.rule for p in find_problems(broken)] == ["slots"]


@pytest.mark.parametrize("broken", [with_value(1, alias_of=ValueId(1)), with_value(1, alias_of=ValueId(2))])
def test_aliases_in_a_circle_are_found(broken):
    assert "alias circle" in {p.rule for p in find_problems(broken)}


def test_facets_are_verified():
    graph = SOUND.with_facets(Ancestry((True,), (True, True)))
    assert [p.rule for p in find_problems(graph)] == ["facet"]


def test_composites_that_overlap_are_found():
    text = 'graph {\n  leaf %0: f32[2] = input "x"\n  inputs @x\n'
    graph = parse(text + "".join(f"  %{i + 1}: f32[2] = torch.relu(@x)\n" for i in range(4)) + "  outputs %4\n}\n")

    def problems(**interiors):
        ops = tuple(evolve(op, interior=interiors.get(f"op{op.id}", 0)) for op in graph.ops)
        return [(p.rule, p.op) for p in find_problems(evolve(graph, ops=ops))]

    assert problems(op3=3, op1=1) == []
    assert problems(op3=1, op2=1) == [("composites", 2)]


def test_a_value_that_nothing_makes_is_found():
    found = find_problems(with_op(1, results=(), form=None))
    assert [(p.rule, p.what) for p in found] == [("producer", "%2 is made by nothing")]
