"""What does every handler promise?

`HandlerContract` is the promises of a handler as tests: of ours, and of anybody's. It looks at effects in real workers,
through an oracle that stands outside of the system under test (`probe.py`). The K ids are those of the project's list
of behaviours.
"""

from __future__ import annotations

import contextvars
import json
import math
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

import backgrounded
from backgrounded import (
    BadArguments,
    BatchError,
    CallError,
    Duplicate,
    EncodeError,
    EnqueueError,
    Job,
    NoResult,
    NotAllowed,
    PerformError,
    ResultTimeout,
    Retry,
    State,
    Unique,
    UnknownMethod,
    UnsupportedOption,
)
from backgrounded.handler import OPTION_FEATURES, PROTOCOL, Feature, Guarantees

from . import probe as probes
from .frame import Frame, Oracle, Send, keeps, needs
from .probe import Declared, Event, Heir, Level, Probe, ProbeError, Queue, Record, Stranger, describe, given

FAR: float = 600.0
"""A delay, in seconds, after which no test is still running."""


PATIENT: Mapping[int, Retry] = {n: Retry(n, wait=0.2) for n in (0, 1, 3, 8)} | {2: Retry(2, wait=[1.5, 0.3])}
"""Policies with waits, by the number of retries."""


class Arguments(Frame):
    """What is called arrives as it was called."""

    def test_a_call_runs_once_with_its_arguments_in_order_and_type(self, send: Send, oracle: Oracle) -> None:
        """K03 K04 K98 K120"""
        send().note("foo", 1, "bar", 2.0, None, True)
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("foo", 1, "bar", 2.0, None, True)]

    def test_a_call_without_arguments_gets_none(self, send: Send, oracle: Oracle) -> None:
        """K05 K121"""
        send().note()
        oracle.wait("note")
        assert oracle.given("note") == [given()]

    def test_keywords_stay_keywords_and_a_trailing_dict_stays_positional(self, send: Send, oracle: Oracle) -> None:
        """K06 K07"""
        send().note("Smith", title="Mr.")
        send().note({"yo": "sup"})
        send().note("Smith", {"title": "Mr."})
        oracle.wait("note", 3)
        assert oracle.given("note") == [
            given("Smith", title="Mr."),
            given({"yo": "sup"}),
            given("Smith", {"title": "Mr."}),
        ]

    def test_a_keyword_may_be_named_like_an_option(self, send: Send, oracle: Oracle) -> None:
        """K08 K09 K18"""
        send().options(queue="b", delay=7)
        oracle.wait("options")
        assert oracle.given("options") == [given("b", delay=7)]

    def test_a_list_of_one_stays_a_list(self, send: Send, oracle: Oracle) -> None:
        """K67 K68"""
        send().note(["x"])
        send().note([[["x"]]], rest=[[]])
        oracle.wait("note", 2)
        assert oracle.given("note") == [given(["x"]), given([[["x"]]], rest=[[]])]

    @needs(worker=True)
    def test_arguments_are_copied_at_the_call(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K61"""
        items = [1, {"a": [2]}]
        with self.holding(send, oracle, tmp_path):
            send().note(items, more=items)
            items.append(3)
        oracle.wait("note")
        assert oracle.given("note") == [given([1, {"a": [2]}], more=[1, {"a": [2]}])]

    def test_every_type_of_value_comes_home_equal_in_value_and_type(self, send: Send, oracle: Oracle) -> None:
        """K43 to K51, K54 to K56, K69"""
        samples = probes.values()
        job = send().give(samples)
        assert oracle.wait("give")[0].given == given(samples)
        if Feature.RESULTS in self._handler.features:
            returned = job.result(self.deadline)
            for name, value in samples.items():
                assert describe(returned[name]) == describe(value), name

    def test_a_big_argument_arrives_whole(self, send: Send, oracle: Oracle) -> None:
        """K66"""
        text = 'ä"\\\n\u2028' * 10_000
        send().give(text)
        assert oracle.wait("give")[0].given == given(text)

    def test_calls_run_in_the_order_of_the_calls(self, send: Send, oracle: Oracle) -> None:
        """K23"""
        for number in range(8):
            send().note(number)
        oracle.wait("note", 8)
        assert oracle.given("note") == [given(number) for number in range(8)]


class Targets(Frame):
    """Methods of every kind run, on what they were called on, and nothing else does."""

    def test_a_class_method_runs_on_the_class_it_was_called_on(self, send: Send, oracle: Oracle) -> None:
        """K21 K22"""
        send.to(Probe).of_class(oracle.path, 1)
        send.to(Heir).of_class(oracle.path, 2)
        send().of_class(oracle.path, 3)
        oracle.wait("of_class", 3)
        assert oracle.given("of_class") == [given("Probe", 1), given("Heir", 2), given("Probe", 3)]

    def test_a_static_method_runs(self, send: Send, oracle: Oracle) -> None:
        """K21"""
        send.to(Heir).of_static(oracle.path, 1)
        assert oracle.wait("of_static")[0].given == given(1)

    def test_an_inherited_method_runs_on_the_object_s_own_class(self, send: Send, oracle: Oracle) -> None:
        """K22 K35 K41"""
        send.to(Heir(oracle.path)).who()
        assert oracle.wait("who")[0].given == given("Heir")

    def test_a_function_of_a_module_runs(self, send: Send, oracle: Oracle) -> None:
        """K20"""
        send.to(probes).note(oracle.path, 1, a=2)
        send.later(probes.note)(oracle.path, 3)
        oracle.wait("function", 2)
        assert oracle.given("function") == [given(1, a=2), given(3)]

    def test_a_coroutine_is_awaited(self, send: Send, oracle: Oracle) -> None:
        """K126"""
        job = send().anote(1)
        assert oracle.wait("anote")[0].given == given(1)
        if Feature.RESULTS in self._handler.features:
            assert job.result(self.deadline) == "awaited"

    def test_a_nested_call_goes_back_through_the_same_handler(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K25"""
        for alias in ("default", "second"):
            send(handler=alias).nest(send.queue)
        oracle.wait("note", 2)
        inner = {event.job_id: event for event in oracle.events("note")}
        outer = oracle.events("outer begins")
        assert len(inner) == 2
        assert inner.keys().isdisjoint(event.job_id for event in outer)
        assert [event.job and event.job["handler"] for event in outer] == ["default", "second"]
        assert sorted(str(event.job and event.job["handler"]) for event in inner.values()) == ["default", "second"]
        if not self.immediate:
            order = [event.what for event in oracle.events()]
            assert order.index("note") > order.index("outer ends"), "the nested job ran inside of the other one"

    @needs(run=False)
    def test_a_wrong_call_is_refused_at_the_call_and_nothing_is_sent(self, send: Send, oracle: Oracle) -> None:
        """K15 K17 K38 K57 K114 K127"""
        wrong: list[tuple[type[BaseException], Callable[[], Any]]] = [
            (UnknownMethod, lambda: send().nope()),
            (UnknownMethod, lambda: send()._private()),
            (BadArguments, lambda: send().options()),
            (BadArguments, lambda: send().options("a", dealy=1)),
            (EncodeError, lambda: send().note([1, [object()]])),
            (EncodeError, lambda: send().note(lambda: None)),
            (NotAllowed, lambda: send.to(Stranger()).run(oracle.path)),
            (NotAllowed, lambda: send.to(probes).unmarked(oracle.path)),
            (UnsupportedOption, lambda: send(quue="x").note()),
            (CallError, lambda: send().numbers()),
        ]
        for error, call in wrong:
            with pytest.raises(error):
                call()
        if self.runs:
            self.settle(send, oracle)
        assert {event.what for event in oracle.events()} <= {"settled"}


class Handles(Frame):
    """What the caller holds in hand is the job that runs."""

    @needs(run=False)
    def test_a_call_gives_a_job_and_not_the_method_s_value(self, send: Send) -> None:
        """K14 K70 K71"""
        job = send().give(42)
        assert type(job) is Job
        assert job.id
        assert job.engine_id is None or (isinstance(job.engine_id, str) and job.engine_id)
        assert job.name == "backgrounded.testing.probe.Probe.give"

    def test_a_run_knows_its_job(self, send: Send, oracle: Oracle) -> None:
        """K72 K132"""
        job = send().note()
        (event,) = oracle.wait("note")
        expected = {"id": job.id, "name": job.name, "attempt": 1, "handler": "default"}
        assert event.job is not None
        assert {key: event.job[key] for key in expected} == expected
        assert send.queue in (None, event.job["queue"])

    @needs(Feature.STATE, worker=True)
    def test_the_state_follows_the_job(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K194"""
        with self.holding(send, oracle, tmp_path):
            (held,) = oracle.events("holding")
            running, waiting, failing = self._job(held.job_id), send().note(), send().fail(None)
            self.until(lambda: running.state is State.RUNNING, lambda: f"running, but it is {running.state}")
            assert waiting.state is State.QUEUED
        self.ends(running, State.SUCCEEDED)
        self.ends(waiting, State.SUCCEEDED)
        self.ends(failing, State.FAILED)
        assert self._job(uuid.uuid4().hex).state is State.UNKNOWN

    @needs(Feature.STATE, Feature.RESULTS)
    def test_a_job_is_found_by_its_id_from_another_process(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K185 K187"""
        environment = self.environment(handler)
        if environment is None:
            pytest.skip("this handler cannot be had in another process (no `environment`)")
        job = send().give({"a": (1, 2)})
        failed = send().fail(None, message="as asked")
        self.ends(job, State.SUCCEEDED)
        self.ends(failed, State.FAILED)
        script = (
            "import sys, backgrounded, backgrounded.testing.probe as probes\n"
            "good, bad = map(backgrounded.job, sys.argv[1:])\n"
            "print(good.state, probes.describe(good.result(5)), bad.state, bad.exception(5), sep='|')\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, job.id, failed.id],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=self.deadline,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        error = "backgrounded.testing.probe.ProbeError: as asked"
        assert run.stdout.strip() == f"succeeded|{describe({'a': (1, 2)})}|failed|{error}"

    def _job(self, job_id: str | None) -> Job[Any]:
        assert job_id is not None
        return backgrounded.job(job_id)


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
            probe.backgrounded(queue=both, retry=Retry(1, wait=2.5)).fail(None)
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

    @needs(Feature.QUEUES, Feature.RETRY, Feature.RETRY_WAIT, worker=True)
    def test_a_retry_survives_the_end_of_the_worker(self, rounds: Rounds) -> None:
        """K134: the count goes on in the next worker"""
        runs = [[event.attempt for event in events if event.what == "fail"] for events in (rounds.first, rounds.second)]
        assert runs == [[1], [2]]

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
            soon = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=0.6)
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
        """K131"""
        send(timeout=60).note("in time")
        job = self.fails(lambda: send(timeout=2).spend(20))
        (event,) = oracle.wait("spending")
        self.ends(job, State.FAILED)
        if Feature.STATE in self._handler.features:
            assert time.time() <= event.at + 2 + self.lateness
        self.settle(send, oracle)
        assert [event.what for event in oracle.events()] == ["note", "spending", "settled"]
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
        """K134"""
        job = send(retry=4).fail(4)
        oracle.wait("recovered")
        self.ends(job, State.SUCCEEDED)
        self.settle(send, oracle)
        assert len(oracle.events("fail")) == 5
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
        oracle.wait("give", 2)

        def is_gone() -> bool:
            try:
                short.result(0)
            except NoResult:
                return True
            except ResultTimeout:
                pass
            return False

        self.until(is_gone, "the result of result_ttl=1 to be gone")
        assert kept.result(self.deadline) == 2

    @needs(Feature.CANCEL, worker=True)
    def test_a_job_that_was_cancelled_never_runs(self, send: Send, oracle: Oracle, tmp_path: Path) -> None:
        """K192"""
        with self.holding(send, oracle, tmp_path):
            first, second = send().note("cancelled"), send().note("not cancelled")
            assert first.cancel() is True
        oracle.wait("note")
        self.settle(send, oracle)
        assert oracle.given("note") == [given("not cancelled")]
        self.ends(first, State.CANCELLED)
        self.ends(second, State.SUCCEEDED)
        assert second.cancel() is False


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
        job = send(unique=key, retry=Retry(1, wait=0.5)).fail(1)
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
            oracle.wait("holding", 1 if accepted else 2)
            try:
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
        assert ran == [job.id for job in jobs]
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


class Troubles(Frame):
    """What goes wrong is said, where it can be acted upon, and nothing is lost over it."""

    @needs(run=False)
    def test_a_dead_engine_is_an_enqueue_error_with_its_cause_within_seconds(self, send: Send, oracle: Oracle) -> None:
        """K73 K74 K75"""
        dead = self.dead_handler()
        if dead is None:
            pytest.skip("this handler has no engine that can be down (no `dead_handler`)")
        with backgrounded.using(dead):
            started = time.monotonic()
            with pytest.raises(EnqueueError) as error:
                send().note("dead")
            assert time.monotonic() - started < 5
            assert error.value.__cause__ is not None
            assert error.value.uncertain is False
            with pytest.raises(BatchError) as batch, backgrounded.batch() as jobs:  # noqa: PT012  # raises at its exit
                send().note("dead")
                send().note("dead")
            assert batch.value.unsent == tuple(job.id for job in jobs)
            assert (batch.value.sent, batch.value.unknown) == ((), ())
            assert [job.state for job in jobs] == [State.UNSENT] * 2
        send().note("alive")
        oracle.wait("note")
        assert oracle.given("note") == [given("alive")]

    def test_a_hostile_wire_runs_nothing_and_the_worker_goes_on(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K58 K39"""
        for changes in self._hostile(oracle).values():
            call = self.doctored(lambda: send().note("doctored"), **changes)
            if self.immediate:
                with pytest.raises(PerformError):
                    handler.enqueue(call)
            else:
                handler.enqueue(call)
        self.settle(send, oracle)
        send().note("good")
        oracle.wait("note")
        assert oracle.given("note") == [given("good")]
        assert {event.what for event in oracle.events()} == {"note", "settled"}

    @needs(Feature.KEPT, Feature.STATE)
    def test_what_cannot_be_performed_is_kept_with_its_payload_and_the_reason(
        self, handler: Any, send: Send, oracle: Oracle
    ) -> None:
        """P16; kept jobs can be forgotten"""
        sent = {}
        for what, changes in self._hostile(oracle).items():
            call = self.doctored(lambda: send().note("doctored"), **changes)
            handler.enqueue(call)
            sent[call.id] = what, call.tree
        for job_id, (what, _) in sent.items():
            self.ends(backgrounded.job(job_id), State.KEPT, what)
        kept = {item.id: item for item in handler.kept()}
        for job_id, (what, tree) in sent.items():
            assert kept[job_id].reason, what
            assert kept[job_id].code, what
            assert _as_tree(kept[job_id].wire) == tree, what
            with pytest.raises(NoResult):
                backgrounded.job(job_id).result(0)
        for job_id in sent:
            handler.forget(job_id)
        assert not {item.id for item in handler.kept()} & sent.keys()

    @needs(Feature.KEPT)
    def test_a_kept_job_runs_when_it_is_replayed(
        self, handler: Any, send: Send, oracle: Oracle, tmp_path: Path
    ) -> None:
        """K31 K184"""
        row = tmp_path / "row"
        row.touch()
        found = Record(oracle.path, str(row))
        row.unlink()
        job = send.to(found, retry=self._retry(2)).find(7)
        oracle.wait("gone")
        self.ends(job, State.KEPT)
        self.settle(send, oracle)
        assert len(oracle.events("gone")) == 1, "what cannot be performed must not be tried again by itself"
        assert job.id in [item.id for item in handler.kept()]
        row.touch()
        handler.replay(job.id)
        assert oracle.wait("found")[0].given == given(7)
        self.ends(job, State.SUCCEEDED)
        assert job.id not in [item.id for item in handler.kept()]
        if Feature.RESULTS in handler.features:
            assert job.result(self.deadline) == 7

    def test_no_argument_shows_in_what_workers_write(self, handler: Any, send: Send, oracle: Oracle) -> None:
        """K159 K160 P18"""
        secret = f"canary-{uuid.uuid4().hex}"
        jobs = [
            send().note(secret),
            self.fails(lambda: send().fail_silently_with(secret), ProbeError),
            self.fails(lambda: send(retry=self._retry(2)).fail_silently_with(secret), ProbeError),
        ]
        call = self.doctored(lambda: send().note(secret), method="nope")
        if not self.immediate:
            handler.enqueue(call)
        oracle.wait("failed silently", 4 if self._retry(2) else 2)
        self.settle(send, oracle)
        output = self.worker_output()
        if output is None:
            pytest.skip("what the workers write cannot be read (no `worker_output`)")
        assert secret not in output
        for job in jobs:
            assert secret not in repr(job)
            if job is not None and Feature.RESULTS in handler.features:
                failure = job.exception(self.deadline)
                assert secret not in f"{failure} {failure and failure.traceback}"

    def _retry(self, retries: int) -> int | None:
        return retries if Feature.RETRY in self._handler.features else None

    def _hostile(self, oracle: Oracle) -> dict[str, Mapping[str, Any]]:
        """What a stranger could write, in place of parts of a good wire."""
        stranger = "backgrounded.testing.probe:Stranger"
        return {
            "a class of the standard library": {"target": {"class": "os:system"}, "method": "system"},
            "a module": {"target": {"module": "os"}, "method": "abort", "args": []},
            "a module that is not loaded": {"target": {"module": "antigravity"}},
            "a class that has not opted in": {"target": {"built": [stranger, [], {}]}, "method": "run"},
            "a function that has not opted in": {
                "target": {"module": "backgrounded.testing.probe"},
                "method": "unmarked",
                "args": [oracle.path],
            },
            "a private method": {"method": "_private", "args": []},
            "a method that does not exist": {"method": "nope"},
            "arguments that do not fit": {"method": "give", "args": []},
            "a value of an unknown kind": {"args": [{"$pickle": "Y29z"}]},
            "a newer version": {"v": 99},
            "no target": {"target": None},
        }


class Declarations(Frame):
    """What a handler says of itself is well formed."""

    @needs(run=False)
    def test_the_handler_declares_what_it_keeps_and_what_that_needs(self, handler: Any) -> None:
        """K172 K176"""
        assert type(handler).protocol == PROTOCOL
        assert isinstance(handler.features, frozenset)
        assert all(isinstance(feature, Feature) for feature in handler.features)
        for feature, need in getattr(handler, "needs", {}).items():
            assert feature in handler.features, f"needs names {feature}, which is not declared"
            assert isinstance(need, str)
            assert need.strip()
        if Feature.QUEUES in handler.features:
            assert isinstance(handler.default_queue, str)
            assert handler.default_queue
        if Feature.PRIORITY in handler.features and self.runs and not self.immediate:
            assert handler.priority_levels >= 2

    @needs(run=False)
    def test_the_handler_declares_its_guarantees(self, handler: Any) -> None:
        """P1 to P10: what a handler does not claim, nobody has to prove"""
        found = handler.guarantees
        assert isinstance(found, Guarantees)
        assert found.delivery in ("at-least-once", "at-most-once", "none")
        assert found.recovery_s is None or math.isfinite(found.recovery_s)
        assert found.delivery != "none" or found.recovery_s is None
        assert all(note.strip() for note in found.notes)

    @needs(Feature.WORKER, run=False)
    def test_the_worker_s_command_names_its_queues(self, handler: Any, queue: str, other_queue: str) -> None:
        """A worker is started with it, and not with what we think it does"""
        command = handler.worker_command([queue, other_queue])
        assert all(isinstance(word, str) for word in command)
        assert queue in " ".join(command)
        assert other_queue in " ".join(command)


def _as_tree(wire: Any) -> Any:
    return json.loads(wire) if isinstance(wire, (bytes, bytearray, str)) else wire


class HandlerContract(
    Arguments,
    Targets,
    Handles,
    Queues,
    Times,
    Priorities,
    Retries,
    Endings,
    Uniqueness,
    Batches,
    Troubles,
    Declarations,
):
    """The promises of a handler, as a test suite. Subclass it as `Test...` and give it two things:

    - a fixture `handler`, best with `scope="class"`: then the tests share one worker;
    - a context manager `worker(self, handler, *queues)` in which the engine's real worker runs the jobs of these
      queues, one at a time, ready at the beginning of the block and ended at its end. It must import
      `backgrounded.testing.probe` (BACKGROUNDED_APP=backgrounded.testing.probe).

    A test whose feature the handler does not declare is skipped and says which; before that, the option is made sure to
    be refused at the call. What else can be given: `dead_handler`, `environment`, `worker_output` (see `Frame`), and

    `deadline`: seconds that a test waits for an effect that must come. `lateness`: seconds by which a job that is due
    may be late. `immediate`: jobs run at the call. `runs`: whether jobs run at all. `many`: the size of a big batch.

    A promise cannot be overridden without a reason: `exempt` maps the names of tests to sentences that say why this
    handler cannot keep them. Such a test is skipped with the reason, or replaced where the subclass has its own.
    """

    __contract__: ClassVar[bool] = True
