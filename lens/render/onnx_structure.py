"""``history.to_onnx_structure()``: the graph alone in an ONNX file, for viewers.

One node per operation, in a domain of lens's own; one local function per module call, nested as the calls were. There
are no weights: a node names its parameters. No runtime has these operations, so nothing can run the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from attrs import define, field, frozen

import lens
from lens.ir.elements import Op, Scope, ValueId
from lens.ir.facets import Containment, Labels
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.ir.op_arguments import print_arguments
from lens.ir.types import RAGGED
from lens.render.renderer import Renderer, Traced, in_utf8, optional

OPERATIONS, MODULES = "lens", "lens.modules"
_OPSET, _IR_VERSION = 18, 10
#: The checker of ONNX takes no more functions than these.
_MOST_FUNCTIONS = 10_000
_DEEPEST = 1_000
_NOT_NAME = re.compile(r"\W+")
#: Names of dtypes that ONNX does not write as torch does, in capitals.
_DTYPES = {"float64": "DOUBLE", "float32": "FLOAT", "qint8": "INT8", "quint8": "UINT8", "qint32": "INT32"}
_NOTE = "The structure of one forward pass, recorded by lens: no weights, and operations that no runtime knows."


@define(eq=False)
class _Block:
    """The operations of one module call, or a run of them that no other operation interrupts."""

    scope: Scope | None
    parent: _Block | None
    depth: int
    items: list[Op | _Block] = field(factory=list)
    inputs: dict[ValueId, None] = field(factory=dict)
    outputs: dict[ValueId, None] = field(factory=dict)


@frozen
class OnnxStructureRenderer(Renderer):
    """The structure as an ONNX file for viewers such as Netron: no weights, not runnable."""

    name = "onnx-structure"
    suffix = ".onnx"
    requires = (Labels, Containment)

    def render(self, history: Traced) -> bytes:
        """The file. Linear in the operations times the depth of modules. Raises RenderError: onnx is not installed."""
        onnx = optional("onnx", "to_onnx_structure")
        depth, model = _DEEPEST, None
        while model is None:  # too many functions: the innermost module calls are not shown
            writer = _Writer(history, onnx, depth)
            model = writer.model()
            depth = max((block.depth for block in writer.blocks), default=1) - 1
        content: bytes = model.SerializeToString(deterministic=True)
        return content


class _Writer:
    def __init__(self, history: Traced, onnx: Any, depth: int) -> None:
        self.graph: Graph = history.graph
        self.index = history.index
        self.onnx = onnx
        self.helper: Any = onnx.helper
        self.labels = self.graph[Labels]
        self.root, self.blocks = _blocks(self.graph, depth)
        _connect(self.graph, self.root, self.blocks)
        self.taken: dict[str, int] = {}
        #: By content: calls of a module that did the same share a function.
        self.functions: dict[bytes, Any] = {}
        #: The function of each block.
        self.function_names: dict[_Block, str] = {}

    def model(self) -> Any:
        """The file's content; None if it has more functions than ONNX allows."""
        for block in self.blocks:
            self._add_function(block)
        if len(self.functions) > _MOST_FUNCTIONS:
            return None
        names = self._names(self.root)
        inputs = [leaf.value for leaf in self.graph.leaves if leaf.kind == "input"]
        nodes = self._nodes(self.root, names)
        outputs = [self._output(number, value, names, nodes) for number, value in enumerate(self.graph.outputs.values)]
        ends = [self._info(v, names[v]) for v in inputs], outputs
        graph = self.helper.make_graph(nodes, self.graph.meta.model or "model", *ends, doc_string=_NOTE)
        graph.value_info.extend(self._info(v, names[v]) for v in _made(self.root))
        model = self.helper.make_model(
            graph,
            functions=list(self.functions.values()),
            opset_imports=self._opsets(),
            ir_version=_IR_VERSION,
            producer_name="lens",
            producer_version=lens.__version__,
            doc_string=_NOTE,
        )
        self._metadata(model, {"lens.runnable": "no", "lens.model": self.graph.meta.model})
        return model

    def _output(self, number: int, value: ValueId, names: dict[ValueId, str], nodes: list[Any]) -> Any:
        """An output of the model, with the node that makes it: the same tensor may be several outputs, or a leaf."""
        label = self.labels.outputs[number]
        flows = self._flows(value)
        inputs, facts = ([names[value]], {}) if flows else ([], {"tensors_of_the_model": self._leaf_text(value)})
        nodes.append(self.helper.make_node("output", inputs, [label], label, domain=OPERATIONS, **facts))
        return self._info(value, label)

    def _names(self, block: _Block) -> dict[ValueId, str]:
        """Names of the values in a block: the labels of their layers."""
        taken = dict.fromkeys(self.labels.outputs, 1)
        inputs = block.inputs if block.scope else [leaf.value for leaf in self.graph.leaves if leaf.kind == "input"]
        names = {}
        for value in (*inputs, *_made(block)):
            row, leaf = self.index.by_value.get(value), self.graph.leaf_of(value)
            text = leaf.addresses[0] if leaf is not None else row.label if row else "value"
            names[value] = _free(text, taken)
        return names

    def _opsets(self) -> list[Any]:
        return [self.helper.make_opsetid(*domain) for domain in (("", _OPSET), (OPERATIONS, 1), (MODULES, 1))]

    def _add_function(self, block: _Block) -> None:
        scope = block.scope
        assert scope is not None
        names = self._names(block)
        ends = ([names[v] for v in end] for end in (block.inputs, block.outputs))
        note = in_utf8(f"{scope.cls}, module {scope.address}")
        function = self.helper.make_function(
            MODULES, "", *ends, self._nodes(block, names), self._opsets(), doc_string=note
        )
        function.value_info.extend(self._info(v, names[v]) for v in _made(block))
        known = self.functions.setdefault(function.SerializeToString(deterministic=True), function)
        if known is function:
            function.name = _free(f"{scope.cls}_{scope.address}", self.taken)
        self.function_names[block] = known.name

    def _nodes(self, block: _Block, names: dict[ValueId, str]) -> list[Any]:
        return [self._call(i, names) if isinstance(i, _Block) else self._op(i, names) for i in block.items]

    def _call(self, block: _Block, names: dict[ValueId, str]) -> Any:
        scope = block.scope
        assert scope is not None
        inputs, outputs = ([names[v] for v in end] for end in (block.inputs, block.outputs))
        name = in_utf8("/".join((scope.address, *outputs[:1])))
        node = self.helper.make_node(self.function_names[block], inputs, outputs, name, domain=MODULES)
        self._metadata(node, {"lens.module": scope.address, "lens.class": scope.cls, "lens.location": scope.location})
        return node

    def _op(self, op: Op, names: dict[ValueId, str]) -> Any:
        inputs = [names[v] for v in dict.fromkeys(op.reads) if self._flows(v)]
        label = next(iter(self.labels.results[op.id]), str(op.function))
        kind = _NOT_NAME.sub("_", layer_type(op.function))
        outputs = [names[v] for v in op.writes]
        name = outputs[0] if outputs else label  # labels may stand several times in a block, names of nodes may not
        operands = [names[v] if self._flows(v) else self._leaf_text(v) for v in op.operands]
        leaves = "\n".join(self._leaf_text(v) for v in op.operands if not self._flows(v))
        facts = {"arguments": in_utf8(print_arguments(op, operands)) or None, "tensors_of_the_model": leaves or None}
        node = self.helper.make_node(kind, inputs, outputs, name, domain=OPERATIONS, **facts)
        self._metadata(node, {"lens.label": label, "lens.function": op.function, "lens.location": op.location})
        return node

    def _flows(self, value: ValueId) -> bool:
        """Whether a value is an edge: parameters, buffers and the like are named by the nodes that read them."""
        leaf = self.graph.leaf_of(value)
        return leaf is None or leaf.kind == "input"

    def _leaf_text(self, value: ValueId) -> str:
        known = self.graph.values[value]
        leaf = self.graph.leaves[known.leaf or 0]
        return in_utf8(f"@{leaf.addresses[0] if leaf.addresses else leaf.kind}: {known.type}")

    def _info(self, value: ValueId, name: str) -> Any:
        kind = self.graph.values[value].type
        dtype = getattr(self.onnx.TensorProto, _DTYPES.get(kind.dtype, kind.dtype.upper()), None)
        shape = ["ragged" if n == RAGGED else n for n in kind.shape]
        known = dtype if isinstance(dtype, int) else self.onnx.TensorProto.FLOAT
        return self.helper.make_tensor_value_info(name, known, shape, str(kind))

    def _metadata(self, proto: Any, facts: dict[str, Any]) -> None:
        for key, fact in facts.items():
            if fact is not None:
                entry = proto.metadata_props.add()
                entry.key, entry.value = key, in_utf8(str(fact))


