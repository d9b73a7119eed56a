"""Running single operations of a graph again, from given values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from attrs import field, frozen

from lens.errors import ReplayError
from lens.functions import describe, resolve
from lens.ir.elements import Op, OpId, ValueId
from lens.ir.templates import Map, Seq, Slot, Template
from lens.replay.arguments import build


@frozen
class Interpreter:
    """Runs operations.

    Args:
        objects: The opaque objects of the trace, by index.
        rng_states: Per random op, the generator states to start it from, by device.
    """

    objects: Mapping[int, Any] = field(factory=dict)
    rng_states: Mapping[OpId, Mapping[str, Any]] = field(factory=dict)

    def run(self, op: Op, operands: list[torch.Tensor]) -> dict[ValueId, torch.Tensor]:
        """The results of an op by value id.

        Args:
            op: A leaf operation; a composite runs as the function that it is.
            operands: Its operands, in order. They are not changed: what the op writes to is copied first.

        Raises:
            ReplayError: if the function or an argument is not there.
        """
        function = describe(resolve(op.function))
        safe = _detached_copies(operands) if _may_write(op) else list(operands)
        args = [build(arg, safe, self.objects) for arg in op.args]
        kwargs = {name: build(arg, safe, self.objects) for name, arg in op.kwargs}
        autocast = kwargs.pop("autocast", "")
        written = function.written(args, kwargs)
        with torch.no_grad(), self._generators(op, kwargs), _autocast(autocast):
            returned = function.callable(*args, **kwargs)
        results = dict(_matched(op.form, returned, op.results))
        missing = [value for value in op.results if value not in results]
        results.update(zip(missing, written, strict=False))
        return results

    @contextmanager
    def _generators(self, op: Op, kwargs: dict[str, Any]) -> Iterator[None]:
        """Start the generators from the recorded states, and put them back afterwards."""
        states = self.rng_states.get(op.id)
        if states is None:
            yield
            return
        before = {device: _generator_of(device, kwargs) for device in states}
        current = {device: getter() for device, (getter, _) in before.items()}
        for device, (_, setter) in before.items():
            setter(states[device])
        try:
            yield
        finally:
            for device, (_, setter) in before.items():
                setter(current[device])


def _may_write(op: Op) -> bool:
    """Whether a call may write to its operands; a closed composite may, in its interior."""
    return op.function.mutates or op.function.composite or any(name == "out" for name, _ in op.kwargs)


@contextmanager
def _autocast(state: str) -> Iterator[None]:
    """Autocast as it was when the operation ran, such as ``cpu:bfloat16``."""
    with ExitStack() as stack:
        for part in filter(None, state.split(",")):
            device, _, dtype = part.partition(":")
            stack.enter_context(torch.autocast(device, getattr(torch, dtype), cache_enabled=False))
        yield


def _generator_of(device: str, kwargs: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    if device == "generator":
        generator = kwargs["generator"]
        return generator.get_state, generator.set_state
    if device == "cpu":
        return torch.get_rng_state, torch.set_rng_state
    return (
        lambda: torch.cuda.get_rng_state(device),
        lambda state: torch.cuda.set_rng_state(state, device),
    )


def _detached_copies(operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of the operands; the same tensor twice is one copy twice."""
    copies: dict[int, torch.Tensor] = {}
    for tensor in operands:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
    return [copies[id(tensor)] for tensor in operands]


def _matched(form: Template, returned: Any, results: tuple[ValueId, ...]) -> Iterator[tuple[ValueId, torch.Tensor]]:
    """Pair the slots of a form with the tensors that stand there in what was returned."""
    if isinstance(form, Slot):
        if returned is None:  # what only a derivative needs, which nobody asks for here
            return
        if not isinstance(returned, torch.Tensor):
            raise ReplayError(f"a tensor was expected, the function returned a {type(returned).__name__}")
        yield results[form.index], returned
    elif isinstance(form, Seq):
        for part, item in zip(form.items, returned, strict=True):
            yield from _matched(part, item, results)
    elif isinstance(form, Map):
        for (_, part), item in zip(form.items, _values(returned), strict=True):
            yield from _matched(part, item, results)


def _values(returned: Any) -> list[Any]:
    return list(returned.values()) if hasattr(returned, "values") else list(vars(returned).values())
