"""What validation costs: time as a multiple of the plain forward, memory as a multiple of the payloads.

    python -m benchmarks.validation [--rounds 5] [MODEL SIZE ...]

Time: medians of interleaved rounds in one process. Memory: the peak of resident memory during the validation, over
what was resident before it, in a process of its own per model (Linux only).
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import lens
from benchmarks.resident import resident
from lens.model_specs import import_torchvision

DEFAULT = ("resnet18", "64", "resnet50", "224", "vgg16", "64", "vgg16", "224", "vit_b_16", "224")


def make(name: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return getattr(import_torchvision().models, name)().eval(), torch.randn(1, 3, size, size)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def times(name: str, size: int, rounds: int) -> str:
    model, x = make(name, size)
    plain, checks, whole = [], [], []
    with torch.no_grad():
        for turn in range(rounds + 1):
            history = lens.trace(model, x)
            row = timed(lambda: model(x)), timed(lambda h=history: lens.validate.check(h))
            row += (timed(lambda: lens.validate_saved_activations(model, x)),)
            if turn:  # the first round warms up
                for values, value in zip((plain, checks, whole), row, strict=True):
                    values.append(value)
    forward = median(plain)
    cells = [f"{forward * 1e3:.1f} ms"]
    cells += [f"{median(v) * 1e3:.0f} ms = {median(v) / forward:.1f}x" for v in (checks, whole)]
    return " | ".join(cells)


def payload_bytes(history: lens.ModelHistory) -> int:
    """Bytes of the distinct memories that a history holds, parameters among them."""
    storages = {}
    for value in history.payloads:
        storage = history.payloads.read(value).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak(name: str, size: int, whole: bool) -> str:
    """Peak of resident memory while a model is validated, over the start, in relation to the payloads."""
    model, x = make(name, size)
    with torch.no_grad():
        model(x)
        lens.validate.check(lens.trace(nn.ReLU(), torch.ones(4)))  # code is loaded
        before = resident("VmRSS")
        history = lens.trace(model, x)
        payloads = payload_bytes(history)
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        if whole:
            del history
            gc.collect()
            assert lens.validate_saved_activations(model, x)
        else:
            assert lens.validate.check(history).ok
        used = resident("VmHWM") - before + parameters
    return f"{payloads / 2**20:.0f} MiB | {used / 2**20:.0f} MiB = {used / payloads:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(DEFAULT))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=["check", "whole"], help="measure one model's memory in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = list(zip(options.models[::2], map(int, options.models[1::2]), strict=True))
    if options.memory:
        print(peak(*pairs[0], options.memory == "whole"))
        return
    print(
        "| model | plain forward | check(history) | whole validation | payloads | peak of check | peak of the whole |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, size in pairs:
        command = [sys.executable, "-m", "benchmarks.validation", name, str(size), "--memory"]
        peaks = []
        for way in ("check", "whole"):
            done = subprocess.run([*command, way], capture_output=True, text=True, check=True)
            held, _, used = done.stdout.strip().partition(" | ")
            peaks.append(used)
        print(f"| {name}@{size} | {times(name, size, options.rounds)} | {held} | {' | '.join(peaks)} |")


if __name__ == "__main__":
    main()
