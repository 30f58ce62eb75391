"""Which mistakes of the Procrastinate adapter does the contract catch, on either side of its own workers?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import procrastinate
from backgrounded import Call
from backgrounded.handler import State
from backgrounded_procrastinate import ProcrastinateHandler, _handler, _line, _store
from backgrounded_procrastinate._store import Store

from sabotage import Patch, Sabotages, lose_none, spoil_calls, without

TABLE = Sabotages()


def spoil_words(patch: Patch, word: str, spoil: Callable[[Any], Any]) -> None:
    """Spoil one of the columns of what is handed over."""
    honest = Store._words

    def words(self: Store, calls: Sequence[Call]) -> dict[str, Any]:
        found = honest(self, calls)
        return {**found, word: [spoil(value) for value in found[word]]}

    patch.setattr(Store, "_words", words)


def rewrite(patch: Patch, query: str, old: str, new: str) -> None:
    """Write a part of a query wrongly."""
    text = getattr(_store, query)
    assert old in text
    patch.setattr(_store, query, text.replace(old, new))


# -- the caller's side


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    spoil_words(patch, "queue", lambda queue: "contract")


@TABLE.caller("test_a_delayed_job_runs_when_it_is_due_and_not_before")
def delay_ignored(patch: Patch) -> None:
    rewrite(patch, "_PUT", "to_timestamp(due)", "NULL")


@TABLE.caller("test_a_batch_may_mix_times", within=3)
def moment_in_milliseconds(patch: Patch) -> None:
    spoil_words(patch, "due", lambda due: due and 1000 * due)


@TABLE.caller("test_the_more_urgent_job_runs_first")
def priority_reversed(patch: Patch) -> None:
    spoil_words(patch, "priority", lambda priority: -priority)


@TABLE.caller("test_a_result_is_gone_after_its_time", within=3)
def result_ttl_in_milliseconds(patch: Patch) -> None:
    spoil_words(patch, "ttl", lambda ttl: 1000 * ttl)


@TABLE.caller("test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first")
def unique_key_never_held(patch: Patch) -> None:
    spoil_calls(patch, ProcrastinateHandler, without("unique"))


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(ProcrastinateHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def none_is_no_result(patch: Patch) -> None:
    lose_none(patch, ProcrastinateHandler)


@TABLE.caller("test_the_state_follows_the_job", within=3)
def state_is_always_queued(patch: Patch) -> None:
    patch.setattr(ProcrastinateHandler, "state", lambda self, id: State.QUEUED)


@TABLE.caller("test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds")
def error_of_the_database_goes_through(patch: Patch) -> None:
    patch.setattr(_handler, "EnqueueError", lambda said, uncertain=False: ConnectionError(said))


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed", within=3)
def replay_sends_nothing(patch: Patch) -> None:
    patch.setattr(ProcrastinateHandler, "replay", ProcrastinateHandler.forget)


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed", within=3)
def replay_keeps_the_old_number(patch: Patch) -> None:
    """Procrastinate's new job is then nobody's."""
    rewrite(patch, "_REPLAY", "SET number = deferred.number, ", "SET ")


@TABLE.caller("test_map_sends_one_call_for_each_item", within=3)
def only_the_first_of_many_is_sent(patch: Patch) -> None:
    honest = ProcrastinateHandler.enqueue_many

    def enqueue_many(self: ProcrastinateHandler, calls: Sequence[Call]) -> list[str]:
        return honest(self, calls[:1]) * len(calls)

    patch.setattr(ProcrastinateHandler, "enqueue_many", enqueue_many)


@TABLE.caller("test_no_argument_shows_in_what_workers_write")
def wire_is_an_argument_of_the_job(patch: Patch) -> None:
    """Procrastinate logs the arguments of its jobs."""
    rewrite(patch, "_PUT", "('name', name, 'id', id)", "('name', name, 'id', id, 'wire', wire)")


# -- the worker's side


def spoil_ends(patch: Patch, spoil: Callable[[State, Any], tuple[State, Any]]) -> None:
    """Spoil how a job is said to have ended."""
    honest = Store.end
    patch.setattr(Store, "end", lambda self, id, state, outcome=None: honest(self, id, *spoil(state, outcome)))


@TABLE.worker("test_a_declared_policy_holds_and_the_call_may_change_it")
def one_retry_too_many(patch: Patch) -> None:
    rewrite(patch, "_BEGIN", "attempt, begun - 1", "greatest(1, attempt - 1), begun - 1")


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more", within=4)
def one_retry_too_few(patch: Patch) -> None:
    rewrite(patch, "_BEGIN", "attempt, begun - 1", "attempt + 1, begun - 1")


@TABLE.worker("test_retries_with_waits_count_exactly_and_are_not_early")
def wait_before_a_retry_ignored(patch: Patch) -> None:
    honest = _line.Later
    patch.setattr(
        _line, "Later", type("Later", (honest,), {"__init__": lambda self, seconds: honest.__init__(self, 0)})
    )


@TABLE.worker("test_a_retry_is_as_urgent_as_its_job")
def priority_forgotten_in_a_retry(patch: Patch) -> None:
    honest = procrastinate.RetryDecision
    patch.setattr(procrastinate, "RetryDecision", lambda **words: honest(**words, priority=0))


@TABLE.worker("test_an_expired_job_does_not_run")
def expired_job_is_discarded(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.DISCARDED if state is State.EXPIRED else state, what))


@TABLE.worker("test_a_failure_is_readable_with_type_message_and_traceback")
def failure_is_success(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.SUCCEEDED if state is State.FAILED else state, what))


@TABLE.worker("test_the_result_is_the_method_s_value_and_none_is_one")
def result_thrown_away(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (state, None if state is State.SUCCEEDED else what))


@TABLE.worker("test_a_key_until_the_start_is_free_while_the_job_runs")
def unique_key_released_at_the_start(patch: Patch) -> None:
    rewrite(patch, "_BEGIN", "CASE WHEN unique_to_start THEN NULL ELSE unique_key END", "NULL")


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_is_dropped(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.DISCARDED if state is State.KEPT else state, what))


@TABLE.worker("test_a_nested_call_goes_back_through_the_same_handler")
def alias_forgotten(patch: Patch) -> None:
    honest = _line.Delivery
    patch.setattr(_line, "Delivery", lambda **words: honest(**{**words, "handler": "default"}))
