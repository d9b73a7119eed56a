"""Which values a trace holds, by reference, and the copies made before a write would destroy them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from attrs import evolve

from lens.capture.alias_set import SEVERAL
from lens.capture.held_parameter import HeldParameter, place_of
from lens.capture.mapped import Mapped, is_mapped, is_over
from lens.capture.selection import Change, Predicate, RunningOp, Selection
from lens.capture.tensor_table import TensorRecord, storage_of, version_of
from lens.capture.user_functions import Failure
from lens.foreign import attempt
from lens.ir.elements import FnRef, OpId, ValueId
from lens.ir.layouts import Layout
from lens.ir.naming import layer_type
from lens.ir.payloads import Held, Payload, PayloadStore, Stale
from lens.ir.tape import UNUSED, ModuleNames

#: Keeps lens' own calls from the mode. private: without it they would be recorded, as work on exposed memory only.
UNSEEN: Callable[[], AbstractContextManager[None]] = getattr(torch._C, "DisableTorchFunction", nullcontext)


#: Keeps the user's transform, and what lens itself computes, from dispatch modes. private: without it they see it.
MODES_OFF: Callable[[], AbstractContextManager[Any]] = getattr(
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
        #: Whether every value is held without a question, and whether each must be asked for.
        self.holds_all = self.everything and selection.predicate is None
        self.selective = not self.holds_all and not self.nothing
        #: The values that the user's function picked.
        self.picked: set[int] = set()
        #: What a function of the user raised; none is called after that.
        self.failure: Failure | None = None
        #: Whether one is running: nothing that it calls is part of the trace.
        self.asking = False
        #: Set by who can end the run: does so.
        self.on_failure: Callable[[], object] = lambda: None
        #: Keeps lens's own calls out of the trace; a backend sets it that would see them all the same.
        self.unseen = UNSEEN
        #: What is held, by value: the tensor, and torch's count of writes to it then.
        self.held: dict[int, tuple[torch.Tensor, int | None]] = {}
        self._states: dict[int, dict[str, torch.Tensor]] = {}
        self._lost: dict[int, str] = {}
        #: Where values lie that share memory with one that is written. A memory of a value alone has a negative number.
        self.layouts: dict[int, Layout] = {}

    # Values

    def wants(self, function: FnRef) -> bool:
        """Whether the results of this function are wanted, whatever the user's own function says."""
        selection = self.selection
        return self.everything or bool(selection.types and selection.wants_type(layer_type(function)))

    def picks(self, op: RunningOp, value: int) -> bool:
        """Whether the user's own function wants the result of the operation that is just finishing."""
        picked = self.selection.predicate is not None and self.ask("save", self.selection.predicate, op, value)
        if picked:
            self.picked.add(value)
        return picked

    def ask(self, option: str, predicate: Predicate, op: RunningOp, value: int) -> bool:
        """What a function of the user says of an operation; no, once one has raised."""
        if self.failure is not None:
            return False
        shown = f"a tensor of shape {op.shape} of {op.dtype}"
        self.asking = True
        try:
            answer = attempt(lambda: bool(predicate(op)), lambda error: self.fail(Failure(option, error, value, shown)))
        finally:
            self.asking = False
        return answer is True

    def fail(self, failure: Failure) -> None:
        """Note that a function of the user raised. The first is told."""
        if self.failure is None:
            self.failure = failure
            self.on_failure()

    def forget_failure(self) -> None:
        """Let go of what a function of the user raised: its frames know this keeper, and all that called it."""
        self.failure = None

    def wants_module(self, module: ModuleNames) -> bool:
        """Whether the outputs of this module are wanted."""
        wanted = self.selection.addresses
        return bool(wanted) and any(a in wanted for a in (module[0], *module[1]))

    def hold(self, record: TensorRecord, value: int, tensor: torch.Tensor, raw: bool = False) -> None:
        """Keep a value by reference, or a copy of it where others than torch can write to its memory.

        If the user gave a transform, what that makes of it is kept instead, unless ``raw`` says no.
        """
        if self.selection.transform is not None and not raw:
            self._hold_transformed(self.selection.transform, value, tensor)
            return
        if record.pending and record.exposed:
            with UNSEEN():
                copy = _copied(tensor)
            self.held[value] = (copy, version_of(copy))
            return
        version = record.version
        if version == SEVERAL:
            version = record.aliases.seen_version(tensor)  # type: ignore[union-attr]
        self.held[value] = (tensor, version)
        record.held += (value,)
        if record.aliases is not None:
            record.aliases.hold(record)

    def _hold_transformed(self, transform: Change, value: int, tensor: torch.Tensor) -> None:
        if self.failure is not None:
            return
        given = tensor.detach() if self.selection.detach else tensor

        def fail(error: Exception) -> None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.fail(Failure("transform", error, value, f"{_described(tensor)} of {dtype}"))

        with UNSEEN(), MODES_OFF():
            self.asking = True
            try:
                kept: object = attempt(lambda: transform(given), fail)
            finally:
                self.asking = False
            if not isinstance(kept, torch.Tensor):
                fail(TypeError(f"it gave a {type(kept).__name__} instead of a tensor"))  # unless it has failed
                return
            if storage_of(kept) == storage_of(tensor):
                kept = kept.clone()  # a later write must not reach it
        self.held[value] = (kept, version_of(kept))

    def copy(self, record: TensorRecord) -> None:
        """Replace what is held of a tensor by a copy, because its memory is about to be written to.

        If it lies elsewhere by now, unseen (``.data = ...`` under ``torch_dispatch``), nobody can.
        """
        tensor = record()
        if tensor is not None and record.storage is not None and storage_of(tensor) != record.storage:
            self.lose(record)
        elif tensor is not None:
            try:
                copy = _copied(tensor)
            except NotImplementedError:  # of types of less than a byte torch has no copies
                self.lose(record)
                return
            is_plain = tensor.layout is not torch.strided or tensor.is_contiguous()
            for value in record.held:
                self.held[value] = (copy, version_of(copy))
                if not is_plain:
                    self._note_place(value, tensor, copy)
        record.held = ()

    def _note_place(self, value: int, tensor: torch.Tensor, copy: torch.Tensor) -> None:
        """Note how the elements lay, if they lie otherwise in a copy, as those of a part of a tensor do."""
        if tensor.layout is torch.strided and not tensor.is_nested and tensor.stride() != copy.stride():
            place = Layout.of(tensor, -1 - value)
            if place is not None:
                self.layouts.setdefault(value, place)

    def copy_values(self, values: Iterable[int]) -> None:
        """Hold copies of these values, as far as they are held and have not been overwritten."""
        with torch.inference_mode(False):
            for value in values:
                tensor, version = self.held.get(value, (None, None))
                if tensor is not None and (version is None or version == tensor._version):
                    self.held[value] = (tensor.detach().clone(), None)

    def lose(self, record: TensorRecord) -> None:
        """Note that what is held of a tensor has been overwritten."""
        values, record.held = record.held, ()
        for value in values:
            self._lost[value] = _described(self.held.pop(value)[0])

    def trust(self, records: Collection[TensorRecord]) -> None:
        """Note, at the end, which of what is still held of these tensors only writes that were seen can have reached.

        Where torch counts at several places, one that was not seen need not be in a tensor's own count.
        """
        apart = {record.aliases for record in records if record.held and record.version == SEVERAL}
        overwritten = {aliases for aliases in apart if aliases is not None and aliases.has_uncounted()}
        for record in records:
            tensor = record() if record.held and record.version is not None else None
            if tensor is None:
                continue
            is_lost = record.aliases in overwritten
            if is_lost or record.has_seen(tensor):
                for value in record.held:
                    if self.held[value][0] is tensor:  # and no copy that another thread made
                        self.held[value] = tensor, SEVERAL if is_lost else tensor._version

    # Random number generators

    def keep_generators(self, position: int, states: Mapping[str, torch.Tensor]) -> bool:
        """Keep the generator states from before the call at this position, if it drew a number; whether it did.

        Of a run of which nothing is saved they are not kept: they are 5 KB each.
        """
        drew = any(has_drawn(state, device) for device, state in states.items())
        if drew and not self.nothing:
            self._states[position] = dict(states)
        return drew

    def take_over(self, other: Keeper, values: Mapping[int, int], ops: int, memories: Mapping[int, int]) -> None:
        """Keep what another keeper has; its values, op positions and numbers of memories as they are called here."""
        self.held.update((values[value], held) for value, held in other.held.items())
        self._lost.update((values[value], what) for value, what in other._lost.items())
        self._states.update((ops + position, states) for position, states in other._states.items())
        self.picked.update(values[value] for value in other.picked)
        if other.failure is not None:
            self.fail(evolve(other.failure, value=values[other.failure.value]))
            other.forget_failure()
        for value, layout in other.layouts.items():
            here = values[value]
            if layout.memory in memories:
                self.layouts[here] = evolve(layout, memory=memories[layout.memory])
            else:
                self.layouts.setdefault(here, evolve(layout, memory=-1 - here))

    def store(self, objects: Sequence[Any], ids: Sequence[int]) -> PayloadStore:
        """Everything that was kept; ``ids`` are the ids of the values in the graph."""
        values: dict[ValueId, Payload] = {ValueId(ids[v]): Stale(what) for v, what in self._lost.items()}
        values.pop(ValueId(UNUSED), None)
        lost = {storage_of(t) for t, version in self.held.values() if version is not None and t._version != version}
        lost.discard(None)
        for value, (tensor, version) in self.held.items():
            if ids[value] == UNUSED:
                continue
            gone = bool(lost) and storage_of(tensor) in lost
            if gone:
                values[ValueId(ids[value])] = Stale(_described(tensor))
            elif self.selection.detach or is_mapped(tensor):
                values[ValueId(ids[value])] = self._payload(tensor, version)
            elif type(tensor) is torch.nn.Parameter:
                values[ValueId(ids[value])] = HeldParameter(tensor, version, place_of(tensor))
            else:
                values[ValueId(ids[value])] = Held(tensor, version)
        states = {OpId(op): state for op, state in self._states.items()}
        kept = {} if self.nothing else dict(enumerate(objects))
        layouts = {ValueId(ids[v]): layout for v, layout in self.layouts.items()}
        return PayloadStore(values, states, kept, layouts)

    def _payload(self, tensor: torch.Tensor, version: int | None) -> Payload:
        mapped = is_mapped(tensor)
        if self.selection.detach and not (mapped and is_over(tensor)):
            tensor = tensor.detach()
        return (Mapped if mapped else Held)(tensor, version)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that can be used everywhere: one made in inference mode could not go through autograd."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return tensor.detach().clone()
    return tensor.detach().clone()


def _described(tensor: torch.Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)}"


def has_drawn(state: torch.Tensor, device: str = "cpu") -> bool:
    """Whether the default generator of a device has drawn a number since it was in a state; of another: it may have."""
    if device == "generator":
        return True
    with UNSEEN(), MODES_OFF():  # a fake mode of the user's could not compare
        now = torch.default_generator.get_state() if device == "cpu" else torch.cuda.get_rng_state(device)
        return not torch.equal(state, now)


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
