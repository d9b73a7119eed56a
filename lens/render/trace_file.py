"""The file format: one msgpack map with the graph, its facets and, if wanted, the saved values.

It holds no code and no pickle, and opens without torch; only reading a saved value needs torch.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
from attrs import evolve, frozen

from lens.errors import FileFormatError, GraphError, PayloadError
from lens.ir.codec import CONVERTER, dump_facet, load_facet, structure
from lens.ir.elements import OpId, ValueId
from lens.ir.facets import Facet
from lens.ir.graph import Graph
from lens.ir.layouts import Layout
from lens.ir.payloads import Payload, PayloadStore, Stale
from lens.ir.types import DTYPES, TensorType
from lens.ir.verifier import verify

if TYPE_CHECKING:
    from lens.history import ModelHistory

FORMAT = "lens-trace"
VERSION = 1


@frozen(eq=False)
class StoredTensor:
    """A saved value as it stands in a file: its type, and its elements in row-major order, little-endian."""

    type: TensorType
    data: bytes

    def read(self) -> object:
        """The tensor, on the CPU. Raises PayloadError if torch is not installed."""
        try:
            import torch
        except ImportError as error:
            raise PayloadError(
                "reading a saved value needs torch",
                where=str(self.type),
                hint="pip install torch; graph, labels and pictures work without it",
            ) from error
        dtype = getattr(torch, self.type.dtype)
        if not self.data:
            return torch.empty(self.type.shape, dtype=dtype)
        flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        return flat.view(dtype).reshape(self.type.shape)


def write_trace(history: ModelHistory, path: str | PathLike[str], payloads: bool) -> str:
    """Write a history to a file, which appears whole or not at all, and give its path.

    Raises:
        FileFormatError: if the path cannot be written.
    """
    graph = history.graph
    document = {
        "format": FORMAT,
        "version": VERSION,
        "graph": CONVERTER.unstructure(evolve(graph, facets=())),
        "facets": [list(dump_facet(facet)) for facet in graph.facets],
        "logging_seconds": history.logging_seconds,
        "values": _dump_values(graph, history.payloads) if payloads else {},
        "rng_states": _dump_states(history.payloads) if payloads else {},
        "layouts": _dump_layouts(history.payloads) if payloads else {},
    }
    document["graph"].pop("facets", None)
    data = msgpack.packb(document)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise FileFormatError(
            f"the trace cannot be written: {error.strerror}",
            where=str(target),
            hint="choose a path in a folder that you may write to",
        ) from error
    return str(target)


def read_trace(path: str | PathLike[str], facets: tuple[type[Facet], ...] = ()) -> tuple[Graph, PayloadStore, float]:
    """The graph, the saved values and the logging seconds of a file.

    Args:
        path: The file.
        facets: Facet types beyond the built-in ones.

    Raises:
        FileFormatError: if it is not a lens trace, damaged, or of a newer version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"the file cannot be read: {error.strerror}", where=str(path), hint="check the path"
        ) from error
    document = _unpack(data, str(path))
    try:
        graph = structure(document["graph"], Graph, f"{path}, graph")
        loaded = [load_facet(name, body, facets) for name, body in document["facets"]]
        values = _load_values(document["values"], len(graph.values))
        layouts = {ValueId(v): structure(body, Layout, f"{path}, layouts") for v, body in document["layouts"].items()}
        store = PayloadStore(values, _load_states(document["rng_states"]), layouts=layouts)
        seconds = float(document["logging_seconds"])
        graph = graph.with_facets(*loaded)
        verify(graph)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, GraphError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise _damaged(str(path), f"{type(error).__name__}: {error}") from error
    return graph, store, seconds


def _unpack(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = msgpack.unpackb(data, use_list=True, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise _damaged(where, str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FileFormatError(
            "this is not a lens trace",
            where=where,
            hint="give a file that history.save(path) or `lens trace --save-to` wrote",
        )
    version = document.get("version")
    if version != VERSION:
        raise FileFormatError(
            f"the file has version {version!r}, this lens reads version {VERSION}",
            where=where,
            hint="install a newer lens",
        )
    return document


def _damaged(where: str, what: str) -> FileFormatError:
    return FileFormatError(f"the file is damaged: {what}", where=where, hint="write it again from a new trace")


def _dump_values(graph: Graph, payloads: PayloadStore) -> dict[int, list[Any]]:
    """All saved values but the parameters, which are the model's and not the run's."""
    parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}
    kept = (v for v in payloads if v not in parameters and not isinstance(payloads.values[v], Stale))
    return {v: _dump_tensor(payloads.read(v)) for v in kept}


def _dump_states(payloads: PayloadStore) -> dict[int, dict[str, list[Any]]]:
    return {
        op: {device: _dump_tensor(state) for device, state in states.items()}
        for op, states in payloads.rng_states.items()
    }


def _dump_layouts(payloads: PayloadStore) -> dict[int, Any]:
    return {v: CONVERTER.unstructure(layout) for v, layout in payloads.layouts.items()}


def _dump_tensor(tensor: Any) -> list[Any]:
    """A tensor as [dtype, shape, bytes]."""
    plain = plain_tensor(tensor)
    size = plain.numel() * plain.element_size()
    data = ctypes.string_at(plain.data_ptr(), size) if size else b""
    return [str(plain.dtype).removeprefix("torch."), list(plain.shape), data]


def plain_tensor(tensor: Any) -> Any:
    """A tensor on the CPU, contiguous; sparse, nested and quantized ones as what they are when made dense."""
    plain = tensor.detach()
    if plain.is_nested:
        plain = plain.to_padded_tensor(0.0)
    if plain.is_quantized:
        plain = plain.dequantize()
    if str(plain.layout) != "torch.strided":
        plain = plain.to_dense()
    return plain.cpu().resolve_conj().resolve_neg().contiguous()


def _load_tensor(body: Any) -> StoredTensor:
    dtype, shape, data = body
    if dtype not in DTYPES or not isinstance(data, bytes):
        raise ValueError("a saved value of an unknown kind")
    kind = TensorType(dtype, tuple(shape))
    if any(type(n) is not int or n < 0 for n in shape) or kind.nbytes != len(data):
        raise ValueError("a saved value whose size does not fit its type")
    return StoredTensor(kind, data)


def _load_values(body: dict[Any, Any], count: int) -> dict[ValueId, Payload]:
    if any(type(value) is not int or not 0 <= value < count for value in body):
        raise ValueError("a saved value for a tensor that does not exist")
    return {ValueId(value): _load_tensor(item) for value, item in body.items()}


def _load_states(body: dict[Any, Any]) -> dict[OpId, dict[str, Any]]:
    return {OpId(op): {device: _load_tensor(item) for device, item in states.items()} for op, states in body.items()}
