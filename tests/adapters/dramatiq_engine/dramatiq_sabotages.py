"""Which mistakes of the Dramatiq adapter does the contract catch, on either side of Dramatiq's own workers?"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backgrounded import records
from backgrounded.handler import Again, State
from backgrounded.records import Records
from backgrounded_dramatiq import DramatiqHandler, _handler, _run
from backgrounded_dramatiq._broker import Broker
from backgrounded_dramatiq._message import Message

from sabotage import Patch, Sabotages, lose_none, spend_less, spoil_deliveries, spoil_retries, with_options

TABLE = Sabotages()


def spoil_messages(patch: Patch, spoil: Callable[[Message], Message]) -> None:
    """Spoil what is handed over; its record stays as it is."""
    honest = DramatiqHandler._message
    patch.setattr(DramatiqHandler, "_message", lambda self, call: spoil(honest(self, call)))


# -- the caller's side


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    spoil_messages(patch, lambda message: replace(message, queue="contract"))


@TABLE.caller("test_a_job_of_the_far_future_does_not_run")
def delay_taken_for_a_moment(patch: Patch) -> None:
    """1.5 seconds after the beginning of 1970."""
    spoil_messages(patch, lambda message: replace(message, due=message.due and message.due - time.time()))


@TABLE.caller("test_a_result_is_gone_after_its_time", within=3)
def result_ttl_in_milliseconds(patch: Patch) -> None:
    spoil_messages(patch, lambda message: replace(message, result_ttl=1000 * (message.result_ttl or 0)))


@TABLE.caller("test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first")
def unique_key_never_held(patch: Patch) -> None:
    honest = Records.put
    patch.setattr(Records, "put", lambda self, calls: honest(self, [with_options(call, unique=None) for call in calls]))


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(DramatiqHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_takes_what_runs(patch: Patch) -> None:
    def cancel(self: DramatiqHandler, id: str) -> bool:
        is_there = not self.state(id).ended
        self._records.end(id, State.CANCELLED, None, 60)
        return is_there

    patch.setattr(DramatiqHandler, "cancel", cancel)


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def message_has_an_id_of_its_own(patch: Patch) -> None:
    spoil_messages(patch, lambda message: replace(message, id=uuid.uuid4().hex))


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def none_is_no_result(patch: Patch) -> None:
    lose_none(patch, Records)


@TABLE.caller("test_the_state_follows_the_job", within=3)
def state_is_always_queued(patch: Patch) -> None:
    patch.setattr(DramatiqHandler, "state", lambda self, id: State.QUEUED)


@TABLE.caller("test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds")
def error_of_the_broker_goes_through(patch: Patch) -> None:
    patch.setattr(_handler, "EnqueueError", lambda said, uncertain=False: ConnectionError(said))


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed", within=3)
def replay_sends_nothing(patch: Patch) -> None:
    patch.setattr(DramatiqHandler, "replay", DramatiqHandler.forget)


def spoil_replays(patch: Patch, **changes: Any) -> None:
    """Spoil what is sent while no call is made: what is replayed."""
    honest = Broker.send

    def send(self: Broker, messages: Any) -> None:
        honest(self, [replace(message, **changes) for message in messages])

    def replay(self: DramatiqHandler, id: str) -> None:
        patch.setattr(Broker, "send", send)
        replay_honestly(self, id)

    replay_honestly = DramatiqHandler.replay
    patch.setattr(DramatiqHandler, "replay", replay)


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed")
def alias_forgotten_in_a_replay(patch: Patch) -> None:
    spoil_replays(patch, handler="default")


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed")
def timeout_forgotten_in_a_replay(patch: Patch) -> None:
    spoil_replays(patch, timeout=None)


@TABLE.caller("test_a_batch_may_mix_times")
def batch_goes_with_the_first_call_s_time(patch: Patch) -> None:
    honest = Broker.send

    def send(self: Broker, messages: Any) -> None:
        honest(self, [replace(message, due=messages[0].due) for message in messages])

    patch.setattr(Broker, "send", send)


@TABLE.caller("test_no_argument_shows_in_what_workers_write")
def wire_is_an_argument_of_the_message(patch: Patch) -> None:
    """Dramatiq logs the arguments of a message that fails."""
    honest = Message.for_dramatiq
    patch.setattr(Message, "for_dramatiq", lambda self: honest(self).copy(args=(self.wire,)))


# -- the worker's side


def spoil_ends(patch: Patch, spoil: Callable[[State, Any], tuple[State, Any]]) -> None:
    """Spoil how a job is said to have ended."""
    honest = _run._end
    patch.setattr(_run, "_end", lambda broker, message, state, outcome: honest(broker, message, *spoil(state, outcome)))


@TABLE.worker("test_a_declared_policy_holds_and_the_call_may_change_it")
def one_retry_too_many(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"attempt": max(1, words["attempt"] - 1)})


@TABLE.worker("test_retries_with_waits_count_exactly_and_are_not_early")
def wait_before_a_retry_ignored(patch: Patch) -> None:
    honest = _run._again
    patch.setattr(_run, "_again", lambda broker, message, again: honest(broker, message, Again(0)))


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_not_applied(patch: Patch) -> None:
    patch.setattr(_run, "limit", lambda seconds: contextlib.nullcontext())
    spend_less(patch)


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
    honest = Records.begin

    def begin(self: Records, id: str) -> tuple[State, int]:
        script = records._LIBRARY + records._BEGIN.replace("== 'start'", "~= ''")
        self._scripts["begin"] = self.client.register_script(script)
        return honest(self, id)

    patch.setattr(Records, "begin", begin)


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_is_dropped(patch: Patch) -> None:
    patch.setattr(Broker, "keep", lambda self, message, reason, code: True)


@TABLE.worker("test_a_nested_call_goes_back_through_the_same_handler")
def alias_forgotten(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"handler": "default"})


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def deadline_not_told(patch: Patch) -> None:
    spoil_deliveries(patch, _run, lambda words: {"deadline": None})


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more")
def alias_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, _run, handler="default")


@TABLE.worker("test_a_result_is_gone_after_its_time", within=4)
def result_ttl_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, _run, result_ttl=None)
