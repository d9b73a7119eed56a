"""Which of many operands an operation depends on, found with several of them replaced at a time.

``torch.stack`` of a thousand tensors, run once for each of them, copies a million. Instead operand ``i`` is replaced in
the rounds that the binary digits of ``i`` name: per digit one round for those that have it and one for the others. An
element of the results that depends on operand ``i`` alone changes in the rounds of ``i`` and in no other, so it tells
``i``. One that depends on several operands tells none: it changes in both rounds of a digit, or in neither, if they
undo each other. What no element tells may be deaf: that is tried with many at a time, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch

from lens.errors import ReplayError
from lens.ir.elements import ValueId
from lens.validate.comparing import all_same, differing, same
from lens.validate.nonsense import MOST_TOGETHER, Nonsense

#: So many operands are better replaced one by one.
_FEW = 32
#: From so many operands on it is worth a run to see whether all of them are deaf.
_SOME = 8
#: So many elements of the results are looked at, spread over them.
_LOOKED_AT = 1 << 18
_Tensors: TypeAlias = Mapping[ValueId, torch.Tensor]


def reacting(
    run: Callable[[_Tensors], _Tensors], operands: _Tensors, saved: _Tensors, nonsense: Nonsense
) -> set[ValueId]:
    """Operands that the results depend on for sure; of the others nothing is known.

    Args:
        run: Gives the results for other operands.
        operands: Those of the run.
        saved: The results of the run.
        nonsense: What operands are replaced with.

    About ``2 log2(n)`` runs where most elements depend on one of the ``n`` operands, ``log2(n)`` times as many where
    one operand matters everywhere; where all do, fewer than there are operands.
    """
    if len(operands) <= _FEW:
        return set()
    substitutes: dict[ValueId, torch.Tensor] = {}
    room = MOST_TOGETHER
    for value, tensor in operands.items():
        room -= 0 if tensor.is_floating_point() else tensor.numel()
        other = _other(nonsense, tensor) if room >= 0 or tensor.is_floating_point() else None
        if other is not None:
            substitutes[value] = other
    results = {v: tensor for v, tensor in saved.items() if _has_plain_elements(tensor)}
    return set(_reacting(lambda changed: run({**operands, **changed}), substitutes, results, list(substitutes)))


def are_deaf(
    run: Callable[[_Tensors], _Tensors],
    operands: _Tensors,
    suspects: Sequence[ValueId],
    saved: _Tensors,
    nonsense: Nonsense,
) -> bool:
    """Whether other contents of the suspects leave the results as they were, several of them replaced at a time.

    Suspect ``i``, from 1 on, is replaced in the rounds that the digits of ``i`` name: so of any two, which could undo
    each other, one is replaced without the other in some round. False of few operands, and where nothing is told:
    those are better replaced one by one. Arguments as of ``reacting``; ``log2(n)`` runs per kind of nonsense.
    """
    if len(suspects) < _SOME or sum(operands[value].numel() for value in suspects) > MOST_TOGETHER:
        return False
    numbers = {value: number for number, value in enumerate(suspects, start=1)}
    for others in nonsense.together({value: operands[value] for value in suspects}):
        for digit in range(len(suspects).bit_length()):
            replaced = {value: other for value, other in others.items() if numbers[value] >> digit & 1}
            try:
                changed = run({**operands, **replaced})
            except ReplayError:
                return False
            if not all_same(changed, saved):
                return False
    return True


def _other(nonsense: Nonsense, tensor: torch.Tensor) -> torch.Tensor | None:
    """Other contents for a tensor, whose own memory stays as it is."""
    for substitute in nonsense.substitutes(tensor, shared=True):
        with substitute as other:
            if not same(other, tensor):
                return other
    return None


def _has_plain_elements(tensor: torch.Tensor) -> bool:
    return not tensor.is_nested and tensor.layout is torch.strided and not tensor.is_quantized


def _reacting(
    run: Callable[[_Tensors], _Tensors], substitutes: _Tensors, results: _Tensors, candidates: Sequence[ValueId]
) -> Iterator[ValueId]:
    if len(candidates) <= _FEW:
        return
    found = {candidates[number] for number in _told(run, substitutes, results, candidates)}
    yield from found
    rest = [value for value in candidates if value not in found]
    middle = len(rest) // 2  # an operand that all elements depend on is in one half only
    for half in (rest[:middle], rest[middle:]):
        yield from _reacting(run, substitutes, results, half)


def _told(
    run: Callable[[_Tensors], _Tensors], substitutes: _Tensors, results: _Tensors, candidates: Sequence[ValueId]
) -> set[int]:
    """The numbers of candidates that an element tells; none where the operation refuses the nonsense."""
    digits = range((len(candidates) - 1).bit_length())
    expected = _elements(results.values())
    rounds = {kind: [torch.zeros_like(t, dtype=torch.int32) for _ in range(2)] for kind, t in expected.items()}
    for digit in digits:
        for wanted in (0, 1):
            replaced = [value for number, value in enumerate(candidates) if number >> digit & 1 == wanted]
            try:
                changed = run({value: substitutes[value] for value in replaced})
            except ReplayError:
                return set()
            if any(v not in changed or _kind(changed[v]) != _kind(tensor) for v, tensor in results.items()):
                return set()
            for kind, found in _elements([changed[v] for v in results]).items():
                rounds[kind][wanted] |= differing(found, expected[kind]).to(torch.int32) << digit
    told: set[int] = set()
    for without, with_it in rounds.values():
        told.update(torch.unique(with_it[without ^ with_it == (1 << len(digits)) - 1]).tolist())
    return {number for number in told if number < len(candidates)}


def _kind(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _elements(tensors: Collection[torch.Tensor]) -> dict[tuple[torch.dtype, torch.device], torch.Tensor]:
    """Elements of all tensors, spread over them, in a row for each dtype and device."""
    step = sum(tensor.numel() for tensor in tensors) // _LOOKED_AT | 1
    parts: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        parts.setdefault((tensor.dtype, tensor.device), []).append(tensor.reshape(-1)[::step])
    return {kind: torch.cat(some) for kind, some in parts.items()}
