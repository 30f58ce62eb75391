"""Which mistakes of an adapter does the contract catch in RQ's own workers?"""

from __future__ import annotations

from dataclasses import replace

from backgrounded import State
from backgrounded_rq import RQHandler

from sabotage import Patch, Sabotages, spoil_calls, with_options, without, without_timeout

TABLE = Sabotages()


@TABLE.caller("test_a_job_of_a_queue_nobody_listens_to_does_not_run")
def queue_ignored(patch: Patch) -> None:
    spoil_calls(patch, RQHandler, lambda call: with_options(call, queue="contract"))


@TABLE.caller("test_a_delayed_job_runs_when_it_is_due_and_not_before")
def delay_dropped(patch: Patch) -> None:
    spoil_calls(patch, RQHandler, without("delay", "at"))


@TABLE.caller("test_the_state_follows_the_job", within=3)
def id_not_kept(patch: Patch) -> None:
    spoil_calls(patch, RQHandler, lambda call: replace(call, id=call.id[::-1]))


@TABLE.caller("test_a_job_is_stopped_at_its_timeout_and_says_which")
def timeout_dropped(patch: Patch) -> None:
    spoil_calls(patch, RQHandler, without_timeout)


@TABLE.caller("test_the_result_is_the_method_s_value_and_none_is_one")
def result_lost(patch: Patch) -> None:
    patch.setattr(RQHandler, "result", lambda self, id, timeout: None)


@TABLE.caller("test_a_job_that_was_cancelled_never_runs")
def cancel_lies(patch: Patch) -> None:
    patch.setattr(RQHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)


@TABLE.caller("test_the_more_urgent_job_runs_first")
def priority_dropped(patch: Patch) -> None:
    patch.setattr(RQHandler, "queue_of", lambda self, call: call.options.queue or self.default_queue)
