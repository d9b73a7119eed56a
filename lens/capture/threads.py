"""Threads that the forward starts: each piece of work is recorded in its own thread, and joined to the trace.

A recorder belongs to one thread. So a job (the run of a thread, or one call handed to a thread pool) gets a recorder
of its own; when the job has ended and the trace waits for it, or meets a tensor that it made, its tape is appended
as one block. Threads that a traced forward did not start are left alone.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from threading import get_ident
from types import FrameType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from lens.capture.keeping import UNSEEN
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.patches import Entries, hidden, patched
from lens.capture.recorder import Recorder
from lens.capture.regions import Sight
from lens.capture.sites import Locator
from lens.capture.splicing import JobRecorder, splice
from lens.ir.gaps import NOT_ENDED, NOT_SEEN

#: How a backend records into a recorder in the thread that asks.
Record: TypeAlias = Callable[[Recorder], AbstractContextManager[None]]


class Jobs:
    """The work that a trace has handed to other threads.

    Args:
        recorder: The trace's recorder.
        record: How to record in the other thread.
    """

    def __init__(self, recorder: Recorder, record: Record) -> None:
        self._recorder = recorder
        self._record = record
        self._numbers = count()
        #: By number: the jobs that may still write, and those that wait to be spliced.
        self._running: dict[int, JobRecorder] = {}
        self._ended: dict[int, JobRecorder] = {}
        #: The thread or future that stands for a job -> its number.
        self._owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def new(self, work: Callable[..., Any], frame: FrameType | None) -> tuple[int, Callable[..., Any]]:
        """The work as a job: its number, and the same function, recorded wherever it is called."""
        recorder = self._recorder
        job = JobRecorder(recorder, Locator((MODULE_CALL_FILE, __file__)))
        job.call_site = recorder.site(frame)
        number = next(self._numbers)
        self._running[number] = job
        return number, functools.partial(_run_job, self, number, work)

    def withdraw(self, number: int) -> None:
        """Forget a job that nobody runs."""
        self._running.pop(number, None)

    def own(self, owner: Any, number: int) -> None:
        """Say which thread or future stands for a job."""
        self._owners[owner] = number

    def run(self, number: int, body: Callable[[], Any]) -> Any:
        """Run a job in the thread that it was handed to."""
        job = self._running.get(number)
        if job is None:
            return body()
        try:
            with self._record(job):
                if number not in self._running:  # the trace has ended just now
                    job.retire()
                return body()
        finally:
            if self._running.pop(number, None) is not None:
                self._ended[number] = job

    def collect(self, owner: Any = None) -> bool:
        """Put what has ended onto the trace's tape, in the order in which it was handed out.

        Args:
            owner: A thread or future: only its job, so that the order of the graph does not depend on who is fast.

        Says whether there was anything.
        """
        numbers = sorted(self._ended) if owner is None else [self._owners.get(owner, -1)]
        ended = [job for number in numbers if (job := self._ended.pop(number, None)) is not None]
        with UNSEEN():
            for job in ended:
                splice(self._recorder, job)
                job.close()
        return bool(ended)

    def close(self) -> None:
        """The trace ends: what still runs is not waited for, but disclosed."""
        self.abandon()
        self.collect()

    def abandon(self) -> None:
        """Record no more of what still runs. Any thread may say so."""
        for number in list(self._running):
            job = self._running.pop(number, None)
            if job is not None:
                self._recorder.tape.unseen.append((NOT_ENDED, job.call_site))
                job.leave()
                job.retire()


def _run_job(jobs: Jobs, number: int, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return jobs.run(number, lambda: work(*args, **kwargs))


def watch_threads(sight: Sight, record: Record) -> None:
    """Record the work that this thread hands to others."""
    jobs = sight.jobs = Jobs(sight.recorder, record)
    sight.stack.callback(jobs.close)
    sight.patch(threading.Thread, "start", _wrap_start)
    sight.patch(ThreadPoolExecutor, "submit", _wrap_submit)
    for owner, name in ((threading.Thread, "join"), (Future, "result"), (ThreadPoolExecutor, "shutdown")):
        sight.patch(owner, name, _wrap_wait)


def disclose_threads(recorder: Recorder, stack: ExitStack) -> None:
    """For a backend that records in one thread only: note the work that it hands to others, until the stack unwinds."""
    for owner, name in ((threading.Thread, "start"), (ThreadPoolExecutor, "submit")):
        stack.enter_context(patched(owner, name, _wrap_handing_out, recorder))


def _wrap_handing_out(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def hand_out(*args: Any, **kwargs: Any) -> Any:
        recorders = entries.get(get_ident())
        if recorders and not recorders[-1].keeper.asking:
            recorders[-1].tape.unseen.append((NOT_SEEN, recorders[-1].site(sys._getframe(1))))
        return original(*args, **kwargs)

    return hand_out


def _jobs(entries: Entries) -> tuple[Sight, Jobs] | None:
    stack = entries.get(get_ident())
    return (stack[-1], stack[-1].jobs) if stack and not stack[-1].recorder.keeper.asking else None


def _wrap_start(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def start(self: threading.Thread) -> None:
        here = _jobs(entries)
        if here is None or self.ident is not None:
            original(self)
            return
        number, job = here[1].new(self.run, sys._getframe(1))
        here[1].own(self, number)
        own = vars(self).get("run")  # else the class has it

        def put_back() -> None:
            vars(self).pop("run", None)
            if own is not None:
                self.run = own  # type: ignore[method-assign]

        def run() -> None:
            put_back()
            job()

        self.run = run  # type: ignore[method-assign]
        try:
            original(self)
        finally:
            if self.ident is None:  # it could not be started
                put_back()
                here[1].withdraw(number)

    return start


def _wrap_submit(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        here = _jobs(entries)
        if here is None:
            return original(self, fn, *args, **kwargs)
        number, job = here[1].new(fn, sys._getframe(1))
        try:
            with hidden(here[0].patches):  # the pool's own threads are no jobs
                future = original(self, job, *args, **kwargs)
        except RuntimeError:  # it is shut down, or no thread could be started
            here[1].withdraw(number)
            raise
        here[1].own(future, number)
        return future

    return submit


def _wrap_wait(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            here = _jobs(entries)
            if here is not None:
                here[1].collect(None if isinstance(self, ThreadPoolExecutor) else self)

    return wait
