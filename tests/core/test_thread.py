"""What becomes of jobs and their contexts in the pool of threads: while it works, when it is full, when it ends?"""

from __future__ import annotations

import contextvars
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import backgrounded
import pytest
from backgrounded import EnqueueError, Retry, State
from backgrounded.errors import ConfigurationError
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.handlers.thread import ThreadHandler, _Crew
from backgrounded.testing.probe import Probe, Record, events, given

DEADLINE = 20.0
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Tenant(Probe):
    """Says in whose context it runs."""

    def ask(self) -> str:
        return tenant.get()

    def ask_until_it_works(self) -> str:
        if len(events(self.path, "note")) < 2:
            self.note()
            raise ValueError("not yet")
        return tenant.get()

    def hold_and_fail_once(self, gate: str) -> str:
        first = not events(self.path, "holding")
        self.hold(gate)
        if first:
            raise ValueError("not yet")
        return tenant.get()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "oracle.jsonl")


@pytest.fixture
def handler() -> Iterator[ThreadHandler]:
    handler = ThreadHandler(workers=2)
    with backgrounded.using(handler):
        yield handler
    handler.close()


# -- contexts


def test_a_job_and_its_retries_run_in_the_context_of_the_caller(handler: ThreadHandler, path: str) -> None:
    jobs = []
    for name in ("a", "b"):
        token = tenant.set(name)
        jobs.append(Tenant(path).backgrounded.ask())
        tenant.reset(token)
    assert [job.result(DEADLINE) for job in jobs] == ["a", "b"]
    token = tenant.set("c")
    job = Tenant(path).backgrounded(retry=Retry(5, wait=0.01)).ask_until_it_works()
    tenant.reset(token)
    assert job.result(DEADLINE) == "c"


class Thing:
    """Something whose end can be seen."""


@pytest.mark.parametrize("ending", ["succeeded", "failed", "cancelled", "refused", "forgotten"])
def test_nothing_of_the_caller_s_context_is_held_when_the_job_has_ended(ending: str, path: str, tmp_path: Path) -> None:
    held: contextvars.ContextVar[Thing] = contextvars.ContextVar("held")
    handler = ThreadHandler(workers=1, limit=1)
    thing = Thing()
    seen = weakref.ref(thing)

    def call() -> None:
        held.set(seen())  # type: ignore[arg-type]  # it is there
        with backgrounded.using(handler):
            if ending == "succeeded":
                Probe(path).backgrounded.note().wait(DEADLINE)
            elif ending == "failed":
                Probe(path).backgrounded(retry=1).fail(None).wait(DEADLINE)
            elif ending == "cancelled":
                assert Probe(path).backgrounded(delay=600).note().cancel()
            elif ending == "forgotten":
                row = tmp_path / "row"
                row.touch()
                record = Record(path, str(row))
                row.unlink()
                job = record.backgrounded.find(1)
                until(lambda: job.state is State.KEPT)
                handler.forget(job.id)
            else:
                waiting = Probe(path).backgrounded(delay=600).note()
                with pytest.raises(EnqueueError):
                    Probe(path).backgrounded.note()
                waiting.cancel()

    contextvars.copy_context().run(call)
    del thing
    until(lambda: gc.collect() is not None and seen() is None)
    handler.close()


# -- the pool


def test_a_full_pool_refuses_a_job_but_never_a_retry(path: str, tmp_path: Path) -> None:
    handler = ThreadHandler(workers=1, limit=1)
    gate = tmp_path / "gate"
    with backgrounded.using(handler):
        failing = Tenant(path).backgrounded(retry=1).hold_and_fail_once(str(gate))
        until(lambda: events(path, "holding"))
        waiting = Probe(path).backgrounded.note()
        with pytest.raises(EnqueueError, match="1 jobs are waiting"):
            Probe(path).backgrounded.note()
        gate.touch()
        assert failing.wait(DEADLINE) is State.SUCCEEDED
        assert waiting.wait(DEADLINE) is State.SUCCEEDED
    handler.close()


def test_a_pool_of_no_queue_leaves_the_jobs_to_those_who_serve_them(path: str) -> None:
    handler = ThreadHandler(queues=[])
    with backgrounded.using(handler):
        job = Probe(path).backgrounded(queue="mail").note("mail")
        other = Probe(path).backgrounded(queue="slow").note("slow")
        with handler.serving("mail", workers=2):
            assert job.wait(DEADLINE) is State.SUCCEEDED
        assert other.state is State.QUEUED
        with handler.serving():
            assert other.wait(DEADLINE) is State.SUCCEEDED
    handler.close()


