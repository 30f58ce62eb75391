"""Does what was called run, with what it was called with, and is the caller told how?"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import backgrounded
from backgrounded import (
    BadArguments,
    CallError,
    EncodeError,
    Job,
    NotAllowed,
    State,
    UnknownMethod,
    UnsupportedOption,
)
from backgrounded.handler import Feature

from .. import probe as probes
from ..frame import Frame, Oracle, Send, needs
from ..probe import Heir, Probe, Stranger, describe, given


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
