"""What becomes of jobs in Procrastinate's own workers, and when such a worker dies?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import backgrounded
import psycopg
import pytest
from backgrounded import JobFailed, NoResult
from backgrounded.testing.probe import Event, Probe, events
from procrastinate_contract import folders
from procrastinateshop.jobs import Item

from waiting import eventually

pytestmark = pytest.mark.worker
CANARY = "canary-4711"


@pytest.fixture
def database_of_shop(shop_url: str) -> Any:
    with psycopg.connect(shop_url, autocommit=True) as connection:
        yield connection


def starts(oracle: str, id: str) -> list[Event]:
    return [event for event in events(oracle, "start") if event.job_id == id]


def bury(database: Any) -> None:
    """As if half a minute had passed since the worker died, and this minute's look for dead ones was to come."""
    database.execute(
        "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '31 s' "
        "WHERE id IN (SELECT worker_id FROM procrastinate_jobs WHERE status = 'doing')"
    )
    database.execute("DELETE FROM procrastinate_periodic_defers")


# -- beside the application


def test_our_jobs_and_the_application_s_own_run_side_by_side(handler, shop, shop_worker, oracle, tmp_path):
    with shop.open():
        shop.tasks["greet"].defer(path=str(tmp_path / "greeting"), name="you")
    job = Item(oracle).backgrounded.give([1, (2,)])
    assert job.result(timeout=60) == [1, (2,)]
    eventually(lambda: (tmp_path / "greeting").exists() and (tmp_path / "greeting").read_text() == "hello you")
    assert starts(oracle, job.id)[0].job["queue"] == "default"


def test_a_coroutine_runs_and_a_nested_call_goes_back_where_its_job_came_from(handler, shop_worker, oracle):
    """This worker has configured nothing."""
    assert Item(oracle).backgrounded.agive(1).result(timeout=60) == 1
    job = Item(oracle).backgrounded.nest()
    assert backgrounded.job(job.result(timeout=60)).result(timeout=60) == "nested"


# -- what they say


