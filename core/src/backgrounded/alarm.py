"""How is a method stopped that runs for longer than it may, in the main thread of a process?

For adapters whose engine runs one job at a time there. Their engines' own limits surround all that a task does, so they
also strike while the end of a job is written down; this one rings in the method's own time only.
"""

from __future__ import annotations

import signal
from collections.abc import Container
from types import CodeType, FrameType, TracebackType
from typing import Final

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
            raise TimeoutError(f"stopped after its timeout of {self.seconds:g} seconds") from error

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        if is_in(frame, _EDGES):  # what is raised there, nobody makes a TimeoutError of
            signal.setitimer(signal.ITIMER_REAL, MOMENT, INSIST)
            return
        self._has_rung = True
        raise self._raised


_EDGES: Final = frozenset({Alarm.__enter__.__code__, Alarm.__exit__.__code__})


def is_in(frame: FrameType | None, functions: Container[CodeType]) -> bool:
    """Whether this is a frame of one of these functions, or of what one of them has just called."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code in functions:
            return True
        frame = frame.f_back
    return False
