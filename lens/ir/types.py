"""Tensor types: dtype, shape, device and layout, without torch."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from math import prod

from attrs import frozen

#: torch's dtype name -> (short name of the text form, bits per element).
DTYPES: dict[str, tuple[str, int]] = {
    "float64": ("f64", 64),
    "float32": ("f32", 32),
    "float16": ("f16", 16),
    "bfloat16": ("bf16", 16),
    "float8_e4m3fn": ("f8e4m3fn", 8),
    "float8_e4m3fnuz": ("f8e4m3fnuz", 8),
    "float8_e5m2": ("f8e5m2", 8),
    "float8_e5m2fnuz": ("f8e5m2fnuz", 8),
    "float8_e8m0fnu": ("f8e8m0fnu", 8),
    "float4_e2m1fn_x2": ("f4e2m1fnx2", 8),
    "complex128": ("c128", 128),
    "complex64": ("c64", 64),
    "complex32": ("c32", 32),
    "int64": ("i64", 64),
    "int32": ("i32", 32),
    "int16": ("i16", 16),
    "int8": ("i8", 8),
    "uint64": ("u64", 64),
    "uint32": ("u32", 32),
    "uint16": ("u16", 16),
    "uint8": ("u8", 8),
    "bool": ("bool", 8),
    "qint8": ("qi8", 8),
    "quint8": ("qu8", 8),
    "qint32": ("qi32", 32),
    "quint4x2": ("qu4x2", 8),
}
_FROM_SHORT = {short: name for name, (short, _) in DTYPES.items()}
_TYPE_TEXT = re.compile(r"(?P<dtype>\w+)\[(?P<shape>[\d,?]*)\](?:@(?P<device>[\w:]+))?(?:#(?P<layout>\w+))?")
#: An extent of a dimension that differs between the parts of a nested tensor.
RAGGED = -1


@frozen
class TensorType:
    """What is known of a tensor without its values.

    Args:
        dtype: torch's name without the prefix, such as ``float32``.
        shape: The extents; ``RAGGED`` (-1) where the parts of a nested tensor differ.
        device: Such as ``cpu`` or ``cuda:0``.
        layout: torch's name without the prefix; ``nested`` for nested tensors.
    """

    dtype: str
    shape: tuple[int, ...]
    device: str = "cpu"
    layout: str = "strided"

    @property
    def numel(self) -> int:
        """Number of elements (0 for ragged shapes, whose size the type does not tell)."""
        return 0 if RAGGED in self.shape else prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the elements (0 for dtypes that lens does not know)."""
        return self.numel * DTYPES.get(self.dtype, ("", 0))[1] // 8

    def __str__(self) -> str:
        short = DTYPES.get(self.dtype, (self.dtype, 0))[0]
        shape = ",".join("?" if n == RAGGED else str(n) for n in self.shape)
        device = "" if self.device == "cpu" else f"@{self.device}"
        layout = "" if self.layout == "strided" else f"#{self.layout}"
        return f"{short}[{shape}]{device}{layout}"


@lru_cache(maxsize=4096)
def shared_type(dtype: str, shape: tuple[int, ...], device: str, layout: str) -> TensorType:
    """The type of these, one record for all who ask: a parameter's value and its description share it."""
    return TensorType(sys.intern(dtype), shape, sys.intern(device), sys.intern(layout))


@lru_cache(maxsize=4096)
def parse_type(text: str) -> TensorType:
    """Read the text form of a type, such as ``f32[1,3]@cuda:0``. Raises ValueError if it is not one."""
    match = _TYPE_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"no type: {text!r}")
    extents = match["shape"].split(",") if match["shape"] else []
    return TensorType(
        dtype=_FROM_SHORT.get(match["dtype"], match["dtype"]),
        shape=tuple(RAGGED if n == "?" else int(n) for n in extents),
        device=match["device"] or "cpu",
        layout=match["layout"] or "strided",
    )
