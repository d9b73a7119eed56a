"""The text form: golden texts, and the round trip on generated graphs."""

import json

import pytest
from attrs import frozen
from hypothesis import given, settings
from strategies import graphs

import lens
from lens.errors import FileFormatError, RenderError, TextError
from lens.ir.codec import dump_facet, load_template, structure
from lens.ir.facets import Facet, UnknownFacet
from lens.ir.graph import Graph
from lens.ir.parser import parse
from lens.ir.printer import print_address, print_graph
from lens.ir.types import TensorType, parse_type
from lens.ir.verifier import find_problems

GOLDEN = """\
graph {
  fn torch.Tensor.mul_: mutates
  fn torch.nn.functional.relu: composite
  leaf %0: f32[2,4] = input "x"
  leaf %1: f32[4,4] = parameter trainable "fc.weight" "tied"
  leaf %2: i64[] = external at "model.py":7 in "f"
  inputs ((@x,), {"flag": True})
  scope "" "Net" #1 (@x) {
    read item %2 = 3 at "model.py":8:4-8:12 in "f"
    scope "fc" "Linear" #1 aka "tied" train (@x) {
      %3: f32[2,4] ^AddmmBackward0 = torch._C._nn.linear(@x, @fc.weight, None)
    } -> (%3)
    scope "empty" "Identity" #1 (%3) {
    } -> (%3)
    {
      %4: f32[2,4] = torch.relu(%3)
    } %5: f32[2,4] ~%4 = torch.nn.functional.relu(%3, inplace=False) yields (%4)
    %6: f32[2,2] ~%5 = torch.Tensor.__getitem__(%5, (slice(None, None, None), slice(None, 2, None)))
    %7: f32[2,2] ~%6 = torch.Tensor.mul_(%6, -inf) writes %5 => %8: f32[2,4] ~%5
    %9: f32[2], %10: i64[2] = torch.max(%8, 1, out=opaque "a.B" "x" 0) -> seq "torch.return_types.max" (%9, %10)
    = torch.weird([%9, %10], {"a": 1.5}, <dtype torch.float32>, seq "size" (2,), complex(1.0, -2.0)) took 0.5
  } -> (%10)
  outputs map "pkg.Out" {"logits": %9, "rest": [%10, "text", nan]}
  facet granularity {"level": "leaf"}
}
"""


def test_golden_text_round_trips():
    graph = parse(GOLDEN)
    assert print_graph(graph, meta=False) == GOLDEN
    assert [op.function.name for op in graph.ops] == [
        "linear", "relu", "relu", "__getitem__", "mul_", "max", "weird",
    ]  # fmt: skip
    assert graph.ops[2].interior == 1
    assert graph.ops[2].yields == (4,)
    assert graph.ops[4].effects == ((5, 8),)
    assert graph.scopes[1].outputs == (3,)
    assert graph.values[8].producer == 4
    assert graph.users(5) == (3, 4)
    assert find_problems(graph) == []


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_generated_graphs_round_trip(graph):
    assert find_problems(graph) == []
    assert parse(print_graph(graph)) == graph


@pytest.mark.parametrize("address", ["A\u00b7", "\u00e9", "a b", 'say "x"', "a.b_1"])
def test_addresses_of_any_letters_round_trip(address):
    text = f"graph {{\n  leaf %0: f32[] = buffer {json.dumps(address)}\n  outputs @{print_address(address)}\n}}"
    graph = parse(text)
    assert graph.leaves[0].addresses == (address,)
    assert parse(print_graph(graph)) == graph


def test_a_leaf_that_shares_the_memory_of_a_later_one_round_trips():
    graph = parse('graph {\n  leaf %0: f32[] ~%1 = external\n  leaf %1: f32[] = buffer "state"\n}\n')
    assert parse(print_graph(graph)) == graph


