"""The session: from a model and its inputs to a history; the four functions of the paper stand in ``lens.paper``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from torch import nn

from lens import registry
from lens.capture.backend import CaptureBackend, chosen_backend
from lens.capture.compiled import never_compiled
from lens.capture.inputs import check_call, check_seed, named, positional
from lens.capture.quiet_gc import collections_put_off
from lens.capture.selection import Save, Transform
from lens.capture.stopping import StopAt
from lens.capture.targets import gathered, root_of
from lens.errors import InputError
from lens.history import ModelHistory
from lens.passes.pipeline import parse_pipeline
from lens.passes.protocol import Pass, why_no_pass
from lens.run import Run, Settings

#: The pipeline that ``trace`` runs.
DEFAULT_PIPELINE = "granularity{level=leaf},orphans,distances,conditionals,containment,recurrence,labels"
Passes: TypeAlias = "str | Sequence[Pass]"
FastPaths: TypeAlias = Literal["keep", "open"]


@never_compiled
def trace(
    model: nn.Module | Callable[..., Any],
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    *,
    save: Save = "all",
    transform: Transform | None = None,
    detach: bool = False,
    stop_at: StopAt | None = None,
    backend: str | CaptureBackend = "torch_function",
    passes: Passes = DEFAULT_PIPELINE,
    seed: int | None = None,
    fast_paths: FastPaths = "keep",
) -> ModelHistory:
    """Run a model once, as it is, and give the history of all it did (paper, "Logging the forward pass").

    Args:
        model: Any module; it is not changed, and runs exactly once. Or a method of one, or a function: then the modules
            that it uses are found in its closure and globals, and addressed by the names that they have there.
        args, kwargs: Its arguments; a tuple is the positional ones, anything else, a list too, is one argument.
        save: Which tensors to keep: ``"all"``, ``"none"``, or one or a list of: labels, module addresses, ordinals,
            patterns of labels or addresses (``"relu_*"``, ``"layer?.*.conv1"``), layer types (``"relu"``; an address
            that reads alike wins), functions of the running operation (``lambda op: op.type == "relu"``). Only they are
            held in memory; but, until the run ends, for a label every tensor of its type, for an ordinal all.
        transform: What to keep in the place of a tensor: a dtype (of floating point tensors) or device to move it to,
            or what a function makes of it, such as ``lambda t: t.mean((-2, -1))``; it must not write to it. Parameters
            and buffers stay as they are; shapes and sizes that the history tells are those of the model's own tensors.
        detach: Cut what is kept off from autograd, whose graph otherwise lives as long as the history.
        stop_at: End the forward pass when all of these have come: modules that return (``"layer2"``, ``"block:3"``,
            patterns), operations of a type (``"flatten"``) or for which a function is true; ``"saved"``: all modules
            in ``save``. The history then has no outputs; ``history.graph.meta.stopped`` says where it ended.
        backend: The capture backend: its name (``lens.capture.backends()`` tells what there is), or one of your own.
        passes: The analysis: a pipeline as text, or passes.
        seed: Set before the run with ``torch.manual_seed``; by default the generators are left as they are.
        fast_paths: ``"keep"``: torch's fused attention in eval mode, as in a plain run; ``"open"``: what it is made of.

    Raises:
        InputError: the model, its arguments, ``save``, ``transform`` or ``stop_at`` cannot be used; or a function among
            these raised, which ends the run: the error names the operation, its line and the tensor.
        BackendError, PassError: the backend is unknown or unavailable here; a pass is unknown or fails.
        Exception: the model's own, unchanged, with the history up to there as its attribute ``lens_history``.
    """
    positional_args, named_args = positional(args), named(kwargs)
    check_call(model, positional_args, named_args, functions=True)
    settings = _settings(backend, passes, fast_paths, save, transform, detach, stop_at, seed)
    run = Run(root_of(model), settings)
    with collections_put_off(), run:
        run.call(model, positional_args, named_args)
    assert run.history is not None
    return run.history


@contextmanager
def tracing(
    model: nn.Module | Mapping[str, nn.Module] | None = None,
    *,
    save: Save = "all",
    transform: Transform | None = None,
    detach: bool = False,
    backend: str | CaptureBackend = "torch_function",
    passes: Passes = DEFAULT_PIPELINE,
    seed: int | None = None,
    fast_paths: FastPaths = "keep",
) -> Iterator[ModelHistory]:
    """Record a block of code that is not a single call: ``with lens.tracing(model) as history: ...``.

    The history can be used when the block has ended. Tensors that are met for the first time in the block are its
    inputs; results that are still there at its end (what ``save`` keeps is) and that nothing read are its outputs. The
    modules that the block calls are those that its operations belong to, as the submodules of a model are.

    Args:
        model: The module, or several by name, whose parts give tensors and modules their addresses; None if there is
            none.
        save, transform, detach, backend, passes, seed, fast_paths: As in ``lens.trace``.

    Raises:
        InputError: an argument cannot be used, or the history is used inside the block.
        BackendError, PassError: as for ``lens.trace``.

    An exception of the block comes through unchanged, with the history up to there as its attribute ``lens_history``.
    """
    root = model if isinstance(model, nn.Module) else gathered("Block", {} if model is None else model)
    run = Run(root, _settings(backend, passes, fast_paths, save, transform, detach, None, seed))
    history = _Unfinished.__new__(_Unfinished)
    try:
        with collections_put_off(), run, run.block():
            yield history
    finally:
        history.__class__ = _Broken
    assert run.history is not None
    vars(history).update(vars(run.history))
    history.__class__ = ModelHistory  # type: ignore[assignment]  # from now on it is one like any other


class _Unfinished(ModelHistory):
    """What a history is inside its block."""

    _what = "the history of a block can be used when the block has ended"
    _hint = "move this below the block"
    _shown = "<ModelHistory of a block that has not ended>"

    def __getattr__(self, name: str) -> Any:
        raise InputError(self._what, where="with lens.tracing(...) as history", hint=self._hint)

    def __repr__(self) -> str:
        return self._shown


class _Broken(_Unfinished):
    """What the history of a block stays if an exception ended the block."""

    _what = "the block of this history was ended by an exception"
    _hint = "the history up to there, if it could be made, is an attribute of the exception: error.lens_history"
    _shown = "<ModelHistory of a block that an exception ended>"


@lru_cache(maxsize=64)  # to read it again takes 0.1 to 0.3 ms per trace
def _parsed(text: str) -> tuple[Pass, ...]:
    return parse_pipeline(text, registry.pass_classes())


def _listed(passes: object) -> tuple[Pass, ...]:
    items = tuple(passes) if isinstance(passes, (list, tuple)) else (passes,)
    for item in items:
        why_not = "it is a class" if isinstance(item, type) else why_no_pass(item)
        if why_not:
            name = item.__name__ if isinstance(item, type) else type(item).__name__
            raise InputError(
                f"passes cannot be or hold a {name}: {why_not}",
                where="passes=",
                hint='give a pipeline as text such as "orphans,recurrence,labels", or a list of instances of passes',
            )
    return items


def _settings(
    backend: str | CaptureBackend,
    passes: Passes,
    fast_paths: FastPaths,
    save: Save,
    transform: Transform | None,
    detach: bool,
    stop_at: StopAt | None,
    seed: int | None,
) -> Settings:
    if fast_paths not in ("keep", "open"):
        raise InputError(f"fast_paths cannot be {fast_paths!r}", hint='give "keep" or "open"')
    check_seed(seed)
    chosen = chosen_backend(backend)
    pipeline = _parsed(passes) if isinstance(passes, str) else _listed(passes)
    return Settings(chosen, pipeline, save, transform, detach, stop_at, seed, fast_paths)
