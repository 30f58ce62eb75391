"""How is a run stopped that takes too long?

Huey's own `timeout` surrounds all that a task does, so it would also strike while the end of a job is written down.
This alarm rings in the method's own time only. As with Huey's, it takes a process worker: a thread cannot be stopped.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from backgrounded import ConfigurationError

LONGEST: Final = 10.0**8
"""Seconds. What is asked for beyond three years is no limit, and more than an alarm clock takes."""


class _Expired(BaseException):
    """Raised in the running method; a BaseException, so that the method's own `except Exception` lets it pass."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop the block after so many seconds (None: never), with a TimeoutError that says the limit.

    Raises ConfigurationError before it begins, where nothing could stop it.
    """
    if seconds is None:
        yield
        return
    if not _is_process_worker():
        raise ConfigurationError(
            "The job has a time limit, and this worker cannot stop a run: it is a thread or a greenlet. "
            "Start huey_consumer with --worker-type process, and replay the job."
        )
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, min(seconds, LONGEST))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Expired:
        raise TimeoutError(f"stopped after its timeout of {seconds:g} seconds") from None
    finally:
        signal.signal(signal.SIGALRM, before)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise _Expired


def _is_process_worker() -> bool:
    """Whether this is the main thread of a process that the consumer forked. Greenlets run in the consumer itself."""
    return multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread()
