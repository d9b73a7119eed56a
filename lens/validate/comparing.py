"""Whether two tensors are the same, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lens.ir.elements import ValueId
from lens.ir.payloads import has_elements

#: An integer of as many bytes, to look at the bits of a floating point number.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_COMPRESSED_BY_ROW = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, but that any NaN equals any NaN; sparse tensors in what they store. False of tensors without
    data. Linear, and free where both show the same memory."""
    if a is b:
        return True
    if a.is_nested and b.is_nested:
        return a.size(0) == b.size(0) and all(map(same, a.unbind(), b.unbind()))
    if a.is_nested or b.is_nested or (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return False
    if not (has_elements(a) and has_elements(b)):
        return False
    if a.layout is not torch.strided:
        return all(map(same, _stored(a), _stored(b)))
    if a.is_quantized:
        return a.qscheme() == b.qscheme() and torch.equal(a, b)
    if (
        a.data_ptr() == b.data_ptr()
        and a.stride() == b.stride()
        and (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg())
    ):
        return True
    a, b = _real(a), _real(b)
    if torch.equal(_bits(a), _bits(b)):
        return True
    return bool(_is_nan(b).any()) and not bool(differing(a, b).any())


def all_same(found: Mapping[ValueId, torch.Tensor], expected: Mapping[ValueId, torch.Tensor]) -> bool:
    """Whether all that is expected was found, and is the same: with other contents a function may give None."""
    return all(value in found and same(found[value], tensor) for value, tensor in expected.items())


def difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How two tensors with data differ, in numbers; empty if they are the same."""
    if same(found, expected):
        return ""
    if found.is_nested or expected.is_nested:
        parts = zip(found.unbind(), expected.unbind(), strict=False)
        return next(filter(None, (difference(a, b) for a, b in parts)), "other parts")
    if kind_of(found) != kind_of(expected):
        return f"{kind_of(found)} instead of {kind_of(expected)}"
    if expected.is_quantized:
        found, expected = found.dequantize(), expected.dequantize()
    a, b = found.to_dense(), expected.to_dense()
    unequal = differing(a, b)
    if not unequal.any():
        return "the same elements, stored in another way"
    text = f"{int(unequal.sum())} of {unequal.numel()} elements differ"
    if a.dtype.is_floating_point or a.dtype.is_complex:
        text += f", by up to {float((comparable(a) - comparable(b)).abs()[unequal].max()):.3g}"
    return text


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which elements of two dense tensors of one shape and dtype differ in their bits; any NaN equals any NaN."""
    if a.is_complex():
        return differing(_real(a), _real(b)).any(-1)
    unequal = _bits(a) != _bits(b)
    return unequal & ~(_is_nan(a) & _is_nan(b)) if a.is_floating_point() else unequal


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in a dtype that torch computes with: it has no arithmetic for those of a few bits."""
    if tensor.dtype is torch.complex32:
        return tensor.to(torch.complex64)
    few_bits = tensor.dtype.is_floating_point and tensor.element_size() == 1
    return tensor.float() if few_bits else tensor


def kind_of(tensor: torch.Tensor) -> str:
    """Its dtype and shape as text."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _stored(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a tensor that is not strided is made of."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _COMPRESSED_BY_ROW:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in _COMPRESSED_BY_COLUMN:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as they are, without marks that another meaning is meant; of complex ones both parts."""
    plain = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(plain) if plain.is_complex() else plain


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_BITS[tensor.element_size()]) if tensor.is_floating_point() else tensor


def _is_nan(tensor: torch.Tensor) -> torch.Tensor:
    if "float4" in str(tensor.dtype):  # has none, and torch does not convert it
        return torch.zeros_like(tensor.view(torch.uint8), dtype=torch.bool)
    plain = comparable(tensor)
    return plain != plain
