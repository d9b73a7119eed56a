"""Random programs of views, writes and pure operations: replaying the graph gives every value of the real run.

Many more programs: ``LENS_PROGRAMS=5000 pytest tests/test_replay_programs.py``.
"""

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import lens
from lens.errors import StaleValueError
from lens.ir.tape import UNUSED, number_values
from lens.ir.verifier import find_problems
from lens.replay import Interpreter

PROGRAMS = int(os.environ.get("LENS_PROGRAMS", "600"))
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}

VIEWS = {
    "from": lambda t, u, n: t[n % t.shape[0] :],
    "until": lambda t, u, n: t[: 1 + n % t.shape[0]],
    "steps": lambda t, u, n: t[:: 1 + n % 3],
    "column": lambda t, u, n: t[..., n % t.shape[-1]],
    "select": lambda t, u, n: t.select(0, n % t.shape[0]),
    "transpose": lambda t, u, n: t.transpose(0, -1),
    "T": lambda t, u, n: t.mT,
    "flat": lambda t, u, n: t.view(-1),
    "reshape": lambda t, u, n: t.reshape(-1, 1),
    "expand": lambda t, u, n: t[..., :1].expand(*t.shape[:-1], 3),
    "as_strided": lambda t, u, n: t.as_strided((2, 2), (n % 3, 1)),
    "as_strided_far": lambda t, u, n: t.as_strided((2,), (1,), n % 3),
    "diagonal": lambda t, u, n: t.diagonal(),
    "unbind": lambda t, u, n: t.unbind(0)[n % t.shape[0]],
    "split": lambda t, u, n: t.split(1 + n % 2)[0],
    "chunk": lambda t, u, n: t.chunk(2)[-1],
    "detach": lambda t, u, n: t.detach(),
    "data": lambda t, u, n: t.data,
    "unsqueeze": lambda t, u, n: t.unsqueeze(0),
    "squeeze": lambda t, u, n: t.squeeze(),
    "window": lambda t, u, n: t.unfold(0, 2, 1),
    "bits": lambda t, u, n: t.detach().view(torch.int32),
    "halves": lambda t, u, n: torch.view_as_complex(t.detach()[..., :2]),
    "imag": lambda t, u, n: torch.view_as_complex(t.detach()[..., :2]).conj().imag,
    "base": lambda t, u, n: t._base,
    "loop": lambda t, u, n: [row.mul_(2) for row in t][-1],
}


def setting(change):
    """A write as a step that gives the tensor written."""

    def step(t, u, n):
        change(t, u, n)
        return t

    return step


def item(t, place, value):
    t[place] = value


def augment(t, place, value):
    t[place] += value


def writable(*tensors):
    """A call that is refused after it has written a part is out of sight in inference mode."""
    if any(0 in t.stride() or not t.is_floating_point() for t in tensors):
        raise ValueError
    return tensors


def growing(tensor):
    """Torch itself leaves a tensor larger than its memory where that may not grow, as once NumPy has seen it."""
    if not tensor.untyped_storage().resizable():
        raise ValueError
    return tensor


def under_no_grad(t, u, n):
    with torch.no_grad():
        t.add_(n)


def assign_data(t, u, n):
    t.data = u


def out_of_sight(t, u, n):
    with torch._C.DisableTorchFunction(), torch.no_grad():
        t.mul_(3)


def through_numpy(t, u, n):
    t.detach().numpy()[...] += 1


def fitting(t, u, n):
    t.copy_(u.sum())


