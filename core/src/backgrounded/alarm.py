"""How is a method stopped that runs for longer than it may, in a process that goes on?

`Alarm` is for adapters whose engine runs one job at a time, in the main thread of a process; `ThreadAlarm` for those
that run them in threads. Engines' own limits surround all that a task does, so they also strike while the end of a job
is written down; these ring in the method's own time only.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Container
from functools import partial
from types import CodeType, FrameType, TracebackType
from typing import Final

from ._runtime import LastMoment
from .handler import after_fork

SHORTEST: Final = 0.001
LONGEST: Final = 10.0**8
"""Bounds of a limit in seconds, for the kernel's timer: it takes what is shorter for none at all."""
MOMENT: Final = 0.001
"""Seconds after which an alarm rings again that found the stretch at its beginning or its end."""
INSIST: Final = 5.0
"""Seconds after which a method that has swallowed its alarm is told again."""
_DEPTH: Final = 6
"""Functions that are called from the edge of a stretch, one from another, at most."""


class Expired(BaseException):
    """Raised in the running method; a BaseException, so that the method's own `except Exception` lets it pass."""


def stopped_after(seconds: float) -> TimeoutError:
    """What a run that took longer than it may has failed with, on every engine."""
    return TimeoutError(f"stopped after its timeout of {seconds:g} seconds")


class Alarm:
    """A stretch of a run that SIGALRM stops after so many seconds, which is a TimeoutError on every engine.

    `raised` is what the method itself sees: the engine's word, if its users know one. Not a TimeoutError, which an
    `except OSError` round any request would swallow. Only for the main thread, on systems that have signals.
    """

    def __init__(self, seconds: float, raised: type[BaseException] = Expired) -> None:
        self.seconds = seconds
        self._raised = raised
        self._is_over = self._has_rung = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, min(max(self.seconds, SHORTEST), LONGEST), INSIST)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        if self._has_rung and isinstance(error, self._raised):
            raise stopped_after(self.seconds) from error

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        if _is_in(frame, _EDGES):  # what is raised there, nobody makes a TimeoutError of
            signal.setitimer(signal.ITIMER_REAL, MOMENT, INSIST)
            return
        self._has_rung = True
        raise self._raised


class ThreadAlarm:
    """A stretch of a run, in any thread of CPython, that is stopped after so many seconds with a TimeoutError.

    Another thread sets `raised` in it. It is raised between two instructions of Python, so a single call into C is not
    interrupted. It rings at most once, and neither before nor after the stretch itself.

    What is raised at the entry of `__exit__` cannot be caught there, and since Python 3.12 a frame that just begins is
    not to be seen, but the one below it. So it does not ring in the function that the stretch stands in, either. And
    since 3.13 a thread goes on to the next function or loop before it comes across what was set: the `LastMoment`
    inside of the stretch, in which `backgrounded.perform` has it, is the last place for that.
    """

    def __init__(self, seconds: float, raised: type[BaseException] = Expired) -> None:
        self.seconds = seconds
        self._raised = raised
        self.thread = threading.get_ident()
        self._strike = _striker(self.thread, raised)
        self._lock = threading.Lock()
        self._is_over = self._has_rung = False
        self._around: FrameType | None = None

    def __enter__(self) -> None:
        self._around = sys._getframe(1)
        _watch.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._end():
            # It was raised here, at the end of the stretch: it rings once, so the next try is the last one.
            error = error or self._raised()
        if self._has_rung and isinstance(error, self._raised):
            raise stopped_after(self.seconds) from error

    def _end(self) -> bool:
        """Let nothing be raised from now on, nor be on its way. False: it has just arrived."""
        try:
            with self._lock:
                self._is_over = True
                self._around = None
            if self._has_rung:
                _let_arrive()
            _watch.forget(self)
        except self._raised:
            return False
        return True

    def ring(self) -> bool:
        """Stop the stretch. False if it just begins or ends: then nothing outside of it must be hit."""
        with self._lock:
            if self._is_over:
                return True
            time.sleep(0)  # begin a new turn of this thread: the other one does not move between the two steps
            frame = sys._current_frames().get(self.thread)
            if frame is self._around or _is_in(frame, _EDGES):
                return False
            self._strike()
            self._is_over = self._has_rung = True
            return True


class _Nothing(BaseException):
    """Says nothing, and is caught where it arrives."""


def _let_arrive() -> None:
    """Let no exception be on its way to this thread any more: one that takes its place arrives here.

    To set none instead, as the documentation of PyThreadState_SetAsyncExc has it, leaves CPython up to 3.12 looking for
    one in all threads from then on, and 3.11 hangs in the next function that a debugger or coverage traces.
    """
    try:
        _striker(threading.get_ident(), _Nothing)()
        while True:
            pass
    except _Nothing:
        return


def _striker(thread: int, error: type[BaseException]) -> Callable[[], object]:
    """One call into C, which sets an exception in a thread."""
    import ctypes  # here: whoever hands over needs none

    return partial(ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(thread), ctypes.py_object(error))


class _Watch:
    """One thread of a process that rings alarms when they are due. It starts with the first one, as a daemon."""

    def __init__(self) -> None:
        self._renew()
        after_fork(self._renew)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[ThreadAlarm, float] = {}
        self._is_running = False

    def set(self, stretch: ThreadAlarm) -> None:
        with self._changed:
            if not self._is_running:
                threading.Thread(target=self._run, name="backgrounded-limits", daemon=True).start()
                self._is_running = True
            self._due[stretch] = time.monotonic() + stretch.seconds
            self._changed.notify()

    def forget(self, stretch: ThreadAlarm) -> None:
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
_EDGES: Final = frozenset(
    edge.__code__ for kind in (Alarm, ThreadAlarm, LastMoment) for edge in (kind.__enter__, kind.__exit__)
)


def _is_in(frame: FrameType | None, functions: Container[CodeType]) -> bool:
    """Whether this is a frame of one of these functions, or of what one of them has just called."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code in functions:
            return True
        frame = frame.f_back
    return False
