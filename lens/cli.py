"""The command line: ``lens``, its commands ``trace``, ``show``, ``passes``, ``backends``, ``conform``, and the others.

Those have files of their own: ``lens.cli_validate``, ``lens.cli_export``, ``lens.cli_diff``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import lens
from lens.cli_diff import add_diff
from lens.cli_export import add_export
from lens.cli_output import (
    ModelErrors,
    add_command,
    add_shared,
    as_json,
    conclude,
    facts_of,
    facts_of_passes,
    given,
    make_model,
    noting,
    print_json,
    refuse_without,
    say,
    wants_silence,
)
from lens.cli_validate import add_validate
from lens.errors import LensError, PluginError
from lens.options import options_of, options_text

if TYPE_CHECKING:
    from lens.entry import LayerEntry, OpEntry
    from lens.history import ModelHistory
    from lens.passes.manager import Instrument

_EXAMPLES = """\
examples:
  lens trace torchvision:resnet18 --input 1x3x64x64 -o resnet18.svg
  lens trace timm:convnext_atto --summary --save-to convnext.lens
  lens trace transformers:gpt2 --input 1x16 --summary
  lens trace my_model.py:make_model --input 1x10 -o model.png
  lens show convnext.lens
  lens show convnext.lens --graph
  lens show convnext.lens -o convnext.svg --view rolled --depth 2 --color-by time
  lens show convnext.lens --pipeline "orphans,recurrence,labels" --time --dump-after steps/
  lens validate torchvision:resnet18 --input 1x3x64x64
  lens export convnext.lens --to model-explorer -o convnext.json
  lens export convnext.lens --to parquet --option table=edges -o edges.parquet
  lens export timm:convnext_atto --to graphml -o convnext.graphml
  lens export --list
  lens diff before.lens after.lens
  lens passes
  lens backends
  lens conform torch_function
