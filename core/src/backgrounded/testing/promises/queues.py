"""Does a job run from the queue that its call names, and from no other?"""

from __future__ import annotations

import contextvars
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

import backgrounded
from backgrounded import (
    InvalidOption,
    Retry,
    State,
)
from backgrounded.handler import Feature

from ..frame import Frame, Oracle, Send, needs
from ..probe import Event, Probe, ProbeError, Queue, given


@dataclass(frozen=True)
class Rounds:
    """What two workers ran, one after the other: the first listened to `b` and the default queue, the second to `a` and
    "mail". Both listened to `both`."""

    a: str
    b: str
    both: str
    first: list[Event]
    second: list[Event]

    def of(self, test: str) -> tuple[list[str], list[str]]:
        """What the calls of one test did in each round, by what they were called with after the test's name."""
        start = given(test).partition(")")[0]
        return tuple([e.given for e in events if e.given.startswith(start)] for events in (self.first, self.second))  # type: ignore[return-value]  # two of them


class Queues(Frame):
    """A job is on the queue that its call names, and on no other: found out by listening to one first, then to another.

    Workers take seconds to start, so these tests make their calls together and share two of them.
    """

    @pytest.fixture
    def rounds(self, handler: Any, send: Send, standing: Any, tmp_path: Path) -> Rounds:
        if "rounds" not in standing.shared:
            standing.shared["rounds"] = self._run_rounds(handler, send, Oracle(tmp_path / "rounds.jsonl", self))
        return cast(Rounds, standing.shared["rounds"])

    def _run_rounds(self, handler: Any, send: Send, oracle: Oracle) -> Rounds:
        a, b, both = (f"{letter}-{uuid.uuid4().hex[:8]}" for letter in ("a", "b", "both"))
        probe = Probe(oracle.path)
        probe.backgrounded(queue=a).note("isolated", "a")
        probe.backgrounded(queue=b).note("isolated", "b")
        on_a = probe.backgrounded(queue=a)
        on_a.note("sticky", "a")
        probe.backgrounded.note("sticky", "default")
        on_a.note("sticky", "a again")
        probe.backgrounded(queue=None).note("sticky", "default again")
        probe.backgrounded(queue=Queue.MAIL).note("enum", "mail")
        with backgrounded.batch():
            for queue in (a, b, None):
                probe.backgrounded(queue=queue).note("batch", queue)
        self._call_from_threads(probe, a, b)
        send.to(probe).nest(a)
        oracle.wait("outer ends")
        if Feature.RETRY_WAIT in handler.features:
            probe.backgrounded(queue=both, retry=Retry(1, wait=5)).fail(None)
        retries = Feature.RETRY_WAIT in handler.features
        with self.worker(handler, b, handler.default_queue, both):
            oracle.wait_in_vain("note", 13)
            oracle.wait_in_vain("fail", 1 * retries)
        first = oracle.events()
        with self.worker(handler, a, "mail", both):
            oracle.wait_in_vain("note", 27)
            oracle.wait_in_vain("fail", 2 * retries)
        return Rounds(a, b, both, first, oracle.events()[len(first) :])

    def _call_from_threads(self, probe: Probe, *queues: str) -> None:
        ready = threading.Barrier(len(queues))

        def call(name: str) -> None:
            ready.wait()
            for number in range(8):
                probe.backgrounded(queue=name).note("threads", name, number)

        copies = [contextvars.copy_context() for _ in queues]
        threads = [threading.Thread(target=c.run, args=(call, name)) for c, name in zip(copies, queues, strict=True)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that the threads take turns within one call
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)

    @needs(Feature.QUEUES, worker=True, queue="elsewhere")
    def test_a_job_of_a_queue_nobody_listens_to_does_not_run(self, rounds: Rounds) -> None:
        """K95 K98 K99"""
        assert rounds.of("isolated") == ([given("isolated", "b")], [given("isolated", "a")])
        queues = {event.given: event.job and event.job["queue"] for event in rounds.first + rounds.second}
        assert queues[given("isolated", "a")] == rounds.a
        assert queues[given("isolated", "b")] == rounds.b

    @needs(Feature.QUEUES, worker=True)
    def test_a_call_without_a_queue_goes_to_the_default_queue_and_a_queue_does_not_stick(self, rounds: Rounds) -> None:
        """K13 K24 K94 K96"""
        assert rounds.of("sticky") == (
            [given("sticky", "default"), given("sticky", "default again")],
            [given("sticky", "a"), given("sticky", "a again")],
        )

    @needs(Feature.QUEUES, worker=True)
    def test_a_queue_may_be_an_enum_and_a_worker_may_serve_several(self, rounds: Rounds) -> None:
        """K100"""
        assert rounds.of("enum") == ([], [given("enum", "mail")])

    @needs(Feature.QUEUES, worker=True)
    def test_two_threads_with_two_queues_never_cross(self, rounds: Rounds) -> None:
        """K13 K97"""
        of_b, of_a = ([given("threads", name, number) for number in range(8)] for name in (rounds.b, rounds.a))
        assert rounds.of("threads") == (of_b, of_a)

    @needs(Feature.QUEUES, worker=True)
    def test_a_batch_may_mix_queues(self, rounds: Rounds) -> None:
        """K115"""
        first, second = rounds.of("batch")
        assert sorted(first) == sorted([given("batch", rounds.b), given("batch", None)])
        assert second == [given("batch", rounds.a)]

    @needs(Feature.QUEUES, worker=True)
    def test_a_nested_call_reaches_the_queue_it_names(self, rounds: Rounds) -> None:
        """K25 K95"""
        assert rounds.of("inner") == ([], [given("inner")])

    @needs(Feature.QUEUES, worker=True)
    def test_a_queue_that_is_taken_at_the_call_is_one_that_a_worker_can_serve(
        self, handler: Any, oracle: Oracle
    ) -> None:
        """K95: whatever it is called. An engine or its command that cannot have such a name refuses it at the call."""
        taken = []
        for name in ("a b", "комната", "a,b", "-q", "a/b:c.d", "%2F*", "q" * 300):
            queue = f"{name}{uuid.uuid4().hex[:8]}"
            with suppress(InvalidOption):
                Probe(oracle.path).backgrounded(queue=queue).note(queue)
                taken.append(queue)
        if taken:
            with self.worker(handler, *taken):
                oracle.wait("note", len(taken))
        assert sorted(oracle.given("note")) == sorted(map(given, taken))

    @needs(Feature.QUEUES, Feature.RETRY, Feature.RETRY_WAIT, worker=True)
    def test_a_retry_survives_the_end_of_the_worker(self, rounds: Rounds) -> None:
        """K134: the count goes on in the next worker"""
        runs = [[event.attempt for event in events if event.what == "fail"] for events in (rounds.first, rounds.second)]
        # A worker may take longer to end than the retry waits, and run it: RQ's, where it misses the first SIGTERM.
        assert runs in ([[1], [2]], [[1, 2], []])

    def test_options_of_one_call_never_reach_another(self, send: Send, oracle: Oracle) -> None:
        """K10 K12 K13 K24"""
        if Feature.RETRY not in self._handler.features:
            pytest.skip("the handler does not declare: retry, the option that this test looks at")
        patient, plain = send(retry=2), send()
        jobs = [
            self.fails(lambda: patient.fail(None, "patient"), ProbeError),
            self.fails(lambda: plain.fail(None, "plain"), ProbeError),
            self.fails(lambda: send(retry=1).fail(None, "once more"), ProbeError),
            self.fails(lambda: patient.fail(None, "patient again"), ProbeError),
            self.fails(lambda: send().fail(None, "plain again"), ProbeError),
        ]
        oracle.wait("fail", 10)
        for job in jobs:
            self.ends(job, State.FAILED)
        self.settle(send, oracle)
        seen = oracle.given("fail")
        runs = {"patient": 3, "plain": 1, "once more": 2, "patient again": 3, "plain again": 1}
        assert {key: seen.count(given(key)) for key in runs} == runs
