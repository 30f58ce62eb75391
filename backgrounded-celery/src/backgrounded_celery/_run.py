"""What happens in a run, and how is carried out what the core decides about it?

Run again is a new message and Celery's word `Retry`; set aside is a message in the queue `backgrounded.kept`, sent
before this one is acknowledged; how it ended is written into the job's record.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import backgrounded
from backgrounded.alarm import Alarm
from backgrounded.handler import (
    WORKER_PATIENCE,
    Again,
    Delivery,
    Keep,
    Skip,
    State,
    failure_from,
    failure_record,
    positive,
    printable,
)
from backgrounded.records import RESULT_TTL
from billiard.process import current_process
from celery import Celery
from celery.exceptions import (
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskPredicate,
    TaskRevokedError,
    WorkerShutdown,
    WorkerTerminate,
)
from kombu.exceptions import SerializationError
from redis.exceptions import RedisError

from ._broker import FAILURES, REFUSALS, Broker, Message, broker_of
from ._pool import readable
from .task import TASK

logger = logging.getLogger("backgrounded")

EARLY: Final = 0.1
"""Seconds by which a worker's clock may be early: so much is slept, more is another hop."""
STORE_AWAY: Final = 5.0
"""Seconds after which a job is tried again whose record could not be reached."""


def run(task: Any, args: Any, beside: Any) -> None:
    """Run the call in the one argument, a wire, with what `Message.beside` says. Anybody may have written both."""
    message, broker = message_of(task, args, beside), broker_of(task.app)
    if task.request.is_eager:
        _perform_eagerly(message)
        return
    try:
        if _is_due(broker, message):
            deaths = _begin(broker, message)
            if deaths is not None or broker.records is None:
                _perform(task, message, broker, deaths)
    except Keep as keep:
        _keep(broker, message, keep)
        raise (keep.__cause__ or keep) from None


def message_of(task: Any, args: Any, beside: Any) -> Message:
    """The message that brought this run, as far as it can be believed."""
    request, delivery = task.request, task.request.delivery_info or {}
    exchange = delivery.get("exchange")
    handler, queue = beside.get("handler", "default"), beside.get("queue")
    is_named = isinstance(queue, str)
    return Message(
        id=str(request.id),
        wire=args[0] if len(args) == 1 else list(args),
        name=printable(getattr(request, "shadow", None) or TASK),
        queue=queue if is_named else delivery.get("routing_key"),
        exchange=None if is_named else exchange or None,
        priority=delivery.get("priority"),
        handler=handler if isinstance(handler, str) else "default",
        due=positive(beside.get("due")),
        attempt=request.retries + 1 if isinstance(request.retries, int) and request.retries > 0 else 1,
        timeout=positive(beside.get("timeout")),
        result_ttl=0.0 if beside.get("result_ttl") == 0 else positive(beside.get("result_ttl")),
    )


# -- one run


def _is_due(broker: Broker, message: Message) -> bool:
    """Whether it is time; otherwise it is on its way once more."""
    early = 0.0 if message.due is None else message.due - time.time()
    if early > EARLY:
        _send_again(broker, message)
        return False
    time.sleep(max(0.0, early))
    return True


def _begin(broker: Broker, message: Message) -> int | None:
    """Begin the run: how many workers have died on it, if that is counted. None: it must not run, or nobody knows."""
    if broker.records is None:
        return None
    try:
        state, deaths = broker.records.begin(message.id)
    except (RedisError, OSError) as error:
        logger.exception("%s waits: its record cannot be reached", message.name, extra={"job_id": message.id})
        _send_again(broker, replace(message, due=time.time() + STORE_AWAY))
        raise Retry(exc=error, when=STORE_AWAY) from error
    if state is not State.RUNNING:
        logger.info("%s is not run: it is %s", message.name, state, extra={"job_id": message.id})
        return None
    return deaths


def _perform(task: Any, message: Message, broker: Broker, deaths: int | None) -> None:
    try:
        value = _run(task, message, deaths)
    except Again as again:
        _again(broker, message, again)
    except Skip as skip:
        end(broker, message, skip.state, None)
    except Keep:
        raise
    except (WorkerShutdown, WorkerTerminate, KeyboardInterrupt):
        raise  # a solo worker is told to end: that is no failure of the method
    except BaseException as error:
        record = failure_record(error)
        end(broker, message, State.FAILED, record)
        if _is_a_word_of_celery(error):
            raise failure_from(record) from None
        raise
    else:
        end(broker, message, State.SUCCEEDED, value)


