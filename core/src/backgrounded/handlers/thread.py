"""What if work must leave the request, but no engine is wanted? A bounded pool of threads in this process."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import ClassVar, Final

from ..calls import Call
from ..errors import ConfigurationError, EnqueueError
from ..handler import Feature, Guarantees, after_fork
from ._local import DEFAULT_QUEUE, LocalQueue, Waiting

logger = logging.getLogger("backgrounded")


class ThreadHandler(LocalQueue):
    """Runs jobs in `workers` threads of this process, of the given `queues` (None: of all, [] of none).

    At most `limit` jobs wait; one more is refused with an EnqueueError. The threads start with the first job, which
    runs in a copy of its caller's context. At exit they finish what is due; what is delayed beyond that is lost, and
    said so in the log. `serving` gives queues threads of their own. A forked child starts with nothing.
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
        _check_workers(workers)
        if isinstance(queues, str):
            raise ConfigurationError(f"queues must be a list of names, such as [{queues!r}]")
        super().__init__(limit)
        served = None if queues is None else frozenset(queues)
        self._size = 0 if served == frozenset() else workers
        self._crew = _Crew(served or ())
        self._running = 0
        self._closing = False
        after_fork(self._forget)

    def enqueue(self, call: Call) -> str | None:
        with self._changed:
            if self._closing and not self._running:
                raise EnqueueError("The pool was closed: it takes no more jobs.")
            super().enqueue(call)
            if len(self._crew.threads) < self._size and not self._closing:
                self._hire(self._crew)
        return None

    @contextlib.contextmanager
    def serving(self, *queues: str, workers: int = 1) -> Iterator[None]:
        """More threads, for these queues alone (none: for all), inside the block; at its end they finish their jobs."""
        _check_workers(workers)
        crew = _Crew(frozenset(queues))
        with self._changed:
            for _ in range(workers):
                self._hire(crew)
        try:
            yield
        finally:
            with self._changed:
                crew.leaving = True
                self._changed.notify_all()
            crew.join()

    def close(self) -> None:
        """Finish what is due, then end the threads. Called at exit; more jobs are refused afterwards."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._crew.join()
        if self._waiting:
            logger.warning("%d jobs are lost: the process ends before they are due", len(self._waiting))

    def _forget(self) -> None:
        """Start afresh, without jobs and threads."""
        LocalQueue.__init__(self, self._limit)
        self._crew = _Crew(self._crew.queues)
        self._running = 0

    # -- the threads

    def _context(self) -> contextvars.Context:
        return contextvars.copy_context()

    def _hire(self, crew: _Crew) -> None:
        if crew is self._crew and not crew.threads:
            atexit.register(self.close)
        thread = threading.Thread(
            target=self._work, args=(crew,), name=f"backgrounded-{len(crew.threads)}", daemon=True
        )
        crew.threads.append(thread)
        thread.start()

    def _work(self, crew: _Crew) -> None:
        while (taken := self._next(crew)) is not None:
            context = taken.context or contextvars.copy_context()
            try:
                context.run(self._execute, taken)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
            del taken, context  # an idle thread holds on to nothing of its last job

    def _next(self, crew: _Crew) -> Waiting | None:
        """The next job; waits for one. None: the crew is leaving, or the pool is closing and nothing is due."""
        with self._changed:
            while not crew.leaving:
                taken = self._take(crew.queues)
                if taken is not None:
                    self._running += 1
                    return taken
                if self._closing and not self._running:
                    self._changed.notify_all()
                    return None
                self._changed.wait(self._until_next_due(crew))
            return None

    def _until_next_due(self, crew: _Crew) -> float | None:
        dues = [lane.later[0][0] for lane in self._advanced(crew.queues) if lane.later]
        return max(0.0, min(dues) - self.clock.now()) if dues else None


class _Crew:
    """Threads that serve the same queues."""

    def __init__(self, queues: Collection[str]) -> None:
        self.queues = queues
        self.threads: list[threading.Thread] = []
        self.leaving = False

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def _check_workers(workers: object) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigurationError(f"workers must be at least 1, got {workers!r}")
