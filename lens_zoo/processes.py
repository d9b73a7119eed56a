"""One process per model, forked from one that has imported everything, with limits of time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from attrs import asdict, define, frozen

from lens_zoo.examination import OWN_STAGES, Findings, examine
from lens_zoo.libraries import builder, is_feedforward

_FORK = multiprocessing.get_context("fork")
_GIB = 1 << 30


@frozen
class Limits:
    """What one model may take: seconds of wall clock, and GiB of memory."""

    seconds: float
    gibibytes: float


@define
class _Running:
    process: BaseProcess
    connection: Connection
    findings: Findings
    begun: float
    stage: str = "start"


def examine_all(recipes: list[str], backend: str, limits: Limits, jobs: int) -> Iterator[Findings]:
    """Examine models, ``jobs`` at a time; gives the findings in order of completion."""
    torch.set_num_threads(1)  # threads do not survive a fork
    examine("handwritten:noisy", builder("handwritten:noisy"), backend)  # what is made at first use is then there
    waiting, running = list(reversed(recipes)), list[_Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(_start(waiting.pop(), backend, limits))
        wait([one.connection for one in running], timeout=1)
        for one in list(running):
            if _finished(one, limits):
                running.remove(one)
                one.connection.close()
                one.process.join()
                yield one.findings


def _start(recipe: str, backend: str, limits: Limits) -> _Running:
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(recipe, backend, limits, sender), daemon=True)
    process.start()
    sender.close()
    return _Running(process, receiver, Findings(recipe, backend), time.monotonic())


def _finished(one: _Running, limits: Limits) -> bool:
    """Take in what a process has to say; kill it when its time is over."""
    try:
        while one.connection.poll():
            message = one.connection.recv()
            if isinstance(message, dict):
                one.findings = Findings(**message)
                return True
            one.stage = message
    except EOFError:
        one.process.join()
        return _stopped(one, f"process ended with code {one.process.exitcode}")
    if time.monotonic() - one.begun > limits.seconds:
        one.process.kill()
        return _stopped(one, f"time limit of {limits.seconds:g} s")
    return False


def _stopped(one: _Running, why: str) -> bool:
    one.findings.fail(why, f"at stage {one.stage}", "not run" if one.stage in OWN_STAGES else "limit")
    return True


def _work(recipe: str, backend: str, limits: Limits, sender: Connection) -> None:
    """What the process does: examine one model and send the findings."""
    memory = int(limits.gibibytes * _GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    seconds = int(limits.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))  # for the case that the parent is gone
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    findings = examine(recipe, builder(recipe), backend, is_feedforward(recipe), sender.send)
    sender.send(asdict(findings))
    sender.close()