def test_arguments_are_nowhere_but_in_our_table(handler, start_worker, shop_url, oracle):
    with start_worker("secrets", PROCRASTINATE_VERBOSE="1") as worker:
        item = Item(oracle)
        jobs = [
            item.backgrounded(queue="secrets").give(CANARY, CANARY),
            item.backgrounded(queue="secrets").fail("no luck", CANARY),
            item.backgrounded(queue="secrets", retry=1).fail("no luck", CANARY),
        ]
        for job in jobs:
            job.wait(timeout=60)
        eventually(lambda: worker.log.count("Acknowledged job completion") >= 4)
        assert CANARY not in worker.log
        assert (
            f"backgrounded.perform[{jobs[0].engine_id}](id='{jobs[0].id}', name='procrastinateshop.jobs.Item.give')"
            in (worker.log)
        )
    shown = subprocess.run(
        ["procrastinate", "--app=procrastinateshop.tasks.app", "shell", "list_jobs", "queue=secrets", "details"],
        env={**os.environ, "PYTHONPATH": folders(), "PROCRASTINATESHOP_URL": shop_url, "PATH": path()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "procrastinateshop.jobs.Item.give" in shown
    assert CANARY not in shown


def path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


# -- deaths


def test_a_job_of_a_killed_worker_runs_again(handler, start_worker, database_of_shop, oracle, tmp_path):
    gate = tmp_path / "gate"
    job = Probe(oracle).backgrounded(queue="killed", retry=1).hold(str(gate))
    with start_worker("killed") as worker:
        eventually(lambda: events(oracle, "holding"))
        worker.process.kill()
        worker.process.wait()
    assert job.state == "running"
    bury(database_of_shop)
    gate.touch()
    with start_worker("killed", "backgrounded.recover") as worker:
        assert job.wait(timeout=90) == "succeeded"
        assert "its worker is dead" in worker.log
    assert [event.attempt for event in events(oracle, "holding")] == [1, 1]  # a death is no failure


def test_a_job_that_kills_its_workers_is_begun_three_times_and_then_kept(
    handler, start_worker, database_of_shop, oracle
):
    poison = Item(oracle).backgrounded(queue="poison").die(99)
    for begun in (1, 2, 3):
        bury(database_of_shop)
        with start_worker("poison", "backgrounded.recover") as worker:
            eventually(lambda begun=begun: len(starts(oracle, poison.id)) == begun, 90)
            worker.process.wait(60)
    bury(database_of_shop)
    with start_worker("poison", "backgrounded.recover"), pytest.raises(NoResult, match="3 workers died"):
        poison.result(timeout=90)
    assert len(starts(oracle, poison.id)) == 3
    handler.forget(poison.id)


def test_a_worker_that_is_asked_to_stop_finishes_its_job(handler, start_worker, oracle, tmp_path):
    gate = tmp_path / "gate"
    with start_worker("stopping") as worker:
        job = Probe(oracle).backgrounded(queue="stopping").hold(str(gate))
        after = Item(oracle).backgrounded(queue="stopping").give(1)
        eventually(lambda: events(oracle, "holding"))
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Stop requested" in worker.log)
        gate.touch()
        assert worker.process.wait(60) == 0
    assert (job.state, after.state) == ("succeeded", "queued")
    assert after.cancel() is True


def test_a_job_that_a_worker_without_our_task_took_is_kept_and_can_be_replayed(
    handler, start_worker, shop_worker, database_of_shop, oracle
):
    with start_worker("plain", app="procrastinateshop.plain.app") as worker:
        job = Item(oracle).backgrounded(queue="plain").give(1)
        eventually(lambda: job.state == "failed")
        assert "Task was not found" in worker.log
    database_of_shop.execute("DELETE FROM procrastinate_periodic_defers")
    with start_worker("backgrounded.recover"):
        eventually(lambda: job.state == "kept", 90)
    [kept] = [item for item in handler.kept() if item.id == job.id]
    assert (kept.name, kept.code) == ("procrastinateshop.jobs.Item.give", "unknown-task")
    assert json.loads(kept.wire)["id"] == job.id
    handler.replay(job.id)
    with start_worker("plain"):
        assert job.result(timeout=60) == 1


def test_what_is_to_be_forgotten_goes_and_procrastinate_s_own_rows_of_it_too(
    handler, start_worker, shop_worker, database_of_shop, oracle
):
    short = Item(oracle).backgrounded(result_ttl=0).give(1)
    long = Item(oracle).backgrounded.give(2)
    assert long.result(timeout=60) == 2
    eventually(lambda: len(events(oracle, "start")) == 2)
    count = "SELECT count(*) FROM procrastinate_jobs WHERE args->>'id' = %s"
    database_of_shop.execute("DELETE FROM procrastinate_periodic_defers")
    with start_worker("backgrounded.recover"):
        eventually(lambda: database_of_shop.execute(count, [short.id]).fetchone() == (0,), 90)
    assert database_of_shop.execute(count, [long.id]).fetchone() == (1,)
    assert (short.state, long.state) == ("unknown", "succeeded")


def test_a_job_whose_row_says_to_remember_it_for_a_million_years_has_a_result(
    handler, start_worker, database_of_shop, oracle
):
    job = Item(oracle).backgrounded(queue="ages").give(1)
    database_of_shop.execute("UPDATE backgrounded_jobs SET ttl = 8.64e13 WHERE id = %s", [job.id])
    with start_worker("ages"):
        assert job.result(timeout=60) == 1


# -- words of the engine's own


@pytest.mark.parametrize("word", ["JobAborted", "CancelledError", "StopIteration", "KeyboardInterrupt"])
def test_a_method_that_raises_a_word_of_the_engine_has_failed(handler, shop, shop_worker, oracle, word):
    job = Item(oracle).backgrounded(retry=0).say(word)
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=60)
    assert word in failed.value.type_name
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


# -- strangers


def test_whatever_stands_in_a_job_of_our_task_runs_nothing_is_kept_and_the_worker_goes_on(
    handler, shop, shop_worker, oracle, tmp_path
):
    canary = tmp_path / "canary"
    waiting = Item(oracle).backgrounded(delay=600).give(1)
    hostile: list[dict[str, Any]] = [
        {},
        {"id": None},
        {"id": 5, "name": []},
        {"id": "no such job", "name": "x\nfake line"},
        {"id": {"a": [1]}, "context": 1, "words": 3},
        {"wire": {"v": 1, "target": {"module": "os"}, "method": "system", "args": [f"touch {canary}"]}},
        {"id": "'; DROP TABLE backgrounded_jobs; --"},
    ]
    before = len(list(handler.kept()))
    with shop.open():
        numbers = [shop.tasks["backgrounded.perform"].defer(**words) for words in hostile]
        again = shop.tasks["backgrounded.perform"].defer(id=waiting.id, name="a job that is not due")
        eventually(lambda: len(list(handler.kept())) == before + len(hostile))
        eventually(lambda: [job.status for job in shop.job_manager.list_jobs(id=again)] == ["succeeded"])
    assert Item(oracle).backgrounded.give(7).result(timeout=60) == 7
    kept = list(handler.kept())[-len(hostile) :]
    assert [json.loads(item.wire) for item in kept] == hostile
    assert {item.code for item in kept} == {"bad-wire"}
    handler.replay(kept[0].id)
    eventually(lambda: handler.state(kept[0].id) == "kept")
    for item in kept:
        handler.forget(item.id)
    assert waiting.state == "scheduled"
    assert waiting.cancel()
    assert not canary.exists()
    assert not [line for line in shop_worker.log.splitlines() if line.startswith("fake line")]
    assert len(numbers) == len(hostile)


@pytest.mark.parametrize(
    ("state", "outcome"), [("nonsense", None), ("succeeded", "[nonsense"), ("kept", "[1]"), ("failed", "5")]
)
def test_a_row_that_cannot_be_read_is_an_error_of_ours(handler, database_of_shop, state, outcome):
    job = Item("/nowhere").backgrounded(delay=600).give(1)
    query = "UPDATE backgrounded_jobs SET state = %s, outcome = %s WHERE id = %s"
    database_of_shop.execute(query, [state, outcome, job.id])
    with pytest.raises((NoResult, JobFailed)):
        handler.result(job.id, 0)
    assert isinstance(list(handler.kept()), list)
    database_of_shop.execute("DELETE FROM backgrounded_jobs WHERE id = %s", [job.id])
