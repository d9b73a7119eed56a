"""Entries: what a history tells of one pass of one layer, or of all of them."""

from __future__ import annotations

from typing import Any

from lens.entry_facts import CallFacts, Names, ParameterFacts, TensorFacts
from lens.entry_place import ModuleFacts
from lens.errors import AmbiguousKeyError


class OpEntry(Names, TensorFacts, CallFacts, ParameterFacts, ModuleFacts):
    """One pass of one layer."""

    def __repr__(self) -> str:
        kind = self._value.type
        module = self.containing_module_origin
        return f"<{self._row.name} {kind}{f' in {module}' if module else ''}>"

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, OpEntry) and other._history is self._history
        return same and isinstance(other, OpEntry) and other._row == self._row

    def __hash__(self) -> int:
        return hash(self._row)


class LayerEntry:
    """A layer, or the outputs of a module, of several passes.

    Attributes that all passes share are given directly; for the others name the pass.
    """

    def __init__(self, key: str, passes: list[OpEntry]) -> None:
        self._key = key
        self.passes = tuple(passes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(OpEntry, name):
            raise AttributeError(f"a layer has no attribute {name!r}")
        if name == "tensor_contents" and len(self.passes) > 1:
            raise self._differs(name)
        first, *others = (getattr(entry, name) for entry in self.passes)
        if any(other != first for other in others):
            raise self._differs(name)
        return first

    def _differs(self, name: str) -> AmbiguousKeyError:
        first = self.passes[0]._row
        return AmbiguousKeyError(
            f"{name} differs between the {len(self.passes)} passes of {self._key!r}",
            where=self._key,
            hint=f"choose one: history[{first.label_with_pass!r}], or history[{self._key!r}].passes[0]",
        )

    def __len__(self) -> int:
        return len(self.passes)

    def __repr__(self) -> str:
        return f"<{self._key} (x{len(self.passes)}): {', '.join(map(repr, self.passes))}>"
