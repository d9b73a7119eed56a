"""Plain data for the classes of the IR: what the text form and the file format share.

Records become dicts of their fields (defaults left out), templates become atoms or one-key dicts.
Reading checks types strictly, so that data from outside cannot smuggle in surprises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, get_args, get_origin

import cattrs

from lens.errors import FileFormatError, RenderError
from lens.foreign import Raised, attempt
from lens.ir.elements import LEAF_KINDS, LeafKind
from lens.ir.facets import BUILT_IN, Facet, UnknownFacet, why_no_facet
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template, one_nan
from lens.user_warnings import warn_user

_MAX_DEPTH = 200


def _strict(kind: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
        return value

    return structure


def _strict_float(value: Any, _: Any) -> float:
    if type(value) not in (float, int):
        raise TypeError(f"float expected, {type(value).__name__} found")
    return float(value)


def dump_template(template: Any) -> Any:
    """A template as plain data."""
    if template is None or isinstance(template, (bool, float, str)):
        return template
    match template:
        case int():
            return template if -(2**63) <= template < 2**63 else {"int": [str(template)]}
        case complex():
            return {"complex": [template.real, template.imag]}
        case Slot(index):
            return {"slot": index}
        case Seq(kind, items):
            return {"seq": [kind, *map(dump_template, items)]}
        case Map(kind, items):
            return {"map": [kind, *([dump_template(k), dump_template(v)] for k, v in items)]}
        case Slice(start, stop, step):
            return {"slice": [dump_template(start), dump_template(stop), dump_template(step)]}
        case Symbol(kind, name):
            return {"symbol": [kind, name]}
        case Opaque(kind, text, index):
            return {"opaque": [kind, text, index]}
    raise TypeError(f"not a template: {type(template).__name__}")


def load_template(data: Any, depth: int = 0) -> Template:
    """The template that ``dump_template`` wrote. Raises TypeError or ValueError on anything else."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return one_nan(data) if isinstance(data, float) else data
    if depth > _MAX_DEPTH or not isinstance(data, dict) or len(data) != 1:
        raise TypeError("not a template")
    ((kind, body),) = data.items()
    if kind == "slot" and type(body) is int:
        return Slot(body)
    if not isinstance(body, (list, tuple)):
        raise TypeError(f"not the body of a {kind}")
    inner = [] if kind in ("symbol", "opaque", "int") else body
    match kind, *body:
        case "int", str(digits):
            return int(digits)
        case "complex", float(real), float(imag):
            return complex(real, imag)
        case "seq", str(name), *_:
            return Seq(name, tuple(load_template(x, depth + 1) for x in inner[1:]))
        case "map", str(name), *_:
            pairs = ((load_template(k, depth + 1), load_template(v, depth + 1)) for k, v in inner[1:])
            return Map(name, tuple(pairs))
        case "slice", _, _, _:
            return Slice(*(load_template(x, depth + 1) for x in inner))
        case "symbol", str(name), str(text):
            return Symbol(name, text)
        case "opaque", str(name), str(text), int(index):
            return Opaque(name, text, index)
    raise TypeError(f"not a template: {kind}")


def _strict_tuple(kind: Any, converter: cattrs.BaseConverter) -> Callable[[Any, Any], Any]:
    """How to read a tuple: from a list, and nothing else that Python can iterate over."""
    first, *rest = get_args(kind)
    if rest == [...]:
        read_item = converter.get_structure_hook(first)

        def read_all(value: Any, _: Any) -> Any:
            if type(value) is not list and type(value) is not tuple:
                raise TypeError(f"a list expected, {type(value).__name__} found")
            return tuple([read_item(item, first) for item in value])

        return read_all
    parts = [(converter.get_structure_hook(part), part) for part in (first, *rest)]

    def read_each(value: Any, _: Any) -> Any:
        if type(value) not in (list, tuple) or len(value) != len(parts):
            raise TypeError(f"a list of {len(parts)} expected, {type(value).__name__} found")
        return tuple([read(item, part) for (read, part), item in zip(parts, value, strict=True)])

    return read_each


def _make_converter() -> cattrs.Converter:
    """cattrs with strict atoms, templates, and unknown fields refused."""
    converter = cattrs.Converter(omit_if_default=True, forbid_extra_keys=True, detailed_validation=False)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(float, _strict_float)
    converter.register_structure_hook_factory(_is_tuple, _strict_tuple)
    converter.register_structure_hook_func(lambda kind: kind is Facet, _no_facet)
    converter.register_structure_hook_func(lambda kind: bool(kind == LeafKind), _leaf_kind)
    converter.register_structure_hook_func(_is_template, lambda data, _: load_template(data))
    converter.register_unstructure_hook_func(_is_template, dump_template)
    return converter


