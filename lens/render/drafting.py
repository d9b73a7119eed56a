"""From a graph to its unrolled drawing: one node per entry, one cluster per call of a module of several operations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from lens.ir.elements import Op, OpId, Scope, ScopeId
from lens.ir.entry_index import EntryIndex, EntryRow
from lens.ir.facets import Conditionals, Containment
from lens.ir.gaps import ESCAPES, find_gaps
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.ir.op_arguments import parameters_of
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template, slots
from lens.render.drawing import Cluster, Cost, Drawing, Edge, Node, Weight, in_few_words
from lens.render.rolling import without_empty
from lens.render.sizes import human_bytes, human_seconds, human_shape

#: Layers whose result does not depend on the order of their tensors.
COMMUTATIVE = frozenset(
    {"add", "mul", "eq", "ne", "and", "or", "xor", "maximum", "minimum", "fmax", "fmin", "max", "min", "dot"}
    | {"logicaland", "logicalor", "logicalxor", "bitwiseand", "bitwiseor", "bitwisexor"}
    | {"logaddexp", "logaddexp2", "hypot", "gcd", "lcm"}
)
_LONGEST_LINE = 60


def make_drawing(
    graph: Graph,
    *,
    buffers: bool = True,
    statistics: bool = False,
    flops: Callable[[OpId], int | None] | None = None,
) -> Drawing:
    """The unrolled drawing of a graph that has labels. Linear.

    Args:
        graph: The graph.
        buffers: Whether to show buffers.
        statistics: Whether to show the running statistics of normalisation layers among them.
        flops: Gives the floating point operations of an operation; they stay unknown without it.
    """
    return _Drafting(graph, buffers, statistics, flops).drawing()


class _Drafting:
    def __init__(
        self, graph: Graph, buffers: bool, statistics: bool, flops: Callable[[OpId], int | None] | None
    ) -> None:
        self.graph = graph
        self.flops = flops or (lambda _: None)
        self.index = EntryIndex(graph)
        self.conditionals = graph.get(Conditionals)
        self.containment = graph.get(Containment)
        self.ops_inside: Counter[ScopeId] = Counter()
        for op in graph.ops:
            self.ops_inside.update(scope.id for scope in graph.modules_of(op))
        self.box_of: dict[ScopeId | None, str | None] = {None: None}
        for scope in graph.scopes:
            self.box_of[scope.id] = _cluster_id(scope.id) if self._has_box(scope) else self.box_of[scope.parent]
        self.rows = [row for row in self.index.rows if self._is_shown(row, buffers, statistics)]
        self.shown = {row.number for row in self.rows}
        self.tests, self.gaps = self._reads()
        self.output_paths = dict(_paths(graph.outputs.form, ""))

    def drawing(self) -> Drawing:
        nodes = [self._node(row) for row in self.rows]
        edges = [edge for row in self.rows for edge in self._edges(row)]
        if self.graph.meta.fault is not None:
            if nodes:
                edges.append(Edge(nodes[-1].id, "fault", after=True))
            nodes.append(self._fault_node())
        boxes = [self._cluster(scope) for scope in self.graph.scopes if self._has_box(scope)]
        return Drawing(self._title(), tuple(nodes), tuple(edges), without_empty(boxes, nodes), self._notes())

    # What there is

    def _is_shown(self, row: EntryRow, buffers: bool, statistics: bool) -> bool:
        if row.leaf is None or self.graph.leaves[row.leaf].kind != "buffer":
            return True
        return buffers and (statistics or not self.index.is_statistic(row))

    def _has_box(self, scope: Scope) -> bool:
        return not scope.is_model and self.ops_inside[scope.id] > 1

    def _cluster(self, scope: Scope) -> Cluster:
        calls = self.index.calls[scope.address]
        suffix = f":{scope.call}" if calls > 1 else ""
        place = suffix, self.box_of[scope.parent], scope.call, calls
        return Cluster(_cluster_id(scope.id), scope.address, scope.cls, *place, scope.aliases)

    def _title(self) -> tuple[str, ...]:
        tensors = {row.value for row in self.index.rows}  # an output mostly shows one of another entry
        size = sum(self.graph.values[value].type.nbytes for value in tensors)
        parameters = [parameter.type for parameter in self.graph.meta.parameters]
        weights = human_bytes(sum(t.nbytes for t in parameters))
        return (
            self.graph.meta.model,
            f"{len(tensors):,} tensors total ({human_bytes(size)})",
            f"{sum(t.numel for t in parameters):,} parameters ({weights})",
        )

    def _notes(self) -> tuple[str, ...]:
        fault, gaps = self.graph.meta.fault, find_gaps(self.graph)
        notes = [] if fault is None else [f"Partial: the forward pass raised {fault.type}"]
        if gaps:
            notes.append(f"{len(gaps)} {'gap' if len(gaps) == 1 else 'gaps'} in what was seen: history.gaps")
        return tuple(notes)

    def _reads(self) -> tuple[dict[int, list[tuple[str, str]]], dict[int, list[str]]]:
        """Per entry, the tests made on it, and the ways in which it left the graph otherwise."""
        tests: dict[int, list[tuple[str, str]]] = defaultdict(list)
        gaps: dict[int, list[str]] = defaultdict(list)
        conditions = {c.read: c for c in self.conditionals.conditions} if self.conditionals else {}
        for number, read in enumerate(self.graph.reads):
            row = self.index.by_value.get(read.value)
            condition = conditions.get(number)
            if row is not None and condition is not None:
                construct = read.kind if condition.construct == "unknown" else condition.construct
                arm = read.result if condition.construct == "unknown" else condition.arm
                tests[row.number].append((construct, "" if arm is None else str(arm)))
            elif row is not None and read.kind in ESCAPES:
                gaps[row.number].append(f"read by {read.kind}()")
        return tests, gaps

    # Nodes

    def _node(self, row: EntryRow) -> Node:
        value_type = self.graph.values[row.value].type
        size = f"{human_shape(value_type.shape)} ({human_bytes(value_type.nbytes)})"
        many = row.pass_total > 1
        gaps = tuple(dict.fromkeys(self.gaps.get(row.number, ())))
        tests = tuple(dict.fromkeys(self.tests.get(row.number, ())))
        op = None if row.op is None else self.graph.ops[row.op]
        if op is None:
            return self._leaf_node(row, size, tests, gaps)
        scopes = self.graph.modules_of(op)
        bottom = scopes[-1] if scopes and self.ops_inside[scopes[-1].id] == 1 else None
        weights = self._weights(op)
        final = bool(self.conditionals and self.conditionals.final[op.id])
        starts = bool(self.conditionals and self.conditionals.starts[op.id])
        return Node(
            _node_id(row),
            row.label,
            f":{row.pass_num}" if many else "",
            size,
            weights,
            f"@{bottom.address}" if bottom else "",
            f":{bottom.call}" if bottom and self.index.calls[bottom.address] > 1 else "",
            "condition" if final else "parameters" if weights else "plain",
            "box" if bottom else "ellipse",
            not op.operands,
            self.box_of[scopes[-1].id] if scopes else None,
            row.pass_num,
            row.pass_total,
            tests,
            "IF" if starts and not self._parents(row) else "",
            gaps,
            "gap" if gaps else "",
            self._tooltip(row, op),
            Cost(op.duration, value_type.nbytes, self.flops(op.id)) if row.index == 0 else Cost(0.0, value_type.nbytes),
            group=op.id,
        )

    def _leaf_node(self, row: EntryRow, size: str, tests: tuple[tuple[str, str], ...], gaps: tuple[str, ...]) -> Node:
        """An input, buffer, other leaf, or output."""
        if row.output is not None or row.leaf is None:
            path = self.output_paths.get(row.output or 0, "")
            return Node(_node_id(row), row.label, "", size, (), path, role="output")
        leaf = self.graph.leaves[row.leaf]
        roles = {"input": "input", "external": "external"}
        address = leaf.addresses[0] if leaf.addresses else ""
        scope = self.containment.leaves[row.leaf] if self.containment and leaf.kind != "input" else None
        external = leaf.kind == "external"
        return Node(
            _node_id(row),
            row.label,
            size=size,
            module=address if leaf.kind == "input" or not address else f"@{address}",
            role=roles.get(leaf.kind, "buffer"),
            dashed=external,
            cluster=self.box_of[scope],
            tests=tests,
            notes=("origin not seen", *gaps) if external else gaps,
            mark="gap" if external or gaps else "",
            tooltip=f"{leaf.kind} {', '.join(leaf.addresses)}\n{self.graph.values[row.value].type}"
            + (f"\n{leaf.location}" if leaf.location else ""),
            cost=Cost(0.0, self.graph.values[row.value].type.nbytes),
        )

    def _tooltip(self, row: EntryRow, op: Op) -> str:
        value = self.graph.values[row.value]
        facts = [f"{row.name}: {op.function}", f"{value.type}", f"{human_seconds(op.duration)}"]
        if value.grad_fn:
            facts.append(value.grad_fn)
        modules = self.graph.modules_of(op)
        if modules:
            facts.append(f"in {self.index.scope_label(modules[-1])}")
        return "\n".join([*facts, str(op.location)] if op.location else facts)

    def _weights(self, op: Op) -> tuple[Weight, ...]:
        types = ((leaf.id, self.graph.values[leaf.value].type) for leaf in parameters_of(self.graph, op))
        return tuple(Weight(leaf, kind.shape, kind.numel, kind.nbytes) for leaf, kind in types)

    def _fault_node(self) -> Node:
        """What failed: the call that was running, or else the forward pass at the line that raised."""
        fault = self.graph.meta.fault
        assert fault is not None
        message = f"{fault.type}: {' '.join(fault.message.split())}" if fault.message else fault.type
        short = message if len(message) <= _LONGEST_LINE else f"{message[: _LONGEST_LINE - 3]}..."
        running = [s for s in self.graph.scopes if s.stop == len(self.graph.ops) and not s.outputs]
        name = f"{fault.function.rpartition('.')[2]} failed" if fault.function else f"{fault.type} raised"
        place = f"{fault.location}" if fault.location else ""
        return Node(
            "fault",
            name,
            role="fault",
            cluster=self.box_of[running[-1].id] if running else None,
            notes=(short,),
            mark="fault",
            tooltip="\n".join(filter(None, (fault.function, message, place))),
        )

    # Edges

    def _parents(self, row: EntryRow) -> list[int]:
        return [n for n in self.index.parents[row.number] if n in self.shown]

    def _edges(self, row: EntryRow) -> list[Edge]:
        parents = self._parents(row)
        names = self._argument_names(row) if len(parents) > 1 else {}
        begins = self._branch_begins(row, parents)
        rows = self.index.rows
        return [Edge(_node_id(rows[n]), _node_id(row), names.get(n, ""), n in begins) for n in parents]

    def _branch_begins(self, row: EntryRow, parents: list[int]) -> set[int]:
        """The parents from which the way into the evaluation of a condition leads."""
        if self.conditionals is None or row.op is None or not self.conditionals.starts[row.op]:
            return set()
        inside = self.conditionals.in_branch
        rows = [self.index.rows[n] for n in parents]
        outside = [r for r in rows if r.op is None or not inside[r.op]]
        computed = [r for r in outside if r.op is not None or self.graph.leaves[r.leaf or 0].kind == "input"]
        return {r.number for r in computed or outside}

    def _argument_names(self, row: EntryRow) -> dict[int, str]:
        """Per parent of a non-commutative layer, where it stands in the call."""
        op = None if row.op is None else self.graph.ops[row.op]
        if op is None or _is_commutative(op):
            return {}
        arguments = [(f"arg {i}", arg) for i, arg in enumerate(op.args)] + list(op.kwargs)
        names: dict[int, list[str]] = {}
        for prefix, template in arguments:
            for slot, name in _paths(template, prefix):
                parent = self.index.by_value.get(op.operands[slot])
                if parent is not None and name not in names.setdefault(parent.number, []):
                    names[parent.number].append(name)
        return {number: in_few_words(found) for number, found in names.items()}


def _is_commutative(op: Op) -> bool:
    scaled = any(name == "alpha" and value != 1 for name, value in op.kwargs)
    return layer_type(op.function) in COMMUTATIVE and not scaled


def _paths(template: Template, prefix: str) -> Iterator[tuple[int, str]]:
    """The slots in a template, each with the path that leads there, such as ``arg 0[1]``."""
    match template:
        case Slot(index):
            yield index, prefix
        case Seq(_, items):
            for place, item in enumerate(items):
                yield from _paths(item, f"{prefix}[{place}]")
        case Map(_, items):
            for key, item in items:
                name = key if isinstance(key, str) and not prefix else _key_text(key)
                yield from _paths(item, f"{prefix}[{name}]" if prefix else name)
        case _:
            yield from ((slot, prefix) for slot in slots(template))


def _key_text(key: Template) -> str:
    """A key of a mapping, about as Python shows it."""
    match key:
        case Symbol(_, name):
            return name
        case Opaque(kind, text):
            return text or f"<{kind.rpartition('.')[2]}>"
        case Seq(kind, items):
            comma = "," if len(items) == 1 else ""
            name = "" if kind in ("tuple", "list", "size") else kind.rpartition(".")[2]
            return f"{name}({', '.join(map(_key_text, items))}{comma})"
        case Map(kind, items):
            return f"{kind.rpartition('.')[2]}({', '.join(f'{k}={_key_text(item)}' for k, item in items)})"
        case Slot() | Slice():
            return f"<{'tensor' if isinstance(key, Slot) else 'slice'}>"
        case _:
            return repr(key)


def _node_id(row: EntryRow) -> str:
    if row.output is not None:
        return f"output{row.output}"
    if row.leaf is not None:
        return f"leaf{row.leaf}"
    return f"op{row.op}_{row.index}" if row.index else f"op{row.op}"


def _cluster_id(scope: ScopeId) -> str:
    return f"cluster_{scope}"
