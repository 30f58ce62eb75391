"""How does a message get to the broker, in bounded time, and where do jobs lie that were set aside?

Messages go over connections of our own to the application's broker: with timeouts, with confirms where the broker has
them, and never sent again by themselves. Celery's own `send_task` makes the message, so routes, serializers and
compression are the application's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import cached_property, lru_cache, partial
from typing import Any, Final

from amqp.exceptions import AMQPError, ChannelError, MessageNacked
from backgrounded import ConfigurationError
from backgrounded.handler import WORKER_PATIENCE, KeptQueue, not_reached
from backgrounded.records import Records, redis_pool
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import QueueNotFound
from kombu.entity import Queue
from kombu.exceptions import KombuError, LimitExceeded
from kombu.pools import ProducerPool
from redis.exceptions import RedisError

from .task import TASK

KEPT: Final = "backgrounded.kept"
"""The queue of jobs that were set aside."""
LONGEST_HOP: Final = 900.0
"""Seconds for which a worker may hold a message that is not due. Redis hands a message that was not acknowledged to
another worker after its visibility timeout, RabbitMQ closes the channel after 30 minutes. So a longer delay is carried
in hops: the message is sent again until it is due."""
CONNECTIONS: Final = 100
"""The most connections of a process; as many are opened as callers are at it at once."""
LEAST_NATIVE: Final = 1.1
"""Seconds: Celery delays messages for quorum queues in whole seconds, of which there has to be one."""


@dataclass(frozen=True)
class Message:
    """One job on its way: all that a worker is told, and all that sends it again.

    `priority` is the broker's, `due` in seconds since the epoch, `attempt` counts from 1. With an `exchange`, `queue`
    is the routing key, where no queue is known by name. `timeout` and `result_ttl` are seconds, `handler` is the alias
    that the call came by.
    """

    id: str
    wire: Any
    name: str
    queue: str | None = None
    exchange: str | None = None
    priority: int | None = None
    handler: str = "default"
    due: float | None = None
    attempt: int = 1
    timeout: float | None = None
    result_ttl: float | None = None

    def beside(self) -> dict[str, Any]:
        """What travels beside the wire."""
        told = {"due": self.due, "timeout": self.timeout, "result_ttl": self.result_ttl}
        if self.handler != "default":
            told["handler"] = self.handler  # type: ignore[assignment] # a str among numbers
        return {word: value for word, value in told.items() if value is not None}


class Broker(KeptQueue):
    """An app's broker and result backend, over connections of our own. Made once for an app and a process."""

    def __init__(self, app: Celery, patience: float) -> None:
        self.app = app
        self.patience = patience
        self._pool: Any = None
        self._pid = 0
        self._records: Records | None = None

    # -- sending

    def send(self, messages: Sequence[Message], sent: list[str] | None = None) -> None:
        """Hand messages over: in one round trip where the transport can (kombu 5.7 on Redis), else one by one.

        `sent` is filled with the ids of those that the broker has. Raises one of `FAILURES`.
        """
        with self._producer() as producer:
            at_once = len(messages) > 1 and getattr(producer, "supports_batch_publish", False)
            with producer.batch() if at_once else nullcontext():
                for message in messages:
                    self._send(message, producer)
                    if sent is not None and not at_once:
                        sent.append(message.id)

    def _send(self, message: Message, producer: Any) -> None:
        args, beside = (message.wire,), message.beside()
        where = self._route(message, args, beside)
        eta = self._eta(message.due, where.get("queue"))
        self.app.send_task(
            TASK,
            args=args,
            kwargs=beside,
            task_id=message.id,
            shadow=message.name,
            argsrepr="(...)",
            kwargsrepr="{...}",
            eta=eta,
            retries=message.attempt - 1,
            time_limit=hard_limit(message.timeout),
            # The outcome stands in our record. For a result of its own Celery would SUBSCRIBE before it sends, and try
            # again for 19 seconds where the result backend is down.
            ignore_result=True,
            add_to_parent=False,
            retry=False,
            delivery_mode=2,
            producer=producer,
            router=_Routed,
            **where,
        )

    def _route(self, message: Message, args: tuple[Any, ...], beside: dict[str, Any]) -> dict[str, Any]:
        """Where the app's routes send a message, and with what. One for a queue goes there, whatever a route adds.

        What is told `beside` the wire learns the queue's name, where the worker cannot see it in the message.
        """
        said: dict[str, Any] = {}
        if message.exchange:
            said = {"exchange": message.exchange, "routing_key": message.queue}
        elif message.queue is not None:
            said = {"queue": message.queue}
        if message.priority is not None:
            said["priority"] = message.priority
        if self.transport == "amqp":
            said["mandatory"] = True  # else RabbitMQ confirms what it throws away, since no queue wants it
        try:
            where: dict[str, Any] = self.app.amqp.router.route(said, TASK, args, beside)
        except QueueNotFound as error:
            raise ConfigurationError(f"celery: no queue of the app is where its routes send a job: {error}") from error
        queue = where.get("queue")
        if queue is not None and not message.exchange:
            if message.queue is not None:
                where |= _address_of(queue)
            if queue.exchange.type != "direct":
                beside["queue"] = queue.name
        return where

    def _eta(self, due: float | None, queue: Any) -> datetime | None:
        """Until when a message is delayed on its way; after that, or from the beginning, in hops."""
        moment = time.time()
        if due is None or due <= moment:
            return None
        eta = min(due, moment + self.longest_hop)
        if queue is not None and queue.exchange.type != "direct" and _has_native_delays(self.app, self.transport):
            eta = max(eta, moment + LEAST_NATIVE)
        return datetime.fromtimestamp(eta, timezone.utc)

    def knows_queue(self, name: str) -> bool:
        """Whether there is, or is made when it is wanted, a queue of this name."""
        try:
            return self.app.amqp.queues[name] is not None
        except KeyError:
            return False

    @property
    def longest_hop(self) -> float:
        return min(LONGEST_HOP, self.visibility_timeout / 2)

    @property
    def visibility_timeout(self) -> float:
        """Seconds after which the transport hands a message on that was not acknowledged, as Redis does."""
        return float((self.app.conf.broker_transport_options or {}).get("visibility_timeout", 3600))

    @contextmanager
    def _producer(self) -> Iterator[Any]:
        if self._pid != os.getpid():  # a connection is of one process: after a fork both would read from it
            self._pool, self._pid = ProducerPool(self._connection().Pool(CONNECTIONS), CONNECTIONS), os.getpid()
        with self._pool.acquire(block=True, timeout=self.patience / 4) as producer:
            try:
                _renew_if_dead(producer.connection)
                yield producer
            except BaseException:
                # What comes late on this connection would be taken for the answer to the next message.
                if producer.connection.connected:
                    producer.connection.collect()
                raise

    def close(self) -> None:
        """Close the connections to the broker and the result backend; the next use makes new ones."""
        pool, self._pool, self._pid = self._pool, None, 0
        if pool is not None:
            pool.connections.force_close_all()
        if self._records is not None:
            self._records.client.connection_pool.disconnect()

    def _connection(self) -> Any:
        connection = self.app.connection_for_write(connect_timeout=self.patience)
        bounds: dict[str, Any] = {"max_retries": 0}
        kind = connection.transport.driver_type
        if kind == "redis":
            bounds |= {"socket_timeout": self.patience, "socket_connect_timeout": self.patience}
            bounds |= {"retry_on_timeout": False}
        elif kind == "amqp":
            bounds |= {"read_timeout": self.patience, "write_timeout": self.patience, "confirm_publish": True}
        connection.transport_options = {**connection.transport_options, **bounds}
        return connection

    @cached_property
    def transport(self) -> str:
        """What kind of broker it is: "redis", "amqp", "memory", ... Nothing is connected."""
        return str(self.app.connection_for_write().transport.driver_type)

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of a connection for this block alone."""
        with self._connection() as connection, connection.channel() as channel:
            yield channel

    # -- what is known

    @property
    def records(self) -> Records | None:
        """The records in the app's result backend; None where that is no Redis."""
        if self._records is None and isinstance(self.app.backend, RedisBackend):
            pool = partial(redis_pool, self.patience)  # not asked by the backend of Sentinels: it has the bounds alone
            backend = type(self.app.backend)(app=self.app, url=self.app.backend.url, connection_pool=pool)
            bounds = {"socket_timeout", "socket_connect_timeout"} & backend.connparams.keys()  # a socket has one only
            backend.connparams |= dict.fromkeys(bounds, self.patience)
            prefix = _text(backend.task_keyprefix).removesuffix(_text(RedisBackend.task_keyprefix))
            self._records = Records(backend.client, prefix)
        return self._records

    # -- what was set aside

    def keep(self, message: Message, reason: str, code: str) -> None:
        """Put a job aside, confirmed by the broker when this returns."""
        with self._producer() as producer:
            producer.publish(
                {"reason": reason, "code": code, **asdict(message)},
                exchange="",
                routing_key=KEPT,
                declare=[Queue(KEPT)],
                serializer="json",
                delivery_mode=2,
                retry=False,
            )

    @contextmanager
    def _taken_out(self) -> Iterator[list[tuple[Message, Mapping[str, Any], Callable[[], object]]]]:
        """Where the process dies inside, the broker puts them back, Redis after the visibility timeout."""
        found: list[tuple[Message, Any, Callable[[], object]]] = []
        with self.channel() as channel:
            queue = Queue(KEPT)(channel)
            queue.declare()
            deliveries: list[Any] = []
            try:
                while (delivery := queue.get(accept=["json"])) is not None:
                    deliveries.append(delivery)
                    with suppress(ValueError, TypeError, KeyError, AttributeError):  # somebody else's message
                        body: Any = delivery.payload
                        found.append((_message_from(body), body, delivery.ack))
                yield found
            finally:
                for delivery in deliveries:
                    if not delivery.acknowledged:
                        delivery.requeue()


