"""How do our words become Celery's?

One job of ours is one message for the task `backgrounded.perform`, with our id, shown under the method's name. What
Celery does not remember of it stands in a record of ours in the app's result backend.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Final

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
from backgrounded.records import Records, examine_redis
from celery import Celery
from redis.exceptions import RedisError

from ._broker import FAILURES, Broker, Message, never_sent
from ._settings import (
    EVERYTHING,
    Place,
    broker_priority,
    features_of,
    find,
    guarantees_of,
    is_loaded,
    name_of,
    why_no_queue,
)
from .task import TASK

_NEEDS: Final = {
    Feature.PRIORITY: "celery worker --prefetch-multiplier 1",
    Feature.TIMEOUT: "celery worker --pool prefork",
}


class CeleryHandler:
    """Hands calls to Celery.

    `app` is the application's Celery app, or its name as `celery -A` takes it, such as "shop.celery:app": a name is
    looked up at the first use. `url` makes an app of its own, on "redis://localhost:6379/0" or on
    "amqp://user:password@localhost:5672/shop", or is such a name.

    An app made here has its results in `result_backend`, "redis://localhost:6379/1", which on Redis is the broker if
    nothing is said. There a job of a dead worker is handed over again after `visibility_timeout` seconds (3600). Both
    may stand in the URL, after a `?`. `queue` is the default queue: of a borrowed app its own one, else "default".
    `enqueue_timeout` (2) bounds how many seconds the broker and the result backend have for each answer.

    Raises ConfigurationError for what cannot work; nothing is connected before the first use.
    """

    protocol: ClassVar[int] = 1

    def __init__(
        self,
        url: str | None = None,
        *,
        app: Celery | str | None = None,
        queue: str | None = None,
        result_backend: str | None = None,
        visibility_timeout: float | None = None,
        enqueue_timeout: float = ENQUEUE_TIMEOUT,
    ) -> None:
        if url is not None and app is not None:
            raise ConfigurationError("celery: give one of url and app, each says which app it is.")
        if queue is not None and (why := why_no_queue(queue)) is not None:
            raise ConfigurationError(f"celery: queue: {why}, got {queue!r}.")
        if app is not None and not isinstance(app, (str, Celery)):
            raise ConfigurationError(f"celery: app must be a Celery app or its name, got {type(app).__name__}.")
        if app is None and url is not None and "://" not in url:
            app = url
        self.borrowed = app is not None
        if self.borrowed and (result_backend or visibility_timeout):
            raise ConfigurationError("celery: set result_backend and visibility_timeout in the app, which is yours.")
        self._queue = queue
        self._patience = check_seconds("celery", "enqueue_timeout", enqueue_timeout)
        self._name = app if isinstance(app, str) else None
        self._broker: Broker | None = None
        self.url: str | None = None
        if app is None:
            place = Place.of(
                "redis://localhost:6379/0" if url is None else url,
                result_backend=result_backend,
                visibility_timeout=visibility_timeout,
                queue=queue,
            )
            self.url, app = place.url, place.app()
        if isinstance(app, Celery):
            self._broker = Broker(app, self._patience)

    # -- which app

    @property
    def app(self) -> Celery:
        """The Celery app; where it was given by name it is imported now. Raises ConfigurationError."""
        return self.broker.app

    @property
    def broker(self) -> Broker:
        if self._broker is None:
            self._broker = Broker(find(str(self._name)), self._patience)
        return self._broker

    @property
    def features(self) -> frozenset[Feature]:
        """What the app keeps; all that any app may keep, while the one that was named is not imported yet."""
        return features_of(self.broker) if self._is_there() else EVERYTHING

    def _is_there(self) -> bool:
        return self._broker is not None or is_loaded(str(self._name))

    @property
    def needs(self) -> dict[Feature, str]:
        return {feature: need for feature, need in _NEEDS.items() if feature in self.features}

    @property
    def guarantees(self) -> Guarantees:
        return guarantees_of(self.broker)

    @property
    def priority_levels(self) -> int:
        """Of 0 to 9, kombu on Redis tells apart 9-7, 6-4, 3-1 and 0; RabbitMQ all."""
        if Feature.PRIORITY not in self.features:
            return 1
        return 10 if self._is_there() and self.broker.transport == "amqp" else 4

    @property
    def default_queue(self) -> str:
        return self._queue or str(self.app.conf.task_default_queue)

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse what this app does not keep, and limits within which Redis would run the job twice."""
        refuse_unkept(call, "celery", features_of(self.broker))
        queue = call.options.queue or self._queue
        if queue is not None and (why := why_no_queue(queue) or self._why_unknown(queue)) is not None:
            raise InvalidOption("queue", why)
        timeout, visibility = call.options.timeout, self.broker.visibility_timeout
        if timeout is not None and self.broker.transport == "redis" and timeout >= visibility:
            raise InvalidOption(
                "timeout",
                f"{timeout:g} s: Redis hands a job that runs for {visibility:g} s to a second worker. Set "
                "broker_transport_options = {'visibility_timeout': ...} to more than that, in the worker too",
            )

    def _why_unknown(self, queue: str) -> str | None:
        if self.broker.knows_queue(queue):
            return None
        return f"{queue!r} is none of the app's task_queues, and task_create_missing_queues is off"

    def enqueue(self, call: Call) -> str:
        return self.enqueue_many([call])[0]

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """Two round trips for up to a thousand calls: their records, then, with kombu 5.7 on Redis, the messages.

        Elsewhere one by one. What has gone when an error comes is not taken back, and not known.
        """
        if self.app.conf.task_always_eager:
            return [self._perform_eagerly(call) for call in calls]
        records = self.broker.records
        what = calls[0].name if len(calls) == 1 else f"{len(calls)} jobs"
        try:
            if records is not None:
                records.put(calls)
        except FAILURES as error:
            raise EnqueueError(f"Celery could not take {what}: {type(error).__name__}: {error}") from error
        sent: list[str] = []
        try:
            self.broker.send([self._message(call) for call in calls], sent)
        except FAILURES as error:
            ids = [call.id for call in calls]
            uncertain = not never_sent(error)
            unsent = ids[len(sent) + uncertain :] if sent or not uncertain else []
            self._drop(records, unsent)
            if sent:
                raise BatchError(sent, unsent, ids[len(sent) : len(sent) + uncertain]) from error
            raise EnqueueError(
                f"Celery could not take {what}: {type(error).__name__}: {error}", uncertain=uncertain
            ) from error
        except BaseException:
            self._drop(records, [call.id for call in calls])
            raise
        return [call.id for call in calls]

    @staticmethod
    def _drop(records: Records | None, ids: Sequence[str]) -> None:
        if records is not None and ids:
            with suppress(RedisError, OSError):  # nobody may be there; then the records lapse by themselves
                records.drop(ids)

    def _message(self, call: Call) -> Message:
        options = call.options
        return Message(
            id=call.id,
            wire=call.tree,
            name=call.name,
            queue=options.queue or self._queue,  # None: as the app's own routes say
            priority=broker_priority(self.broker, options.priority),
            handler=call.handler,
            due=call.due,
            timeout=options.timeout,
            result_ttl=options.result_ttl,
        )

    def _perform_eagerly(self, call: Call) -> str:
        """Run the call now, as the app's task_always_eager wants it; its error comes if task_eager_propagates."""
        task, propagates = self.app.tasks[TASK], self.app.conf.task_eager_propagates
        task.apply((call.tree,), self._message(call).beside(), task_id=call.id, throw=propagates, shadow=call.name)
        return call.id

    # -- asking

    @property
    def _records(self) -> Records:
        records = self.broker.records
        if records is None:
            raise ConfigurationError("celery: the app has no Redis result backend, so nothing is known of its jobs.")
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
        with self.broker.take(id) as message:
            if self.broker.records is not None:
                self.broker.records.again(id, None)
            self.broker.send([replace(message, due=None, attempt=1)])

    def forget(self, id: str) -> None:
        with self.broker.take(id):
            if self.broker.records is not None:
                self.broker.records.drop([id])

    def examine(self) -> Iterator[Finding]:
        """Whether the broker can be reached, and the result backend if it is apart, and a Redis keeps what it
        acknowledged."""
        records, server = self.broker.records, None
        with self.broker.channel() as channel:
            if self.broker.transport == "redis":
                server = _server_of(channel.client)
                yield from examine_redis(channel.client)
        if records is not None and _server_of(records.client) != server:
            yield from examine_redis(records.client, "records of jobs")

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """Celery's own worker for these queues, with the options that keep what is declared, and a name of its own.

        On RabbitMQ a second one of the same name ends at once with ResourceLocked (Kombu 5.7), and by default all of a
        machine have the same. Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import
        before the first job.
        """
        settings = worker_settings()
        if not self.borrowed:
            settings["BACKGROUNDED_URL"] = f"celery+{self.url}"
            warn_without_app()
        name = (self._name or name_of(self.app)) if self.borrowed else "backgrounded_celery.worker"
        command = ["celery", "-A", name, "worker", "--pool", "prefork", "--prefetch-multiplier", "1"]
        command += ["--hostname", f"backgrounded-{uuid.uuid4().hex[:8]}@%h"]
        command += ["-Q", ",".join(list(queues) or [self.default_queue])]
        return with_settings(command, settings)

    def close(self) -> None:
        """Close the connections to the broker and the result backend; the next use makes new ones."""
        if self._broker is not None:
            self._broker.close()

    def __repr__(self) -> str:
        return f"<CeleryHandler of {self._name or (self._broker and self._broker.app.main)!r}>"


def _server_of(client: Any) -> tuple[Any, ...]:
    """Where a client of redis-py is connected."""
    words = client.connection_pool.connection_kwargs
    return tuple(words.get(word) for word in ("host", "port", "path"))
