"""The whole pipeline on a synthetic tape: a while loop with a Linear, a relu and a condition, without running torch.

Prints seconds, microseconds per op of every pass, and the peak memory of the process.
"""

import argparse
import resource
import time

from lens.capture.quiet_gc import collector_off
from lens.ir.elements import FnRef, Meta
from lens.ir.tape import ReadRow, Tape, seal
from lens.ir.templates import Slot
from lens.passes.instruments import Timing
from lens.passes.manager import PassManager
from lens.passes.pipeline import parse_pipeline
from lens.registry import pass_classes, providers

LINEAR = FnRef("torch.nn.functional", "linear")
RELU, SUM, GT = FnRef("torch", "relu"), FnRef("torch.Tensor", "sum"), FnRef("torch.Tensor", "gt")
MATRIX, SCALAR, FLAG = ((1, 8), "float32"), ((), "float32"), ((), "bool")


def synthetic_tape(ops):
    """A tape of so many ops."""
    tape = Tape()

    def value(kind):
        shape, dtype = kind
        tape.values.append((shape, dtype, "cpu", "strided", None, None))
        return len(tape.values) - 1

    def op(function, operands, kind, *constants):
        result = value(kind)
        slots = [Slot(i) for i in range(len(operands))]
        row = (function, len(tape.ops), operands, [*slots, *constants], None, [result], Slot(0), None, None, 1e-6, None)
        tape.ops.append(row)
        return result

    x, weight = value(MATRIX), value(((8, 8), "float32"))
    tape.leaves += [("input", x, ("x",), False, None), ("parameter", weight, ("fc.weight",), True, None)]
    tape.inputs = ((Slot(0),), [x])
    for _ in range(ops // 4):
        flag = op(GT, [op(SUM, [x], SCALAR)], FLAG, 0.0)
        tape.reads.append(ReadRow(flag, "bool", True, len(tape.ops), None, None))
        x = op(RELU, [op(LINEAR, [x, weight], MATRIX, None)], MATRIX)
    tape.outputs = (Slot(0), [x])
    return tape


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, default=1_000_000)
    tape = synthetic_tape(parser.parse_args().ops)
    timing = Timing()
    text = "granularity,orphans,distances,conditionals,containment,recurrence,labels"
    begin = time.perf_counter()
    with collector_off():
        graph = seal(tape, Meta(capabilities=("reads",)))
        sealed = time.perf_counter()
        manager = PassManager(parse_pipeline(text, pass_classes()), providers(), instruments=[timing])
        manager.run(graph)
    end = time.perf_counter()
    count = len(graph.ops)
    print(f"{count:,} ops: seal {sealed - begin:.1f} s, passes {end - sealed:.1f} s, in all {end - begin:.1f} s")
    print(timing)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
