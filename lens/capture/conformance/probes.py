"""What is asked about the conduct of a backend where no expected text could show it: in threads, at interrupts, ..."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lens.capture.backend import CaptureBackend
from lens.capture.conformance.case import Body
from lens.ir.graph import Graph
from lens.session import trace

#: Seconds after which nobody waits any longer for another thread.
_PATIENCE = 10.0


@frozen
class Probe:
    """One question about the conduct of a backend.

    Args:
        name: Its name, a word.
        ask: Gives what is wrong; nothing if all is well.
        needs: Capabilities without which it is not asked; those for operations go without saying.
    """

    name: str
    ask: Callable[[CaptureBackend], Iterator[str]]
    needs: tuple[str, ...] = ()


def _graph(function: Callable[..., Any], backend: CaptureBackend, **options: Any) -> Graph:
    passes = "granularity{level=leaf}"
    return trace(Body(function), torch.ones(2), backend=backend, passes=passes, save="none", **options).graph


def _names(graph: Graph) -> list[str]:
    return [op.function.name.partition(".")[0] for op in graph.ops]


_FILE = "<conformance>"  # of the user: files of lens and torch are passed over in the search for a line
_SOURCE = """
def forward(x):
    y = x.exp()
    if y.sum():
        y = y * 2
    return y.cos()
"""
_LINES = {"exp": 3, "sum": 4, "mul": 5, "cos": 6}


def _sites(backend: CaptureBackend) -> Iterator[str]:
    made: dict[str, Any] = {}
    exec(compile(_SOURCE, _FILE, "exec"), made)
    graph = _graph(made["forward"], backend)
    for name, op in zip(_names(graph), graph.ops, strict=True):
        if name in _LINES and (op.location is None or (op.location.file, op.location.line) != (_FILE, _LINES[name])):
            yield f"{name} of line {_LINES[name]} in {_FILE} is said to be at {op.location}"


def _python_data(backend: CaptureBackend) -> Iterator[str]:
    ways = ["tolist", "data_ptr", "dlpack", *["numpy"] * ("numpy" in sys.modules)]

    def forward(x: Tensor) -> Tensor:
        for way in ways:
            y = x.exp()
            from_dlpack(y) if way == "dlpack" else getattr(y, way)()
        return x

    missed = sorted(set(ways) - {read.kind for read in _graph(forward, backend).reads})
    if missed:
        yield f"it does not see: {', '.join(missed)}"


def _scripted(backend: CaptureBackend) -> Iterator[str]:
    unit: Any = torch.jit.CompilationUnit("def scripted(x):\n    return torch.relu(x * 2)\n")
    missed = sorted({"mul", "relu"} - set(_names(_graph(unit.scripted, backend))))
    if missed:
        yield f"it does not see, inside a scripted function: {', '.join(missed)}"


def _nested_traces(backend: CaptureBackend) -> Iterator[str]:
    inner: list[str] = []

    def forward(x: Tensor) -> Tensor:
        y = x.exp()
        inner.extend(_names(_graph(lambda t: t.sinh(), backend)))
        return y.cos()

    outer = [name for name in _names(_graph(forward, backend)) if name in ("exp", "cos")]
    if inner != ["sinh"]:
        yield f"a trace of sinh within a trace has {inner}"
    if outer != ["exp", "cos"]:
        yield f"a trace of exp and cos, with another in between, has {outer}"


def _two_threads(backend: CaptureBackend) -> Iterator[str]:
    barrier = Barrier(2, timeout=_PATIENCE)

    def names(function: Callable[[Tensor], Tensor]) -> list[str]:
        def forward(x: Tensor) -> Tensor:
            y = x.exp()
            barrier.wait()
            y = function(y)
            barrier.wait()
            return y.neg()

        try:
            return _names(_graph(forward, backend))
        except BaseException:
            barrier.abort()  # or the other thread would wait
            raise

    with ThreadPoolExecutor(2) as pool:
        for name, found in zip(("sin", "cos"), pool.map(names, (torch.sin, torch.cos)), strict=True):
            if found != ["exp", name, "neg"]:
                yield f"one of two traces at once, of exp, {name} and neg, has {found}"


def _other_threads(backend: CaptureBackend) -> Iterator[str]:
    begin, end = Event(), Event()

    def beside() -> None:
        begin.wait(_PATIENCE)
        try:
            torch.ones(2).sinh()
            thread = Thread(target=lambda: torch.ones(2).sinh())
            thread.start()
            thread.join()
        finally:
            end.set()

    def forward(x: Tensor) -> Tensor:
        y = x.exp()
        begin.set()
        end.wait(_PATIENCE)
        return y.cos()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside)  # before the trace, to which it does not belong
        try:
            names = _names(_graph(forward, backend))
        finally:
            begin.set()
        other.result()
    if names != ["exp", "cos"]:
        yield f"a trace of exp and cos, while another thread computes, has {names}"


class _Interrupt(BaseException):
    """What Ctrl-C raises is like it."""


def _interrupts(backend: CaptureBackend) -> Iterator[str]:
    interrupt = _Interrupt()

    def raises(_: object) -> float:
        raise interrupt

    try:
        _graph(lambda x: x.clone().apply_(raises), backend)
    except _Interrupt as error:
        if error is interrupt:
            return
    yield "an interrupt in an operation does not come out of the trace"


def _stops(backend: CaptureBackend) -> Iterator[str]:
    gone_on: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        gone_on.append(x.exp())
        return x.cos()

    graph = _graph(forward, backend, stop_at=lambda op: True)
    if gone_on or not graph.meta.stopped:
        yield "stop_at= does not end the forward"


def _lets_go(backend: CaptureBackend) -> Iterator[str]:
    made: list[weakref.ref[Any]] = []

    def forward(x: Tensor) -> Tensor:
        y = x.exp()
        made.extend(map(weakref.ref, (x, y)))
        return y.cos()

    _graph(forward, backend)
    gc.collect()
    alive = sum(one() is not None for one in made)
    if alive:
        yield f"{alive} of {len(made)} tensors are alive after the trace, which saved none"


PROBES = (
    Probe("sites", _sites, needs=("sites",)),
    Probe("python_data", _python_data, needs=("python_data",)),
    Probe("scripted", _scripted, needs=("scripted",)),
    Probe("nested_traces", _nested_traces),
    Probe("two_threads", _two_threads),
    Probe("other_threads", _other_threads),
    Probe("interrupts", _interrupts),
    Probe("stop_at", _stops),
    Probe("lets_go", _lets_go),
)
