"""Which values a trace holds, by reference, and the copies made before a write would destroy them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from attrs import evolve

from lens.capture.selection import RunningOp, Selection
from lens.capture.tensor_table import TensorRecord, storage_of, version_of
from lens.errors import InputError
from lens.ir.elements import FnRef, OpId, ValueId
from lens.ir.layouts import Layout
from lens.ir.naming import layer_type
from lens.ir.payloads import Held, Payload, PayloadStore, Stale
from lens.ir.tape import UNUSED, ModuleNames

#: Keeps lens' own calls from the mode. private: without it they would be recorded, as work on exposed memory only.
UNSEEN: Callable[[], AbstractContextManager[None]] = getattr(torch._C, "DisableTorchFunction", nullcontext)


#: Keeps the user's transform from a dispatch mode. private: without it ``torch_dispatch`` would record it.
_MODES_OFF: Callable[[], AbstractContextManager[Any]] = getattr(
    torch.utils._python_dispatch, "_disable_current_modes", nullcontext
)


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
        #: Keeps lens's own calls out of the trace; a backend sets it that would see them all the same.
        self.unseen = UNSEEN
        self._held: dict[int, tuple[torch.Tensor, int | None]] = {}
        self._states: dict[int, dict[str, torch.Tensor]] = {}
        self._lost: dict[int, str] = {}
        #: Where values lie that share memory with one that is written.
        self.layouts: dict[int, Layout] = {}

    # Values

    def wants(self, function: FnRef, module: ModuleNames, tensor: torch.Tensor) -> bool:
        """Whether the result of the operation that is just finishing is wanted."""
        selection = self.selection
        if selection.types and selection.wants_type(layer_type(function)):
            return True
        if selection.predicate is None:
            return False
        return bool(selection.predicate(RunningOp.of(function, module[0], module[2], tensor)))

    def wants_module(self, module: ModuleNames) -> bool:
        """Whether the outputs of this module are wanted."""
        wanted = self.selection.addresses
        return bool(wanted) and any(a in wanted for a in (module[0], *module[1]))

    def hold(self, record: TensorRecord, value: int, tensor: torch.Tensor, raw: bool = False) -> None:
        """Keep a value by reference, or a copy of it where others than torch can write to its memory.

        If the user gave a transform, what that makes of it is kept instead, unless ``raw`` says no.
        """
        if self.selection.transform is not None and not raw:
            self._held[value] = self._transformed(self.selection.transform, tensor)
            return
        version = record.version
        if record.pending and record.exposed:
            with UNSEEN():
                tensor = tensor.detach().clone()
            version = version_of(tensor)
        else:
            record.held += (value,)
        self._held[value] = (tensor, version)

    def _transformed(
        self, transform: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor
    ) -> tuple[torch.Tensor, int | None]:
        with UNSEEN(), _MODES_OFF(), _TransformErrors(tensor):
            kept = transform(tensor.detach() if self.selection.detach else tensor)
            if not isinstance(kept, torch.Tensor):
                raise TypeError(f"it gave a {type(kept).__name__} instead of a tensor")
            if storage_of(kept) == storage_of(tensor):
                kept = kept.clone()  # a later write must not reach it
        return kept, version_of(kept)

    def copy(self, record: TensorRecord) -> None:
        """Replace what is held of a tensor by a copy, because its memory is about to be written to."""
        tensor = record()
        if tensor is not None:
            copy = tensor.detach().clone()
            for value in record.held:
                self._held[value] = (copy, version_of(copy))
        record.held = ()

    def lose(self, record: TensorRecord) -> None:
        """Note that what is held of a tensor has been overwritten."""
        for value in record.held:
            self._lost[value] = _described(self._held.pop(value)[0])
        record.held = ()

    def refresh(self, record: TensorRecord) -> None:
        """Note that a write to the same storage has left this tensor's elements alone."""
        tensor = record()
        if tensor is not None:
            for value in record.held:
                self._held[value] = (tensor, version_of(tensor))

    # Random number generators

    def keep_generators(self, position: int, states: Mapping[str, torch.Tensor]) -> None:
        """Keep the generator states from before the call at this position, if the call drew a number."""
        now = torch.default_generator.get_state()
        if set(states) == {"cpu"} and torch.equal(states["cpu"], now):
            return
        self._states[position] = dict(states)

    def take_over(self, other: Keeper, values: Mapping[int, int], ops: int, memories: Mapping[int, int]) -> None:
        """Keep what another keeper has; its values, op positions and numbers of memories as they are called here."""
        self._held.update((values[value], held) for value, held in other._held.items())
        self._lost.update((values[value], what) for value, what in other._lost.items())
        self._states.update((ops + position, states) for position, states in other._states.items())
        for value, layout in other.layouts.items():
            self.layouts[values[value]] = evolve(layout, memory=memories[layout.memory])

    def store(self, objects: Sequence[Any], ids: Sequence[int]) -> PayloadStore:
        """Everything that was kept; ``ids`` are the ids of the values in the graph."""
        values: dict[ValueId, Payload] = {ValueId(ids[v]): Stale(what) for v, what in self._lost.items()}
        values.pop(ValueId(UNUSED), None)
        lost = {storage_of(t) for t, version in self._held.values() if version is not None and t._version != version}
        lost.discard(None)
        for value, (tensor, version) in self._held.items():
            if ids[value] == UNUSED:
                continue
            gone = bool(lost) and storage_of(tensor) in lost
            shown = tensor.detach() if self.selection.detach else tensor
            values[ValueId(ids[value])] = Stale(_described(tensor)) if gone else Held(shown, version)
        states = {OpId(op): state for op, state in self._states.items()}
        kept = {} if self.nothing else dict(enumerate(objects))
        layouts = {ValueId(ids[v]): layout for v, layout in self.layouts.items()}
        return PayloadStore(values, states, kept, layouts)


def _described(tensor: torch.Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}"


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


class _TransformErrors(AbstractContextManager[None]):
    """Says of an exception of the user's transform which tensor it was given."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            raise InputError(
                f"transform= raised {type(error).__name__}: {error}",
                where=f"saving {_described(self.tensor)} of {self.tensor.dtype}",
                hint="make it accept every tensor that save= selects, and give a tensor",
            ) from error
