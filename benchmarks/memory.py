"""Peak memory of jobs in fresh processes, and what a history holds per operation without payloads."""

import gc
import tracemalloc

import torch

import lens
from benchmarks.models import make_case
from benchmarks.table import grid
from benchmarks.worker import peak

#: Jobs whose peak is compared with that of the plain forward.
JOBS = ("plain", "trace", "trace all", "tl trace", "tl trace all")


def measure(model: str, jobs: list[str]) -> list[dict]:
    """Peaks of the jobs on one model (each in a fresh process), and the bytes per operation that a history holds."""
    rows = []
    for job in JOBS:
        if job in ("plain", *jobs):
            try:
                rows.append({"model": model, "job": job, **peak(model, job)})
            except RuntimeError as error:
                rows.append({"model": model, "job": job, "error": str(error)})
    for row in rows:
        if row["job"] == "trace":
            row["retained_per_op"] = retained_per_op(model)
    return rows


def retained_per_op(model: str) -> float:
    """Bytes of Python memory per operation that are there because a history without payloads is."""
    case = make_case(model)
    with torch.no_grad():
        lens.trace(case.model, case.args, save="none")
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        history = lens.trace(case.model, case.args, save="none")
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    return held / len(history.graph.ops)


def markdown(results: list[dict]) -> str:
    """One line per model and job; the last column is the peak over what the plain forward and the payloads need."""
    heads = ("model", "job", "peak MB", "payloads MB", "peak / (plain + payloads)", "retained bytes per op")
    lines = []
    plain = {row["model"]: row.get("peak", 0.0) for row in results if row["job"] == "plain"}
    for row in results:
        if "error" in row:
            lines.append((row["model"], row["job"], row["error"], "", "", ""))
            continue
        payloads = row.get("payloads", 0)
        ratio = row["peak"] / (plain[row["model"]] + payloads)
        held = f"{row['retained_per_op']:.0f}" if "retained_per_op" in row else ""
        megabytes = f"{row['peak'] / 2**20:.1f}", f"{payloads / 2**20:.1f}"
        lines.append((row["model"], row["job"], *megabytes, f"{ratio:.3f}", held))
    return "\n".join(grid(heads, lines)) + "\n"
