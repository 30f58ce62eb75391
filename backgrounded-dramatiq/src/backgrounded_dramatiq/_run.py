"""What happens in a run, and how is carried out what the core decides about it?

Run again is a new message, sent before this one is acknowledged; set aside is an entry in our store, written before,
too; how it ended is written into the job's record. To Dramatiq a run has ended well, has failed for good, or was
skipped: its own retries have no part in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import backgrounded
import dramatiq
from backgrounded.handler import Again, Delivery, Keep, Skip, State, failure_from, failure_record
from backgrounded.records import RESULT_TTL
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import MiddlewareError, SkipMessage

from ._broker import Broker
from ._limit import can_limit, limit
from ._message import Message

logger = logging.getLogger("backgrounded")

EARLY: Final = 0.1
"""Seconds by which a worker's clock may be early: so much is slept, more is another hop."""
STORE_AWAY: Final = 5.0
"""Seconds after which a job is tried again whose record could not be reached."""
_WORDS_OF_DRAMATIQ: Final = (MiddlewareError, RateLimitExceeded, Retry)


def run(found: dramatiq.MessageProxy, message: Message, broker: Broker) -> None:
    """Run the job of a message that a worker has taken. Raises what Dramatiq shall make of it."""
    if message.due is not None and (early := message.due - time.time()) > 0:
        if early > EARLY:
            _send_again(broker, message)
            return
        time.sleep(early)
    deaths = None
    if broker.records is not None:
        try:
            state, deaths = broker.records.begin(message.id)
        except broker.down as error:
            logger.error(
                "%s waits: its record cannot be reached: %s", message.name, error, extra={"job_id": message.id}
            )
            _send_again(broker, replace(message, due=time.time() + STORE_AWAY))
            return
        if state is not State.RUNNING:
            raise SkipMessage(f"it is {state}")
    _perform(found, message, broker, deaths)


def _perform(found: dramatiq.MessageProxy, message: Message, broker: Broker, deaths: int | None) -> None:
    try:
        value = _run(found, message, broker, deaths)
    except Again as again:
        _again(broker, message, again)
    except Skip as skip:
        _end(broker, message, skip.state, None)
        raise SkipMessage(str(skip)) from None
    except Keep as keep:
        if not broker.keep(message, keep.reason, keep.code):
            found.fail()
        _end(broker, message, State.KEPT, {"reason": keep.reason, "code": keep.code})
        raise SkipMessage(f"kept: {keep.code}") from None
    except BaseException as error:
        record = failure_record(error)
        _end(broker, message, State.FAILED, record)
        if isinstance(error, _WORDS_OF_DRAMATIQ):  # which it would take for an order
            raise failure_from(record) from None
        raise
    else:
        _end(broker, message, State.SUCCEEDED, value)


def _run(found: dramatiq.MessageProxy, message: Message, broker: Broker, deaths: int | None) -> Any:
    if message.timeout is not None and not can_limit():
        reason = f"Its timeout of {message.timeout:g} s needs a worker with threads: dramatiq, not dramatiq-gevent."
        logger.error("kept a job: %s", reason, extra={"job_id": message.id, "job_state": "kept"})
        raise Keep(reason, "timeout")
    delivery = Delivery(
        handler=message.handler,
        queue=message.queue,
        attempt=message.attempt,
        deaths=deaths,
        engine_id=message.id,
        deadline=None if message.timeout is None else time.time() + message.timeout,
        redelivered=bool(getattr(found, "redelivered", False) or deaths),
    )
    return backgrounded.perform(
        message.wire, delivery, fallback=lambda: _handler_of(broker), limit=lambda: limit(message.timeout)
    )


def _handler_of(broker: Broker) -> Any:
    """The handler for nested calls, where this worker has configured none: one for all of them, in every thread."""
    if broker.nested is None:
        from ._handler import NestedHandler  # here, not above: most workers need no handler

        vars(broker).setdefault("nested", NestedHandler(broker))  # in one step: a fork could strike a lock
    return broker.nested


# -- what is decided, carried out


def _again(broker: Broker, message: Message, again: Again) -> None:
    due = time.time() + again.seconds if again.seconds > 0 else None
    cause = type(again.__cause__).__name__
    logger.info("%s is tried again in %g s: %s", message.name, again.seconds, cause, extra={"job_id": message.id})
    if broker.records is not None:
        with _noted(broker, message):
            broker.records.again(message.id, due)
    _send_again(broker, replace(message, due=due, attempt=message.attempt + 1))


def _send_again(broker: Broker, message: Message) -> None:
    broker.insist(lambda: broker.send([message]), message.name)


def _end(broker: Broker, message: Message, state: State, outcome: Any) -> None:
    """Write down how a job ended. What cannot be written is logged: the job has ended all the same."""
    if broker.records is not None:
        seconds = RESULT_TTL if message.result_ttl is None else message.result_ttl
        with _noted(broker, message):
            broker.records.end(message.id, state, outcome, None if state is State.KEPT else seconds)


@contextmanager
def _noted(broker: Broker, message: Message) -> Iterator[None]:
    try:
        yield
    except broker.down:
        logger.exception("the record of %s could not be written", message.name, extra={"job_id": message.id})