WRITES = {
    "add_": lambda t, u, n: t.add_(1.25),
    "add_other": lambda t, u, n: t.add_(u),
    "mul_": lambda t, u, n: t.mul_(n),
    "mul_other": lambda t, u, n: t.mul_(u.detach()),
    "iadd": lambda t, u, n: t.__iadd__(1),
    "copy_": setting(fitting),
    "copy_other": lambda t, u, n: t.copy_(u),
    "zero_": lambda t, u, n: t.zero_(),
    "relu_": lambda t, u, n: torch.relu_(t),
    "clamp_": lambda t, u, n: t.clamp_(-1, 1),
    "set_slice": setting(lambda t, u, n: item(t, slice(n % 2, None), 7.0)),
    "set_other": setting(lambda t, u, n: item(t, slice(0, 2), u[:2])),
    "set_mask": setting(lambda t, u, n: item(t, t > 0, 0.5)),
    "set_index": setting(lambda t, u, n: item(t, torch.tensor([n % t.shape[0]]), -1.0)),
    "set_all": setting(lambda t, u, n: item(t, ..., u.mean())),
    "set_T": setting(lambda t, u, n: item(t.T, 0, 4.0)),
    "augment": setting(lambda t, u, n: augment(t, n % t.shape[0], 2.0)),
    "augment_slice": setting(lambda t, u, n: augment(t, slice(1, None), u.sum())),
    "augment_mask": setting(lambda t, u, n: augment(t, t < 1, 1.0)),
    "out": setting(lambda t, u, n: torch.add(t, 1, out=t)),
    "out_other": setting(lambda t, u, n: torch.mul(t, 2, out=growing(u))),
    "out_empty": lambda t, u, n: torch.add(t, 1, out=torch.empty(0)),
    "out_resize": setting(lambda t, u, n: torch.mul(u, 2, out=growing(t).detach().view(-1)[:0])),
    "out_two": lambda t, u, n: torch.sort(t, out=(torch.empty(0), torch.empty(0, dtype=torch.long)))[0],
    "foreach_": setting(lambda t, u, n: torch._foreach_add_(writable(t, u), 1.0)),
    "foreach_mul": setting(lambda t, u, n: torch._foreach_mul_(writable(t, t[:1]), 2.0)),
    "foreach": lambda t, u, n: torch._foreach_mul([t, u], 2.0)[1],
    "masked_fill_": lambda t, u, n: t.masked_fill_(t > 1, -2.0),
    "index_add_": lambda t, u, n: t.index_add_(0, torch.tensor([0]), t[:1].clone()),
    "index_fill_": lambda t, u, n: t.index_fill_(0, torch.tensor([n % t.shape[0]]), 3.0),
    "scatter_": lambda t, u, n: t.scatter_(0, torch.zeros_like(t, dtype=torch.long), 9.0),
    "set_": lambda t, u, n: t.set_(u),
    "set_storage": lambda t, u, n: t.set_(u.untyped_storage(), 0, (min(2, u.untyped_storage().nbytes() // 4),), (1,)),
    "data=": setting(assign_data),
    "data_mul": setting(lambda t, u, n: t.data.mul_(0.5)),
    "data_set": setting(lambda t, u, n: item(t.data, 0, 6.0)),
    "detach_add": setting(lambda t, u, n: t.detach().add_(1)),
    "no_grad": setting(under_no_grad),
    "t_": lambda t, u, n: t.t_(),
    "unsqueeze_": lambda t, u, n: t.unsqueeze_(0),
    "squeeze_": lambda t, u, n: t.squeeze_(),
    "as_strided_": lambda t, u, n: t.as_strided_((2,), (1,)),
    "resize_": lambda t, u, n: t.resize_(
        1 + 3 * n % min(t.numel(), t.untyped_storage().nbytes() // 4 - t.storage_offset())
    ),
    "uniform_": lambda t, u, n: t.uniform_(),
    "bernoulli_": lambda t, u, n: t.bernoulli_(0.5),
    "dropout_": lambda t, u, n: nn.functional.dropout(t, 0.5, inplace=True),
    "functional_relu": lambda t, u, n: nn.functional.relu(t, inplace=True),
    "batch_norm": lambda t, u, n: nn.functional.batch_norm(
        t.detach().view(-1, 2), u[0, :2], u[-1, :2] ** 2, training=True
    ),
    "normalize_out": lambda t, u, n: nn.functional.normalize(t.detach(), dim=0, out=growing(u).detach()),
}
HIDDEN = {"out_of_sight": setting(out_of_sight), "through_numpy": setting(through_numpy)}
#: What may show memory that no tensor shows any more; and what is refused only after it has resized its result.
REACHING = ("as_strided", "as_strided_far", "as_strided_", "set_storage", "base", "out_resize")
PURE = {
    "add": lambda t, u, n: t + 1.5,
    "add_both": lambda t, u, n: t + u,
    "mul": lambda t, u, n: t * u.sum(),
    "sum": lambda t, u, n: t.sum(-1, keepdim=True),
    "cat": lambda t, u, n: torch.cat([t, t])[:4],
    "clone": lambda t, u, n: t.clone(),
    "contiguous": lambda t, u, n: t.contiguous(),
    "softmax": lambda t, u, n: t.softmax(0),
    "cumsum": lambda t, u, n: t.cumsum(0),
    "where": lambda t, u, n: torch.where(t > 0, t, -t),
    "flip": lambda t, u, n: t.flip(0),
    "rand": lambda t, u, n: torch.rand(2, 3),
    "rand_like": lambda t, u, n: torch.rand_like(t),
    "dropout": lambda t, u, n: nn.functional.dropout(t, 0.5),
    "max": lambda t, u, n: t.max(0).values,
}
STEPS = {**VIEWS, **WRITES, **PURE}
#: What a step raises that does not fit its tensors; the program goes on without it.
REFUSED = (RuntimeError, IndexError, TypeError, ValueError)


class Program(nn.Module):
    """Steps on tensors that may share memory, the same at every call; the tensors alive are looked at after each."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.register_buffer("state", torch.randn(4, 2, generator=generator))
        self.row = self.state[1]  # known to the model only as a plain attribute
        self.snapshots = []
        self.tape = None

    def forward(self, x, y):
        tensors = [x, y, self.weight, x * 1.0, y + 1]
        self.snapshots = []
        self.look(tensors)
        for name, i, j, n in self.steps:
            if name == "state":
                tensors.append(self.state)
            elif name == "row":
                tensors.append(self.row)
            else:
                self.step(tensors, (STEPS | HIDDEN)[name], tensors[i % len(tensors)], tensors[j % len(tensors)], n)
            if n == 5 and len(tensors) > 5:
                tensors.pop(0)
            self.look(tensors)
        return tuple(tensors)

    def step(self, tensors, function, t, u, n):
        try:
            new = function(t, u, n)
        except REFUSED:
            return
        if isinstance(new, torch.Tensor) and 0 < new.numel() < 40:
            tensors.append(new)

    def look(self, tensors):
        """Copies of the tensors alive and, in a traced run, the values that they stand for."""
        modes = torch.overrides._get_current_function_mode_stack()
        recorder = getattr(modes[-1], "recording", modes[-1]).recorder if modes else None
        self.tape = recorder.tape if recorder else self.tape
        with torch._C.DisableTorchFunction():
            for t in tensors:
                value = None
                if recorder is not None:
                    record = recorder.tensors.find(t)
                    known = record is not None and record.settled
                    known = known and (record.version is None or record.version == t._version)
                    value = record.value if known else None
                self.snapshots.append((value, t.detach().clone()))


def same(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(bits(a), bits(b))


def bits(t):
    return t.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def arguments():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 2, generator=generator), torch.randn(2, 3, generator=generator)


def readable(payloads, values, hidden):
    found = {}
    for value in values:
        try:
            found[value] = payloads.read(value)
        except StaleValueError:
            assert hidden, f"%{value} is stale and every write was seen"
    return found


def starting_values(history, snapshots):
    """The values of leaves: as saved or, where a write out of sight destroyed what was saved, as they were seen."""
    seen = dict(reversed(snapshots))
    leaves = {leaf.value for leaf in history.graph.leaves}
    return {v: seen[v] for v in leaves & seen.keys()} | readable(history.payloads, leaves, True)


def compare(made, expected, history, what):
    for value, tensor in expected.items():
        assert same(made[value], tensor), (what, value, made[value], tensor, str(history.graph.ops))


def check(steps, mode, backend="torch_function"):
    hidden = any(name in HIDDEN for name, *_ in steps)
    with MODES[mode]():
        torch.manual_seed(0)
        plain = Program(steps)
        plain(*arguments())
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model = Program(steps)
        history = lens.trace(model, arguments(), passes="", backend=backend)
    ids = number_values(model.tape)
    live = [(None if value is None or ids[value] == UNUSED else ids[value], t) for value, t in model.snapshots]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(plain.snapshots) == len(model.snapshots)
    for (_, a), (_, b) in zip(plain.snapshots, model.snapshots, strict=True):
        assert same(a, b)
    graph, payloads = history.graph, history.payloads
    assert find_problems(graph) == []
    if not any(name in HIDDEN or name in REACHING for name, *_ in steps):
        assert "external" not in {leaf.kind for leaf in graph.leaves}
    leaves = starting_values(history, live) if hidden else Interpreter(graph, payloads).sources()
    if not leaves.keys() >= {leaf.value for leaf in graph.leaves}:
        return  # lost before anybody saw it: the trace says so
    made = leaves | Interpreter(graph, payloads).run(leaves)
    compare(made, readable(payloads, payloads, hidden), history, "saved")
    for value, tensor in live:
        if value is not None and not hidden:
            assert same(made[value], tensor), ("live", value, made[value], tensor, graph.ops)
    # From the middle, with the values as they are, each alone in its memory.
    middle = len(graph.ops) // 2
    before = {v: t.detach().clone() for v, t in made.items() if (graph.values[v].producer or 0) < middle}
    compare(Interpreter(graph, payloads).run(before, start=middle), {}, history, "middle")


def steps_from(names):
    number = st.integers(0, 11)
    return st.lists(st.tuples(st.sampled_from(sorted(names)), number, number, st.integers(0, 5)), max_size=14)


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])
@pytest.mark.parametrize("mode", MODES)
def test_replay_gives_every_value_of_the_run(mode, backend):
    @settings(max_examples=PROGRAMS // (3 if backend == "torch_function" else 9), deadline=None)
    @given(steps_from([*STEPS, "state", "row"]))
    @example([("T", 0, 0, 0), ("steps", 3, 0, 1), ("set_", 3, 0, 0), ("set_", 0, 6, 0)])
    @example([("steps", 0, 0, 1), ("halves", 5, 0, 0), ("unsqueeze_", 6, 0, 0), ("resize_", 6, 0, 1)])
    @example([("diagonal", 0, 0, 0), ("T", 0, 0, 0), ("T", 0, 0, 5), ("bits", 4, 0, 0), ("resize_", 7, 0, 0)])
    def run(steps):
        check(steps, mode, backend)

    run()


def test_writes_out_of_sight_are_values_of_unknown_origin():
    @settings(max_examples=PROGRAMS // 5, deadline=None)
    @given(steps_from([*STEPS, "state", "row", *HIDDEN, *HIDDEN, *HIDDEN]))
    @example([("T", 0, 0, 0), ("data", 0, 0, 0), ("out_of_sight", 0, 0, 0), ("add", 6, 0, 0)])
    def run(steps):
        check(steps, "grad")

    run()