def test_those_who_serve_a_queue_finish_their_job_and_take_no_other(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = ThreadHandler(queues=[])
    gate, join = tmp_path / "gate", _Crew.join

    def let_go_and_join(crew: _Crew) -> None:
        gate.touch()  # they have been told to leave by now
        join(crew)

    monkeypatch.setattr(_Crew, "join", let_go_and_join)
    with backgrounded.using(handler):
        with handler.serving("mail"):
            job = Probe(path).backgrounded(queue="mail").hold(str(gate))
            until(lambda: events(path, "holding"))
            waiting = Probe(path).backgrounded(queue="mail").note()
        assert job.state is State.SUCCEEDED
        assert waiting.state is State.QUEUED
    handler.close()


def test_a_pool_that_was_closed_takes_no_jobs(path: str) -> None:
    before = threading.enumerate()
    handler = ThreadHandler()
    with backgrounded.using(handler):
        job = Probe(path).backgrounded.note()
        handler.close()
        assert job.state is State.SUCCEEDED
        with pytest.raises(EnqueueError, match="closed"):
            Probe(path).backgrounded.note()
    handler.close()
    assert {*threading.enumerate()} <= {*before}


def test_several_threads_run_jobs_side_by_side(handler: ThreadHandler, path: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = Probe(path).backgrounded.hold(str(gate))
    second = Probe(path).backgrounded.hold(str(gate))
    until(lambda: len(events(path, "holding")) == 2)
    gate.touch()
    assert [first.wait(DEADLINE), second.wait(DEADLINE)] == [State.SUCCEEDED] * 2


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": True}, {"queues": "mail"}])
def test_a_pool_that_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        ThreadHandler(**settings)  # type: ignore[arg-type]  # on purpose


# -- the end of the process

PROGRAM = """
    import logging, sys
    import backgrounded
    from backgrounded import Retry
    from backgrounded.testing.probe import Probe

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    backgrounded.configure("thread", workers=2)
    probe = Probe(sys.argv[1])
"""


def run_program(body: str, path: str) -> str:
    """What a program that calls and then ends says on its way out."""
    source = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
    run = subprocess.run(
        [sys.executable, "-c", source, path], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stderr


def test_at_exit_what_is_due_is_finished(path: str) -> None:
    said = run_program("for number in range(50): probe.backgrounded.note(number)", path)
    assert sorted(event.given for event in events(path, "note")) == sorted(given(number) for number in range(50))
    assert said == ""


def test_at_exit_what_the_last_jobs_call_and_try_again_is_finished_too(path: str) -> None:
    run_program("probe.backgrounded.nest(None); probe.backgrounded(retry=3).fail(3); probe.backgrounded.anote()", path)
    assert {event.what for event in events(path)} >= {"note", "recovered", "anote"}


def test_at_exit_what_is_not_due_is_lost_and_said_so(path: str) -> None:
    started = time.monotonic()
    said = run_program("probe.backgrounded.note(); probe.backgrounded(delay=600).note()", path)
    assert len(events(path, "note")) == 1
    assert "1 jobs are lost" in said
    assert time.monotonic() - started < DEADLINE


def test_a_forked_child_starts_with_no_jobs_and_threads_of_its_own(path: str) -> None:
    run_program(
        """
        import os, time
        from backgrounded.testing.probe import events
        def ran(count):
            end = time.monotonic() + 10
            while len(events(sys.argv[1], "note")) < count and time.monotonic() < end: time.sleep(0.01)
        probe.backgrounded.note("parent"); ran(1)
        probe.backgrounded(delay=1).note("of the parent alone")
        child = os.fork()
        probe.backgrounded.note("after the fork")
        ran(3)
        if child:
            os.waitpid(child, 0); ran(4)
        """,
        path,
    )
    runs = [(event.given, event.pid) for event in events(path, "note")]
    assert sorted(text for text, _ in runs) == sorted(
        [given("parent"), given("after the fork"), given("after the fork"), given("of the parent alone")]
    )
    assert len({pid for text, pid in runs if text == given("after the fork")}) == 2


# -- many jobs


def test_a_job_is_taken_in_the_same_time_whether_a_thousand_wait_or_ten_thousand() -> None:
    def seconds(count: int) -> float:
        handler = ThreadHandler(queues=[], limit=count)
        with backgrounded.using(handler):
            for number in range(count):
                Probe("/nowhere").backgrounded(queue=f"q{number % 3}", priority=number * 7 % 10).note()
        started = time.thread_time()
        ranks = [taken.rank for taken in iter(lambda: handler._take(()), None)]
        assert len(ranks) == count
        assert ranks == sorted(ranks)
        return time.thread_time() - started

    few = min(seconds(1_000) for _ in range(3))
    many = seconds(10_000)
    assert many < few * 10 * 5, f"1,000 took {few:.4f} s and 10,000 took {many:.4f} s"


def test_cancelled_jobs_of_the_far_future_leave_nothing_behind() -> None:
    handler = MemoryHandler()
    with backgrounded.using(handler):
        for _ in range(500):
            assert Probe("/nowhere").backgrounded(delay=600).note().cancel()
    assert sum(len(lane.later) + len(lane.ready) for lane in handler._lanes.values()) < 100
