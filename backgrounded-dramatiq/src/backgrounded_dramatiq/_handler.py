"""How do our words become Dramatiq's?

One job of ours is one message with our id, under the method's name. What Dramatiq does not remember of it stands in a
record of ours in a Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import dramatiq
from backgrounded import (
    BatchError,
    Call,
    ConfigurationError,
    EnqueueError,
    InvalidOption,
)
from backgrounded.handler import (
    ENQUEUE_TIMEOUT,
    Feature,
    Finding,
    Guarantees,
    Kept,
    State,
    check_seconds,
    refuse_unkept,
    warn_without_app,
    with_settings,
    worker_settings,
)
from backgrounded.records import Records

from ._broker import Broker
from ._message import Message
from ._middleware import attach, attach_to_those_to_come, waiting
from ._sending import NotSent
from ._settings import (
    DELAYED,
    EVERYTHING,
    LONGEST_QUEUE,
    THREADS,
    Place,
    check_count,
    features_of,
    find,
    find_loaded,
    global_broker,
    guarantees_of,
    has_priorities,
    is_queue,
    module_of,
)


class DramatiqHandler:
    """Hands calls to Dramatiq.

    `broker` is the application's broker, or its name as `dramatiq` takes it, such as "shop.broker:broker"; without it,
    the one that the application has set or will set with `dramatiq.set_broker`. It is looked up at the first use. `url`
    makes one of its own, "redis://localhost:6379/0" or "amqp://user:password@localhost:5672/shop", or is such a name.

    `queue` is the default queue ("default"); `queues` are the others that a worker consumes which is started without
    `-Q`. `store` is the URL of a Redis for what is known of jobs, where the broker is none and has no Results
    middleware with one. On Redis, a worker of a broker made here counts as dead after `heartbeat_timeout` seconds (15).
    These three may stand in the URL, after a `?`. `processes` and `threads` are those of `worker_command()`: Dramatiq's
    own, one process for each core and 8 threads in each. `enqueue_timeout` (2) bounds how many seconds the broker and
    the store have for each answer.

    Raises ConfigurationError for what cannot work; nothing is connected before the first use.
    """

    protocol: ClassVar[int] = 1

    def __init__(
        self,
        url: str | None = None,
        *,
        broker: dramatiq.Broker | str | None = None,
        queue: str | None = None,
        queues: Iterable[str] = (),
        store: str | None = None,
        heartbeat_timeout: float | None = None,
        processes: int | None = None,
        threads: int | None = None,
        enqueue_timeout: float = ENQUEUE_TIMEOUT,
    ) -> None:
        if url is not None and broker is not None:
            raise ConfigurationError("dramatiq: give one of url and broker, each says which broker it is.")
        if broker is not None and not isinstance(broker, (str, dramatiq.Broker)):
            raise ConfigurationError(f"dramatiq: broker must be a broker or its name, got {type(broker).__name__}.")
        if isinstance(queues, str):
            raise ConfigurationError(f"dramatiq: queues: must be a list of names, got {queues!r}.")
        if store is not None and not str(store).startswith(("redis://", "rediss://", "unix://")):
            scheme = str(store).partition(":")[0]
            raise ConfigurationError(f"dramatiq: store must be redis://host:port/db, got {scheme!r}.")
        if url is not None and "://" not in url:
            url, broker = None, url
        self.borrowed = url is None
        if self.borrowed and heartbeat_timeout is not None:
            raise ConfigurationError("dramatiq: set heartbeat_timeout in the broker, which is yours.")
        self._patience = check_seconds("dramatiq", "enqueue_timeout", enqueue_timeout)
        self._processes = check_count("processes", processes)
        self._threads = check_count("threads", threads)
        self._name = broker if isinstance(broker, str) else None
        self._broker: Broker | None = None
        self.url: str | None = None
        if url is not None:
            place = Place.of(url, store=store, heartbeat_timeout=heartbeat_timeout, queue=queue)
            self.url, broker, store, queue = place.url, place.make(), place.store, place.queue
        self._store = store
        self.default_queue = "default" if queue is None else queue
        self.queues = (self.default_queue, *(name for name in queues if name != self.default_queue))
        for name in self.queues:
            if not (isinstance(name, str) and is_queue(name)):
                raise ConfigurationError(f"dramatiq: queue: {name!r} is no name that Dramatiq takes for a queue.")
        # Given, it stays; found, it may be another one later: an application may set its broker twice.
        self._is_given = isinstance(broker, dramatiq.Broker)
        if isinstance(broker, dramatiq.Broker):
            self._take(broker)
        elif (found := self._found()) is not None:
            self._take(found)
        else:
            waiting.add(self)
            attach_to_those_to_come()

    # -- which broker

    @property
    def broker(self) -> Broker:
        """The broker, with what we need beside it; if it was given by name, it is imported now.

        Raises ConfigurationError where the application has set none.
        """
        if self._is_given and self._broker is not None:
            return self._broker
        found = self._found() or (find(self._name) if self._name is not None else None)
        if found is None:
            raise ConfigurationError(
                "dramatiq: the application has set no broker. Call dramatiq.set_broker(...) before the first job, or "
                'give one here: configure("dramatiq", broker="shop.broker:broker"), or url="redis://localhost:6379/0".'
            )
        return self._take(found)

    def _found(self) -> dramatiq.Broker | None:
        return global_broker() if self._name is None else find_loaded(self._name)

    def _take(self, broker: dramatiq.Broker) -> Broker:
        if self._broker is None or self._broker.dramatiq is not broker:
            self._broker = Broker(broker, self._patience, self._store)
            attach(broker, self.queues, self._store)
            waiting.discard(self)
        return self._broker

    def offer(self) -> None:
        """A worker starts: take the broker now, which has been set by now if it ever will."""
        with suppress(ConfigurationError):
            _ = self.broker

    @property
    def features(self) -> frozenset[Feature]:
        """What the broker keeps; all that any broker may keep, while there is none yet."""
        return features_of(self.broker) if self._is_there() else EVERYTHING

    def _is_there(self) -> bool:
        return self._is_given or self._found() is not None

    @property
    def needs(self) -> dict[Feature, str]:
        if Feature.PRIORITY not in self.features:
            return {}
        threads = self._threads or THREADS
        return {Feature.PRIORITY: f"env dramatiq_queue_prefetch={threads} dramatiq --threads {threads}"}

    @property
    def guarantees(self) -> Guarantees:
        return guarantees_of(self.broker)

    @property
    def priority_levels(self) -> int:
        """RabbitMQ tells all of 0 to 9 apart, in queues that were made for it."""
        return 10 if Feature.PRIORITY in self.features else 1

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse what this broker does not keep, and queues that Dramatiq does not take."""
        refuse_unkept(call, "dramatiq", features_of(self.broker))
        queue = call.options.queue
        if queue is not None and not is_queue(queue):
            raise InvalidOption(
                "queue",
                f"{queue!r}: Dramatiq's queues begin with a letter or an underscore, then come letters, digits, dots, "
                f"dashes and underscores, {LONGEST_QUEUE} in all; what ends in .DQ or .XQ is made by Dramatiq",
            )

    def enqueue(self, call: Call) -> str:
        return self.enqueue_many([call])[0]

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """Two round trips for up to a thousand calls: their records, then the messages.

        What has gone when an error comes is not taken back.
        """
        broker = self.broker
        what = calls[0].name if len(calls) == 1 else f"{len(calls)} jobs"
        ids = [call.id for call in calls]
        if broker.records is not None:
            try:
                broker.records.put(calls)
            except broker.down as error:
                raise EnqueueError(f"Dramatiq could not take {what}: {type(error).__name__}: {error}") from error
        try:
            broker.send([self._message(call) for call in calls])
        except NotSent as failed:
            taken = {*failed.sent, *failed.unknown}
            unsent = [id for id in ids if id not in taken]
            self._drop(broker, unsent)
            if failed.sent or (failed.unknown and unsent):
                raise BatchError(failed.sent, unsent, failed.unknown) from failed.cause
            raise EnqueueError(
                f"Dramatiq could not take {what}: {failed}", uncertain=bool(failed.unknown)
            ) from failed.cause
        except BaseException:
            self._drop(broker, ids)
            raise
        return ids

    @staticmethod
    def _drop(broker: Broker, ids: Sequence[str]) -> None:
        if broker.records is not None and ids:
            with suppress(*broker.down):  # nobody may be there; then the records lapse by themselves
                broker.records.drop(ids)

    def _message(self, call: Call) -> Message:
        options, broker = call.options, self.broker
        priority = 5 if options.priority is None else options.priority
        return Message(
            id=call.id,
            wire=call.tree,
            # An actor of the application's may have a method's name; then our message needs another one.
            name=f"backgrounded.{call.name}" if call.name in broker.dramatiq.get_declared_actors() else call.name,
            queue=options.queue or self.default_queue,
            priority=priority if has_priorities(broker) else None,
            handler=call.handler,
            due=call.due,
            timeout=options.timeout,
            result_ttl=options.result_ttl,
        )

    # -- asking

    @property
    def _records(self) -> Records:
        records = self.broker.records
        if records is None:
            raise ConfigurationError(
                'dramatiq: no Redis is at hand (store="redis://..."), so nothing is known of its jobs.'
            )
        return records

    def state(self, id: str) -> State:
        return self._records.state(id)

    def result(self, id: str, timeout: float | None) -> Any:
        return self._records.result(id, timeout)

    def cancel(self, id: str) -> bool:
        """The message stays where it is, and whoever takes it does not run it."""
        return self._records.cancel(id)

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        return iter(self.broker.kept())

    def replay(self, id: str) -> None:
        broker = self.broker
        with broker.way.take(id) as message:
            if broker.records is not None:
                broker.records.again(id, None)
            broker.send([replace(message, due=None, attempt=1)])

    def forget(self, id: str) -> None:
        broker = self.broker
        with broker.way.take(id):
            if broker.records is not None:
                broker.records.drop([id])

    def examine(self) -> Iterator[Finding]:
        """Whether the broker can be reached, and the store beside it, and a Redis keeps what it acknowledged."""
        yield from self.broker.examine()

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """Dramatiq's own worker for these queues, with the settings that keep what is declared.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        """
        settings = worker_settings()
        if not self.borrowed:
            settings["BACKGROUNDED_URL"] = f"dramatiq+{self.url}"
            warn_without_app()
        settings["dramatiq_delay_queue_prefetch"] = str(DELAYED)
        if self._runs_in_order():
            settings["dramatiq_queue_prefetch"] = str(self._threads or THREADS)
        command = ["dramatiq", *self._modules()]
        if self._processes is not None:
            command += ["--processes", str(self._processes)]
        command += ["--threads", str(self._threads or THREADS)]
        command += ["-Q", *(list(queues) or self.queues)]
        return with_settings(command, settings)

    def _runs_in_order(self) -> bool:
        """Whether a worker has to take a message only when it can run it: what it has taken is out of order already.

        For priorities; and before 2.0 Dramatiq runs what a worker has taken in no order at all.
        """
        return Feature.PRIORITY in self.features or dramatiq.__version__.startswith("1.")

    def _modules(self) -> list[str]:
        """The modules that the worker imports: the application's, whose broker it is, and ours."""
        if self._name is not None:
            return [self._name, "backgrounded_dramatiq.worker"]
        name = module_of(self.broker.dramatiq) if self.borrowed else "backgrounded_dramatiq.worker"
        if name is None:
            raise ConfigurationError(
                "dramatiq: a worker finds a broker by its name, or by the module in BACKGROUNDED_APP that sets it: "
                'configure("dramatiq", broker="shop.broker:broker").'
            )
        return [name]

    def close(self) -> None:
        """Close our connections; the next use makes new ones."""
        if self._broker is not None:
            self._broker.close()

    def __repr__(self) -> str:
        broker = self._broker and type(self._broker.dramatiq).__name__
        return f"<DramatiqHandler of {self._name or broker or 'a broker that is not set yet'}>"


class NestedHandler(DramatiqHandler):
    """Hands what a job calls to the broker that the job came from, over the connections and with the patience that its
    worker has anyway.

    It attaches nothing: what a handler of the application's has attached stays as it is.
    """

    def __init__(self, broker: Broker) -> None:
        self._shared = broker
        super().__init__(broker=broker.dramatiq)

    def _take(self, broker: dramatiq.Broker) -> Broker:
        self._broker = self._shared
        return self._shared
