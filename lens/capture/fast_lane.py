"""The way of most operations: what a recorder does with a call of a ``quick`` function, in one function.

Most operations make tensors and change nothing; most of these make one, in memory of its own or a view of such a one,
and some write to such a one and return it. They are written down when they are over. Every other call goes the general
way.

All of it is in one function on local names, against the custom of this house, because it runs between any two kernels
of the model: in turn with the same in three functions, 0.2 us less of 3.9 per operation. Most of what it saves is
memory that it does not touch, which has to come into the caches and go again (docs/adr/010-fresh-results.md): one tuple
stands for a value wherever it is named alone, one row for all values of one type; nothing is kept for a dead tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeAlias
from weakref import getweakrefcount, ref

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import Parameter

from lens.capture.encoding import ATOMS, FIRST_SLOT, SLOTS
from lens.capture.nodes import MOST_NODES
from lens.capture.operands import SEQUENCES
from lens.capture.recorder import Recorder
from lens.functions import PLAIN_TYPES, Function, Kind

#: A ``__torch_function__``, or what one hands a call to.
Handler: TypeAlias = Callable[..., Any]
#: More tensors than any operator takes, but for those that take lists.
_MANY = 128
#: The templates of calls with so many tensors and nothing else.
_FIRST_SLOTS = tuple(SLOTS[:number] for number in range(_MANY))


def fast_lane(  # noqa: C901  # the custom of small functions costs 5 % here
    recorder: Recorder, functions: Mapping[Callable[..., Any], Function], otherwise: Handler
) -> Handler:
    """A mode's ``__torch_function__`` that records the calls of quick functions.

    Args:
        recorder: Whose tape is written.
        functions: What is known of a callable.
        otherwise: Called in its place for all other calls.
    """
    table, value_of, values_of = recorder.tensors, recorder.value_of, recorder.values_of
    reserved, by_id = table.reserved, table.by_id
    fresh: dict[int, Any] = table.fresh
    values, rows = recorder.tape.values, recorder.tape.ops
    find_site, encode, slots_in = recorder.locator.find, recorder.encode, recorder.encoder.slots_in
    keeper = recorder.keeper
    held = None if keeper.nothing else keeper.held
    keeps_fresh = recorder.keeps_fresh
    described: dict[Any, Any] = {}
    shared, metadata = described.setdefault, Kind.METADATA

    def __torch_function__(  # noqa: C901
        mode: object,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        function = functions[func]
        if types or not function.quick or (kwargs and "out" in kwargs):
            if function.kind is metadata:
                return func(*args, **kwargs) if kwargs else func(*args)
            return otherwise(func, types, args, kwargs)
        was = None  # of a fresh tensor that is written to: what it was
        is_fresh = function.fresh
        if not is_fresh and not function.plain:
            if function.rewrites:
                was = fresh.get(id(args[0])) if args and held is None else None
                if was is None or was[0]() is not args[0] or was[2] != args[0]._version or was[3]:
                    return otherwise(func, types, args, kwargs)
            elif function.random:
                if function.draws(args, kwargs):
                    return otherwise(func, types, args, kwargs)
            elif kwargs or len(args) <= function.fresh_unless or args[function.fresh_unless]:  # type: ignore
                return otherwise(func, types, args, kwargs)
            else:
                is_fresh = True

        try:
            begin = perf_counter()
            result = func(*args, **kwargs) if kwargs else func(*args)
            duration = perf_counter() - begin
        except BaseException:
            recorder.fails(function)
            raise
        site = recorder.inside_site or find_site(sys._getframe(1), recorder.call_site)
        if was:  # among the operands it is what it was
            fresh[id(args[0])] = was[0], was[1], args[0]._version, False

        operands: Any = ()
        encoded: Any = None
        named: Mapping[str, Any] | None = kwargs or None
        if kwargs and not ATOMS.issuperset(map(type, kwargs.values())):
            operands, encoded, named = encode(args, kwargs)
        else:
            for arg in args:
                kind = type(arg)
                if kind is Tensor:
                    number = id(arg)
                    known = fresh.get(number)
                    if known is not None and known[0]() is arg and known[2] == arg._version:
                        operands += known[1]  # the same tuple, if it is the first
                    elif (leaf := reserved.get(number)) is not None and leaf[1] == arg._version:
                        operands += leaf[0]
                    elif (
                        (record := by_id.get(number)) is not None
                        and record() is arg
                        and not record.pending
                        and (record.aliases is None or record.looked == len(record.aliases.writes))
                        and (record.version is None or record.version == arg._version)  # type: ignore[union-attr]
                    ):
                        operands += (record.value,)
                    else:
                        operands += (value_of(arg),)
                elif kind is Parameter:
                    leaf = reserved.get(id(arg))
                    operands += leaf[0] if leaf is not None and leaf[1] == arg._version else (value_of(arg),)
                elif kind in ATOMS or (kind is tuple and ATOMS.issuperset(map(type, arg))):
                    encoded = (_FIRST_SLOTS[len(operands)] if encoded is None else encoded) + (arg,)
                    continue
                elif kind in SEQUENCES and len(arg) < _MANY and PLAIN_TYPES.issuperset(map(type, arg)):
                    first = len(operands)
                    encoded = _FIRST_SLOTS[first] if encoded is None else encoded
                    operands += (*values_of(arg),)
                    encoded += (slots_in(kind, first, len(operands)),)
                    continue
                else:
                    operands, encoded, named = encode(args, kwargs)
                    break
                if encoded is not None:
                    encoded += (SLOTS[len(operands) - 1],)
            if encoded is None:
                encoded = _FIRST_SLOTS[len(operands)]

        results: Sequence[int] = ()
        form: Any = FIRST_SLOT
        if keeps_fresh and type(result) is Tensor:
            shown = was
            is_usual: object = False
            try:
                # Somebody who knows a new tensor already has made it: another mode, or a kernel of the user's own.
                if was:
                    is_usual = result is args[0]
                elif is_fresh:
                    is_usual = not getweakrefcount(result)
                elif args:
                    shown = table.shown(args[0], result)
                    is_usual = shown or (
                        function.shows_or_copies
                        and result is not args[0]
                        and result._base is None
                        and not getweakrefcount(result)
                    )
                if is_usual:
                    alias, shares = (shown[1][0], shown[3]) if shown else (None, False)
                    value, version = len(values), result._version
                    if value < MOST_NODES:  # as in ``node_class``
                        grad = result.grad_fn
                        node = None if grad is None else type(grad)
                    else:
                        node = None if result.is_leaf else Node
                    row = (result.shape, result.dtype, result.device, result.layout, alias, node)
                    values.append(row if shown else shared(row, row))
                    results = (value,)
                    fresh[id(result)] = ref(result), results, version, shares
                    if held is not None:
                        held[value] = result, version
            except (RuntimeError, TypeError):  # it was made in inference mode, is nested, or has a symbolic shape
                pass
        if not results:
            if was:
                call = (function, len(rows), list(operands), encoded, named, site, (args[0],), None)
                recorder.finish(call, result, duration)
                return result
            results, form = recorder.results_of(result, function, operands, args[0] if args else None)
            if not results:
                return result
        scope = recorder.scope
        rows.append((function.ref, 0, operands, encoded, named, results, form, scope, site, duration, None))
        if recorder.stop is not None:
            recorder.stop.ran(recorder.described(function, results[0]), results[0], keeper)
        return result

    return __torch_function__