@pytest.mark.parametrize("name", ["nan", "inf", "None", "at", "\u03c0", "gr\u00f6\u00dfe"])
def test_arguments_of_any_name_round_trip(name):
    text = f"graph {{\n  %0: f32[] = nan.inf.{name}(nan, {name}=-inf, {name}_ = nan)\n}}\n"
    graph = parse(text)
    assert [key for key, _ in graph.ops[0].kwargs] == [name, f"{name}_"]
    assert print_graph(parse(print_graph(graph))) == print_graph(graph)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph {\n  inputs (%0,)\n}", "used before it is declared"),
        ("graph {\n  leaf %0: f32[] = nothing\n}", "unknown kind of leaf"),
        ("graph {\n  leaf %0: f32[] = input\n  leaf %0: f32[] = input\n}", "declared twice"),
        ('graph {\n  scope "" "M" #1 () {\n}', "not closed"),
        ("graph {\n  leaf %0: f32[] = input\n  %1: f32[] = torch.relu(%0) ???\n}", "unexpected"),
        ("graph {\n  %1: f32[] = torch.rand()\n}", "without gaps"),
        ("graph {\n  meta {x\n}", "not JSON"),
        ('graph {\n  leaf %0: f32[] = input "a\x01"\n}', "line 2"),
        ("graph {\n  %0: f32[] = torch.rand(slice(0, 1))\n}", "line 2"),
        ("graph {\n  %0: f32[] = torch.rand(complex((1.0, 2.0), 1))\n}", "line 2"),
        ("graph {\n  %0: f32[] = torch.rand(slice}None, 2, None))\n}", "expected"),
        (f"graph {{\n  %0: f32[{'2' * 5000}] = torch.rand()\n}}", "line 2"),
    ],
)
def test_bad_text_names_the_problem(text, message):
    with pytest.raises(TextError, match=message):
        parse(text)


def test_comments_are_ignored():
    text = '// head\ngraph {\n  leaf %0: f32[2] = input "a//b" // tail\n  inputs (%0,)\n}'
    assert parse(text).leaves[0].addresses == ("a//b",)


def test_unknown_facets_are_kept():
    text = 'graph {\n  facet my_facet {"rows": [1, 2]}\n}\n'
    graph = parse(text)
    assert isinstance(graph.facets[0], UnknownFacet)
    assert print_graph(graph, meta=False).count('facet my_facet {"rows": [1, 2]}') == 1


def test_facets_are_keyed_by_type():
    graph = Graph()
    with pytest.raises(lens.LensError, match="has no Labels facet"):
        graph[lens.ir.facets.Labels]
    assert issubclass(lens.ir.facets.Labels, Facet)


@pytest.mark.parametrize("text", ["f32[1,3]", "bf16[]", "i64[2,?]@cuda:0#nested", "f8e4m3fn[4]", "strange[1]"])
def test_types_round_trip(text):
    assert str(parse_type(text)) == text


def test_type_sizes():
    assert TensorType("float32", (2, 3)).nbytes == 24
    assert TensorType("complex64", ()).nbytes == 8
    assert TensorType("float32", (2, -1), layout="nested").numel == 0
    with pytest.raises(ValueError, match="no type: 'f32'"):
        parse_type("f32")


@pytest.mark.parametrize("given", ["ab", {"a": 1, "b": 2}, ["a"], ["a", "b", "c"]])
def test_a_pair_is_read_from_a_list_of_two_only(given):
    assert structure(["a", "b"], tuple[str, str], "here") == ("a", "b")
    with pytest.raises(FileFormatError, match="a list of 2 expected"):
        structure(given, tuple[str, str], "here")


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
@pytest.mark.parametrize("put", [lambda n: n, lambda n: (1, n), lambda n: (1.0, n), lambda n: {"a": (n, (None,))}])
def test_a_facet_with_a_number_of_more_than_64_bits_has_no_text(put, number):
    @frozen
    class Large(Facet):
        value: object
        name = "large"

    dump_facet(Large(put(2**63)))
    with pytest.raises(RenderError, match="an int of more than 64 bits"):
        dump_facet(Large(put(number)))


def test_a_template_has_a_largest_depth():
    nested = 1
    for _ in range(300):
        nested = {"seq": ["list", nested]}
    with pytest.raises(TypeError, match="not a template"):
        load_template(nested)
