"""The function modes of traces: how they come onto torch's stack of modes in a thread, and how they go again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from traceback import walk_tb

from torch import overrides
from torch.overrides import TorchFunctionMode

from lens.capture.patches import put_back_in_children
from lens.capture.recorder import Recorder
from lens.errors import LensError

#: private: without it the backends that put modes on are unavailable
_POP = getattr(overrides, "_pop_mode_temporarily", None)
_CONTEXTLIB = contextmanager.__code__.co_filename


class TraceMode(TorchFunctionMode):
    """A mode of a trace: whether it is on is nothing that code is to act upon."""

    #: That of its trace; None if it is on for one call only, whoever traces.
    recorder: Recorder | None = None


@contextmanager
def pushed(mode: TraceMode) -> Iterator[None]:
    """Have a mode on until the block ends. Then no mode of its trace is on, and those of other open traces are.

    The program's own modes are as the block left them. But an interrupt may come at any moment, also where a trace has
    just taken them off: after one all are on that were on before.

    Raises:
        LensError: the block ended as it should, but inside of a trace that began later.
    """
    before = mode_stack()
    overrides._push_mode(mode)  # type: ignore[no-untyped-call]
    ended = interrupted = False
    try:
        yield
        ended = True
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        known, now = set(map(id, before)), mode_stack()
        kept = [one for one in now if id(one) in known or not isinstance(one, TraceMode) or _is_of_another(one, mode)]
        here = set(map(id, kept))
        lost = [one for one in before if id(one) not in here and _is_missed(one, interrupted)]
        set_mode_stack([*lost, *kept])
        if ended and any(isinstance(one, TraceMode) and id(one) not in known for one in kept):
            raise left_out_of_order()


def finish_pops(error: BaseException) -> None:
    """Have torch put back now the modes that it had taken off for the time of a call where this exception came.

    An interrupt may come between the end of such a call and the end of torch's generator for it. That would go on when
    the traceback goes: the mode of a trace that is over would be on from then on.
    """
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        if frame.f_code.co_filename == _CONTEXTLIB and _POP is not None:
            generator = getattr(frame.f_locals.get("self"), "gen", None)
            if getattr(generator, "gi_code", None) is _POP.__wrapped__.__code__:
                generator.close()  # type: ignore[union-attr]


def mode_stack() -> list[TorchFunctionMode]:
    """The function modes of this thread, innermost last."""
    return overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call, no-any-return]


def _is_of_another(one: TraceMode, mode: TraceMode) -> bool:
    return one.recorder is not None and one.recorder is not mode.recorder


def _is_missed(one: TorchFunctionMode, interrupted: bool) -> bool:
    """Whether a mode that is gone is to come back: not if its trace has ended, or if the program took it off."""
    if isinstance(one, TraceMode):
        return one.recorder is None or one.recorder.is_open
    return interrupted


def set_mode_stack(new: Iterable[TorchFunctionMode]) -> None:
    """Have these function modes on in this thread, innermost last, without entering any."""
    for _ in mode_stack():
        overrides._pop_mode()  # type: ignore[no-untyped-call]
    for mode in new:
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]


def left_out_of_order() -> LensError:
    """The error where a trace ends before one that has begun later in its thread."""
    return LensError(
        "a trace was left while one was open that had begun later in the same thread",
        where="with lens.tracing(...)",
        hint="traces of one thread must be nested, and asyncio tasks share theirs: give each task a thread of its own",
    )


def _forget_all() -> None:
    """In a forked process: the traces are those of the other one."""
    now = mode_stack()
    set_mode_stack([one for one in now if not isinstance(one, TraceMode)])


put_back_in_children(_forget_all)
