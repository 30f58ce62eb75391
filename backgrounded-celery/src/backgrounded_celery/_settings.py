"""Which app is it, what does it keep, and what does it promise?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from backgrounded import ConfigurationError
from backgrounded.handler import Feature, Guarantees, check_seconds, put_into_url, take_from_url
from celery import Celery
from celery.app.annotations import prepare, resolve_all
from celery.app.utils import find_app
from kombu.transport.redis import Channel as RedisChannel

from ._broker import Broker
from .task import TASK

VISIBILITY: Final = 3_600.0
"""Seconds after which Redis hands a message on that was not acknowledged: kombu's own default."""

SWEEP: Final = 10
"""Seconds from one look of a worker for such messages to the next, on an app of our own. Before kombu 5.7 it is 100."""

PRIORITIES: Final = 9
"""The highest priority that a queue of RabbitMQ has to be declared with, for all of ours."""

ALWAYS: Final = frozenset(
    {
        Feature.QUEUES,
        Feature.DELAY,
        Feature.RETRY,
        Feature.RETRY_WAIT,
        Feature.TIMEOUT,
        Feature.EXPIRES,
        Feature.BULK,
        Feature.KEPT,
        Feature.WORKER,
    }
)
WITH_RECORDS: Final = frozenset({Feature.UNIQUE, Feature.RESULTS, Feature.RESULT_TTL, Feature.STATE, Feature.CANCEL})
"""What needs a Redis result backend."""
EVERYTHING: Final = ALWAYS | WITH_RECORDS | {Feature.PRIORITY}
EAGER: Final = frozenset({Feature.QUEUES, Feature.PRIORITY, Feature.RETRY, Feature.RESULT_TTL})
"""What a job can have that runs inside of its call."""


def features_of(broker: Broker) -> frozenset[Feature]:
    if broker.app.conf.task_always_eager:
        return EAGER
    found = ALWAYS
    if broker.records is not None:
        found |= WITH_RECORDS
    if _has_priorities(broker):
        found |= {Feature.PRIORITY}
    return found


def _has_priorities(broker: Broker) -> bool:
    """On RabbitMQ only queues that were declared with a highest priority have any, and none can be changed."""
    return broker.transport == "redis" or (
        broker.transport == "amqp" and (broker.app.conf.task_queue_max_priority or 0) >= PRIORITIES
    )


def broker_priority(broker: Broker, priority: int | None) -> int | None:
    """Ours, higher first and 5 where none is given, as the broker counts it.

    On Redis 0 is first, also of what has no priority; on RabbitMQ it is last, also of what has none.
    """
    ours = 5 if priority is None else priority
    if not _has_priorities(broker):
        return None
    return 9 - ours if broker.transport == "redis" else ours


# -- which app


@dataclass(frozen=True)
class Place:
    """Where an app of our own has its broker and its results, and what is its own: all that a worker has to know."""

    broker: str
    result_backend: str | None = None
    visibility_timeout: float | None = None
    queue: str = "default"

    @classmethod
    def of(cls, url: str, **given: Any) -> Place:
        """What a URL says, such as redis://host/0?visibility_timeout=600, and what is given beside it."""
        if not url.startswith(("redis://", "rediss://", "amqp://", "amqps://")):
            raise ConfigurationError(
                "celery: url must be redis://host:port/db or amqp://user:password@host:port/vhost, got the scheme "
                f"{url.partition(':')[0]!r}. "
                "For any other broker give an app that you configured: app='shop.celery:app'."
            )
        broker, words = take_from_url(url, _IN_URL)
        words |= {word: value for word, value in given.items() if value is not None}
        if "visibility_timeout" in words:
            words["visibility_timeout"] = check_seconds("celery", "visibility_timeout", words["visibility_timeout"])
            if not url.startswith("redis"):
                raise ConfigurationError("celery: visibility_timeout is for Redis: RabbitMQ notices at once.")
        return cls(broker, **words)

    @property
    def url(self) -> str:
        """All of it as one URL."""
        words = [(word, getattr(self, word)) for word in _IN_URL if getattr(self, word) != getattr(Place, word)]
        return put_into_url(self.broker, words)

    def app(self) -> Celery:
        """An app with the settings that make the promises true."""
        on_redis = self.broker.startswith("redis")
        backend = self.result_backend or (self.broker if on_redis else None)
        app = Celery("backgrounded", broker=self.broker, backend=backend, set_as_current=False)
        app.conf.update(
            accept_content=["json"],
            broker_connection_retry_on_startup=True,
            result_serializer="json",
            task_default_queue=self.queue,
            task_serializer="json",
            worker_prefetch_multiplier=1,
        )
        if on_redis:
            app.conf.broker_transport_options = {
                "visibility_timeout": self.visibility_timeout or VISIBILITY,
                "unacked_restore_interval": SWEEP,
                "unacked_restore_throttle": 1,
            }
        else:  # without confirm_publish: in a worker of greenlets Celery's own events would wait for it for ever
            app.conf.task_queue_max_priority = PRIORITIES
        try:
            app.connection_for_write()  # nothing is connected
        except TypeError as error:
            raise ConfigurationError(
                f"celery: url: a word of it is none of kombu's, nor of {', '.join(_IN_URL)}: {error}"
            ) from error
        return app


