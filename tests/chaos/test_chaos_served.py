"""Is a job lost, or run twice, with a worker or a server that dies, on an engine that has a server?

What a handler says in its `guarantees` has to be true; and what an engine by itself is known to lose has to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runs
from engines import CONTROLS, SERVED, Engine
from runs import Report

pytestmark = pytest.mark.chaos
Note = Callable[[Report], Report]
PROMISES_NOTHING = "celery-redis"
each_engine = pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=pytest.mark.slow) if name == PROMISES_NOTHING else name for name in SERVED],
    indirect=True,
)
LATEST = 3.0
"""Seconds after which a call has failed or returned: the 2.5 that are promised, and something for a machine that has
other things to do. Where two timeouts come one after the other it takes four."""


@each_engine
def test_no_job_is_lost_with_a_worker_that_is_killed(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (20_000, 200) if long else (90, 3)
    found = report(runs.workers_die(engine, folder, seed, jobs=jobs, kills=kills, seconds=0.1))
    assert found.keeps_its_word
    assert len(found.completed_twice) <= kills


@each_engine
def test_no_job_is_lost_with_a_child_that_is_killed(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (6_000, 30) if long else (60, 1)
    found = report(runs.workers_die(engine, folder, seed, jobs=jobs, kills=kills, seconds=0.1, whole=False))
    assert found.keeps_its_word
    assert len(found.completed_twice) <= kills


@each_engine
def test_no_job_is_lost_with_a_server_that_is_killed_and_started_again(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (4_000, 20) if long else (200, 1)
    assert report(runs.server_dies(engine, folder, seed, jobs=jobs, kills=kills)).keeps_its_word


@pytest.mark.slow  # each adapter has a test of its own that its calls do not hang
@each_engine
def test_no_call_hangs_and_no_job_is_lost_with_a_server_that_is_frozen(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, freezes = (2_000, 20) if long else (100, 1)
    found = report(runs.server_freezes(engine, folder, seed, jobs=jobs, freezes=freezes))
    assert found.keeps_its_word
    assert max(found.times) <= LATEST


@each_engine
def test_no_job_is_lost_with_connections_that_are_cut(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, cuts = (4_000, 200) if long else (100, 5)
    assert report(runs.connections_are_cut(engine, folder, seed, jobs=jobs, cuts=cuts)).keeps_its_word


@pytest.mark.slow
@each_engine
def test_clocks_that_differ_by_days_lose_no_job_and_start_none_twice_where_no_clock_is_asked(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.clocks_differ(engine, folder, seed, jobs=200 if long else 12, seconds=3))
    assert found.keeps_its_word
    assert engine.trusts_clocks or not found.started_twice


@each_engine
def test_no_call_whose_answer_is_lost_becomes_two_jobs(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.replies_get_lost(engine, folder, seed, calls=5_000 if long else 100))
    assert found.keeps_its_word
    assert not found.started_twice


@each_engine
def test_a_worker_that_is_told_to_end_loses_nothing_and_repeats_nothing(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.workers_are_told_to_end(engine, folder, seed, stops=50 if long else 3, seconds=0.1))
    assert found.keeps_its_word
    assert not found.started_twice


@each_engine
def test_a_job_that_is_handed_over_while_the_worker_is_frozen_outlives_it(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    assert report(runs.frozen_then_killed(engine, folder, seed, tries=20 if long else 1)).keeps_its_word


# With threads a fork meets moments by chance: each adapter has a test of its own of the one that hung.
@pytest.mark.parametrize("how", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
@each_engine
def test_a_program_that_forks_loses_no_job_and_is_never_stuck(
    engine: Engine, how: str, folder: Path, seed: int, report: Note, long: bool
) -> None:
    count = {"prefork": 100 if long else 5, "threads": 500 if long else 20}[how]
    found = report(runs.a_program_forks(engine, folder, seed, how, count=count))
    assert found.keeps_its_word
    assert not found.started_twice


# -- the harness itself


def test_celery_by_itself_is_seen_to_lose_jobs_with_its_worker(folder: Path, seed: int, report: Note) -> None:
    assert report(runs.workers_die(CONTROLS["plain-celery"], folder, seed, jobs=120, kills=4, seconds=0.1)).lost


def test_a_redis_that_writes_nothing_is_seen_to_lose_jobs(folder: Path, seed: int, report: Note) -> None:
    assert report(runs.server_dies(CONTROLS["rq, Redis without appendonly"], folder, seed, jobs=300, kills=1)).lost
