"""What must hold of the metadata, worked out in another way than the passes work it out.

A pass pulls distances from the operands of each op; here they are pushed along the edges, breadth first. A pass
groups the passes of a layer; here the groups are held against the rules one by one. Scopes come from the module stack;
here from the intervals of the module calls. Nothing in here calls a pass.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lens.capture.tensor_table import storage_of
from lens.ir.elements import OpId, ScopeId, ValueId
from lens.ir.facets import Conditionals, Containment, Distances, Labels
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.ir.payloads import Held
from lens.ir.types import RAGGED, TensorType
from lens.ir.verifier import find_problems
from lens.validate.grouping import grouping_violations

if TYPE_CHECKING:
    from lens.history import ModelHistory


def violations(history: ModelHistory) -> dict[str, list[str]]:
    """Per group of invariants what breaks one; groups whose facets the graph lacks are left out. Linear."""
    graph = history.graph
    problems = [f"[{problem.rule}] {problem.what}" for problem in find_problems(graph)]
    if problems:  # the others follow ids
        return {"structure": problems}
    found = {"structure": problems}
    for name, (facet, check) in _INVARIANTS.items():
        if facet is None or graph.get(facet) is not None:
            found[name] = list(check(history))
    return found


def _types(history: ModelHistory) -> Iterator[str]:
    """The recorded types are those of the tensors that were saved."""
    for value in history.payloads:
        kind = history.graph.values[value].type
        tensor = _saved(history, value)
        if tensor is None or tensor.is_nested or RAGGED in kind.shape:
            continue
        dtype, layout = (str(name).removeprefix("torch.") for name in (tensor.dtype, tensor.layout))
        found = TensorType(dtype, tuple(tensor.shape), str(tensor.device), layout)
        if found != kind:
            yield f"%{value} is recorded as {kind}, the saved tensor is {found}"


def _saved(history: ModelHistory, value: ValueId) -> torch.Tensor | None:
    payload = history.payloads.values.get(value)
    if not isinstance(payload, Held) or payload.stale is not None:  # those of a file are read when asked for
        return None
    return payload.tensor if isinstance(payload.tensor, torch.Tensor) else None


_LABEL = re.compile(r"(?P<type>[^_]\w*?)_(?P<kind>\d+)_(?P<total>\d+)")


def _labels(history: ModelHistory) -> Iterator[str]:
    """Labels say their type, count it, and count all layers; passes are counted in order of execution."""
    labels = history.graph[Labels]
    per_type: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    totals = Counter(name for names in labels.results for name in names[:1])
    for op, names in zip(history.graph.ops, labels.results, strict=True):
        for name in names:
            match = _LABEL.fullmatch(name)
            if match is None or match["type"] != layer_type(op.function):
                yield f"op {op.id}, a {op.function}, is called {name}"
                continue
            if name not in seen:
                per_type[match["type"]] += 1
                right = per_type[match["type"]], len(seen) + 1
                if (int(match["kind"]), int(match["total"])) != right:
                    yield f"{name} is layer {right[0]} of its type and {right[1]} of all"
            seen[name] += 1
        told = labels.pass_num[op.id], labels.pass_total[op.id]
        if names and told != (seen[names[0]], totals[names[0]]):
            yield f"pass {told[0]} of {told[1]} of {names[0]} is {seen[names[0]]} of {totals[names[0]]}"
    counts: Counter[str] = Counter()
    for leaf, label in zip(history.graph.leaves, labels.leaves, strict=True):
        counts[leaf.kind] += 1
        expected = None if leaf.kind == "parameter" else f"{leaf.kind}_{counts[leaf.kind]}"
        if label != expected:
            yield f"leaf {leaf.id} is called {label}, not {expected}"


def _counts(history: ModelHistory) -> Iterator[str]:
    """The sums that a history tells are those of its parts."""
    graph, labels = history.graph, history.graph[Labels]
    tensors = [v for op in graph.ops for v in op.results]
    tensors += [leaf.value for leaf, label in zip(graph.leaves, labels.leaves, strict=True) if label]
    shown = {*tensors, *graph.outputs.values}
    calls = Counter(scope.address for scope in graph.scopes)
    sums: dict[str, tuple[Any, Any]] = {
        "entries": (len(history), len(tensors) + len(graph.outputs.values)),
        "num_tensors_total": (history.num_tensors_total, len(shown)),
        "num_tensors_saved": (
            history.num_tensors_saved,
            len({v for v in shown if v in history.payloads}) + _saved_elsewhere(history),
        ),
        "tensor_fsize_total": (history.tensor_fsize_total, sum(_nbytes(history, v) for v in shown)),
        "layer_list": (len(history.layer_list), len({e.layer_label for e in history})),
        "input_layers": (len(history.input_layers), sum(leaf.kind == "input" for leaf in graph.leaves)),
        "output_layers": (len(history.output_layers), len(graph.outputs.values)),
        "total_params": (history.total_params, sum(math.prod(p.type.shape) for p in graph.meta.parameters)),
        "module_num_passes": (sum(history.module_num_passes.values()), sum(calls[a] for a in history.module_addresses)),
    }
    for name, (told, expected) in sums.items():
        if told != expected:
            yield f"{name} is {told}, the parts make {expected}"


def _saved_elsewhere(history: ModelHistory) -> int:
    """The layers whose own tensor was not saved, but another that their operation wrote to."""
    saved, labels = history.payloads, history.graph[Labels]
    ops = [op for op in history.graph.ops if op.effects and labels.results[op.id] and op.results[0] not in saved]
    found = (next((new for _, new in op.effects if new in saved), None) for op in ops)
    return len({value for value in found if value is not None} - {*history.graph.outputs.values})


def _nbytes(history: ModelHistory, value: ValueId) -> int:
    tensor = _saved(history, value)
    kind = history.graph.values[value].type
    if tensor is None or tensor.is_nested or RAGGED in kind.shape or kind.nbytes == 0:
        return kind.nbytes
    return math.prod(tensor.shape) * tensor.element_size()


def _distances(history: ModelHistory) -> Iterator[str]:
    """Shortest ways breadth first, longest ways by pushing along every edge, from both ends."""
    graph, facet = history.graph, history.graph[Distances]
    ways = _ways(graph, [op.sources for op in graph.ops]), _ways(graph, [op.reads for op in graph.ops])
    for name in ways[0]:
        rows = zip(getattr(facet, name), ways[0][name], ways[1][name], strict=True)
        for op, (told, over_parents, over_any) in enumerate(rows):
            right = over_any if over_parents is None else over_parents
            if told != right:
                yield f"{name} of op {op} is {told}, it should be {right}"


def _ways(graph: Graph, read: list[tuple[ValueId, ...]]) -> dict[str, list[int | None]]:
    """Per column of the distances, the lengths of ways over these values that each op reads."""
    makers = [[p for v in values if (p := graph.values[v].producer) is not None] for values in read]
    users: list[list[OpId]] = [[] for _ in graph.ops]
    for op, made_by in zip(graph.ops, makers, strict=True):
        for maker in made_by:
            users[maker].append(op.id)
    first = [op.id for op in graph.ops if not set(read[op.id]).isdisjoint(graph.inputs.values)]
    last = [op.id for op in graph.ops if not set(op.writes).isdisjoint(graph.outputs.values)]
    count = len(graph.ops)
    return {
        "min_from_input": _shortest(first, users, count),
        "max_from_input": _longest(first, users, range(count)),
        "min_to_output": _shortest(last, makers, count),
        "max_to_output": _longest(last, makers, range(count - 1, -1, -1)),
    }


def _shortest(start: Iterable[OpId], edges: list[list[OpId]], count: int) -> list[int | None]:
    found: list[int | None] = [None] * count
    queue = deque((op, 1) for op in start)
    while queue:
        op, steps = queue.popleft()
        if found[op] is None:
            found[op] = steps
            queue.extend((near, steps + 1) for near in edges[op])
    return found


def _longest(start: Iterable[OpId], edges: list[list[OpId]], order: Iterable[int]) -> list[int | None]:
    found: dict[int, int] = dict.fromkeys(start, 1)
    for op in order:
        if op in found:
            for near in edges[op]:
                found[near] = max(found.get(near, 0), found[op] + 1)
    return [found.get(op) for op in range(len(edges))]


def _containment(history: ModelHistory) -> Iterator[str]:
    """The module of an op is the innermost call around it; what has none takes that of a consumer, or none, if the
    calls were seen and it was computed from an input."""
    graph, facet = history.graph, history.graph[Containment]
    outside = "scopes" in graph.meta.capabilities and any(op.scope is None for op in graph.ops)
    steps = _ways(graph, [op.reads for op in graph.ops])["min_from_input"] if outside else [None] * len(graph.ops)
    innermost: list[ScopeId | None] = [None] * len(graph.ops)
    for scope in graph.scopes:  # in order of entry, so inner ones come later
        innermost[scope.start : scope.stop] = [scope.id] * (scope.stop - scope.start)
    for op, around, told in zip(graph.ops, innermost, facet.ops, strict=True):
        if op.scope is not None and op.scope != around:
            yield f"op {op.id} is recorded in scope {op.scope}, the innermost call around it is {around}"
        consumers = {facet.ops[user] for value in op.writes for user in graph.users(value)}
        if steps[op.id] is not None:
            consumers = {None}
        if op.scope is None and told not in (consumers or {None}):
            yield f"op {op.id} belongs to scope {told}, its consumers to {sorted(map(str, consumers))}"
    for leaf, told in zip(graph.leaves, facet.leaves, strict=True):
        consumers = {facet.ops[user] for user in graph.users(leaf.value)}
        if told not in (consumers or {None}):
            yield f"leaf {leaf.id} belongs to scope {told}, its consumers to {sorted(map(str, consumers))}"
    yield from _calls(graph)


def _calls(graph: Graph) -> Iterator[str]:
    """Module calls name modules of the model, and count their calls."""
    classes = {module.address: module.cls for module in graph.meta.modules}
    calls: Counter[str] = Counter()
    for scope in graph.scopes:
        calls[scope.address] += 1
        if scope.call != calls[scope.address] and scope.address in classes:
            yield f"call {calls[scope.address]} of {scope.address!r} is called {scope.call}"
        if classes.get(scope.address, scope.cls) != scope.cls and not scope.cls.startswith("Lazy"):
            yield f"{scope.address!r} is a {classes[scope.address]}, its call says {scope.cls}"


def _reads(history: ModelHistory) -> Iterator[str]:
    """What was read is what the saved tensor holds."""
    for read in history.graph.reads:
        tensor = _saved(history, read.value)
        convert = _READERS.get(read.kind)
        if convert is None or tensor is None or tensor.numel() != 1:
            continue
        told, right = read.result, convert(tensor.detach())  # of one that asks for a gradient torch warns
        if isinstance(told, (bool, int, float, complex)) and told != right and not (told != told and right != right):
            yield f"%{read.value} was read as {told} ({read.kind} at {read.location}), it holds {right}"


_READERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "bool": lambda t: bool(t),
    "item": lambda t: t.item(),
    "int": lambda t: int(t),
    "float": lambda t: float(t),
    "index": lambda t: int(t),
    "complex": lambda t: complex(t),
}


#: Reads that decide something wherever they stand.
_DECISIONS = ("bool", "equal", "allclose")


def _conditionals(history: ModelHistory) -> Iterator[str]:
    """Who makes what a condition reads ends it; who leads to that, and to no output, serves it only; who reads there
    what serves no condition begins it."""
    graph, facet = history.graph, history.graph[Conditionals]
    if "reads" not in graph.meta.capabilities and not graph.reads:
        return  # nothing was read: a rule of thumb has found them
    known = {condition.read for condition in facet.conditions}
    for number, read in enumerate(graph.reads):
        if read.kind in _DECISIONS and number not in known:
            yield f"%{read.value} was read as {read.kind}, which is said to be no condition"
    ends = {graph.reads[number].value for number in known}
    to_output, to_end = set(graph.outputs.values) or _left_over(graph, ends), set(ends)
    for op in reversed(graph.ops):
        for reached in (to_output, to_end):
            if not reached.isdisjoint(op.writes):
                reached.update(op.reads)
    serving: set[ValueId] = set()
    for op in graph.ops:
        serves = to_output.isdisjoint(op.writes) and not to_end.isdisjoint(op.writes)
        begins = serves and not (op.reads and serving.issuperset(op.reads))
        serving.update(op.writes if serves else ())
        told = facet.in_branch[op.id], facet.starts[op.id], facet.final[op.id]
        right = serves, begins, not ends.isdisjoint(op.writes)
        for what, is_said, is_so in zip(("to serve", "to begin", "to end"), told, right, strict=True):
            if is_said is not is_so:
                yield f"op {op.id} is said {what} a condition: {is_said}; it does: {is_so}"


def _left_over(graph: Graph, ends: set[ValueId]) -> set[ValueId]:
    """What goes for the outputs of a run that has none: all values of ops of which no op and no condition reads one."""
    used = ends.union(*(op.reads for op in graph.ops))
    return {value for op in graph.ops if used.isdisjoint(op.writes) for value in op.writes}


def addresses_of(model: nn.Module) -> dict[tuple[object, ...], set[str]]:
    """Where the parameters and buffers of a model lie, and what lies there is called."""
    tensors = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    names: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        names[_memory(tensor)].add(name)
    return names


def misnamed(history: ModelHistory, names: Mapping[tuple[object, ...], set[str]]) -> Iterator[str]:
    """Leaves whose saved tensor was another parameter or buffer of the model than those that they are called.

    Copies say nothing.

    Args:
        history: The history.
        names: What lay where when the run began (``addresses_of``); all of it is still there.
    """
    for leaf in history.graph.leaves:
        saved = _saved(history, leaf.value)
        found = set() if saved is None or leaf.kind not in ("parameter", "buffer") else names.get(_memory(saved), set())
        if found and found.isdisjoint(leaf.addresses):
            yield f"leaf {leaf.id} is called {leaf.addresses}, it is {' and '.join(sorted(found))}"


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor lies; of those without a place of their own, that tensor only."""
    storage = storage_of(tensor)
    if not storage or tensor.numel() == 0 or tensor.layout is not torch.strided:
        return (id(tensor),)
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


_INVARIANTS: dict[str, tuple[Any, Callable[[Any], Iterator[str]]]] = {
    "types": (None, _types),
    "labels": (Labels, _labels),
    "counts": (Labels, _counts),
    "distances": (Distances, _distances),
    "recurrence": (Labels, grouping_violations),
    "containment": (Containment, _containment),
    "conditionals": (Conditionals, _conditionals),
    "reads": (None, _reads),
}
