"""Threads that the forward starts: each piece of work is recorded in its own thread, and joined to the trace.

A recorder belongs to one thread. So a job (the run of a thread, or one call handed to a thread pool) gets a recorder
of its own; when the job has ended and the trace waits for it, or meets a tensor that it made, its tape is appended
as one block. Threads that a traced forward did not start are left alone.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from threading import get_ident
from types import FrameType
from typing import Any, TypeAlias

from lens.capture.module_calls import MODULE_CALL_CODE
from lens.capture.patches import Entries, hidden
from lens.capture.recorder import Recorder
from lens.capture.regions import Sight
from lens.capture.sites import Locator
from lens.capture.splicing import JobRecorder, splice
from lens.ir.tape import Site

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
        self._running: dict[int, tuple[JobRecorder, Site]] = {}
        self._ended: deque[JobRecorder] = deque()
        self._closed = False

    def new(self, work: Callable[..., Any], frame: FrameType | None) -> Callable[..., Any]:
        """The work as a job: the same function, recorded wherever it is called."""
        recorder = self._recorder
        job = JobRecorder(
            recorder.addresses,
            recorder.keeper.selection,
            Locator((MODULE_CALL_CODE, _run_job.__code__)),
            recorder.keep_fast_paths,
        )
        job.call_site = recorder.site(frame)
        self._running[id(job)] = (job, job.call_site)
        return functools.partial(_run_job, self, job, work)

    def run(self, job: JobRecorder, body: Callable[[], Any]) -> Any:
        """Run a job in the thread that it was handed to."""
        if self._closed:
            return body()
        try:
            with self._record(job):
                return body()
        finally:
            if self._running.pop(id(job), None) is not None:
                self._ended.append(job)

    def collect(self) -> bool:
        """Put what has ended onto the trace's tape; say whether there was anything."""
        found = bool(self._ended)
        while self._ended:
            splice(self._recorder, self._ended.popleft())
        return found

    def close(self) -> None:
        """The trace ends: what still runs is not waited for, but disclosed."""
        self._closed = True
        self.collect()
        for job, site in list(self._running.values()):
            if self._running.pop(id(job), None) is not None:
                self._recorder.tape.unseen.append(("work in another thread had not ended when the trace did", site))
                job.__class__ = _ClosedRecorder


def _run_job(jobs: Jobs, job: JobRecorder, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return jobs.run(job, lambda: work(*args, **kwargs))


class _ClosedRecorder(JobRecorder):
    """What the recorder of a job becomes when the trace is over: it writes nothing down."""

    def start(self, *_: Any, **__: Any) -> Any:
        return (None,) * 8

    def finish(self, *_: Any) -> None: ...

    def read(self, *_: Any) -> None: ...

    def enter(self, *_: Any) -> Any: ...

    def exit(self, *_: Any) -> None: ...


def watch_threads(sight: Sight, stack: ExitStack, record: Record) -> None:
    """Record the work that this thread hands to others, until the stack unwinds."""
    jobs = Jobs(sight.recorder, record)
    sight.recorder.jobs = jobs
    stack.callback(jobs.close)
    sight.patch(stack, threading.Thread, "start", _wrap_start)
    sight.patch(stack, ThreadPoolExecutor, "submit", _wrap_submit)
    for owner, name in ((threading.Thread, "join"), (Future, "result")):
        sight.patch(stack, owner, name, _wrap_wait)


def _jobs(entries: Entries) -> tuple[Sight, Jobs] | None:
    stack = entries.get(get_ident())
    return (stack[-1], stack[-1].recorder.jobs) if stack else None


def _wrap_start(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def start(self: threading.Thread) -> None:
        here = _jobs(entries)
        if here is not None and self.ident is None:
            job = here[1].new(self.run, sys._getframe(1))

            def run() -> None:
                del self.run  # type: ignore[method-assign]  # the class's own again
                job()

            self.run = run  # type: ignore[method-assign]
        original(self)

    return start


def _wrap_submit(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        here = _jobs(entries)
        if here is None:
            return original(self, fn, *args, **kwargs)
        job = here[1].new(fn, sys._getframe(1))
        with hidden(here[0].patches):  # the pool's own threads are no jobs
            return original(self, job, *args, **kwargs)

    return submit


def _wrap_wait(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def wait(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            here = _jobs(entries)
            if here is not None:
                here[1].collect()

    return wait
