"""Runs PyTorch's operator and module databases through every Python-level backend and writes the table of the docs.

Needs the extra `test`. Prints every fault, and exits with 1 if there is one.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from operator_database import KINDS_OF_CALLS, Outcome, backends, entries

DATABASES = {
    "op_db": "operators (`op_db`)",
    "foreach": "foreach functions (`foreach_*_op_db`)",
    "module_db": "modules (`module_db`)",
}
HEAD = """\
# Operator coverage

PyTorch ships databases of its operators and modules with sample inputs. This table says, for every entry, whether
lens records it as it happens. `make operators` writes it; `tests/test_operator_database.py` checks the same in CI, with
the first two samples of each.

Every entry is called with its first {samples} samples in float32, complex64, int64 and bool where it supports them (in
another dtype if it supports none of these), as a function, method, operator, in place, and with `out=`, where it has
these; modules in training and in evaluation mode. Calls that torch itself refuses are left out. Each call is compared
with a plain run and with a run under an independent observer (`tests/witness.py`):

- the result, the arguments afterwards and the generator state are those of the plain run, bit for bit;
- the operations are those that torch was asked for, at the level at which the user called them, each with its
  operands in their places, its results, and exactly the writes that happened;
- no tensor is of unknown origin; the graph keeps its rules at every granularity, and its text gives it back;
- every operation, run again from its saved operands, gives its saved results.

torch {torch}, backends: {backends}.
"""


def report(outcomes: Sequence[Sequence[Outcome]], names: Sequence[str], samples: int) -> Iterator[str]:
    """The lines of the document; ``outcomes`` has one sequence per entry, with an outcome per backend."""
    yield HEAD.format(samples=samples, torch=torch.__version__.partition("+")[0], backends=", ".join(names))
    yield "## Totals\n"
    yield "| database | backend | entries | right | with a remark | not run | wrong | calls | refused by torch |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for database, title in DATABASES.items():
        for place, name in enumerate(names):
            ones = [row[place] for row in outcomes if row[0].entry.database == database]
            counts = Counter(verdict([one]) for one in ones)
            calls, refused = (sum(sum(getattr(one, n).values()) for one in ones) for n in ("calls", "refused"))
            verdicts = " | ".join(str(counts[word]) for word in ("right", "remark", "not run", "WRONG"))
            yield f"| {title} | `{name}` | {len(ones)} | {verdicts} | {calls} | {refused} |"
    yield "\n## Not plainly right\n"
    yield "| entry | verdict | reason |"
    yield "|---|---|---|"
    for row in outcomes:
        if verdict(row) != "right":
            reasons = dict.fromkeys(reason for one in row for reason in (one.faults[:1] or [one.reason]))
            yield f"| `{row[0].entry.name}` | {verdict(row)} | {'; '.join(filter(None, reasons))} |"
    yield "\n## All entries\n"
    letters = ", ".join(f"{letter} {name}" for name, letter in KINDS_OF_CALLS.items())
    yield f"After each entry its dtypes and how many calls of each kind were compared with every backend: {letters}.\n"
    for database, title in DATABASES.items():
        yield f"### {title[0].upper()}{title[1:]}\n"
        for row in outcomes:
            if row[0].entry.database == database:
                yield _line(row[0], verdict(row))
        yield ""


def verdict(row: Sequence[Outcome]) -> str:
    """One word on an entry: the worst of what the backends made of it."""
    if any(outcome.faults for outcome in row):
        return "WRONG"
    if not row[0].calls:
        return "not run"
    return "remark" if any(outcome.reason for outcome in row) else "right"


def _line(outcome: Outcome, word: str) -> str:
    modes = ", ".join(outcome.entry.calls)
    counts = " ".join(f"{KINDS_OF_CALLS[name]}{n}" for name, n in outcome.calls.items())
    remark = "" if word == "right" else f" **{word}**"
    return f"- `{outcome.entry.name}`: {modes}; {counts}{remark}".replace(": ; ", ":")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/operator-coverage.md"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = backends()
    outcomes = [[entry.outcome(name, options.samples) for name in names] for entry in entries()]
    faults = [f"{row[0].entry.name}: {fault}" for row in outcomes for one in row for fault in one.faults]
    print("\n".join(faults))
    options.output.write_text("\n".join(report(outcomes, names, options.samples)).rstrip() + "\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
