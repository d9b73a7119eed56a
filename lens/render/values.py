"""Saved values as they stand in files: in a trace file itself, or beside it as safetensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lens.errors import FileFormatError, PayloadError
from lens.ir.payloads import Held, Payload, Stale, has_elements
from lens.ir.types import DTYPES, TensorType
from lens.render.files import replacing

if TYPE_CHECKING:
    import torch

#: More dimensions than any tensor has; sizes of hostile shapes would take too long.
_MOST_DIMENSIONS = 1000
#: What safetensors can say; values of other dtypes stand there as bytes, and their dtype in the trace file.
_BESIDE_DTYPES = frozenset(
    {"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
#: What msgpack can say of the length of bytes.
_MOST_BYTES = 2**32 - 1
_INSTALL = "pip install 'lens-trace[export]'"


@frozen(eq=False)
class StoredTensor:
    """A saved value as it stands in a trace file: its type, and its elements in row-major order, little-endian."""

    type: TensorType
    data: bytes

    def read(self) -> object:
        """The tensor, on the CPU. Raises PayloadError if torch is not installed."""
        torch = _torch(self.type)
        dtype = getattr(torch, self.type.dtype)
        if not self.data:
            return torch.empty(self.type.shape, dtype=dtype)
        flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        return flat.view(dtype).reshape(self.type.shape)


@frozen(slots=False, eq=False)
class Beside:
    """The safetensors file beside a trace file; opened, and mapped into memory, when a value is first read.

    Args:
        path: Where it should be.
        mark: What both files carry, so that values of another trace are not taken for these.
    """

    path: str
    mark: str

    @cached_property
    def opened(self) -> Any:
        """The open file. Raises PayloadError if it is missing, damaged, or of another trace."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise PayloadError("safetensors is not installed", where=self.path, hint=_INSTALL) from error
        try:
            opened: Any = safe_open(self.path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise self._broken(f"cannot be read: {error}") from error
        if (opened.metadata() or {}).get("lens") != self.mark:
            raise self._broken("belongs to another trace")
        return opened

    def tensor(self, kind: TensorType, name: str) -> object:
        """A tensor by name. Raises PayloadError if it is not there, or not of this type."""
        torch = _torch(kind)
        from safetensors import SafetensorError

        try:
            found = self.opened.get_tensor(name)
        except SafetensorError as error:
            raise self._broken(f"has no value {name!r}: {error}") from error
        dtype = getattr(torch, kind.dtype)
        if found.dtype != dtype and found.dtype == torch.uint8 and found.numel() == kind.nbytes:
            found = found.view(dtype).reshape(kind.shape)
        if found.dtype != dtype or tuple(found.shape) != kind.shape:
            raise self._broken(f"has a value {name!r} of another type, {found.dtype} {tuple(found.shape)}")
        return found

    def _broken(self, what: str) -> PayloadError:
        hint = "put the file that was saved with the trace beside it, under the trace's name and .safetensors"
        return PayloadError(f"the file with the values {what}", where=self.path, hint=hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return Beside, (self.path, self.mark)


@frozen(eq=False)
class BesideTensor:
    """A saved value in the file beside a trace file."""

    type: TensorType
    name: str
    beside: Beside

    def read(self) -> object:
        """The tensor, from the mapped file. Raises PayloadError if it cannot be given."""
        return self.beside.tensor(self.type, self.name)


def beside_path(path: Path) -> Path:
    """Where the values of a trace file stand if they do not stand in it."""
    return path.with_name(f"{path.name}.safetensors")


def write_beside(path: Path, tensors: Iterable[tuple[str, Any]], mark: str) -> None:
    """Write tensors by name as safetensors. Raises FileFormatError if it is not installed, and OSError."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise FileFormatError("safetensors is not installed", where=str(path), hint=_INSTALL) from error
    plain: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in tensors:
        value = plain_tensor(tensor)
        if dtype_name(value) not in _BESIDE_DTYPES:
            value = value.reshape(-1).view(_torch(None).uint8)
        memory = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if memory in seen else value
        seen.add(memory)
    with replacing(path) as temporary:
        save_file(plain, temporary, {"lens": mark})


def has_data(payload: Payload) -> bool:
    """Whether a saved value has elements to store: not if it was overwritten, is on the meta device or fake, or only
    wraps other tensors."""
    if isinstance(payload, Held):
        return payload.stale is None and has_elements(payload.tensor) and not _is_hollow(payload.tensor)
    return not isinstance(payload, Stale)


def _is_hollow(tensor: Any) -> bool:
    """Whether a tensor has no memory of its own, as a subclass that was made with ``_make_wrapper_subclass``."""
    torch = _torch(None)
    if type(tensor) is torch.Tensor or tensor.is_nested or tensor.layout is not torch.strided:
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return bool(tensor.numel()) and torch.Tensor.data_ptr(tensor) == 0


def plain_tensor(tensor: Any) -> torch.Tensor:
    """A tensor on the CPU, contiguous; sparse, nested and quantized ones as what they are when made dense."""
    plain = tensor.detach()
    if plain.is_nested:
        plain = _padded(plain.unbind())
    if plain.is_quantized:
        plain = plain.dequantize()
    if str(plain.layout) != "torch.strided":
        plain = plain.to_dense()
    made: torch.Tensor = plain.cpu().resolve_conj().resolve_neg().contiguous()
    return made


def _padded(parts: Sequence[Any]) -> Any:
    """The parts of a nested tensor with zeros up to the largest. ``to_padded_tensor`` cannot do it for all of them."""
    if not parts:
        return _torch(None).empty(0)
    sizes = [max(extents) for extents in zip(*(part.shape for part in parts), strict=True)]
    padded = parts[0].new_zeros((len(parts), *sizes))
    for place, part in zip(padded, parts, strict=True):
        place[tuple(map(slice, part.shape))] = part
    return padded


def dtype_name(tensor: Any) -> str:
    """torch's name of a dtype, without the prefix."""
    return str(tensor.dtype).removeprefix("torch.")


def dump_tensor(tensor: Any) -> list[Any]:
    """A tensor, or a ``StoredTensor``, as [dtype, shape, bytes]. Raises FileFormatError for one of 4 GiB or more."""
    if isinstance(tensor, StoredTensor):
        return [tensor.type.dtype, list(tensor.type.shape), tensor.data]
    plain = plain_tensor(tensor)
    size = plain.numel() * plain.element_size()
    if size > _MOST_BYTES:
        raise FileFormatError(
            f"a value of {size:,} bytes is too large to stand in a trace file",
            where=f"{dtype_name(plain)} {tuple(plain.shape)}",
            hint="save with beside=True, or trace with save= or transform= so that less is kept",
        )
    data = bytes((ctypes.c_char * size).from_address(plain.data_ptr())) if size else b""
    return [dtype_name(plain), list(plain.shape), data]


def load_type(dtype: Any, shape: Any) -> TensorType:
    """The type of a stored value. Raises ValueError if it is none, or larger than any tensor."""
    if not isinstance(dtype, str) or dtype not in DTYPES or type(shape) is not list:
        raise ValueError("a saved value of an unknown kind")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("a saved value whose shape is none")
    kind = TensorType(dtype, tuple(shape))
    check_size(kind)
    return kind


def check_size(kind: TensorType) -> None:
    """Raise ValueError for a shape that no tensor has, before its size is computed."""
    if len(kind.shape) > _MOST_DIMENSIONS or any(not -1 <= n < 2**63 for n in kind.shape):
        raise ValueError(f"a shape of {len(kind.shape)} dimensions that no tensor has")


def load_tensor(dtype: Any, shape: Any, data: Any) -> StoredTensor:
    """The value that ``dump_tensor`` made. Raises ValueError if the parts do not fit each other."""
    kind = load_type(dtype, shape)
    if not isinstance(data, bytes) or kind.nbytes != len(data):
        raise ValueError("a saved value whose size does not fit its type")
    return StoredTensor(kind, data)


def _torch(kind: TensorType | None) -> Any:
    try:
        import torch
    except ImportError as error:
        raise PayloadError(
            "reading a saved value needs torch",
            where=str(kind),
            hint="pip install torch; graph, labels and pictures work without it",
        ) from error
    return torch
