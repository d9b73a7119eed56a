"""The pass manager: runs passes in order, fills in what they require, and holds them to their contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Literal, Protocol, get_args

from attrs import evolve, field, frozen

from lens.errors import LensError, PassError
from lens.foreign import Raised, origin, origin_in
from lens.ir.facets import Facet
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.rewrite import GraphMap, Restructured, why_no_map
from lens.ir.verifier import verify, verify_facets
from lens.passes.protocol import Pass, PassContext, PassResult, why_no_pass
from lens.signal_handlers import is_from_handler

VerifyLevel = Literal["off", "cheap", "full"]


@frozen
class PassRecord:
    """One run of one pass: its name, seconds, and the number of ops before and after."""

    name: str
    seconds: float
    ops_before: int
    ops_after: int


class Instrument(Protocol):
    """Something that is told about every run of a pass."""

    def after(self, record: PassRecord, step: int, graph: Graph) -> None:
        """Called after the pass with its record, its position in the pipeline (from 1), and the new graph."""
        ...


@frozen
class PipelineResult:
    """What a pipeline made: the graph, where everything went, and the record."""

    graph: Graph
    payloads: PayloadStore
    records: tuple[PassRecord, ...]


@frozen
class PassManager:
    """Runs passes over a graph.

    Args:
        passes: The passes, in order.
        providers: Per facet type, the pass that is run when a pass requires a facet that is not there.
        verify: ``cheap`` checks the structure after restructuring passes and the facets after annotating ones,
            ``full`` checks everything after every pass, ``off`` nothing.
        instruments: Told about every run.
    """

    passes: tuple[Pass, ...]
    providers: Mapping[type[Facet], Pass] = field(factory=dict)
    verify: VerifyLevel = "cheap"
    instruments: Sequence[Instrument] = ()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.passes, (tuple, list)):
            raise PassError(
                f"the passes of a manager are a {type(self.passes).__name__}, and no tuple",
                where="PassManager(passes)",
                hint="a tuple of one is written (LabelsPass(),)",
            )
        if self.verify not in get_args(VerifyLevel):
            raise PassError(
                f"verify cannot be {self.verify!r:.40}",
                where="PassManager(verify=)",
                hint=f"give one of {', '.join(get_args(VerifyLevel))}",
            )

    def run(self, graph: Graph, payloads: PayloadStore | None = None) -> PipelineResult:
        """Run all passes; the graph given is untouched.

        Raises:
            PassError: naming the pass, if one breaks its contract.
        """
        state = _State(graph, PayloadStore() if payloads is None else payloads)
        for one in self.passes:
            _check_declarations(one)
        for one in self.passes:
            self._run_with_requirements(one, state, ())
        return PipelineResult(state.graph, state.payloads, tuple(state.records))

    def provide(
        self, graph: Graph, kinds: Sequence[type[Facet]], payloads: PayloadStore | None = None
    ) -> PipelineResult:
        """Run the passes that provide these facets, as far as they are missing; the graph given is untouched.

        Raises:
            PassError: no known pass provides one, or a pass breaks its contract.
        """
        state = _State(graph, PayloadStore() if payloads is None else payloads)
        self._fill_in(kinds, "the caller", state, ())
        return PipelineResult(state.graph, state.payloads, tuple(state.records))

    def _run_with_requirements(self, one: Pass, state: _State, waiting: tuple[str, ...]) -> None:
        if one.name in waiting:
            chain = " -> ".join((*waiting, one.name))
            raise PassError(
                f"the requirements of pass {one.name!r} go in a circle",
                where=chain,
                hint="remove one of these requirements",
            )
        self._fill_in(one.requires, f"pass {one.name!r}", state, (*waiting, one.name))
        self._run_one(one, state)

    def _fill_in(self, kinds: Sequence[type[Facet]], who: str, state: _State, waiting: tuple[str, ...]) -> None:
        """Run the providers of what is missing; again of what a provider that restructures has dropped."""
        for _ in kinds:
            for kind in kinds:
                if state.graph.get(kind) is None:
                    self._run_with_requirements(self._provider(kind, who), state, waiting)
        missing = [kind for kind in kinds if state.graph.get(kind) is None]
        if missing:
            raise PassError(
                f"{who} requires the facet {missing[0].name!r}, which is not there after its provider",
                where=" -> ".join(waiting),
                hint="let the passes that restructure preserve what the others provide",
            )

    def _provider(self, kind: type[Facet], who: str) -> Pass:
        if kind not in self.providers:
            name = getattr(kind, "name", kind)
            raise PassError(
                f"{who} requires the facet {name!r}, which no known pass provides",
                where=who,
                hint="put a pass that provides it before this one, or register one",
            )
        found = self.providers[kind]
        _check_declarations(found)
        return found

    def _run_one(self, one: Pass, state: _State) -> None:
        before = len(state.graph.ops)
        start = perf_counter()
        with _Blame(one):
            result = one.run(state.graph, PassContext(state.payloads))
        _check_contract(one, result, state.graph)
        with _Blame(one):
            graph = _apply(one, state.graph, result)
            if self.verify != "off":
                self._verify(graph, result)
            payloads = state.payloads
            if result.restructured is not None:
                moved = result.restructured.map
                payloads = payloads.remap(moved.values, moved.ops, moved.absorbed)
        state.graph, state.payloads = graph, payloads
        record = PassRecord(one.name, perf_counter() - start, before, len(graph.ops))
        state.records.append(record)
        for instrument in self.instruments:
            instrument.after(record, len(state.records), graph)

    def _verify(self, graph: Graph, result: PassResult) -> None:
        if self.verify == "full" or result.restructured is not None:
            verify(graph)
        else:
            verify_facets(graph, result.facets)


class _State:
    """Where a pipeline stands."""

    def __init__(self, graph: Graph, payloads: PayloadStore) -> None:
        self.graph = graph
        self.payloads = payloads
        self.records: list[PassRecord] = []


_MEND = "the graph it was given is untouched; mend the pass or leave it out of passes="


class _Blame:
    """Turns whatever a pass raises into a PassError that names the pass, the cause chained."""

    def __init__(self, one: Pass) -> None:
        self.one = one

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, PassError):
            return
        if is_from_handler(error):
            return
        line, hint = origin_in(self.one, error), _MEND
        if isinstance(error, LensError):
            told, line = f"{type(error).__name__}: {error.what}", ", ".join(filter(None, (line, error.where)))
            hint = "; ".join(filter(None, (error.hint, hint)))
        else:
            told, line = str(Raised.of(error)), line or origin(error)
        raise PassError(f"pass {self.one.name!r} failed: {told}", where=line, hint=hint) from error


def _check_declarations(one: Pass) -> None:
    why_not = "it is a class" if isinstance(one, type) else why_no_pass(one)
    if why_not:
        raise PassError(
            f"{getattr(one, 'name', type(one).__name__)!r} is no pass: {why_not}",
            where=f"class {(one if isinstance(one, type) else type(one)).__qualname__}",
            hint="a tuple of one is written (Labels,); docs/writing-passes.md says what a pass has",
        )


def _check_contract(one: Pass, result: object, graph: Graph) -> None:
    if not isinstance(result, PassResult):
        raise PassError(
            f"pass {one.name!r} returned a {type(result).__name__}",
            where=f"pass {one.name}",
            hint="return a lens.passes.protocol.PassResult",
        )
    if not isinstance(result.facets, (tuple, list)) or not all(isinstance(facet, Facet) for facet in result.facets):
        raise PassError(
            f"pass {one.name!r} returned facets that are no tuple of facets",
            where=f"facets={result.facets!r:.80}",
            hint="return PassResult((facet,)), with an instance of each facet",
        )
    wrong = _why_not_restructured(result.restructured, graph)
    if wrong:
        raise PassError(
            f"pass {one.name!r} restructured the graph to {wrong}",
            where=f"pass {one.name}",
            hint="return PassResult(facets, restructured) with the graph and its map, as keep_ops makes them",
        )
    made = {type(facet) for facet in result.facets}
    if made != set(one.provides) or len(made) < len(result.facets):
        missing = sorted(kind.__name__ for kind in set(one.provides) - made)
        extra = sorted(kind.__name__ for kind in made - set(one.provides))
        raise PassError(
            f"pass {one.name!r} does not return the facets that it declares",
            where=f"missing: {missing or 'none'}, not declared: {extra or 'none'}",
            hint="make `provides` and the returned facets the same",
        )


def _why_not_restructured(made: object, graph: Graph) -> str:
    """What a pass gave in the place of a graph with its map; empty if it gave one, or None."""
    if made is None:
        return ""
    if not isinstance(made, Restructured):
        return f"a {type(made).__name__}"
    parts: tuple[object, object] = made.graph, made.map
    if isinstance(parts[0], Graph) and isinstance(parts[1], GraphMap):
        why_not = why_no_map(parts[1], graph, parts[0])
        return f"a graph with a map in which {why_not}" if why_not else ""
    return " with ".join(f"a {type(part).__name__}" for part in parts)


def _apply(one: Pass, graph: Graph, result: PassResult) -> Graph:
    if result.restructured is None:
        return graph.with_facets(*result.facets)
    new = result.restructured.graph
    carried = []
    for facet in graph.facets:
        if type(facet) in one.preserves and type(facet) not in one.provides:
            moved = facet.remap(result.restructured.map)
            if moved is not None:
                carried.append(moved)
    return evolve(new, facets=(*carried, *result.facets))  # without those that it may have taken over unasked
