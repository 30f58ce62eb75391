"""Which mistakes of an adapter does the contract catch in Celery's own workers?

Not collected by itself: `test_celery_bites.py` runs these classes, and expects the test in `caught_by` to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from backgrounded import Call
from backgrounded_celery import CeleryHandler
from celery_contract import CeleryContract


class Sabotage(CeleryContract):
    """The contract on a broken adapter. `caught_by` is the test that must fail, and nobody waits long for it."""

    deadline = 12.0
    broken: ClassVar[type[CeleryHandler]] = CeleryHandler
    caught_by: ClassVar[str]

    @classmethod
    def make(cls, url: str) -> CeleryHandler:
        return cls.broken(url)


class Before(CeleryHandler):
    """Spoils each call before it is handed over."""

    def spoil(self, call: Call) -> Call:
        raise NotImplementedError

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        return super().enqueue_many([self.spoil(call) for call in calls])


class TestQueueDropped(Sabotage):
    caught_by = "test_a_job_of_a_queue_nobody_listens_to_does_not_run"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            known = call.options.queue if call.options.queue == "contract" else None
            return replace(call, options=replace(call.options, queue=known or "contract"))


class TestDelayDropped(Sabotage):
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, options=replace(call.options, delay=None, at=None))


class TestTimeoutDropped(Sabotage):
    caught_by = "test_a_job_is_stopped_at_its_timeout_and_says_which"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, options=replace(call.options, timeout=None))


class TestPriorityTurnedRound(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            priority = call.options.priority
            return replace(call, options=replace(call.options, priority=None if priority is None else 9 - priority))


class TestIdNotKept(Sabotage):
    caught_by = "test_the_state_follows_the_job"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, id=call.id[::-1])


class TestResultLost(Sabotage):
    caught_by = "test_the_result_is_the_method_s_value_and_none_is_one"

    class broken(CeleryHandler):
        def result(self, id: str, timeout: float | None) -> Any:
            super().result(id, timeout)


class TestCancelLies(Sabotage):
    caught_by = "test_a_job_that_was_cancelled_never_runs"

    class broken(CeleryHandler):
        def cancel(self, id: str) -> bool:
            return True


class TestUnbroken(Sabotage):
    """The control: all of these tests pass when nothing is broken."""

    deadline = 60.0
    caught_by = ""
