"""Ending a forward pass when all that was asked for is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeAlias

from attrs import define, field
from torch import nn

from lens.capture.keeping import Keeper
from lens.capture.selection import Predicate, RunningOp, Selection, is_pattern, is_type, matching, may_be_type, split
from lens.errors import InputError
from lens.ir.tape import ModuleNames

#: A module address, a call of a module (``"block:2"``), a pattern of addresses, a layer type, a function of the running
#: operation, several of these, or ``"saved"``.
StopAt: TypeAlias = "str | Predicate | Iterable[str | Predicate]"
_WHERE = "lens.trace(stop_at=...)"
_TAKES = 'give a module address, a call of one ("block:2"), a pattern of addresses, a layer type, or "saved" alone'


class Stopped(BaseException):
    """Ends the forward pass. No ``Exception``, so that models that catch those let it through."""


@define
class Stop:
    """What is waited for: all of it. If that is nothing, the end is after the next operation.

    Args:
        waiting: Module addresses, or addresses with call numbers, that have not returned yet.
        types: Layer types of which no operation has run yet.
        predicates: What has not been true of an operation yet.
        reached: What ended the run; empty while it goes on.
    """

    waiting: set[str] = field(factory=set)
    types: set[str] = field(factory=set)
    predicates: list[Predicate] = field(factory=list)
    reached: str = ""

    def left(self, names: ModuleNames, call: int) -> None:
        """A module has returned. Raises Stopped if nothing else is waited for."""
        if self.waiting and not self.reached:
            for address in (names[0], *names[1]):
                self.waiting -= {address, f"{address}:{call}"}
            self._end_if_all(names[0])

    def ran(self, op: RunningOp, value: int, keeper: Keeper) -> None:
        """An operation has run. Raises Stopped if nothing else is waited for, or a function of the user raised."""
        if not self.reached:
            self.types.discard(op.type)
            self.predicates = [p for p in self.predicates if not keeper.ask("stop_at", p, op, value)]
            self._end_if_all(f"{op.type} in {op.address}" if op.address else op.type)

    def missing(self, names: Iterable[str]) -> str:
        """What never came, with the nearest of these names."""
        words = sorted(self.waiting | self.types)
        near = dict.fromkeys(name for word in words for name in _nearest(word, names))
        what = ", ".join((*words, *["an operation for a function"] * bool(self.predicates)))
        return f"{what} was never reached{f'; nearest: {list(near)}' if near else ''}"

    def _end_if_all(self, reached: str) -> None:
        if not (self.waiting or self.types or self.predicates):
            self.reached = reached
            raise Stopped


def make_stop(stop_at: StopAt | None, selection: Selection, modules: Mapping[str, nn.Module]) -> Stop | None:
    """What ``stop_at=`` asks for; None if nothing.

    Args:
        stop_at: As given to ``lens.trace``.
        selection: What is saved, for ``"saved"``.
        modules: The model's modules by address.

    Raises:
        InputError: if it cannot be known while the model runs, or is no module of the model.
    """
    if stop_at is None:
        return None
    keys, predicates = split(stop_at, "stop_at", _TAKES, modules)
    if keys == ("saved",) and not predicates and "saved" not in modules:
        return Stop(_all_saved(selection))
    stop = Stop(predicates=list(predicates))
    for key in keys:
        address, _, number = key.rpartition(":") if isinstance(key, str) else ("", "", "")
        if key in modules or (address in modules and number.isdigit()):
            stop.waiting.add(str(key))
        elif isinstance(key, str) and is_pattern(key) and matching(key, modules):
            stop.waiting.update(matching(key, modules))
        elif isinstance(key, str) and key != "saved" and _means_type(key, modules):
            stop.types.add(key)
        else:
            raise InputError(f"there is no module {key!r} to stop at", where=_WHERE, hint=_hint(key, modules))
    return stop


def _all_saved(selection: Selection) -> set[str]:
    keys = selection.keys or ()
    waiting = {key for key in keys if isinstance(key, str) and key in selection.addresses}
    calls = {key for key in keys if isinstance(key, str) and key.rpartition(":")[0] in selection.addresses}
    if len(waiting | calls) < len(keys) or not keys or selection.predicate is not None:
        raise InputError(
            'stop_at="saved" needs to know while the model runs when all is saved',
            where=_WHERE,
            hint='name only module addresses in save=, such as save=["layer2", "layer3:1"]',
        )
    return waiting | calls


def _means_type(key: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a key can be a layer type and is no misspelt address."""
    return is_type(key) or (may_be_type(key) and not _nearest(key, modules, cutoff=0.8))


def _nearest(key: object, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    return get_close_matches(str(key), sorted(filter(None, names)), n=3, cutoff=cutoff)


def _hint(key: object, modules: Mapping[str, nn.Module]) -> str:
    near = _nearest(key, modules)
    return f"{f'nearest: {near}; ' if near else ''}{_TAKES}; labels are known only after the run"
