"""Whether two tensors are the same, and how they differ."""

from __future__ import annotations

import torch


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal element for element; any NaN equals any NaN. Linear, and free where both show the same memory."""
    if a is b:
        return True
    if a.is_nested and b.is_nested:
        return a.size(0) == b.size(0) and all(map(same, a.unbind(), b.unbind()))
    if a.is_nested or b.is_nested or (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return False
    if a.layout is not torch.strided:
        return same(a.to_dense(), b.to_dense())
    if a.is_quantized:
        return a.qscheme() == b.qscheme() and torch.equal(a, b)
    if (
        a.data_ptr() == b.data_ptr()
        and a.stride() == b.stride()
        and (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg())
    ):
        return not a.is_meta
    a, b = comparable(a), comparable(b)
    if torch.equal(a, b):
        return True
    if not (a.dtype.is_floating_point or a.dtype.is_complex) or not b.isnan().any():
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How two tensors differ, in numbers; empty if they are the same."""
    if same(found, expected):
        return ""
    if found.is_nested or expected.is_nested:
        parts = zip(found.unbind(), expected.unbind(), strict=False)
        return next(filter(None, (difference(a, b) for a, b in parts)), "other parts")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{_kind(found)} instead of {_kind(expected)}"
    if expected.is_quantized:
        found, expected = found.dequantize(), expected.dequantize()
    a, b = comparable(found.to_dense()), comparable(expected.to_dense())
    unequal = differing(a, b)
    text = f"{int(unequal.sum())} of {unequal.numel()} elements differ"
    if a.dtype.is_floating_point or a.dtype.is_complex:
        text += f", by up to {float((a - b).abs()[unequal].max()):.3g}" if unequal.any() else ""
    return text


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which elements of two comparable tensors differ; any NaN equals any NaN."""
    return (a != b) & ~((a != a) & (b != b))


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in a dtype that torch compares: it has no comparison for those of a few bits."""
    if tensor.dtype is torch.complex32:
        return tensor.to(torch.complex64)
    few_bits = tensor.dtype.is_floating_point and tensor.element_size() == 1
    return tensor.float() if few_bits else tensor


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
