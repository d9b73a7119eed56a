"""Every stage that works on graphs, from a thousand to a million operations, on synthetic tapes without torch.

The tape is a while loop with a Linear, a relu and a condition, in modules; recording is measured on a real loop.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import lens
from benchmarks.jobs import record
from benchmarks.models import Case, Chain
from benchmarks.table import grid
from lens.capture.quiet_gc import collector_off
from lens.history import ModelHistory
from lens.ir.elements import FnRef, Meta
from lens.ir.parser import parse
from lens.ir.payloads import PayloadStore
from lens.ir.printer import print_graph
from lens.ir.tape import ReadRow, Tape, seal
from lens.ir.templates import Slot
from lens.passes.manager import PassManager
from lens.passes.pipeline import parse_pipeline
from lens.registry import pass_classes, providers
from lens.render.drafting import make_drawing
from lens.render.graphviz_text import to_dot
from lens.session import DEFAULT_PIPELINE

LINEAR = FnRef("torch.nn.functional", "linear")
RELU, SUM, GT = FnRef("torch", "relu"), FnRef("torch.Tensor", "sum"), FnRef("torch.Tensor", "gt")
MATRIX, SCALAR, FLAG = ((1, 8), "float32"), ((), "float32"), ((), "bool")
SLOTS = (Slot(0), Slot(1))
ROUND = ("fc", (), "Linear")


def synthetic_tape(ops: int) -> Tape:
    """A tape of so many ops."""
    tape = Tape()
    tape.scopes.append((("", (), "Loop"), 1, None, False, 0, [0], None))

    def value(kind):
        shape, dtype = kind
        tape.values.append((shape, dtype, "cpu", "strided", None, None))
        return len(tape.values) - 1

    def op(function, operands, kind, *constants, scope=0):
        result = value(kind)
        args = [*SLOTS[: len(operands)], *constants]
        tape.ops.append((function, 0, operands, args, None, [result], SLOTS[0], scope, None, 1e-6, None))
        return result

    x, weight = value(MATRIX), value(((8, 8), "float32"))
    tape.leaves += [("input", x, ("x",), False, None), ("parameter", weight, ("fc.weight",), True, None)]
    tape.inputs = ((SLOTS[0],), [x])
    for call in range(1, ops // 4 + 1):
        flag = op(GT, [op(SUM, [x], SCALAR)], FLAG, 0.0)
        tape.reads.append(ReadRow(flag, "bool", True, len(tape.ops), 0, None))
        inner = len(tape.scopes)
        tape.scopes.append((ROUND, call, 0, False, len(tape.ops), [x], None))
        y = op(LINEAR, [x, weight], MATRIX, None, scope=inner)
        tape.exits.append((inner, len(tape.ops), [y]))
        x = op(RELU, [y], MATRIX)
    tape.exits.append((0, len(tape.ops), [x]))
    tape.outputs = (SLOTS[0], [x])
    return tape


def measure(most: int) -> list[dict]:
    """Microseconds per operation of every stage, for 1,000 operations and ten times more up to ``most``."""
    results = []
    count = 1_000
    while count <= most:
        results.append({"ops": count, **_stages(count)})
        count *= 10
    return results


def _stages(count: int) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], object]):
        with collector_off():
            begin = time.perf_counter()
            result = work()
            seconds[stage] = time.perf_counter() - begin
        return result

    case = Case(Chain(count // 2), (torch.ones(1, 8),))
    with torch.no_grad():
        timed("plain", lambda: case.model(*case.args))
        timed("recording", lambda: record(case, "none"))
    seconds["recording"] -= seconds.pop("plain")
    tape = synthetic_tape(count)
    graph = timed("sealing", lambda: seal(tape, Meta(capabilities=("reads",))))
    manager = PassManager(parse_pipeline(DEFAULT_PIPELINE, pass_classes()), providers())
    result = timed("all passes", lambda: manager.run(graph))
    seconds |= {f"pass {record.name}": record.seconds for record in result.records}
    graph = result.graph
    text = timed("printing", lambda: print_graph(graph))
    assert timed("parsing", lambda: parse(text)) == graph
    history = ModelHistory(graph, PayloadStore())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.lens"
        timed("msgpack write", lambda: history.save(path))
        assert timed("msgpack read", lambda: lens.load(path)).graph == graph
    timed("drawing text", lambda: to_dot(make_drawing(graph)))
    return {stage: spent / count * 1e6 for stage, spent in seconds.items()}


def markdown(results: list[dict]) -> str:
    """One line per stage, one column per size."""
    stages = [stage for stage in results[0] if stage != "ops"]
    heads = [f"{row['ops']:,} ops" for row in results]
    rows = [(stage, *(f"{row[stage]:.1f}" for row in results)) for stage in stages]
    return "\n".join(["Microseconds per operation:\n", *grid(("stage", *heads), rows)]) + "\n"
