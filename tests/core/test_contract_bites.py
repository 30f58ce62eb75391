"""Which mistakes does the contract catch? Handlers that are broken on purpose, one way each.

A test passes when the promise `caught_by` fails: see `bites.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from backgrounded import Call, EncodeError, EnqueueError
from backgrounded.handler import Feature, State
from backgrounded.handlers.memory import MemoryHandler

import sabotage
from bites import Broken, Chosen
from local_contracts import MemoryContract


class Sabotage(Broken, MemoryContract):
    """The contract on a broken handler. `caught_by` is the test that must fail, and nobody waits long for it."""

    deadline = 1.5  # more where the test itself takes longer
    lateness = 0.9
    broken: ClassVar[type[MemoryHandler]] = MemoryHandler
    caught_by: ClassVar[str]

    def __init_subclass__(cls, **rest: Any) -> None:
        made = sabotage.Sabotage(cls.__name__, cls.is_broken, (cls.caught_by,), in_worker=False, within=cls.deadline)
        cls.sabotages = {cls.__name__: made}
        super().__init_subclass__(**rest)

    @staticmethod
    def is_broken(patch: Any) -> None:
        """Nothing is left to do: the handler is made broken."""

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls) -> MemoryHandler:
        return cls.broken()


def with_options(call: Call, **options: Any) -> Call:
    """The same call, sent with other options; what stands in the tree stays."""
    return replace(call, options=replace(call.options, **options))


def with_tree(call: Call, **changes: Any) -> Call:
    return replace(call, tree={**call.tree, **changes})


class Before(MemoryHandler):
    """Spoils each call before it is enqueued."""

    def spoil(self, call: Call) -> Call:
        raise NotImplementedError

    def enqueue(self, call: Call) -> str | None:
        return super().enqueue(self.spoil(call))


class TestQueueDropped(Sabotage):
    caught_by = "test_a_job_of_a_queue_nobody_listens_to_does_not_run"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            known = call.options.queue if call.options.queue == "contract" else None
            return with_options(call, queue=known)


class TestQueueOfTheFirstCallSticks(Sabotage):
    caught_by = "test_a_call_without_a_queue_goes_to_the_default_queue_and_a_queue_does_not_stick"

    class broken(Before):
        last: str | None = None

        def spoil(self, call: Call) -> Call:
            type(self).last = call.options.queue or self.last
            return with_options(call, queue=self.last)


class TestQueuesOfTwoThreadsCross(Sabotage):
    caught_by = "test_two_threads_with_two_queues_never_cross"

    class broken(Before):
        both = threading.Barrier(2)

        def spoil(self, call: Call) -> Call:
            self.shared = call.options.queue
            if call.args[:1] == ("threads",):  # until both threads stand here
                self.both.wait(60)
            return with_options(call, queue=self.shared)


class TestDelayDropped(Sabotage):
    deadline = 4.0
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, delay=None)


class TestTimeOfAnotherZone(Sabotage):
    deadline = 4.0
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            moment = call.options.at
            if moment is not None:
                moment = moment.replace(tzinfo=None).astimezone()
            return with_options(call, at=moment)


class TestDelayDoubled(Sabotage):
    deadline = 4.0
    caught_by = "test_a_delayed_job_runs_when_it_is_due_and_not_before"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, delay=2 * call.options.delay if isinstance(call.options.delay, float) else None)


class TestFarFutureIsCapped(Sabotage):
    caught_by = "test_a_job_of_the_far_future_does_not_run"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, delay=0.1 if call.options.delay == 600 else call.options.delay)


class WithRetries(Before):
    extra: ClassVar[int]

    def spoil(self, call: Call) -> Call:
        options = dict(call.tree.get("options", {}))
        if "retry" in options:
            options["retry"] = {**options["retry"], "max": max(0, options["retry"]["max"] + self.extra)}
        return with_tree(call, options=options)


class TestOneRetryTooMany(Sabotage):
    caught_by = "test_n_retries_make_n_plus_1_runs[3]"

    class broken(WithRetries):
        extra = 1


class TestOneRetryTooFew(Sabotage):
    caught_by = "test_n_retries_make_n_plus_1_runs[3]"

    class broken(WithRetries):
        extra = -1


class TestRetriesByDefault(Sabotage):
    caught_by = "test_without_retry_a_failing_job_runs_once"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_tree(call, options={"retry": {"max": 2}, **call.tree.get("options", {})})


class TestRetriesForgotten(Sabotage):
    caught_by = "test_a_job_that_recovers_succeeds_and_runs_no_more"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            options = {key: item for key, item in call.tree.get("options", {}).items() if key != "retry"}
            return with_tree(call, options=options)


class TestWaitsBetweenRetriesDropped(Sabotage):
    caught_by = "test_retries_with_waits_count_exactly_and_are_not_early"

    class broken(MemoryHandler):
        def _wait(self, call: Call, due: float, attempt: int = 1, context: Any = None) -> None:
            super()._wait(call, self.clock.now() if attempt > 1 else due, attempt, context)


class TestAttemptsNotCounted(Sabotage):
    deadline = 4.0
    caught_by = "test_a_retry_survives_the_end_of_the_worker"

    class broken(MemoryHandler):
        def _wait(self, call: Call, due: float, attempt: int = 1, context: Any = None) -> None:
            super()._wait(call, due, 1, context)


class TestFiltersOfRetriesIgnored(Sabotage):
    caught_by = "test_only_the_errors_that_the_policy_names_are_tried_again"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            options = dict(call.tree.get("options", {}))
            if "retry" in options:
                options["retry"] = {"max": options["retry"]["max"]}
            return with_tree(call, options=options)


class TestKeywordsMergedIntoADict(Sabotage):
    caught_by = "test_keywords_stay_keywords_and_a_trailing_dict_stays_positional"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            if call.method != "note" or not call.kwargs:
                return call
            return with_tree(call, args=[*call.tree.get("args", []), call.tree["kwargs"]], kwargs={})


class TestArgumentsReversed(Sabotage):
    caught_by = "test_a_call_runs_once_with_its_arguments_in_order_and_type"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_tree(call, args=call.tree.get("args", [])[::-1])


class TestAListOfOneUnwrapped(Sabotage):
    caught_by = "test_a_list_of_one_stays_a_list"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            args = call.tree.get("args", [])
            return with_tree(
                call, args=[item[0] if isinstance(item, list) and len(item) == 1 else item for item in args]
            )


class TestValuesFlattened(Sabotage):
    caught_by = "test_every_type_of_value_comes_home_equal_in_value_and_type"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_tree(call, args=[self._flat(item) for item in call.tree.get("args", [])])

        def _flat(self, samples: Any) -> Any:
            if not isinstance(samples, dict):
                return samples
            return {name: tree["$tuple"] if name == "tuple" else tree for name, tree in samples.items()}


class TestArgumentsEncodedLate(Sabotage):
    caught_by = "test_arguments_are_copied_at_the_call"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            args = list(call.args) if call.method == "note" else call.tree.get("args", [])
            return with_tree(call, args=args)


class TestIdNotKept(Sabotage):
    caught_by = "test_a_run_knows_its_job"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_tree(call, id=call.id[::-1])


class TestOptionsLeakIntoTheNextCall(Sabotage):
    caught_by = "test_options_of_one_call_never_reach_another"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            self.options: dict[str, Any] = getattr(self, "options", {})
            self.options.update(call.tree.get("options", {}))
            return with_tree(call, options=dict(self.options))


class TestPriorityReversed(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            priority = call.options.priority
            return with_options(call, priority=None if priority is None else 9 - priority)


class TestTiesShuffled(Sabotage):
    caught_by = "test_ties_run_in_the_order_of_the_calls_and_5_is_the_same_as_none"

    class broken(MemoryHandler):
        def _due_now(self, queues: tuple[str, ...]) -> Any:
            return sorted(super()._due_now(queues), key=lambda item: (item.rank[0], -item.rank[2]))


class TestPriorityDroppedInSilence(Sabotage):
    caught_by = "test_the_more_urgent_job_runs_first"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, priority=None)


class TestResultLost(Sabotage):
    caught_by = "test_the_result_is_the_method_s_value_and_none_is_one"

    class broken(MemoryHandler):
        def result(self, call_id: str, timeout: float | None) -> Any:
            super().result(call_id, timeout)


class TestNoResultYetIsNone(Sabotage):
    caught_by = "test_a_result_that_is_not_there_yet_is_not_none"

    class broken(MemoryHandler):
        def result(self, call_id: str, timeout: float | None) -> Any:
            return super().result(call_id, timeout) if self.state(call_id).ended else None


class TestExceptionWrapped(Sabotage):
    caught_by = "test_a_failure_is_readable_with_type_message_and_traceback"

    class broken(MemoryHandler):
        def _end(self, call: Call, state: State, **what: Any) -> None:
            if "failure" in what:
                what["failure"] = type(what["failure"])("RuntimeError", f"job failed: {what['failure']}")
            super()._end(call, state, **what)


class TestFailureCalledSuccess(Sabotage):
    caught_by = "test_the_state_follows_the_job"

    class broken(MemoryHandler):
        def _end(self, call: Call, state: State, **what: Any) -> None:
            what.pop("failure", None)
            super()._end(call, State.SUCCEEDED if state is State.FAILED else state, **what)


class TestUniqueIgnored(Sabotage):
    caught_by = "test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, unique=None)


class TestUniqueNeverReleased(Sabotage):
    caught_by = "test_the_key_is_free_again_when_the_job_is_done"

    class broken(MemoryHandler):
        def __init__(self) -> None:
            super().__init__()
            self._ledger.release = lambda call, moment="done": None  # type: ignore[method-assign]  # sabotage


class TestUniqueReleasedAtTheStart(Sabotage):
    caught_by = "test_the_key_is_held_between_two_tries"

    class broken(MemoryHandler):
        def __init__(self) -> None:
            super().__init__()
            honest = self._ledger.release
            self._ledger.release = lambda call, moment="done": honest(call)  # type: ignore[method-assign]  # sabotage


class TestExpiresIgnored(Sabotage):
    caught_by = "test_an_expired_job_does_not_run"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            options = {key: item for key, item in call.tree.get("options", {}).items() if key != "expires"}
            return with_tree(call, options=options)


class TestTimeoutDropped(Sabotage):
    caught_by = "test_a_job_is_stopped_at_its_timeout_and_says_which"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return sabotage.without_timeout(call)


class TestCancelLies(Sabotage):
    caught_by = "test_a_job_that_was_cancelled_never_runs"

    class broken(MemoryHandler):
        def cancel(self, call_id: str) -> bool:
            return True


class TestBulkDropsTheLast(Sabotage):
    caught_by = "test_a_batch_is_sent_at_its_exit"

    class broken(MemoryHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return [*super().enqueue_many(calls[:-1]), None]


class TestBulkForgetsTheDelays(Sabotage):
    caught_by = "test_a_batch_may_mix_times"

    class broken(MemoryHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return super().enqueue_many([with_options(call, delay=None) for call in calls])


class TestNestedCallGoesElsewhere(Sabotage):
    caught_by = "test_a_nested_call_goes_back_through_the_same_handler"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return replace(call, handler="default")


class TestNestedCallRunsInline(Sabotage):
    caught_by = "test_a_nested_call_goes_back_through_the_same_handler"

    class broken(MemoryHandler):
        def enqueue(self, call: Call) -> str | None:
            super().enqueue(call)
            if call.args == ("inner",):
                self.run(*([call.options.queue] if call.options.queue else []))
            return None


class TestEngineErrorSwallowed(Sabotage):
    caught_by = "test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds"

    def dead_handler(self) -> Any:
        class Dead(MemoryHandler):
            def enqueue(self, call: Call) -> str | None:
                return None

        return Dead()


class TestEngineErrorWithoutItsCause(Sabotage):
    caught_by = "test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds"

    def dead_handler(self) -> Any:
        class Dead(MemoryHandler):
            def enqueue(self, call: Call) -> str | None:
                raise EnqueueError("down")

        return Dead()


class TestRunTwice(Sabotage):
    caught_by = "test_a_call_runs_once_with_its_arguments_in_order_and_type"

    class broken(MemoryHandler):
        def enqueue(self, call: Call) -> str | None:
            super().enqueue(call)
            return super().enqueue(replace(call, id=call.id[::-1]))


class TestWorkerDiesOfAFailure(Sabotage):
    caught_by = "test_the_worker_goes_on_after_a_job_that_failed"

    class broken(MemoryHandler):
        dead = False

        def _execute(self, waiting: Any) -> BaseException | None:
            if self.dead:
                return None
            error = super()._execute(waiting)
            self.dead = error is not None
            return error


class TestKeptJobLost(Sabotage):
    caught_by = "test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason"

    class broken(MemoryHandler):
        def _end(self, call: Call, state: State, **what: Any) -> None:
            super()._end(call, State.DISCARDED if state is State.KEPT else state, **what)


class TestUnsendableResultTriedAgain(Sabotage):
    caught_by = "test_a_result_that_cannot_travel_is_a_failure_and_not_tried_again"

    class broken(MemoryHandler):
        def _execute(self, waiting: Any) -> BaseException | None:
            error = super()._execute(waiting)
            if isinstance(error, EncodeError) and waiting.attempt < 2:
                self._wait(waiting.call, self.clock.now(), waiting.attempt + 1)
            return error


class TestOptionDroppedInSilence(Sabotage):
    """Declares no delay, and yet takes it."""

    caught_by = "test_an_option_that_is_not_kept_is_refused_at_the_call"

    class broken(MemoryHandler):
        features = MemoryHandler.features - {Feature.DELAY}

    @pytest.fixture(autouse=True)
    def _lenient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from backgrounded._configuration import Configuration

        monkeypatch.setattr(Configuration, "accept", lambda self, options: options)


class TestRetryMovesToAnotherQueue(Sabotage):
    deadline = 4.0
    caught_by = "test_a_retry_survives_the_end_of_the_worker"

    class broken(MemoryHandler):
        def _wait(self, call: Call, due: float, attempt: int = 1, context: Any = None) -> None:
            super()._wait(with_options(call, queue="retries") if attempt > 1 else call, due, attempt, context)


class TestResultNeverForgotten(Sabotage):
    caught_by = "test_a_result_is_gone_after_its_time"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, result_ttl=None)


class TestWaitsBetweenRetriesTripled(Sabotage):
    caught_by = "test_a_retry_that_waits_is_not_late"

    class broken(MemoryHandler):
        def _wait(self, call: Call, due: float, attempt: int = 1, context: Any = None) -> None:
            moment = self.clock.now()
            super()._wait(call, due + 2 * max(0.0, due - moment) if attempt > 1 else due, attempt, context)


class TestPastNeverComes(Sabotage):
    caught_by = "test_a_time_in_the_past_and_no_delay_mean_now"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            past = call.options.at is not None and call.options.at.timestamp() < time.time()
            return with_options(call, at=None, delay=600) if past else call


class TestUnlimitedRetriesEnd(Sabotage):
    caught_by = "test_retries_without_a_number_go_on_until_it_works"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            options = dict(call.tree.get("options", {}))
            if options.get("retry", {}).get("max", 0) is None:
                options["retry"] = {**options["retry"], "max": 8}
            return with_tree(call, options=options)


class TestTtlOfAKeyIgnored(Sabotage):
    caught_by = "test_a_key_is_free_again_after_its_ttl"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            unique = call.options.unique
            return with_options(call, unique=None if unique is None else replace(unique, ttl=3600))


class TestKeyUntilTheStartHeldUntilTheEnd(Sabotage):
    caught_by = "test_a_key_until_the_start_is_free_while_the_job_runs"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            unique = call.options.unique
            return with_options(call, unique=None if unique is None else replace(unique, until="done"))


class TestCancelKeepsTheKey(Sabotage):
    caught_by = "test_a_cancelled_job_gives_its_key_back"

    class broken(MemoryHandler):
        def _end(self, call: Call, state: State, **what: Any) -> None:
            kept = with_options(call, unique=None) if state is State.CANCELLED else call
            super()._end(kept, state, **what)


class TestReplayDoesNothing(Sabotage):
    caught_by = "test_a_kept_job_runs_when_it_is_replayed"

    class broken(MemoryHandler):
        def replay(self, call_id: str) -> None:
            self.forget(call_id)


class TestArgumentsLogged(Sabotage):
    caught_by = "test_no_argument_shows_in_what_workers_write"

    class broken(Before):
        written = ""

        def spoil(self, call: Call) -> Call:
            type(self).written += repr(call.args)
            return call

    def worker_output(self) -> str:
        return self.broken.written


class TestBulkStopsAtATrip(Sabotage):
    caught_by = "test_a_batch_of_more_than_a_trip_arrives_whole"

    class broken(MemoryHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return [*super().enqueue_many(calls[:999]), *[None] * len(calls[999:])]


class TestBulkGoesToTheFirstQueue(Sabotage):
    caught_by = "test_a_batch_may_mix_queues"

    class broken(MemoryHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return super().enqueue_many([with_options(call, queue=calls[0].options.queue) for call in calls])


class TestMapDropsTheFirst(Sabotage):
    caught_by = "test_map_sends_one_call_for_each_item"

    class broken(MemoryHandler):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return [None, *super().enqueue_many(calls[1:])]


class TestNestedCallStaysOnItsQueue(Sabotage):
    caught_by = "test_a_nested_call_reaches_the_queue_it_names"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            return with_options(call, queue="contract") if call.args == ("inner",) else call


class TestBigArgumentsCut(Sabotage):
    caught_by = "test_a_big_argument_arrives_whole"

    class broken(Before):
        def spoil(self, call: Call) -> Call:
            args = [item[:16_384] if isinstance(item, str) else item for item in call.tree.get("args", [])]
            return with_tree(call, args=args)


class TestSystemExitIsSuccess(Sabotage):
    caught_by = "test_a_method_that_leaves_the_program_fails_and_does_not_end_the_worker"

    class broken(MemoryHandler):
        def _end(self, call: Call, state: State, **what: Any) -> None:
            if call.method == "leave":
                state = State.SUCCEEDED
            super()._end(call, state, **what)


class TestPriority5Refused(Sabotage):
    caught_by = "test_priority_5_is_never_refused"

    class broken(MemoryHandler):
        def check(self, call: Call) -> None:
            if call.options.priority is not None:
                raise EnqueueError("no priorities here")


class TestNeedsWhatItDoesNotKeep(Sabotage):
    caught_by = "test_the_handler_declares_what_it_keeps_and_what_that_needs"

    class broken(MemoryHandler):
        needs: ClassVar[dict[Feature, str]] = {Feature.WORKER: "a worker"}


class TestGuaranteesMissing(Sabotage):
    caught_by = "test_the_handler_declares_its_guarantees"

    class broken(MemoryHandler):
        guarantees = None  # type: ignore[assignment,misc]  # sabotage


class TestUnbroken(Chosen, MemoryContract):
    """The control: all of these tests pass when nothing is broken."""

    sabotages: ClassVar[dict[str, sabotage.Sabotage]] = {
        name: item for cls in Sabotage.__subclasses__() for name, item in cls.sabotages.items()
    }

    def worker_output(self) -> str:
        return ""

    def dead_handler(self) -> Any:
        class Dead(MemoryHandler):
            def enqueue(self, call: Call) -> str | None:
                raise EnqueueError("down") from ConnectionRefusedError()

            def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
                self.enqueue(calls[0])
                return []

        return Dead()
