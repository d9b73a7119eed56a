"""The graph: a sealed log of facts about one run, with its facets beside it."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

from attrs import evolve, frozen

from lens.errors import GraphError
from lens.ir.elements import (
    Bundle,
    Leaf,
    Meta,
    Op,
    OpId,
    Read,
    Scope,
    ScopeId,
    Value,
    ValueId,
)
from lens.ir.facets import Containment, Facet, why_no_facet

F = TypeVar("F", bound=Facet)


@frozen(slots=False)
class Graph:
    """A recorded forward pass.

    Ops stand in order of execution, which is a topological order. A composite stands after its interior.
    Ids of ops, scopes, leaves and values are positions in the respective tuple.
    """

    ops: tuple[Op, ...] = ()
    values: tuple[Value, ...] = ()
    scopes: tuple[Scope, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    reads: tuple[Read, ...] = ()
    inputs: Bundle = Bundle()
    outputs: Bundle = Bundle()
    meta: Meta = Meta()
    facets: tuple[Facet, ...] = ()

    def __getitem__(self, kind: type[F]) -> F:
        """The facet of this type. Raises GraphError if no pass has provided it."""
        found = self.get(kind)
        if found is None and why_no_facet(kind):
            raise GraphError(
                f"{kind!r:.60} is no type of a facet: {why_no_facet(kind)}",
                where=f"graph of {self.meta.model}",
                hint="ask for a facet by its class, such as graph[lens.ir.facets.Labels]",
            )
        if found is None:
            raise GraphError(
                f"the graph has no {kind.__name__} facet",
                where=f"graph of {self.meta.model}",
                hint=f"run a pass that provides {kind.name!r} first",
            )
        return found

    def get(self, kind: type[F]) -> F | None:
        """The facet of this type, or None."""
        return self._facets_by_type.get(kind)  # type: ignore[return-value]

    def with_facets(self, *facets: Facet) -> Graph:
        """The same graph with these facets added; one of the same type is replaced."""
        new = {type(facet) for facet in facets}
        kept = tuple(facet for facet in self.facets if type(facet) not in new)
        return evolve(self, facets=kept + facets)

    @cached_property
    def _facets_by_type(self) -> dict[type[Facet], Facet]:
        return {type(facet): facet for facet in self.facets}

    @cached_property
    def _users(self) -> list[tuple[OpId, ...]]:
        users: list[list[OpId]] = [[] for _ in self.values]
        for op in self.ops:
            reads = op.reads
            for value in reads if len(reads) < 2 else dict.fromkeys(reads):
                users[value].append(op.id)
        return list(map(tuple, users))

    def users(self, value: ValueId) -> tuple[OpId, ...]:
        """The ops that depend on a value, in order. Linear once per graph, then constant."""
        return self._users[value]

    def producer(self, value: ValueId) -> Op | None:
        """The op that made a value; None for leaves."""
        op = self.values[value].producer
        return None if op is None else self.ops[op]

    def leaf_of(self, value: ValueId) -> Leaf | None:
        """The leaf that a value is; None if an op made it."""
        leaf = self.values[value].leaf
        return None if leaf is None else self.leaves[leaf]

    def modules_of(self, op: Op) -> tuple[Scope, ...]:
        """The calls of modules that an op belongs to, outermost first, without that of the model itself."""
        return tuple(scope for scope in self.scopes_of(op) if not scope.is_model)

    def scopes_of(self, op: Op) -> tuple[Scope, ...]:
        """The same with the call of the model."""
        containment = self.get(Containment)
        return self.scope_chain(op.scope if containment is None else containment.ops[op.id])

    @cached_property
    def _ancestor_scopes(self) -> dict[ScopeId, tuple[Scope, ...]]:
        chains: dict[ScopeId, tuple[Scope, ...]] = {}
        for scope in self.scopes:
            outer = () if scope.parent is None else chains[scope.parent]
            chains[scope.id] = (*outer, scope)
        return chains

    def scope_chain(self, scope: ScopeId | None) -> tuple[Scope, ...]:
        """The module calls around and including a scope, outermost first."""
        return () if scope is None else self._ancestor_scopes[scope]

    def __getstate__(self) -> dict[str, object]:
        """Pickle the facts without the derived caches."""
        return {name: getattr(self, name) for name in _GRAPH_FIELDS}

    def __str__(self) -> str:
        return f"<Graph of {self.meta.model}: {len(self.ops)} ops, {len(self.values)} values>"


_GRAPH_FIELDS = tuple(a.name for a in Graph.__attrs_attrs__)
