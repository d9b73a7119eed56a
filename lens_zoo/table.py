"""The ledger as a Markdown page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from lens_zoo.examination import Findings

_STATUSES = ("proved", "failed", "limit", "not run")
_WIDTH = 150


def write_table(path: Path, ledger: list[Findings], missing: dict[str, str]) -> None:
    """Write the page: totals, then every model that is not proved."""
    path.write_text("\n".join(_page(ledger, missing)) + "\n")


def _page(ledger: list[Findings], missing: dict[str, str]) -> Iterator[str]:
    yield "# The zoo\n"
    yield (
        f"Made by `python -m lens_zoo --table docs/zoo.md` with torch {torch.__version__}. Every model has random "
        "weights, is in eval mode, and runs once plain and once recorded, each time from the same seed.\n"
    )
    yield (
        "**proved**: the recorded output is the plain one bit for bit, every operation that was run again from its "
        "saved operands gave its saved result, structure, labels and distances are sound, text form and file read "
        "back equal, and nothing recurs where nothing may. **failed**: one of these does not hold. **limit**: stopped "
        "by the limit of time or memory. **not run**: the model itself could not be built or run here.\n"
    )
    yield from _totals(ledger)
    for library, reason in missing.items():
        yield f"\n`{library}` was skipped: {_cell(reason)}."
    yield from _section("Failed", [f for f in ledger if f.status == "failed"])
    yield from _section("Stopped by a limit", [f for f in ledger if f.status == "limit"])
    yield from _section("Not run", [f for f in ledger if f.status == "not run"])


def _totals(ledger: list[Findings]) -> Iterator[str]:
    yield f"| library | backend | models | {' | '.join(_STATUSES)} | operations | proved | exempt | failed |"
    yield "|---|---|" + "---:|" * (len(_STATUSES) + 5)
    groups: dict[tuple[str, str], list[Findings]] = {}
    for findings in ledger:
        groups.setdefault((findings.recipe.partition(":")[0], findings.backend), []).append(findings)
    for (library, backend), rows in [*sorted(groups.items()), (("**all**", ""), ledger)]:
        statuses = Counter(row.status for row in rows)
        verdicts = sum((Counter(row.verdicts) for row in rows), Counter[str]())
        numbers = [len(rows), *(statuses[status] for status in _STATUSES), sum(row.ops for row in rows)]
        numbers += [verdicts[status] for status in ("proved", "exempt", "failed")]
        yield f"| {library} | {backend} | {' | '.join(map(str, numbers))} |"
    exemptions = sum((Counter(row.exemptions) for row in ledger), Counter[str]())
    yield "\nWhy operations were exempt: " + "; ".join(f"{_cell(k)} ({n})" for k, n in exemptions.most_common(12)) + "."


def _section(title: str, rows: Iterable[Findings]) -> Iterator[str]:
    """Models with equal reasons share a line."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(_cell(row.reasons[0]), []).append(f"{row.recipe} ({row.backend})")
    if by_reason:
        yield f"\n## {title}\n\n| models | reason |\n|---|---|"
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1])):
        yield f"| {', '.join(name.replace(' (torch_function)', '') for name in names)} | {reason} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:_WIDTH]
