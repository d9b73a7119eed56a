"""The jobs: what is done with a model, by lens, by TorchLens, or by neither. Each is a function without arguments."""

from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import lens
from benchmarks.barest import record_barely
from benchmarks.models import Case
from lens import registry
from lens.capture.addresses import AddressBook
from lens.capture.inputs import named_tensors
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.quiet_gc import collections_put_off
from lens.capture.recorder import Recorder
from lens.capture.selection import make_selection
from lens.capture.sites import Locator
from lens.render.drafting import make_drawing
from lens.render.graphviz_text import to_dot

Job = Callable[[], Any]


class EmptyMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def under_empty_mode(case: Case) -> Any:
    """The floor: a mode that only calls on."""
    with EmptyMode():
        return case.model(*case.args)


def with_hooks(case: Case) -> list[Any]:
    """What people write by hand: a forward hook on every module that keeps its output."""
    kept: list[Any] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: kept.append(output))
        for module in case.model.modules()
    ]
    try:
        case.model(*case.args)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def record(case: Case, save: Any, use: Callable[[Recorder], Any] = Recorder.close) -> Any:
    """Only the recording, up to the end of the forward pass: no graph, no passes. What ``use`` makes of the recorder.

    As in ``lens.trace``, rows are used before the garbage collector is as it was, which would go through them.
    """
    recorder = Recorder(
        AddressBook(case.model), make_selection(save, ()), Locator((MODULE_CALL_FILE,)), composites=False
    )
    for names, tensor in named_tensors(case.model, case.args, {}):
        recorder.leaf(tensor, "input", names)
    recorder.prepare()
    with collections_put_off():
        with registry.find("backends", "torch_function")().record(recorder):
            case.model(*case.args)
        return use(recorder)


#: Name -> what it means, for the table.
MEANINGS = {
    "plain": "the forward pass",
    "mode": "under an empty TorchFunctionMode (the floor)",
    "hooks": "with a forward hook on every module that keeps its output",
    "barest": "the barest recorder in Python: rows of operations, nothing of modules, memory or writes",
    "record": "lens: recording, nothing saved, no graph made",
    "record all": "lens: recording, every value saved",
    "trace": "lens.trace(save='none'): recording, graph, all passes",
    "trace all": "lens.trace(): the same, every value saved",
    "validate": "lens.validate_saved_activations",
    "draw": "the DOT text of a finished history (no forward pass)",
    "tl trace": "torchlens.trace, nothing saved",
    "tl trace all": "torchlens.trace, every value saved",
    "tl validate": "torchlens.validate(scope='forward')",
    "tl draw": "the DOT text of a finished torchlens trace",
}
LENS = tuple(name for name in MEANINGS if not name.startswith("tl "))
TORCHLENS = tuple(name for name in MEANINGS if name.startswith("tl "))
#: Jobs that run no forward pass, so that nothing is to be taken off their time.
WITHOUT_FORWARD = ("draw", "tl draw")


def lens_jobs(case: Case) -> dict[str, Job]:
    """The jobs of this package, and the plain ones."""
    history = lens.trace(case.model, case.args, save="none")
    return {
        "plain": lambda: case.model(*case.args),
        "mode": lambda: under_empty_mode(case),
        "hooks": lambda: with_hooks(case),
        "barest": lambda: record_barely(case),
        "record": lambda: record(case, "none"),
        "record all": lambda: record(case, "all"),
        "trace": lambda: lens.trace(case.model, case.args, save="none"),
        "trace all": lambda: lens.trace(case.model, case.args),
        "validate": lambda: lens.validate_saved_activations(case.model, case.args),
        "draw": lambda: to_dot(make_drawing(history.graph)),
    }


class LayoutAskedError(Exception):
    """TorchLens is about to start the layout program: its text is written."""


def _no_layout(*args: Any, **kwargs: Any) -> None:
    raise LayoutAskedError


def torchlens_jobs(case: Case) -> dict[str, Job]:
    """The same in TorchLens 2.36.1, which leaves torch patched: its jobs run in a process of their own."""
    import torchlens
    from torchlens.options import CaptureOptions
    from torchlens.visualization import _render_dot

    _render_dot._render_utils.run_bounded_subprocess = _no_layout
    nothing = CaptureOptions(layers_to_save="none")
    finished: list[Any] = []
    folder = TemporaryDirectory()

    def draw() -> None:
        if not finished:
            finished.append(torchlens.trace(case.model, case.args, capture=nothing))
        with suppress(LayoutAskedError):
            finished[0].draw(vis_save_only=True, vis_outpath=f"{folder.name}/graph")

    return {
        "tl trace": lambda: torchlens.trace(case.model, case.args, capture=nothing),
        "tl trace all": lambda: torchlens.trace(case.model, case.args),
        "tl validate": lambda: torchlens.validate(case.model, case.args, scope="forward"),
        "tl draw": draw,
    }


def count_ops(case: Case) -> int:
    """Number of operations in the graph."""
    with torch.no_grad():
        return len(lens.trace(case.model, case.args, save="none").graph.ops)
