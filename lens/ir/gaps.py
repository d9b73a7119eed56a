"""Gaps: where a trace ends or begins out of sight. A graph that has none tells the whole story of the run."""

from __future__ import annotations

from collections import Counter

from attrs import frozen

from lens.ir.elements import Leaf, Location
from lens.ir.graph import Graph

#: Reads whose result goes on as Python or NumPy data: what is computed from it is not in the graph.
ESCAPES = {
    "numpy": "what NumPy computes from it is not in the graph",
    "dlpack": "what another library computes from it is not in the graph",
    "tolist": "the numbers read are constants of this run",
    "item": "the number read is a constant of this run",
    "int": "the number read is a constant of this run",
    "float": "the number read is a constant of this run",
    "index": "the number read is a constant of this run",
    "complex": "the number read is a constant of this run",
    "data_ptr": "whoever has the address can read and write the memory out of sight",
}
#: What an opaque operation hides, by the beginning of its name.
_OPAQUE = {
    "torch.jit.": "what it is made of is not in the graph; trace the module from before it was scripted to see inside",
    "torch.func.": "what it is made of is not in the graph; call the function without the transform to see inside",
    "lens.": "a tensor subclass keeps other tensors inside; what it does with them is not in the graph",
    "": "what it is made of is not in the graph",
}
UNCOUNTED = "torch counts no writes to tensors made in inference mode"
NOT_SEEN = "work was handed to another thread, where this backend does not see it"
NOT_ENDED = "work in another thread had not ended when the trace did"
UNORDERED = "work in two threads used the same memory, and wrote to it"
NO_SCOPE = "a module outside of the model that module.compile() has compiled was called; its operations have no scope"
BACKWARD = "a backward pass ran"
#: The end of a sentence that begins with what the model returned.
RUNS_LATER = "whose code runs only when it is used"
#: What the backend knows that it did not see, and what to do about it.
_UNSEEN = {
    UNCOUNTED: "a write by code out of sight would not be noticed; trace under torch.no_grad() to find such",
    NOT_SEEN: "its results are leaves of unknown origin; torch_function and decoration record in threads",
    NOT_ENDED: "wait for it in the forward to see it",
    UNORDERED: "the order in the graph need not be the real one, and values of that memory may be wrong; have one "
    "thread wait for the other",
    NO_SCOPE: "make it a part of the model, or call torch.compile(module) instead",
    BACKWARD: "what it adds to the grad of tensors is not in the graph; use torch.autograd.grad to see it",
    RUNS_LATER: "none of it is in the graph; use it inside of `with lens.tracing(model)`",
    "": "it is not in the graph",
}


@frozen
class Gap:
    """Something that the backend could not see.

    Args:
        kind: ``external`` (a tensor of unknown origin), ``read`` (a value that left the tensor world), ``reads`` (the
            backend does not see all of these), ``opaque`` (an operation whose interior is out of sight), ``unseen``
            (something that the backend knows it missed), or ``fast_paths`` (the run differed from the plain one on
            purpose).
        what: What happened.
        advice: What it means, and what to do.
        location: Where.
        times: How often it happened there.
    """

    kind: str
    what: str
    advice: str
    location: Location | None = None
    times: int = 1

    def __str__(self) -> str:
        place = f" at {self.location}" if self.location is not None else ""
        often = f" ({self.times} times)" if self.times > 1 else ""
        return f"{self.what}{place}{often}: {self.advice}"


def find_gaps(graph: Graph) -> tuple[Gap, ...]:
    """All gaps of a graph: external tensors, then reads by place, then settings. Linear."""
    gaps = [_external(graph, leaf) for leaf in graph.leaves if leaf.kind == "external"]
    reads = Counter((read.kind, read.location) for read in graph.reads if read.kind in ESCAPES)
    for (kind, location), times in reads.items():
        gaps.append(Gap("read", f"{kind}() took a value out of the graph", ESCAPES[kind], location, times))
    opaque = Counter((str(op.function), op.location) for op in graph.ops if op.function.opaque)
    for (name, location), times in opaque.items():
        advice = next(text for prefix, text in _OPAQUE.items() if name.startswith(prefix))
        gaps.append(Gap("opaque", f"{name} ran as one operation", advice, location, times))
    for unseen, times in Counter(graph.meta.unseen).items():
        advice = next(text for sentence, text in _UNSEEN.items() if unseen.what.endswith(sentence))
        gaps.append(Gap("unseen", unseen.what, advice, unseen.location, times))
    if graph.meta.backend and "reads" not in graph.meta.capabilities:
        advice = "numbers and arrays made from tensors may be constants of this run; torch_function sees the reads"
        gaps.append(Gap("reads", f"{graph.meta.backend} does not see every way out of the tensor world", advice))
    if graph.meta.fast_paths == "open":
        advice = "the result may differ from the plain one by rounding, and at padded positions of attention"
        gaps.append(Gap("fast_paths", "torch's fused eval paths were switched off", advice))
    return tuple(gaps)


def _external(graph: Graph, leaf: Leaf) -> Gap:
    value = graph.values[leaf.value]
    advice = "if it was computed from a tensor of the model, that dependence is missing; keep it in torch to see it"
    return Gap("external", f"a tensor {value.type} of unknown origin was used", advice, leaf.location)
