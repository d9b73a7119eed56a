"""What a validation found: verdicts, as a table, with what to do, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal

from attrs import asdict, frozen

from lens.ir.elements import Location, OpId

Status = Literal["proved", "exempt", "failed"]
#: Cause of a failure -> what to do about it.
ADVICE = {
    "mismatch": "the saved result, an operand, an argument or the random state is not that of the run; was something "
    "changed after the trace? trace again, then compare backends (`lens conform`)",
    "raises": "the recorded arguments do not fit the function: trace again, and compare with another backend",
    "deaf": "is this the tensor that the operation read? look at history[...].parent_layers and the line named",
    "random": "draws numbers whose generator state was not recorded: trace again, or give it a torch.Generator",
    "unsaved": 'trace with save="all" to validate; of a loaded trace give the model to `check` as well',
    "plain": "the traced run is not the plain run: is the model the same at every call (state, time, sources of "
    "randomness other than torch's)? seed those, or trace with another backend",
    "model": "the model itself fails on this input, without lens too: mend the model or the input",
    "lens": "the model runs without lens and not under it: try another backend, and report it",
    "hole": "an operation is missing at the line named: trace with backend='torch_dispatch', or see history.gaps",
    "metadata": "a pass gave a wrong result: run `lens passes`, and validate without the plugin that added the pass",
}


@frozen
class Verdict:
    """About one operation, or about the run as a whole.

    Args:
        layer: The label of the operation; for the run, the name of the check.
        status: ``proved``: run again from its saved operands it gave its saved results, and other contents of each
            operand gave others, or a rule says why not; ``exempt``: it could not be run, for the stated reason;
            ``failed``.
        detail: The reason, or the numbers.
        cause: For failures a key of ``ADVICE``; else the rule that applied, if one did.
        op: The operation.
        location: The line that called it.
        anchored: Whether an unbroken chain of proved operations, each of which depends on the one before, leads from
            it to an output of the model or to a value that was read.
    """

    layer: str
    status: Status
    detail: str = ""
    cause: str = ""
    op: OpId | None = None
    location: Location | None = None
    anchored: bool = False

    @property
    def advice(self) -> str:
        """What to do about it; empty unless it failed."""
        return ADVICE[self.cause] if self.status == "failed" else ""


@frozen
class Report:
    """All that a validation found.

    Args:
        verdicts: Per operation, in order of execution.
        checks: On the run as a whole: the plain run, the saved values as a whole, the metadata, completeness.
    """

    verdicts: tuple[Verdict, ...]
    checks: tuple[Verdict, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The failures."""
        return tuple(v for v in (*self.checks, *self.verdicts) if v.status == "failed")

    @property
    def exempt(self) -> tuple[Verdict, ...]:
        """What could not be proved, with reasons."""
        return tuple(v for v in (*self.checks, *self.verdicts) if v.status == "exempt")

    def to_json(self) -> str:
        """Everything, for machines: ``ok``, ``counts``, ``checks``, ``verdicts``."""
        document = {
            "ok": self.ok,
            "counts": self._counts(),
            "checks": [self._row(v) for v in self.checks],
            "verdicts": [self._row(v) for v in self.verdicts],
        }
        return json.dumps(document, indent=1)

    def _row(self, verdict: Verdict) -> dict[str, Any]:
        row = asdict(verdict, filter=lambda attribute, value: attribute.name != "location")
        return {**row, "location": str(verdict.location or ""), "advice": verdict.advice}

    def _counts(self) -> dict[str, int]:
        counts = Counter(v.status for v in self.verdicts)
        found: dict[str, int] = {s: counts[s] for s in ("proved", "exempt", "failed")}
        return {**found, "anchored": sum(v.anchored for v in self.verdicts)}

    def __str__(self) -> str:
        counts = self._counts()
        head = f"validation: {'ok' if self.ok else 'FAILED'}; of {len(self.verdicts)} operations " + ", ".join(
            f"{n} {name}" for name, n in counts.items()
        )
        notable = [v for v in self.verdicts if v.status != "proved" or v.detail]
        rows = [*self.checks, *notable]
        width = max((len(v.layer) for v in rows), default=0)
        lines = [f"  {v.layer.ljust(width)}  {v.status.ljust(6)}  {_where(v)}" for v in rows]
        advice = dict.fromkeys(v.cause for v in self.failed)
        todo = [f"  {cause}: {ADVICE[cause]}" for cause in advice]
        return "\n".join([head, *lines, *(["to do:", *todo] if todo else [])])


def _where(verdict: Verdict) -> str:
    place = f" ({verdict.location})" if verdict.location and verdict.status == "failed" else ""
    return (f"[{verdict.cause}] " if verdict.status == "failed" else "") + verdict.detail + place
