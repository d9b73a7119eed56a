"""The comparison of two histories: what was added, removed, and changed in shape, arguments, values or time."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import asdict, frozen

from lens.entry import OpEntry
from lens.errors import InputError, PayloadError
from lens.foreign import Raised, attempt
from lens.history_facts import HistoryFacts
from lens.ir.elements import Op
from lens.ir.payloads import Held, has_elements
from lens.ir.printer import print_template
from lens.ir.templates import Node, Opaque, Template, map_nodes
from lens.render.sizes import human_seconds, human_shape
from lens.render.values import plain_tensor

if TYPE_CHECKING:
    import torch

#: Seconds by which a layer must be slower or faster to be listed.
_LEAST_SECONDS = 1e-3
_MOST_LINES = 40
#: Longer stretches are aligned by the number of each element alone.
_MOST_COMPARISONS = 250_000
Keys: TypeAlias = Sequence[Hashable]


@frozen
class Tolerance:
    """What still counts as equal: ``rtol`` and ``atol`` of values, and the factor of times."""

    rtol: float = 0.0
    atol: float = 0.0
    slower: float = 2.0

    def __attrs_post_init__(self) -> None:
        for name, least in (("rtol", 0.0), ("atol", 0.0), ("slower", 1.0)):
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or not number >= least:
                raise InputError(f"{name} cannot be {number!r}", where=f"diff({name}=)", hint=f"give {least} or more")


@frozen
class Change:
    """One difference between two entries that stand for the same operation.

    Args:
        layer: The label in the first history.
        other: The label in the second.
        what: shape, dtype, arguments, inputs, values, or time.
        before: What it was, as text; nothing for values.
        after: What it is; for values how far apart they are.
    """

    layer: str
    other: str
    what: str
    before: str
    after: str

    def __str__(self) -> str:
        name = self.layer if self.layer == self.other else f"{self.layer} -> {self.other}"
        return f"{name}: {self.what} {f'{self.before} -> ' if self.before else ''}{self.after}"


@frozen
class HistoryDiff:
    """What differs between two histories.

    Args:
        added: Labels that only the second history has.
        removed: Labels that only the first has.
        changes: Differences of the entries that both have, times left out.
        times: Layers that became slower or faster.
        matched: How many entries both have.
        compared: Of how many of them the values were compared: those that both histories saved.
        seconds: The time in operations, of the first and of the second.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changes: tuple[Change, ...]
    times: tuple[Change, ...]
    matched: int
    compared: int
    seconds: tuple[float, float]

    @property
    def same(self) -> bool:
        """Whether nothing differs but times."""
        return not (self.added or self.removed or self.changes)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return {"same": self.same, **asdict(self)}

    def __str__(self) -> str:
        verdict = "no difference" if self.same else "different"
        before, after = map(human_seconds, self.seconds)
        head = (
            f"{verdict}: {self.matched} layers in both, {len(self.added)} added, {len(self.removed)} removed, "
            f"{len(self.changes)} changes; values of {self.compared} compared; time {before} -> {after}"
        )
        lines = [f"+ {name}" for name in self.added] + [f"- {name}" for name in self.removed]
        lines += [f"~ {change}" for change in (*self.changes, *self.times)]
        if len(lines) > _MOST_LINES:
            lines = [*lines[:_MOST_LINES], f"... {len(lines) - _MOST_LINES} more"]
        return "\n".join([head, *(f"  {line}" for line in lines)])


def compare(first: HistoryFacts, second: HistoryFacts, tolerance: Tolerance) -> HistoryDiff:
    """What differs in the second history. About linear in the entries."""
    if not isinstance(second, HistoryFacts):
        raise InputError(
            f"a history cannot be compared with a {type(second).__name__}",
            where="history.diff(other)",
            hint="give what lens.trace or lens.load returned",
        )
    pairs = _pairs(first, second)
    partners = set(pairs.values())
    changes: list[Change] = []
    times: list[Change] = []
    compared = 0
    for a, b in pairs.items():
        old, new = first.entry(a), second.entry(b)
        changes += _structure(old, new, [pairs.get(n) for n in first.index.parents[a]], [*second.index.parents[b]])
        alike = (old.tensor_shape, old.tensor_dtype) == (new.tensor_shape, new.tensor_dtype)
        if alike and old.is_saved and new.is_saved and not (_tells_nothing(old) or _tells_nothing(new)):
            compared += 1
            changes += _values(old, new, tolerance)
        times += _time(old, new, tolerance.slower)
    return HistoryDiff(
        tuple(e._row.name for e in second if e._row.number not in partners),
        tuple(e._row.name for e in first if e._row.number not in pairs),
        tuple(changes),
        tuple(times),
        len(pairs),
        compared,
        (first.elapsed_time_function_calls, second.elapsed_time_function_calls),
    )


