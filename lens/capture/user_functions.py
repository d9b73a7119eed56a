"""The functions of users that lens calls while the model runs: what they raise, told with its place."""

from __future__ import annotations

from attrs import fields_dict, frozen

from lens.capture.selection import RunningOp
from lens.errors import InputError
from lens.foreign import message_of
from lens.ir.places import SiteTable
from lens.ir.tape import OP_FUNCTION, OP_RESULTS, OP_SITE, Tape

_HINTS = {"transform": "make it accept every tensor that save= selects, and give a tensor"}
_OF_PREDICATES = f"it is given an operation, which has {', '.join(fields_dict(RunningOp))}, and gives a truth value"


@frozen
class Failure:
    """That a function of the user raised; the run is ended after the operation, so that it can be told by its label.

    Args:
        option: What it was given as, such as ``transform``.
        error: What it raised.
        value: The tensor that it was asked about.
        shown: That tensor, described.
    """

    option: str
    error: Exception
    value: int
    shown: str

    def told(self, place: str) -> InputError:
        """The error for the user, with the place of the tensor in the model."""
        return InputError(
            f"{self.option}= raised {type(self.error).__name__}: {message_of(self.error)}",
            where=f"{place}; {self.shown}",
            hint=_HINTS.get(self.option, _OF_PREDICATES),
        )


def place_of(tape: Tape, value: int) -> str:
    """What made a value: function and line, or the name of an input. Linear."""
    maker = next((row for row in tape.ops if value in row[OP_RESULTS]), None)
    if maker is None:
        maker = next((tape.ops[op] for op, _, new in tape.effects if new == value), None)
    if maker is not None:
        site = SiteTable().locate(maker[OP_SITE])
        function = str(maker[OP_FUNCTION])
        return function if site is None else f"{function} at {site}"
    kind, _, names, *_ = next(row for row in tape.leaves if row[1] == value)
    return " ".join((kind, *names))
