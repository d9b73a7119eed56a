"""The quality of the validator: faults planted into right histories of many models, and how many of them it finds.

A fault counts where it makes a difference: where the operation concerned gives other results with it, or the metadata
is no longer what it should be. Two operands of a sum that trade places are no fault.

    python tests/planted_faults.py [--variants 3]    prints the table of docs/validation.md
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import models
import torch
from attrs import evolve
from torch import nn

import lens
from lens import registry
from lens.capture.conformance.suite import CASES
from lens.errors import ReplayError
from lens.history import ModelHistory
from lens.ir.elements import ScopeId
from lens.ir.facets import Containment, Recurrence
from lens.ir.payloads import Held
from lens.ir.rewrite import keep_ops
from lens.ir.templates import Slot, map_nodes
from lens.model_specs import import_torchvision
from lens.passes.labels import LabelsPass
from lens.passes.manager import PassManager
from lens.passes.pipeline import parse_pipeline
from lens.passes.protocol import PassContext
from lens.replay import Interpreter
from lens.validate.comparing import same

ANALYSIS = "distances,conditionals,containment,recurrence,labels"


class Victim:
    """A right history, and what the faults need of it."""

    def __init__(self, history, seed=0):
        self.history, self.graph, self.payloads = history, history.graph, history.payloads
        self.choice = random.Random(seed)
        self.report = lens.validate.check(history)
        assert self.report.ok, str(self.report)
        self.proved = [op for op, v in zip(self.graph.ops, self.report.verdicts, strict=True) if v.status == "proved"]
        self.interpreter = Interpreter(self.graph, self.payloads)

    def shuffled(self, items):
        items = list(items)
        self.choice.shuffle(items)
        return items

    def read(self, value):
        return self.payloads.read(value).detach()

    def saved(self, values):
        return all(v in self.payloads for v in values)

    def with_ops(self, *changed):
        ops = list(self.graph.ops)
        for op in changed:
            ops[op.id] = op
        return ModelHistory(evolve(self.graph, ops=tuple(ops)), self.payloads)

    def with_payload(self, value, tensor):
        store = evolve(self.payloads, values={**self.payloads.values, value: Held(tensor, tensor._version)})
        return ModelHistory(self.graph, store)

    def matters(self, op):
        """Whether a changed op gives other results than were saved."""
        try:
            with torch.random.fork_rng():
                made = self.interpreter.run_op(op, {v: self.read(v) for v in op.reads})
        except ReplayError:
            return True
        return any(v not in made or not same(made[v], self.read(v)) for v in op.writes if v in self.payloads)


def an_element(victim):
    """one element of a saved tensor changed by 0.1 %"""
    for op in victim.shuffled(victim.proved):
        for value in op.writes:
            if value not in victim.payloads:
                continue
            tensor = victim.read(value)
            if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                continue
            wrong = tensor.clone(memory_format=torch.contiguous_format)
            flat = wrong.view(-1)
            if not wrong.is_floating_point() or wrong.element_size() < 4:
                continue
            places = [i for i in victim.shuffled(range(flat.numel()))[:20] if flat[i] != 0]
            if places:
                flat[places[0]] *= 1.001
                if not same(wrong, tensor):
                    yield victim.with_payload(value, wrong)


def a_stale_value(victim):
    """a value read before a write saved as it was after it"""
    for op in victim.shuffled(victim.proved):
        pairs = [*op.effects, *((victim.graph.values[v].alias_of, v) for v in op.results if op.function.mutates)]
        for old, new in pairs:
            if old is None or not victim.saved((old, new)):
                continue
            before, after = victim.read(old), victim.read(new)
            known = victim.graph.producer(old)
            if before.shape == after.shape and not same(before, after) and known in victim.proved:
                yield victim.with_payload(old, after)


def _operand_changes(victim, candidates):
    for op in victim.shuffled(victim.proved):
        if victim.saved(op.reads):
            for operands in victim.shuffled(candidates(op)):
                changed = evolve(op, operands=operands)
                if victim.matters(changed):
                    yield victim.with_ops(changed)


def _replaced(op, place, value):
    return tuple(value if i == place else v for i, v in enumerate(op.operands))


def swapped_operands(victim):
    """two operands of one shape swapped"""

    def candidates(op):
        for i, a in enumerate(op.operands):
            for j, b in enumerate(op.operands[:i]):
                if victim.graph.values[a].type == victim.graph.values[b].type and a != b:
                    yield _replaced(evolve(op, operands=_replaced(op, i, b)), j, a)

    return _operand_changes(victim, candidates)


def a_wrong_parent(victim):
    """an operand replaced by another tensor of its shape"""
    alike = defaultdict(list)
    for value in victim.graph.values:
        if value.id in victim.payloads:
            alike[value.type].append(value)

    def candidates(op):
        for place, old in enumerate(op.operands):
            others = [v for v in alike[victim.graph.values[old].type] if v.id != old and (v.producer or -1) < op.id]
            for other in victim.shuffled(others)[:3]:
                yield _replaced(op, place, other.id)

    return _operand_changes(victim, candidates)


def an_unversioned_write(victim):
    """a reader of what a write in place made reads the value from before the write"""

    def candidates(op):
        for place, value in enumerate(op.operands):
            producer = victim.graph.producer(value)
            old = victim.graph.values[value].alias_of
            if producer is not None and producer.effects:
                old = next((o for o, new in producer.effects if new == value), old)
            written = producer is not None and (producer.function.mutates or producer.effects)
            if not written or old is None or old not in victim.payloads:
                continue
            if victim.graph.values[old].type == victim.graph.values[value].type:
                yield _replaced(op, place, old)

    return _operand_changes(victim, candidates)


def a_dropped_edge(victim):
    """an operand left out, a number in its place"""
    for op in victim.shuffled(victim.proved):
        if not victim.saved(op.reads):
            continue
        for place in victim.shuffled(range(len(op.operands))):

            def renumbered(node, place=place):
                if isinstance(node, Slot):
                    return 0.5 if node.index == place else Slot(node.index - (node.index > place))
                return None

            args = tuple(map_nodes(arg, renumbered) for arg in op.args)
            kwargs = tuple((name, map_nodes(arg, renumbered)) for name, arg in op.kwargs)
            changed = evolve(op, operands=op.operands[:place] + op.operands[place + 1 :], args=args, kwargs=kwargs)
            if victim.matters(changed):
                yield victim.with_ops(changed)


def a_wrong_constant(victim):
    """a number among the arguments changed"""
    for op in victim.shuffled(victim.proved):
        if not victim.saved(op.reads):
            continue
        for place, arg in enumerate(op.args):
            if isinstance(arg, (bool, int, float)):
                wrong = (not arg) if isinstance(arg, bool) else arg + 1 if isinstance(arg, int) else arg * 1.01 + 0.01
                changed = evolve(op, args=(*op.args[:place], wrong, *op.args[place + 1 :]))
                if victim.matters(changed):
                    yield victim.with_ops(changed)


def a_wrong_random_state(victim):
    """the generator state of a random operation replaced, or lost"""
    other = torch.Generator().manual_seed(99).get_state()
    for op in victim.shuffled(victim.proved):
        states = victim.payloads.rng_states.get(op.id)
        if states and victim.saved(op.reads):
            for wrong in ({**victim.payloads.rng_states, op.id: dict.fromkeys(states, other)}, {}):
                store = evolve(victim.payloads, rng_states=wrong)
                changed = Victim.__new__(Victim)
                changed.payloads, changed.interpreter = store, Interpreter(victim.graph, store)
                if changed.matters(op):
                    yield ModelHistory(victim.graph, store)


def a_missing_op(victim):
    """an operation taken out: its readers read its operand"""
    for op in victim.shuffled(victim.proved):
        if len(op.results) != 1 or op.effects or not op.operands or not victim.saved((*op.reads, *op.results)):
            continue
        (result,) = op.results
        users = [victim.graph.ops[user] for user in victim.graph.users(result)]
        for value in dict.fromkeys(op.operands):
            if victim.graph.values[value].type != victim.graph.values[result].type:
                continue
            if same(victim.read(value), victim.read(result)):
                continue
            bypassed = [evolve(u, operands=tuple(value if v == result else v for v in u.operands)) for u in users]
            if any(
                u in victim.proved and victim.saved(u.reads) and victim.matters(b)
                for u, b in zip(users, bypassed, strict=True)
            ):
                kept = [o for o in victim.graph.ops if o.id != op.id]
                made = keep_ops(victim.graph, kept, {result: value})
                saved = {v: held for v, held in victim.payloads.values.items() if v != result}
                store = evolve(victim.payloads, values=saved).remap(made.map.values, made.map.ops, made.map.absorbed)
                yield analysed(ModelHistory(made.graph, store))
                break


def analysed(history):
    manager = PassManager(parse_pipeline(ANALYSIS, registry.pass_classes()), registry.providers())
    result = manager.run(history.graph, history.payloads)
    return ModelHistory(result.graph, result.payloads)


def _regrouped(victim, layer, rule):
    order: dict[int, int] = {}
    facet = Recurrence(tuple(order.setdefault(one, len(order)) for one in layer), tuple(rule))
    graph = victim.graph.with_facets(facet)
    labels = LabelsPass().run(graph, PassContext()).facets
    return ModelHistory(graph.with_facets(*labels), victim.payloads)


def a_wrong_pass_grouping(victim):
    """a pass taken out of its layer, or two layers made one"""
    facet = victim.graph[Recurrence]
    layers = facet.passes()
    for ops in victim.shuffled([ops for ops in layers if len(ops) > 1]):
        layer, rule = list(facet.layer), list(facet.rule)
        layer[ops[-1]], rule[ops[-1]] = len(layers), ""
        if len(ops) == 2:
            rule[ops[0]] = ""
        yield _regrouped(victim, layer, rule)
    single = [ops[0] for ops in layers if len(ops) == 1]
    by_function = defaultdict(list)
    for op in single:
        row = victim.graph.ops[op]
        by_function[row.function].append(op)
    for ops in victim.shuffled(by_function.values()):
        if len(ops) > 1:
            layer, rule = list(facet.layer), list(facet.rule)
            first, second = sorted(victim.choice.sample(ops, 2))
            layer[second], rule[first], rule[second] = layer[first], "adjacent", "adjacent"
            yield _regrouped(victim, layer, rule)


def a_wrong_scope(victim):
    """an operation in another module call"""
    for op in victim.shuffled(victim.graph.ops):
        others = [ScopeId(i) for i in range(len(victim.graph.scopes)) if i != op.scope]
        if op.scope is not None and others:
            changed = victim.with_ops(evolve(op, scope=victim.choice.choice(others)))
            facet = changed.graph[Containment]
            scopes = tuple(o.scope if o.id == op.id else s for o, s in zip(changed.graph.ops, facet.ops, strict=True))
            yield ModelHistory(changed.graph.with_facets(evolve(facet, ops=scopes)), victim.payloads)


FAULTS = (
    an_element,
    a_stale_value,
    swapped_operands,
    a_dropped_edge,
    a_wrong_parent,
    a_wrong_pass_grouping,
    a_wrong_scope,
    a_missing_op,
    a_wrong_constant,
    a_wrong_random_state,
    an_unversioned_write,
)


class Noise(nn.Module):
    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(nn.functional.dropout(x, 0.3)) + torch.randn_like(x) * 0.1
        return torch.bernoulli(torch.sigmoid(x))


_MODELS = (
    (Noise, torch.randn(4, 5)),
    (models.TwoBranches, torch.randn(2, 4)),
    (models.InPlaceThroughView, torch.randn(2, 4)),
    (models.SetItem, torch.randn(2, 2)),
    (models.LSTMLoop, torch.randn(3, 2, 4)),
)


def small_models():
    """The conformance models that return, and some more, each with what makes a history of it."""
    for case in CASES:
        if not case.errors:
            torch.manual_seed(0)
            yield case.name, lambda case=case: lens.trace(case.model(), case.args(), dict(case.kwargs))
    for cls, *args in _MODELS:
        yield cls.__name__, lambda cls=cls, args=args: lens.trace(cls().train(), tuple(args))


def real_models():
    import_torchvision()  # before timm
    from real_models import REAL_MODELS

    for name, make in REAL_MODELS.items():
        for train in (False, True):

            def traced(make=make, train=train):
                torch.manual_seed(0)
                model, args, kwargs = make()
                with torch.no_grad():
                    for parameter in model.parameters():  # biases of zeros hide whether they are there
                        parameter.add_(torch.randn_like(parameter) * 0.01)
                return lens.trace(model.train(train), args, kwargs)

            yield f"{name} {'train' if train else 'eval'}", traced


def plant(subjects, variants, faults=FAULTS) -> Iterator[tuple[str, str, bool]]:
    """Model, fault, and whether it was found, for up to ``variants`` of each fault per model."""
    for name, make in subjects:
        victim = Victim(make())
        for fault in faults:
            for number, history in enumerate(fault(victim)):
                if number == variants:
                    break
                yield name, fault.__name__, not lens.validate.check(history).ok


def table(results) -> str:
    found, where = defaultdict(list), defaultdict(set)
    for model, fault, was_found in results:
        found[fault].append(was_found)
        where[fault].add(model)
    rows = ["| planted fault | models | planted | found |", "|---|---:|---:|---:|"]
    for fault in FAULTS:
        hits = found[fault.__name__]
        rows.append(f"| {fault.__doc__} | {len(where[fault.__name__])} | {len(hits)} | {sum(hits)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="real models too")
    parser.add_argument("--fault", action="append", choices=[f.__name__ for f in FAULTS], help="only this one")
    options = parser.parse_args()
    everything = [*small_models(), *(real_models() if options.real else ())]
    results = []
    faults = [fault for fault in FAULTS if not options.fault or fault.__name__ in options.fault]
    for result in plant(everything, options.variants, faults):
        results.append(result)
        if not result[2]:
            print("not found:", *result[:2], file=sys.stderr)
    print(table(results))
