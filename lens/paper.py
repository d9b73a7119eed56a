"""The four functions of the paper ("Summary of user-facing functions"), on top of ``lens.trace``."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn

from lens.capture.selection import Save
from lens.history import ModelHistory
from lens.render.images import format_of
from lens.render.picture import DrawOptions, Options
from lens.session import trace
from lens.validation import validation_report

if TYPE_CHECKING:
    from typing_extensions import Unpack


def get_model_activations(
    model: nn.Module,
    inputs: Any,
    which_layers: Save = "all",
    *,
    kwargs: dict[str, Any] | None = None,
    vis_opt: str | PathLike[str] | None = None,
    seed: int | None = None,
) -> ModelHistory:
    """The activations and metadata of a model's layers.

    Args:
        model: Any module.
        inputs: A tuple is the positional arguments; anything else is one argument.
        which_layers: ``"all"``, ``"none"``, or which to save; see ``save`` of ``lens.trace``.
        kwargs: Keyword arguments.
        vis_opt: Where to draw the graph, if anywhere.
        seed: Set before the run; by default the generators are left as they are.
    """
    history = trace(model, inputs, kwargs, save=which_layers, seed=seed)
    if vis_opt is not None:
        history.draw(vis_opt)
    return history


def get_model_structure(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
) -> ModelHistory:
    """The metadata of a model's layers, without saving any activation. Arguments as in ``get_model_activations``."""
    return trace(model, inputs, kwargs, save="none", seed=seed)


def show_model_graph(
    model: nn.Module,
    inputs: Any,
    path: str | PathLike[str] = "model.svg",
    *,
    kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    **options: Unpack[DrawOptions],
) -> str:
    """Draw the model's graph, without saving any activation, and give the path of the picture.

    Args:
        model, inputs, kwargs, seed: As in ``get_model_activations``.
        path: The picture; its ending chooses the format (svg, png, pdf, dot).
        **options: Such as ``view="rolled"``, ``depth=2``, ``theme="dark"``: see ``lens.render.picture.Options``.

    Raises:
        RenderError: if an option or the format is unknown, or the picture cannot be made. The model does not run then
            where that can be told before.
    """
    format_of(path)
    Options.of(options)
    return get_model_structure(model, inputs, kwargs=kwargs, seed=seed).draw(path, **options)


def validate_saved_activations(
    model: nn.Module,
    inputs: Any,
    kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
) -> bool:
    """Whether all activations that lens saves of a model on an input are right.

    Compares the traced output with a plain forward pass from the same state and random numbers, every operation with
    a second run of its own, and the metadata with what it should be; asks whether an operation is missing. The report
    with the reasons is ``lens.validation_report(model, inputs)``. The model's buffers and the random number generators
    end as after one forward pass. Arguments as in ``get_model_activations``.
    """
    return validation_report(model, inputs, kwargs, seed=seed).ok
