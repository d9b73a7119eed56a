"""The search for loops without parameters: against the slow reference, and how often it looks at an operation."""

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recurrence_reference import folded, graph_of, reference_layers

from lens.passes.recurrence import OpKeys
from lens.passes.rounds import Loop, Rounds


@st.composite
def programs(draw, longest=40):
    """Bodies without parameters that read near and far, or all the time the same, and are not always kept to."""
    reach = draw(st.sampled_from([4, 8, 14]))
    names = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "c"], ["split"], ["a", "split"]]))
    read = st.one_of(st.integers(0, reach - 1), st.sampled_from(["same", "other"]))
    reads = st.lists(read, min_size=1, max_size=2)
    body = st.lists(st.tuples(st.sampled_from(names), reads, st.integers(0, 1)), min_size=1, max_size=4)
    length = draw(st.integers(6, longest))
    program = []

    def result(number, second):
        """An operand: the first result of an op, or the second if it has one."""
        return -number if second and number and program[number - 1][0] == "split" else number

    constant = {"same": 0, "other": 0}
    while len(program) < length:
        shape = draw(body)
        for _ in range(draw(st.integers(1, 8))):
            if draw(st.integers(0, 4)) == 0:
                which = draw(st.sampled_from(["same", "other"]))
                constant[which] = result(draw(st.integers(0, len(program))), draw(st.booleans()))
            deviation = draw(st.integers(0, 15))
            for place, (name, distances, second) in enumerate(shape):
                newest = len(program)
                operands = [
                    constant[far] if far in constant else result(max(0, newest - far), second) for far in distances
                ]
                if place == deviation:
                    operands[0] = result(draw(st.integers(max(0, newest - reach), newest)), draw(st.booleans()))
                program.append((name, tuple(operands), None))
    return program[:length]


#: Repeats with a period of two, side by side; only in rounds of four does one feed the next.
FED_BY_EVERY_SECOND_ROUND = [
    ("a", (0,), None),
    ("d", (1,), None),
    *[("a", (operand,), None) for operand in (2, 1, 4, 1, 6, 3, 8, 3)],
]

#: The last op reads what the one before did: in rounds of one that is the same, in rounds of two it is not.
READS_ONCE_MORE = [("a", (place,), None) for place in (0, 1, 2, 3, 4, 5, 1, 7, 8, 9, 10, 11, 12, 13, 14, 14)]

#: From the first op on, two rounds of two do not feed each other; from the third on they do.
FED_FROM_THE_THIRD_ON = [(name, (place, 0), None) for name, place in zip("bcbcbc", (0, 1, 2, 1, 4, 3), strict=True)]

#: The longest two loops are of period 4 and overlap; of the one that is left over, a loop of period 3 is a part.
A_PART_OF_WHAT_IS_LEFT = [
    ("a", (place,), None) for place in (0, 0, 0, 0, 1, 2, 3, 4, 5, 8, 8, 10, 10, 12, 12)
]  # fmt: skip


#: Were it not for the two results of one op, the rounds of two would correspond: the second reads what the first made.
TWO_RESULTS_OF_ONE = [("split", (operand,), None) for operand in (0, 1, 2, -1)]


@given(programs())
@example(TWO_RESULTS_OF_ONE)
@example(FED_BY_EVERY_SECOND_ROUND)
@example(READS_ONCE_MORE)
@example(FED_FROM_THE_THIRD_ON)
@example(A_PART_OF_WHAT_IS_LEFT)
@settings(max_examples=300, deadline=None)
def test_loops_are_those_of_the_reference(program):
    graph = graph_of(program)
    assert folded(graph) == reference_layers(graph)


#: Every second op reads the input, the others the first op.
ALTERNATES = [("a", (0,), None), *[("a", (place, place % 2), None) for place in range(1, 12)]]


