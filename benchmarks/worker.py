"""A process that holds one model and runs jobs on it: ``Worker`` starts one, ``main`` is what it does.

TorchLens leaves torch patched, so each side has a process of its own; whoever asks both in turn compares them fairly.
"""

import argparse
import gc
import json
import os
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch

import lens
from benchmarks.jobs import LENS, count_ops, lens_jobs, record, torchlens_jobs
from benchmarks.models import make_case
from benchmarks.resident import peak_memory

COMMAND = (sys.executable, "-m", "benchmarks.worker")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SIDES = {"lens": lens_jobs, "torchlens": torchlens_jobs}


class Worker:
    """A running process with one model.

    Args:
        model: Its name in ``benchmarks.models``.
        side: ``lens`` or ``torchlens``: whose jobs it knows.
        limit: Seconds after which a job is given up, and the process with it.
        clock: ``wall``, or ``cpu`` (the time of the process) where other programs disturb.
    """

    def __init__(self, model: str, side: str, limit: float, clock: str) -> None:
        self.model, self.side, self.limit, self.clock = model, side, limit, clock
        self.start()

    def start(self) -> None:
        command, pipe = [*COMMAND, self.model, self.side, self.clock], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT)

    def seconds(self, job: str) -> float:
        """How long the job takes, once."""
        return float(self.ask(job))

    def ask(self, question: str) -> str:
        """The answer to a question. Raises RuntimeError if the job fails or takes too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(question, file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], self.limit)
        answer = self.process.stdout.readline() if ready else f"error over {self.limit:.0f} s"
        if not answer or answer.startswith("error"):
            if not ready or not answer:
                self.close()
                self.start()
            raise RuntimeError(answer.removeprefix("error").strip() or "the process died")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def peak(model: str, job: str) -> dict[str, float]:
    """Peak memory of one job in a fresh process, in bytes, and what its history holds."""
    output = subprocess.run([*COMMAND, model, "peak", job], capture_output=True, text=True, env=ENVIRONMENT)
    if output.returncode:
        raise RuntimeError(f"{model}, {job}: {output.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return found


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def _serve(model: str, side: str, clock: Callable[[], float]) -> None:
    case = make_case(model)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a job prints is no answer
    with torch.no_grad():
        jobs = SIDES[side](case)
        for line in sys.stdin:
            name = line.strip()
            if name == "ops":
                print(count_ops(case), file=answers, flush=True)
                continue
            try:
                gc.collect()
                begin = clock()
                result = jobs[name]()
                answer = str(clock() - begin)
                del result
            except Exception as error:  # noqa: BLE001  # whatever a rival raises is a result of the benchmark
                answer = f"error {type(error).__name__}: {error}".replace("\n", " ")[:200]
            print(answer, file=answers, flush=True)


def _peak(model: str, job: str) -> None:
    case = make_case(model)
    lens.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))  # its code, which is loaded once (7 MB), is no job's
    with torch.no_grad():
        if job == "record all":
            result = record(case, "all", lambda recorder: recorder)
        else:
            known = lens_jobs if job in LENS else torchlens_jobs
            result = (_bare(case) if job in ("plain", "trace", "trace all") else known(case))[job]()
    print(json.dumps({"peak": peak_memory(), **_held(case, result)}))


def _bare(case):
    """Jobs that need no history made before."""
    return {
        "plain": lambda: case.model(*case.args),
        "trace": lambda: lens.trace(case.model, case.args, save="none"),
        "trace all": lambda: lens.trace(case.model, case.args),
    }


def _held(case, result):
    """Bytes of the distinct memories that a history holds, the model's own left out."""
    if not hasattr(result, "payloads") or not hasattr(result, "graph"):
        return {}
    own = {t.untyped_storage().data_ptr() for t in (*case.model.parameters(), *case.model.buffers(), *case.args)}
    held = {}
    for value in result.payloads:
        storage = result.payloads.read(value).untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
    return {"ops": len(result.graph.ops), "payloads": sum(held.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("side", choices=[*SIDES, "peak"])
    parser.add_argument("job", nargs="?", help="a clock, or for peak a job")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.side == "peak":
        _peak(options.model, options.job)
    else:
        _serve(options.model, options.side, CLOCKS[options.job])


if __name__ == "__main__":
    main()
