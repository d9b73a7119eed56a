"""What a forward leaves to see: results, what it wrote to, random numbers, the exception, the modules."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lens.capture.conformance.case import Case

#: Runs a model on arguments and gives the tensors of its result.
Forward: TypeAlias = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]


@frozen(eq=False)
class Observation:
    """What is to be the same in a traced and in a plain forward.

    Args:
        tensors: The results, then all that may have been written to: inputs, parameters, buffers, generator.
        facts: What else is to be equal, by what it is called.
    """

    tensors: list[Tensor]
    facts: Mapping[str, object]

    def differences(self, plain: Observation) -> Iterator[str]:
        """What is not as in a plain forward."""
        if not _same(self.tensors, plain.tensors):
            yield "the result, the model or the random numbers differ from those of a plain forward"
        for name, fact in self.facts.items():
            if fact != plain.facts[name]:
                yield f"{name}: {fact}; in a plain forward: {plain.facts[name]}"


def observe(case: Case, forward: Forward) -> Observation:
    """Run a forward of a case, with the same seed each time, and leave the generators as they were."""
    state, others = torch.get_rng_state(), _Others()
    torch.manual_seed(0)
    results: list[Tensor] = []
    raised = None
    try:
        model, args = case.model(), case.args()
        try:
            results = forward(model, args)
        except case.errors as error:
            raised = f"{type(error).__name__}: {error}"
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        left = [*inputs, *(leaf for leaf in model.state_dict().values() if isinstance(leaf, Tensor))]
        tensors = [tensor.detach().clone() for tensor in (*results, *left, torch.get_rng_state())]
        facts = {
            "the exception": raised,
            "generators that have moved": others.moved(),
            "what needs gradients": [tensor.requires_grad for tensor in (*inputs, *model.parameters())],
            "the modules": [_of_module(name, module) for name, module in model.named_modules()],
        }
        return Observation(tensors, facts)
    finally:
        torch.set_rng_state(state)
        others.put_back()


def _of_module(name: str, module: nn.Module) -> tuple[object, ...]:
    own = vars(module)
    hooks = {key: len(value) for key, value in own.items() if "hook" in key and isinstance(value, dict)}
    return name, module.training, sorted(own), hooks


class _Others:
    """The states of the generators that are not torch's: Python's, and NumPy's if it is there."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy_random = getattr(sys.modules.get("numpy"), "random", None)
        self._numpy = None if self._numpy_random is None else self._numpy_random.get_state()

    def moved(self) -> list[str]:
        """Those that have drawn numbers since."""
        moved = ["random"] if random.getstate() != self._python else []
        if self._numpy is not None and self._numpy_random is not None:
            _, key, *rest = self._numpy_random.get_state()
            if rest != list(self._numpy[2:]) or (key != self._numpy[1]).any():
                moved.append("numpy.random")
        return moved

    def put_back(self) -> None:
        """Leave them as they were."""
        random.setstate(self._python)
        if self._numpy is not None and self._numpy_random is not None:
            self._numpy_random.set_state(self._numpy)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )
