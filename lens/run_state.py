"""What a forward pass may change, so that it can be put back: several runs from one start."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import nn
from torch.nn.parameter import is_lazy

from lens.capture.encoding import SLOTS, ArgumentEncoder
from lens.errors import PayloadError
from lens.foreign import Raised, attempt
from lens.history import ModelHistory
from lens.ir.templates import Opaque
from lens.mementos import Memento, TensorMemento, has_memory, mementos_of
from lens.reachable import reachable


@define
class RunState:
    """The state of a model, its inputs and the generators at one moment.

    Copied is what can be changed and is reached from the model and the inputs (``lens.reachable``), but for the model's
    parameters: of these only a sum of their bits is kept, and a recorded run gives those that it wrote to (``after``).

    Args:
        lazy: Whether a lazy module is still to be shaped.
        is_whole: Whether all that is reached was looked at.
        lost: What has changed and cannot be put back, in words.
        unknown: What could not be looked at, in words.
    """

    lazy: bool
    is_whole: bool
    _parameters: dict[str, TensorMemento]
    _others: list[Memento]
    _generators: list[tuple[Callable[[Any], object], Any]]
    _sums: dict[str, int | None] = field(factory=dict)
    lost: list[str] = field(factory=list)
    unknown: list[str] = field(factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> RunState:
        """The state now.

        Args:
            model: The model.
            inputs: Its arguments, in any containers.
        """
        named = dict(model.named_parameters())
        shaped = {name: parameter for name, parameter in named.items() if not is_lazy(parameter)}
        modules = list(model.modules())
        objects, is_whole = reachable([*modules, *model.buffers(), *named.values(), inputs])
        own = set(map(id, named.values()))
        others, unknown = mementos_of([one for one in objects if id(one) not in own and not _is_unshaped(one)])
        state = cls(
            len(shaped) < len(named),
            is_whole,
            {name: TensorMemento(parameter, copied=False) for name, parameter in shaped.items()},
            others,
            list(_generators()),
            unknown=unknown,
        )
        state._sums = {name: _sum_of_bits(memento.shown) for name, memento in state._parameters.items()}
        return state

    def after(self, history: ModelHistory | None) -> RunState:
        """The state now, at the end of a recorded run that began here.

        From its history is taken what the start has no copy of: the parameters that were written to, and the
        generators that the model has of its own.
        """
        written = {name for name in self._parameters if self._is_changed(name)}
        end = RunState(
            self.lazy,
            self.is_whole,
            {n: TensorMemento(m.tensor, copied=n in written) for n, m in self._parameters.items()},
            [],
            list(_generators()),
            unknown=self.unknown,
        )
        for memento in self._others:
            now = attempt(memento.again)
            if isinstance(now, Raised):
                end.lost.append(f"an object ({now})")
            else:
                end._others.append(now)
        for name in sorted(written):
            self._recover(name, history)
        if history is not None:
            self._take_generators(history, end)
        return end

    def restore(self) -> None:
        """Put everything back; what refuses is lost."""
        for memento in (*self._parameters.values(), *self._others):
            found = attempt(memento.put_back)
            if isinstance(found, Raised):
                self.lost.append(f"an object ({found})")
        for setter, state in self._generators:
            setter(state)

    def _is_changed(self, name: str) -> bool:
        memento = self._parameters[name]
        return memento.is_written() or _sum_of_bits(memento.shown) != self._sums[name]

    def _recover(self, name: str, history: ModelHistory | None) -> None:
        memento, total = self._parameters[name], self._sums[name]
        before = None if history is None else _saved_parameter(history, name)
        if before is not None and before.shape == memento.shown.shape and before.dtype == memento.shown.dtype:
            if before.stride() != memento.shown.stride():
                before = torch.empty_like(memento.shown).copy_(before)
            if _sum_of_bits(before) == total:
                memento.contents = before
                return
        if total is None or _sum_of_bits(memento.shown) != total:
            self.lost.append(f"the parameter {name}, which something that lens did not see has written to")

    def _take_generators(self, history: ModelHistory, end: RunState) -> None:
        objects = [item for item in history.payloads.objects.values() if isinstance(item, torch.Generator)]
        for op, states in sorted(history.payloads.rng_states.items(), reverse=True):
            if "generator" in states and objects:
                generator = history.payloads.objects[_generator_index(history, op)]
                self._generators.append((generator.set_state, states["generator"]))
        end._generators += [(generator.set_state, generator.get_state()) for generator in objects]


def _saved_parameter(history: ModelHistory, name: str) -> torch.Tensor | None:
    """What a history has saved of a parameter, as it was when it was first met."""
    value = next((leaf.value for leaf in history.graph.leaves if name in leaf.addresses), None)
    if value is None or value not in history.payloads:
        return None
    try:
        return history.payloads.read(value).detach()  # type: ignore[no-any-return]
    except PayloadError:  # overwritten by something that lens did not see
        return None


def _sum_of_bits(tensor: torch.Tensor) -> int | None:
    """The sum of the bits in the order of memory, eight bytes at a time; None of tensors without plain memory.

    Wrapper subclasses have none, and refuse what they do not need.
    """
    total = attempt(partial(_sum_of_plain_bits, tensor))
    return None if isinstance(total, Raised) else total


def _sum_of_plain_bits(tensor: torch.Tensor) -> int | None:
    if tensor.is_quantized or not has_memory(tensor):
        return None
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    plain = tensor.detach().resolve_conj().resolve_neg()
    flat = plain.permute(order).contiguous().view(-1).view(torch.uint8)
    if flat.data_ptr() % 8 or flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())


def _is_unshaped(one: Any) -> bool:
    return issubclass(type(one), torch.Tensor) and is_lazy(one)


def _generator_index(history: ModelHistory, op: Any) -> int:
    return next(
        arg.index for name, arg in history.graph.ops[op].kwargs if name == "generator" and isinstance(arg, Opaque)
    )


def _generators() -> Iterator[tuple[Callable[[Any], object], Any]]:
    """How to set each generator of the process to where it is now, and the dtype of new tensors."""
    yield torch.set_rng_state, torch.get_rng_state()
    yield random.setstate, random.getstate()
    if torch.cuda.is_available():
        yield torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        yield numpy.set_state, numpy.get_state()
    yield torch.set_default_dtype, torch.get_default_dtype()


def tensors_of(objects: Any) -> list[torch.Tensor]:
    """The tensors in the containers that a model takes or returns, in the order in which lens numbers them."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> Any:
        found.append(tensor)
        return SLOTS[0]

    ArgumentEncoder(lambda _: 0).encode_with(objects, note)
    return found
