"""The ledger as a Markdown page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from lens_zoo.examination import Findings

_STATUSES = ("proved", "failed", "limit", "not run")
_WIDTH = 150


def write_table(path: Path, ledger: list[Findings], missing: dict[str, str], pending: dict[str, list[str]]) -> None:
    """Write the page: totals, then every model that is not proved.

    Args:
        path: The file.
        ledger: What was found.
        missing: Libraries that are not installed, with the reason.
        pending: Per backend the models that have not run yet.
    """
    path.write_text("\n".join(_page(ledger, missing, pending)) + "\n")


def _page(ledger: list[Findings], missing: dict[str, str], pending: dict[str, list[str]]) -> Iterator[str]:
    yield "# The zoo\n"
    yield (
        f"Made by `make zoo` with torch {torch.__version__}. Every model "
        "has random weights, is in eval mode, and runs once plain and once recorded, each time from the same seed.\n"
    )
    yield (
        "**proved**: the recorded output is the plain one bit for bit; every operation that was run again from its "
        "saved operands gave its saved result, and other contents of each operand gave another, or a rule says why "
        "not; the audit finds no operation missing; structure, labels and distances are sound; text form and file "
        "read back equal; and nothing recurs where nothing may (equal operations in a row may: the paper calls them a "
        "loop). **failed**: one of these does not hold. **limit**: stopped by the limit of time or memory. "
        "**not run**: the model itself could not be built or run here.\n"
    )
    yield from _totals(ledger)
    for library, reason in missing.items():
        yield f"\n`{library}` was skipped: {_cell(reason)}."
    for backend, names in pending.items():
        if names:
            yield f"\n**{len(names)} models have not run under `{backend}` yet**: {', '.join(names)}."
    yield from _section("Failed", "failed", ledger)
    yield from _section("Stopped by a limit", "limit", ledger)
    yield from _section("Not run", "not run", ledger)
    yield from _remarks(ledger)


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


def _section(title: str, status: str, ledger: list[Findings]) -> Iterator[str]:
    """The models of a status; those with equal reasons share a line."""
    by_reason: dict[str, list[str]] = {}
    for row in ledger:
        if row.status == status:
            by_reason.setdefault(_cell(row.reasons[0]), []).append(_name(row))
    if by_reason:
        yield f"\n## {title}\n\n| models | reason |\n|---|---|"
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1])):
        yield f"| {', '.join(names)} | {reason} |"


def _remarks(ledger: list[Findings]) -> Iterator[str]:
    """What is no failure by itself, and worth a look."""
    unseen = [_name(row) for row in ledger if row.gaps.get("external")]
    loops = [_name(row) for row in ledger if row.recurrent and not row.parameters_shared]
    shared = [_name(row) for row in ledger if row.recurrent and row.parameters_shared]
    for title, names in (
        ("Tensors of unknown origin were used (most often a cache that an earlier run had filled, or vmap)", unseen),
        ("Recurrent though no parameter is used twice: loops, and equal operations in a row", loops),
        ("Recurrent, with parameters that are used more than once", shared),
    ):
        yield f"\n## {title}: {len(names)}\n\n{', '.join(names) or 'none'}"


def _name(row: Findings) -> str:
    return row.recipe if row.backend == "torch_function" else f"{row.recipe} ({row.backend})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:_WIDTH]
