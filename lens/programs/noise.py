"""The noise of a run as constants, so that a program gives on the recorded input what the run gave."""

from __future__ import annotations

import torch
from torch import fx

from lens.errors import RenderError
from lens.ir.elements import Op
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.replay import Interpreter

#: Random functions whose result does not depend on the values of their one operand; so do all without operands.
_SOURCES = frozenset(
    {"rand_like", "randn_like", "randint_like", "normal_", "uniform_", "exponential_", "random_", "cauchy_"}
    | {"bernoulli_", "log_normal_", "geometric_"}
)
#: Random functions that multiply their operand by a mask.
_MASKS = frozenset({"dropout", "dropout_", "feature_dropout", "feature_dropout_"})


def recorded_noise(graph: Graph, payloads: PayloadStore) -> dict[int, torch.Tensor]:
    """Per op that drew random numbers, the tensor that stands for them: its result, or the mask it multiplied by.

    Raises:
        RenderError: an op mixes its noise with its operands in another way, or the generators' states were not kept.
    """
    found: dict[int, torch.Tensor] = {}
    interpreter = Interpreter(graph, payloads)
    for op in graph.ops:
        if not op.function.random:
            continue
        if op.id not in payloads.rng_states:
            if is_source(op):
                raise _no_noise(op, "was not kept", "trace with save='all', in this process")
            continue  # it drew nothing, as dropout in eval mode
        if not is_source(op) and op.function.name not in _MASKS:
            raise _no_noise(op, "cannot stand apart from its operands", "trace the model in eval mode")
        kinds = {v: graph.values[v].type for v in op.reads}
        ones = {v: torch.ones(k.shape, dtype=getattr(torch, k.dtype), device=k.device) for v, k in kinds.items()}
        found[op.id] = interpreter.run_op(op, ones)[op.results[0]].detach().clone()
    return found


def is_source(op: Op) -> bool:
    """Whether the result of a random op is its noise."""
    return not op.operands or (op.function.name in _SOURCES and len(op.operands) == 1)


def with_noise(graph: fx.Graph, op: Op, operands: list[fx.Node], noise: fx.Node, name: str) -> fx.Node:
    """The node that does what a random op does, with given noise."""
    in_place = op.function.name.endswith("_")
    if not is_source(op):
        return graph.create_node("call_method", "mul_" if in_place else "mul", (operands[0], noise), {}, name)
    if in_place:
        return graph.create_node("call_method", "copy_", (operands[0], noise), {}, name)
    return graph.create_node("call_method", "clone", (noise,), {}, name)


def _no_noise(op: Op, what: str, advice: str) -> RenderError:
    return RenderError(
        f"the noise of {op.function} {what}",
        where=str(op.location or f"op {op.id}"),
        hint=f'{advice}; or give noise="draw": the program then draws anew in every call',
    )
