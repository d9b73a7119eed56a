"""When the replacements of torch's functions are in place, and which recordings they tell, by thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from lens.capture.addresses import AddressBook
from lens.capture.bindings import Place
from lens.capture.first_imports import compiler_loaded
from lens.capture.keeping import UNSEEN
from lens.capture.patches import LOCK, Entries, put_back_in_children
from lens.capture.swapping import SwapTable
from lens.capture.trace_modes import TraceMode, pushed
from lens.functions import Function, describe


class Told(Protocol):
    """A recording: its thread, and whether the mode beneath the replacements is on."""

    thread: int
    netted: bool

    @property
    def net(self) -> TraceMode:
        """That mode."""


class Decorations:
    """The replacements, and the recordings that they tell, by thread, innermost last.

    Args:
        make: Makes a replacement, of a function, what is known of it, and the recordings that it is to tell.
    """

    def __init__(self, make: Callable[[Callable[..., Any], Function | None, Entries], Callable[..., Any]]) -> None:
        self.recordings: Entries = {}
        #: Those that have not ended, of all threads; while one handles a call it is in no list of a thread.
        self._open: list[Told] = []
        self._make = make
        self._table = SwapTable(self._wrap)
        self._places: list[Place] = []
        self._models: list[AddressBook] = []
        put_back_in_children(self._forget_all)

    @contextmanager
    def known_to(self, recording: Told, model: AddressBook) -> Iterator[None]:
        """Have the replacements in place and a recording of this thread told, while the block lasts.

        The last trace that ends puts all originals back.
        """
        try:
            with LOCK:
                self._open.append(recording)
                self.recordings.setdefault(recording.thread, []).append(recording)
                if model not in self._models:  # else this is a job of its trace
                    self._models.append(model)
                    self._places += self._table.places(model.modules())
                self._table.put(self._places)
            with compiler_loaded(self._away), pushed(recording.net):
                recording.netted = True
                yield
        finally:
            self.forget(recording)

    def forget(self, recording: Told) -> None:
        """Tell a recording no more. Any thread may say so."""
        with LOCK:
            if all(other is not recording for other in self._open):
                return
            self._open = [other for other in self._open if other is not recording]
            thread = recording.thread
            if all(other.thread != thread for other in self._open):
                self.recordings.pop(thread, None)  # the list as it is: its thread may be reading it
            else:
                stack = self.recordings[thread]
                stack[:] = [other for other in stack if other is not recording]  # an interrupt may have taken it off
            if not self._open:
                self._put_back()

    def _forget_all(self) -> None:
        if self._open:
            self._open = []
            self.recordings.clear()
            self._put_back()

    def _put_back(self) -> None:
        places, models, self._places, self._models = self._places, self._models, [], []
        self._table.restore(places)
        self._table.free(module for model in models for module in model.modules())

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Have the originals in place while the block lasts, which is not recorded; other threads have their nets."""
        with LOCK:
            self._table.restore(self._places)
        try:
            with UNSEEN():
                yield
        finally:
            with LOCK:
                if self._open:
                    self._table.put(self._places)

    def _wrap(self, original: Callable[..., Any], reported: Any) -> Callable[..., Any]:
        """The replacement of a function; ``reported`` is None for the call method of an operator object."""
        return self._make(original, None if reported is None else describe(reported), self.recordings)

    def known_as(self, function: Any) -> Any:
        """What the program finds in the place of a function of torch's while the replacements are in."""
        return self._table.replacement(function)
