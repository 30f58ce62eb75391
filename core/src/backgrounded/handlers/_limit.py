"""How is a method stopped that runs too long, in a process that goes on?

By an exception raised in its thread from a timer. It arrives between two bytecodes: a single call into C code is not
interrupted.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class _Expired(BaseException):
    """Raised in the running thread; a BaseException, so that the method's own `except Exception` lets it pass."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop the block after so many seconds (None: never), with a TimeoutError that says the limit."""
    if seconds is None:
        yield
        return
    alarm = _Alarm(threading.get_ident())
    timer = threading.Timer(seconds, alarm.ring)
    timer.daemon = True
    try:
        try:
            timer.start()  # in here: a short limit may ring before this returns
            yield
        finally:
            timer.cancel()
            alarm.disarm()
    except _Expired:
        raise TimeoutError(f"stopped after its timeout of {seconds:g} seconds") from None


class _Alarm:
    """Rings at most once, and not any more after it was disarmed."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._lock = threading.Lock()
        self._armed = True

    def ring(self) -> None:
        with self._lock:
            if self._armed:
                _raise_in(self._thread, ctypes.py_object(_Expired))

    def disarm(self) -> None:
        with self._lock:
            self._armed = False
            _raise_in(self._thread, None)  # takes back what was rung and has not arrived


def _raise_in(thread: int, exception: ctypes.py_object[type[_Expired]] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)
