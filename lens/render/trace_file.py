"""The file format: one msgpack map with the graph, its facets and, if wanted, the saved values (docs/format.md).

It holds no code and no pickle, and opens without torch; only reading a saved value needs torch.
"""

from __future__ import annotations

import json
import math
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import msgpack
from attrs import evolve, frozen

from lens.errors import FileFormatError, GraphError
from lens.ir.codec import CONVERTER, dump_facet, load_facet, structure
from lens.ir.elements import OpId, ValueId
from lens.ir.facets import Distances, Facet, Labels
from lens.ir.graph import Graph
from lens.ir.layouts import Layout
from lens.ir.payloads import Payload, PayloadStore
from lens.ir.verifier import verify
from lens.render.files import path_of, write_whole, writing
from lens.render.renderer import Renderer, Traced
from lens.render.values import (
    Beside,
    BesideTensor,
    StoredTensor,
    beside_path,
    check_size,
    dtype_name,
    dump_tensor,
    has_data,
    load_tensor,
    load_type,
    plain_tensor,
    write_beside,
)

FORMAT = "lens-trace"
VERSION = 3
#: Python itself calls no deeper than this, so no model does.
_DEEPEST_SCOPE = 1000
#: How msgpack begins a number of four bytes.
_UINT32 = b"\xce"
#: What reading bytes as something that they are not raises.
_DAMAGE: tuple[type[Exception], ...] = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RecursionError,
    GraphError,
)
_TEXT: dict[str, Any] = {"unicode_errors": "surrogatepass"}


class Recorded(Traced, Protocol):
    """A ``ModelHistory``, as far as its file holds it."""

    logging_seconds: float


def write_trace(history: Recorded, path: str | PathLike[str], payloads: bool, beside: bool) -> str:
    """Write a history to a file, which appears whole or not at all, and give its path.

    Args:
        history: The history.
        path: The file.
        payloads: Whether to write the saved values.
        beside: Whether to write them into a file of their own, ``PATH.safetensors``, which is read lazily.

    Raises:
        FileFormatError: if the path cannot be written, or a value does not fit into the file.
    """
    target = path_of(path)
    mark = secrets.token_hex(8) if payloads and beside else ""
    names = _names(history) if payloads else {}
    try:
        with writing("the trace", target, FileFormatError):
            target.parent.mkdir(parents=True, exist_ok=True)
            if mark:
                read = history.payloads.read
                write_beside(beside_path(target.resolve()), ((name, read(v)) for v, name in names.items()), mark)
            write_whole(target, _sealed(_chunks(history, names, payloads, mark)))
    except FileFormatError:
        raise
    except ValueError as error:
        raise FileFormatError(
            f"a value does not fit into the file: {error}",
            where=str(target),
            hint="values of 4 GB and more stand beside the file: history.save(path, beside=True)",
        ) from error
    return str(target)


def graph_document(graph: Graph) -> dict[str, Any]:
    """The graph and its facets as plain data, as they stand in a file."""
    body = CONVERTER.unstructure(evolve(graph, facets=()))
    body.pop("facets", None)
    return {"graph": body, "facets": [list(dump_facet(facet)) for facet in graph.facets]}


def _chunks(history: Recorded, names: dict[ValueId, str], payloads: bool, mark: str) -> Iterator[bytes]:
    """The file in pieces, so that one value at a time is copied."""
    packer, store = msgpack.Packer(**_TEXT), history.payloads
    states, layouts = (store.rng_states, store.layouts) if payloads else ({}, {})
    head = {
        "format": FORMAT,
        "version": VERSION,
        "logging_seconds": history.logging_seconds,
        **graph_document(history.graph),
        "layouts": [[v, CONVERTER.unstructure(layout)] for v, layout in layouts.items()],
        "rng_states": [
            [op, device, *dump_tensor(state)] for op, devices in states.items() for device, state in devices.items()
        ],
        "beside": mark,
    }
    yield packer.pack_map_header(len(head) + 2)
    for key, part in head.items():
        yield packer.pack(key)
        yield packer.pack(part)
    yield packer.pack("values")
    yield packer.pack_array_header(len(names))
    for value, name in names.items():
        payload = store.values[value]
        if mark:
            plain = plain_tensor(payload.read())
            yield packer.pack([value, dtype_name(plain), list(plain.shape), name])
        else:
            yield packer.pack([value, *dump_tensor(payload if isinstance(payload, StoredTensor) else payload.read())])


