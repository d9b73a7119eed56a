"""The four functions of the paper ("Summary of user-facing functions"), on top of ``lens.trace``."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypedDict, cast

from torch import nn

from lens.capture.backend import CaptureBackend
from lens.capture.selection import Save, Transform
from lens.capture.stopping import StopAt
from lens.errors import InputError, nearest
from lens.history import ModelHistory
from lens.render.images import format_of
from lens.render.picture import DrawOptions, Options
from lens.session import FastPaths, Passes, trace
from lens.validation import validation_report

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RunOptions(TypedDict, total=False):
    """How the model is run, as keywords; see ``lens.trace``."""

    stop_at: StopAt | None
    backend: str | CaptureBackend
    passes: Passes
    fast_paths: FastPaths


class ValueOptions(RunOptions, total=False):
    """How the model is run, and what is kept of it."""

    transform: Transform | None
    detach: bool


class ActivationOptions(ValueOptions, DrawOptions, total=False):
    """All of that, and the options of the picture; see ``lens.render.picture.Options``."""


class GraphOptions(RunOptions, DrawOptions, total=False):
    """How the model is run, and the options of the picture."""


def get_model_activations(
    model: nn.Module,
    inputs: Any,
    which_layers: Save = "all",
    *,
    kwargs: dict[str, Any] | None = None,
    vis_opt: str | PathLike[str] | None = None,
    seed: int | None = None,
    **options: Unpack[ActivationOptions],
) -> ModelHistory:
    """The activations and metadata of a model's layers.

    Args:
        model: Any module.
        inputs: A tuple is the positional arguments; anything else is one argument.
        which_layers: ``"all"``, ``"none"``, or which to save; see ``save`` of ``lens.trace``.
        kwargs: Keyword arguments.
        vis_opt: Where to draw the graph, if anywhere; ``"rolled"`` and ``"unrolled"`` draw this view of it into
            ``model.svg``, ``"none"`` nothing.
        seed: Set before the run; by default the generators are left as they are.
        **options: ``transform``, ``detach``, ``stop_at``, ``backend``, ``passes``, ``fast_paths`` as in ``lens.trace``;
            for the picture ``view``, ``depth`` and all others of ``lens.render.picture.Options``.

    Raises:
        InputError, RenderError: there is no such option, or it cannot be used; then the model does not run. Otherwise
            as ``lens.trace`` and ``history.draw``.
    """
    run, drawn = cast(ValueOptions, _of(ValueOptions, options)), cast(DrawOptions, _of(DrawOptions, options))
    _check(ActivationOptions, options, drawn)
    path = None if vis_opt == "none" else vis_opt
    if path in ("rolled", "unrolled"):
        drawn["view"], path = ("rolled" if path == "rolled" else "unrolled"), "model.svg"
    if path is not None:
        format_of(path)
    elif drawn:
        raise InputError(f"{next(iter(drawn))}= is for a picture", where="vis_opt=", hint='add vis_opt="model.svg"')
    history = trace(model, inputs, kwargs, save=which_layers, seed=seed, **run)
    if path is not None:
        history.draw(path, **drawn)
    return history


def get_model_structure(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    **options: Unpack[RunOptions],
) -> ModelHistory:
    """The metadata of a model's layers, without saving any activation.

    Args:
        model, inputs, kwargs, seed: As in ``get_model_activations``.
        **options: ``stop_at``, ``backend``, ``passes``, ``fast_paths`` as in ``lens.trace``.

    Raises:
        InputError: there is no such option; then the model does not run. Otherwise as ``lens.trace``.
    """
    _check(RunOptions, options)
    return trace(model, inputs, kwargs, save="none", seed=seed, **options)


def show_model_graph(
    model: nn.Module,
    inputs: Any,
    path: str | PathLike[str] = "model.svg",
    *,
    kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    **options: Unpack[GraphOptions],
) -> str:
    """Draw the model's graph, without saving any activation, and give the path of the picture.

    Args:
        model, inputs, kwargs, seed: As in ``get_model_activations``.
        path: The picture; its ending chooses the format (svg, png, pdf, dot).
        **options: Such as ``view="rolled"``, ``depth=2``, ``theme="dark"``: see ``lens.render.picture.Options``; and
            ``stop_at``, ``backend``, ``passes``, ``fast_paths`` as in ``lens.trace``.

    Raises:
        InputError, RenderError: an option or the format is unknown, or the picture cannot be made. The model does not
            run then where that can be told before.
    """
    format_of(path)
    run, drawn = cast(RunOptions, _of(RunOptions, options)), cast(DrawOptions, _of(DrawOptions, options))
    _check(GraphOptions, options, drawn)
    return get_model_structure(model, inputs, kwargs=kwargs, seed=seed, **run).draw(path, **drawn)


def validate_saved_activations(
    model: nn.Module,
    inputs: Any,
    kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    backend: str | CaptureBackend = "torch_function",
) -> bool:
    """Whether all activations that lens saves of a model on an input are right.

    Compares the traced output with a plain forward pass from the same state and random numbers, every operation with
    a second run of its own, and the metadata with what it should be; asks whether an operation is missing. The report
    with the reasons is ``lens.validation_report(model, inputs)``. The model's buffers and the random number generators
    end as after one forward pass. Arguments as in ``get_model_activations``.
    """
    return validation_report(model, inputs, kwargs, seed=seed, backend=backend).ok


def _of(kind: type[Any], options: Mapping[str, object]) -> dict[str, object]:
    """Those of the options that are of a kind."""
    return {name: value for name, value in options.items() if name in kind.__annotations__}


def _check(kind: type[Any], options: Mapping[str, object], drawn: DrawOptions | None = None) -> None:
    """Raises InputError if there is no such option, RenderError if one of the picture cannot be used."""
    known = sorted(kind.__annotations__)
    for name in options:
        if name not in known:
            raise InputError(f"there is no option {name!r}", where=f"{name}=", hint=f"give {nearest(name, known)}")
    Options.of(drawn or {})
