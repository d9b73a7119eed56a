"""Plugins: what lens brings, and what installed packages add through the entry-point group ``lens.plugins``.

An entry point names a ``Plugin`` manifest, such as ``my_package.lens_plugin:PLUGIN``. Nothing is loaded before it
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from attrs import field, frozen

from lens.errors import PluginError
from lens.ir.facets import Facet
from lens.passes.protocol import Pass

ENTRY_POINT_GROUP = "lens.plugins"


@frozen
class Plugin:
    """The manifest of a package that extends lens. Every part is a ``"module:attribute"`` string, loaded when needed.

    Args:
        name: The plugin's name.
        passes: Pass name -> pass class.
        backends: Backend name -> backend class, called without arguments.
        renderers: Renderer name -> renderer class, called with its options.
        facets: Facet name -> facet class, for files and texts that carry it.
    """

    name: str
    passes: Mapping[str, str] = field(factory=dict)
    backends: Mapping[str, str] = field(factory=dict)
    renderers: Mapping[str, str] = field(factory=dict)
    facets: Mapping[str, str] = field(factory=dict)


BUILT_IN = Plugin(
    "lens",
    passes={
        "granularity": "lens.passes.granularity:GranularityPass",
        "orphans": "lens.passes.orphans:OrphansPass",
        "distances": "lens.passes.distances:DistancesPass",
        "conditionals": "lens.passes.conditionals:ConditionalsPass",
        "containment": "lens.passes.containment:ContainmentPass",
        "recurrence": "lens.passes.recurrence:RecurrencePass",
        "labels": "lens.passes.labels:LabelsPass",
    },
    backends={
        "torch_function": "lens.capture.torch_function:TorchFunctionBackend",
        "decoration": "lens.capture.decoration:DecorationBackend",
        "torch_dispatch": "lens.capture.torch_dispatch:TorchDispatchBackend",
    },
    renderers={
        "csv": "lens.render.tables:CsvRenderer",
        "fx": "lens.programs.renderers:FxRenderer",
        "onnx": "lens.programs.renderers:OnnxRenderer",
        "onnx-structure": "lens.render.onnx_structure:OnnxStructureRenderer",
        "dot": "lens.render.picture:DotRenderer",
        "graphml": "lens.render.networks:GraphMLRenderer",
        "json": "lens.render.trace_file:JsonRenderer",
        "mermaid": "lens.render.mermaid:MermaidRenderer",
        "model-explorer": "lens.render.model_explorer:ModelExplorerRenderer",
        "parquet": "lens.render.tables:ParquetRenderer",
    },
)


@cache
def plugins() -> tuple[Plugin, ...]:
    """The built-in plugin, then the installed ones in order of name.

    Raises:
        PluginError: if an entry point cannot be loaded or is no ``Plugin``.
    """
    found = []
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        manifest = _load(entry.value, f"entry point {entry.name!r} of group {ENTRY_POINT_GROUP}")
        if not isinstance(manifest, Plugin):
            raise PluginError(
                f"the entry point {entry.name!r} is a {type(manifest).__name__}, not a Plugin",
                where=entry.value,
                hint="let it name a lens.registry.Plugin",
            )
        found.append(manifest)
    return (BUILT_IN, *found)


def find(section: str, name: str) -> Any:
    """The class registered under a name in ``passes``, ``backends``, ``renderers`` or ``facets``.

    Raises:
        PluginError: if nothing is, with the names there are.
    """
    known = names(section)
    if not (isinstance(name, str) and name in known):
        raise PluginError(
            f"lens knows no {section.removesuffix('s')} {str(name)[:40]!r}",
            where=f"{section}: {', '.join(sorted(known))}",
            hint="check the spelling, or install the package that provides it",
        )
    return _load(known[name], f"{section.removesuffix('s')} {name!r}")


def names(section: str) -> dict[str, str]:
    """Everything registered in a section: name -> ``"module:attribute"``; earlier plugins win."""
    merged: dict[str, str] = {}
    for plugin in reversed(plugins()):
        merged.update(getattr(plugin, section))
    return merged


def pass_classes() -> dict[str, type[Pass]]:
    """All registered passes by name."""
    return {name: find("passes", name) for name in names("passes")}


def facet_classes() -> tuple[type[Facet], ...]:
    """All facet types that plugins add to the built-in ones."""
    return tuple(find("facets", name) for name in names("facets"))


def providers() -> dict[type[Facet], Pass]:
    """Per facet type, the first registered pass that provides it, with default options."""
    found: dict[type[Facet], Pass] = {}
    for one in pass_classes().values():
        for kind in one.provides:
            found.setdefault(kind, one())
    return found


def _load(target: str, what: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{what} cannot be loaded: {error}",
            where=target,
            hint="mend the manifest, or uninstall the package",
        ) from error
