"""``python -m lens_zoo``: run the zoo, or make the table of a ledger."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from attrs import asdict

from lens_zoo.examination import Findings
from lens_zoo.libraries import LIBRARIES, recipes
from lens_zoo.processes import Limits, examine_all
from lens_zoo.table import write_table


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 if a trace was wrong."""
    arguments = _parser().parse_args(argv)
    ledger = Path(arguments.ledger)
    known = read_ledger(ledger)
    chosen = arguments.library or list(LIBRARIES)
    names, missing = recipes(chosen, arguments.all)
    names = [name for name in names if any(part in name for part in arguments.match)]
    if not arguments.table_only:
        done = {(f.recipe, f.backend) for f in known if f.status not in arguments.again}
        for backend in arguments.backend:
            todo = [name for name in names if (name, backend) not in done][: arguments.limit]
            _run(todo, backend, Limits(arguments.seconds, arguments.memory), arguments.jobs, ledger)
        for name, reason in missing.items():
            print(f"{name} is skipped: {reason}")
    known = read_ledger(ledger)
    if arguments.table:
        there = {(f.recipe, f.backend) for f in known}
        pending = {backend: [n for n in names if (n, backend) not in there] for backend in arguments.backend}
        write_table(Path(arguments.table), known, missing, pending)
    return int(any(f.status == "failed" for f in known))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lens_zoo", description=__doc__)
    parser.add_argument("--library", action="append", choices=list(LIBRARIES), help="only this one; may be repeated")
    parser.add_argument("--match", nargs="*", default=[""], help="only recipes that contain one of these texts")
    parser.add_argument("--all", action="store_true", help="all models of timm, not one of every family")
    parser.add_argument("--backend", nargs="*", default=["torch_function"], help="capture backends")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=int, help="at most so many models")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of a model")
    parser.add_argument("--memory", type=float, default=8, help="memory limit of a model in GiB")
    parser.add_argument("--ledger", default="out/zoo.jsonl", help="is appended; what is in it is not run again")
    parser.add_argument("--again", nargs="*", default=[], help="statuses to run again, such as: failed limit")
    parser.add_argument("--table", help="write this Markdown file, such as docs/zoo.md")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    return parser


def _run(names: list[str], backend: str, limits: Limits, jobs: int, ledger: Path) -> None:
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a") as file:
        for number, findings in enumerate(examine_all(names, backend, limits, jobs), 1):
            file.write(json.dumps(asdict(findings)) + "\n")
            file.flush()
            reason = findings.reasons[0] if findings.reasons else f"{findings.ops} operations"
            print(f"[{number}/{len(names)}] {findings.status:7} {findings.recipe} ({backend}): {reason}", flush=True)


def read_ledger(path: Path) -> list[Findings]:
    """The findings of a ledger; the last of a model and backend counts."""
    if not path.exists():
        return []
    found = (Findings(**json.loads(line)) for line in path.read_text().splitlines())
    return list({(f.recipe, f.backend): f for f in found}.values())


if __name__ == "__main__":
    sys.exit(main())
