"""The libraries of the zoo: which models each has and how they are built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from attrs import frozen

from lens.model_specs import ModelCall, import_torchvision


@frozen
class Library:
    """A source of models.

    Args:
        module: The module of this package with its recipes, loaded when asked for.
        names, build, feedforward: The functions there: of a flag whether all members of a family are wanted; of a
            name; of a name, or None if nothing is known of recurrence.
        packages: What to import before processes are forked, because it takes seconds.
    """

    module: str
    names: str = "names"
    build: str = "build"
    feedforward: str | None = None
    packages: tuple[str, ...] = ()

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the recipes. Raises ImportError if the library is not installed."""
        if find_spec("torchvision"):
            import_torchvision()  # before anything that imports it
        return getattr(import_module(f"lens_zoo.{self.module}"), name)  # type: ignore[no-any-return]


LIBRARIES = {
    "handwritten": Library("handwritten", feedforward="is_feedforward"),
    "torchvision": Library(
        "vision_models", "torchvision_names", "build_torchvision", "torchvision_is_feedforward", ("torchvision",)
    ),
    "timm": Library("vision_models", "timm_names", "build_timm", "timm_is_feedforward", packages=("timm",)),
    "transformers": Library("transformers_models", "model_types", packages=("transformers.modeling_utils",)),
    "torch_geometric": Library("graph_models", packages=("torch_geometric.nn",)),
}


def recipes(libraries: list[str], everything: bool) -> tuple[list[str], dict[str, str]]:
    """Names of all models, ``library:model``, and the libraries that are not here with the reason. Imports them."""
    found: list[str] = []
    missing: dict[str, str] = {}
    for name in libraries:
        library = LIBRARIES[name]
        try:
            names = library.function(library.names)(everything)
            for package in library.packages:
                import_module(package)
            found += [f"{name}:{model}" for model in names]
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


def builder(recipe: str) -> Callable[[], ModelCall]:
    """The function that builds the model of a recipe."""
    name, _, model = recipe.partition(":")
    library = LIBRARIES[name]
    return partial(library.function(library.build), model)


def is_feedforward(recipe: str) -> bool:
    """Whether it is known that no layer of the model recurs."""
    name, _, model = recipe.partition(":")
    library = LIBRARIES[name]
    return library.feedforward is not None and bool(library.function(library.feedforward)(model))
