"""Ending a forward pass when all that was asked for is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

from attrs import define, field

from lens.capture.selection import Predicate, RunningOp, Selection
from lens.errors import InputError
from lens.ir.tape import ModuleNames

#: A module address, a call of a module (``"block:2"``), several of these, a function of the running operation, or
#: ``"saved"``.
StopAt: TypeAlias = "str | Iterable[str] | Predicate"
_WHERE = "lens.trace(stop_at=...)"


class Stopped(BaseException):
    """Ends the forward pass. No ``Exception``, so that models that catch those let it through."""


@define
class Stop:
    """What is waited for.

    Args:
        waiting: Module addresses, or addresses with call numbers, that have not returned yet.
        predicate: True of the operation after which to stop.
        reached: What ended the run; empty while it goes on.
    """

    waiting: set[str] = field(factory=set)
    predicate: Callable[[RunningOp], bool] | None = None
    reached: str = ""

    def left(self, names: ModuleNames, call: int) -> None:
        """A module has returned. Raises Stopped if it was the last one waited for."""
        if self.waiting and not self.reached:
            for address in (names[0], *names[1]):
                self.waiting -= {address, f"{address}:{call}"}
            if not self.waiting:
                self._end(names[0])

    def ran(self, op: RunningOp) -> None:
        """An operation has run. Raises Stopped if it is the one."""
        if self.predicate is not None and not self.reached and self.predicate(op):
            self._end(f"{op.type} in {op.address}" if op.address else op.type)

    def _end(self, reached: str) -> None:
        self.reached = reached
        raise Stopped


def make_stop(stop_at: StopAt | None, selection: Selection, module_addresses: Collection[str]) -> Stop | None:
    """What ``stop_at=`` asks for; None if nothing.

    Args:
        stop_at: As given to ``lens.trace``.
        selection: What is saved, for ``"saved"``.
        module_addresses: The addresses of the model's modules.

    Raises:
        InputError: if it cannot be known while the model runs, or is no module of the model.
    """
    if stop_at is None:
        return None
    if callable(stop_at):
        return Stop(predicate=stop_at)
    if stop_at == "saved" and "saved" not in module_addresses:
        return Stop(_all_saved(selection))
    keys = [stop_at] if isinstance(stop_at, str) else list(stop_at)
    for key in keys:
        address, _, number = key.rpartition(":") if isinstance(key, str) else ("", "", "")
        if key not in module_addresses and not (address in module_addresses and number.isdigit()):
            raise InputError(
                f"there is no module {key!r} to stop at",
                where=_WHERE,
                hint='give a module address, a call of one ("block:2"), a function of the operation, or "saved"; '
                "labels are known only after the run",
            )
    return Stop(set(keys))


def _all_saved(selection: Selection) -> set[str]:
    keys = selection.keys or ()
    waiting = {key for key in keys if isinstance(key, str) and key in selection.addresses}
    calls = {key for key in keys if isinstance(key, str) and key.rpartition(":")[0] in selection.addresses}
    if len(waiting | calls) < len(keys) or not keys:
        raise InputError(
            'stop_at="saved" needs to know while the model runs when all is saved',
            where=_WHERE,
            hint='name only module addresses in save=, such as save=["layer2", "layer3:1"]',
        )
    return waiting | calls