"""
#: What shells give for a program that SIGPIPE has ended.
_READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code.

    It is 0, 1 if a check failed, 2 on an error of the user, 141 if the reader of what is no check closed its pipe.
    """
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(words or ["--help"])
    code: int | None = None
    try:
        with nullcontext() if wants_silence(arguments) else lens.progress():
            code = arguments.run(arguments)
        say(end="")  # what the model has printed
    except LensError as error:
        if arguments.debug:
            raise
        print(f"lens: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return _READER_GONE if code is None else code
    return code or 0


def help_of_all() -> dict[str, str]:
    """The help of the program and of each command, by name."""
    parser = _parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    return {"lens": parser.format_help(), **{f"lens {name}": one.format_help() for name, one in commands.items()}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lens",
        description="Record every tensor operation of a PyTorch model's forward pass.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lens {lens.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_trace(commands)
    _add_show(commands)
    add_validate(commands)
    add_export(commands)
    add_diff(commands)
    passes = "list the analysis passes, what each needs and gives"
    add_shared(add_command(commands, "passes", _passes, "lens passes --json", help=passes), "--json")
    backends = "list the capture backends and what each sees"
    add_shared(add_command(commands, "backends", _backends, "lens backends --json", help=backends), "--json")
    conform = add_command(
        commands,
        "conform",
        _conform,
        "lens conform torch_function",
        "lens conform my_backend --json",
        help="run a capture backend through the conformance suite; exit code 1 if it fails",
    )
    add_shared(conform, "--json", "--quiet")
    conform.add_argument("backend", metavar="NAME", help="a backend that `lens backends` lists")
    conform.add_argument("--update", action="store_true", help="first rewrite the expected texts from this backend")
    return parser


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace = add_command(
        commands,
        "trace",
        _trace,
        "lens trace torchvision:resnet18 --input 1x3x64x64 -o resnet18.svg",
        "lens trace torchvision:resnet18 --save 'layer*' --stop-at layer2 --save-to resnet18.lens",
        "lens trace my_model.py:make_model --input 1x10 --json",
        help="run a model once and record it",
    )
    spec = "file.py:function, torchvision:NAME, timm:NAME or transformers:CONFIG (random weights)"
    shape = "1x3x224x224, or 1x16:int64; once per argument; by default what the model's library expects"
    save = "what to keep: label, address, pattern, type; by default all if there is --save-to"
    stop_at = "end when this module has returned or type has run"
    trace.add_argument("spec", metavar="SPEC", help=spec)
    trace.add_argument("--input", action="append", default=[], metavar="SHAPE", help=shape)
    add_shared(trace, "--backend")
    trace.add_argument("--save-to", metavar="FILE", help="write the trace, which `lens show` reads")
    trace.add_argument("--save", action="append", metavar="KEY", help=save)
    trace.add_argument("--stop-at", action="append", metavar="KEY", help=stop_at)
    trace.add_argument("--summary", action="store_true", help="print the table of layers")
    add_shared(trace, "--quiet", "--json", "--seed")
    _add_picture(trace)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = add_command(
        commands,
        "show",
        _show,
        "lens show resnet18.lens --layer layer1.0.conv2",
        "lens show resnet18.lens -o resnet18.png --view rolled --depth 2",
        'lens show resnet18.lens --pipeline "orphans,recurrence,labels" --time',
        "lens show resnet18.lens --json",
        help="print a saved trace",
    )
    add_shared(show, "--json")
    show.add_argument("file", metavar="FILE", help="what `lens trace --save-to` or history.save wrote")
    show.add_argument("--graph", action="store_true", help="print the graph as text instead of the table")
    show.add_argument("--layer", metavar="KEY", help="print one layer: a label, an address or a number")
    show.add_argument("--pipeline", metavar="TEXT", help='run these passes first, such as "orphans,recurrence,labels"')
    show.add_argument("--dump-after", metavar="DIR", help="write the graph after every pass into this folder")
    show.add_argument("--time", action="store_true", default=None, help="print what every pass took")
    show.add_argument("--verify", choices=["off", "cheap", "full"], help="checks between passes (default cheap)")
    _add_picture(show)


def _add_picture(command: argparse.ArgumentParser) -> None:
    """The options of a picture; their names are those of ``history.draw``."""
    group = command.add_argument_group("picture")
    group.add_argument("-o", "--output", metavar="PICTURE", help="draw into this .svg, .png, .pdf or .dot")
    group.add_argument("--view", choices=["unrolled", "rolled"], help="every pass of a layer as a node, or all as one")
    group.add_argument("--depth", type=int, metavar="N", help="modules at this depth as one node each")
    module = "this module as one node; blocks.* for all"
    group.add_argument("--collapse", action="append", metavar="ADDRESS", help=module)
    group.add_argument("--max-nodes", type=int, metavar="N", help="collapse more beyond this; 0 never (default 1000)")
    group.add_argument("--theme", choices=["light", "dark", "print"])
    group.add_argument("--direction", choices=["up", "down", "right", "left"], help="where the output stands")
    group.add_argument("--color-by", choices=["time", "memory", "parameters", "flops"], help="colour, with a legend")
    group.add_argument("--legend", action="store_true", default=None, help="explain the colours")
    statistics = "show running statistics of normalisation layers"
    group.add_argument("--statistics", action="store_true", default=None, help=statistics)
    group.add_argument("--no-buffers", action="store_true", default=None, help="hide buffers")


def _picture_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the picture. Raises RenderError if it cannot be drawn so, InputError if none is asked for."""
    from lens.render.images import format_of
    from lens.render.picture import Options

    names = ("view", "depth", "collapse", "max_nodes", "theme", "direction", "color_by", "legend", "statistics")
    options = given(arguments, *names, "no_buffers")
    if not arguments.output:
        refuse_without("-o PICTURE", options)
        return {}
    options["buffers"] = not options.pop("no_buffers", False)
    if arguments.max_nodes == 0:
        options["max_nodes"] = None
    format_of(arguments.output)
    Options(**options)
    return options


def _draw(history: ModelHistory, path: str, options: Mapping[str, Any]) -> str:
    with noting():
        return history.draw(path, **options)


def _trace(arguments: argparse.Namespace) -> None:
    options = _picture_options(arguments)  # before the run, which may take long
    with ModelErrors(arguments.spec, arguments.debug):
        call = make_model(arguments.spec, arguments)
        history = lens.trace(
            call.model,
            call.args,
            call.kwargs,
            save=arguments.save or ("all" if arguments.save_to else "none"),
            stop_at=arguments.stop_at,
            backend=arguments.backend,
        )
    written = {"trace": arguments.save_to and history.save(arguments.save_to)}  # first: the picture may fail
    written["picture"] = arguments.output and _draw(history, arguments.output, options)
    if arguments.json:  # after the files: who reads this may close the pipe, as `head` does
        print_json(facts_of(history))
    elif not arguments.quiet and (arguments.summary or not (arguments.output or arguments.save_to)):
        say(history)
    for what, path in written.items():
        if path and not (arguments.quiet or arguments.json):
            say(f"{what + ':':8} {path}")


def _show(arguments: argparse.Namespace) -> None:
    from lens.ir.printer import print_graph

    options = _picture_options(arguments)
    if arguments.pipeline is None:
        refuse_without("--pipeline TEXT", given(arguments, "time", "dump_after", "verify"))
    history = lens.load(arguments.file)
    if arguments.pipeline is not None:
        history = _analysed(history, arguments)
    picture = arguments.output and _draw(history, arguments.output, options)  # first: the reader may close the pipe
    if arguments.layer is not None:
        found = _found(history, arguments.layer)
        say(as_json(facts_of_passes(found)) if arguments.json else found)
    elif arguments.json:
        print_json(facts_of(history))
    elif arguments.graph:
        say(print_graph(history.graph), end="")
    elif not arguments.output:
        say(history)
    if picture:
        _remark(f"picture: {picture}", arguments)


def _found(history: ModelHistory, key: str) -> OpEntry | LayerEntry:
    """What a key leads to: a label or an address, else a number."""
    is_number = key not in history.index and re.fullmatch(r"-?\d{1,18}", key, re.ASCII)
    return history[int(key)] if is_number else history[key]


def _remark(text: str, arguments: argparse.Namespace) -> None:
    """A line beside the answer: of JSON nothing may stand beside it."""
    if arguments.json:
        print(text, file=sys.stderr)
    else:
        say(text)


def _analysed(history: ModelHistory, arguments: argparse.Namespace) -> ModelHistory:
    """The history after a pipeline of the command line."""
    from lens.history import ModelHistory
    from lens.passes.instruments import DumpAfter, Timing
    from lens.passes.manager import PassManager
    from lens.passes.pipeline import parse_pipeline
    from lens.registry import pass_classes, providers

    timing = Timing()
    instruments: list[Instrument] = [timing]
    if arguments.dump_after:
        instruments.append(DumpAfter(arguments.dump_after))
    pipeline = parse_pipeline(arguments.pipeline, pass_classes())
    manager = PassManager(pipeline, providers(), arguments.verify or "cheap", instruments)
    result = manager.run(history.graph, history.payloads)
    if arguments.time:
        _remark(f"{timing}\n", arguments)
    return ModelHistory(result.graph, result.payloads, result.records, history.logging_seconds)


def _passes(arguments: argparse.Namespace) -> None:
    from lens.registry import pass_classes

    classes = pass_classes()
    known = {name: _pass_facts(classes, name) for name in classes}
    if arguments.json:
        print_json(known)
        return
    for name, facts in known.items():
        if "unavailable" in facts:
            say(f"{name} (unavailable: {facts['unavailable']})")
            continue
        options = options_text(classes[name])
        say(f"{name}{{{options}}}" if options else name)
        if facts["what"]:
            say(f"    {facts['what']}")
        for title in ("requires", "provides", "preserves"):
            if facts[title]:
                say(f"    {title:9} {', '.join(facts[title])}")


def _pass_facts(classes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a pass takes, does, needs and gives; or why it cannot be used here."""
    from attrs import NOTHING

    try:
        cls = classes[name]
    except PluginError as error:
        return {"unavailable": error.what}
    options = {option: attribute.default for option, attribute in options_of(cls).items()}
    return {
        "options": {option: "(required)" if default is NOTHING else default for option, default in options.items()},
        "what": (cls.__doc__ or "").strip().partition("\n")[0],
        **{title: [kind.name for kind in getattr(cls, title)] for title in ("requires", "provides", "preserves")},
    }


def _backends(arguments: argparse.Namespace) -> None:
    from lens.capture.backend import backends

    found = backends()
    if arguments.json:
        print_json([{"name": i.name, "unavailable": i.reason, "capabilities": sorted(i.capabilities)} for i in found])
        return
    say("\n".join(map(str, found)))


def _conform(arguments: argparse.Namespace) -> int:
    from attrs import asdict

    from lens.capture import conformance

    if arguments.update:
        for path in conformance.update(arguments.backend):
            print(f"rewritten, to be read before it is committed: {path}", file=sys.stderr)
    report = conformance.run(arguments.backend)
    text = as_json(asdict(report)) if arguments.json else None if arguments.quiet else report
    return conclude(report.passed, text)


if __name__ == "__main__":
    sys.exit(main())