def _run(task: Any, message: Message, deaths: int | None) -> Any:
    if message.timeout is not None and not _has_alarm():
        reason = f"Its timeout of {message.timeout:g} s needs a process of its own: celery worker --pool prefork."
        logger.error("kept a job: %s", reason, extra={"job_id": message.id, "job_state": "kept"})
        raise Keep(reason, "timeout")
    delivery = Delivery(
        handler=message.handler,
        queue=message.queue,
        attempt=message.attempt,
        deaths=deaths,
        engine_id=message.id,
        deadline=None if message.timeout is None else time.time() + message.timeout,
        redelivered=bool((task.request.delivery_info or {}).get("redelivered")),
    )
    return backgrounded.perform(
        message.wire, delivery, fallback=lambda: _handler_of(task.app), limit=lambda: _limit(message.timeout)
    )


@lru_cache(maxsize=8)
def _handler_of(app: Celery) -> Any:
    """A handler for nested calls, where this worker has configured none: the same app, and one set of connections.

    It has a worker's patience: a job that fails for a broker that is slow makes its calls again when it is retried.
    """
    from ._handler import CeleryHandler  # here, not above: most workers need no handler

    return CeleryHandler(app=app, enqueue_timeout=WORKER_PATIENCE)


def _has_alarm() -> bool:
    """Whether this is a process of the prefork pool, where a method runs in the main thread and alone."""
    return bool(current_process().daemon) and hasattr(signal, "setitimer")


def _limit(seconds: float | None) -> AbstractContextManager[None]:
    """A stretch of the run under the job's time limit.

    Not Celery's own soft limit, though the method sees its word: its signal comes from the worker's main process at any
    moment between taking the job and the worker's hearing of its end, so it may hit what writes the outcome down.
    """
    return nullcontext() if seconds is None else Alarm(seconds, SoftTimeLimitExceeded)


def _is_a_word_of_celery(error: BaseException) -> bool:
    """Whether Celery would take a method's own exception for an order, or let the whole process end."""
    return not isinstance(error, Exception) or isinstance(error, (TaskPredicate, TaskRevokedError, MemoryError))


# -- what is decided, carried out


def _again(broker: Broker, message: Message, again: Again) -> None:
    due = time.time() + again.seconds if again.seconds > 0 else None
    if broker.records is not None:
        with _noted(message):
            broker.records.again(message.id, due)
    _send_again(broker, replace(message, due=due, attempt=message.attempt + 1))
    raise Retry(exc=readable(again.__cause__), when=again.seconds) from None


def _send_again(broker: Broker, message: Message) -> None:
    """Send it once more. Where the broker is away it has to hand this one over again. What cannot be sent is kept: to
    run it again would change nothing."""
    try:
        broker.send([message])
    except (*REFUSALS, SerializationError) as error:
        raise _unsendable(error) from error
    except FAILURES as error:
        raise Reject(error, requeue=True) from error
    except Exception as error:
        raise _unsendable(error) from error


def _unsendable(error: Exception) -> Keep:
    return Keep(f"It could not be sent again: {type(error).__name__}: {error}", "unsendable")


def _keep(broker: Broker, message: Message, keep: Keep) -> None:
    try:
        broker.keep(message, keep.reason, keep.code)
    except Exception as error:
        raise Reject(error, requeue=True) from error
    end(broker, message, State.KEPT, {"reason": keep.reason, "code": keep.code})


def end(broker: Broker, message: Message, state: State, outcome: Any) -> None:
    """Write down how a job ended. What cannot be written is logged: the job has ended all the same."""
    if broker.records is not None:
        seconds = RESULT_TTL if message.result_ttl is None else message.result_ttl
        with _noted(message):
            broker.records.end(message.id, state, outcome, None if state is State.KEPT else seconds)


@contextmanager
def _noted(message: Message) -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError):
        logger.exception("the record of %s could not be written", message.name, extra={"job_id": message.id})


def _perform_eagerly(message: Message) -> None:
    """With task_always_eager: here and now, retries without waits, as Celery does it. Nothing is written down."""
    while True:
        try:
            backgrounded.perform(message.wire, Delivery(handler=message.handler, attempt=message.attempt))
            return
        except Again:
            message = replace(message, attempt=message.attempt + 1)
        except Skip:
            return
        except Keep as keep:
            raise (keep.__cause__ or keep) from None
