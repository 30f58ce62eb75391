"""Which mistakes of the Huey adapter does the contract catch, on either side of Huey's own consumers?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from backgrounded.handler import State
from backgrounded_huey import HueyHandler, _handler, _line
from backgrounded_huey._ledger import Ledger
from backgrounded_huey._line import Line
from huey.exceptions import RetryTask

from sabotage import Patch, Sabotages, lose_none, spend_less, spoil_deliveries

TABLE = Sabotages()


def spoil_tasks(patch: Patch, spoil: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Spoil what is put into a queue; its record stays as it is."""
    honest = Line.send

    def send(self: Line, id: str, words: Any, due: Any, priority: Any) -> None:
        task = {"id": id, "words": words, "due": due, "priority": priority}
        honest(self, **{**task, **spoil(task)})

    patch.setattr(Line, "send", send)


def spoil_words(patch: Patch, word: str, spoil: Callable[[Mapping[str, Any]], Any]) -> None:
    """Spoil one of the words of our task."""
    spoil_tasks(patch, lambda task: {"words": {**task["words"], word: spoil(task["words"])}})


# -- the caller's side


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    honest = HueyHandler._line
    patch.setattr(HueyHandler, "_line", lambda self, queue: honest(self, "contract"))


@TABLE.caller("test_a_job_of_the_far_future_does_not_run")
def delay_dropped(patch: Patch) -> None:
    spoil_tasks(patch, lambda task: {"due": None})


@TABLE.caller("test_the_more_urgent_job_runs_first")
def priority_reversed(patch: Patch) -> None:
    spoil_tasks(patch, lambda task: {"priority": task["priority"] and -task["priority"]})


@TABLE.caller("test_every_type_of_value_comes_home_equal_in_value_and_type")
def wire_with_sorted_keys(patch: Patch) -> None:
    spoil_words(patch, "wire", lambda words: json.loads(json.dumps(words["wire"], sort_keys=True)))


@TABLE.caller("test_no_argument_shows_in_what_workers_write")
def name_quotes_the_arguments(patch: Patch) -> None:
    """Huey logs the name of a task."""
    spoil_words(patch, "name", lambda words: f"{words['name']}{words['wire'].get('args')}")


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(HueyHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_takes_what_runs(patch: Patch) -> None:
    """The record of a run still says that the job waits: only its mark tells."""

    def cancel(self: Ledger, id: str) -> bool:
        waits = self._read(id).get("state") == "waiting"
        if waits:
            self.end(id, None, State.CANCELLED)
        return waits

    patch.setattr(Ledger, "cancel", cancel)


@TABLE.caller("test_the_state_follows_the_job", within=3)
def what_runs_is_queued(patch: Patch) -> None:
    honest = HueyHandler.state

    def state(self: HueyHandler, id: str) -> State:
        found = honest(self, id)
        return State.QUEUED if found is State.RUNNING else found

    patch.setattr(HueyHandler, "state", state)


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def none_is_no_result(patch: Patch) -> None:
    lose_none(patch, HueyHandler)


@TABLE.caller("test_a_result_that_is_not_there_yet_is_not_none")
def result_not_awaited(patch: Patch) -> None:
    patch.setattr(HueyHandler, "result", lambda self, id, timeout: self._look(id)[1].get("result"))


@TABLE.caller("test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds")
def error_of_the_store_goes_through(patch: Patch) -> None:
    patch.setattr(_handler, "EnqueueError", lambda said, uncertain=False: ConnectionError(said))


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed", within=3)
def replay_goes_to_the_default_queue(patch: Patch) -> None:
    honest = HueyHandler._kept_at
    patch.setattr(HueyHandler, "_kept_at", lambda self, id: (self._line(self.default_queue), honest(self, id)[1]))


@TABLE.caller("test_a_kept_job_runs_when_it_is_replayed")
def timeout_forgotten_in_a_replay(patch: Patch) -> None:
    honest = _handler._words
    patch.setattr(_handler, "_words", lambda record: {**honest(record), "timeout": None})


# -- the worker's side


def spoil_ends(patch: Patch, spoil: Callable[[State, Any], tuple[State, Any]]) -> None:
    """Spoil how a job is said to have ended, and what is known of it."""
    honest = Ledger.end

    def end(self: Ledger, id: str, attempt: int | None, state: State, **what: Any) -> None:
        state, what = spoil(state, what)
        honest(self, id, attempt, state, **what)

    patch.setattr(Ledger, "end", end)


def spoil_retries(patch: Patch, spoil: Callable[[Any], None]) -> None:
    """Spoil the task of the next try."""
    honest = _line.perform

    def perform(line: Line, task: Any, **words: Any) -> None:
        try:
            honest(line, task, **words)
        except RetryTask:
            spoil(task)
            raise

    patch.setattr(_line, "perform", perform)


@TABLE.worker("test_a_declared_policy_holds_and_the_call_may_change_it")
def one_retry_too_many(patch: Patch) -> None:
    spoil_deliveries(patch, _line, lambda words: {"attempt": max(1, words["attempt"] - 1)})


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more", within=4)
def one_retry_too_few(patch: Patch) -> None:
    spoil_deliveries(patch, _line, lambda words: {"attempt": words["attempt"] + 1})


@TABLE.worker("test_a_job_that_recovers_succeeds_and_runs_no_more")
def alias_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, lambda task: task.kwargs.update(handler="default"))


@TABLE.worker("test_a_job_over_its_timeout_is_retried_as_its_policy_says")
def timeout_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, lambda task: task.kwargs.update(timeout=None))
    spend_less(patch)


@TABLE.worker("test_a_retry_is_as_urgent_as_its_job")
def priority_forgotten_in_a_retry(patch: Patch) -> None:
    spoil_retries(patch, lambda task: setattr(task, "priority", None))


@TABLE.worker("test_a_job_that_waits_for_its_next_try_is_scheduled_and_can_be_cancelled", within=4)
def retry_is_not_expected(patch: Patch) -> None:
    honest = Ledger.expect

    def expect(self: Ledger, id: str, attempt: int, due: float | None) -> None:
        if attempt == 1:
            honest(self, id, attempt, due)

    patch.setattr(Ledger, "expect", expect)


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_not_applied(patch: Patch) -> None:
    patch.setattr(_line, "time_limit", lambda seconds: contextlib.nullcontext())
    spend_less(patch)


@TABLE.worker("test_a_job_is_stopped_at_its_timeout_and_says_which")
def deadline_not_told(patch: Patch) -> None:
    spoil_deliveries(patch, _line, lambda words: {"deadline": None})


@TABLE.worker("test_a_job_that_was_cancelled_never_runs")
def run_not_marked(patch: Patch) -> None:
    """Who cancels it then takes back what runs, and who runs it does not see that it was cancelled."""
    patch.setattr(Ledger, "start", lambda self, id, attempt: True)


@TABLE.worker("test_an_expired_job_does_not_run")
def expired_job_is_discarded(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (State.DISCARDED if state is State.EXPIRED else state, what))


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_without_a_reason(patch: Patch) -> None:
    spoil_ends(patch, lambda state, what: (state, {**what, "reason": None, "code": None}))


@TABLE.worker("test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason")
def kept_job_without_its_wire(patch: Patch) -> None:
    def spoil(state: State, what: Any) -> tuple[State, Any]:
        return state, {**what, "words": {**what["words"], "wire": None}} if state is State.KEPT else what

    spoil_ends(patch, spoil)
