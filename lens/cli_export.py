"""``lens export``: a trace, or a model that is traced first, in the form of another tool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import lens
from lens.cli_output import ModelErrors, add_command, add_shared, make_model, noting, say
from lens.errors import InputError, RenderError
from lens.exports import make_renderer, render, renderer_classes, renderer_of, write_rendered
from lens.options import options_text, read_option

if TYPE_CHECKING:
    from lens.history import ModelHistory
    from lens.render.renderer import Renderer


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its options."""
    export = add_command(
        commands,
        "export",
        _export,
        "lens export --list",
        "lens export resnet18.lens --to model-explorer -o resnet18.json",
        "lens export torchvision:resnet18 --input 1x3x64x64 --to onnx -o resnet18.onnx",
        help="write a trace for another tool; --list shows for which",
    )
    source = "a trace file; or a model, as `lens trace` takes it, traced first"
    export.add_argument("source", nargs="?", metavar="FILE|SPEC", help=source)
    export.add_argument("--to", metavar="NAME", help="one that --list shows; by default by the ending of the output")
    export.add_argument("-o", "--output", metavar="PATH", help="the file, or the folder if it makes several files")
    option = "an option that --list shows; VALUE is JSON, or a word"
    export.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option)
    add_shared(export, "--input", "--seed")
    export.add_argument("--list", action="store_true", help="list the forms, their endings and options")
    add_shared(export, "--quiet")


def _export(arguments: argparse.Namespace) -> None:
    if arguments.list:
        for name, cls in renderer_classes().items():
            say(_described(name, cls))
        return
    if arguments.source is None or not (arguments.to or arguments.output):
        raise InputError(
            "what to export, or to what, is missing",
            where="lens export",
            hint="write `lens export FILE --to NAME -o PATH`; `lens export --list` shows the names",
        )
    options = {}
    for text in arguments.option:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"{text!r} is not an option", where="--option", hint="write it like table=edges")
        options[name] = read_option(value)
    renderer = make_renderer(arguments.to or renderer_of(arguments.output), options)
    history = _history(arguments, renderer)
    with noting():
        rendered = render(history, renderer)
    if arguments.output:
        path = write_rendered(rendered, arguments.output)
        if not arguments.quiet:
            say(f"export:  {path}")
    elif isinstance(rendered, str):
        say(rendered, end="")
    else:
        raise RenderError(f"{renderer.name} makes no text to print", where="lens export", hint="give -o PATH")


def _described(name: str, cls: type[Renderer]) -> str:
    options = options_text(cls)
    first = (cls.__doc__ or "").strip().partition("\n")[0]
    lines = [f"{name} ({cls.suffix or 'a folder'}{', needs the model' if cls.needs_model else ''})", f"    {first}"]
    return "\n".join([*lines, f"    options   {options}"] if options else lines)


def _history(arguments: argparse.Namespace, renderer: Renderer) -> ModelHistory:
    """The trace of the file, or of the model; with its tensors if the renderer needs these."""
    is_file = Path(arguments.source).exists() or ":" not in arguments.source
    if is_file and renderer.needs_model:
        raise RenderError(
            f"{renderer.name} needs the model, which no trace file holds",
            where=arguments.source,
            hint=f"name the model: lens export torchvision:resnet18 --to {renderer.name} -o PATH",
        )
    if is_file:
        return lens.load(arguments.source)
    with ModelErrors(arguments.source, arguments.debug):
        call = make_model(arguments.source, arguments)
        return lens.trace(call.model, call.args, call.kwargs, save="all" if renderer.needs_model else "none")
