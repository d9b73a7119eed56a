"""Plugins: what lens brings, and what installed packages add through the entry-point group ``lens.plugins``.

An entry point names a ``Plugin`` manifest, such as ``my_package.lens_plugin:PLUGIN``. Nothing is loaded before it
is asked for, and what cannot be loaded stands in the way of nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, NoReturn

from attrs import field, frozen

from lens.errors import PluginError
from lens.foreign import attempt
from lens.ir.facets import Facet, why_no_facet
from lens.passes.protocol import Pass, why_no_pass
from lens.render.renderer import why_no_renderer
from lens.user_warnings import warn_user

ENTRY_POINT_GROUP = "lens.plugins"
_WHY_NOT: Mapping[str, Callable[[object], str]] = MappingProxyType(
    {"passes": why_no_pass, "renderers": why_no_renderer}
)
#: What one thing of a section is called.
_ONE = {"passes": "pass", "backends": "backend", "renderers": "renderer", "facets": "facet"}


def _all_text(manifest: object, attribute: Any, section: object) -> None:
    """The validator of a section."""
    if not isinstance(section, Mapping):
        raise TypeError(f"{attribute.name} is a {type(section).__name__}, and no dict")
    for part in (*section, *section.values()):
        if not isinstance(part, str):
            raise TypeError(f'{attribute.name} holds {part!r:.80}, where text such as "module:attribute" is to stand')


def _section() -> Any:
    return field(factory=dict, validator=_all_text)


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
    passes: Mapping[str, str] = _section()
    backends: Mapping[str, str] = _section()
    renderers: Mapping[str, str] = _section()
    facets: Mapping[str, str] = _section()


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
    """The built-in plugin, then the installed ones in order of name; those without a manifest with a warning."""
    found = [BUILT_IN]
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        try:
            manifest = _manifest(entry)
        except PluginError as error:
            warnings.warn(f"lens goes without a plugin: {error}", stacklevel=2)
            continue
        found.append(manifest)
        for section, one in _ONE.items():
            for name in getattr(BUILT_IN, section).keys() & getattr(manifest, section).keys():
                what = f"lens has a {one} {name!r} itself, which goes before that of plugin {manifest.name!r}"
                warnings.warn(what, stacklevel=2)
    return tuple(found)


def _manifest(entry: EntryPoint) -> Plugin:
    manifest = _load(entry.value, f"entry point {entry.name!r} of group {ENTRY_POINT_GROUP}")
    if not isinstance(manifest, Plugin):
        raise PluginError(
            f"the entry point {entry.name!r} is a {type(manifest).__name__}, not a Plugin",
            where=entry.value,
            hint="let it name a lens.registry.Plugin",
        )
    return manifest


def find(section: str, name: str) -> Any:
    """The class registered under a name in ``passes``, ``backends``, ``renderers`` or ``facets``.

    Raises:
        PluginError: if nothing is, with the names there are; or if it cannot be loaded, or is not what it should be.
    """
    known = names(section)
    if not (isinstance(name, str) and name in known):
        raise PluginError(
            f"lens knows no {_ONE[section]} {str(name)[:40]!r}",
            where=f"{section}: {', '.join(sorted(known))}",
            hint="check the spelling, or install the package that provides it",
        )
    found = _load(known[name], f"{_ONE[section]} {name!r}")
    why_not = _why_unusable(section, found)
    if why_not:
        raise PluginError(
            f"{_ONE[section]} {name!r} cannot be used: {why_not}",
            where=known[name],
            hint="mend it, or uninstall the package",
        )
    return found


def _why_unusable(section: str, found: object) -> str:
    """Why what is registered in a section has no place there; empty if it has."""
    if section == "facets":
        return why_no_facet(found)
    if not isinstance(found, type):
        return f"it is a {type(found).__name__}, not a class"
    why_not = _WHY_NOT.get(section)
    return why_not(found) if why_not else ""  # what a backend has is known when it is made


def usable(section: str) -> dict[str, Any]:
    """Everything registered in a section that can be used, by name; of the rest a warning."""
    found = {}
    for name in names(section):
        try:
            found[name] = find(section, name)
        except PluginError as error:
            warnings.warn(f"lens goes without a {_ONE[section]}: {error}", stacklevel=3)
    return found


def names(section: str) -> dict[str, str]:
    """Everything registered in a section: name -> ``"module:attribute"``; earlier plugins win, and stand first."""
    merged: dict[str, str] = {}
    for plugin in plugins():
        for name, target in getattr(plugin, section).items():
            merged.setdefault(name, target)
    return merged


def pass_classes() -> Mapping[str, type[Pass]]:
    """All registered passes by name. Each is loaded when it is looked up: PluginError if it cannot be."""
    return _PassClasses()


def facet_classes() -> tuple[type[Facet], ...]:
    """All facet types that plugins add to the built-in ones; of those that cannot be used a warning."""
    return tuple(usable("facets").values())


def providers() -> Mapping[type[Facet], Pass]:
    """Per facet type, the first registered pass that provides it, with default options.

    It is looked for when it is asked for: PluginError if there is none, but a pass that could not be made.
    """
    return _Providers()


class _PassClasses(Mapping[str, "type[Pass]"]):
    def __init__(self) -> None:
        self._names = names("passes")

    def __getitem__(self, name: str) -> type[Pass]:
        if name not in self._names:
            raise KeyError(name)
        found: type[Pass] = find("passes", name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Providers(Mapping["type[Facet]", Pass]):
    def __init__(self) -> None:
        self._classes = pass_classes()
        self._made: dict[str, Pass] = {}

    def __getitem__(self, kind: type[Facet]) -> Pass:
        failures = {}
        for name in self._classes:
            try:
                if kind in self._classes[name].provides:
                    return self._with_defaults(name)
            except PluginError as error:
                failures[name] = error
        for name, failure in failures.items():
            if _package(names("passes")[name]) == _package(kind.__module__):
                raise failure
        for failure in failures.values():
            warn_user(f"lens goes without a pass: {failure}")
        raise KeyError(kind)

    def _with_defaults(self, name: str) -> Pass:
        if name not in self._made:

            def refuse(error: Exception) -> NoReturn:
                raise PluginError(
                    f"pass {name!r} cannot be run for the facet that it provides: {error}",
                    where=names("passes")[name],
                    hint="put it into the pipeline with its options, before what requires the facet",
                ) from error

            self._made[name] = attempt(self._classes[name], refuse)
        return self._made[name]

    def __iter__(self) -> Iterator[type[Facet]]:
        return iter(dict.fromkeys(kind for cls in self._classes.values() for kind in cls.provides))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _package(target: str) -> str:
    """The package of a module, or of ``"module:attribute"``."""
    return target.partition(":")[0].partition(".")[0]


def _load(target: str, what: str) -> Any:
    module_name, _, attribute = target.partition(":")

    def load() -> Any:
        try:
            return getattr(import_module(module_name), attribute)
        except SystemExit as error:
            raise ImportError(f"its module ends the process (SystemExit: {error})") from error

    def refuse(error: Exception) -> NoReturn:
        raise PluginError(
            f"{what} cannot be loaded: {error}",
            where=target,
            hint="mend the manifest, or uninstall the package",
        ) from error

    return attempt(load, refuse)