@given(programs(longest=60), st.integers(1, 8))
@example(ALTERNATES, 2)
@settings(max_examples=300, deadline=None)
def test_multiples_of_a_rhythm_make_loops_of_the_same_operations(program, period):
    graph = graph_of(program)
    rounds = Rounds(graph, OpKeys(graph).of, 0, len(graph.ops))

    def allows(op, start, period):
        return rounds.allowed_start(op, start, period) == start

    for start in range(len(program)):
        stop = start
        while stop < len(program) and allows(stop, start, period):
            stop += 1
        loop = Loop(start, stop + period, period)
        if stop - start < period or (rhythm := rounds.rhythm(loop)) is None:
            continue
        assert period % rhythm == 0
        for multiple in range(rhythm, len(loop.ops) // 2 + 1, rhythm):
            if multiple >= period:
                assert all(allows(op, start, multiple) for op in range(start, loop.stop - multiple))


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_side_by_side_are_looked_at_n_log_n_times(rows, monkeypatch):
    """``[f(x) for _ in range(n)]``, and then as many views or products of these: no loops, whatever the period."""
    looks = counted_looks(monkeypatch)
    for count in (100, 800):
        program = [("a", (0,), None)] * count
        for row in range(rows):
            program += [("bc"[row], (row * count + place + 1,), None) for place in range(count)]
        layers = folded(graph_of(program))
        assert len(set(layers)) == len(program)
    few, many = (looks[total] / total for total in sorted(looks))
    assert many <= 2 * few


def counted_looks(monkeypatch):
    """How often the search looks at an op from now on, by the number of ops."""
    looks = Counter()
    allowed_start = Rounds.allowed_start

    def counted(self, op, start, period):
        looks[len(self.graph.ops)] += 1
        return allowed_start(self, op, start, period)

    monkeypatch.setattr(Rounds, "allowed_start", counted)
    return looks


class Program(list):
    """A program that is written down op by op; the number of an op is how many there are with it."""

    def op(self, function, *operands):
        self.append((function, operands, None))
        return len(self)


def chain(count):
    program = Program()
    for _ in range(count):
        program.op("a", len(program))
    return program


def fibonacci(count):
    """``a, b = b, a + b``."""
    program = Program()
    for _ in range(count):
        program.op("add", len(program), max(0, len(program) - 1))
    return program


def momentum(count):
    """``v = m(v, g(x)); x = s(x, v)``."""
    program = Program()
    x = v = 0
    while len(program) < count:
        v = program.op("m", v, program.op("g", x))
        x = program.op("s", x, v)
    return program


def last_eight(count):
    """``keep.append(torch.stack(keep[-8:]).sum(0))``."""
    program = Program()
    keep = [program.op("a", 0)]
    while len(program) < count:
        keep.append(program.op("sum", program.op(f"stack{len(keep[-8:])}", *keep[-8:])))
    return program


def some_of_the_last_eight(count):
    chance = random.Random(0)
    program = Program()
    while len(program) < count:
        program.op("add", program.op("mul", len(program)), max(0, len(program) - chance.randrange(16)))
    return program


def chains_side_by_side(count):
    program = Program()
    ends = [0] * 8
    while len(program) < count:
        ends = [program.op("a", end) for end in ends]
    return program


def grid(count):
    """Every place reads its left and its upper neighbour."""
    program = Program()
    above = [0] * 10
    while len(program) < count:
        left = 0
        above = [left := program.op("a", up, left) for up in above]
    return program


def wide_rows(count):
    """Eight rows of any width, in which every place reads what is above and left of that."""
    program = Program()
    above = [0] * (count // 8)
    while len(program) < count:
        above = [program.op("a", above[i], above[max(0, i - 1)]) for i in range(len(above))]
    return program


def tree(count):
    """Sums of two, until there is one."""
    program = Program()
    level = [program.op("a", 0) for _ in range(count // 2)]
    while len(level) > 1:
        level = [program.op("add", *pair) for pair in zip(level[::2], level[1::2], strict=False)]
    return program


def skips(count):
    """Down, and then up with what was on the way down, as a U-Net does."""
    program = Program()
    down = [program.op("down", len(program)) for _ in range(count // 2)]
    for skip in reversed(down):
        program.op("up", len(program), skip)
    return program


def one_after_the_other(count):
    """A loop that carries on what is two ops old, and then one that shares an op with it."""
    program = Program()
    for _ in range(count // 3):
        program.op("a", len(program), max(0, len(program) - 1))
    while len(program) < count:
        program.op("b", len(program), len(program) - 1)
        program.op("a", len(program), len(program) - 2)
    return program


def now_and_then(count):
    """A chain of one function, and rarely another one."""
    chance = random.Random(0)
    program = Program()
    while len(program) < count:
        for _ in range(chance.randrange(count // 30, count // 10)):
            program.op("a", len(program))
        program.op("b", len(program))
    return program


def anything(count):
    chance = random.Random(0)
    program = Program()
    while len(program) < count:
        program.op(chance.choice("ab"), len(program), chance.randrange(len(program) + 1))
    return program


#: And how often an operation is looked at if there are 1,200, as measured, and some more.
PROGRAMS = {
    chain: 2,
    fibonacci: 3,
    momentum: 4,
    last_eight: 13,
    some_of_the_last_eight: 23,
    chains_side_by_side: 13,
    grid: 7,
    wide_rows: 65,
    tree: 9,
    skips: 6,
    one_after_the_other: 17,
    now_and_then: 12,
    anything: 9,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_operations_are_looked_at_few_times(program, monkeypatch):
    """Whatever the loops are, or if there are none. If each period were tried everywhere, it would be 600 times."""
    graph = graph_of(program(1200))
    looks = counted_looks(monkeypatch)
    folded(graph)
    assert looks[len(graph.ops)] / len(graph.ops) <= PROGRAMS[program]
