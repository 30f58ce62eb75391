"""How does a message get to the RabbitMQ of a RabbitmqBroker, in bounded time, and where do kept jobs lie there?

Over connections of our own in confirm mode. pika's blocking connection waits for a confirm as long as it takes, so this
one is its asynchronous connection, driven by the thread that holds it, until an answer or the deadline. Many messages
are confirmed together: a thousand take about as long as one round trip.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final

import dramatiq
import pika
from backgrounded.handler import Finding, KeptQueue
from dramatiq.common import q_name
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError
from pika.spec import Basic

from ._message import PRIORITY, Message
from ._sending import NotSent, message_of

DOWN: Final = (AMQPError, OSError)
KEPT: Final = "backgrounded.kept"
"""The queue of jobs that were set aside."""
IDLE: Final = 30.0
"""Seconds after which an unused connection is closed: something between here and there may have dropped it."""
CLOSED_AT_ONCE: Final = 4
"""Of those, how many a call closes: it waits for that, and there may be as many as threads called at once."""
GRACE: Final = 0.4
"""Seconds in which pika has closed the socket of a connection that is given up."""


class Unreachable(ConnectionError):
    """No connection came about: nothing was sent."""


class Rabbit(KeptQueue):
    """The RabbitMQ of a broker, over connections of our own. A connection is used by one thread at a time."""

    kind = "amqp"
    down = DOWN
    keeps = True
    signals = True

    def __init__(self, broker: Any, patience: float) -> None:
        self.broker = broker
        self.patience = patience
        self._idle: deque[tuple[float, _Link]] = deque()
        self._pid = os.getpid()
        self._known: set[str] = set()

    # -- sending

    def prepare(self, message: dramatiq.Message[None]) -> None:
        """RabbitMQ wants nothing in the message."""

    def send(self, messages: Sequence[dramatiq.Message[None]]) -> None:
        """Hand messages over, each confirmed by the broker. Raises NotSent."""
        self._publish(
            [
                _Parcel(message.message_id, message.queue_name, message.encode(), message.options.get(PRIORITY))
                for message in messages
            ]
        )

    def _publish(self, parcels: Sequence[_Parcel]) -> None:
        deadline = time.monotonic() + self.patience
        try:
            with self._link(deadline) as link:
                self._ensure(link, {parcel.queue for parcel in parcels} - self._known, deadline)
                homeless = link.publish(parcels, deadline)
                if homeless:
                    self._publish_again(link, homeless, parcels, deadline)
        except DOWN as error:
            raise NotSent(error) from error

    def _publish_again(
        self, link: _Link, homeless: Sequence[_Parcel], parcels: Sequence[_Parcel], deadline: float
    ) -> None:
        """Somebody has deleted a queue that we knew: make it again, and hand over what was given back."""
        taken = [parcel.id for parcel in parcels if parcel not in homeless]
        try:
            self._ensure(link, {parcel.queue for parcel in homeless}, deadline)
            if link.publish(homeless, deadline):
                raise Unreachable("the queue is deleted as soon as it is made")
        except NotSent as failed:
            raise NotSent(failed.cause, [*taken, *failed.sent], failed.unknown) from failed.cause
        except DOWN as error:
            raise NotSent(error, taken) from error

    def _ensure(self, link: _Link, queues: Set[str], deadline: float) -> None:
        for queue in sorted(queues):
            # Dramatiq's method has no public name; brokers with queues of another kind override it.
            arguments = {} if queue == KEPT else self.broker._build_queue_arguments(q_name(queue))
            link.declare(queue, arguments, deadline)
            self._known.add(queue)

    @contextmanager
    def _link(self, deadline: float) -> Iterator[_Link]:
        link = self._idle_link() or _Link(self._parameters(), deadline)
        try:
            yield link
        except BaseException:
            link.abort()
            raise
        self._idle.append((time.monotonic(), link))

    def _idle_link(self) -> _Link | None:
        """The one that was used last, if it can still be used."""
        self._leave_the_parents()
        self._close_unused()  # now: when the messages are there, nothing may fail any more
        with suppress(IndexError):
            while True:
                since, link = self._idle.pop()
                if _is_unused(since):  # and so are all the others
                    self._idle.append((since, link))
                    break
                if link.is_alive():
                    return link
                link.abort()
        return None

    def _close_unused(self) -> None:
        """Close those that no call has wanted for long, oldest first. What one thread takes out no other one has."""
        with suppress(IndexError):
            for _ in range(CLOSED_AT_ONCE):
                if not _is_unused(self._idle[0][0]):
                    break
                self._idle.popleft()[1].abort()  # where another thread was quicker, one that was still of use

    def _leave_the_parents(self) -> None:
        """Connections are of one process: where this is a forked child, the parent goes on with its own."""
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()

    def _parameters(self) -> list[Any]:
        """Where to connect: one server after the other, until one is there."""
        found = self.broker.parameters
        places = found if isinstance(found, list) else [found]
        # A little less than all: pika cannot be stopped while it connects, so it has to end before the deadline.
        return [_bounded(place, 0.9 * self.patience / len(places)) for place in places]

    def close(self) -> None:
        """Close the connections that nobody uses; the next use makes new ones."""
        self._leave_the_parents()
        with suppress(IndexError):
            while True:
                self._idle.pop()[1].abort()

    def examine(self) -> Iterator[Finding]:
        """Whether RabbitMQ answers."""
        with self._link(time.monotonic() + self.patience):
            yield from ()

    # -- what was set aside

    def keep(self, message: Message, reason: str, code: str) -> None:
        """Put a job aside, confirmed by the broker when this returns. Raises NotSent."""
        body = {"reason": reason, "code": code, **asdict(message)}
        self._publish([_Parcel(message.id, KEPT, json.dumps(body, default=repr).encode(), None)])

    @contextmanager
    def _taken_out(self) -> Iterator[list[tuple[Message, dict[str, Any], Callable[[], None]]]]:
        """What is not acknowledged RabbitMQ puts back when the connection ends."""
        found = []
        connection = pika.BlockingConnection(self._parameters())
        try:
            channel = connection.channel()
            channel.queue_declare(KEPT, durable=True)
            while True:
                method, _, stored = channel.basic_get(KEPT)
                if method is None:
                    break
                with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # somebody else's
                    body = json.loads(stored or b"")
                    found.append((message_of(body), body, _acknowledging(channel, method.delivery_tag)))
            yield found
        finally:
            connection.close()


def _is_unused(since: float) -> bool:
    return time.monotonic() - since >= IDLE


def _acknowledging(channel: Any, tag: int) -> Callable[[], None]:
    return lambda: channel.basic_ack(tag)


def _bounded(parameters: Any, patience: float) -> Any:
    """The same place, with every step of reaching it bounded, and tried once."""
    found = copy.copy(parameters)
    found.connection_attempts = 1
    found.socket_timeout = found.stack_timeout = found.blocked_connection_timeout = patience
    found.heartbeat = 0  # nobody is there to answer while it is not in use; see IDLE
    return found


class _Parcel:
    """A message as RabbitMQ takes it."""

    def __init__(self, id: str, queue: str, body: bytes, priority: Any) -> None:
        self.id, self.queue, self.body = id, queue, body
        self.properties = pika.BasicProperties(delivery_mode=2, message_id=id, priority=priority)


class _Link:
    """One connection with one channel in confirm mode, driven by the thread that holds it.

    Every step ends when RabbitMQ has answered, with TimeoutError at the deadline (of `time.monotonic`), or with the
    error by which the connection was lost. After an error it is of no use any more.
    """

    def __init__(self, parameters: Sequence[Any], deadline: float) -> None:
        self._loop = IOLoop()
        self._connection: Any = None
        self._channel: Any = None
        self._is_ready = False
        self._lost: BaseException | None = None
        self._pending: dict[int, _Parcel] = {}
        self._taken: list[_Parcel] = []
        self._is_refused = False
        self._returned: set[str] = set()
        self._tag = 0
        self._connecting: Any = SelectConnection.create_connection(
            parameters, on_done=self._on_connected, custom_ioloop=self._loop
        )
        try:
            self._await(lambda: self._is_ready, deadline)
        except (*DOWN, AMQPConnectorException) as error:
            self.abort()
            raise Unreachable(f"connecting to RabbitMQ: {str(error) or repr(error)}") from error

    def publish(self, parcels: Sequence[_Parcel], deadline: float) -> list[_Parcel]:
        """Hand over, until all are confirmed. Returns those whose queue does not exist. Raises NotSent."""
        self._taken, self._is_refused, self._returned = [], False, set()
        try:
            for parcel in parcels:
                self._tag += 1
                self._pending[self._tag] = parcel
                self._channel.basic_publish("", parcel.queue, parcel.body, parcel.properties, mandatory=True)
            self._await(lambda: not self._pending, deadline)
        except DOWN as error:
            unknown = [parcel.id for parcel in self._pending.values()]
            raise NotSent(error, self._taken_ids(), unknown) from error
        if self._is_refused:
            raise NotSent(ConnectionError("RabbitMQ refused a message"), self._taken_ids())
        return [parcel for parcel in parcels if parcel.id in self._returned]

    def _taken_ids(self) -> list[str]:
        """Those that RabbitMQ has confirmed and not given back, which it does before it confirms."""
        return [parcel.id for parcel in self._taken if parcel.id not in self._returned]

    def declare(self, queue: str, arguments: dict[str, Any], deadline: float) -> None:
        """Make a queue as a worker would, if there is none of this name.

        Raises ChannelClosedByBroker where one was made with other arguments: no worker of Dramatiq's consumes it.
        """
        answers: list[Any] = []
        self._channel.queue_declare(queue, durable=True, arguments=arguments, callback=self._answering(answers.append))
        self._await(lambda: bool(answers), deadline)

    def is_alive(self) -> bool:
        """Whether nothing is known of its end, after a look at what RabbitMQ has sent meanwhile."""
        self._loop.add_callback_threadsafe(self._loop.stop)
        self._loop.start()
        return self._lost is None

    def abort(self) -> None:
        """End the connection without a word: RabbitMQ may not listen."""
        with suppress(*DOWN, AMQPConnectorException, AssertionError):  # pika's own abort fails at some of its states
            if self._connecting is not None:
                self._connecting.abort()
            elif self._connection is not None and self._connection.is_open:
                # pika has no public word for this: its `close` waits for an answer.
                self._connection._terminate_stream(ConnectionAbortedError("given up"))
            end = time.monotonic() + GRACE
            while not self._is_closed() and time.monotonic() < end:
                self._loop.call_later(0.01, self._loop.stop)
                self._loop.start()
        self._loop.close()

    def _is_closed(self) -> bool:
        return self._connecting is None and (self._connection is None or bool(self._connection.is_closed))

    # -- the loop, and what it calls

    def _await(self, done: Callable[[], bool], deadline: float) -> None:
        while not done():
            if self._lost is not None:
                raise self._lost
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("RabbitMQ did not answer in time")
            timer = self._loop.call_later(left, self._loop.stop)
            self._loop.start()
            self._loop.remove_timeout(timer)

    def _answering(self, note: Callable[[Any], Any]) -> Callable[[Any], None]:
        def answer(frame: Any) -> None:
            note(frame)
            self._loop.stop()

        return answer

    def _on_connected(self, result: Any) -> None:
        self._connecting = None
        if isinstance(result, BaseException):
            self._on_lost(None, result)
            return
        self._connection = result
        self._connection.add_on_close_callback(self._on_lost)
        self._open_channel()

    def _open_channel(self) -> None:
        self._connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel, self._tag, self._pending = channel, 0, {}
        channel.add_on_close_callback(self._on_lost)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=self._answering(self._ready))

    def _ready(self, _: Any) -> None:
        self._is_ready = True

    def _on_lost(self, _: Any, error: Any) -> None:
        if self._lost is None:
            self._lost = error if isinstance(error, BaseException) else ConnectionError(str(error))
        self._loop.stop()

    def _on_return(self, _: Any, __: Any, properties: Any, ___: bytes) -> None:
        self._returned.add(properties.message_id)

    def _on_confirm(self, frame: Any) -> None:
        confirmed = frame.method
        tags = [tag for tag in self._pending if tag <= confirmed.delivery_tag] if confirmed.multiple else []
        for tag in tags or [confirmed.delivery_tag]:
            parcel = self._pending.pop(tag, None)
            if parcel is None:
                continue
            if isinstance(confirmed, Basic.Ack):
                self._taken.append(parcel)
            else:
                self._is_refused = True
        if not self._pending:
            self._loop.stop()
