"""Which broker is it, what does it keep, and what does it promise?"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final
from urllib.parse import urlsplit

import dramatiq
import dramatiq.broker
from backgrounded import ConfigurationError
from backgrounded.handler import Feature, Guarantees, check_seconds, put_into_url, take_from_url
from backgrounded.records import UNLIMITED

from ._broker import Broker, is_a

HEARTBEAT: Final = 15.0
"""Seconds without a sign of life after which a worker of a broker of ours counts as dead, on Redis."""
MAINTENANCE: Final = 500_000
"""Of a million commands of a worker, how many look for dead ones. A worker without work sends one each second."""
NAMESPACE: Final = "backgrounded"
"""What the keys of a broker of ours begin with: workers of others, in the same Redis, do not know our names."""
PRIORITIES: Final = 9
THREADS: Final = 8
"""What Dramatiq starts in each process, unless told otherwise."""
DELAYED: Final = 65_535
"""Delayed messages that a worker may hold, the most that AMQP can say: what is due soon must not wait behind others."""

ALWAYS: Final = frozenset(
    {
        Feature.QUEUES,
        Feature.DELAY,
        Feature.RETRY,
        Feature.RETRY_WAIT,
        Feature.TIMEOUT,
        Feature.EXPIRES,
        Feature.BULK,
        Feature.WORKER,
    }
)
WITH_RECORDS: Final = frozenset({Feature.UNIQUE, Feature.RESULTS, Feature.RESULT_TTL, Feature.STATE, Feature.CANCEL})
"""What needs a Redis."""
EVERYTHING: Final = ALWAYS | WITH_RECORDS | {Feature.PRIORITY, Feature.KEPT}


def features_of(broker: Broker) -> frozenset[Feature]:
    found = ALWAYS
    if broker.records is not None:
        found |= WITH_RECORDS
    if broker.way.keeps:
        found |= {Feature.KEPT}
    if has_priorities(broker):
        found |= {Feature.PRIORITY}
    return found


def has_priorities(broker: Broker) -> bool:
    """Whether its queues are made with all of our priorities. Redis has none that holds for more than one worker."""
    return broker.kind == "amqp" and (getattr(broker.dramatiq, "max_priority", None) or 0) >= PRIORITIES


LONGEST_QUEUE: Final = 252
"""Of the 255 bytes that RabbitMQ takes, three are for Dramatiq's .DQ and .XQ."""
_QUEUE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")


def is_queue(name: str) -> bool:
    """Whether Dramatiq takes the name of a queue, and it is not one of those that Dramatiq makes of such names."""
    is_theirs = name.startswith("__") or name.endswith((".DQ", ".XQ", ".msgs"))
    return bool(_QUEUE.fullmatch(name)) and len(name) <= LONGEST_QUEUE and not is_theirs


# -- which broker


@dataclass(frozen=True)
class Place:
    """Where a broker of our own is, and what is its own: all that a worker has to know."""

    broker: str
    store: str | None = None
    heartbeat_timeout: float | None = None
    queue: str = "default"

    @classmethod
    def of(cls, url: str, **given: Any) -> Place:
        """What a URL says, such as amqp://host//?store=redis://host/0, and what is given beside it."""
        if not url.startswith(("redis://", "rediss://", "amqp://", "amqps://")):
            raise ConfigurationError(
                "dramatiq: url must be redis://host:port/db or amqp://user:password@host:port/vhost, got the scheme "
                f"{url.partition(':')[0]!r}. For any other broker give one that you configured: broker='shop:broker'."
            )
        broker, words = take_from_url(url, _IN_URL)
        words |= {word: value for word, value in given.items() if value is not None}
        if "heartbeat_timeout" in words:
            words["heartbeat_timeout"] = check_seconds("dramatiq", "heartbeat_timeout", words["heartbeat_timeout"])
            if not url.startswith("redis"):
                raise ConfigurationError("dramatiq: heartbeat_timeout is for Redis: RabbitMQ hears at once.")
        return cls(broker, **words)

    @property
    def url(self) -> str:
        """All of it as one URL."""
        words = [(word, getattr(self, word)) for word in _IN_URL if getattr(self, word) != getattr(Place, word)]
        return put_into_url(self.broker, words)

    def make(self) -> dramatiq.Broker:
        """A broker with the settings that make the promises true. Nothing is connected."""
        try:
            if self.broker.startswith("redis"):
                return self._redis()
            return self._rabbit()
        except ImportError as error:
            extra = "redis" if self.broker.startswith("redis") else "rabbitmq"
            raise ConfigurationError(f'dramatiq: pip install "backgrounded-dramatiq[{extra}]": {error}') from error
        except ValueError as error:
            raise ConfigurationError(f"dramatiq: url: {error}. Words of ours are {', '.join(_IN_URL)}.") from error

    def _redis(self) -> dramatiq.Broker:
        from ._own import OwnRedisBroker
        from ._redis import from_url

        from_url(self.broker, 1.0)  # raises ValueError where redis-py would stumble over it later
        heartbeat = int(1000 * (self.heartbeat_timeout or HEARTBEAT))
        return OwnRedisBroker(
            url=self.broker,
            namespace=NAMESPACE,
            heartbeat_timeout=heartbeat,
            maintenance_chance=MAINTENANCE,
            max_connections=UNLIMITED,
        )

    def _rabbit(self) -> dramatiq.Broker:
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        url = urlsplit(self.broker)
        if url.path == "//":  # Celery's word for the virtual host "/", which pika takes for one without a name
            url = url._replace(path="")
        return RabbitmqBroker(url=url.geturl(), confirm_delivery=True, max_priority=PRIORITIES)


