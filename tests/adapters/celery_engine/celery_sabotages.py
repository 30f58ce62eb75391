"""Which mistakes of the Celery adapter does the contract catch, on either side of Celery's own workers?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backgrounded import Call, State
from backgrounded.handler import Again
from backgrounded_celery import CeleryHandler, _run
from backgrounded_celery._broker import Broker

from sabotage import (
    Patch,
    Sabotages,
    spend_less,
    spoil_calls,
    spoil_deliveries,
    spoil_retries,
    with_options,
    without,
    without_timeout,
)

TABLE = Sabotages()


# -- the caller's side


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    spoil_calls(patch, CeleryHandler, lambda call: with_options(call, queue="contract"))


@TABLE.caller("test_a_job_of_the_far_future_does_not_run")
def delay_dropped(patch: Patch) -> None:
    spoil_calls(patch, CeleryHandler, without("delay", "at"))


@TABLE.caller("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_dropped(patch: Patch) -> None:
    spoil_calls(patch, CeleryHandler, without_timeout)


@TABLE.caller("test_the_more_urgent_job_runs_first")
def priority_reversed(patch: Patch) -> None:
    def spoil(call: Call) -> Call:
        priority = call.options.priority
        return call if priority is None else with_options(call, priority=9 - priority)

    spoil_calls(patch, CeleryHandler, spoil)


@TABLE.caller("test_the_state_follows_the_job", within=3)
def id_not_kept(patch: Patch) -> None:
    spoil_calls(patch, CeleryHandler, lambda call: replace(call, id=call.id[::-1]))


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def result_lost(patch: Patch) -> None:
    patch.setattr(CeleryHandler, "result", lambda self, id, timeout: None)


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(CeleryHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


# -- the worker's side


def spoil_ends(patch: Patch, spoil: Callable[[State, Any], tuple[State, Any]]) -> None:
    """Spoil how a job is said to have ended."""
    honest = _run.end
    patch.setattr(_run, "end", lambda broker, message, state, outcome: honest(broker, message, *spoil(state, outcome)))


@TABLE.worker("test_a_declared_policy_holds_and_the_call_may_change_it")
def one_retry_too_many(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"attempt": max(1, words["attempt"] - 1)})


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more", within=4)
def one_retry_too_few(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"attempt": words["attempt"] + 1})


@TABLE.worker("test_retries_with_waits_count_exactly_and_are_not_early")
def wait_before_a_retry_ignored(patch: Patch) -> None:
    honest = _run._again
    patch.setattr(_run, "_again", lambda broker, message, again: honest(broker, message, Again(0)))


@TABLE.worker("test_a_retry_is_no_more_urgent_than_its_job")
def priority_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, _run, priority=None)


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more")
def alias_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, _run, handler="default")


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_not_applied(patch: Patch) -> None:
    patch.setattr(_run, "_limit", lambda seconds: contextlib.nullcontext())
    spend_less(patch)


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def deadline_not_told(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"deadline": None})


@TABLE.worker("test_a_nested_call_goes_back_through_the_same_handler")
def alias_forgotten(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"handler": "default"})


@TABLE.worker("test_an_expired_job_does_not_run")
def expired_job_is_discarded(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.DISCARDED if state is State.EXPIRED else state, what))


@TABLE.worker("test_a_failure_is_readable_with_type_message_and_traceback")
def failure_is_success(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.SUCCEEDED if state is State.FAILED else state, what))


@TABLE.worker("test_the_result_is_the_method_s_value_and_none_is_one")
def result_thrown_away(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (state, None if state is State.SUCCEEDED else what))


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_is_dropped(patch: Patch) -> None:
    patch.setattr(Broker, "keep", lambda self, message, reason, code: None)


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_without_a_reason(patch: Patch) -> None:
    honest = Broker.keep
    patch.setattr(Broker, "keep", lambda self, message, reason, code: honest(self, message, "", code))