def _free(text: str, taken: dict[str, int]) -> str:
    """An identifier like a text that is not taken yet; ``taken`` counts what was asked for. Constant on average."""
    stem = name = _NOT_NAME.sub("_", text).strip("_") or "value"
    while name in taken:
        taken[stem] = taken.get(stem, 1) + 1
        name = f"{stem}__{taken[stem]}"
    taken[name] = 1
    return name


def _made(block: _Block) -> Iterable[ValueId]:
    for item in block.items:
        yield from item.outputs if isinstance(item, _Block) else item.writes


def _blocks(graph: Graph, depth: int) -> tuple[_Block, list[_Block]]:
    """The block of the model itself, and those of its module calls down to a depth, in the order of their ends."""
    root = _Block(None, None, 0)
    blocks: list[_Block] = []
    stack = [root]
    for op in graph.ops:
        chain = graph.modules_of(op)[:depth]
        common = 0
        while common < min(len(chain), len(stack) - 1) and stack[common + 1].scope is chain[common]:
            common += 1
        blocks += reversed(stack[common + 1 :])
        del stack[common + 1 :]
        for scope in chain[common:]:
            block = _Block(scope, stack[-1], len(stack))
            stack[-1].items.append(block)
            stack.append(block)
        stack[-1].items.append(op)
    return root, [*blocks, *reversed(stack[1:])]


def _connect(graph: Graph, root: _Block, blocks: list[_Block]) -> None:
    """Find what goes into each block and what comes out of it."""
    home: dict[ValueId, _Block] = {leaf.value: root for leaf in graph.leaves if leaf.kind == "input"}
    for block in (root, *blocks):
        home.update({v: block for item in block.items if isinstance(item, Op) for v in item.writes})
    for block in (root, *blocks):
        for op in (item for item in block.items if isinstance(item, Op)):
            for value in op.reads:
                if value in home:
                    _route(value, home[value], block)
    for value in graph.outputs.values:
        if value in home:
            _route(value, home[value], root)
    for block in blocks:
        if not block.outputs and not block.inputs:  # a node must have an end
            made = next(iter(_made(block)), None)
            block.outputs.update({} if made is None else {made: None})


def _route(value: ValueId, source: _Block, target: _Block) -> None:
    """Let a value out of the blocks around its source and into those around its target, up to their common one."""
    while source is not target:
        if source.depth >= target.depth:
            source.outputs[value] = None
            assert source.parent is not None
            source = source.parent
        else:
            target.inputs[value] = None
            assert target.parent is not None
            target = target.parent
