"""What recording costs per operation, beside the plain forward and an empty TorchFunctionMode, in one run.

Prints microseconds per recorded operation, added to the plain forward: medians over interleaved rounds.

    empty mode   a TorchFunctionMode that only calls on (the floor)
    tape         the recording itself, without payloads, up to the end of the forward pass
    tape + all   the same, every value held
    graph        the tape sealed into a graph
    history      everything: recording, sealing, all passes
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import lens
from lens import registry
from lens.capture.addresses import AddressBook
from lens.capture.inputs import named_tensors
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.quiet_gc import old_objects_set_aside
from lens.capture.recorder import Recorder
from lens.capture.selection import make_selection
from lens.capture.sites import Locator
from lens.ir.elements import Meta
from lens.ir.tape import seal
from lens.model_specs import import_torchvision


class EmptyMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Loop(nn.Module):
    """``x = relu(fc(x))``, many times, on tiny tensors: nothing but overhead."""

    def __init__(self, steps):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.steps = steps

    def forward(self, x):
        for _ in range(self.steps):
            x = torch.relu(self.fc(x))
        return x


class Chain(nn.Module):
    """Builtin functions only, no modules inside."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def forward(self, x):
        for _ in range(self.steps):
            x = torch.relu(x + 1.0)
        return x


class RNN(nn.Module):
    def __init__(self, steps):
        super().__init__()
        self.cell = nn.LSTMCell(8, 8)
        self.steps = steps

    def forward(self, x):
        h = c = torch.zeros(1, 8)
        for _ in range(self.steps):
            h, c = self.cell(x, (h, c))
        return h


def record(model, x, save):
    """Only the recording."""
    addresses = AddressBook(model)
    selection = make_selection(save, ())
    recorder = Recorder(addresses, selection, Locator((MODULE_CALL_FILE,)), composites=False)
    for name, tensor in named_tensors(model, (x,), {}):
        recorder.leaf(tensor, "input", (name,))
    recorder.prepare()
    with old_objects_set_aside(), registry.find("backends", "torch_function")().record(recorder):
        model(x)
    return recorder


def timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def under_empty_mode(model, x):
    with EmptyMode():
        model(x)


def measure(name, model, x, rounds):
    model.eval()
    with torch.no_grad():
        recorder = record(model, x, "none")
        ops = len(lens.trace(model, x, save="none").graph.ops)
        jobs = {
            "plain": lambda: model(x),
            "empty mode": lambda: under_empty_mode(model, x),
            "tape": lambda: record(model, x, "none").close(),
            "tape + all": lambda: record(model, x, "all").close(),
            "history": lambda: lens.trace(model, x, save="none"),
            "seal": lambda: seal(recorder.tape, Meta()),
        }
        times = {job: [] for job in jobs}
        for _ in range(rounds):
            for job, function in jobs.items():
                times[job].append(timed(function))
    medians = {job: statistics.median(found) for job, found in times.items()}
    plain = medians.pop("plain")
    added = {job: (t - (0 if job == "seal" else plain)) / ops * 1e6 for job, t in medians.items()}
    added["graph"] = added["tape"] + added.pop("seal")
    columns = ("empty mode", "tape", "tape + all", "graph", "history")
    cells = "".join(f"{added[c]:12.2f}" for c in columns)
    ratio = added["tape"] / added["empty mode"]
    print(f"{name:16}{ops:7}{plain * 1e3:12.2f}{cells}{ratio:12.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    vision = import_torchvision().models
    print("microseconds per operation, added to the plain forward\n")
    heads = ("ops", "plain ms", "empty mode", "tape", "tape + all", "graph", "history", "tape/mode")
    print(f"{'model':16}{heads[0]:>7}" + "".join(f"{head:>12}" for head in heads[1:]))
    tiny = torch.randn(1, 8)
    measure("chain x2000", Chain(2000), tiny, rounds)
    measure("linear loop x500", Loop(500), tiny, rounds)
    measure("lstm cell x500", RNN(500), tiny, rounds)
    measure("resnet50@64", vision.resnet50(), torch.randn(1, 3, 64, 64), rounds)
    measure("densenet121@64", vision.densenet121(), torch.randn(1, 3, 64, 64), rounds)


if __name__ == "__main__":
    main()
