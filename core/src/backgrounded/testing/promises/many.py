"""What holds for calls that go together, and for those that must not?"""

from __future__ import annotations

import contextvars
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import backgrounded
from backgrounded import (
    Duplicate,
    Job,
    Retry,
    State,
    Unique,
)
from backgrounded.handler import Feature

from ..frame import Frame, Oracle, Send, needs
from ..probe import Heir, ProbeError, given
from .times import FAR


class Uniqueness(Frame):
    """At most one job with a key is on its way."""

    @needs(Feature.UNIQUE, worker=True, unique="key")
    def test_a_second_job_with_the_key_is_refused_with_the_id_of_the_first(
        self, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K77"""
        key, other = uuid.uuid4().hex, uuid.uuid4().hex
        with self.holding(send, oracle, tmp_path):
            first = send(unique=key).note("first")
            with pytest.raises(Duplicate) as refusal:
                send(unique=key).note("second")
            assert (refusal.value.key, refusal.value.existing_id) == (key, first.id)
            same = send(unique=Unique(key, on_conflict="return")).note("third")
            assert same.id == first.id
            send(unique=other).note("other key")
        oracle.wait("note", 2)
        self.settle(send, oracle)
        assert oracle.given("note") == [given("first"), given("other key")]
        self.ends(same, State.SUCCEEDED)

    @needs(Feature.UNIQUE)
    def test_the_key_is_free_again_when_the_job_is_done(self, send: Send, oracle: Oracle) -> None:
        """K78"""
        key = uuid.uuid4().hex
        self.ends(send(unique=key).note(1), State.SUCCEEDED)
        self._settled(oracle, send, "note", 1)
        self.ends(send(unique=key).note(2), State.SUCCEEDED)
        self._settled(oracle, send, "note", 2)
        self.ends(self.fails(lambda: send(unique=key).fail(None), ProbeError), State.FAILED)
        self._settled(oracle, send, "fail", 1)
        send(unique=key).note(3)
        oracle.wait("note", 3)

    @needs(Feature.UNIQUE, Feature.RETRY, Feature.RETRY_WAIT, worker=True)
    def test_the_key_is_held_between_two_tries(self, send: Send, oracle: Oracle) -> None:
        """K77"""
        key = uuid.uuid4().hex
        job = send(unique=key, retry=Retry(1, wait=4)).fail(1)
        oracle.wait("fail")
        self.settle(send, oracle)
        accepted = self._is_accepted(lambda: send(unique=key).note())
        assert not accepted or oracle.events("recovered"), "the key was free although the job was not done"
        oracle.wait("recovered")
        self.ends(job, State.SUCCEEDED)

    @needs(Feature.UNIQUE, worker=True)
    def test_a_key_until_the_start_is_free_while_the_job_runs(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K78"""
        keys = Unique(uuid.uuid4().hex, until="start"), Unique(uuid.uuid4().hex, until="done")
        for unique, accepted in zip(keys, (True, False), strict=True):
            gate = tmp_path / unique.until
            send(unique=unique).hold(str(gate))
            try:
                oracle.wait("holding", 1 if accepted else 2)
                if accepted:
                    send(unique=unique).note(unique.until)
                else:
                    with pytest.raises(Duplicate):
                        send(unique=unique).note(unique.until)
            finally:
                gate.touch()
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("start")]

    @needs(Feature.UNIQUE, worker=True)
    def test_a_key_is_free_again_after_its_ttl(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K78"""
        key = uuid.uuid4().hex
        with self.holding(send, oracle, tmp_path):
            called = time.time()
            send(unique=Unique(key, ttl=0.8)).note(1)
            self.until(lambda: self._is_accepted(lambda: send(unique=key).note(2)), "the key to be free again")
            assert time.time() >= called + 0.8
        oracle.wait("note", 2)

    @needs(Feature.UNIQUE, Feature.CANCEL, worker=True)
    def test_a_cancelled_job_gives_its_key_back(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K78 K192"""
        key = uuid.uuid4().hex
        with self.holding(send, oracle, tmp_path):
            assert send(unique=key).note("cancelled").cancel()
            send(unique=key).note("next")
        oracle.wait("note")
        assert oracle.given("note") == [given("next")]

    def _settled(self, oracle: Oracle, send: Send, what: str, count: int) -> None:
        oracle.wait(what, count)
        self.settle(send, oracle)

    def _is_accepted(self, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Duplicate:
            return False
        return True


class Batches(Frame):
    """Many calls in one go are the same calls."""

    def test_a_batch_is_sent_at_its_exit(self, send: Send, oracle: Oracle) -> None:
        """K84 K115 K117"""
        outside = contextvars.copy_context()
        with backgrounded.batch() as jobs:
            first = send().note(1)
            send.to(Heir(oracle.path)).who()
            send().note(2)
            assert first.state is State.DEFERRED
            outside.run(self.settle, send, oracle)
            assert oracle.events("note") == []
        oracle.wait("note", 2)
        oracle.wait("who")
        self.settle(send, oracle)
        assert oracle.given("note") == [given(1), given(2)]
        ran = [event.job_id for event in oracle.events() if event.what in ("note", "who")]
        ids = [job.id for job in jobs]
        assert ran == ids
        told = [job.engine_id for job in jobs]
        assert told == ids or not set(told) & set(ids), "the engine's id of a call in a batch is that of another one"
        for job in jobs:
            self.ends(job, State.SUCCEEDED)

    @needs(run=False)
    def test_an_exception_in_a_batch_sends_nothing(self, send: Send, oracle: Oracle) -> None:
        """K76"""
        jobs: list[Job[Any]] = []
        with pytest.raises(ZeroDivisionError), backgrounded.batch():  # noqa: PT012  # what is called before it matters
            jobs += [send().note(1), send().note(2)]
            _ = 1 / 0
        assert [job.state for job in jobs] == [State.DROPPED] * 2
        if self.runs:
            self.settle(send, oracle)
        assert oracle.events("note") == []

    @needs(run=False)
    def test_an_empty_batch_does_nothing(self) -> None:
        """K119"""
        with backgrounded.batch() as jobs:
            pass
        assert jobs == []

    @needs(Feature.DELAY, worker=True)
    def test_a_batch_may_mix_times(self, send: Send, oracle: Oracle) -> None:
        """K116"""
        called = time.time()
        with backgrounded.batch():
            send().note("now")
            send(delay=0.6).note("delayed")
            send(delay=FAR).note("far")
            send().note("now, too")
        ran = {event.given: event.at for event in oracle.wait("note", 3)}
        assert ran.keys() == {given("now"), given("delayed"), given("now, too")}
        assert called + 0.6 <= ran[given("delayed")] <= called + 0.6 + self.lateness

    def test_a_batch_of_more_than_a_trip_arrives_whole(
        self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K115: more than a thousand calls"""
        if not {Feature.STATE, Feature.CANCEL} <= handler.features or self.immediate:
            self._call_many(send)
            oracle.wait("note", self.many)
            assert oracle.given("note") == [given(number) for number in range(self.many)]
            return
        # To run them all would only measure the engine: the first, the last, and those around the end of the trip do.
        chosen = [0, 998, 999, 1000, 1001, self.many - 1]
        with self.holding(send, oracle, tmp_path):
            jobs = self._call_many(send)
            assert {job.state for job in jobs} == {State.QUEUED}
            for number in set(range(self.many)) - set(chosen):
                assert jobs[number].cancel()
        oracle.wait("note", len(chosen))
        assert oracle.given("note") == [given(number) for number in chosen]

    def _call_many(self, send: Send) -> list[Job[Any]]:
        target = send()
        with backgrounded.batch() as jobs:
            for number in range(self.many):
                target.note(number)
        assert len({job.id for job in jobs}) == self.many
        return jobs

    def test_map_sends_one_call_for_each_item(self, send: Send, oracle: Oracle) -> None:
        """K115"""
        assert send.later(send.probe.give).map(range(5)).sent == 5
        assert send.later(send.probe.note).starmap([(1, 2), (3, 4)]).sent == 2
        jobs = list(send.later(send.probe.give).imap("ab"))
        oracle.wait("give", 7)
        assert oracle.given("give") == [given(item) for item in (0, 1, 2, 3, 4, "a", "b")]
        assert oracle.given("note") == [given(1, 2), given(3, 4)]
        assert [event.job_id for event in oracle.events("give")[5:]] == [job.id for job in jobs]
