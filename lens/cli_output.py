"""What the commands print: text for people, JSON for machines, and errors of the user's model without a traceback."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from lens.errors import InputError, LensError
from lens.stages import stage

if TYPE_CHECKING:
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
    with stage("making the model"):
        import torch  # the command line starts without torch, so that --help and show are quick

        from lens.model_specs import load_spec

        if arguments.seed is not None:
            torch.manual_seed(arguments.seed)
        return load_spec(spec, arguments.input)


def print_json(data: Any) -> None:
    """Print plain data; what JSON has no word for as text."""
    print(json.dumps(data, indent=2, default=str))


def facts_of(history: ModelHistory) -> dict[str, Any]:
    """A history as plain data: facts about the model, and a row per entry."""
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
        "layers": [dict(row) for row in history.summary()],
    }


class ModelErrors(AbstractContextManager[None]):
    """What the user's model raises, as an error of the command line. With ``--debug`` it comes through as it is."""

    def __init__(self, spec: str, debug: bool) -> None:
        self.spec, self.debug = spec, debug

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, LensError) and not self.debug:
            raise InputError(
                f"the model raised {type(error).__name__}: {error}",
                where=self.spec,
                hint="check --input; `lens --debug ...` shows the traceback",
            ) from error