_FIELDS: Final = tuple(field.name for field in fields(Message))


def _message_from(body: Mapping[str, Any]) -> Message:
    return Message(**{name: body[name] for name in _FIELDS if name in body})


class _Routed:
    """Celery's router for a message that has been routed: it goes where it was sent to."""

    @staticmethod
    def route(where: dict[str, Any], *_: Any) -> dict[str, Any]:
        return where


def _address_of(queue: Any) -> dict[str, str]:
    """How a message gets into this queue, and not only to the exchange that it is bound to."""
    if queue.exchange.type == "direct":
        return {"exchange": "", "routing_key": queue.name, "exchange_type": "direct"}
    return {"exchange": queue.exchange.name, "routing_key": queue.routing_key, "exchange_type": queue.exchange.type}


def _has_native_delays(app: Celery, transport: str) -> bool:
    """Whether Celery (5.5 and later) delays messages by RabbitMQ's means, since the app has quorum queues."""
    try:
        from celery.utils.quorum_queues import detect_quorum_queues
    except ImportError:
        return False
    return bool(detect_quorum_queues(app, transport)[0])


def _renew_if_dead(connection: Any) -> None:
    """Close a connection to RabbitMQ that ended while nobody used it: the next step makes a new one. On Redis,
    redis-py looks by itself."""
    if connection.transport.driver_type != "amqp" or not connection.connected:
        return
    try:
        connection.drain_events(timeout=0)
    except TimeoutError:  # it lives, and has nothing to say
        return
    except (AMQPError, OSError):
        connection.collect()


@lru_cache(maxsize=8)
def broker_of(app: Celery, patience: float = WORKER_PATIENCE) -> Broker:
    """The broker of an app, as a worker uses it."""
    return Broker(app, patience)


def hard_limit(timeout: float | None) -> float | None:
    """Seconds after which Celery kills the process: a method that no signal reaches. Later than any limit of ours:
    importing the application and running the method have the timeout each."""
    return None if timeout is None else 2 * timeout + 10


REFUSALS: Final = (ChannelError, MessageNacked)
"""What a broker raises that says no."""
FAILURES: Final = (KombuError, AMQPError, MessageNacked, RedisError, OSError)
"""What a broker or a result backend that is down, or says no, raises."""


def never_sent(error: BaseException) -> bool:
    """Whether the broker certainly did not take a message: it was not reached, or it said no."""
    return isinstance(error, (*REFUSALS, LimitExceeded)) or not_reached(error)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
