"""What is different in a Redis broker of our own? Its workers lose hold of nothing, and bear what nobody can read.

When its connection fails, Dramatiq's consumer starts anew and forgets what it had taken: delayed messages, and those
that were fetched and not begun. They count as taken by a worker that lives, so nobody gets them until it is restarted.
A Redis that does not answer in time even ends the consumer's thread. And so does a message that names a queue to which
nobody listens, with the thread that runs it.

Here a consumer that starts hands back what its process has taken and does not have in hand, no answer in time is a
connection that failed, and messages are looked at before they get that far.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed, DecodeError
from redis.exceptions import RedisError

logger = logging.getLogger("backgrounded")


class OwnRedisBroker(RedisBroker):
    """Dramatiq's broker, with consumers that can start anew. The `do_` methods are found by Dramatiq by these names."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call] # Dramatiq gives it no types
        self.in_hand: dict[str, set[str]] = defaultdict(set)
        """By queue, what has been given to the worker and is not acknowledged, by Redis' own ids."""

    @property
    def consumer_class(self) -> Any:
        return _noting(super().consumer_class)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Any:
        """A consumer of a queue; what was lost hold of before goes back to the queue. Raises ConnectionClosed."""
        if queue_name.endswith(".DQ"):
            self.in_hand[queue_name].clear()  # a worker drops what is delayed before it starts a consumer anew
        with _as_lost_connection():
            lost = {id.decode() for id in self._taken(queue_name)} - self.in_hand[queue_name]
            if lost:
                logger.warning("%d messages of the queue %r are handed back", len(lost), queue_name)
                self._do("requeue", queue_name, *lost)
        return super().consume(queue_name, prefetch, timeout)

    def do_ack(self, queue_name: str, id: str) -> None:
        self._do("ack", queue_name, id)
        self.in_hand[queue_name].discard(id)

    def do_nack(self, queue_name: str, id: str) -> None:
        self._do("nack", queue_name, id)
        self.in_hand[queue_name].discard(id)

    def do_fetch(self, queue_name: str, prefetch: int) -> list[bytes | None]:
        """Up to so many messages, as they are stored."""
        fetched: list[bytes | None] = self._do("fetch", queue_name, prefetch)
        unfit = [data for data in fetched if data is not None and not is_message(data, queue_name)]
        if not unfit:
            return fetched
        self._dead_letter(queue_name, unfit)
        return [data for data in fetched if data not in unfit]

    def _dead_letter(self, queue_name: str, unfit: Sequence[bytes]) -> None:
        """Refuse what was just taken. Its id stands beside it: what stands in it cannot be believed."""
        logger.error("%d messages in the queue %r are none, and are dead-lettered", len(unfit), queue_name)
        taken = self._taken(queue_name)
        stored = self.client.hmget(f"{self.namespace}:{queue_name}.msgs", taken)
        for id, data in zip(taken, stored, strict=True):
            if data in unfit:
                self._do("nack", queue_name, id)

    def _taken(self, queue_name: str) -> list[Any]:
        """What this process has taken from a queue and not acknowledged, as Redis knows it."""
        return [*self.client.smembers(f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}")]

    def _do(self, command: str, *words: Any) -> Any:
        return self._dispatch(command)(*words)  # type: ignore[no-untyped-call] # as above


@contextmanager
def _as_lost_connection() -> Iterator[None]:
    """Let Dramatiq hear of every failure of Redis by the one word that it tries again after."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise ConnectionClosed(error) from error


def _noting(base: Any) -> Any:
    class Consumer(base):  # type: ignore[misc] # it has no public name
        """Dramatiq's consumer, which notes what it gives to the worker."""

        def __next__(self) -> Any:
            with _as_lost_connection():
                message = super().__next__()
            if message is not None:
                self.broker.in_hand[self.queue_name].add(message.options["redis_message_id"])
            return message

        def ack(self, message: Any) -> None:
            with _as_lost_connection():
                super().ack(message)

        def nack(self, message: Any) -> None:
            with _as_lost_connection():
                super().nack(message)

        def requeue(self, messages: Any) -> None:
            with _as_lost_connection():
                super().requeue(messages)

    return Consumer


def is_message(data: bytes, queue_name: str) -> bool:
    """Whether a worker of this queue can take it without harm."""
    try:
        message: Any = dramatiq.Message.decode(data)
    except (DecodeError, RecursionError):
        return False
    is_well_made = (
        message.queue_name == queue_name
        and isinstance(message.actor_name, str)
        and isinstance(message.message_id, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and isinstance(message.message_timestamp, (int, float))
    )
    return is_well_made and isinstance(message.options.get("redis_message_id"), str) and _is_time(message.options)


def _is_time(options: dict[str, Any]) -> bool:
    eta = options.get("eta", 0)
    return isinstance(eta, (int, float)) and math.isfinite(eta)