def _pairs(first: HistoryFacts, second: HistoryFacts) -> dict[int, int]:
    """Positions of the entries that stand for the same operation: by module, and where that fails by type."""
    modules: tuple[Keys, Keys] = [_identity(entry) for entry in first], [_identity(entry) for entry in second]
    types: tuple[Keys, Keys] = [entry.layer_type for entry in first], [entry.layer_type for entry in second]
    pairs = _in_order(_namesakes(*modules, only_equally_many=True))
    for one, other in (modules, types):
        a = b = 0
        found = []
        for i, j in [*pairs, (len(one), len(other))]:
            found += [(a + x, b + y) for x, y in _aligned(one[a:i], other[b:j])]
            a, b = i + 1, j + 1
        pairs = sorted([*pairs, *found])
    return dict(pairs)


def _identity(entry: OpEntry) -> Hashable:
    """By what an entry is recognised in another history: its type, its module, its parameters."""
    modules = tuple(scope.address for scope in entry._scopes[-1:])
    return entry.layer_type, modules, tuple(entry.parameter_addresses), entry.buffer_address, entry._row.index


def _namesakes(first: Keys, second: Keys, only_equally_many: bool) -> list[tuple[int, int]]:
    """Positions of equal elements, the k-th with the k-th; those alone that occur equally often, if that is asked."""
    counts = Counter(first), Counter(second)
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(second):
        if not only_equally_many or counts[0][key] == counts[1][key]:
            places[key].append(place)
    left = {key: iter(found) for key, found in places.items()}
    pairs = ((place, next(left.get(key, iter(())), None)) for place, key in enumerate(first))
    return [(i, j) for i, j in pairs if j is not None]


