"""How often is a job tried, and what is known of it when it has ended?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import backgrounded
from backgrounded import (
    EncodeError,
    Job,
    NoResult,
    ResultTimeout,
    Retry,
    State,
)
from backgrounded.handler import Feature

from .. import probe as probes
from ..frame import Frame, Oracle, Send, needs
from ..probe import Declared, Level, ProbeError, describe, given
from .times import FAR

PATIENT: Mapping[int, Retry] = {n: Retry(n, wait=0.2) for n in (0, 1, 3, 8)} | {2: Retry(2, wait=[1.5, 0.3])}
"""Policies with waits, by the number of retries."""


class Retries(Frame):
    """N retries make N + 1 runs, and no more."""

    @pytest.mark.parametrize("retries", [0, 1, 3, 8])
    @needs(Feature.RETRY, retry=1)
    def test_n_retries_make_n_plus_1_runs(self, retries: int, send: Send, oracle: Oracle) -> None:
        """K134 K135 K143"""
        job = self.fails(lambda: send(retry=retries).fail(None, message="as ever"), ProbeError)
        runs = oracle.wait("fail", retries + 1)
        self.ends(job, State.FAILED)
        self.settle(send, oracle)
        assert len(oracle.events("fail")) == retries + 1
        assert [event.attempt for event in runs] == list(range(1, retries + 2))
        assert len({(event.job_id, event.job and event.job["queue"], event.given) for event in runs}) == 1
        assert job is None or runs[0].job_id == job.id

    def test_without_retry_a_failing_job_runs_once(self, send: Send, oracle: Oracle) -> None:
        """K135"""
        job = self.fails(lambda: send().fail(None), ProbeError)
        oracle.wait("fail")
        self.ends(job, State.FAILED)
        self.settle(send, oracle)
        assert len(oracle.events("fail")) == 1

    @needs(Feature.RETRY)
    def test_a_job_that_recovers_succeeds_and_runs_no_more(self, send: Send, oracle: Oracle) -> None:
        """K134 K25"""
        job = send(retry=4, handler="second").fail(4)
        oracle.wait("recovered")
        self.ends(job, State.SUCCEEDED)
        self.settle(send, oracle)
        assert [event.job and event.job["handler"] for event in oracle.events("fail")] == ["second"] * 5
        if Feature.RESULTS in self._handler.features:
            assert job.result(self.deadline) == 5

    @needs(Feature.RETRY)
    def test_retries_without_a_number_go_on_until_it_works(self, send: Send, oracle: Oracle) -> None:
        """K142"""
        job = send(retry=Retry(None)).fail(9)
        oracle.wait("recovered")
        self.ends(job, State.SUCCEEDED)
        assert [event.attempt for event in oracle.events("fail")] == list(range(1, 11))

    @needs(Feature.RETRY)
    def test_only_the_errors_that_the_policy_names_are_tried_again(self, send: Send, oracle: Oracle) -> None:
        """K137"""
        name = "backgrounded.testing.probe.ProbeError"
        calls = {
            "not on": (Retry(2, on=ValueError), "ProbeError", 1),
            "on a base": (Retry(2, on=name), "WorseError", 3),
            "given up": (Retry(2, give_up_on=[OSError]), "OSError", 1),
            "not given up": (Retry(2, give_up_on=probes.WorseError), "ProbeError", 3),
            "both": (Retry(2, on=name, give_up_on=probes.WorseError), "WorseError", 1),
        }
        jobs = [
            self.fails(partial(send(retry=policy).fail, None, key, kind)) for key, (policy, kind, _) in calls.items()
        ]
        oracle.wait("fail", sum(runs for _, _, runs in calls.values()))
        for job in jobs:
            self.ends(job, State.FAILED)
        self.settle(send, oracle)
        seen = oracle.given("fail")
        assert {key: seen.count(given(key)) for key in calls} == {key: runs for key, (_, _, runs) in calls.items()}

    @needs(Feature.RETRY)
    def test_a_declared_policy_holds_and_the_call_may_change_it(self, send: Send, oracle: Oracle) -> None:
        """K138"""
        self.fails(lambda: send.to(Declared(oracle.path)).stubborn(), ProbeError)
        oracle.wait("stubborn", 3)
        job = self.fails(lambda: send.to(Declared(oracle.path), retry=0).stubborn(), ProbeError)
        oracle.wait("stubborn", 4)
        self.ends(job, State.FAILED)
        self.settle(send, oracle)
        assert [event.attempt for event in oracle.events("stubborn")] == [1, 2, 3, 1]

    def early(self) -> dict[str, Callable[[Send], Any]]:
        """Where an engine's clock ticks once in a second, these retries take many: they begin before their test."""

        def begin(send: Send) -> list[Job[Any]]:
            return [send(retry=policy).fail(None, str(n)) for n, policy in PATIENT.items()]

        return {**super().early(), "test_retries_with_waits_count_exactly_and_are_not_early": begin}

    @needs(Feature.RETRY, Feature.RETRY_WAIT, Feature.STATE, worker=True, retry=Retry(1, wait=5))
    def test_a_job_that_waits_for_its_next_try_is_scheduled_and_can_be_cancelled(
        self, handler: Any, send: Send, oracle: Oracle
    ) -> None:
        """K138 K192"""
        job = send(retry=Retry(1, wait=60)).fail(None)
        oracle.wait("fail")
        self.until(lambda: job.state is State.SCHEDULED, lambda: f"the job to be scheduled; it is {job.state}")
        if Feature.CANCEL in handler.features:
            self.until(job.cancel, "the job to be taken back")  # RQ says `scheduled` a moment before it has put it away
            assert job.state is State.CANCELLED
        self.settle(send, oracle)
        assert len(oracle.events("fail")) == 1

    @needs(Feature.RETRY, Feature.RETRY_WAIT, worker=True, retry=Retry(1, wait=5))
    def test_retries_with_waits_count_exactly_and_are_not_early(self, send: Send, standing: Any) -> None:
        """K134 K135 K138"""
        oracle, jobs = standing.shared["test_retries_with_waits_count_exactly_and_are_not_early"]
        oracle.wait("fail", sum(n + 1 for n in PATIENT))
        for job in jobs:
            self.ends(job, State.FAILED)
        self.settle(send, oracle)
        for n, policy in PATIENT.items():
            runs = [event for event in oracle.events("fail") if event.given == given(str(n))]
            assert [event.attempt for event in runs] == list(range(1, n + 2)), f"retry={n}"
            for before, after in pairwise(runs):
                waited, wanted = after.at - before.at, policy.wait_before(before.attempt or 0)
                assert waited >= wanted, f"retry={n}: waited {waited:.3f} s, not {wanted} s"

    @needs(Feature.RETRY, Feature.RETRY_WAIT, worker=True)
    def test_a_retry_that_waits_is_not_late(self, send: Send, oracle: Oracle) -> None:
        """K138"""
        send(retry=Retry(1, wait=timedelta(seconds=0.5))).fail(1)
        (recovered,) = oracle.wait("recovered")
        (failed, _) = oracle.events("fail")
        assert 0.5 <= recovered.at - failed.at <= 0.5 + self.lateness


