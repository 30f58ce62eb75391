"""What does an RQ worker run?

RQ stores the dotted path of a function and imports it. For a monitor to show the method, the path is this module's
name and then the method's, "backgrounded_rq.run.shop.models.User.do_stuff": RQ asks the module for the attribute
"shop.models.User.do_stuff", and gets `perform`. The name is for people; what is called is said by the wire.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import backgrounded
from backgrounded.alarm import Alarm
from backgrounded.handler import Again, Delivery, Keep, Skip, failure_record
from rq import Queue, get_current_job
from rq.job import Job as RQJob
from rq.job import Retry
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from ._ends import take_mark, write_end
from ._handler import DEATHS, FAILURE_TTL, RQHandler
from ._settings import RETRY_COUNTS_WAITS
from ._unique import release


def __getattr__(name: str) -> Any:
    if "." in name:
        return perform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def perform(wire: Any, handler: str = "default", failure_ttl: int = FAILURE_TTL) -> Any:
    """Run the call in `wire`, which came by the configured handler `handler`, as the current job of RQ.

    `failure_ttl` is for how many seconds RQ keeps the job if its method fails.
    """
    job = get_current_job()
    if job is None:
        raise backgrounded.ConfigurationError("This function is run by RQ's workers only.")
    # RQ logs the arguments of a job that failed as `extra` (Worker.handle_exception). `_data`, which is what RQ saves,
    # stays as it came; the public setter of `args` would throw it away.
    job._args, job._kwargs = ("(not shown)",), {}
    if take_mark(job):
        return None
    release(job.connection, job.id, wire, "start")
    delivery = _delivery(job, handler)
    try:
        result = backgrounded.perform(wire, delivery, fallback=lambda: _handler_of(job), limit=lambda: _limit(job))
        release(job.connection, job.id, wire, "done")
    except Again as again:
        return _again(job, delivery.attempt, again.seconds)
    except Skip as skip:
        _end(job, wire, {"end": skip.state.value})
        return None
    except Keep as keep:
        _set_aside(job, wire, {"end": "kept", "reason": keep.reason, "code": keep.code}, failure_ttl=-1)
        raise (keep.__cause__ or keep) from None
    except BaseException as error:
        if not _is_cold_shutdown(error):
            _set_aside(job, wire, {"end": "failed", **failure_record(error)}, failure_ttl)
        raise
    _start_counting_again(job)
    return result


def _delivery(job: RQJob, handler: str) -> Delivery:
    deaths = None if job.retries_left is None else DEATHS - job.retries_left
    limited = job.timeout is not None and job.timeout > 0
    return Delivery(
        handler=handler if isinstance(handler, str) else "default",
        queue=job.origin,
        attempt=(job.number_of_retries or 0) + 1,
        deaths=deaths,
        engine_id=job.id,
        deadline=time.time() + job.timeout if limited and job.timeout else None,
        redelivered=bool(deaths),
    )


def _limit(job: RQJob) -> AbstractContextManager[None]:
    """A stretch of the run under the job's time limit.

    RQ's alarm rings once, and counts from the fork: what is imported before the method runs would use it up, and where
    it rings inside of an import it may be lost. So it is replaced, and wound up anew for each stretch.
    """
    return Alarm(job.timeout, JobTimeoutException) if job.timeout and _has_alarm(job) else nullcontext()


def _has_alarm(job: RQJob) -> bool:
    """Whether RQ limits this job by SIGALRM, as all of its own workers do where there are signals."""
    if not job.timeout or job.timeout < 0 or threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGALRM)
    return isinstance(getattr(handler, "__self__", None), UnixSignalDeathPenalty)


def _handler_of(job: RQJob) -> RQHandler:
    """A handler for nested calls, where this worker has configured none: the same Redis, the same serializer."""
    return RQHandler(connection=job.connection, serializer=job.serializer)


def _again(job: RQJob, attempt: int, seconds: float) -> Retry:
    """RQ's word for "again in so many seconds"; RQ counts these apart from the deaths of workers.

    RQ cuts the moment to whole seconds, so the interval is chosen such that what is left is not early.
    """
    if seconds <= 0:
        return Retry(max=attempt)
    interval = math.ceil(time.time() % 1 + seconds)
    if not RETRY_COUNTS_WAITS:
        job.number_of_retries = attempt
        return Retry(max=attempt + 1, interval=[interval])
    return Retry(max=attempt, interval=[interval])


def _set_aside(job: RQJob, wire: Any, record: Mapping[str, Any], failure_ttl: int) -> None:
    """Let the failure that is about to be raised be the last one."""
    job.retries_left = 0
    job.connection.sadd(Queue.redis_queues_keys, Queue.redis_queue_namespace_prefix + job.origin)  # for it to be found
    job.failure_ttl = failure_ttl if isinstance(failure_ttl, int) else FAILURE_TTL
    _end(job, wire, record)


def _end(job: RQJob, wire: Any, record: Mapping[str, Any]) -> None:
    write_end(job, record)
    release(job.connection, job.id, wire, "done")


def _is_cold_shutdown(error: BaseException) -> bool:
    """Whether RQ raised this to end a worker that does not fork: the worker dies, the method has not failed."""
    if not isinstance(error, SystemExit):
        return False
    return any(frame.f_code.co_name == "request_force_stop" for frame, _ in traceback.walk_tb(error.__traceback__))


def _start_counting_again(job: RQJob) -> None:
    """RQ runs a job with `repeat` again under the same id: each of its runs may be retried anew."""
    if getattr(job, "repeats_left", None):
        job.number_of_retries, job.retries_left = 0, DEATHS
