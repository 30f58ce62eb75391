"""What if work must leave the request, but no engine is wanted? A bounded pool of threads in this process."""

from __future__ import annotations

import atexit
import contextvars
import logging
import threading
from collections.abc import Iterable
from typing import ClassVar, Final

from ..calls import Call
from ..errors import ConfigurationError
from ..handler import Feature, Guarantees
from ._local import DEFAULT_QUEUE, LocalQueue, Waiting, serves

logger = logging.getLogger("backgrounded")


class ThreadHandler(LocalQueue):
    """Runs jobs in `workers` threads of this process, of the given `queues` (None: of all).

    At most `limit` jobs wait; one more is refused with an EnqueueError. The threads start with the first job. At exit
    they finish what is due; what is delayed beyond that is lost, and said so in the log.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(
        {
            Feature.QUEUES,
            Feature.DELAY,
            Feature.PRIORITY,
            Feature.RETRY,
            Feature.RETRY_WAIT,
            Feature.EXPIRES,
            Feature.UNIQUE,
            Feature.RESULTS,
            Feature.RESULT_TTL,
            Feature.STATE,
            Feature.CANCEL,
            Feature.KEPT,
        }
    )
    guarantees: Final = Guarantees("at-most-once", notes=("Jobs live in this process and die with it.",))
    priority_levels: Final = 10
    default_queue: Final = DEFAULT_QUEUE

    def __init__(self, workers: int = 4, queues: Iterable[str] | None = None, limit: int = 10_000) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ConfigurationError(f"workers must be at least 1, got {workers!r}")
        if isinstance(queues, str):
            raise ConfigurationError(f"queues must be a list of names, such as [{queues!r}]")
        super().__init__(limit)
        self._accepts = serves(frozenset(queues or ()))
        self._size = workers
        self._threads: list[threading.Thread] = []
        self._contexts: dict[str, contextvars.Context] = {}
        self._running = 0
        self._closing = False

    def enqueue(self, call: Call) -> str | None:
        with self._changed:
            self._contexts[call.id] = contextvars.copy_context()
            try:
                super().enqueue(call)
            except BaseException:
                del self._contexts[call.id]
                raise
            self._start()
        return None

    def close(self) -> None:
        """Finish what is due, then end the threads. Called at exit."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._waiting:
            logger.warning("%d delayed jobs are lost: the process ends before they are due", len(self._waiting))

    def _start(self) -> None:
        if not self._threads:
            atexit.register(self.close)
        if len(self._threads) < self._size and not self._closing:
            thread = threading.Thread(target=self._work, name=f"backgrounded-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            context = self._contexts.get(taken.call.id) or contextvars.copy_context()
            try:
                context.run(self._execute, taken)
            finally:
                self._finished(taken)

    def _next(self) -> Waiting | None:
        """The next job; waits for one. None: the pool is closing and nothing is due."""
        with self._changed:
            while True:
                taken = self._take(self._accepts)
                if taken is not None:
                    self._running += 1
                    return taken
                if self._closing and not self._running:
                    self._changed.notify_all()
                    return None
                self._changed.wait(self._until_next_due())

    def _until_next_due(self) -> float | None:
        dues = [item.due for item in self._waiting if self._accepts(item)]
        return max(0.0, min(dues) - self.clock.now()) if dues else None

    def _finished(self, taken: Waiting) -> None:
        with self._changed:
            self._running -= 1
            if self._ledger.state(taken.call.id).ended:
                self._contexts.pop(taken.call.id, None)
            self._changed.notify_all()
