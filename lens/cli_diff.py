"""``lens diff``: two saved traces compared."""

from __future__ import annotations

import argparse

import lens
from lens.cli_output import add_command, add_shared, as_json, conclude


def add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    diff = add_command(
        commands,
        "diff",
        _diff,
        "lens diff before.lens after.lens",
        "lens diff before.lens after.lens --atol 1e-5 --json",
        help="compare two saved traces: layers added, removed, changed in shape, arguments, inputs, values, time",
        description="Compare two saved traces. Exit code 0 if they differ in nothing but time, else 1.",
    )
    diff.add_argument("before", metavar="BEFORE", help="what `lens trace --save-to` or history.save wrote")
    diff.add_argument("after", metavar="AFTER", help="the trace to compare with it")
    diff.add_argument("--rtol", type=float, default=0.0, metavar="X", help="relative difference of values to accept")
    diff.add_argument("--atol", type=float, default=0.0, metavar="X", help="absolute difference of values to accept")
    slower = "list layers that take X times longer or less (default 2)"
    diff.add_argument("--slower", type=float, default=2.0, metavar="X", help=slower)
    add_shared(diff, "--json", "--quiet")


def _diff(arguments: argparse.Namespace) -> int:
    before, after = lens.load(arguments.before), lens.load(arguments.after)
    found = before.diff(after, rtol=arguments.rtol, atol=arguments.atol, slower=arguments.slower)
    text = None if arguments.quiet else as_json(found.to_dict()) if arguments.json else found
    return conclude(found.same, text)
