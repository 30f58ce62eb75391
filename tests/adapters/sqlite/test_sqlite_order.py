"""Which job is next, among priorities, moments and queues?"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import backgrounded
import pytest
from backgrounded.testing.probe import Probe, events
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqlitetools import Workers, row

from waiting import eventually

pytestmark = pytest.mark.worker


def words(oracle: str, count: int) -> list[str]:
    """What was noted, in order, once there are so many."""
    eventually(lambda: len(events(oracle, "note")) >= count)
    return [event.given.split("'")[1] for event in events(oracle, "note")]


def test_the_more_urgent_first_then_the_earlier_whatever_the_queue(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str
) -> None:
    called = [("a", 5), ("b", 9), ("c", None), ("a", 0), ("b", 5), ("c", 9), ("a", 9), ("b", 8), ("c", 2)]
    for number, (queue, priority) in enumerate(called):
        probe.backgrounded(queue=queue, priority=priority).note(f"{number}")
    with workers(handler, "c", "a", "b"):
        assert words(oracle, 9) == list("156702483")


def test_a_delayed_job_takes_its_place_by_when_it_is_due(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    """Called first and due last, due first and called last; all of them before the worker looks."""
    gate = tmp_path / "gate"
    with workers(handler):
        probe.backgrounded.hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        now = datetime.now(timezone.utc)
        soon, later = now + timedelta(seconds=0.2), now + timedelta(seconds=0.3)
        probe.backgrounded(at=later).note("due later")
        probe.backgrounded(at=now).note("due now")
        probe.backgrounded(at=now - timedelta(hours=1)).note("due long ago")
        probe.backgrounded(at=later, priority=6).note("due later, urgent")
        probe.backgrounded(at=soon).note("due soon")
        eventually(lambda: query(handler.path, "SELECT max(due) < ? FROM jobs", time.time()) == [(1,)])
        probe.backgrounded.note("called last")
        gate.touch()
        expected = ["due later, urgent", "due long ago", "due now", "due soon", "due later", "called last"]
        assert words(oracle, 6) == expected


def test_what_is_delayed_for_queues_that_nobody_serves_stands_in_nobody_s_way(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str
) -> None:
    """More of them than one transaction moves, and all of them due."""
    with backgrounded.batch():
        for _ in range(1_200):
            probe.backgrounded(queue="nobody's", delay=0.01).note("never")
    eventually(lambda: query(handler.path, "SELECT max(due) < ? FROM jobs", time.time()) == [(1,)])
    with workers(handler):
        probe.backgrounded.note("at once")
        delayed = probe.backgrounded(delay=0.2).note("delayed")
        assert words(oracle, 2) == ["at once", "delayed"]
        eventually(
            lambda: query(handler.path, "SELECT DISTINCT state FROM jobs WHERE queue = ?", "nobody's") == [("queued",)]
        )
        assert delayed.wait(60) == "succeeded"


def test_a_delayed_job_is_not_early_and_an_idle_worker_is_not_late(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str
) -> None:
    with workers(handler):
        jobs = [probe.backgrounded(delay=0.3 + number * 0.1).note(f"{number}") for number in range(5)]
        assert words(oracle, 5) == list("01234")
        for job, event in zip(jobs, events(oracle, "note"), strict=True):
            due = row(handler, job.id)["due"]
            assert due <= event.at < due + 20  # the cleaning, each 30 s, would wake it too


def test_the_state_of_a_delayed_job_follows_the_clock_and_not_the_workers(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded(delay=1).note()
    assert job.state == "scheduled" or time.time() >= row(handler, job.id)["due"]
    eventually(lambda: job.state == "queued")
    assert time.time() >= row(handler, job.id)["due"]
    assert row(handler, job.id)["state"] == "scheduled"


def test_an_idle_worker_writes_nothing(handler: SQLiteHandler, workers: Workers, probe: Probe) -> None:
    """Not when nothing is to be done, nor when something is due for others only."""
    with workers(handler):
        assert probe.backgrounded.give(1).result(60) == 1
        probe.backgrounded(queue="nobody's").note()
        assert probe.backgrounded.give(1).result(60) == 1
        wal = handler.path.with_name("jobs.db-wal")
        before = wal.stat().st_mtime_ns, wal.stat().st_size
        time.sleep(0.5)  # many looks
        assert (wal.stat().st_mtime_ns, wal.stat().st_size) == before
