"""Is a job lost, or run twice, when what runs it dies, freezes, is told to end, or has another clock?

For the embedded engine, against all the figures that it promises, and for engines that must fail, to see that they do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runs
from engines import Broken, Engine, PlainHuey
from oracle import percentile
from runs import Report

pytestmark = pytest.mark.chaos
Note = Callable[[Report], Report]


def test_each_job_runs_exactly_once_while_nothing_breaks(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.nothing_happens(engine, folder, seed, jobs=50_000 if long else 2_000, producers=4, processes=2))
    assert not found.lost | found.phantoms | found.started_twice | found.completed_twice


def test_no_job_is_lost_with_a_worker_that_is_killed(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (20_000, 1_000) if long else (400, 20)
    found = report(runs.workers_die(engine, folder, seed, jobs=jobs, kills=kills))
    assert not found.lost | found.phantoms
    assert len(found.completed_twice) <= kills


def test_no_job_is_lost_with_a_child_that_is_killed(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (12_000, 90) if long else (900, 6)
    found = report(runs.workers_die(engine, folder, seed, jobs=jobs, kills=kills, whole=False))
    assert not found.lost | found.phantoms
    assert len(found.completed_twice) <= kills


def test_an_idle_worker_takes_over_at_once(engine: Engine, folder: Path, seed: int, report: Note, long: bool) -> None:
    found = report(runs.idle_worker_takes_over(engine, folder, seed, kills=100 if long else 20))
    assert not found.lost
    if long:  # on a machine that does other things meanwhile, the shares of few tries say little
        assert percentile(found.times, 0.5) <= 0.05
        assert percentile(found.times, 0.99) <= 0.25
    assert percentile(found.times, 1.0 if long else 0.9) <= 1.0


def test_clocks_that_differ_by_days_start_no_job_twice(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.clocks_differ(engine, folder, seed, jobs=200 if long else 24, seconds=0.5))
    assert not found.lost | found.phantoms | found.started_twice


def test_a_job_starts_at_once_on_an_idle_worker(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.idle_worker_starts(engine, folder, seed, jobs=500 if long else 50))
    assert not found.lost
    assert percentile(found.times, 0.99 if long else 0.9) <= 0.1


def test_a_job_that_kills_its_process_is_kept_after_three_starts_and_the_others_go_on(
    engine: Engine, folder: Path, seed: int, report: Note
) -> None:
    found, ends = runs.a_job_kills_its_process(engine, folder, seed, jobs=1_000)
    report(found)
    assert not found.lost
    assert set(ends.values()) == {"kept after 3 starts"}


def test_a_worker_that_is_told_to_end_loses_nothing_and_repeats_nothing(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.workers_are_told_to_end(engine, folder, seed, stops=200 if long else 10, seconds=0.02))
    assert not found.lost | found.phantoms | found.started_twice


def test_no_delayed_job_is_early_and_none_is_late_by_a_second(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found, early = runs.jobs_are_delayed(engine, folder, seed, jobs=1_000 if long else 100)
    report(found)
    assert not found.lost | found.started_twice
    assert not early
    assert percentile(found.times, 1.0 if long else 0.9) <= 1.0


def test_a_job_that_is_handed_over_while_the_worker_is_frozen_outlives_it(
    engine: Engine, folder: Path, seed: int, report: Note, long: bool
) -> None:
    found = report(runs.frozen_then_killed(engine, folder, seed, tries=100 if long else 5))
    assert not found.lost


# -- the harness itself


def test_an_engine_that_is_known_to_lose_jobs_is_seen_to_lose_them(
    folder: Path, seed: int, report: Note, long: bool
) -> None:
    jobs, kills = (1_000, 50) if long else (100, 5)
    assert report(runs.workers_die(PlainHuey(), folder, seed, jobs=jobs, kills=kills)).lost


@pytest.mark.parametrize("mistake", ["nothing_is_given_back", "everybody_lives", "claims_are_deleted"])
def test_an_engine_that_forgets_the_jobs_of_the_dead_is_seen_to_lose_them(
    mistake: str, folder: Path, seed: int, report: Note, long: bool
) -> None:
    if mistake == "nothing_is_given_back" or long:  # one is enough to see that the harness sees
        assert report(runs.workers_die(Broken(mistake), folder, seed, jobs=120, kills=6)).lost


def test_an_engine_that_hands_jobs_out_twice_is_seen_to_do_so(folder: Path, seed: int, report: Note) -> None:
    engine = Broken("ends_are_not_written")
    found = report(runs.nothing_happens(engine, folder, seed, jobs=100, producers=1, processes=1))
    assert found.completed_twice
