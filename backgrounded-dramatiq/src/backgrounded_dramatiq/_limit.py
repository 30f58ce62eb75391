"""How is a method stopped that runs in a thread for longer than it may?

By an exception that one watching thread of the process sets in the other: it is raised between two instructions of
Python, so a single call into C is not interrupted. Dramatiq's own TimeLimit looks once a second, and may hit what
writes the outcome down.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Final

from backgrounded.alarm import MOMENT, is_in
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.middleware.threading import (
    current_platform,
    is_gevent_active,
    raise_thread_exception,
    supported_platforms,
)


def can_limit() -> bool:
    """Whether this worker can stop a method: its jobs run in threads of CPython, not in greenlets."""
    return current_platform in supported_platforms and not is_gevent_active()


def limit(seconds: float | None) -> AbstractContextManager[object]:
    """A stretch of the run under a time limit, which is a TimeoutError on every engine.

    What is raised in the method is Dramatiq's word: a TimeoutError would be swallowed by an `except OSError` round any
    request.
    """
    return nullcontext() if seconds is None else _Limit(seconds)


class _Limit:
    """One stretch in one thread. Its alarm rings at most once, and neither before nor after the stretch itself.

    What is raised at the entry of `__exit__` cannot be caught there, and since Python 3.12 a frame that just begins is
    not to be seen, but the one below it. So it does not ring in the function that the stretch stands in, either.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.thread = threading.get_ident()
        self._lock = threading.Lock()
        self._is_over = self._has_rung = False
        self._around: FrameType | None = None

    def __enter__(self) -> None:
        self._around = sys._getframe(1)
        _watch.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._end(is_stopped=isinstance(error, TimeLimitExceeded)):
            # It was raised here, at the end of the stretch: it rings once, so the next try is the last one.
            error = error or TimeLimitExceeded()
        if isinstance(error, TimeLimitExceeded) and self._has_rung:
            raise TimeoutError(f"stopped after its timeout of {self.seconds:g} seconds") from error

    def _end(self, *, is_stopped: bool) -> bool:
        """Let nothing be raised from now on, and take back what is on its way. False: it has just arrived."""
        try:
            with self._lock:
                self._is_over = True
                self._around = None
                if self._has_rung and not is_stopped:
                    _take_back(self.thread)
            _watch.forget(self)
        except TimeLimitExceeded:
            return False
        return True

    def ring(self) -> bool:
        """Stop the stretch. False if it just begins or ends: then nothing outside of it must be hit."""
        with self._lock:
            if self._is_over:
                return True
            # The thread waits for this one where it is now, and goes on with the exception. Both steps follow each
            # other within one turn of this thread, unless that is cut short; then the end of the stretch sees to it.
            frame = sys._current_frames().get(self.thread)
            if frame is self._around or is_in(frame, _EDGES):
                return False
            raise_thread_exception(self.thread, TimeLimitExceeded)
            self._is_over = self._has_rung = True
            return True


def _take_back(thread: int) -> None:
    """Let an exception that was set in a thread, and that it has not come across yet, not be raised."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


_EDGES: Final = frozenset({_Limit.__enter__.__code__, _Limit.__exit__.__code__})


class _Watch:
    """One thread of a process that rings alarms when they are due. It starts with the first one, as a daemon."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[_Limit, float] = {}
        self._pid = 0

    def set(self, stretch: _Limit) -> None:
        with self._changed:
            if self._pid != os.getpid():  # threads do not survive a fork
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="backgrounded-limits", daemon=True).start()
            self._due[stretch] = time.monotonic() + stretch.seconds
            self._changed.notify()

    def forget(self, stretch: _Limit) -> None:
        with self._changed:
            self._due.pop(stretch, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while (left := self._seconds_left()) is None or left > 0:
                    self._changed.wait(left)
                stretch = min(self._due, key=self._due.__getitem__)
            rung = stretch.ring()
            with self._changed:
                if rung:
                    self._due.pop(stretch, None)
                elif stretch in self._due:
                    self._due[stretch] = time.monotonic() + MOMENT

    def _seconds_left(self) -> float | None:
        return min(self._due.values()) - time.monotonic() if self._due else None


_watch = _Watch()
