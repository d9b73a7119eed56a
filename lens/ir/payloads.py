"""Payloads: the saved values of a trace, kept apart from the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, Protocol

from attrs import define, field, frozen

from lens.errors import AbsentValueError, StaleValueError
from lens.foreign import Raised, attempt
from lens.ir.elements import OpId, ValueId
from lens.ir.layouts import Layout


class Payload(Protocol):
    """A saved value."""

    def read(self) -> object:
        """The tensor. Raises StaleValueError if it is no longer what was saved."""
        ...


@frozen(eq=False)
class Held:
    """A tensor kept by reference.

    Args:
        tensor: The tensor itself, or the copy made before it was overwritten.
        version: Its ``_version`` when it was right; None where torch keeps no version (inference tensors).
    """

    tensor: Any
    version: int | None = None

    @property
    def stale(self) -> Stale | None:
        """What is left of it if something has written to its memory since it was saved."""
        if self.version is None or self.tensor._version == self.version:
            return None
        return Stale(f"a tensor of shape {tuple(self.tensor.shape)}", "after")

    def read(self) -> object:
        """The tensor, if nothing wrote to its memory since it was saved."""
        return self.tensor if self.stale is None else self.stale.read()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_held_now, (self.tensor,)) if self.stale is None else (Stale, (self.stale.what, self.stale.when))

    def __deepcopy__(self, memo: dict[int, Any]) -> Held | Stale:
        if self.stale is not None:
            return self.stale
        # Torch itself refuses to copy a tensor with autograd behind it, and nested ones.
        tensor = self.tensor if self.tensor.is_leaf else self.tensor.detach()
        copied = attempt(lambda: deepcopy(tensor, memo))
        return _held_now(self.tensor.detach().clone() if isinstance(copied, Raised) else copied)


@frozen
class Stale:
    """A value that was lost while it was held by reference: mostly something that lens did not see overwrote it.

    Args:
        what: What is known of it.
        when: Whether it was overwritten during the trace or after it, or belonged to a vmap that is over.
    """

    what: str
    when: Literal["during", "after", "mapped"] = "during"

    def read(self) -> object:
        """Raises StaleValueError."""
        what, hint = _TOLD[self.when]
        raise StaleValueError(what, where=self.what, hint=hint)


_OVERWRITTEN = "the saved value was overwritten in place {} the trace, by something lens did not see"
#: What is said of a lost value, and what to do.
_TOLD = {
    "during": (_OVERWRITTEN.format("during"), "history.gaps names the line that first saw the new contents"),
    "after": (_OVERWRITTEN.format("after"), "copy what you need before you change it, or trace again"),
    "mapped": ("the saved value belongs to a torch.func.vmap that is over", "read it inside of the mapped function"),
}


def _held_now(tensor: Any) -> Held:
    """A tensor that was just unpickled or copied, with the version that it has now."""
    return Held(tensor, None if tensor.is_inference() else tensor._version)


@define
class PayloadStore:
    """Saved values by value id, and what replay needs besides.

    Args:
        values: The saved values.
        rng_states: Per random op, the generator states before it, by device.
        objects: The opaque objects among the arguments, by their index; empty for loaded traces.
        layouts: Where the values that a write reaches through shared memory lie in it.
    """

    values: dict[ValueId, Payload] = field(factory=dict)
    rng_states: dict[OpId, dict[str, Any]] = field(factory=dict)
    objects: dict[int, Any] = field(factory=dict)
    layouts: dict[ValueId, Layout] = field(factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        # Functions and the like cannot be pickled in general.
        return PayloadStore, (self.values, self.rng_states, {}, self.layouts)

    def __deepcopy__(self, memo: dict[int, Any]) -> PayloadStore:
        # Nor can they be copied in general.
        values, states = deepcopy(self.values, memo), deepcopy(self.rng_states, memo)
        return PayloadStore(values, states, dict(self.objects), dict(self.layouts))

    def __contains__(self, value: ValueId) -> bool:
        return value in self.values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[ValueId]:
        return iter(self.values)

    def read(self, value: ValueId, where: str = "") -> Any:
        """The saved tensor.

        Raises:
            AbsentValueError: it was not saved.
            StaleValueError: it was overwritten by something that lens did not see.
        """
        payload = self.values.get(value)
        if payload is None:
            raise AbsentValueError(
                "the value of this tensor was not saved",
                where=where or f"value %{value}",
                hint=f'trace with save="all"{f" or save=[{where!r}]" if where else ""}',
            )
        return payload.read()

    def states_before(self, op: OpId) -> dict[str, Any] | None:
        """The generator states before a random op, by device; None if it drew no number."""
        states = self.rng_states.get(op)
        if states is None:
            return None
        # In a loaded trace they are still to be read.
        return {device: state.read() if hasattr(state, "read") else state for device, state in states.items()}

    def keep(self, values: Iterable[ValueId]) -> PayloadStore:
        """A store with only these values."""
        kept = {v: self.values[v] for v in values if v in self.values}
        return PayloadStore(kept, self.rng_states, self.objects, self.layouts)

    def remap(
        self,
        value_map: Mapping[ValueId, ValueId],
        op_map: Sequence[OpId | None],
        absorbed: Mapping[OpId, OpId],
    ) -> PayloadStore:
        """This store for a restructured graph; what was pruned is dropped.

        A composite that was closed starts from the generator state that the first operation inside it started from.
        """
        values: dict[ValueId, Payload] = {}
        for old, payload in self.values.items():
            new = value_map.get(old)
            if new is not None:
                values.setdefault(new, payload)
        states: dict[OpId, dict[str, Any]] = {}
        for op, state in self.rng_states.items():
            target = absorbed.get(op, op_map[op])
            if target is not None:
                states.setdefault(target, state)
        layouts = {value_map[v]: layout for v, layout in self.layouts.items() if v in value_map}
        return PayloadStore(values, states, self.objects, layouts)


def has_elements(tensor: Any) -> bool:
    """Whether a tensor has elements to read: not if it is on the meta device, or fake."""
    return not (tensor.is_meta or hasattr(tensor, "fake_mode"))
