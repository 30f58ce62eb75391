"""Which mistakes of the SQLite handler and of its worker does the contract catch, in real workers?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import backgrounded
from backgrounded import Call, State
from backgrounded.handler import Delivery
from backgrounded_sqlite import SQLiteHandler, _store
from backgrounded_sqlite._process import Process
from backgrounded_sqlite._store import End, Job, Store

from sabotage import Patch, Sabotages, spend_less, spoil_calls, with_options, without

TABLE = Sabotages()

# -- the caller's side


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, lambda call: with_options(call, queue="contract"))


@TABLE.caller("test_a_delayed_job_runs_when_it_is_due_and_not_before")
def delay_dropped(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, without("delay", "at"))


@TABLE.caller("test_the_more_urgent_job_runs_first")
def priority_dropped(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, without("priority"))


@TABLE.caller("test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first")
def unique_dropped(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, without("unique"))


@TABLE.caller("test_a_result_is_gone_after_its_time", within=3)
def result_ttl_dropped(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, without("result_ttl"))


@TABLE.caller("test_the_state_follows_the_job", within=3)
def id_not_kept(patch: Patch) -> None:
    spoil_calls(patch, SQLiteHandler, lambda call: replace(call, id=call.id[::-1]))


@TABLE.caller("test_a_batch_is_sent_at_its_exit")
def ids_of_a_batch_reversed(patch: Patch) -> None:
    honest = SQLiteHandler.enqueue_many
    patch.setattr(SQLiteHandler, "enqueue_many", lambda self, calls: honest(self, calls)[::-1])


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(SQLiteHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def result_lost(patch: Patch) -> None:
    patch.setattr(SQLiteHandler, "result", lambda self, id, timeout: None)


@TABLE.caller("test_a_batch_may_mix_times", within=3)
def only_the_first_of_many_is_sent(patch: Patch) -> None:
    honest = SQLiteHandler.enqueue_many

    def enqueue_many(self: SQLiteHandler, calls: Sequence[Call]) -> list[str]:
        honest(self, calls[:1])
        return [call.id for call in calls]

    patch.setattr(SQLiteHandler, "enqueue_many", enqueue_many)


# -- the worker's side


def spoil_ends(patch: Patch, spoil: Callable[[End], End]) -> None:
    """Let each end be spoilt before it is written down."""
    honest = Store.turn

    def turn(self: Store, owner: int, end: End | None, queues: Sequence[str]) -> Job | None:
        return honest(self, owner, None if end is None else spoil(end), queues)

    patch.setattr(Store, "turn", turn)


def rewrite(patch: Patch, query: str, old: str, new: str) -> None:
    """Write a part of a query wrongly."""
    text = getattr(_store, query)
    assert old in text
    patch.setattr(_store, query, text.replace(old, new))


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_not_set(patch: Patch) -> None:
    honest = Process._limit
    patch.setattr(Process, "_limit", lambda self, job: honest(self, replace(job, timeout=None)))
    spend_less(patch)


@TABLE.worker("test_a_declared_policy_holds_and_the_call_may_change_it", within=3)
def attempt_not_counted(patch: Patch) -> None:
    spoil_ends(patch, lambda end: replace(end, attempt=1))


@TABLE.worker("test_retries_with_waits_count_exactly_and_are_not_early")
def wait_before_a_retry_dropped(patch: Patch) -> None:
    spoil_ends(patch, lambda end: replace(end, state=State.QUEUED) if end.state is State.SCHEDULED else end)


@TABLE.worker("test_a_failure_is_readable_with_type_message_and_traceback")
def failure_is_success(patch: Patch) -> None:
    spoil_ends(patch, lambda end: replace(end, state=State.SUCCEEDED) if end.state is State.FAILED else end)


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_is_forgotten(patch: Patch) -> None:
    spoil_ends(patch, lambda end: replace(end, state=State.DISCARDED) if end.state is State.KEPT else end)


@TABLE.worker("test_the_key_is_free_again_when_the_job_is_done")
def key_not_freed(patch: Patch) -> None:
    patch.setattr(_store, "_free_key", lambda *_: None)


class Fast:
    """A clock that is an hour ahead."""

    @staticmethod
    def time() -> float:
        return time.time() + 3600


@TABLE.worker("test_a_delayed_job_runs_when_it_is_due_and_not_before")
def delayed_run_early(patch: Patch) -> None:
    patch.setattr(_store, "time", Fast())


@TABLE.worker("test_a_delayed_job_runs_when_it_is_due_and_not_before", within=4)
def delayed_never_looked_at(patch: Patch) -> None:
    rewrite(patch, "_PROMOTE", "due <= ?", "due <= ? - 1e9")


@TABLE.worker("test_the_more_urgent_job_runs_first")
def oldest_first_whatever_the_priority(patch: Patch) -> None:
    rewrite(patch, "_FIRST", "ORDER BY priority DESC, due, seq", "ORDER BY seq")


@TABLE.worker("test_a_nested_call_goes_back_through_the_same_handler")
def alias_forgotten(patch: Patch) -> None:
    honest = backgrounded.perform

    def perform(wire: Any, delivery: Delivery, **rest: Any) -> Any:
        return honest(wire, replace(delivery, handler="default"), **rest)

    patch.setattr(backgrounded, "perform", perform)


@TABLE.worker("test_no_argument_shows_in_what_workers_write")
def anything_is_written_to_the_log(patch: Patch) -> None:
    honest = Process._perform

    def perform(self: Process, job: Job) -> End:
        print(job.wire, flush=True)
        return honest(self, job)

    patch.setattr(Process, "_perform", perform)
