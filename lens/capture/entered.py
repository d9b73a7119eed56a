"""The module calls of a run: what each module is called, and which of its calls each is, once that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

from lens.capture.addresses import AddressBook
from lens.ir.places import Site
from lens.ir.tape import ModuleNames, ScopeRow

#: A module call that begins: module, parent, training, op rows before it, inputs, site. The module is kept, so that its
#: id stays its own.
EnteredRow: TypeAlias = "tuple[nn.Module, int | None, bool, int, Sequence[int], Site]"


class ModuleCalls:
    """The calls in order, by the numbers of their scopes.

    Most are named when the run is over: in between, each first call would bring the code and the tables for that into
    the caches, and drive others out (resnet50 at 64 px: 7 % of the opcodes of lens).

    Args:
        addresses: The names of the model's modules.
    """

    def __init__(self, addresses: AddressBook) -> None:
        self.rows: list[EnteredRow] = []
        self._addresses = addresses
        #: By id of the module.
        self._names: dict[int, ModuleNames] = {}
        self._calls: Counter[int] = Counter()
        #: Which call of its module each is, as far as it was asked for.
        self._numbers: list[int] = []

    def names(self, scope: int) -> ModuleNames:
        """What the module is called."""
        module = self.rows[scope][0]
        found = self._names.get(id(module))
        if found is None:
            name = type(module).__name__
            addresses = self._addresses.module(module) or (f"<{name}>",)
            found = self._names[id(module)] = addresses[0], addresses[1:], name
        return found

    def number(self, scope: int) -> int:
        """Which call of its module it is, from 1. Linear in the calls up to it, once."""
        self._count(scope + 1)
        return self._numbers[scope]

    def scope_rows(self) -> list[ScopeRow]:
        """All calls with their names and numbers. Linear."""
        self._count(len(self.rows))
        numbered = zip(self.rows, self._numbers, strict=True)
        return [(self.names(scope), number, *row[1:]) for scope, (row, number) in enumerate(numbered)]

    def _count(self, end: int) -> None:
        for row in self.rows[len(self._numbers) : end]:
            self._calls[id(row[0])] += 1
            self._numbers.append(self._calls[id(row[0])])
