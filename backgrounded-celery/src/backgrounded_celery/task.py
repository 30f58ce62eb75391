"""What does a Celery worker find under the name `backgrounded.perform`?

One task that runs all calls. It is registered with every app of a process that imports this module, and each start of
the `celery` command does so: what a run needs is imported by the first run.
"""

from __future__ import annotations

from typing import Any, Final

from backgrounded.errors import PerformError
from celery import shared_task

TASK: Final = "backgrounded.perform"


@shared_task(  # type: ignore[untyped-decorator] # Celery has no types
    bind=True,
    name=TASK,
    acks_late=True,
    reject_on_worker_lost=True,
    # Said here since an application's settings may say otherwise for all tasks that do not.
    acks_on_failure_or_timeout=True,
    acks_on_failure=True,
    acks_on_timeout=True,
    retry_on_worker_lost=False,
    max_retries=None,
    ignore_result=True,
    store_errors_even_if_ignored=False,
    track_started=False,  # our record says so
    typing=False,
    throws=(PerformError,),  # what is kept has been logged by the core: no traceback of Celery's
    Request="backgrounded_celery.request:Request",
)
def perform(task: Any, /, *args: Any, **beside: Any) -> None:
    """Run the call in the one argument, with what stands beside it."""
    from ._run import run  # here, not above: see the module's docstring

    run(task, args, beside)