LONGEST_QUEUE: Final = 255
_IN_URL: Final = ("result_backend", "visibility_timeout", "queue")


def find(name: str) -> Celery:
    """The app of a name such as "shop.celery:app", as `celery -A` finds it. Raises ConfigurationError."""
    try:
        app = find_app(name)
    except Exception as error:
        raise ConfigurationError(f"celery: app={name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(app, Celery):
        raise ConfigurationError(f"celery: app={name!r} is no Celery app.")
    return app


def is_loaded(name: str) -> bool:
    """Whether the module of an app's name has been imported to its end. Unknown, so no, of a name without an attribute:
    `celery -A shop` may mean shop.celery."""
    path, colon, _ = name.partition(":")
    module = sys.modules.get(path) if colon else None
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def name_of(app: Celery) -> str:
    """The name under which `celery -A` finds an app. Raises ConfigurationError."""
    for name in filter(None, [app.main]):
        try:
            if find(name) is app:
                return str(name)
        except ConfigurationError:
            continue
    raise ConfigurationError('celery: a worker finds an app by name: configure("celery", app="shop.celery:app").')


def why_no_queue(name: object) -> str | None:
    """Why this cannot be the name of a queue; None: it can."""
    if not isinstance(name, str) or not name:
        return "must be a name"
    if "," in name:
        return "must hold no comma: no worker could be told to serve it"
    if len(name.encode()) > LONGEST_QUEUE:
        return f"must not be longer than {LONGEST_QUEUE} bytes, which RabbitMQ takes"
    return None


# -- what is promised


def guarantees_of(broker: Broker) -> Guarantees:
    """What is promised with an app's settings. On Redis "at-least-once" is not, on RabbitMQ it is."""
    if broker.app.conf.task_always_eager:
        return Guarantees(notes=("task_always_eager: a job runs inside of its call, and nothing is written down.",))
    notes, is_safe = tuple(_notes(broker)), _what_loses(broker.app) is None
    if broker.transport == "redis":
        return Guarantees(notes=notes)
    if broker.transport == "amqp":
        return Guarantees("at-least-once", recovery_s=10.0, notes=notes) if is_safe else Guarantees(notes=notes)
    return Guarantees(notes=(f"The broker ({broker.transport}) is not one that these promises were tested on.", *notes))


def _notes(broker: Broker) -> Iterator[str]:
    conf, visibility = broker.app.conf, broker.visibility_timeout
    yield f"A hand-over has {broker.patience:g} s for each answer of the broker, and is never sent again by itself."
    if broker.transport == "redis":
        yield (
            "A worker that is killed in the moment between taking a message from Redis and noting that it has it loses "
            "it: of 5 workers frozen and killed at an empty queue, 4 did."
        )
        yield (
            f"A job whose worker is killed runs again after the visibility timeout ({visibility:g} s) and up to "
            f"{_sweep_of(conf):g} s; "
            "at once where only the pool's process died."
        )
        yield f"A job that runs for longer than the visibility timeout ({visibility:g} s) is begun a second time."
        yield "What Redis acknowledged survives its death only with appendonly."
    if broker.transport == "amqp":
        yield "A job whose worker is killed runs again as soon as RabbitMQ misses its connection."
        yield "A job that runs for longer than RabbitMQ's consumer_timeout (30 minutes) is begun a second time."
        yield "Each hand-over is confirmed by the broker; a queue that is not durable is lost with it all the same."
    if broker.records is None:
        yield "Without a Redis result backend (result_backend='redis://...') the deaths of workers are not counted."
    if conf.worker_prefetch_multiplier != 1:
        yield "Set worker_prefetch_multiplier = 1: what a worker has prefetched waits for it, however urgent or late."
    if conf.task_time_limit or conf.task_soft_time_limit:
        yield "task_time_limit and task_soft_time_limit of the app stop jobs of ours, too."
    if (word := _what_loses(broker.app)) is not None:
        yield f"task_annotations of the app set {word}=False: a job is lost with its worker."


def _sweep_of(conf: Any) -> float:
    """Seconds from one look of a worker's for messages of the dead to the next."""
    if not hasattr(RedisChannel, "unacked_restore_interval"):
        return 100.0
    said = conf.broker_transport_options or {}
    interval = said.get("unacked_restore_interval", RedisChannel.unacked_restore_interval)
    return float(interval * said.get("unacked_restore_throttle", RedisChannel.unacked_restore_throttle))


def _what_loses(app: Celery) -> str | None:
    """Which word the app's annotations say about our task, so that a job is lost with its worker; None: none."""
    said = dict.fromkeys(("acks_late", "reject_on_worker_lost"), True)
    task = SimpleNamespace(name=TASK, **said)  # the task itself is made when the app is complete, not for a question
    for annotation in resolve_all(prepare(app.conf.task_annotations), task):
        said |= {word: annotation[word] for word in said if word in annotation}
    return next((word for word, holds in said.items() if not holds), None)
