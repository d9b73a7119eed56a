"""Hypothesis strategies for graphs."""

from hypothesis import strategies as st

from lens.ir.elements import (
    Bundle,
    FnRef,
    Leaf,
    LeafId,
    Location,
    Meta,
    Op,
    OpId,
    Read,
    Scope,
    ScopeId,
    Value,
    ValueId,
)
from lens.ir.graph import Graph
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, default_form
from lens.ir.types import TensorType

texts = st.text(max_size=6)
atoms = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 10), st.floats(allow_nan=False), texts,
    st.complex_numbers(allow_nan=False, allow_infinity=False, max_magnitude=1e3),
)  # fmt: skip
symbols = st.builds(Symbol, st.just("dtype"), st.sampled_from(["torch.float32", "torch.int64"]))
opaques = st.builds(Opaque, texts, texts, st.integers(0, 9))
types = st.builds(
    TensorType,
    st.sampled_from(["float32", "int64", "bool", "bfloat16"]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from(["cpu", "cuda:0"]),
    st.sampled_from(["strided", "sparse_coo"]),
)
locations = st.one_of(
    st.none(),
    st.builds(Location, texts, st.integers(1, 99), texts),
    st.builds(Location, texts, st.integers(1, 99), texts, st.just(99), st.integers(0, 9), st.integers(0, 9)),
)
functions = st.sampled_from(
    [
        FnRef("torch", "relu"),
        FnRef("torch.Tensor", "add_", mutates=True),
        FnRef("torch", "rand", random=True),
        FnRef("torch.Tensor", "T.__get__", view=True),
        FnRef("torch.ops.aten", "relu.default"),
        FnRef("torch.nn.functional", "gelu", composite=True),
    ]
)


def templates(slot_count):
    leaves = st.one_of(atoms, symbols, opaques)
    plain = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(Seq, st.sampled_from(["list", "tuple", "size", "a.B"]), st.lists(inner, max_size=3).map(tuple)),
            st.builds(
                Map,
                st.sampled_from(["dict", "a.B"]),
                st.lists(st.tuples(texts, inner), max_size=2).map(tuple),
            ),
            st.builds(Slice, inner, inner, inner),
        ),
        max_leaves=4,
    )
    return st.lists(plain, max_size=2).map(lambda extra: (*[Slot(i) for i in range(slot_count)], *extra))


class _Building:
    def __init__(self, draw):
        self.draw = draw
        self.values, self.leaves, self.ops, self.scopes, self.reads = [], [], [], [], []

    def value(self, producer, index, leaf=None):
        number = ValueId(len(self.values))
        alias = self.draw(st.sampled_from([None, *range(len(self.values))]))
        grad = self.draw(st.sampled_from([None, "AddBackward0"]))
        self.values.append(Value(number, self.draw(types), producer, index, alias, leaf, grad))
        return number

    def leaf(self, kind):
        leaf = LeafId(len(self.leaves))
        names = tuple(self.draw(st.lists(texts, min_size=kind in ("parameter", "buffer"), max_size=2)))
        value = self.value(None, 0, leaf)
        self.leaves.append(Leaf(leaf, kind, value, names, self.draw(st.booleans()), self.draw(locations)))

    def operands(self):
        known = [v.id for v in self.values]
        return tuple(self.draw(st.lists(st.sampled_from(known), max_size=3)))

    def op(self, scope, interior=0, inner=()):
        number = OpId(len(self.ops))
        operands = self.operands()
        args = self.draw(templates(len(operands)))
        kwargs = tuple((n, self.draw(atoms)) for n in self.draw(st.sets(st.sampled_from("ab"), max_size=1)))
        results = tuple(self.value(number, i) for i in range(self.draw(st.integers(0, 2))))
        effects = []
        if operands and self.draw(st.booleans()):
            effects = [(operands[0], self.value(number, len(results)))]
        yields = tuple(self.draw(st.sampled_from([None, *inner])) for _ in results) if interior else ()
        self.ops.append(
            Op(number, self.draw(functions), operands, args, kwargs, results, default_form(len(results)),
               tuple(effects), scope, self.draw(locations), self.draw(st.sampled_from([0.0, 1e-5])), interior, yields)
        )  # fmt: skip

    def block(self, scope, depth):
        for _ in range(self.draw(st.integers(0, 3))):
            kind = self.draw(st.sampled_from(["op", "op", "read", "scope", "composite"]))
            if kind == "op":
                self.op(scope)
            elif kind == "read":
                known = [v.id for v in self.values]
                self.reads.append(
                    Read(
                        self.draw(st.sampled_from(known)),
                        "bool",
                        self.draw(atoms),
                        len(self.ops),
                        scope,
                        self.draw(locations),
                    )
                )
            elif kind == "scope" and depth:
                self.module(scope, depth)
            elif kind == "composite" and depth:
                start = len(self.ops)
                self.block(scope, depth - 1)
                inner = [v for op in self.ops[start:] for v in op.results]
                self.op(scope, len(self.ops) - start, inner)

    def module(self, parent, depth):
        number = ScopeId(len(self.scopes))
        self.scopes.append(None)
        start = len(self.ops)
        inputs = self.operands()
        self.block(number, depth - 1)
        self.scopes[number] = Scope(
            number, self.draw(texts), self.draw(texts), self.draw(st.integers(1, 3)), parent,
            tuple(self.draw(st.lists(texts, max_size=1))), self.draw(st.booleans()), start, len(self.ops),
            inputs, self.operands(), self.draw(locations),
        )  # fmt: skip


@st.composite
def graphs(draw):
    """Structurally sound graphs of every kind of element."""
    building = _Building(draw)
    building.leaf("input")
    for kind in draw(st.lists(st.sampled_from(["parameter", "buffer", "external"]), max_size=3)):
        building.leaf(kind)
    building.module(None, 3)
    known = [v.id for v in building.values]
    outputs = tuple(draw(st.lists(st.sampled_from(known), max_size=2)))
    form = Map("dict", tuple((f"o{i}", Slot(i)) for i in range(len(outputs))))
    return Graph(
        tuple(building.ops), tuple(building.values), tuple(building.scopes), tuple(building.leaves),
        tuple(building.reads), Bundle(Seq("tuple", (Slot(0),)), (ValueId(0),)), Bundle(form, outputs),
        Meta(model=draw(texts), seed=draw(st.sampled_from([None, 3])), started=1.5),
    )  # fmt: skip
