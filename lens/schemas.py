"""What torch's operator schemas say of a function: its overloads, randomness, views, results in memory of their own."""

from __future__ import annotations

from typing import Any

import torch


def schemas_of(function: Any, name: str) -> list[Any]:
    """The operator overloads that a function stands for; empty if torch knows none of its name."""
    if isinstance(function, torch._ops.OpOverload):
        return [function]
    packet = function
    if not isinstance(function, torch._ops.OpOverloadPacket):
        packet = getattr(torch.ops.aten, _ATEN_NAMES.get(name, name), None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):  # no operator, or a dunder of the namespace object
        return []
    return [getattr(packet, overload) for overload in packet.overloads()]  # type: ignore[no-untyped-call]


#: Python operators whose schemas stand under another name.
_ATEN_NAMES = {
    **{f"__{name}__": name for name in ("add", "sub", "mul", "matmul", "lt", "le", "gt", "ge", "eq", "ne")},
    "__radd__": "add",
    "__rmul__": "mul",
    "__truediv__": "div",
    "__getitem__": "slice",
    "__setitem__": "copy_",
}


def has_random_tag(schemas: list[Any]) -> bool:
    """Whether one of these overloads draws random numbers."""
    return any(torch.Tag.nondeterministic_seeded in schema.tags for schema in schemas)


def has_dynamic_shape_tag(schemas: list[Any]) -> bool:
    """Whether the shape of what one of these overloads returns follows from data."""
    return any(torch.Tag.dynamic_output_shape in schema.tags for schema in schemas)


#: Operators made of others (so that their schemas promise nothing) that return one new tensor in memory of its own.
_MADE_FRESH = frozenset(
    [
        *("linear", "matmul", "conv1d", "conv2d", "conv3d", "batch_norm", "layer_norm", "group_norm"),
        *("softmax", "log_softmax", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "dropout"),
        *("scaled_dot_product_attention", "max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    ]
)
#: Operators that return their first argument, a view of it, or one new tensor in memory of its own.
_SHOWS_OR_COPIES = frozenset(
    ["contiguous", "reshape", "reshape_as", "flatten", "to", "type_as", "float", "__getitem__"]
)


def returns_fresh(name: str, schemas: list[Any]) -> bool:
    """Whether schemas promise that the tensors which an operator returns share no memory with what it was given.

    They do where the operator has a kernel of its own, which autograd relies on. A private one may break the promise
    (``_unsafe_view``), and ``lift`` does. Lists of tensors are left out: they may be parts of one memory.
    """
    name = _ATEN_NAMES.get(name, name)
    returning = [one for one in schemas if any("Tensor" in str(r.type) for r in one._schema.returns)]
    functional = [one for one in returning if not _writes_anywhere(one._schema)]
    if not functional or name.startswith("_") or name == "lift":
        return False
    returns = [r for one in functional for r in one._schema.returns if "Tensor" in str(r.type)]
    if any(r.alias_info is not None or str(r.type) != "Tensor" for r in returns):
        return False
    return name in _MADE_FRESH or not any(map(_is_composed, functional))


def shows_or_copies(name: str) -> bool:
    """Whether an operator returns its first argument, what torch takes for a view of it, or a tensor in new memory."""
    return name in _SHOWS_OR_COPIES


def _writes_anywhere(schema: Any) -> bool:
    return any(one.alias_info is not None and one.alias_info.is_write for one in schema.arguments)


def _is_composed(operator: Any) -> bool:
    # private: without it no operator is known to be fresh, and all are recorded the general way
    has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    try:
        return bool(has_kernel(operator.name(), "CompositeImplicitAutograd"))
    except RuntimeError:  # an operator of TorchScript only
        return True


def returns_view(schema: Any) -> bool:
    """Whether a result may share memory with an argument that is not written to."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
