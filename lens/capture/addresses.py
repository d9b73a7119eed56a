"""Names of a model's tensors and modules, by identity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from operator import methodcaller
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lens.ir.elements import LeafKind, ModuleInfo, ParameterInfo
from lens.ir.quick import quick
from lens.ir.types import TensorType, shared_type

#: A tensor of the model: the tensor, what it is, all its names. A bare tuple: one is made for each of them.
Named: TypeAlias = tuple[torch.Tensor, LeafKind, tuple[str, ...]]

_VALUES = methodcaller("values")


class AddressBook:
    """All names of the modules, parameters, buffers and plain tensor attributes of a model.

    Built in time linear in the size of the module tree; it keeps the tensors alive and is dropped with the recorder.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: dict[int, tuple[nn.Module, tuple[str, ...]]] = {}
        self._tensors: dict[int, Named] = {}
        self._scanned_attributes = False
        #: Where the modules keep what is registered, as it was at the last walk for a parameter: what held something,
        #: what held nothing, and the ids of all of it.
        self._filled: list[Mapping[str, object]] = []
        self._empty: list[Mapping[str, object]] = []
        self._last_ids: list[int] = []
        #: Whether ``module.compile()`` was called on any. Known from the walk: to ask each again takes 0.4 us.
        self.has_compiled = False
        self._add_registered()

    def module(self, module: nn.Module) -> tuple[str, ...]:
        """All addresses of a module; none if it is not part of the model."""
        found = self._modules.get(id(module))
        return found[1] if found is not None else ()

    def by_address(self) -> dict[str, nn.Module]:
        """All modules of the model under all their addresses."""
        return {name: module for module, names in self._modules.values() for name in names}

    def modules(self) -> Iterator[nn.Module]:
        """All modules of the model, each once."""
        return (module for module, _ in self._modules.values())

    def tensor(self, tensor: torch.Tensor) -> Named | None:
        """What is known of a tensor; None if the model does not hold it."""
        found = self._lookup(tensor)
        if found is None and isinstance(tensor, nn.Parameter) and self._has_changed():
            self._add_registered()
            found = self._lookup(tensor)
            self._note_registered()
        if found is None and not self._scanned_attributes:
            self._scanned_attributes = True
            for address, attribute in _plain_tensors(self._model):
                self._add(attribute, "constant", address)
            found = self._lookup(tensor)
        return found

    def registered(self) -> Mapping[int, Named]:
        """The parameters and buffers of the model by id, each once, in the order of its modules."""
        return self._tensors

    def all_tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor that the model holds."""
        yield from [named[0] for named in self._tensors.values()]
        yield from (attribute for _, attribute in _plain_tensors(self._model))

    def _lookup(self, tensor: torch.Tensor) -> Named | None:
        found = self._tensors.get(id(tensor))
        return found if found is not None and found[0] is tensor else None

    def _has_changed(self) -> bool:
        """Whether modules or tensors were registered since the last walk for a parameter, if there was any.

        It is asked for each parameter of a second model in a block, and takes a small part of the time of a walk.
        """
        return not self._filled or any(self._empty) or self._last_ids != self._registered_ids()

    def _note_registered(self) -> None:
        modules = list(map(vars, self.modules()))
        registries = [module[kind] for module in modules for kind in ("_modules", "_parameters", "_buffers")]
        self._filled = [registry for registry in registries if registry]
        self._empty = [registry for registry in registries if not registry]
        self._last_ids = self._registered_ids()

    def _registered_ids(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(_VALUES, self._filled))))

    def _add_registered(self) -> None:
        """One walk over the module tree: ``named_parameters`` and its like would each make their own."""
        self._walk("", self._model, set())

    def _walk(self, address: str, module: nn.Module, path: set[int]) -> None:
        """Add a module and what is in it. ``path``: the modules that hold it, for a child that holds its parent."""
        known = self._modules.get(id(module))
        if known is None:
            self._modules[id(module)] = (module, (address,))
        elif address not in known[1]:
            self._modules[id(module)] = (module, (*known[1], address))
        if "_compiled_call_impl" in vars(module):
            self.has_compiled = True
        prefix = f"{address}." if address else ""
        if module._parameters:
            self._add_all(prefix, module._parameters, "parameter")
        if module._buffers:
            self._add_all(prefix, module._buffers, "buffer")
        children = module._modules
        if children:
            path.add(id(module))
            for name, child in children.items():
                if child is not None and id(child) not in path:
                    self._walk(prefix + name, child, path)
            path.discard(id(module))

    def _add_all(self, prefix: str, registered: Mapping[str, torch.Tensor | None], kind: LeafKind) -> None:
        tensors = self._tensors
        for name, tensor in registered.items():
            if tensor is None:
                continue
            number = id(tensor)
            if number in tensors:
                self._add(tensor, kind, prefix + name)
            else:
                tensors[number] = (tensor, kind, (prefix + name,))

    def _add(self, tensor: torch.Tensor, kind: LeafKind, address: str) -> None:
        known = self._tensors.get(id(tensor))
        if known is None or known[0] is not tensor:
            self._tensors[id(tensor)] = (tensor, kind, (address,))
        elif address not in known[2]:
            self._tensors[id(tensor)] = (tensor, known[1], (*known[2], address))

    def module_infos(self) -> tuple[ModuleInfo, ...]:
        """All modules of the model, itself included, under their first address."""
        return tuple([_module(names[0], type(module).__name__) for module, names in self._modules.values()])

    def parameter_infos(self) -> tuple[ParameterInfo, ...]:
        """All parameters of the model, under their first address."""
        types: dict[tuple[object, ...], TensorType] = {}
        infos = []
        for tensor, kind, addresses in self._tensors.values():
            if kind == "parameter":
                key = () if is_lazy(tensor) else (tensor.shape, tensor.dtype, tensor.device, tensor.layout)
                found = types.get(key) if key else None
                if found is None:
                    found = types[key] = _parameter_type(tensor)
                infos.append(_parameter(addresses[0], found, tensor.requires_grad))
        return tuple(infos)


_module, _parameter = quick(ModuleInfo), quick(ParameterInfo)


def _plain_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Unregistered tensors in the attributes of modules, one container deep."""
    for address, module in model.named_modules():
        prefix = f"{address}." if address else ""
        for name, attribute in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for path, item in _with_paths(name, attribute):
                if isinstance(item, torch.Tensor):
                    yield prefix + path, item


def _with_paths(name: str, attribute: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(attribute, dict):
        yield from ((f"{name}[{key!r}]", item) for key, item in attribute.items())
    elif isinstance(attribute, (list, tuple)):
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(attribute))
    else:
        yield name, attribute


def _parameter_type(tensor: torch.Tensor) -> TensorType:
    if is_lazy(tensor):
        return TensorType(str(tensor.dtype).removeprefix("torch."), (0,), str(tensor.device))
    dtype, device, layout = (str(x).removeprefix("torch.") for x in (tensor.dtype, tensor.device, tensor.layout))
    return shared_type(dtype, tuple(tensor.shape), device, layout)
