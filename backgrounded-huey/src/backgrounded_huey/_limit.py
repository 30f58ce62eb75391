"""How is a run stopped that takes too long? As with Huey's own limit it takes a process worker: a thread cannot be."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import AbstractContextManager, nullcontext

from backgrounded import ConfigurationError
from backgrounded.alarm import Alarm


def time_limit(seconds: float | None) -> AbstractContextManager[None]:
    """A stretch of the run, stopped after so many seconds (None: never), with a TimeoutError that says the limit.

    Raises ConfigurationError where nothing could stop it.
    """
    if seconds is None:
        return nullcontext()
    if not _is_process_worker():
        raise ConfigurationError(
            "The job has a time limit, and this worker cannot stop a run: it is a thread or a greenlet. "
            "Start huey_consumer with --worker-type process, and replay the job."
        )
    return Alarm(seconds)


def _is_process_worker() -> bool:
    """Whether this is the main thread of a process that the consumer forked. Greenlets run in the consumer itself."""
    return multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread()
