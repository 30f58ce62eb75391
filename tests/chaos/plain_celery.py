"""Celery by itself, as its own users run it, for the harness: an app, and a task for the control.

There is no `backgrounded` in here. A plain task is acknowledged before it runs, so what runs when its worker is killed
is gone. The app itself is also the one that the adapter borrows in `engines.CeleryOnRabbitMQ`.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

import oracle

app: Any = Celery(
    "plain_celery",
    broker=os.environ["CHAOS_CELERY"],
    backend=os.environ.get("CHAOS_RESULTS"),
    set_as_current=False,
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="default",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)
if oracle.WORKER in os.environ:  # callers import this, too
    oracle.tell("W", f"{time.time():.0f}")


@app.task  # type: ignore[untyped-decorator] # Celery has no types
def work(id: str, seconds: float = 0.0) -> None:
    """Start, take this long, end."""
    oracle.tell("S", id)
    if seconds:
        time.sleep(seconds)
    oracle.tell("D", id)