_IN_URL: Final = ("store", "heartbeat_timeout", "queue")


def find(name: str) -> dramatiq.Broker:
    """The broker of a name such as "shop.broker:broker", as `dramatiq` finds it. Raises ConfigurationError."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        found = reduce(getattr, filter(None, attribute.split(".")), found)
    except Exception as error:
        raise ConfigurationError(
            f"dramatiq: broker={name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, dramatiq.Broker):
        raise ConfigurationError(f"dramatiq: broker={name!r} is no broker of Dramatiq's.")
    return found


def find_loaded(name: str) -> dramatiq.Broker | None:
    """The same, if it is there already: nothing is imported."""
    module, _, attribute = name.partition(":")
    found: Any = sys.modules.get(module)
    for word in attribute.split("."):
        found = getattr(found, word, None)
    return found if isinstance(found, dramatiq.Broker) else None


def global_broker() -> dramatiq.Broker | None:
    """The broker that the application has set. Dramatiq's `get_broker` would make one for RabbitMQ, were there none."""
    return dramatiq.broker.global_broker


def module_of(broker: dramatiq.Broker) -> str | None:
    """What a worker imports to have this broker: ours, which imports those in BACKGROUNDED_APP, one of which sets it.

    None, if it is not known that one does.
    """
    listed = [name.strip() for name in os.environ.get("BACKGROUNDED_APP", "").split(",") if name.strip()]
    return "backgrounded_dramatiq.worker" if listed and broker is global_broker() else None


# -- what is promised


def guarantees_of(broker: Broker) -> Guarantees:
    """What is promised with a broker's settings."""
    notes = tuple(_notes(broker))
    if broker.kind == "redis":
        return Guarantees("at-least-once", recovery_s=recovery_of(broker.dramatiq), notes=notes)
    if broker.kind == "amqp" and getattr(broker.dramatiq, "confirm_delivery", False):
        return Guarantees("at-least-once", recovery_s=10.0, notes=notes)
    return Guarantees(notes=notes)


def recovery_of(broker: Any) -> float | None:
    """Seconds after which a job of a dead worker runs again, on Redis, 999 times of 1000. None: more than ten minutes.

    A worker of its queue finds it after the heartbeat timeout, in the first command that does maintenance: it sends one
    in each second.
    """
    chance = min(1.0, broker.maintenance_chance / 1_000_000)
    looks = 1.0 if chance >= 1 else math.log(0.001) / math.log1p(-chance) if chance > 0 else math.inf
    seconds = broker.heartbeat_timeout / 1000 + looks
    return float(math.ceil(seconds)) if seconds <= 600 else None


def _notes(broker: Broker) -> Iterator[str]:
    engine: Any = broker.dramatiq
    if broker.kind not in ("redis", "amqp"):
        yield f"A {type(engine).__name__} is used as it is, and nothing is promised: it keeps nothing, and may hang."
        return
    yield f"A hand-over has {broker.patience:g} s for each answer of the broker, and is never sent again by itself."
    yield "The master process of a worker ends when one of its processes dies: let a supervisor start it again."
    yield "A timeout stops Python code, not a single call into C that does not return."
    if broker.kind == "redis":
        yield from _notes_on_redis(broker, engine)
    else:
        yield "A job whose worker is killed runs again as soon as RabbitMQ misses its connection."
        yield "A job that runs for longer than RabbitMQ's consumer_timeout (30 minutes) is begun a second time."
        if not engine.confirm_delivery:
            yield (
                "Make the broker with confirm_delivery=True: when a delay is over, Dramatiq sends the job on, and "
                "without confirms a RabbitMQ that dies then loses it."
            )
        if not has_priorities(broker):
            yield f"Make the broker with max_priority={PRIORITIES} for priorities; its queues have to be new."
    if broker.records is None:
        yield "Without a Redis (store='redis://...') the deaths of workers are not counted."


def _notes_on_redis(broker: Broker, engine: Any) -> Iterator[str]:
    seconds = engine.heartbeat_timeout / 1000
    yield "What Redis acknowledged survives its death only with appendonly."
    yield (
        f"A method that holds the interpreter for {seconds:g} s in one call (heartbeat_timeout) is begun a second "
        "time, and so is any job while clocks differ by that much."
    )
    if recovery_of(engine) is None:
        yield (
            f"maintenance_chance={engine.maintenance_chance}: so many of a million commands of a worker look for jobs "
            "of dead ones, so these wait for many minutes. Make the broker with "
            f"maintenance_chance={MAINTENANCE}, heartbeat_timeout={int(1000 * HEARTBEAT)}."
        )
    if not is_a(engine, "backgrounded_dramatiq._own", "OwnRedisBroker"):
        yield (
            "When the connection of a worker fails for a moment, Dramatiq's RedisBroker forgets the delayed jobs that "
            "the worker holds and those that it has fetched: they run after it is restarted. A broker of ours (url=) "
            "hands them back."
        )
    from ._redis import is_copied

    if not is_copied(engine.client):
        yield "Its connections are used as they are: a call may hang for as long as their own timeouts allow."


def check_count(name: str, count: Any) -> int | None:
    if count is None or (isinstance(count, int) and not isinstance(count, bool) and count > 0):
        return count
    raise ConfigurationError(f"dramatiq: {name}: must be a number above 0, got {count!r}.")
