"""The completeness audit: is every call below autograd part of a recorded operation?

A backend above autograd (``torch_function``, ``decoration``) sees what Python calls. What reaches torch's kernels by
another way is missing in its graph. The audit runs a model under the backend and counts, below autograd, every
operator call that no recorded operation owns.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import frozen
from torch import nn

from lens.capture.addresses import AddressBook
from lens.capture.backend import CaptureBackend, chosen_backend
from lens.capture.backend_contract import recording
from lens.capture.inputs import check_call, named, named_tensors, positional
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.selection import make_selection
from lens.capture.sites import Locator
from lens.ir.elements import Location
from lens.ir.places import SiteTable
from lens.stages import stage
from lens.validate.census import BACKWARD, CensusCall, CensusMode, CensusRecorder

#: Calls that are no part of the model's computation, by the Python functions that make them (beginnings of names).
_BOOKKEEPING = {
    "lens.capture.recorder.": "the trace itself compares generator states and looks at nested tensors",
    "torch._tensor.__format__": "a tensor was put into text",
    BACKWARD: "a backward pass, which is not recorded: history.gaps says so",
}
#: The Python function that calls an autograd function of the user's, whose saved outputs autograd detaches by itself.
_APPLY = "torch.autograd.function.apply"
#: Operators that tell how a tensor is made, and read no element of it.
_FORM = (
    *("aten.is_coalesced", "aten.is_same_size", "aten.is_set_to", "aten.is_pinned", "aten.can_cast", "prim.layout"),
    *("aten.sparse_dim", "aten.dense_dim", "aten._dimI", "aten._dimV", "aten.numel", "aten.sym_numel"),
    *("aten.sym_is_contiguous", "aten.sym_storage_offset", "aten.sym_size", "aten.sym_stride"),
    *("aten.qscheme", "aten.q_scale", "aten.q_zero_point", "aten.q_per_channel_axis"),
)
#: Operators that compute nothing.
_IDLE = {
    **dict.fromkeys((f"{name}.default" for name in _FORM), "tells how a tensor is made, and reads no element of it"),
    "aten.lift_fresh.default": "brings a tensor made of other data into sight: it is the result, or a leaf if unseen",
}
#: Calls that a backend below autograd sees, and rightly makes no operation of.
_SEEN_BELOW = {
    "aten.detach.default": "autograd wraps a result in another object: the same value",
    "aten.set_.source_Storage": "a tensor is given memory: it stands for the value there, or is a leaf",
    "aten.set_.source_Storage_storage_offset": "a tensor is given memory: it stands for the value there, or is a leaf",
}


@frozen
class Hole:
    """A call that nothing in the graph accounts for.

    Args:
        name: The operator, such as ``aten.relu.default``.
        location: The user's line that led to it.
        count: How often it happened there.
    """

    name: str
    location: Location | None
    count: int = 1


@frozen
class Audit:
    """What an audit found.

    Args:
        backend: The backend audited.
        owned: How many calls happened during a recorded operation.
        excused: How many did not, and need not, by reason.
        holes: Those that nothing accounts for, most frequent first.
    """

    backend: str
    owned: int
    excused: tuple[tuple[str, int], ...] = ()
    holes: tuple[Hole, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no hole."""
        return not self.holes

    def __str__(self) -> str:
        lost = sum(hole.count for hole in self.holes)
        rows = [f"audit of {self.backend}: {self.owned} calls owned by operations, {lost} in holes"]
        rows += [f"  {count:6}  excused: {reason}" for reason, count in self.excused]
        rows += [f"  {hole.count:6}  HOLE: {hole.name} at {hole.location or 'an unknown place'}" for hole in self.holes]
        return "\n".join(rows)


def audit(
    model: nn.Module,
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    *,
    backend: str | CaptureBackend = "torch_function",
) -> Audit:
    """Run a model once under a backend, and find what the backend does not see.

    Args:
        model: Any module.
        args: A tuple is the positional arguments; anything else is one argument.
        kwargs: Keyword arguments.
        backend: The capture backend to audit, by name or as itself.

    Raises:
        InputError: the model or its arguments cannot be used.
        BackendError: the backend is unknown or unavailable here.

    An exception of the model itself comes through unchanged. Only this thread is looked at.
    """
    positional_args, named_args = positional(args), named(kwargs)
    check_call(model, positional_args, named_args)
    watched = chosen_backend(backend)
    locator = Locator((MODULE_CALL_FILE, __file__))
    recorder = CensusRecorder(AddressBook(model), make_selection("none", {}), locator)
    module = type(watched).__module__
    recorder.begin_census(module.rpartition(".")[0] or module)
    for names, tensor in named_tensors(model, positional_args, named_args):
        recorder.leaf(tensor, "input", names)
    try:
        with stage("looking for what is missing"), CensusMode(recorder), recording(watched, recorder):
            model(*positional_args, **named_args)
        recorder.end_census()
        return _judge(recorder, watched.name)
    finally:
        recorder.close()


def _judge(recorder: CensusRecorder, backend: str) -> Audit:
    excused = Counter(recorder.excused)
    holes: Counter[tuple[str, Location | None]] = Counter()
    sites = SiteTable()
    for call in recorder.unowned:
        reason = _excuse(call)
        if reason:
            excused[reason] += 1
        else:
            holes[call.name, sites.locate(call.site)] += 1
    return Audit(
        backend,
        recorder.owned,
        tuple((reason, count) for reason, count in excused.most_common() if count),
        tuple(Hole(name, location, count) for (name, location), count in holes.most_common()),
    )


def _excuse(call: CensusCall) -> str | None:
    for beginning, reason in _BOOKKEEPING.items():
        if any(function.startswith(beginning) for function in call.functions):
            return reason
    if call.name == "aten.detach.default" and _APPLY in call.functions:  # one that Python calls is seen
        return "autograd keeps an output of a function without its history"
    return _IDLE.get(call.name) or (_SEEN_BELOW.get(call.name) if call.seen_below else None)
