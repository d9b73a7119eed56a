"""What comes of the trials of a backend: single outcomes, and the report of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from attrs import frozen

from lens.capture.conformance.expected_texts import GRANULARITIES
from lens.foreign import attempt

#: The column of what is asked about the conduct of a backend, next to those of the granularities.
CONDUCT = "conduct"


@frozen
class Outcome:
    """What came of one trial: ``passed``, ``failed`` or ``skipped``, with the difference or the reason."""

    case: str
    granularity: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""

    @classmethod
    def of(cls, case: str, granularity: str, missing: Iterable[str], problems: Callable[[], Iterator[str]]) -> Outcome:
        """What comes of a trial, which is skipped if capabilities are missing; whatever it raises is a failure."""
        unclaimed = ", ".join(missing)
        if unclaimed:
            return cls(case, granularity, "skipped", f"the backend does not claim: {unclaimed}")
        found = str(attempt(lambda: "\n".join(problems())))
        return cls(case, granularity, "failed" if found else "passed", found)


@frozen
class Report:
    """The outcomes of all trials with one backend; prints as a table."""

    backend: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether something passed and nothing failed."""
        statuses = {outcome.status for outcome in self.outcomes}
        return "passed" in statuses and "failed" not in statuses

    def __str__(self) -> str:
        columns = [*GRANULARITIES, CONDUCT]
        rows: dict[str, dict[str, str]] = {}
        for outcome in self.outcomes:
            rows.setdefault(outcome.case, {})[outcome.granularity] = outcome.status
        width = max(map(len, rows))
        lines = [f"{'':{width}}  " + "  ".join(f"{column:7}" for column in columns)]
        lines += [f"{case:{width}}  " + "  ".join(f"{row.get(c, ''):7}" for c in columns) for case, row in rows.items()]
        for outcome in self.outcomes:
            if outcome.status == "failed":
                lines += ["", f"{outcome.case} at {outcome.granularity} level:", outcome.detail]
        skipped = Counter(outcome.detail for outcome in self.outcomes if outcome.status == "skipped")
        lines += ["", *(f"{count} skipped: {reason}" for reason, count in skipped.items())]
        counts = Counter(outcome.status for outcome in self.outcomes)
        return "\n".join([*lines, f"{self.backend}: {counts['passed']} passed, {counts['failed']} failed"])
