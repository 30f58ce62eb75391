"""Does a job run when it shall, for as long as it may, and before what is less urgent?"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from backgrounded import (
    NoResult,
    Retry,
    State,
    UnsupportedOption,
)
from backgrounded.handler import OPTION_FEATURES, Feature

from ..frame import Frame, Gate, Oracle, Send, keeps, needs
from ..probe import given

FAR: float = 600.0
"""A delay, in seconds, after which no test is still running."""


class Times(Frame):
    """A job runs when it is due: not before, and soon after."""

    @needs(Feature.DELAY, worker=True, delay=2)
    def test_a_delayed_job_runs_when_it_is_due_and_not_before(self, send: Send, oracle: Oracle) -> None:
        """K104 K105"""
        called = time.time()
        elsewhere = timezone(timedelta(hours=-9, minutes=-30))
        due = {
            "at": called + 2.2,
            "seconds": called + 1.5,
            "timedelta": called + 0.5,
            "now": called,
        }
        send(at=datetime.fromtimestamp(due["at"], elsewhere)).note("at")
        scheduled = send(delay=1.5).note("seconds")
        send(delay=timedelta(seconds=0.5)).note("timedelta")
        send().note("now")
        if Feature.STATE in self._handler.features:
            assert scheduled.state is State.SCHEDULED or time.time() >= due["seconds"]
        ran = {event.given: event.at for event in oracle.wait("note", 4)}
        assert len(ran) == 4
        for name, moment in due.items():
            assert ran[given(name)] >= moment, f"{name}: {moment - ran[given(name)]:.3f} s early"
            assert ran[given(name)] <= moment + self.lateness, f"{name}: {ran[given(name)] - moment:.3f} s late"

    @needs(Feature.DELAY, worker=True)
    def test_a_time_in_the_past_and_no_delay_mean_now(self, send: Send, oracle: Oracle) -> None:
        """K106"""
        send(at=datetime(2001, 2, 3, tzinfo=timezone(timedelta(hours=14)))).note("past")
        send(delay=0).note("zero")
        oracle.wait("note", 2)

    @needs(Feature.DELAY, worker=True)
    def test_a_job_of_the_far_future_does_not_run(self, send: Send, oracle: Oracle) -> None:
        """K107"""
        zone = timezone(timedelta(hours=-12))
        jobs = [
            send(delay=FAR).note("delay"),
            send(delay=timedelta(seconds=FAR)).note("timedelta"),
            send(at=datetime.now(zone) + timedelta(seconds=FAR)).note("at"),
        ]
        send(delay=0.5).note("soon")
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("soon")]
        if Feature.STATE in self._handler.features:
            assert [job.state for job in jobs] == [State.SCHEDULED] * 3
        if Feature.CANCEL in self._handler.features:
            assert [job.cancel() for job in jobs] == [True] * 3

    @needs(run=False)
    def test_an_option_that_is_not_kept_is_refused_at_the_call(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K108 K167"""
        samples: dict[str, Any] = {
            "queue": "elsewhere",
            "delay": 5,
            "at": datetime.now(timezone.utc) + timedelta(seconds=5),
            "priority": 8,
            "retry": Retry(1, wait=5),
            "timeout": 5,
            "expires": 5,
            "unique": "key",
            "result_ttl": 5,
            "native": {"word": 1},
        }
        assert samples.keys() == OPTION_FEATURES.keys()
        refused = {option: value for option, value in samples.items() if not keeps(handler, option, value)}
        for option, value in refused.items():
            with pytest.raises(UnsupportedOption) as error:
                send(**{option: value}).note()
            assert error.value.option == option
            assert option not in error.value.kept or option == "retry"
        if not refused:
            pytest.skip("the handler keeps every option")
        if self.runs:
            self.settle(send, oracle)
        assert oracle.events("note") == []

    @needs(Feature.EXPIRES, worker=True, expires=60)
    def test_an_expired_job_does_not_run(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """expires"""
        with self.holding(send, oracle, tmp_path):
            soon = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=2)
            dated = send(expires=soon).note("dated")
            expired = send(expires=0.5).note("expired")
            last = time.time() + 0.5
            send(expires=FAR).note("in time")
            self.until(lambda: time.time() > max(last, soon.timestamp()))
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("in time")]
        for job in (expired, dated):
            self.ends(job, State.EXPIRED)
            if Feature.RESULTS in self._handler.features:
                with pytest.raises(NoResult):
                    job.result(0)

    @needs(Feature.TIMEOUT, timeout=5)
    def test_a_job_is_stopped_at_its_timeout_and_says_which(self, send: Send, oracle: Oracle) -> None:
        """K131 K132"""
        send(timeout=60).note("in time")
        job = self.fails(lambda: send(timeout=2).spend(20))
        (event,) = oracle.wait("spending")
        self.ends(job, State.FAILED)
        if Feature.STATE in self._handler.features:
            assert time.time() <= event.at + 2 + self.lateness
        self.settle(send, oracle)
        assert [event.what for event in oracle.events() if event.what != "settled"] == ["note", "spending"]
        (in_time,) = oracle.events("note")
        told = None if in_time.job is None else in_time.job["deadline"]
        assert told is not None, "a run does not know when it will be stopped"
        assert abs(in_time.at + 60 - told) < self.lateness
        if job is not None and Feature.RESULTS in self._handler.features:
            failure = job.exception(self.deadline)
            assert failure is not None
            assert "2 s" in failure.message or "2.0 s" in failure.message, failure.message

    @needs(Feature.TIMEOUT, Feature.RETRY, timeout=5)
    def test_a_job_over_its_timeout_is_retried_as_its_policy_says(self, send: Send, oracle: Oracle) -> None:
        """K131, K134: the filter means the same on every engine, whatever the engine's own exception is."""
        self.fails(lambda: send(timeout=2, retry=Retry(3, give_up_on=[TimeoutError])).spend(20))
        job = self.fails(lambda: send(timeout=2, retry=Retry(1, on=[TimeoutError])).spend(20))
        oracle.wait("spending", 3)
        self.ends(job, State.FAILED)
        self.settle(send, oracle)
        assert len(oracle.events("spending")) == 3


