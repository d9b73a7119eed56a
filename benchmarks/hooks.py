"""One layer saved over many batches, by a predicate and by a forward hook written by hand."""

import statistics

import torch

import lens
from benchmarks.models import make_case
from benchmarks.table import grid, spread
from benchmarks.worker import CLOCKS

LAYER, BATCH, BATCHES = "layer3", 8, 3
WAYS = {
    "hook": "a forward hook on the layer",
    "address": f"lens.trace(save={LAYER!r})",
    "predicate": "lens.trace(save=lambda op: ...)",
    "predicate, no passes": "the same with passes=()",
}


def _by_hook(model, layer, x):
    kept = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    model(x)
    handle.remove()
    return kept[0]


def measure(rounds: int, clock: str) -> list[dict]:
    """Seconds per batch of each way on resnet18@224, in rounds that go through all of them."""
    model = make_case("resnet18@224").model
    layer = model.get_submodule(LAYER)
    batches = [torch.randn(BATCH, 3, 224, 224) for _ in range(BATCHES)]

    def wanted(op):
        return op.address == f"{LAYER}.1.relu"

    ways = {
        "hook": lambda x: _by_hook(model, layer, x),
        "address": lambda x: lens.trace(model, x, save=LAYER)[LAYER].tensor_contents,
        "predicate": lambda x: lens.trace(model, x, save=wanted),
        "predicate, no passes": lambda x: lens.trace(model, x, save=wanted, passes=()),
    }
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for number in range(rounds + 1):
            for x in batches:
                for way, run in ways.items():
                    begin = now()
                    run(x)
                    if number:  # the first round warms up
                        times[way].append(now() - begin)
    return [
        {
            "way": way,
            "seconds": statistics.median(found),
            "spread": spread(found),
            "over_hook": statistics.median([t / hook for t, hook in zip(found, times["hook"], strict=True)]),
        }
        for way, found in times.items()
    ]


def markdown(results: list[dict]) -> str:
    rows = [
        (WAYS[r["way"]], f"{r['seconds'] * 1e3:.1f}", f"{r['spread'] * 500:.1f}", f"{r['over_hook']:.3f}")
        for r in results
    ]
    lines = grid(("way", "ms per batch", "±", "over the hook"), rows)
    return "\n".join([f"resnet18@224, batch {BATCH}, {LAYER} saved:\n", *lines]) + "\n"