def _sealed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of the file, and as its last entry the checksum of all that is before it."""
    checksum = 0
    for chunk in chain(chunks, [msgpack.packb("checksum") + _UINT32]):
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    yield checksum.to_bytes(4, "big")


def _names(history: Recorded) -> dict[ValueId, str]:
    """The values to write, with unique names: all with data but the parameters that the model does not return."""
    graph, store = history.graph, history.payloads
    parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"} - {*graph.outputs.values}
    labels: dict[str, ValueId] = {}
    if graph.get(Labels) is not None:
        for row in history.index.rows:
            labels.setdefault(row.name, row.value)
    names = {value: name for name, value in reversed(labels.items())}
    kept = (v for v in store if v not in parameters and has_data(store.values[v]))
    return {v: names.get(v, f"%{v}") for v in kept}


def read_trace(path: str | PathLike[str], facets: tuple[type[Facet], ...] = ()) -> tuple[Graph, PayloadStore, float]:
    """The graph, the saved values and the logging seconds of a file.

    Args:
        path: The file.
        facets: Facet types beyond the built-in ones.

    Raises:
        FileFormatError: if it is not a lens trace, damaged, or of a newer version.
    """
    try:
        data = path_of(path).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"the file cannot be read: {error.strerror}", where=str(path), hint="check the path"
        ) from error
    document = _unpack(data, str(path))
    with _damage_told(str(path)):
        graph = structure(document["graph"], Graph, f"{path}, graph")
        graph = graph.with_facets(*(load_facet(name, body, facets) for name, body in document["facets"]))
        _check(graph)
        return graph, _store(document, graph, path_of(path)), float(document["logging_seconds"])


def _unpack(data: bytes, where: str) -> dict[str, Any]:
    """The map of a file of any version, in the form of the newest. Time and memory are linear in the file's size."""
    with _damage_told(where, msgpack.UnpackException, OverflowError, MemoryError):
        version = _version(data, where)
        if version > 1 and (
            data[-5:-4] != _UINT32 or zlib.crc32(memoryview(data)[:-4]).to_bytes(4, "big") != data[-4:]
        ):
            raise ValueError("its checksum does not fit its bytes")
        walker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
        walker.feed(data)
        walker.skip()  # are all parts there? Else a length that lies would be believed, and room for it made
        document: dict[str, Any] = msgpack.unpackb(data, strict_map_key=version > 1, **_TEXT)
        if version < 2:
            _from_version_1(document)
        if version < 3:
            _from_version_2(document)
        return document


def _version(data: bytes, where: str) -> int:
    """The version, from the first entries alone. Raises FileFormatError if it is no lens trace or a newer one."""
    head = msgpack.Unpacker()
    head.feed(data[:256])
    known: list[Any] = []
    with suppress(ValueError):  # another kind of msgpack
        if head.read_map_header() >= 2:
            known = [head.unpack() for _ in range(4)]
    if known[:3] != ["format", FORMAT, "version"]:
        raise FileFormatError(
            "this is not a lens trace",
            where=where,
            hint="give a file that history.save(path) or `lens trace --save-to` wrote",
        )
    version = known[3]
    if type(version) is not int or not 1 <= version <= VERSION:
        raise FileFormatError(
            f"the file has version {version!r}, this lens reads versions 1 to {VERSION}",
            where=where,
            hint="install a newer lens",
        )
    return version


