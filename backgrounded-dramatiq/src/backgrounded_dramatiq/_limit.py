"""How is a method stopped that runs in a thread of Dramatiq's for longer than it may?

Dramatiq's own TimeLimit looks once a second, and may hit what writes the outcome down.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from backgrounded.alarm import ThreadAlarm
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.middleware.threading import current_platform, is_gevent_active, supported_platforms


def can_limit() -> bool:
    """Whether this worker can stop a method: its jobs run in threads of CPython, not in greenlets."""
    return current_platform in supported_platforms and not is_gevent_active()


def limit(seconds: float | None) -> AbstractContextManager[None]:
    """A stretch of the run under a time limit, which is a TimeoutError on every engine.

    What is raised in the method is Dramatiq's word: a TimeoutError would be swallowed by an `except OSError` round any
    request.
    """
    return nullcontext() if seconds is None else ThreadAlarm(seconds, TimeLimitExceeded)
