"""Which broker is it, how do messages get there, what is known of its jobs, and where do those lie that were set aside?

One facade over the brokers of Dramatiq: Redis and RabbitMQ, each over connections of our own, and any other through its
own `enqueue`, about which nothing is promised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final, TypeVar

import dramatiq
from backgrounded import ConfigurationError
from backgrounded.handler import Finding, Kept
from backgrounded.records import Records, examine_redis
from dramatiq.common import current_millis, q_name
from dramatiq.results import Results

from ._message import Message
from ._sending import NotSent

logger = logging.getLogger("backgrounded")

T = TypeVar("T")

PAUSE: Final = 1.0
"""Seconds after which a worker tries again to reach a broker: what it has to say must not be lost."""


class Broker:
    """A broker of Dramatiq's, and the store beside it.

    Each of its answers has `patience` seconds; callers and workers have one of these each. `store` is the URL of a
    Redis for the records of jobs; without one they stand in the broker's own Redis, or in that of its Results
    middleware.
    """

    nested: Any = None
    """The handler of the calls that jobs make; it is made for the first, and lives as long as this."""

    def __init__(self, broker: dramatiq.Broker, patience: float, store: str | None = None) -> None:
        self.dramatiq = broker
        self.patience = patience
        self.store = store
        self._made: list[Any] = []
        """The clients that were made for the records alone."""

    @cached_property
    def way(self) -> Any:
        """How messages get to it: a `Redis`, a `Rabbit`, or `Plain`."""
        if is_a(self.dramatiq, "dramatiq.brokers.redis", "RedisBroker"):
            from ._redis import Redis

            return Redis(self.dramatiq, self.patience)
        if is_a(self.dramatiq, "dramatiq.brokers.rabbitmq", "RabbitmqBroker"):
            from ._rabbit import Rabbit

            return Rabbit(self.dramatiq, self.patience)
        return Plain(self.dramatiq)

    @property
    def kind(self) -> str:
        """ "redis", "amqp" or "other"."""
        return str(self.way.kind)

    # -- sending

    def send(self, messages: Sequence[Message]) -> None:
        """Hand messages over, in as few trips as the broker can. Raises NotSent, and what a middleware raises."""
        letters = [message.for_dramatiq() for message in messages]
        if self.way.signals:
            for letter in letters:
                self.way.prepare(letter)
                self.dramatiq.emit_before("enqueue", letter, delay_of(letter))
        try:
            self.way.send(letters)
        except NotSent as failed:
            self._tell_sent([letter for letter in letters if letter.message_id in failed.sent])
            raise
        self._tell_sent(letters)

    def _tell_sent(self, letters: Sequence[dramatiq.Message[None]]) -> None:
        if self.way.signals:
            for letter in letters:
                self.dramatiq.emit_after("enqueue", letter, delay_of(letter))

    def insist(self, step: Callable[[], T], what: str) -> T:
        """What a worker has to do before it may acknowledge a message: again and again, until the broker takes it.

        A worker that is killed meanwhile has acknowledged nothing, and the message runs again.
        """
        said = False
        while True:
            try:
                return step()
            except (NotSent, *self.way.down) as error:
                if not said:
                    logger.error("%s: the broker cannot be reached, and is tried again: %s", what, error)
                said = True
                time.sleep(PAUSE)

    # -- what is known

    @cached_property
    def records(self) -> Records | None:
        """The records of jobs; None where no Redis is at hand."""
        if self.store is not None:
            try:
                from ._redis import from_url
            except ImportError as error:
                raise ConfigurationError(
                    f'dramatiq: store: pip install "backgrounded-dramatiq[redis]": {error}'
                ) from error

            try:
                client: Any = from_url(self.store, self.patience)
            except ValueError as error:
                raise ConfigurationError(f"dramatiq: store: {error}. An example: redis://localhost:6379/1") from error
            self._made.append(client)
            return Records(client)
        if self.kind == "redis":
            from ._redis import prefix_of

            return Records(self.way.client, prefix_of(self.dramatiq))
        backend = next((item.backend for item in self.dramatiq.middleware if isinstance(item, Results)), None)
        if backend is not None and is_a(backend, "dramatiq.results.backends.redis", "RedisBackend"):
            from ._redis import bounded, prefix_of

            client = bounded(backend.client, self.patience)
            if client is not backend.client:
                self._made.append(client)
            return Records(client, prefix_of(backend))
        return None

    @cached_property
    def down(self) -> tuple[type[BaseException], ...]:
        """What the records raise when their store cannot be reached."""
        if self.records is None:
            return ()
        from ._redis import DOWN

        return DOWN

    def examine(self) -> Iterator[Finding]:
        """Whether the broker can be reached, and the store if it is apart, and a Redis keeps what it acknowledged.

        Errors of their clients go through.
        """
        yield from self.way.examine()
        if self.records is not None and self.records.client is not getattr(self.way, "client", None):
            yield from examine_redis(self.records.client, "records of jobs")

    # -- what was set aside

    def keep(self, message: Message, reason: str, code: str) -> bool:
        """Put a job aside; it is safe when this returns. False where there is no place for it."""
        if not self.way.keeps:
            return False
        self.insist(lambda: self.way.keep(message, reason, code), message.name)
        return True

    def kept(self) -> list[Kept]:
        return list(self.way.kept())

    def close(self) -> None:
        """Close our connections; the next use makes new ones. The application's are not touched."""
        self.way.close()
        for client in self._made:
            client.connection_pool.disconnect()


class Plain:
    """A broker that is neither: a StubBroker, or somebody's own. It is used as Dramatiq's own `send` does."""

    kind = "other"
    down: Final = (dramatiq.BrokerError, OSError)
    keeps = False
    signals = False

    def __init__(self, broker: dramatiq.Broker) -> None:
        self.broker = broker

    def send(self, messages: Sequence[dramatiq.Message[None]]) -> None:
        """One by one. Raises NotSent."""
        sent: list[str] = []
        for message in messages:
            queue, delay = q_name(message.queue_name), delay_of(message)
            message.options.pop("eta", None)
            try:
                self.broker.declare_queue(queue)
                self.broker.enqueue(message.copy(queue_name=queue), delay=delay)
            except self.down as error:
                raise NotSent(error, sent, [message.message_id]) from error
            sent.append(message.message_id)

    def examine(self) -> Iterator[Finding]:
        """Nobody knows what to ask such a broker."""
        yield from ()

    def kept(self) -> list[Kept]:
        """What cannot be performed is dead-lettered here, by the broker's own means."""
        return []

    def take(self, id: str) -> Any:
        raise ConfigurationError(f"dramatiq: a {type(self.broker).__name__} keeps nothing, so not {id!r} either.")

    def close(self) -> None:
        """There is no connection of ours."""


def delay_of(message: dramatiq.Message[None]) -> int | None:
    """Milliseconds for which a message waits before it is in its queue; None: it does not wait."""
    eta = message.options.get("eta")
    return None if eta is None else max(0, eta - current_millis())


def is_a(value: object, module: str, name: str) -> bool:
    """Whether it is of a class whose module may not be importable here: nobody who has no pika needs it."""
    return any(cls.__module__ == module and cls.__name__ == name for cls in type(value).__mro__)