def _in_order(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The largest part of pairs, which rise in their first, that rises in the second too."""
    lowest: list[int] = []  # per length, the lowest end of a rising part
    at: list[int] = []  # and the pair that is that end
    before: list[int | None] = []
    for number, (_, j) in enumerate(pairs):
        length = bisect_left(lowest, j)
        before.append(at[length - 1] if length else None)
        lowest[length : length + 1] = [j]
        at[length : length + 1] = [number]
    last = at[-1] if at else None
    found = []
    while last is not None:
        found.append(pairs[last])
        last = before[last]
    return found[::-1]


def _aligned(first: Keys, second: Keys) -> list[tuple[int, int]]:
    """Positions of equal elements in two sequences, in order: a common start and end, and blocks in between."""
    shorter = min(len(first), len(second))
    start = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    end = next((i for i in range(shorter - start) if first[-1 - i] != second[-1 - i]), shorter - start)
    found = [(i, i) for i in range(start)] + [(len(first) - i, len(second) - i) for i in range(1, end + 1)]
    middle = first[start : len(first) - end], second[start : len(second) - end]
    if len(middle[0]) * len(middle[1]) > _MOST_COMPARISONS:
        pairs = _in_order(_namesakes(*middle, only_equally_many=False))
    else:
        blocks = SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks()
        pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    return found + [(start + i, start + j) for i, j in pairs]


def _structure(old: OpEntry, new: OpEntry, wanted: list[int | None], given: list[int | None]) -> Iterator[Change]:
    """Differences of two entries in type, arguments and wiring; parents as positions in the second history."""
    names = old._row.name, new._row.name
    facts = [("shape", human_shape(old.tensor_shape), human_shape(new.tensor_shape))]
    facts.append(("dtype", old.tensor_dtype, new.tensor_dtype))
    if old._op is not None and new._op is not None:
        facts.append(("arguments", _call(old._op), _call(new._op)))
    yield from (Change(*names, *fact) for fact in facts if fact[1] != fact[2])
    if wanted != given:
        yield Change(*names, "inputs", ", ".join(old.parent_layers), ", ".join(new.parent_layers))


def _call(op: Op) -> str:
    """A call as text, with ``_`` for tensors; objects that lens does not know by their type."""
    slots = ["_"] * len(op.operands)

    def plain(node: Node) -> Template | None:
        return node.type if isinstance(node, Opaque) else None

    args = [print_template(map_nodes(arg, plain), slots) for arg in op.args]
    named = [f"{name}={print_template(map_nodes(arg, plain), slots)}" for name, arg in op.kwargs]
    return f"{op.function.name}({', '.join([*args, *named])})"


def _tells_nothing(entry: OpEntry) -> bool:
    """Whether what was saved has no elements, as on the meta device, or is uninitialised memory."""
    graph = entry._history.graph
    producer = graph.values[entry._row.value].producer
    if producer is not None and graph.ops[producer].makes_garbage:
        return True
    payload = entry._history.payloads.values[entry._row.value]
    return isinstance(payload, Held) and not has_elements(payload.tensor)


def _values(old: OpEntry, new: OpEntry, tolerance: Tolerance) -> Iterator[Change]:
    names = old._row.name, new._row.name
    try:
        before, after = old.tensor_contents, new.tensor_contents
    except PayloadError as error:
        yield Change(*names, "values", "", f"cannot be compared: {error.what}")
        return
    if before is after:  # of a class that cannot be compared, perhaps
        return
    if before.is_nested and [part.shape for part in before.unbind()] != [part.shape for part in after.unbind()]:
        yield Change(*names, "values", "", "parts of other shapes")
        return
    found = attempt(lambda: _largest_difference(plain_tensor(before), plain_tensor(after), tolerance))
    if found is not None:  # torch cannot compare all dtypes, nor all classes of tensors
        yield Change(*names, "values", "", f"cannot be compared: {found}" if isinstance(found, Raised) else found)


def _largest_difference(a: torch.Tensor, b: torch.Tensor, tolerance: Tolerance) -> str | None:
    """How two tensors of one shape and dtype differ; None if they do not."""
    import torch  # values are read, so it is there

    if attempt(lambda: torch.equal(a, b)) is True:  # it knows no dtypes of a few bits
        return None
    if not (a.is_floating_point() or a.is_complex()):
        return _largest_of_integers(a, b, tolerance)
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    differs = ~torch.isclose(a, b, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
    if not differs.any():
        return None
    count, (a, b) = a.numel(), (a[differs], b[differs])
    nans = a.isnan() | b.isnan()
    infinite = (a.isinf() | b.isinf()) & ~nans
    finite = (a - b).abs()[~(nans | infinite)]
    furthest = f"up to {finite.max().item():.3g} apart, " if finite.numel() else ""
    kinds = ("NaN", int(nans.sum())), ("an infinity", int(infinite.sum()))
    odd = ", ".join(f"{number} with {kind}" for kind, number in kinds if number)
    return f"{furthest}{a.numel()} of {count} elements{f' ({odd})' if odd else ''}"


def _largest_of_integers(a: torch.Tensor, b: torch.Tensor, tolerance: Tolerance) -> str | None:
    """The same for integers, exactly."""
    allowed = tolerance.atol + tolerance.rtol * b.double().abs()
    a, b = _signed(a), _signed(b)
    apart = a.maximum(b) - a.minimum(b)  # below zero where it is 2**63 or more
    differs = (apart < 0) | (apart > allowed)
    if not differs.any():
        return None
    beyond = apart[apart < 0]
    furthest = int(beyond.max()) + 2**64 if beyond.numel() else int(apart.max())
    return f"up to {furthest} apart, {int(differs.sum())} of {a.numel()} elements"


def _signed(tensor: torch.Tensor) -> torch.Tensor:
    """Signed integers of 64 bits that are as far apart."""
    import torch

    return tensor.view(torch.int64) ^ -(2**63) if tensor.dtype == torch.uint64 else tensor.to(torch.int64)


def _time(old: OpEntry, new: OpEntry, factor: float) -> Iterator[Change]:
    before, after = old.func_time_elapsed, new.func_time_elapsed
    if before is None or after is None or abs(after - before) < _LEAST_SECONDS:
        return
    if max(before, after) >= factor * min(before, after):
        yield Change(old._row.name, new._row.name, "time", human_seconds(before), human_seconds(after))
