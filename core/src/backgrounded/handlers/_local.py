"""How do jobs wait, run and end inside one process?

What `thread` and `memory` share: the jobs that wait, in the order in which they are to run; unique keys; what became
of those that ended; those that were set aside. `Ledger` alone is what `inline` needs too.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .._runtime import perform
from ..calls import DEFAULT_PRIORITY, Call, Options
from ..errors import ConfigurationError, Duplicate, EnqueueError, JobFailed, NoResult, ResultTimeout
from ..handler import Again, Delivery, Keep, Kept, Skip, State, failure_from, failure_record
from ._limit import time_limit

logger = logging.getLogger("backgrounded")

DEFAULT_QUEUE: Final = "default"
DEFAULT_RESULT_TTL: Final = 86_400.0
MOST_RECORDS: Final = 10_000
"""Ended jobs that are remembered; the oldest are forgotten first."""


class Clock:
    """The time of a handler, in seconds since the epoch; `advance` moves it forward for tests."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Move the clock forward. It never goes back."""
        if seconds < 0:
            raise ValueError(f"a clock is advanced, not turned back: {seconds!r}")
        self._ahead += seconds


@dataclass
class _Record:
    state: State
    tree: Any = None
    failure: JobFailed | None = None
    until: float = float("inf")


class Ledger:
    """What became of jobs, by id, and which unique keys are held."""

    def __init__(self, clock: Clock) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._keys: dict[str, tuple[str, float]] = {}

    def note(self, call_id: str, state: State, options: Options | None = None, **what: Any) -> None:
        """Write down a job's state, and for how long its end is remembered."""
        with self.changed:
            record = _Record(state, **what)
            if state.ended and state is not State.KEPT:
                ttl = None if options is None else options.result_ttl
                record.until = self._clock.now() + (DEFAULT_RESULT_TTL if ttl is None else ttl)
            self._records[call_id] = record
            self._records.move_to_end(call_id)
            self._forget_oldest()
            self.changed.notify_all()

    def _forget_oldest(self) -> None:
        while len(self._records) > MOST_RECORDS:
            oldest = next((key for key, record in self._records.items() if record.state.ended), None)
            if oldest is None:
                return
            del self._records[oldest]

    def forget(self, call_id: str) -> None:
        with self.changed:
            self._records.pop(call_id, None)

    def clear(self) -> None:
        with self.changed:
            self._records.clear()
            self._keys.clear()

    def state(self, call_id: str) -> State:
        record = self._known(call_id)
        return State.UNKNOWN if record is None else record.state

    def _known(self, call_id: str) -> _Record | None:
        with self.changed:
            record = self._records.get(call_id)
            return record if record is not None and record.until > self._clock.now() else None

    def result(self, call_id: str, timeout: float | None) -> Any:
        """The result as a tree; waits for the end."""
        with self.changed:
            self.changed.wait_for(lambda: self._settled(call_id), timeout)
            record = self._known(call_id)
        if record is None:
            raise NoResult(f"Nothing is known (any more) of job {call_id}.")
        if record.state is State.SUCCEEDED:
            return record.tree
        if record.failure is not None:
            raise record.failure
        if record.state.ended:
            raise NoResult(f"Job {call_id} has no result: it is {record.state}.")
        raise ResultTimeout(f"Job {call_id} has not ended: it is {record.state}.")

    def _settled(self, call_id: str) -> bool:
        record = self._known(call_id)
        return record is None or record.state.ended

    def claim(self, call: Call) -> None:
        """Take the call's unique key, or raise Duplicate."""
        unique = call.options.unique
        if unique is None:
            return
        with self.changed:
            holder, until = self._keys.get(unique.key, (call.id, 0.0))
            if until > self._clock.now() and holder != call.id:
                raise Duplicate(unique.key, holder)
            self._keys[unique.key] = (call.id, self._clock.now() + unique.ttl)

    def release(self, call: Call, moment: str = "done") -> None:
        """Give the call's unique key back, if it is held until this moment ("start" or "done")."""
        unique = call.options.unique
        if unique is None or moment not in (unique.until, "done"):
            return
        with self.changed:
            if self._keys.get(unique.key, ("",))[0] == call.id:
                del self._keys[unique.key]


class KeptJobs(list[Kept]):
    """The jobs that were set aside. Calling it gives the same, which is how the protocol asks."""

    def __call__(self) -> Iterable[Kept]:
        return tuple(self)


