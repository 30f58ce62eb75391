"""The application's own app, with settings of its own."""

from __future__ import annotations

import json
import os

from celery import Celery

app = Celery(
    "celeryshop.celery", broker=os.environ["CELERYSHOP_BROKER"], backend=os.environ.get("CELERYSHOP_RESULTS") or None
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_write_url=os.environ.get("CELERYSHOP_WRITES"),
    broker_transport_options={
        "visibility_timeout": float(os.environ.get("CELERYSHOP_VISIBILITY", "3600")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    task_default_queue="shop",
    task_queue_max_priority=10 if os.environ.get("CELERYSHOP_PRIORITIES") else None,
    task_routes={"celeryshop.*": {"queue": "tasks"}},
    # What an application may set for its own tasks, and must not change ours.
    task_acks_on_failure_or_timeout=False,
    task_annotations={
        "celeryshop.celery.greet": {"rate_limit": "100/s"},
        **json.loads(os.environ.get("CELERYSHOP_ANNOTATIONS", "{}")),
    },
    task_default_priority=3,
)


@app.task(shared=False)  # these tests have several apps in one process
def greet(name: str) -> str:
    return f"hello {name}"
