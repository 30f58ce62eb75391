"""Is a method stopped at its time limit, whatever it does, and does its process live on?"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from backgrounded import Job, JobFailed, Retry
from backgrounded.calls import LONGEST
from backgrounded.testing.probe import Probe, events
from backgrounded_sqlite import SQLiteHandler
from sqliteshop import Item
from sqlitetools import Workers, row

pytestmark = pytest.mark.worker


def limited(item: Item, timeout: float, **options: Any) -> Any:
    return item.backgrounded(timeout=timeout, **options)


WAYS: dict[str, Callable[[Item, float], Job[Any]]] = {
    "sleeps": lambda item, timeout: limited(item, timeout).sleep(60),
    "is-busy": lambda item, timeout: limited(item, timeout).spin(60),
    "sleeps-asynchronously": lambda item, timeout: limited(item, timeout).sleep_asynchronously(60),
    "swallows-exceptions": lambda item, timeout: limited(item, timeout).swallow_exceptions(60),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_method_is_stopped_whatever_it_does_and_its_process_lives_on(
    served: SQLiteHandler, item: Item, oracle: str, way: str
) -> None:
    process = item.backgrounded.pid().result(60)
    started = time.monotonic()
    job = WAYS[way](item, 0.4)
    with pytest.raises(JobFailed, match=re.escape("stopped after its timeout of 0.4 seconds")) as failure:
        job.result(60)
    assert failure.value.type_name == "TimeoutError"
    assert "TimeoutError" in str(failure.value.traceback)
    assert 0.4 <= time.monotonic() - started < 10
    assert job.state == "failed"
    assert not events(oracle, "slept") + events(oracle, "swallowed")
    assert item.backgrounded.pid().result(60) == process


@pytest.mark.slow
def test_a_method_that_swallows_it_once_is_told_again(served: SQLiteHandler, item: Item, oracle: str) -> None:
    process = item.backgrounded.pid().result(60)
    called = time.monotonic()
    job = limited(item, 2).swallow_once(60)
    with pytest.raises(JobFailed, match=re.escape("timeout of 2 seconds")):
        job.result(60)
    assert len(events(oracle, "swallowed")) == 1
    assert 7 <= time.monotonic() - called < 30  # at 2 s it was told, and 5 s later again
    assert item.backgrounded.pid().result(60) == process


def test_a_method_that_swallows_it_always_is_told_again_and_again_and_its_process_lives_on(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    """Its process is no way out for what a signal does reach: the job would run again, though it has no retry."""
    with workers(handler, SQLITESHOP_IMPATIENT="yes"):
        assert limited(item, 0.2).swallow_everything(4).result(60) == "went on"
    assert len(events(oracle, "swallow")) == 1
    assert len(events(oracle, "swallowed")) >= 4


def test_a_method_that_calls_without_end_is_stopped_on_a_slow_disk_too(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    """Where it is in a transaction almost always, which is not broken off, and there again within a millisecond."""
    with workers(handler, SQLITESHOP_IMPATIENT="yes", SQLITESHOP_SLOW_DISK="yes"):
        for job in [limited(item, 0.05).call_without_end() for _ in range(20)]:
            with pytest.raises(JobFailed, match=re.escape("timeout of 0.05 seconds")):
                job.result(60)
    assert len(events(oracle, "call")) == 20, "none of them has taken its process along"


@pytest.mark.parametrize("told", [False, True], ids=["never-told", "told-once"])
def test_a_method_that_no_signal_reaches_ends_with_its_process_which_says_where_it_stood(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str, told: bool
) -> None:
    with workers(handler, SQLITESHOP_IMPATIENT="yes"):
        job = limited(item, 0.2).swallow_and_stand_in_c() if told else limited(item, 0.2).stand_in_c()
        assert job.wait(60) == "kept"
        assert "in stand_in_c" in workers.log
    stood, tried = events(oracle, "stand"), events(oracle, "swallow" if told else "stand")
    assert (len(stood), len(tried)) == (3, 3)
    assert all(later.at - before.at > 1.4 for before, later in itertools.pairwise(stood))


def test_a_limit_that_is_over_at_once_is_kept_too(served: SQLiteHandler, item: Item) -> None:
    """The kernel's timer takes no time at all for no limit."""
    job = limited(item, 1e-9).sleep(60)
    with pytest.raises(JobFailed, match="stopped after its timeout"):
        job.result(60)


def test_a_limit_beyond_the_kernel_s_timer_is_no_error(served: SQLiteHandler, item: Item) -> None:
    assert limited(item, LONGEST).give(1).result(60) == 1


def test_a_method_in_time_is_not_touched_and_a_job_after_it_has_no_limit(
    served: SQLiteHandler, item: Item, oracle: str
) -> None:
    jobs = [limited(item, 30).give(1), item.backgrounded.alarm(), limited(item, 30).sleep(0.1)]
    assert [job.result(60) for job in jobs] == [1, 0, "slept"]


def test_a_job_sees_its_deadline(served: SQLiteHandler, probe: Probe, oracle: str) -> None:
    before = time.time()
    probe.backgrounded(timeout=50).give(1).result(60)
    (event,) = events(oracle, "give")
    assert event.job is not None
    assert before + 50 <= event.job["deadline"] <= time.time() + 50


@pytest.mark.parametrize(
    ("policy", "runs"),
    [
        (Retry(1), 2),
        (Retry(1, on=[TimeoutError]), 2),
        (Retry(1, wait=0.1, on=[OSError]), 2),
        (Retry(1, on=[ValueError]), 1),
        (Retry(1, give_up_on=[TimeoutError]), 1),
    ],
    ids=["any", "on-it", "on-its-base", "on-another", "give-up"],
)
def test_a_timeout_is_a_failure_like_another_to_the_retry_policy(
    served: SQLiteHandler, item: Item, oracle: str, policy: Retry, runs: int
) -> None:
    job = limited(item, 0.1, retry=policy).sleep(60)
    assert job.wait(60) == "failed"
    assert row(served, job.id)["attempt"] == runs
    seen = [event.attempt for event in events(oracle, "sleep")]  # a limit may be over before a run has said a word
    assert seen == sorted({*seen} & {*range(1, runs + 1)})
