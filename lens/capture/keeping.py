"""Which values a trace holds, by reference, and the copies made before a write would destroy them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lens.capture.selection import RunningOp, Selection
from lens.capture.tensor_table import TensorRecord
from lens.ir.elements import FnRef, OpId, ValueId
from lens.ir.naming import layer_type
from lens.ir.payloads import Held, PayloadStore
from lens.ir.tape import ModuleNames

#: A version that no tensor has.
_NEVER = -1


class Keeper:
    """The payloads of a running trace.

    Args:
        selection: Which values are wanted.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.everything = selection.everything
        self.nothing = selection.nothing
        self.leaves = selection.leaves
        #: Whether each value must be asked for.
        self.selective = not self.everything and not self.nothing
        self._held: dict[int, tuple[torch.Tensor, int | None]] = {}
        self._states: dict[int, dict[str, torch.Tensor]] = {}

    # Values

    def wants(self, function: FnRef, module: ModuleNames, tensor: torch.Tensor) -> bool:
        """Whether the result of the operation that is just finishing is wanted."""
        selection = self.selection
        kind = layer_type(function)
        if kind in selection.types:
            return True
        if selection.predicate is None:
            return False
        running = RunningOp(
            kind,
            function,
            module[0],
            module[2],
            tuple(tensor.shape) if not tensor.is_nested else (),
            str(tensor.dtype).removeprefix("torch."),
        )
        return bool(selection.predicate(running))

    def wants_module(self, module: ModuleNames) -> bool:
        """Whether the outputs of this module are wanted."""
        wanted = self.selection.addresses
        return bool(wanted) and any(a in wanted for a in (module[0], *module[1]))

    def hold(self, record: TensorRecord, value: int, tensor: torch.Tensor) -> None:
        """Keep a value by reference."""
        self._held[value] = (tensor, version_of(tensor))
        record.held += (value,)

    def copy(self, record: TensorRecord) -> None:
        """Replace what is held of a tensor by a copy, because its memory is about to be written to."""
        tensor = record()
        if tensor is not None:
            copy = tensor.detach().clone()
            for value in record.held:
                self._held[value] = (copy, version_of(copy))
        record.held = ()

    def refresh(self, record: TensorRecord) -> None:
        """Note that a write to the same storage has left this tensor's elements alone."""
        tensor = record()
        if tensor is not None:
            for value in record.held:
                self._held[value] = (tensor, version_of(tensor))

    def spoil(self, record: TensorRecord) -> None:
        """Note that what is held of a tensor is lost: it was given other memory unseen."""
        for value in record.held:
            self._held[value] = (self._held[value][0], _NEVER)
        record.held = ()

    # Random number generators

    def keep_generators(self, position: int, states: Mapping[str, torch.Tensor]) -> None:
        """Keep the generator states from before the call at this position, if the call drew a number."""
        now = torch.default_generator.get_state()
        if set(states) == {"cpu"} and torch.equal(states["cpu"], now):
            return
        self._states[position] = dict(states)

    def take_over(self, other: Keeper, values: Mapping[int, int], ops: int) -> None:
        """Keep what another keeper has; its values and op positions as they are called here."""
        self._held.update((values[value], held) for value, held in other._held.items())
        self._states.update((ops + position, states) for position, states in other._states.items())

    def store(self, objects: Sequence[Any], ids: Sequence[int]) -> PayloadStore:
        """Everything that was kept; ``ids`` are the ids of the values in the graph."""
        values = {ValueId(ids[v]): Held(tensor, version) for v, (tensor, version) in self._held.items()}
        states = {OpId(op): state for op, state in self._states.items()}
        kept = {} if self.nothing else dict(enumerate(objects))
        return PayloadStore(dict(values), states, kept)


def version_of(tensor: torch.Tensor) -> int | None:
    """torch's count of writes to a tensor's memory; None for inference tensors, which have none."""
    try:
        return tensor._version
    except RuntimeError:
        return None


def generator_states(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    """The states of the generators that a call with these arguments may draw from, by device."""
    generator = kwargs.get("generator") if kwargs else None
    if generator is not None:
        return {"generator": generator.get_state()}
    states = {"cpu": torch.default_generator.get_state()}
    for device in {arg.device for arg in args if isinstance(arg, torch.Tensor)}:
        if device.type == "cuda":
            states[str(device)] = torch.cuda.get_rng_state(device)
    return states
