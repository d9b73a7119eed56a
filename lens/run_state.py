"""What a forward pass may change, so that it can be put back: several runs from one start."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lens.capture.encoding import SLOTS, ArgumentEncoder
from lens.capture.tensor_table import version_of
from lens.history import ModelHistory
from lens.ir.templates import Opaque


class RunState:
    """The state of a model, its inputs and the generators, now.

    Copied are buffers, inputs, the attributes of modules and the containers among them; of parameters those only that a
    recorded run has written to (``recover``).

    Args:
        model: The model.
        inputs: Its arguments, in any containers.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._containers: list[tuple[Any, Any]] = []
        for module in model.modules():
            own = vars(module)
            for container in (own, *own.values()):
                if type(container) in (dict, list, set):
                    self._containers.append((container, container.copy()))
        self._parameters = dict(model.named_parameters())
        self._versions = {name: version_of(p) for name, p in self._parameters.items()}
        #: Whether a lazy module is still to be shaped.
        self.lazy = any(map(is_lazy, self._parameters.values()))
        tensors = {id(t): t for t in (*model.buffers(), *tensors_of(inputs)) if not (is_lazy(t) or t.is_meta)}
        for parameter in self._parameters.values():
            tensors.pop(id(parameter), None)
        self._tensors = [(t, version_of(t), t.detach().clone()) for t in tensors.values()]
        self._generators = list(_generators())

    def recover(self, history: ModelHistory, end: RunState) -> None:
        """Take from a recorded run that began here and ended there what could not be known before: the parameters
        that it wrote to, and the generators that the model has of its own."""
        for leaf in history.graph.leaves:
            for name in leaf.addresses:
                parameter = self._parameters.get(name)
                if (
                    parameter is not None
                    and version_of(parameter) != self._versions[name]
                    and leaf.value in history.payloads
                ):
                    self._tensors.append((parameter, None, history.payloads.read(leaf.value).detach()))
                    end._tensors.append((parameter, None, parameter.detach().clone()))
        objects = [item for item in history.payloads.objects.values() if isinstance(item, torch.Generator)]
        for op, states in sorted(history.payloads.rng_states.items(), reverse=True):
            if "generator" in states and objects:
                generator = history.payloads.objects[_generator_index(history, op)]
                self._generators.append((generator.set_state, states["generator"]))
        end._generators += [(generator.set_state, generator.get_state()) for generator in objects]

    def restore(self) -> None:
        """Put everything back."""
        for container, contents in self._containers:
            if type(container) is list:
                container[:] = contents
            else:
                container.clear()
                container.update(contents)
        for tensor, version, contents in self._tensors:
            if version is None or version_of(tensor) != version:
                _write(tensor, contents)
        for setter, state in self._generators:
            setter(state)


def _generator_index(history: ModelHistory, op: Any) -> int:
    return next(
        arg.index for name, arg in history.graph.ops[op].kwargs if name == "generator" and isinstance(arg, Opaque)
    )


def _write(tensor: torch.Tensor, contents: torch.Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.is_nested or tensor.shape == contents.shape:
            tensor.copy_(contents)
        else:
            tensor.data = contents.clone()


def _generators() -> Iterator[tuple[Callable[[Any], object], Any]]:
    """How to set each generator of the process to where it is now."""
    yield torch.set_rng_state, torch.get_rng_state()
    yield random.setstate, random.getstate()
    if torch.cuda.is_available():
        yield torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        yield numpy.set_state, numpy.get_state()


def tensors_of(objects: Any) -> list[torch.Tensor]:
    """The tensors in the containers that a model takes or returns, in the order in which lens numbers them."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> Any:
        found.append(tensor)
        return SLOTS[0]

    ArgumentEncoder(lambda _: 0).encode_with(objects, note)
    return found