def _from_version_1(document: dict[str, Any]) -> None:
    """Version 1 had maps by number where version 2 has lists."""
    document["values"] = [[value, *body] for value, body in document["values"].items()]
    document["layouts"] = list(document["layouts"].items())
    states = document["rng_states"].items()
    document["rng_states"] = [[op, device, *body] for op, found in states for device, body in found.items()]
    document["beside"] = ""


def _from_version_2(document: dict[str, Any]) -> None:
    """Up to version 2 distances went over written memory, too: where there is any they are worked out anew."""
    if any(op.get("effects") for op in document["graph"]["ops"]):
        document["facets"] = [facet for facet in document["facets"] if facet[0] != Distances.name]


@contextmanager
def _damage_told(where: str, *more: type[Exception]) -> Iterator[None]:
    """What reading damaged bytes raises (``more`` than other faulty data does), as a FileFormatError."""
    try:
        yield
    except FileFormatError:
        raise
    except _DAMAGE + more as error:
        what = f"the file is damaged: {type(error).__name__}: {error}"
        raise FileFormatError(what, where=where, hint="write it again from a new trace") from error


def _check(graph: Graph) -> None:
    """Bounds that let everything else look at the graph in bounded time, then the rules of graphs."""
    for kind in (*(v.type for v in graph.values), *(p.type for p in graph.meta.parameters)):
        check_size(kind)
    for leaf in graph.leaves:
        if leaf.kind in ("parameter", "buffer") and not leaf.addresses:
            raise ValueError(f"leaf {leaf.id} is a {leaf.kind} without an address")
    depths: list[int] = []
    for scope in graph.scopes:
        inside = scope.parent is not None and 0 <= scope.parent < len(depths)
        depths.append(depths[scope.parent] + 1 if inside and scope.parent is not None else 0)
        if depths[-1] > _DEEPEST_SCOPE:
            raise ValueError(f"scope {scope.id} is {depths[-1]} scopes deep")
    verify(graph)


def _store(document: dict[str, Any], graph: Graph, path: Path) -> PayloadStore:
    mark = document["beside"]
    beside = Beside(str(beside_path(path.resolve())), mark) if isinstance(mark, str) and mark else None
    values: dict[ValueId, Payload] = {}
    for value, dtype, shape, content in document["values"]:
        if beside is not None and isinstance(content, str):
            stored: Payload = BesideTensor(load_type(dtype, shape), content, beside)
        else:
            stored = load_tensor(dtype, shape, content)
        values[ValueId(_number(value, len(graph.values)))] = stored
    states: dict[OpId, dict[str, Any]] = {}
    for op, device, *body in document["rng_states"]:
        if type(device) is not str:
            raise TypeError("the state of a generator of no device")
        states.setdefault(OpId(_number(op, len(graph.ops))), {})[device] = load_tensor(*body)
    layouts = {
        ValueId(_number(value, len(graph.values))): structure(body, Layout, f"{path}, layouts")
        for value, body in document["layouts"]
    }
    return PayloadStore(values, states, layouts=layouts)


def _number(number: Any, count: int) -> int:
    if type(number) is not int or not 0 <= number < count:
        raise ValueError(f"{number!r} names nothing in the graph")
    return number


@frozen
class JsonRenderer(Renderer):
    """The graph and its facets as JSON: what a trace file holds, without the saved values."""

    name = "json"
    suffix = ".json"
    requires = ()

    def render(self, history: Traced) -> str:
        """The text."""
        document = {"format": FORMAT, "version": VERSION, **graph_document(history.graph)}
        try:
            return json.dumps(document, allow_nan=False)
        except ValueError:
            return json.dumps(_for_json(document))


def _for_json(part: Any) -> Any:
    """The same with floats that JSON has not as maps: ``{"float": "nan"}``."""
    if isinstance(part, float):
        return part if math.isfinite(part) else {"float": str(part)}
    if isinstance(part, dict):
        return {key: _for_json(item) for key, item in part.items()}
    return [_for_json(item) for item in part] if isinstance(part, (list, tuple)) else part
