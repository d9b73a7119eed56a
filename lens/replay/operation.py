"""Running a single operation of a graph again, from given values.

What an op is given is never changed, and what it made is never changed later: an op that writes runs in an
``Arena``, a memory of its own, in which copies of its operands and of the old values of its effects lie to each
other as they did in the run (``PayloadStore.layouts``). So the new values of effects need no rule of their own:
they are what lies there afterwards. An op that shows memory anew (``as_strided``) is not called: its result is what
lies at its place among the tensors that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from attrs import frozen

from lens.errors import ReplayError
from lens.functions import Function, describe, resolve
from lens.ir.elements import Op, ValueId
from lens.ir.graph import Graph
from lens.ir.layouts import Layout
from lens.ir.payloads import PayloadStore
from lens.ir.templates import Map, Seq, Slot, Template
from lens.ir.types import TensorType
from lens.replay.arena import Arena
from lens.replay.arguments import build

#: By the dtype of a result to which no operand gave it: torch's default dtype.
DEFAULTS = {
    **{name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")},
    "complex32": torch.float16,
    "complex64": torch.float32,
    "complex128": torch.float64,
}
#: Show memory anew in the size of a tensor that they are given.
_SIZED_BY_A_TENSOR = frozenset({"set_", "resize_as_", "__deepcopy__"})
Tensors: TypeAlias = Mapping[ValueId, torch.Tensor]


def run_operation(graph: Graph, payloads: PayloadStore, op: Op, values: Tensors) -> dict[ValueId, torch.Tensor]:
    """What an op makes: its results, and the new values of its effects (``Interpreter.run_op``)."""
    return _Runner(graph, payloads).run(op, values)


def written_operands(graph: Graph, payloads: PayloadStore, op: Op, values: Tensors) -> set[ValueId]:
    """The operands that an op writes to, as torch's schemas tell it; all of them where nothing tells."""
    return _Runner(graph, payloads).written(op, values)


