"""Random programs of views, in-place and pure operations: what is recorded is what happened."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import lens
from lens.ir.parser import parse
from lens.ir.printer import print_graph
from lens.ir.verifier import find_problems
from lens.validate.check import check


class Program(nn.Module):
    """A dozen operations on tensors that may share memory; the same ones at every call."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed
        self.snapshots = []

    def forward(self, x):
        choose = random.Random(self.seed)
        tensors = [x * 1.0, x + 1]
        self.snapshots = []
        for _ in range(12):
            new = self.step(choose, choose.choice(tensors), tensors[0])
            tensors.append(new)
            self.snapshots.append(new.detach().clone())
        return tuple(tensor.clone() for tensor in tensors)

    def step(self, choose, t, first):
        kind = choose.randrange(9)
        if kind == 0:
            return t * 2
        if kind == 1 and t.numel() > 1:
            return t[1:]
        if kind == 2 and t.numel() > 2:
            return t[:2]
        if kind == 3:
            return t.mul_(1.5)
        if kind == 4:
            return t.add_(1)
        if kind == 5:
            t[0] = 3.0
            return t
        if kind == 6:
            return t.view(-1)
        if kind == 7:
            return t + first.sum()
        return torch.relu(t)


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_random_programs(mode):
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    for seed in range(60):
        model = Program(seed)
        with context():
            history = lens.trace(model, torch.randn(4))
            saved = [history.payloads.read(value) for value in history.graph.outputs.values]
            plain = model(history["input_1"].tensor_contents)
        assert all(torch.equal(a, b) for a, b in zip(saved, plain, strict=True)), seed
        assert find_problems(history.graph) == [], seed
        assert parse(print_graph(history.graph)) == history.graph, seed
        report = check(history)
        assert report.ok, (seed, str(report))


class SharedWithNumPy(Program):
    """As above, and NumPy writes to some of it, out of sight."""

    def step(self, choose, t, first):
        kind = choose.randrange(5)
        if kind == 0:
            t.detach().numpy()[choose.randrange(len(t))] += 1
            return t
        if kind == 1:
            return t[choose.randrange(2) :: 2] if t.numel() > 3 else t
        return super().step(choose, t, first)


def violations(model, backend):
    """What is wrong with the trace of a program."""
    with torch.no_grad():
        history = lens.trace(model, torch.randn(8), backend=backend)
        saved = [history.payloads.read(value) for value in history.graph.outputs.values]
        plain = model(history["input_1"].tensor_contents)
    differs = [place for place, (a, b) in enumerate(zip(saved, plain, strict=True)) if not torch.equal(a, b)]
    return [*differs, *find_problems(history.graph), *check(history).failed]


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_random_programs_that_share_memory_with_numpy(backend):
    for seed in range(40):
        assert violations(SharedWithNumPy(seed), backend) == [], seed


class InThreads(SharedWithNumPy):
    """As above, and half of the steps are made in another thread, up to three at a time."""

    def step(self, choose, t, first):
        if choose.randrange(2):
            return super().step(choose, t, first)

        def work():
            new = t
            for _ in range(choose.randrange(1, 4)):
                new = SharedWithNumPy.step(self, choose, new, first)
            return new

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(work).result()


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])  # torch_dispatch says that it sees no threads
def test_random_programs_that_share_memory_with_numpy_in_threads(backend):
    for seed in range(60):
        assert violations(InThreads(seed), backend) == [], seed
