"""The command ``lens validate``: a model, an input, and an exit code for builds."""

from __future__ import annotations

import argparse

from lens.cli_output import add_command, add_shared, conclude, make_model


def add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "validate",
        _validate,
        "lens validate torchvision:resnet18 --input 1x3x64x64",
        "lens validate nets.py:make --json",
        help="prove that what lens saves of a model is right; exit code 1 if it is not",
        description="Exit code 0: everything holds, 1: something failed, 2: the command could not be understood.",
    )
    command.add_argument("spec", metavar="SPEC", help="as for `lens trace`")
    add_shared(command, "--input", "--backend", "--seed")
    command.add_argument("--train", action="store_true", help="in train mode")
    command.add_argument("--no-audit", dest="audit", action="store_false", help="do not look for missing operations")
    add_shared(command, "--json", "--quiet")


def _validate(arguments: argparse.Namespace) -> int:
    from lens.validation import validation_report  # the command line starts without torch

    call = make_model(arguments.spec, arguments)
    if arguments.train:
        call.model.train()
    report = validation_report(
        call.model, call.args, call.kwargs, backend=arguments.backend, completeness=arguments.audit
    )
    text = None if arguments.quiet else report.to_json() if arguments.json else report
    return conclude(report.ok, text)