class Priorities(Frame):
    """The more urgent job runs first, as far as the handler tells them apart."""

    @needs(Feature.PRIORITY, worker=True, priority=8)
    def test_the_more_urgent_job_runs_first(self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K110"""
        levels = self._levels(handler)
        calls = [*levels[1::2], *levels[::2]]
        with self.holding(send, oracle, tmp_path):
            for priority in calls:
                send(priority=priority).note(priority)
        oracle.wait("note", len(calls))
        assert oracle.given("note") == [given(priority) for priority in sorted(calls, reverse=True)]

    @needs(Feature.PRIORITY, worker=True)
    def test_ties_run_in_the_order_of_the_calls_and_5_is_the_same_as_none(
        self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K111 K112"""
        high = self._levels(handler)[0]
        words: list[Any] = [5, None, "normal", 5, None]
        with self.holding(send, oracle, tmp_path):
            for number, priority in enumerate([*words, high, high, high]):
                send(priority=priority).note(number)
        oracle.wait("note", 8)
        assert oracle.given("note") == [given(number) for number in (5, 6, 7, 0, 1, 2, 3, 4)]

    @needs(Feature.PRIORITY, Feature.RETRY, worker=True, priority=8, retry=2)
    def test_a_retry_is_as_urgent_as_its_job(self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K143"""
        with self.holding(send, oracle, tmp_path):
            for number in range(3):
                send().note(number)
            send(priority=self._levels(handler)[0], retry=2).fail(2)
        oracle.wait("note", 3)
        runs = [event.what for event in oracle.events() if event.what in ("fail", "note")]
        assert runs == ["fail"] * 3 + ["note"] * 3

    @needs(Feature.PRIORITY, Feature.RETRY, worker=True, priority=8, retry=1)
    def test_a_retry_is_no_more_urgent_than_its_job(
        self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K143: what is lost on the way to the next try may mean "first" to an engine."""
        levels = self._levels(handler)
        if len(levels) < 3:
            pytest.skip("the handler tells two priorities apart, and a job without one has one of them")
        gate = Gate(tmp_path / "gate")
        send(priority=levels[-1], retry=1).hold(gate.path, 1)
        try:
            oracle.wait("holding")
            for number in range(3):
                send().note(number)
        finally:
            gate.open()
        oracle.wait("recovered")
        assert [event.what for event in oracle.events()[2:]] == [
            "fail",
            *["note"] * 3,
            "holding",
            "released",
            "fail",
            "recovered",
        ]

    def test_priority_5_is_never_refused(self, send: Send, oracle: Oracle) -> None:
        """K112"""
        send(priority=5).note()
        send(priority="normal").note()
        oracle.wait("note", 2)

    def _levels(self, handler: Any) -> list[int]:
        """Priorities that the handler tells apart, the most urgent first."""
        count = handler.priority_levels
        if count >= 10:
            return list(range(9, -1, -1))
        return [9, 5, 0] if count >= 3 else [9, 0]