@dataclass(order=True)
class Waiting:
    """A job that waits: the more urgent first, then the one due earlier, then the one called earlier."""

    rank: tuple[int, float, int]
    call: Call = field(compare=False)
    due: float = field(compare=False)
    attempt: int = field(compare=False, default=1)

    @property
    def queue(self) -> str:
        return self.call.options.queue or DEFAULT_QUEUE


class LocalQueue:
    """Jobs of one process: waiting, running, ended, kept."""

    def __init__(self, limit: int | None = None) -> None:
        self.clock = Clock()
        self.kept = KeptJobs()
        self._ledger = Ledger(self.clock)
        self._changed = self._ledger.changed
        self._waiting: list[Waiting] = []
        self._set_aside: dict[str, Waiting] = {}
        self._order = itertools.count()
        self._limit = limit

    # -- the protocol

    def enqueue(self, call: Call) -> str | None:
        self._ledger.claim(call)
        try:
            self._wait(call)
        except EnqueueError:
            self._ledger.release(call)
            raise
        return None

    def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
        return [self.enqueue(call) for call in calls]

    def state(self, call_id: str) -> State:
        return self._ledger.state(call_id)

    def result(self, call_id: str, timeout: float | None) -> Any:
        return self._ledger.result(call_id, timeout)

    def cancel(self, call_id: str) -> bool:
        with self._changed:
            found = next((item for item in self._waiting if item.call.id == call_id), None)
            if found is None:
                return False
            self._waiting.remove(found)
            self._end(found.call, State.CANCELLED)
        return True

    def replay(self, call_id: str) -> None:
        """Put a kept job back, as if it were called now."""
        with self._changed:
            waiting = self._take_kept(call_id)
            self._wait(waiting.call, due=self.clock.now())

    def forget(self, call_id: str) -> None:
        """Drop a kept job."""
        with self._changed:
            self._take_kept(call_id)
            self._ledger.forget(call_id)

    def _take_kept(self, call_id: str) -> Waiting:
        if call_id not in self._set_aside:
            raise ConfigurationError(f"No job {call_id!r} is kept here.")
        self.kept[:] = [item for item in self.kept if item.id != call_id]
        return self._set_aside.pop(call_id)

    # -- waiting

    def _wait(self, call: Call, *, due: float | None = None, attempt: int = 1) -> None:
        moment = due if due is not None else call.due if call.due is not None else call.created
        priority = DEFAULT_PRIORITY if call.options.priority is None else call.options.priority
        with self._changed:
            if self._limit is not None and len(self._waiting) >= self._limit:
                raise EnqueueError(f"{self._limit:,} jobs are waiting already, and no more are taken.")
            self._waiting.append(Waiting((-priority, moment, next(self._order)), call, moment, attempt))
            later = moment > self.clock.now()
            self._ledger.note(call.id, State.SCHEDULED if later else State.QUEUED)

    def _take(self, accepts: Callable[[Waiting], bool]) -> Waiting | None:
        """The job to run next, of those that are due and accepted; it waits no longer."""
        with self._changed:
            moment = self.clock.now()
            ready = [item for item in self._waiting if item.due <= moment and accepts(item)]
            if not ready:
                return None
            chosen = min(ready)
            self._waiting.remove(chosen)
            self._ledger.note(chosen.call.id, State.RUNNING)
        return chosen

    # -- running

    def _execute(self, waiting: Waiting) -> BaseException | None:
        """Run a job that was taken, write down how it ended, and return its final error."""
        call = waiting.call
        self._ledger.release(call, "start")
        delivery = Delivery(call.handler, waiting.queue, waiting.attempt)
        try:
            with time_limit(call.options.timeout):
                tree = perform(call.tree, delivery, moment=self.clock.now())
        except Again as again:
            self._wait(call, due=self.clock.now() + again.seconds, attempt=waiting.attempt + 1)
        except Skip as skip:
            self._end(call, skip.state)
        except Keep as keep:
            self._set_aside[call.id] = waiting
            self.kept.append(Kept(call.id, keep.reason, call.tree, call.name, keep.code))
            self._end(call, State.KEPT)
            return keep.__cause__ or keep
        except BaseException as error:
            self._end(call, State.FAILED, failure=failure_from(failure_record(error)))
            return error
        else:
            self._end(call, State.SUCCEEDED, tree=tree)
        return None

    def _end(self, call: Call, state: State, **what: Any) -> None:
        self._ledger.release(call)
        self._ledger.note(call.id, state, call.options, **what)


def serves(queues: Collection[str]) -> Callable[[Waiting], bool]:
    """Whether a worker of these queues (none: of all) takes a job."""
    return (lambda item: item.queue in queues) if queues else (lambda item: True)
