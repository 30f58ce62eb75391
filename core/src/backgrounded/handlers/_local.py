"""How do jobs wait, run and end inside one process?

What `thread` and `memory` share: the jobs that wait, in the order in which they are to run; unique keys; what became
of those that ended; those that were set aside. `Ledger` alone is what `inline` needs too.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, cast

from .._runtime import perform
from ..alarm import ThreadAlarm
from ..calls import DEFAULT_PRIORITY, Call, Options
from ..errors import ConfigurationError, Duplicate, EnqueueError, JobFailed, NoResult, ResultTimeout
from ..handler import Again, Delivery, Handler, Keep, Kept, Skip, State, failure_from, failure_record

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
        self._open: dict[str, _Record] = {}
        self._ended: OrderedDict[str, _Record] = OrderedDict()
        self._keys: dict[str, tuple[str, float]] = {}

    def note(self, call_id: str, state: State, options: Options | None = None, **what: Any) -> None:
        """Write down a job's state, and for how long its end is remembered. What was set aside is never forgotten."""
        with self.changed:
            self.forget(call_id)
            record = _Record(state, **what)
            if state.ended and state is not State.KEPT:
                ttl = None if options is None else options.result_ttl
                record.until = self._clock.now() + (DEFAULT_RESULT_TTL if ttl is None else ttl)
                self._ended[call_id] = record
                if len(self._ended) > MOST_RECORDS:
                    self._ended.popitem(last=False)
            else:
                self._open[call_id] = record
            self.changed.notify_all()

    def forget(self, call_id: str) -> None:
        with self.changed:
            self._open.pop(call_id, None)
            self._ended.pop(call_id, None)

    def clear(self) -> None:
        with self.changed:
            self._open.clear()
            self._ended.clear()
            self._keys.clear()

    def state(self, call_id: str) -> State:
        record = self._known(call_id)
        return State.UNKNOWN if record is None else record.state

    def _known(self, call_id: str) -> _Record | None:
        with self.changed:
            record = self._open.get(call_id) or self._ended.get(call_id)
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


@dataclass
class Waiting:
    """A job that waits: the more urgent first, then the one due earlier, then the one called earlier.

    `context` is where it runs (None: in the context of whoever runs it).
    """

    rank: tuple[int, float, int]
    call: Call
    due: float
    attempt: int = 1
    context: contextvars.Context | None = None

    @property
    def queue(self) -> str:
        return self.call.options.queue or DEFAULT_QUEUE


class Lane:
    """The jobs of one queue that wait: those that are due by rank, the others by the time at which they are."""

    def __init__(self) -> None:
        self.ready: list[tuple[tuple[int, float, int], Waiting]] = []
        self.later: list[tuple[float, int, Waiting]] = []

    def add(self, waiting: Waiting) -> None:
        heapq.heappush(self.later, (waiting.due, waiting.rank[-1], waiting))

    def advance(self, moment: float) -> None:
        """Move what is due by now."""
        while self.later and self.later[0][0] <= moment:
            waiting = heapq.heappop(self.later)[-1]
            heapq.heappush(self.ready, (waiting.rank, waiting))


