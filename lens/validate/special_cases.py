"""When other contents of an operand rightly leave the result as it was: the rules, in one table.

The paper's example is a product with a tensor of zeros. What an operation writes comes from torch's schemas
(``lens.functions``); whether the other operands hide one is tried out, not looked up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from attrs import evolve, frozen

from lens.errors import ReplayError
from lens.functions import describe, resolve
from lens.ir.elements import Op, ValueId
from lens.ir.templates import Seq, Slice, Template, children, slots
from lens.replay.interpreter import Interpreter
from lens.validate.comparing import all_same
from lens.validate.nonsense import MOST_TOGETHER, Nonsense, with_others


@frozen
class Deaf:
    """An operand that made no difference to the results of an op.

    Args:
        interpreter, nonsense: To try it out.
        op: The op.
        value: The operand.
        operands: All values that the op reads.
        saved: Its results.
    """

    interpreter: Interpreter
    nonsense: Nonsense
    op: Op
    value: ValueId
    operands: Mapping[ValueId, torch.Tensor]
    saved: Mapping[ValueId, torch.Tensor]

    @property
    def tensor(self) -> torch.Tensor:
        """The operand itself."""
        return self.operands[self.value]

    @property
    def name(self) -> str:
        """The function, without overload."""
        return self.op.function.name.partition(".")[0]

    def differs(self, op: Op, others: Mapping[ValueId, torch.Tensor], value: ValueId) -> bool:
        """Whether an op gives different results for nonsense and for what is there."""
        try:
            before = self.interpreter.run_op(op, others)
        except ReplayError:
            return False  # it says nothing of this operand
        return reacts(self.interpreter, self.nonsense, op, others, value, before, shared=True)


def reacts(
    interpreter: Interpreter,
    nonsense: Nonsense,
    op: Op,
    operands: Mapping[ValueId, torch.Tensor],
    value: ValueId,
    results: Mapping[ValueId, torch.Tensor],
    *,
    shared: bool,
) -> bool:
    """Whether nonsense in place of an operand, whose memory may be ``shared`` with another, changes the results."""
    for substitute in nonsense.substitutes(operands[value], shared):
        with substitute as tensor:
            try:
                changed = interpreter.run_op(op, with_others(operands, {value: tensor}))
            except ReplayError:
                return True  # it refuses the nonsense, so it looks at it
            if not all_same(changed, results):
                return True
    return False


def _is_empty(deaf: Deaf) -> bool:
    return deaf.tensor.numel() == 0 or all(t.numel() == 0 for t in deaf.saved.values())


def _is_nan(deaf: Deaf) -> bool:
    return bool(deaf.saved) and all(t.is_floating_point() and bool(t.isnan().all()) for t in deaf.saved.values())


#: Give their first operand with some parts replaced, or all of them.
_OVERWRITING = frozenset(
    {"index_copy", "index_fill", "index_put", "index_reduce", "scatter", "scatter_reduce", "copy", "fill"}
)


def _is_overwritten(deaf: Deaf) -> bool:
    effects = {old for old, _ in deaf.op.effects}
    if deaf.value == deaf.op.operands[0] and (deaf.name in _OVERWRITING or deaf.name.endswith("_scatter")):
        return True
    return deaf.value in deaf.interpreter.written(deaf.op, deaf.operands) | effects


#: Give the positions of what a sparse tensor holds, and the sizes of what a nested one does.
_POSITIONS = (
    *("indices", "_indices", "crow_indices", "col_indices", "ccol_indices", "row_indices"),
    *("_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets"),
)


def _is_model(deaf: Deaf) -> bool:
    names = (deaf.name.endswith(("_like", "_as", "_as_", "_backward")), deaf.name.startswith(("new_", "_new_zeros")))
    return (
        any(names)
        or deaf.name in ("new", *_POSITIONS)
        or (deaf.name == "bernoulli" and len(deaf.op.args) > 1)  # with a probability of its own
        or (deaf.name in ("to", "type") and deaf.op.operands.index(deaf.value) == 1)
    )


#: Give positions, counts or margins, which other contents need not change: of one element the largest is the first.
_COARSE = ("argmax", "argmin", "argsort", "histogram", "fractional_max_pool", "multi_margin", "multilabel_margin")


def _is_coarse(deaf: Deaf) -> bool:
    return deaf.name.startswith(_COARSE)


def _tells_where(deaf: Deaf) -> bool:
    function = describe(resolve(deaf.op.function))
    alias = deaf.interpreter.graph.values[deaf.op.results[0]].alias_of if deaf.op.results else None
    return function.reaches and not (function.copies and alias is None)


def _is_of_a_block_mask(deaf: Deaf) -> bool:
    """The fifth argument of ``flex_attention`` holds lists of blocks for a kernel; its function masks each score."""
    if deaf.name != "flex_attention" or len(deaf.op.args) < 5:
        return False
    return deaf.value in {deaf.op.operands[i] for i in slots(deaf.op.args[4])}


def _is_closed_over(deaf: Deaf) -> bool:
    return deaf.op.function.opaque


#: Stands for an operand that is given apart from the others.
_APART = ValueId(-1)


def _each_alone(op: Op, value: ValueId) -> Iterator[Op]:
    """An operation that reads a value in several places, with ``_APART`` in one of them: each in turn."""
    places = [i for i, v in enumerate(op.operands) if v == value]
    for place in places if len(places) > 1 else ():
        yield evolve(op, operands=tuple(_APART if i == place else v for i, v in enumerate(op.operands)))


def _cancels(deaf: Deaf) -> bool:
    """The operand stands in several places: a difference shows when one of them alone is changed."""
    operands = {**deaf.operands, _APART: deaf.tensor}
    return any(deaf.differs(variant, operands, _APART) for variant in _each_alone(deaf.op, deaf.value))


def _is_hidden(deaf: Deaf) -> bool:
    """A difference shows when another operand is another one too, or all others are: of many, that is soon told."""
    others = {value: deaf.operands[value] for value in dict.fromkeys(deaf.op.reads) if value != deaf.value}
    if len(others) > 1 and sum(other.numel() for other in others.values()) <= MOST_TOGETHER:
        for replaced in deaf.nonsense.together(others):
            if deaf.differs(deaf.op, {**deaf.operands, **replaced}, deaf.value):
                return True
    for value, other in others.items():
        for substitute in deaf.nonsense.substitutes(other, shared=True):
            with substitute as tensor:
                if deaf.differs(deaf.op, {**deaf.operands, value: tensor}, deaf.value):
                    return True
                for variant in _each_alone(deaf.op, value):  # as of `where` with one tensor for both branches
                    if deaf.differs(variant, {**deaf.operands, _APART: tensor}, deaf.value):
                        return True
        # No index at all, where there is none that leaves anything out; one, where there is none.
        shorter = [other[:0]] if other.dim() == 1 else []
        longer = [other.new_zeros([max(n, 1) for n in other.shape])] if not other.numel() else []
        if any(deaf.differs(deaf.op, {**deaf.operands, value: tensor}, deaf.value) for tensor in shorter + longer):
            return True
    return False


def _is_switched_off(deaf: Deaf) -> bool:
    """A difference shows when the numbers and flags among the arguments are other ones: all of them, or one.

    The numbers tried are a few plain ones and at last one of the operand's own.
    """
    plain = deaf.tensor.layout is torch.strided and not deaf.tensor.is_nested
    own = deaf.tensor.flatten()[:1].tolist() if plain else []
    numbers = (0.6, -1.7, 0, 1, 2, *own)
    variants = itertools.chain(
        (_with_numbers(deaf.op, number) for number in numbers),
        (_with_number_at(deaf.op, place, number) for place in _places(deaf.op) for number in numbers),
    )
    return any(op != deaf.op and deaf.differs(op, deaf.operands, deaf.value) for op in variants)


def _is_plain_in_its_dtype(deaf: Deaf) -> bool:
    """A difference shows in a dtype with more values, as of ``isfinite`` on integers."""
    if deaf.tensor.is_complex():
        return False
    for dtype in (torch.float32, torch.complex64):
        own = {deaf.value: deaf.tensor.to(dtype)}
        logical = {v: t.to(dtype) * 0.7 + 1.3 for v, t in deaf.operands.items() if t.dtype is torch.bool}
        for others in ({}, {v: t.to(dtype) for v, t in deaf.operands.items()}, logical):
            for op in (deaf.op, _with_numbers(deaf.op, 0.6)):
                if deaf.differs(op, {**deaf.operands, **others, **own}, deaf.value):
                    return True
    return False


_NUMBERS = (int, float, complex)


def _with_numbers(op: Op, number: float) -> Op:
    """An op with this number in place of its own, and its flags turned over."""
    return evolve(
        op,
        args=tuple([_changed(arg, number) for arg in op.args]),
        kwargs=tuple([(name, _changed(arg, number)) for name, arg in op.kwargs]),
    )


def _places(op: Op) -> Iterator[int | str]:
    """The arguments of an op that are numbers or flags: positions and names."""
    yield from (place for place, arg in enumerate(op.args) if isinstance(arg, _NUMBERS))
    yield from (name for name, arg in op.kwargs if isinstance(arg, _NUMBERS))


def _with_number_at(op: Op, place: int | str, number: float) -> Op:
    """An op with this number as that argument, or with that flag turned over."""
    if isinstance(place, int):
        return evolve(op, args=(*op.args[:place], _changed(op.args[place], number), *op.args[place + 1 :]))
    kwargs = tuple([(name, _changed(arg, number) if name == place else arg) for name, arg in op.kwargs])
    return evolve(op, kwargs=kwargs)


def _changed(template: Template, number: float) -> Template:
    if isinstance(template, bool):
        return not template
    if isinstance(template, Seq):
        return evolve(template, items=tuple([_changed(item, number) for item in template.items]))
    if isinstance(template, Slice):
        return Slice(*(_changed(part, number) for part in children(template)))
    return number if isinstance(template, _NUMBERS) else template


def _cannot_be_replaced(deaf: Deaf) -> bool:
    return next(iter(deaf.nonsense.substitutes(deaf.tensor, shared=True)), None) is None


@frozen
class SpecialCase:
    """A rule: its name, what it says, and when it holds."""

    name: str
    reason: str
    holds: Callable[[Deaf], bool]


#: In this order; the first that holds is the reason. What none explains has failed.
SPECIAL_CASES = (
    SpecialCase("empty", "there are no elements", _is_empty),
    SpecialCase("overwritten", "is overwritten, and what was there before does not matter", _is_overwritten),
    SpecialCase("model", "gives its shape, dtype or device, not its values", _is_model),
    SpecialCase("place", "says where the memory lies that is shown", _tells_where),
    SpecialCase("blocks", "says which blocks a kernel may leave out; in full, all are masked", _is_of_a_block_mask),
    SpecialCase("closed over", "is closed over by the function, which finds it by itself", _is_closed_over),
    SpecialCase("irreplaceable", "is of a layout or dtype for which lens has no other contents", _cannot_be_replaced),
    SpecialCase("cancels", "stands in several places that cancel each other", _cancels),
    SpecialCase("hidden", "is hidden by the values of the other operands, as a factor by zeros", _is_hidden),
    SpecialCase("switched off", "is hidden by a number or flag among the arguments", _is_switched_off),
    SpecialCase("nan", "has a result that is not a number, as the spread of one number", _is_nan),
    SpecialCase("dtype", "has no value in its dtype that would make a difference", _is_plain_in_its_dtype),
    SpecialCase("coarse", "gives positions or counts that other contents need not change", _is_coarse),
)


def explain(deaf: Deaf) -> SpecialCase | None:
    """The first rule that says why an operand made no difference; None if none does."""
    return next((case for case in SPECIAL_CASES if case.holds(deaf)), None)
