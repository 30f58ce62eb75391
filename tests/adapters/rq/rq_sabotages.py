"""Which mistakes of an adapter does the contract catch in RQ's own workers?

Not collected by itself: `test_contract_rq_bites.py` runs these classes, and expects the test in `caught_by` to fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from backgrounded import Call
from backgrounded_rq import RQHandler
from rq_contract import PRIORITIES, RQContract, plain_command


class Sabotage(RQContract):
    """The contract on a broken adapter. `caught_by` is the test that must fail, and nobody waits long for it."""

    deadline = 12.0
    serializer = "pickle"
    broken: ClassVar[type[RQHandler]] = RQHandler
    caught_by: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RQHandler]:
        cls.output = tmp_path_factory.mktemp("rq") / "workers.log"
        handler = cls.broken(redis_url, priorities=PRIORITIES)
        yield handler
        handler.connection.close()

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return plain_command(handler, queues)


class Before(RQHandler):
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
            return replace(call, options=replace(call.options, queue=known))


class TestDelayDropped(Sabotage):
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, options=replace(call.options, delay=None, at=None))


class TestIdNotKept(Sabotage):
    caught_by = "test_the_state_follows_the_job"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, id=call.id[::-1])


class TestTimeoutDropped(Sabotage):
    caught_by = "test_a_job_is_stopped_at_its_timeout_and_says_which"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, options=replace(call.options, timeout=None))


class TestResultLost(Sabotage):
    caught_by = "test_the_result_is_the_method_s_value_and_none_is_one"

    class broken(RQHandler):
        def result(self, id: str, timeout: float | None) -> Any:
            super().result(id, timeout)


class TestCancelLies(Sabotage):
    caught_by = "test_a_job_that_was_cancelled_never_runs"

    class broken(RQHandler):
        def cancel(self, id: str) -> bool:
            return True


class TestPriorityDropped(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    class broken(RQHandler):
        def queue_of(self, call: Call) -> str:
            return call.options.queue or self.default_queue


class TestUnbroken(Sabotage):
    """The control: all of these tests pass when nothing is broken."""

    deadline = 60.0
    caught_by = ""