class LocalQueue:
    """Jobs of one process: waiting, running, ended, kept.

    A job that is taken back stays in its lane's heap until its turn comes: `_waiting` knows whether it still waits.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.clock = Clock()
        self.kept = KeptJobs()
        self._ledger = Ledger(self.clock)
        self._changed = self._ledger.changed
        self._waiting: dict[str, Waiting] = {}
        self._lanes: dict[str, Lane] = {}
        self._set_aside: dict[str, Waiting] = {}
        self._order = itertools.count()
        self._limit = limit

    # -- the protocol

    def enqueue(self, call: Call) -> str | None:
        with self._changed:
            if self._limit is not None and len(self._waiting) >= self._limit:
                raise EnqueueError(f"{self._limit:,} jobs are waiting already, and no more are taken.")
            self._ledger.claim(call)
            self._wait(call, call.created if call.due is None else call.due, context=self._context())
        return None

    def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
        return [self.enqueue(call) for call in calls]

    def state(self, call_id: str) -> State:
        with self._changed:
            waiting = self._waiting.get(call_id)
            if waiting is not None:
                return State.SCHEDULED if waiting.due > self.clock.now() else State.QUEUED
            return self._ledger.state(call_id)

    def result(self, call_id: str, timeout: float | None) -> Any:
        return self._ledger.result(call_id, timeout)

    def cancel(self, call_id: str) -> bool:
        with self._changed:
            waiting = self._waiting.pop(call_id, None)
            if waiting is None:
                return False
            self._end(waiting.call, State.CANCELLED)
            self._sweep(waiting.queue)
        return True

    def replay(self, call_id: str) -> None:
        """Put a kept job back, as if it were called now."""
        with self._changed:
            waiting = self._take_kept(call_id)
            self._wait(waiting.call, self.clock.now(), context=waiting.context)

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

    def _context(self) -> contextvars.Context | None:
        """Where a job that is called now will run."""
        return None

    def _wait(self, call: Call, due: float, attempt: int = 1, context: contextvars.Context | None = None) -> None:
        priority = DEFAULT_PRIORITY if call.options.priority is None else call.options.priority
        with self._changed:
            waiting = Waiting((-priority, due, next(self._order)), call, due, attempt, context)
            self._waiting[call.id] = waiting
            self._lanes.setdefault(waiting.queue, Lane()).add(waiting)
            self._ledger.note(call.id, State.QUEUED)

    def _take(self, queues: Collection[str]) -> Waiting | None:
        """The job to run next, of those that are due in these queues (none: in all); it waits no longer."""
        with self._changed:
            heads = [lane.ready[0] for lane in self._advanced(queues) if lane.ready]
            return self._start_of(min(heads)[-1]) if heads else None

    def _start_of(self, waiting: Waiting) -> Waiting:
        del self._waiting[waiting.call.id]
        self._ledger.note(waiting.call.id, State.RUNNING)
        return waiting

    def _advanced(self, queues: Collection[str]) -> Iterator[Lane]:
        """The lanes of these queues, with what is due by now in `ready` and a job that still waits at its head."""
        moment = self.clock.now()
        for queue in queues or tuple(self._lanes):
            lane = self._lanes.get(queue)
            if lane is None:
                continue
            lane.advance(moment)
            while lane.ready and not self._waits(lane.ready[0][-1]):
                heapq.heappop(lane.ready)
            while lane.later and not self._waits(lane.later[0][-1]):
                heapq.heappop(lane.later)
            if lane.ready or lane.later:
                yield lane
            else:
                del self._lanes[queue]

    def _waits(self, waiting: Waiting) -> bool:
        return self._waiting.get(waiting.call.id) is waiting

    def _sweep(self, queue: str) -> None:
        """Throw away what was taken back, when that is most of a lane."""
        lane = self._lanes.get(queue)
        if lane is None or len(lane.ready) + len(lane.later) <= 2 * len(self._waiting) + 64:
            return
        lane.ready = [item for item in lane.ready if self._waits(item[-1])]
        lane.later = [item for item in lane.later if self._waits(item[-1])]
        heapq.heapify(lane.ready)
        heapq.heapify(lane.later)

    # -- running

    def _execute(self, waiting: Waiting) -> BaseException | None:
        """Run a job that was taken, write down how it ended, and return its final error."""
        call = waiting.call
        self._ledger.release(call, "start")
        timeout = call.options.timeout
        deadline = None if timeout is None else self.clock.now() + timeout
        delivery = Delivery(call.handler, waiting.queue, waiting.attempt, deadline=deadline)
        try:
            tree = perform(
                call.tree,
                delivery,
                moment=self.clock.now(),
                fallback=lambda: cast(Handler, self),
                limit=lambda: nullcontext() if timeout is None else ThreadAlarm(timeout),
            )
        except Again as again:
            self._wait(call, self.clock.now() + again.seconds, waiting.attempt + 1, waiting.context)
        except Skip as skip:
            self._end(call, skip.state)
        except Keep as keep:
            with self._changed:
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
