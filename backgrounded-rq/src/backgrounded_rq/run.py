"""What does an RQ worker run?

RQ stores the dotted path of a function and imports it. For a monitor to show the method, the path is this module's
name and then the method's, "backgrounded_rq.run.shop.models.User.do_stuff": RQ asks the module for the attribute
"shop.models.User.do_stuff", and gets `perform`. The name is for people; what is called is said by the wire.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import backgrounded
from backgrounded.handler import Again, Delivery, Keep, Skip
from rq import get_current_job
from rq.job import Job as RQJob
from rq.job import Retry

from ._handler import DEATHS, FAILURE_TTL, RETRY_COUNTS_WAITS, RQHandler, release, write_end
from ._job import PICKLE_MARK


def __getattr__(name: str) -> Any:
    if "." in name:
        return perform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def perform(wire: Any, handler: str = "default") -> Any:
    """Run the call in `wire`, which came by the configured handler `handler`, as the current job of RQ."""
    job = get_current_job()
    if job is None:
        raise backgrounded.ConfigurationError("This function is run by RQ's workers only.")
    # RQ logs the arguments of a job that failed as `extra` (Worker.handle_exception). `_data`, which is what RQ saves,
    # stays as it came; the public setter of `args` would throw it away.
    job._args, job._kwargs = ("(not shown)",), {}
    attempt = (job.number_of_retries or 0) + 1
    release(job.connection, job.id, wire, "start")
    try:
        result = backgrounded.perform(wire, _delivery(job, handler, attempt), fallback=lambda: _handler_of(job))
    except Again as again:
        return _again(job, attempt, again.seconds)
    except Skip as skip:
        _end(job, wire, {"end": skip.state.value})
        return None
    except Keep as keep:
        _set_aside(job, wire, {"end": "kept", "reason": keep.reason, "code": keep.code})
        raise (keep.__cause__ or keep) from None
    except BaseException as error:
        job.failure_ttl = FAILURE_TTL
        _set_aside(job, wire, {"end": "failed", **backgrounded.handler.failure_record(error)})
        raise
    release(job.connection, job.id, wire, "done")
    return result


def _delivery(job: RQJob, handler: str, attempt: int) -> Delivery:
    deaths = None if job.retries_left is None else DEATHS - job.retries_left
    limited = job.timeout is not None and job.timeout > 0
    return Delivery(
        handler=handler if isinstance(handler, str) else "default",
        queue=job.origin,
        attempt=attempt,
        deaths=deaths,
        engine_id=job.id,
        deadline=time.time() + job.timeout if limited else None,
        redelivered=bool(deaths),
    )


def _handler_of(job: RQJob) -> RQHandler:
    """A handler for nested calls, where this worker has configured none."""
    return RQHandler(connection=job.connection, serializer="pickle" if job.data[:1] == PICKLE_MARK else "json")


def _again(job: RQJob, attempt: int, seconds: float) -> Retry:
    """RQ's word for "again in so many seconds"; RQ counts these apart from the deaths of workers.

    RQ cuts the moment to whole seconds, so the interval is chosen such that what is left is not early.
    """
    if seconds <= 0:
        return Retry(max=attempt)
    interval = math.ceil(time.time() % 1 + seconds)
    if not RETRY_COUNTS_WAITS:
        job.number_of_retries = attempt  # RQ 2.2 forgets to count a retry that waits
        return Retry(max=attempt + 1, interval=[interval])
    return Retry(max=attempt, interval=[interval])


def _set_aside(job: RQJob, wire: Any, record: Mapping[str, Any]) -> None:
    """Let the failure that is about to be raised be the last one."""
    job.retries_left = 0
    _end(job, wire, record)


def _end(job: RQJob, wire: Any, record: Mapping[str, Any]) -> None:
    write_end(job, record)
    release(job.connection, job.id, wire, "done")
