"""What does the same harness say of an engine that is known to lose jobs? Huey as its own users run it.

There is no `backgrounded` in here: a task of Huey's, its SQLite storage and its `huey_consumer`, with their defaults.
Huey takes a task off its table before it runs it, so whatever runs when the consumer is killed is gone.
"""

from __future__ import annotations

import os
import time
from typing import Any

from huey import SqliteHuey

import oracle

huey: Any = SqliteHuey(filename=os.environ["CHAOS_HUEY"])
if oracle.WORKER in os.environ:  # callers import this, too
    oracle.tell("W", f"{time.time():.0f}")


@huey.task()  # type: ignore[untyped-decorator] # Huey has no annotations
def work(id: str, seconds: float = 0.0) -> None:
    """Start, take this long, end."""
    oracle.tell("S", id)
    if seconds:
        time.sleep(seconds)
    oracle.tell("D", id)