def _is_template(kind: Any) -> bool:
    return bool(kind == Template)


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def _leaf_kind(value: Any, _: Any) -> LeafKind:
    for kind in LEAF_KINDS:
        if value == kind:
            return kind
    raise ValueError(f"there is no kind of leaf {value!r}")


def _no_facet(value: Any, _: Any) -> Any:
    raise TypeError("facets stand beside the graph, with their names")


CONVERTER = _make_converter()


def dump_facet(facet: Facet) -> tuple[str, Any]:
    """A facet as its name and plain data. Raises RenderError if it holds something that is none."""
    if isinstance(facet, UnknownFacet):
        return facet.original, json.loads(facet.fields)
    name, why_not = facet.name, why_no_facet(type(facet))
    if why_not:
        raise RenderError(
            f"facet {name!r:.60} has no form in files and text: {why_not}",
            where=f"class {type(facet).__qualname__}",
            hint='give it a name of its own, such as name: ClassVar[str] = "my_facet"',
        )

    def refuse(error: Exception) -> NoReturn:
        raise RenderError(
            f"facet {name!r} has fields that are not what they are declared as: {Raised.of(error)}",
            where=f"facet {name}",
            hint=_PLAIN_FIELDS,
        ) from error

    data = attempt(lambda: CONVERTER.unstructure(facet), refuse)
    strange = next(_strange(data), None)
    if strange is not None:
        raise RenderError(
            f"facet {name!r} holds {strange}, for which files and text have no form",
            where=f"facet {name}",
            hint=_PLAIN_FIELDS,
        )
    return name, data


_PLAIN_FIELDS = "give its fields as numbers, text, lists and dicts with keys of text"
_PLAIN = frozenset({type(None), bool, int, float, str})


def _strange(data: Any) -> Iterator[str]:
    """What in data is not plain, in words."""
    if isinstance(data, dict):
        yield from (f"a {type(key).__name__}" for key in data if not isinstance(key, str))
        yield from _strange([*data.values()])
    elif isinstance(data, (list, tuple)):
        kinds = set(map(type, data))
        if not kinds <= _PLAIN:
            for item in data:
                yield from _strange(item)
        elif int in kinds:  # at the speed of C: columns are long
            numbers = data if kinds == {int} else [item for item in data if type(item) is int]
            yield from _too_large(min(numbers), max(numbers))
    elif not isinstance(data, tuple(_PLAIN)):
        yield f"a {type(data).__name__}"
    elif isinstance(data, int):
        yield from _too_large(data)


def _too_large(*numbers: int) -> Iterator[str]:
    if not all(-(2**63) <= number < 2**64 for number in numbers):
        yield "an int of more than 64 bits"


def load_facet(name: str, data: Any, kinds: Iterable[type[Facet]] = ()) -> Facet:
    """The facet of this name; an ``UnknownFacet`` if its type is neither built in nor among ``kinds``.

    One of these that cannot be made of the data is left as it is, too, with a warning. Raises FileFormatError if the
    data do not fit a type that is built in.
    """
    built_in = next((kind for kind in BUILT_IN if kind.name == name), None)
    if built_in is not None:
        facet: Facet = structure(data, built_in, f"facet {name}")
        return facet
    for kind in kinds:
        if kind.name == name:
            made = attempt(lambda: CONVERTER.structure(data, kind))  # noqa: B023  # called at once
            if not isinstance(made, Raised):
                return made
            warn_user(f"facet {name!r} is kept as it was written, as no {kind.__qualname__} can be made of it: {made}")
            break
    return UnknownFacet(name, json.dumps(data))


def structure(data: Any, kind: Any, where: str) -> Any:
    """Plain data as an IR record. Raises FileFormatError if they do not fit."""
    try:
        return CONVERTER.structure(data, kind)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        RecursionError,
        cattrs.BaseValidationError,
        cattrs.ForbiddenExtraKeysError,
    ) as error:
        raise FileFormatError(
            f"the data do not describe a {getattr(kind, '__name__', kind)}: {error}",
            where=where,
            hint="the text or file is damaged, or was written by another version of lens",
        ) from error
