"""How does a worker that never heard of us find our jobs, and the queues in which they are?

A middleware declares the queues before the worker starts, and gives the broker an actor for each name that it does not
know: the name of a method. What is no job of ours under such a name goes where Dramatiq puts what it does not know.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final
from weakref import WeakSet

import dramatiq
import dramatiq.middleware
from backgrounded.handler import WORKER_PATIENCE, printable
from dramatiq.errors import ActorNotFound

from ._broker import Broker
from ._message import hide, is_ours, message_from
from ._settings import has_priorities

logger = logging.getLogger("backgrounded")

NAMES: Final = 1_024
"""Names for which an actor is remembered. Whoever can write to the broker chooses names: more cost time, not memory."""
LONGEST_NAME: Final = 1_024

_NOT_OURS_TO_SAY: Final = (
    *("max_age", "max_retries", "min_backoff", "max_backoff", "retry_when", "throws", "on_retry_exhausted"),
    *("notify_shutdown", "on_failure", "on_success", "pipe_ignore", "pipe_target", "result_ttl", "store_results"),
    *("time_limit", "group_completion_uuid", "group_completion_callbacks"),
)
"""Dramatiq's words in a message, which no message of ours has: they would change how often and how long it runs."""


waiting: WeakSet[Any] = WeakSet()
"""The handlers whose application had not set its broker yet; each is told when a worker starts."""


class Backgrounded(dramatiq.Middleware):
    """Lets the workers of a broker run jobs of `backgrounded`.

    `configure("dramatiq", ...)` adds it to the broker by itself. It is added by hand where a broker is made with a list
    of its own before that: `broker.add_middleware(Backgrounded())`.
    """

    def __init__(self) -> None:
        self.store: str | None = None
        self.queues: set[str] = set()
        self._broker: Broker | None = None
        self._current = threading.local()

    def broker_of(self, broker: dramatiq.Broker) -> Broker:
        """The broker as a worker uses it."""
        if self._broker is None or self._broker.store != self.store:
            self._broker = Broker(broker, WORKER_PATIENCE, self.store)
        return self._broker

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        for handler in list(waiting):
            handler.offer()
        attach(broker)
        for queue in sorted(self.queues | set(worker.consumer_whitelist or ())):
            broker.declare_queue(queue)
        if has_priorities(self.broker_of(broker)) and worker.queue_prefetch > worker.worker_threads:
            logger.warning(
                "Priorities need dramatiq_queue_prefetch=%d in the environment of this worker, as many as --threads: "
                "what it has fetched is out of order already.",
                worker.worker_threads,
            )

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self._current.message = message
        if not is_ours(message):
            return
        hide(message)
        for word in _NOT_OURS_TO_SAY:
            message.options.pop(word, None)

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self._current.message = None

    def after_skip_message(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
        self._current.message = None

    def perform(self, broker: dramatiq.Broker, name: str) -> None:
        """Run the message that this thread has taken, under a name that nobody declared."""
        message = getattr(self._current, "message", None)
        if message is None or not is_ours(message):
            if message is not None:
                message.fail()
            raise ActorNotFound(name)
        from ._run import run  # here, not above: a process that only sends needs none of it

        run(message, message_from(message), self.broker_of(broker))


class Actor(dramatiq.Actor):  # type: ignore[type-arg] # which Dramatiq 1.17 cannot be told on Python 3.10
    """Runs any call, under the name of its method. It is not declared: that would be one for each name, for ever."""

    def __init__(self, middleware: Backgrounded, broker: dramatiq.Broker, name: str) -> None:
        # Not Dramatiq's own, which declares the actor, and makes a logger for its name.
        self.logger = logger
        self.fn = lambda *_, **__: middleware.perform(broker, name)
        self.broker = broker
        self.actor_name = name
        self.queue_name = "default"
        self.priority = 0
        self.options = dict(_OPTIONS)


def _never(retries: int, exception: BaseException) -> bool:
    """Whether Dramatiq's Retries runs a job of ours again: the core decides that."""
    return False


_OPTIONS: Final = {
    "max_age": None,
    "max_retries": 0,
    "retry_when": _never,  # asked before max_retries, also one of the whole broker
    "time_limit": float("inf"),
    "notify_shutdown": False,
    "store_results": False,
}
"""What would otherwise be the default of a middleware: 20 retries, ten minutes, ..."""


class Actors(dict[str, Any]):
    """The actors of a broker, and one for each name that it does not know."""

    def __init__(self, middleware: Backgrounded, broker: dramatiq.Broker) -> None:
        super().__init__(broker.actors)
        self._made = lru_cache(NAMES)(lambda name: Actor(middleware, broker, name))

    def __missing__(self, name: str) -> Actor:
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise ActorNotFound(printable(name))  # here, not by Dramatiq, which would show it as it is
        return self._made(name)


_attaching: Final = threading.RLock()


def attach(broker: dramatiq.Broker, queues: Iterable[str] = (), store: str | None = None) -> None:
    """Let the workers of a broker run our jobs, consume these queues, and find records there. Twice is once."""
    with _attaching:
        middleware = next((item for item in broker.middleware if isinstance(item, Backgrounded)), None)
        if middleware is None:
            middleware = Backgrounded()
            # First, so that it sees a message before, and its outcome after all others.
            first = type(broker.middleware[0]) if broker.middleware else None
            broker.add_middleware(middleware, before=first)
        middleware.store = store or middleware.store
        middleware.queues |= set(queues)
        if not isinstance(broker.actors, Actors):
            broker.actors = Actors(middleware, broker)


def attach_to_those_to_come() -> None:
    """Let also the workers of brokers run our jobs that are made later, with Dramatiq's default middleware."""
    with _attaching:
        if Backgrounded not in dramatiq.middleware.default_middleware:
            dramatiq.middleware.default_middleware.insert(0, Backgrounded)
