"""What a validation found."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from attrs import frozen

Status = Literal["proved", "exempt", "failed"]


@frozen
class Verdict:
    """About one operation.

    Args:
        layer: Its label.
        status: ``proved``: run again from its saved operands it gave its saved result, and other operands gave
            another; ``exempt``: it could not be, for the stated reason; ``failed``.
        detail: The reason, or the numbers.
    """

    layer: str
    status: Status
    detail: str = ""


@frozen
class Report:
    """All verdicts of a validation, in order of execution."""

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The failures."""
        return tuple(v for v in self.verdicts if v.status == "failed")

    def __str__(self) -> str:
        counts = Counter(v.status for v in self.verdicts)
        head = ", ".join(f"{counts[s]} {s}" for s in ("proved", "exempt", "failed"))
        notable = [v for v in self.verdicts if v.status != "proved"]
        width = max((len(v.layer) for v in notable), default=0)
        rows = [f"  {v.layer.ljust(width)}  {v.status.ljust(6)}  {v.detail}" for v in notable]
        return "\n".join([f"validation: {head}", *rows])
