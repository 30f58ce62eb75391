"""What is remembered of a job's end, for whom, for how long, and what if it cannot be read?"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import BackgroundedError, JobFailed, NoResult, ResultTimeout
from backgrounded.testing.probe import Probe, events
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqliteshop import Item
from sqlitetools import Workers, elsewhere, made, row

from waiting import eventually

pytestmark = pytest.mark.worker


def test_a_result_is_the_value_and_none_is_one(served: SQLiteHandler, probe: Probe) -> None:
    values: list[Any] = [None, 0, "", [], (1, {2}), b"\x00\xff", float("inf")]
    jobs = [probe.backgrounded.give(value) for value in values]
    assert [job.result(60) for job in jobs] == values
    assert [job.result(0) for job in jobs] == values, "a result can be had more than once"


def test_a_large_result_comes_whole(served: SQLiteHandler, item: Item) -> None:
    value = os.urandom(250_000).hex()
    assert item.backgrounded.give(value).result(60) == value


def test_a_failure_comes_as_text_with_its_traceback(served: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.fail(None, message="Grüße")
    with pytest.raises(JobFailed) as failure:
        job.result(60)
    assert failure.value.type_name == "backgrounded.testing.probe.ProbeError"
    assert failure.value.message == "Grüße"
    assert "raise_error(kind, message)" in str(failure.value.traceback)
    assert job.state == "failed"
    assert job.exception() is not None


def test_two_readers_get_the_same_result(served: SQLiteHandler, item: Item) -> None:
    job = item.backgrounded.sleep(0.3)
    got: list[Any] = []

    def read() -> None:
        got.append(served.result(job.id, 60))
        served._store.file.close()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["slept", "slept"]


def test_a_result_is_told_to_another_process_that_waits_for_it(served: SQLiteHandler, item: Item) -> None:
    job = item.backgrounded.sleep(1)
    script = "import sys, backgrounded; print(backgrounded.job(sys.argv[1]).result(60))"
    assert elsewhere(script, job.id, BACKGROUNDED_URL=served.url) == "slept\n"


# -- waiting


def test_waiting_is_bounded(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    for timeout in (0, 0.3):
        started = time.monotonic()
        with pytest.raises(ResultTimeout, match=f"{job.id} has not ended: it is queued"):
            job.result(timeout)
        assert timeout <= time.monotonic() - started < timeout + 20


def test_waiting_is_bounded_where_somebody_writes_all_the_time(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    done = threading.Event()

    def write() -> None:
        with backgrounded.using(handler):
            while not done.is_set():
                probe.backgrounded.note()
        handler._store.file.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        started = time.monotonic()
        with pytest.raises(ResultTimeout):
            job.result(0.5)
        assert time.monotonic() - started < 20
    finally:
        done.set()
        thread.join()


def test_waiting_uses_next_to_no_processor_time(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    before = time.process_time()
    with pytest.raises(ResultTimeout):
        job.result(1.5)
    assert time.process_time() - before < 0.4


def test_whoever_waits_for_a_job_that_will_have_no_result_is_told_at_once(handler: SQLiteHandler, probe: Probe) -> None:
    cancelled, forgotten = probe.backgrounded.note(), "0" * 32
    assert cancelled.cancel()
    kept = made(probe.backgrounded.note)
    handler.enqueue(kept)
    outcome = b'{"reason":"It was a test.","code":"refused"}'
    query(handler.path, "UPDATE jobs SET state = 'kept', outcome = ? WHERE id = ?", outcome, kept.id)
    started = time.monotonic()
    for id, said in [
        (cancelled.id, "it is cancelled."),
        (forgotten, "Nothing is known"),
        (kept.id, "it is kept: It was a test."),
    ]:
        with pytest.raises(NoResult, match=said):
            handler.result(id, None)
    assert time.monotonic() - started < 20


def test_a_waiting_caller_is_told_when_the_job_is_cancelled(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    script = "import sys, backgrounded; print(backgrounded.job(sys.argv[1]).wait(60))"
    environment = {**os.environ, "BACKGROUNDED_URL": handler.url}
    with subprocess.Popen([sys.executable, "-c", script, job.id], env=environment, stdout=subprocess.PIPE) as waiting:
        time.sleep(0.3)
        assert job.cancel()
        assert waiting.communicate(timeout=60)[0] == b"cancelled\n"


# -- for how long


def test_a_result_of_no_time_is_not_remembered(served: SQLiteHandler, probe: Probe, oracle: str) -> None:
    job = probe.backgrounded(result_ttl=0).give(7)
    assert job.wait(60) == "unknown"
    assert len(events(oracle, "give")) == 1
    with pytest.raises(NoResult):
        job.result(0)


def test_a_result_is_there_for_its_time_and_not_longer(served: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded(result_ttl=600).give(7)
    assert job.result(60) == 7
    end = time.time() + 0.5
    query(served.path, "UPDATE jobs SET forget_at = ? WHERE id = ?", end, job.id)
    eventually(lambda: job.state == "unknown")
    assert time.time() >= end
    with pytest.raises(NoResult, match="any more"):
        job.result(0)


@pytest.mark.parametrize(
    ("ttl", "end", "expected"),
    [(None, "succeeded", 86_400), (50, "succeeded", 50), (None, "failed", 30 * 86_400), (50, "failed", 50)],
)
def test_an_end_is_remembered_for_a_day_a_failure_for_a_month_unless_the_call_says(
    served: SQLiteHandler, probe: Probe, ttl: float | None, end: str, expected: float
) -> None:
    before = time.time()
    call = probe.backgrounded(result_ttl=ttl)
    job = call.give(1) if end == "succeeded" else call.fail(None)
    assert job.wait(60) == end
    assert before + expected <= row(served, job.id)["forget_at"] <= time.time() + expected


def test_what_need_not_be_remembered_is_removed_by_a_worker_and_what_is_kept_is_not(
    handler: SQLiteHandler, workers: Workers, probe: Probe
) -> None:
    old = [probe.backgrounded(unique=f"key-{number}").note() for number in range(3)]
    for job in old:
        job.cancel()
    kept, fresh, waiting = (
        probe.backgrounded.note(),
        probe.backgrounded.note(),
        probe.backgrounded(queue="nobody").note(),
    )
    fresh.cancel()
    query(handler.path, "UPDATE jobs SET forget_at = 1 WHERE id IN (?, ?, ?)", *(job.id for job in old))
    query(handler.path, "UPDATE jobs SET state = 'kept', outcome = '{}' WHERE id = ?", kept.id)
    with workers(handler):
        eventually(lambda: len(query(handler.path, "SELECT 1 FROM jobs")) == 3)
        assert {id for (id,) in query(handler.path, "SELECT id FROM jobs")} == {kept.id, fresh.id, waiting.id}


def test_more_old_records_than_one_transaction_removes_are_removed_too(
    handler: SQLiteHandler, workers: Workers, probe: Probe
) -> None:
    with backgrounded.batch():
        for _ in range(1_200):
            probe.backgrounded(queue="old").note()
    query(handler.path, "UPDATE jobs SET state = 'succeeded', forget_at = 1")
    with workers(handler):
        assert probe.backgrounded.give(1).result(60) == 1
        for _ in range(3):  # each turn removes some
            probe.backgrounded.give(1).result(60)
        eventually(lambda: query(handler.path, "SELECT count(*) FROM jobs WHERE queue = 'old'") == [(0,)])


# -- what cannot be read

BROKEN: dict[str, tuple[str, Any]] = {
    "no-json": ("succeeded", b"{"),
    "no-utf-8": ("succeeded", b"\xff\xfe\xfd"),
    "empty": ("succeeded", b""),
    "a-number": ("succeeded", 7),
    "too-deep": ("succeeded", b"[" * 100_000),
    "a-failure-that-is-a-list": ("failed", b"[1]"),
    "a-failure-that-is-a-text": ("failed", b'"x"'),
    "a-failure-too-deep": ("failed", b'{"a":' * 100_000),
    "kept-with-no-json": ("kept", b"{"),
}


@pytest.mark.parametrize("which", BROKEN)
def test_an_outcome_that_cannot_be_read_is_no_result(handler: SQLiteHandler, probe: Probe, which: str) -> None:
    state, outcome = BROKEN[which]
    job = probe.backgrounded.note()
    query(handler.path, "UPDATE jobs SET state = ?, outcome = ? WHERE id = ?", state, outcome, job.id)
    with pytest.raises(NoResult, match="cannot be read"):
        job.result(0)
    assert job.exception() is None
    assert job.wait(0) == state


@pytest.mark.parametrize("outcome", [b"[1]", b'{"code":"x"}', b'{"reason":null}'])
def test_a_job_is_kept_where_the_reason_cannot_be_read(handler: SQLiteHandler, probe: Probe, outcome: bytes) -> None:
    job = probe.backgrounded.note()
    query(handler.path, "UPDATE jobs SET state = 'kept', outcome = ? WHERE id = ?", outcome, job.id)
    with pytest.raises(NoResult, match=r"it is kept\.$"):
        job.result(0)


def test_a_result_of_an_unknown_type_builds_nothing(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    for outcome in (b'{"$class":"os:system"}', b'{"$nope":1}', b'{"$built":["os:system",["true"],{}]}'):
        query(handler.path, "UPDATE jobs SET state = 'succeeded', outcome = ? WHERE id = ?", outcome, job.id)
        with pytest.raises(BackgroundedError):
            job.result(0)


def test_a_state_that_nobody_knows_is_unknown(handler: SQLiteHandler, probe: Probe) -> None:
    """Written by a release that knows more states, or by somebody else."""
    job = probe.backgrounded.note()
    query(handler.path, "UPDATE jobs SET state = 'levitating' WHERE id = ?", job.id)
    assert job.state == "unknown"
    with pytest.raises(NoResult):
        job.result(0)


def test_asking_where_the_file_cannot_be_used_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/file/jobs.db")
    started = time.monotonic()
    for ask in (
        lambda: handler.state("0" * 32),
        lambda: handler.result("0" * 32, 60),
        lambda: handler.cancel("0" * 32),
    ):
        with pytest.raises((OSError, sqlite3.Error, BackgroundedError)):
            ask()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("folder", [".", "missing"])
def test_where_there_is_no_file_no_job_is_known_and_none_is_made_by_asking(tmp_path: Path, folder: str) -> None:
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/{folder}/jobs.db")
    assert handler.state("0" * 32) == "unknown"
    assert handler.cancel("0" * 32) is False
    for timeout in (0, 60, None):
        with pytest.raises(NoResult, match="Nothing is known"):
            handler.result("0" * 32, timeout)
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_result_hears_that_the_file_has_gone(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    timer = threading.Timer(0.2, handler.path.unlink)
    timer.start()
    with pytest.raises(NoResult, match="Nothing is known"):
        job.result(60)
    timer.join()
    assert not handler.path.exists()
