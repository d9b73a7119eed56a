"""Entries: what a history tells of one pass of one layer, or of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lens.entry_facts import CallFacts, Names, ParameterFacts, TensorFacts
from lens.entry_place import ModuleFacts
from lens.errors import AmbiguousKeyError, unknown_attribute
from lens.render.details import describe, describe_passes

#: Attributes that hold tensors, which are not compared: each pass has its own.
_OF_ONE_PASS = frozenset({"tensor_contents", "creation_args", "creation_kwargs", "func_rng_states"})


class OpEntry(Names, TensorFacts, CallFacts, ParameterFacts, ModuleFacts):
    """One pass of one layer."""

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name)

    @property
    def passes(self) -> tuple[OpEntry, ...]:
        """All passes of its layer, itself among them."""
        return tuple(OpEntry(self._history, row) for row in self._history.index.passes_of(self._row))

    def __repr__(self) -> str:
        kind = self._value.type
        module = self.containing_module_origin
        return f"<{self._row.name} {kind}{f' in {module}' if module else ''}>"

    def __str__(self) -> str:
        return describe(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpEntry) and other._history is self._history and other._row.number == self._row.number

    def __hash__(self) -> int:
        return hash(self._row.number)


class LayerEntry:
    """A layer, or the outputs of a module, of several passes.

    It has the attributes of ``OpEntry``. One that all passes share is given directly; one that differs raises
    AmbiguousKeyError, which tells how to choose a pass. Iterate over it, or take ``passes``, to get every pass.
    """

    def __init__(self, key: str, passes: list[OpEntry]) -> None:
        self._key = key
        self.passes = tuple(passes)

    def __getattr__(self, name: str) -> Any:
        if name == "passes":  # asked for by copy and pickle, before there is anything
            raise AttributeError(name)
        if name.startswith("_") or not hasattr(OpEntry, name):
            raise unknown_attribute(self, name)
        if name in _OF_ONE_PASS:
            raise self._differs(name)
        first = getattr(self.passes[0], name)
        if any(getattr(entry, name) != first for entry in self.passes[1:]):
            raise self._differs(name)
        return first

    def _differs(self, name: str) -> AmbiguousKeyError:
        first = self.passes[0].layer_label_w_pass
        return AmbiguousKeyError(
            f"{name} differs between the {len(self.passes)} passes of {self._key!r}",
            where=self._key,
            hint=f"choose one, history[{first!r}].{name}, or all: [p.{name} for p in history[{self._key!r}].passes]",
        )

    def __len__(self) -> int:
        return len(self.passes)

    def __iter__(self) -> Iterator[OpEntry]:
        return iter(self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerEntry) and other.passes == self.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def __dir__(self) -> list[str]:
        return sorted({"passes", *(name for name in dir(OpEntry) if not name.startswith("_"))})

    def __repr__(self) -> str:
        return f"<{self._key} (x{len(self.passes)}): {', '.join(map(repr, self.passes))}>"

    def __str__(self) -> str:
        return describe_passes(self)
