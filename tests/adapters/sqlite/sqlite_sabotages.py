"""Which mistakes of the SQLite handler and of its worker does the contract catch, in real workers?

Not collected by itself: `test_contract_sqlite_bites.py` runs these classes and expects the test in `caught_by` to fail.
A broken worker is an honest one whose application breaks it: SQLITE_SABOTAGE names the class below that does so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import backgrounded
from backgrounded import Call, State
from backgrounded.handler import Delivery
from backgrounded_sqlite import SQLiteHandler
from backgrounded_sqlite._process import Process
from backgrounded_sqlite._store import End, Job, Store
from sqlite_contract import SQLiteContract, sqlite_worker

HERE = Path(__file__).parent
SABOTAGE = "SQLITE_SABOTAGE"


class Sabotage(SQLiteContract):
    """The contract on a broken adapter. `caught_by` is the test that must fail, and nobody waits long for it.

    `handler_class` is broken where the caller is, `break_worker` is called in each process of a worker.
    """

    deadline = 2.5
    caught_by: ClassVar[str]

    @classmethod
    def break_worker(cls) -> None:
        """Nothing is broken here."""

    def worker(self, handler: SQLiteHandler, *queues: str) -> AbstractContextManager[Any]:
        path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {SABOTAGE: type(self).__name__, "PYTHONPATH": path}
        app = f"backgrounded.testing.probe,{__name__.rpartition('.')[2]}"
        return sqlite_worker(handler, queues, self.output, app=app, environment=environment)


class Before(SQLiteHandler):
    """Spoils each call before it is handed over."""

    def spoil(self, call: Call) -> Call:
        raise NotImplementedError

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        return super().enqueue_many([self.spoil(call) for call in calls])


def without(call: Call, *options: str) -> Call:
    return replace(call, options=replace(call.options, **dict.fromkeys(options)))


# -- the caller's side


class TestQueueDropped(Sabotage):
    caught_by = "test_a_job_of_a_queue_nobody_listens_to_does_not_run"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return call if call.options.queue == "contract" else without(call, "queue")


class TestDelayDropped(Sabotage):
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return without(call, "delay", "at")


class TestPriorityDropped(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return without(call, "priority")


class TestUniqueDropped(Sabotage):
    caught_by = "test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return without(call, "unique")


class TestResultTtlDropped(Sabotage):
    caught_by = "test_a_result_is_gone_after_its_time"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return without(call, "result_ttl")


class TestIdNotKept(Sabotage):
    caught_by = "test_the_state_follows_the_job"

    class handler_class(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, id=call.id[::-1])


class TestCancelLies(Sabotage):
    caught_by = "test_a_job_that_was_cancelled_never_runs"

    class handler_class(SQLiteHandler):
        def cancel(self, id: str) -> bool:
            return True


class TestResultLost(Sabotage):
    caught_by = "test_the_result_is_the_method_s_value_and_none_is_one"

    class handler_class(SQLiteHandler):
        def result(self, id: str, timeout: float | None) -> Any:
            super().result(id, timeout)


class TestOnlyTheFirstOfMany(Sabotage):
    caught_by = "test_a_batch_may_mix_queues"

    class handler_class(SQLiteHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
            super().enqueue_many(calls[:1])
            return [call.id for call in calls]


# -- the worker's side


class TestTimeoutNotSet(Sabotage):
    caught_by = "test_a_job_is_stopped_at_its_timeout_and_says_which"

    @classmethod
    def break_worker(cls) -> None:
        honest = Process._limit

        def limit(self: Process, job: Job) -> Any:
            return honest(self, replace(job, timeout=None))

        Process._limit = limit  # type: ignore[method-assign]


class TestAttemptNotCounted(Sabotage):
    caught_by = "test_n_retries_make_n_plus_1_runs"

    @classmethod
    def break_worker(cls) -> None:
        _break_ends(lambda end: replace(end, attempt=1))


class TestRetryWaitDropped(Sabotage):
    caught_by = "test_retries_with_waits_count_exactly_and_are_not_early"

    @classmethod
    def break_worker(cls) -> None:
        _break_ends(lambda end: replace(end, state=State.QUEUED) if end.state is State.SCHEDULED else end)


class TestFailureIsSuccess(Sabotage):
    caught_by = "test_a_failure_is_readable_with_type_message_and_traceback"

    @classmethod
    def break_worker(cls) -> None:
        _break_ends(lambda end: replace(end, state=State.SUCCEEDED) if end.state is State.FAILED else end)


class TestKeptIsForgotten(Sabotage):
    caught_by = "test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason"

    @classmethod
    def break_worker(cls) -> None:
        _break_ends(lambda end: replace(end, state=State.DISCARDED) if end.state is State.KEPT else end)


class TestKeyNotFreed(Sabotage):
    caught_by = "test_the_key_is_free_again_when_the_job_is_done"

    @classmethod
    def break_worker(cls) -> None:
        import backgrounded_sqlite._store as store

        store._free_key = lambda *_: None


class TestDelayedRunEarly(Sabotage):
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    @classmethod
    def break_worker(cls) -> None:
        import backgrounded_sqlite._store as store

        store.time = Fast()  # type: ignore[assignment,attr-defined]


class Fast:
    """A clock that is an hour ahead."""

    @staticmethod
    def time() -> float:
        return time.time() + 3600


class TestDelayedNeverLookedAt(Sabotage):
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    @classmethod
    def break_worker(cls) -> None:
        import backgrounded_sqlite._store as store

        store._PROMOTE = store._PROMOTE.replace("due <= ?", "due <= ? - 1e9")  # type: ignore[misc]


class TestOldestFirstWhateverThePriority(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    @classmethod
    def break_worker(cls) -> None:
        import backgrounded_sqlite._store as store

        store._FIRST = store._FIRST.replace("ORDER BY priority DESC, due, seq", "ORDER BY seq")  # type: ignore[misc]


class TestAliasForgotten(Sabotage):
    caught_by = "test_a_nested_call_goes_back_through_the_same_handler"

    @classmethod
    def break_worker(cls) -> None:
        honest = backgrounded.perform

        def perform(wire: Any, delivery: Delivery, **rest: Any) -> Any:
            return honest(wire, replace(delivery, handler="default"), **rest)

        backgrounded.perform = perform  # type: ignore[assignment]


class TestAnythingIsWrittenToTheLog(Sabotage):
    caught_by = "test_no_argument_shows_in_what_workers_write"

    @classmethod
    def break_worker(cls) -> None:
        honest = Process._perform

        def perform(self: Process, job: Job) -> End:
            print(job.wire, flush=True)
            return honest(self, job)

        Process._perform = perform  # type: ignore[method-assign]


class TestUnbroken(Sabotage):
    """The control: all of these tests pass when nothing is broken."""

    deadline = 60.0
    caught_by = ""


def _break_ends(spoil: Any) -> None:
    """Let each end be spoilt before it is written down."""
    honest = Store.turn

    def turn(self: Store, owner: int, end: End | None, queues: Sequence[str]) -> Job | None:
        return honest(self, owner, None if end is None else spoil(end), queues)

    Store.turn = turn  # type: ignore[method-assign]


BROKEN: Mapping[str, type[Sabotage]] = {
    name: cls for name, cls in list(globals().items()) if isinstance(cls, type) and getattr(cls, "caught_by", None)
}

if os.environ.get(SABOTAGE) in BROKEN:
    BROKEN[os.environ[SABOTAGE]].break_worker()