@frozen
class _Runner:
    graph: Graph
    payloads: PayloadStore

    def run(self, op: Op, values: Tensors) -> dict[ValueId, torch.Tensor]:
        asking = self._asking_for_grad(op)
        if not asking:
            with torch.no_grad():
                return self._run(op, values)
        alike = {v: values[v].detach() for v in op.reads}
        for value in asking:
            tensor = alike[value]
            if tensor.is_floating_point() and not tensor.is_inference():
                tensor.requires_grad_()
        with torch.set_grad_enabled(any(self._had_grad(v) for v in op.results)):
            return {v: tensor.detach() for v, tensor in self._run(op, alike).items()}

    def _asking_for_grad(self, op: Op) -> list[ValueId]:
        """The operands that asked for a gradient: torch could pick another kernel for them, with other last bits.

        Where none is known and a result has a history, ``requires_grad_`` was called in the run: of whom, nobody
        noted, but no parameter.
        """
        function = op.function
        if function.mutates or function.view or function.opaque or op.effects:
            return []
        known = [v for v in op.reads if self._required_grad(v)]
        if known or not any(self.graph.values[v].grad_fn is not None for v in op.results):
            return known
        return [v for v in op.reads if not self._is_parameter(v)]

    def _is_parameter(self, value: ValueId) -> bool:
        leaf = self.graph.leaf_of(value)
        return leaf is not None and leaf.kind == "parameter"

    def written(self, op: Op, values: Tensors) -> set[ValueId]:
        function = describe(resolve(op.function))
        if _may_write_any(op, function) and op.function.mutates:
            return set(op.operands)
        operands = [values[v] for v in op.operands]
        targets = {id(t) for t in function.written(*self._arguments(op, operands))}
        return {v for v, t in zip(op.operands, operands, strict=True) if id(t) in targets}

    def _required_grad(self, value: ValueId) -> bool:
        """Whether it said so of itself: a view of a parameter does under ``no_grad`` too, where it has no history."""
        producer = self.graph.producer(value)
        if self._had_grad(value) or producer is None or not producer.function.view:
            return self._had_grad(value)
        base = self.graph.values[value].alias_of
        detached = producer.function.name.partition(".")[0] in ("detach", "data")
        return base is not None and not detached and self._required_grad(base)

    def _had_grad(self, value: ValueId) -> bool:
        """Whether a derivative by this value could have been asked for in the run."""
        leaf = self.graph.leaf_of(value)
        return self.graph.values[value].grad_fn is not None or (leaf is not None and leaf.trainable)

    def _run(self, op: Op, values: Tensors) -> dict[ValueId, torch.Tensor]:
        function = describe(resolve(op.function))
        operands = [values[v] for v in op.operands]
        arena = None
        args, kwargs = self._arguments(op, operands)
        written = operands if _may_write_any(op, function) else function.written(args, kwargs)
        if written or op.effects:
            arena = self._arena(op, values, written)
        elif not function.reaches:
            arena = self._arena_of_moved(op, values)
        if arena is not None:
            operands = [arena.placed.get(v, values[v]) for v in op.operands]
        if arena and function.reaches and op.results and arena.holds(self.payloads.layouts.get(op.results[0])):
            return self._shown(op, arena)
        args, kwargs = self._arguments(op, operands)
        try:
            with self._generators(op, kwargs), _autocast(op), self._default_dtype(op, operands):
                returned = function.callable(*args, **kwargs)
        except RuntimeError:
            if not op.function.view:
                raise
            # A view of a copy that has not the strides of the run: what it shows depends on the elements alone.
            args, kwargs = self._arguments(op, [tensor.contiguous() for tensor in operands])
            returned = function.callable(*args, **kwargs)
        made = dict(_matched(op.form, returned, op.results))
        missing = [value for value in op.results if value not in made]
        if missing:
            made.update(zip(missing, _distinct(function.written(args, kwargs)), strict=False))
        if arena is not None:
            made.update({new: arena.placed[old] for old, new in op.effects})
        return made

    def _arguments(self, op: Op, operands: list[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        objects = self.payloads.objects
        args = [build(arg, operands, objects) for arg in op.args]
        return args, {name: build(arg, operands, objects) for name, arg in op.keywords}

    def _arena(self, op: Op, values: Tensors, written: list[torch.Tensor]) -> Arena:
        """Copies of what the op writes, of what it changes through shared memory, and of operands that lie there: in
        the order of the values, after the old values of effects."""
        layouts = self.payloads.layouts
        placed = {old: values[old] for old, _ in op.effects}
        targets = {id(tensor) for tensor in written}
        chosen = {v for v in op.operands if id(values[v]) in targets} | placed.keys()
        memories = {layouts[v].memory for v in chosen if v in layouts}
        operands = set(op.operands)
        for value in filter(operands.__contains__, values):
            if value in chosen or (value in layouts and layouts[value].memory in memories):
                placed.pop(value, None)
                placed[value] = values[value]
        return Arena(placed, layouts)

    def _arena_of_moved(self, op: Op, values: Tensors) -> Arena | None:
        """Copies of the operands whose elements lie otherwise than in the run, as in a copy of a part of a tensor: in
        another order torch adds up other last bits. None if there are none."""
        layouts = self.payloads.layouts
        moved = {v: values[v] for v in op.operands if v in layouts and _lies_otherwise(values[v], layouts[v])}
        return Arena(moved, layouts) if moved else None

    def _shown(self, op: Op, arena: Arena) -> dict[ValueId, torch.Tensor]:
        value = op.results[0]
        layout, kind = self.payloads.layouts[value], self.graph.values[value].type
        dtype = getattr(torch, kind.dtype)
        for there, tensor in arena.placed.items():
            if there in self.payloads.layouts and self.payloads.layouts[there].memory == layout.memory:
                dtype = self._dtype_shown(op, dtype, self.graph.values[there].type, tensor)
        result = arena.show(layout, dtype, kind.shape)
        return {value: result, **{new: arena.placed[old] for old, new in op.effects}}

    def _dtype_shown(self, op: Op, dtype: torch.dtype, recorded: TensorType, given: torch.Tensor) -> torch.dtype:
        """The dtype in which memory is shown anew, where a tensor of perhaps another type than in the run lies."""
        was = getattr(torch, recorded.dtype)
        grows = op.function.name.partition(".")[0] in _SIZED_BY_A_TENSOR and recorded.shape != tuple(given.shape)
        if grows or (given.dtype is not was and dtype not in (was, given.dtype)):
            raise ReplayError(
                f"it shows memory where a {recorded} lay in the run, and now lies a {given.dtype}{list(given.shape)}",
                hint="give it a tensor of the recorded type",
            )
        return given.dtype if dtype is was else dtype

    @contextmanager
    def _default_dtype(self, op: Op, operands: list[torch.Tensor]) -> Iterator[None]:
        """torch's default dtype as it was in the run, where the results tell it: no operand gave them their dtype."""
        made = [] if any(map(_has_fractions, operands)) else [self.graph.values[v].type.dtype for v in op.results]
        told = next((DEFAULTS[name] for name in made if name in DEFAULTS), None)
        before = torch.get_default_dtype()
        if told is None or told is before:
            yield
            return
        torch.set_default_dtype(told)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    @contextmanager
    def _generators(self, op: Op, kwargs: dict[str, Any]) -> Iterator[None]:
        """Start the generators from the recorded states, and put them back afterwards."""
        states = self.payloads.states_before(op.id)
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


def _may_write_any(op: Op, function: Function) -> bool:
    """Whether nothing tells which of its operands an op writes to."""
    return op.function.composite or function.reaches or (op.function.opaque and op.function.mutates)


@contextmanager
def _autocast(op: Op) -> Iterator[None]:
    """Autocast as it was when the operation ran."""
    with ExitStack() as stack:
        for device, dtype in op.autocast:
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


def _lies_otherwise(tensor: torch.Tensor, layout: Layout) -> bool:
    is_strided = not tensor.is_nested and tensor.layout is torch.strided and tensor.dim() == len(layout.strides)
    return is_strided and tensor.stride() != layout.strides


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _distinct(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _matched(form: Template, returned: Any, results: tuple[ValueId, ...]) -> Iterator[tuple[ValueId, torch.Tensor]]:
    """Pair the slots of a form with the tensors that stand there in what was returned."""
    if isinstance(form, Slot):
        if returned is None:  # what only a derivative needs, which nobody asks for here
            return
        if not isinstance(returned, torch.Tensor):
            raise ReplayError(
                f"a tensor was expected, the function returned a {type(returned).__name__}",
                hint="trace the model again: what the function gives has changed since",
            )
        yield results[form.index], returned
    elif isinstance(form, Seq):
        for part, item in zip(form.items, returned, strict=True):
            yield from _matched(part, item, results)
    elif isinstance(form, Map):
        for (_, part), item in zip(form.items, _values(returned), strict=True):
            yield from _matched(part, item, results)


def _values(returned: Any) -> list[Any]:
    return list(returned.values()) if hasattr(returned, "values") else list(vars(returned).values())
