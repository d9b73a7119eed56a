"""The module that ``history.to_fx`` gives: a ``GraphModule`` that pickles as the graph it is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import fx, nn
from torch.fx.node import map_aggregate

from lens.errors import RenderError
from lens.functions import describe, resolve
from lens.ir.elements import FnRef
from lens.programs.autocast import autocast_devices, autocast_put_back


class Program(fx.GraphModule):
    """A ``torch.fx.GraphModule``.

    ``GraphModule`` itself pickles as source code that is traced once more, which loses the metadata of the nodes and
    makes a constant of ``torch.rand(3)``. A program pickles as its nodes.

    Pickling and ``to_folder`` raise RenderError if an operation needs an object that cannot be pickled.
    """

    def recompile(self) -> fx.graph.PythonCode:
        """Make the code anew, as torch does."""
        self._autocast_devices = autocast_devices(self.graph)
        return super().recompile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        if not self._autocast_devices or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with autocast_put_back(self._autocast_devices):
            return super().__call__(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_objects()
        number = {node: i for i, node in enumerate(self.graph.nodes)}
        rows = [_Row.of(node, number) for node in self.graph.nodes]
        state = {name: item for name, item in vars(self).items() if name not in ("_graph", "_code", "_lineno_map")}
        return _unpickled, (type(self).__name__, rows, state)

    def to_folder(self, folder: str | PathLike[str], module_name: str = "FxModule") -> None:
        """Write it out as source code and weights, as torch does."""
        self._check_objects()
        super().to_folder(folder, module_name)
        begin, lines = "        super().__init__()\n", ""
        for name, item in vars(self).items():  # torch writes modules and tensors alone
            if name.startswith("lens_opaque_"):
                torch.save(item, Path(folder) / f"{name}.pt")
                lines += f"        self.{name} = torch.load(r'{folder}/{name}.pt', weights_only=False)\n"
        code = Path(folder) / "module.py"
        code.write_text(code.read_text().replace(begin, begin + lines, 1))

    def _check_objects(self) -> None:
        for node in self.graph.nodes:
            if str(node.target).startswith("lens_opaque_"):
                try:
                    pickle.dumps(getattr(self, str(node.target)))
                except (pickle.PickleError, TypeError, AttributeError, RuntimeError) as error:
                    reader = node if node.op == "call_module" else next(iter(node.users), node)
                    custom = reader.meta.get("custom", {})
                    raise RenderError(
                        f"{custom.get('lens_label', node.name)} ({custom.get('lens_function', node.target)}) needs an "
                        f"object that cannot be pickled: {error}",
                        where=custom.get("lens_location", ""),
                        hint="the program runs in this process; functions of a module's top level can be pickled",
                    ) from error


@frozen
class _Place:
    """A node among the arguments of another."""

    number: int


@frozen
class _Row:
    """A node as it stands in a pickle; a function by its name."""

    op: str
    target: str | FnRef
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    type: Any
    meta: dict[str, Any]

    @classmethod
    def of(cls, node: fx.Node, number: dict[fx.Node, int]) -> _Row:
        target: Any = node.target if isinstance(node.target, str) else describe(node.target).ref
        number_of: Any = lambda item: _Place(number[item]) if isinstance(item, fx.Node) else item  # noqa: E731
        args: Any = map_aggregate(node.args, number_of)
        kwargs: Any = map_aggregate(node.kwargs, number_of)
        return cls(node.op, target, args, kwargs, node.name, node.type, node.meta)

    def put(self, graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
        """The node again, at the end of a graph."""
        target: str | Callable[..., Any] = self.target if isinstance(self.target, str) else resolve(self.target)
        node_of: Any = lambda item: nodes[item.number] if isinstance(item, _Place) else item  # noqa: E731
        args: Any = map_aggregate(self.args, node_of)
        kwargs: Any = map_aggregate(self.kwargs, node_of)
        node = graph.create_node(self.op, target, args, kwargs, self.name, self.type)
        node.meta.update(self.meta)
        return node


def _unpickled(name: str, rows: list[_Row], state: dict[str, Any]) -> Program:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for row in rows:
        nodes.append(row.put(graph, nodes))
    root = nn.Module()
    vars(root).update(state)
    program = Program(root, graph, name)
    vars(program).update(state)
    return program
