"""What does a Celery worker find under the name `backgrounded.perform`?

One task that runs all calls. It is registered with every app of a process that imports this module, and each start of
the `celery` command does so: what a run needs is imported by the first run.
"""

from __future__ import annotations

from typing import Any, Final

from backgrounded.errors import PerformError
from celery import shared_task
from celery.signals import worker_init

TASK: Final = "backgrounded.perform"


def _on_failure(task: Any, error: Any, id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
    """Before a process of the pool tells the worker's main process how the run ended."""
    from ._pool import make_readable  # here, not above: see the module's docstring

    make_readable(einfo, error)
    task.app.Task.on_failure(task, error, id, args, kwargs, einfo)


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
    on_failure=_on_failure,
)
def perform(task: Any, /, *args: Any, **beside: Any) -> None:
    """Run the call in the one argument, with what stands beside it."""
    from ._run import run  # here, not above: see the module's docstring

    run(task, args, beside)


@worker_init.connect(weak=False)  # type: ignore[untyped-decorator] # as above
def _prepare(**_: Any) -> None:
    from ._pool import prepare  # as above

    prepare()
