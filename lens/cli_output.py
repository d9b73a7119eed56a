"""What the commands print: text for people, JSON for machines, and errors of the user's model without a traceback."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lens.errors import InputError, LensError, RenderError
from lens.stages import stage

if TYPE_CHECKING:
    from lens.entry import LayerEntry, OpEntry
    from lens.history import ModelHistory
    from lens.model_specs import ModelCall


_SHARED: Mapping[str, Mapping[str, Any]] = {
    "--json": {"action": "store_true", "help": "print JSON, for machines"},
    "--quiet": {"action": "store_true", "help": "print nothing but errors"},
    "--input": {"action": "append", "default": [], "metavar": "SHAPE", "help": "as for `lens trace`"},
    "--seed": {"type": int, "metavar": "N", "help": "set the random seed before the model is made"},
    "--backend": {"default": "torch_function", "metavar": "NAME", "help": "one that `lens backends` lists"},
}


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *examples: str,
    **texts: Any,
) -> argparse.ArgumentParser:
    """A command, what it does, and its help: ``texts`` are those of argparse, the examples stand at the end."""
    epilog = "\n".join(("examples:", *(f"  {line}" for line in examples)))
    layout = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, epilog=epilog, formatter_class=layout, **texts)
    command.set_defaults(run=run)
    return command


def add_shared(command: argparse.ArgumentParser, *names: str) -> None:
    """Give a command options that several commands have."""
    for name in names:
        command.add_argument(name, **_SHARED[name])


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of these options that were given, by name; None is the default of each."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def refuse_without(needed: str, options: Iterable[str]) -> None:
    """Raise InputError if there are options that say no more than how to do what ``needed`` asks for."""
    for name in options:
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} does nothing without {needed}", where=flag, hint=f"add {needed}, or leave it out")


def wants_silence(arguments: argparse.Namespace) -> bool:
    """Whether a command is to show no progress: with ``--quiet`` and with ``--json``."""
    return any(getattr(arguments, name, False) for name in ("quiet", "json"))


@contextmanager
def noting() -> Iterator[None]:
    """Prints the warnings of the block as notes, once it is over."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        yield
    for note in notes:
        print(f"note:    {note.message}", file=sys.stderr)


def make_model(spec: str, arguments: argparse.Namespace) -> ModelCall:
    """The model of a command that has ``--seed`` and ``--input``, with its inputs."""
    with stage("making the model"), ModelErrors(spec, arguments.debug, "making the model", hint=""):
        import torch  # the command line starts without torch, so that --help and show are quick

        from lens.model_specs import load_spec

        if arguments.seed is not None:
            torch.manual_seed(arguments.seed)
        return load_spec(spec, arguments.input)


def say(text: object = "", end: str = "\n") -> None:
    """Print to standard output, and have all that waits there written.

    Raises:
        BrokenPipeError: its reader has gone, as `head` does.
        RenderError: it cannot be written to.
    """
    try:
        print(text, end=end, flush=True)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError):
            _discard_output()
        if isinstance(error, BrokenPipeError):
            raise
        hint = "PYTHONIOENCODING=utf-8 lets it take every letter" if isinstance(error, UnicodeError) else ""
        raise RenderError(f"the output cannot be written: {error}", where="standard output", hint=hint) from error


def _discard_output() -> None:
    """What waits to be written goes nowhere; Python would try again when it ends, and fail with a code of its own."""
    with suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def conclude(passed: bool, report: object) -> int:
    """Print the report of a check, if there is one, and give the exit code, also if nobody reads the report."""
    with suppress(BrokenPipeError):
        if report is not None:
            say(report)
    return 0 if passed else 1


def as_json(data: Any) -> str:
    """Plain data as JSON; what JSON has no word for as text."""
    return json.dumps(data, indent=2, default=str)


def print_json(data: Any) -> None:
    """Print plain data."""
    say(as_json(data))


def facts_of(history: ModelHistory) -> dict[str, Any]:
    """A history as plain data: facts about the model, and a row per entry of its summary."""
    meta = history.graph.meta
    return {
        "model": history.model_name,
        "operations": len(history.graph.ops),
        "parameters": history.total_params,
        "recurrent": history.model_is_recurrent,
        "conditional": history.model_has_conditional_branching,
        "stopped": meta.stopped,
        "fault": None if meta.fault is None else f"{meta.fault.type}: {meta.fault.message}",
        "gaps": [str(gap) for gap in history.gaps],
        "layers": list(_layers(history)),
    }


def _layers(history: ModelHistory) -> Iterator[dict[str, Any]]:
    """The rows of the summary: with the number that history[...] takes, and whether the tensor is saved, by names."""
    ordinals = {row.name: ordinal for ordinal, row in enumerate(history.numbered)}
    saved = {entry._row.name for entry in history if entry.is_saved}
    for row in history.summary():
        name = row["layer"]
        titled = {title: fact for title, fact in row.items() if title}
        yield {"ordinal": ordinals.get(name), "saved": name in saved, **titled}


def facts_of_passes(found: OpEntry | LayerEntry) -> dict[str, Any]:
    """What a key of a history leads to as plain data: a row per pass, with the columns of the table of layers."""
    from lens.entry import OpEntry
    from lens.render.tables import TABLES

    passes = (found,) if isinstance(found, OpEntry) else found.passes
    return {"layers": [{name: getattr(one, name) for name in TABLES["layers"].columns} for one in passes]}


class ModelErrors(AbstractContextManager[None]):
    """What the user's model raises, as an error of the command line. With ``--debug`` it comes through as it is."""

    def __init__(self, spec: str, debug: bool, what: str = "the model", hint: str = "check --input; ") -> None:
        self.spec, self.debug, self.what, self.hint = spec, debug, what, hint

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, LensError) and not self.debug:
            raise InputError(
                f"{self.what} raised {type(error).__name__}: {error}",
                where=self.spec,
                hint=f"{self.hint}`lens --debug ...` shows the traceback",
            ) from error