class Endings(Frame):
    """How a job ended can be read, and the worker goes on."""

    def test_the_worker_goes_on_after_a_job_that_failed(self, send: Send, oracle: Oracle) -> None:
        """K122 K124"""
        for kind in ("ProbeError", "AwkwardError", "cause", "OSError"):
            self.fails(partial(send().fail, None, kind, kind))
        send().note()
        oracle.wait("note")
        assert oracle.given("fail") == [given(kind) for kind in ("ProbeError", "AwkwardError", "cause", "OSError")]

    def test_a_method_that_leaves_the_program_fails_and_does_not_end_the_worker(
        self, send: Send, oracle: Oracle
    ) -> None:
        """K125"""
        job = self.fails(lambda: send().leave(), SystemExit)
        oracle.wait("leave")
        self.ends(job, State.FAILED)
        send().note()
        oracle.wait("note")
        assert len(oracle.events("leave")) == 1

    @needs(Feature.RESULTS)
    def test_a_failure_is_readable_with_type_message_and_traceback(self, send: Send, oracle: Oracle) -> None:
        """K123 K187"""
        job = self.fails(lambda: send().fail(None, kind="WorseError", message="as asked: ä"), probes.WorseError)
        if job is None:
            return
        self.ends(job, State.FAILED)
        failure = job.exception(self.deadline)
        assert failure is not None
        assert failure.type_name == "backgrounded.testing.probe.WorseError"
        assert failure.message == "as asked: ä"
        assert failure.traceback is not None
        assert "raise_error" in failure.traceback
        with pytest.raises(backgrounded.JobFailed, match="as asked"):
            job.result(self.deadline)

    @needs(Feature.RESULTS)
    def test_a_failure_without_a_message_is_readable(self, send: Send) -> None:
        """K124"""
        job = self.fails(lambda: send().fail(None, kind="AwkwardError"), probes.AwkwardError)
        if job is None:
            return
        self.ends(job, State.FAILED)
        failure = job.exception(self.deadline)
        assert failure is not None
        assert (failure.type_name, failure.message) == ("backgrounded.testing.probe.AwkwardError", "")

    @needs(Feature.RESULTS)
    def test_the_result_is_the_method_s_value_and_none_is_one(self, send: Send) -> None:
        """K185 K189 K191"""
        for value in (42, None, False, "", (1, {"a": Level.HIGH})):
            job = send().give(value)
            assert describe(job.result(self.deadline)) == describe(value)
            assert job.exception() is None
            self.ends(job, State.SUCCEEDED)

    @needs(Feature.RESULTS, worker=True)
    def test_a_result_that_is_not_there_yet_is_not_none(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K186 K189 K191"""
        with self.holding(send, oracle, tmp_path):
            job = send().give(None)
            started = time.monotonic()
            with pytest.raises(ResultTimeout):
                job.result(timeout=0.2)
            assert time.monotonic() - started < self.lateness
            assert job.exception() is None
        assert job.result(self.deadline) is None

    def test_a_result_that_cannot_travel_is_a_failure_and_not_tried_again(self, send: Send, oracle: Oracle) -> None:
        """K188"""
        retry = 3 if Feature.RETRY in self._handler.features else None
        job = self.fails(lambda: send(retry=retry).unsendable(), EncodeError)
        oracle.wait("unsendable")
        self.ends(job, State.FAILED)
        self.settle(send, oracle)
        assert len(oracle.events("unsendable")) == 1
        if job is not None and Feature.RESULTS in self._handler.features:
            failure = job.exception(self.deadline)
            assert failure is not None
            assert failure.type_name == "backgrounded.errors.EncodeError"

    @needs(Feature.RESULTS, Feature.RESULT_TTL, result_ttl=5)
    def test_a_result_is_gone_after_its_time(self, send: Send, oracle: Oracle) -> None:
        """result_ttl"""
        short, kept = send(result_ttl=1).give(1), send(result_ttl=FAR).give(2)
        passing = [short]
        if Feature.RETRY in self._handler.features:
            passing.append(send(result_ttl=1, retry=1).fail(1))
            oracle.wait("recovered")
        oracle.wait("give", 2)

        def is_gone(job: Job[Any]) -> bool:
            try:
                job.result(0)
            except NoResult:
                return True
            except ResultTimeout:
                pass
            return False

        self.until(lambda: all(map(is_gone, passing)), "the results of result_ttl=1 to be gone")
        assert kept.result(self.deadline) == 2

    @needs(Feature.CANCEL, worker=True)
    def test_a_job_that_was_cancelled_never_runs(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K192"""
        with self.holding(send, oracle, tmp_path):
            (held,) = oracle.events("holding")
            running = backgrounded.job(str(held.job_id))
            first, second = send().note("cancelled"), send().note("not cancelled")
            assert first.cancel() is True
            assert running.cancel() is False, "what runs cannot be taken back"
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("not cancelled")]
        self.ends(running, State.SUCCEEDED)
        self.ends(first, State.CANCELLED)
        self.ends(second, State.SUCCEEDED)
        assert second.cancel() is False
