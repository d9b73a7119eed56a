"""The main table: every job on every model, in rounds that go through all jobs, so that noise falls on all alike."""

import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from benchmarks.jobs import LENS, MEANINGS, TORCHLENS, WITHOUT_FORWARD
from benchmarks.worker import Worker

#: So many seconds a job may take in all its rounds; one that takes longer at once is run once, not warmed up.
BUDGET = 30.0


def measure(model: str, jobs: tuple[str, ...], rounds: int, limit: float, clock: str) -> dict:
    """Medians and spread of all jobs on one model, and what each adds to the plain forward of its own round."""
    workers = {"lens": Worker(model, "lens", limit + 60, clock)}
    if any(job in TORCHLENS for job in jobs):
        workers["torchlens"] = Worker(model, "torchlens", limit, clock)
    sides = {job: "torchlens" if job in TORCHLENS else "lens" for job in ("plain", *jobs)}
    try:
        ops = int(workers["lens"].ask("ops"))
        times, errors = _rounds(workers, sides, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    return {"model": model, "ops": ops, "jobs": {job: _summary(job, times, ops) for job in times}, "errors": errors}


def _rounds(workers: dict, sides: dict, rounds: int) -> tuple[dict, dict]:
    """Per job its seconds by round. A job that takes long runs in fewer rounds; the first run warms up."""
    times: dict[str, dict[int, float]] = {}
    errors, left = {}, {}
    for job, side in sides.items():
        try:
            first = workers[side].seconds(job)
        except RuntimeError as error:
            errors[job] = str(error)
            continue
        left[job] = min(rounds, int(BUDGET / first))
        times[job] = {} if left[job] else {0: first}
    for number in range(rounds):
        for job, count in left.items():
            if number < count and job not in errors:
                try:
                    times[job][number] = workers[sides[job]].seconds(job)
                except RuntimeError as error:
                    errors[job] = str(error)
    for job in errors:
        times.pop(job, None)
    return times, errors


def _summary(job: str, times: dict, ops: int) -> dict:
    """Seconds and microseconds per operation: medians and the distance between the quartiles."""
    seconds = list(times[job].values())
    added = [t - (0.0 if job in WITHOUT_FORWARD else times["plain"][n]) for n, t in times[job].items()]
    each = [t / ops * 1e6 for t in added]
    least = min(seconds) - (0.0 if job in WITHOUT_FORWARD else min(times["plain"].values()))
    return {
        "seconds": statistics.median(seconds),
        "spread": spread(seconds),
        "rounds": len(seconds),
        "added_us_per_op": statistics.median(each),
        "added_spread": spread(each),
        "least_added_us_per_op": least / ops * 1e6,  # where other programs disturb: the machine at its quietest
    }


def spread(values: list[float]) -> float:
    """The distance between the quartiles; of few values, between the ends."""
    if len(values) < 4:
        return max(values) - min(values)
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def markdown(results: list[dict]) -> str:
    """The tables: time of each job, and what it adds to the plain forward per operation."""
    jobs = [job for job in MEANINGS if any(job in result["jobs"] for result in results)]
    added = [job for job in jobs if job != "plain"]
    lines = [*(f"- **{job}**: {MEANINGS[job]}" for job in jobs), ""]
    lines += [
        "Microseconds per operation, added to the plain forward (median of rounds, ± half the quartile distance):",
        "",
    ]
    rows = [
        (r["model"], r["ops"], f"{r['jobs']['plain']['seconds'] * 1e3:.2f}", *(_added(r, job) for job in added))
        for r in results
    ]
    lines += grid(("model", "ops", "plain ms", *added), rows)
    ratios = [_ratios(result) for result in results if "tl trace" in result["jobs"] and "trace" in result["jobs"]]
    if ratios:
        lines += ["", "Added time of TorchLens over that of lens:", ""]
        lines += grid(("model", "nothing saved", "everything saved"), ratios)
    lines += [f"\nnot run: {r['model']}, {job}: {what}" for r in results for job, what in r["errors"].items()]
    return "\n".join(lines) + "\n"


def _added(result: dict, job: str) -> str:
    found = result["jobs"].get(job)
    return f"{found['added_us_per_op']:.1f} ± {found['added_spread'] / 2:.1f}" if found else "-"


def _ratios(result: dict) -> tuple[str, ...]:
    jobs = result["jobs"]
    pairs = [("tl trace", "trace"), ("tl trace all", "trace all")]
    cells = [
        f"{jobs[theirs]['added_us_per_op'] / jobs[ours]['added_us_per_op']:.0f}"
        if theirs in jobs and ours in jobs and jobs[ours]["added_us_per_op"] > 0
        else "-"
        for theirs, ours in pairs
    ]
    return (result["model"], *cells)


def grid(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in cells]


def available_jobs() -> tuple[str, ...]:
    """All jobs; those of TorchLens only where it is installed."""
    try:
        version("torchlens")
    except PackageNotFoundError:
        return LENS
    return (*LENS, *TORCHLENS)
