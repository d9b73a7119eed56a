"""The recurrence rules, slow and straight from the paper's text; the pass is compared with this.

"operations with associated trainable parameters that are executed multiple times in the forward pass are always
marked as passes of the same layer; all repeated operations adjacent to these repeated-parameter layers are marked as
passes of the same layer [recursively]; if there are repeated, adjacent sequences of operations without trainable
parameters, then corresponding layers in these sequences are marked as the same, but not if these sequences are
separate." Where this leaves something open, docs/adr/002-recurrence.md says what is taken.
"""

from lens.ir.parser import parse
from lens.passes.recurrence import RecurrencePass


def graph_of(program):
    """A graph from (function, operands, parameter number or None) per op.

    An operand is the number of an op, from 1 on, or 0 for the input; of those that are called ``split``, which have
    two results, minus the number is the second.
    """
    used = sorted({p for _, _, p in program if p is not None})
    places = {p: i + 1 for i, p in enumerate(used)}
    lines = ["graph {", '  leaf %0: f32[2] = input "x"']
    lines += [f'  leaf %{places[p]}: f32[2] = parameter "p{p}"' for p in used]
    lines.append("  inputs (@x,)")
    names = {0: "@x"}
    count = len(used) + 1
    for number, (function, operands, parameter) in enumerate(program, 1):
        values = [names[o] for o in operands]
        values += [f"@p{parameter}"] if parameter is not None else []
        results = (number, -number) if function == "split" else (number,)
        for result in results:
            names[result] = f"%{count}"
            count += 1
        written = ", ".join(f"{names[result]}: f32[2]" for result in results)
        lines.append(f"  {written} = torch.{function}({', '.join(values)})")
    return parse("\n".join([*lines, "}"]))


def folded(graph):
    """Per op, the first op of its layer, as the pass has it."""
    facet = RecurrencePass().run(graph, None).facets[0]
    assert list(facet.verify(graph)) == []
    first = {}
    return [first.setdefault(layer, op) for op, layer in enumerate(facet.layer)]


def reference_layers(graph):
    """Per op, the first op of its layer."""
    ops = range(len(graph.ops))
    parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}

    def has_parameters(op):
        return any(v in parameters for v in graph.ops[op].operands)

    def same(a, b):
        x, y = graph.ops[a], graph.ops[b]
        own = lambda op: [v if v in parameters else None for v in op.operands]
        alike = x.function == y.function and repr((x.args, x.kwargs)) == repr((y.args, y.kwargs))
        if has_parameters(a) or has_parameters(b):
            return alike and own(x) == own(y)
        return alike

    layers = []

    def layer_of(op):
        return next((layer for layer in layers if op in layer), None)

    # Rule 1
    for op in ops:
        if has_parameters(op) and layer_of(op) is None:
            passes = [other for other in ops if has_parameters(other) and same(op, other)]
            if len(passes) > 1:
                layers.append(passes)

    # Rule 2: every relation in which something stands beside an op, written out
    def beside(op):
        for result, value in enumerate(graph.ops[op].writes):
            before = []
            for user in ops:
                reads = graph.ops[user].reads
                if value in reads and not has_parameters(user):
                    place = reads.index(value)
                    like = sum(1 for p, u in before if p == place and same(u, user))
                    before.append((place, user))
                    yield ("user", result, place, like), user
        for place, value in enumerate(graph.ops[op].reads):
            producer = graph.values[value].producer
            if producer is not None and not has_parameters(producer):
                yield ("producer", place, graph.values[value].index), producer

    waiting = list(layers)
    while waiting:
        layer = waiting.pop(0)
        found = [(side, relation, op) for side in ("user", "producer") for member in layer
                 for relation, op in beside(member) if relation[0] == side]  # fmt: skip
        done = []
        for _, relation, op in found:
            if any(relation == r and same(op, o) for r, o in done):
                continue
            done.append((relation, op))
            candidates = []
            for _, other_relation, other in found:
                if other_relation == relation and same(op, other) and other not in candidates:
                    candidates.append(other)
            free = [c for c in candidates if layer_of(c) is None]
            if len(candidates) < 2 or not free:
                continue
            taken = [layer_of(c) for c in candidates if layer_of(c) is not None]
            if taken:
                target = min(taken, key=layers.index)
                target.extend(free)
                target.sort()
            else:
                target = sorted(free)
                layers.append(target)
            if not any(target is w for w in waiting):
                waiting.append(target)

    # Rule 3: try every sequence, longest first
    free = [layer_of(op) is None and not has_parameters(op) for op in ops]
    loops = []
    for start in ops:
        for period in range(1, (len(free) - start) // 2 + 1):
            stop = _longest(graph, same, free, start, period)
            if stop is not None:
                loops.append((start, stop, period))
    # Only those that no loop of the same period contains.
    loops = [
        (a, b, p)
        for a, b, p in loops
        if not any(q == p and c <= a and b <= d and (a, b) != (c, d) for c, d, q in loops)
    ]
    loops.sort(key=lambda loop: (loop[0] - loop[1], loop[2], loop[0]))
    taken = set()
    for start, stop, period in loops:
        if taken.isdisjoint(range(start, stop)):
            taken.update(range(start, stop))
            for place in range(start, start + period):
                layers.append(list(range(place, stop, period)))
    return [min(layer_of(op) or [op]) for op in ops]


def _longest(graph, same, free, start, period):
    """Where the longest loop of this start and period ends; None if there are not two rounds."""
    op = start
    while op + period < len(free) and all(free[start : op + period + 1]):
        if not same(op, op + period) or not _corresponds(graph, op, start, period):
            break
        op += 1
    return op + period if op >= start + period and _feeds_itself(graph, start, period) else None


def _feeds_itself(graph, start, period):
    """Whether some place of the body depends on itself one or more rounds before, by transitive closure."""
    places = range(period)
    depends = {(i, j): False for i in places for j in places}
    for i in places:
        for a, b in zip(graph.ops[start + i].reads, graph.ops[start + i + period].reads, strict=True):
            producer = graph.values[b].producer
            if a != b and producer is not None and producer >= start:
                depends[i, (producer - start) % period] = True
    for k in places:
        for i in places:
            for j in places:
                depends[i, j] |= depends[i, k] and depends[k, j]
    return any(depends[i, i] for i in places)


def _corresponds(graph, op, start, period):
    here, there = graph.ops[op].reads, graph.ops[op + period].reads
    for a, b in zip(here, there, strict=True):
        first, second = graph.values[a], graph.values[b]
        if a == b:
            continue
        if second.producer is None or second.producer < start:
            return False
        if first.producer == second.producer - period and first.index == second.index:
            continue
        if first.producer == second.producer:
            return False
        if not (op < start + period and start <= second.producer < start + period):
            return False
    return True
