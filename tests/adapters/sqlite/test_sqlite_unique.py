"""How long does a job hold its key, and who gets it next?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backgrounded import Duplicate, Job, Retry, Unique
from backgrounded.testing.probe import Probe, events
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqliteshop import Item
from sqlitetools import Workers, children, made

from waiting import eventually


def holder(handler: SQLiteHandler, key: str) -> str | None:
    """The id of the job that has the key, whether it is still good or not."""
    found = query(handler.path, "SELECT job FROM keys WHERE key = ?", key)
    return found[0][0] if found else None


def is_free(probe: Probe, key: str) -> bool:
    """Whether another job gets the key; it is put back."""
    try:
        job: Job[Any] = probe.backgrounded(queue="nobody's", unique=key).note()
    except Duplicate:
        return False
    return job.cancel()


# -- the caller's side


def test_a_second_call_is_refused_with_the_key_and_the_first_one_s_id(handler: SQLiteHandler, probe: Probe) -> None:
    first = probe.backgrounded(unique="key").note()
    with pytest.raises(Duplicate) as refusal:
        probe.backgrounded(unique="key", queue="another").note()
    assert (refusal.value.key, refusal.value.existing_id) == ("key", first.id)
    same = probe.backgrounded(unique=Unique("key", on_conflict="return")).note()
    assert same.id == first.id
    assert probe.backgrounded(unique="KEY").note().id != first.id
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(2,)]


def test_a_delayed_job_holds_its_key(handler: SQLiteHandler, probe: Probe) -> None:
    probe.backgrounded(unique="key", delay=60).note()
    assert not is_free(probe, "key")


def test_a_key_is_free_after_its_ttl_and_then_the_next_one_s_alone(handler: SQLiteHandler, probe: Probe) -> None:
    first = probe.backgrounded(unique=Unique("key", ttl=60)).note()
    assert not is_free(probe, "key")
    query(handler.path, "UPDATE keys SET until = until - 59.8")
    eventually(lambda: is_free(probe, "key"))
    second = probe.backgrounded(unique="key").note()
    assert first.cancel()
    assert holder(handler, "key") == second.id, "the first one gave back what was not its own any more"
    assert not is_free(probe, "key")


def test_a_cancelled_job_gives_its_key_back_at_once(handler: SQLiteHandler, probe: Probe) -> None:
    for _ in range(3):
        assert probe.backgrounded(unique="key").note().cancel()
    assert is_free(probe, "key")


def test_the_same_call_again_keeps_its_own_key(handler: SQLiteHandler, probe: Probe) -> None:
    call = made(lambda: probe.backgrounded(unique="key").note())
    assert handler.enqueue(call) == handler.enqueue(call) == call.id
    assert not is_free(probe, "key")
    assert handler.cancel(call.id)
    assert is_free(probe, "key")


def test_the_same_call_again_after_its_end_does_not_take_the_key_again(handler: SQLiteHandler, probe: Probe) -> None:
    """A caller that was not told that its call had arrived, and makes it again when it is long done."""
    call = made(lambda: probe.backgrounded(unique="key").note())
    handler.enqueue(call)
    assert handler.cancel(call.id)
    handler.enqueue(call)
    assert handler.state(call.id) == "cancelled"
    assert is_free(probe, "key")


def test_the_same_call_again_is_no_duplicate_when_another_has_its_key_by_now(
    handler: SQLiteHandler, probe: Probe
) -> None:
    call = made(lambda: probe.backgrounded(unique="key").note())
    handler.enqueue(call)
    assert handler.cancel(call.id)
    other = probe.backgrounded(unique="key").note()
    assert handler.enqueue(call) == call.id
    assert holder(handler, "key") == other.id


# -- the worker's side


@pytest.mark.worker
@pytest.mark.parametrize("end", ["succeeded", "failed", "kept", "expired"])
def test_a_job_that_has_ended_gives_its_key_back(
    served: SQLiteHandler, probe: Probe, item: Item, tmp_path: Path, end: str
) -> None:
    key = f"key of {tmp_path}"
    calls: dict[str, Callable[[], Job[Any]]] = {
        "succeeded": lambda: probe.backgrounded(unique=key).note(),
        "failed": lambda: probe.backgrounded(unique=key).fail(None),
        "kept": lambda: item.backgrounded(unique=key).die(9),
        "expired": lambda: probe.backgrounded(unique=key, expires=0.000_001).note(),
    }
    job = calls[end]()
    assert job.wait(60) == end
    assert is_free(probe, key)


@pytest.mark.worker
@pytest.mark.parametrize(("until", "free"), [("start", True), ("done", False)])
def test_a_key_is_held_until_the_start_or_until_the_end(
    served: SQLiteHandler, probe: Probe, oracle: str, tmp_path: Path, until: Any, free: bool
) -> None:
    before, gate, key = tmp_path / "before", tmp_path / "gate", f"key of {tmp_path}"
    probe.backgrounded.hold(str(before))
    eventually(lambda: events(oracle, "holding"))
    job = probe.backgrounded(unique=Unique(key, until=until)).hold(str(gate))
    assert not is_free(probe, key)
    before.touch()
    eventually(lambda: len(events(oracle, "holding")) == 2)
    assert is_free(probe, key) is free
    gate.touch()
    assert job.wait(60) == "succeeded"
    assert is_free(probe, key)


@pytest.mark.worker
def test_a_job_that_waits_for_another_try_holds_its_key(served: SQLiteHandler, probe: Probe, oracle: str) -> None:
    job = probe.backgrounded(unique=f"key of {oracle}", retry=Retry(1, wait=60)).fail(1)
    eventually(lambda: job.state == "scheduled" and events(oracle, "fail"))
    assert not is_free(probe, f"key of {oracle}")
    assert job.cancel()
    assert is_free(probe, f"key of {oracle}")


@pytest.mark.worker
def test_a_job_whose_worker_died_holds_its_key_until_it_has_run_again(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with workers(handler):
        job = probe.backgrounded(unique="key").hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        os.kill(children(handler)[0], signal.SIGKILL)
        while len(events(oracle, "holding")) < 2:
            assert not is_free(probe, "key")
            time.sleep(0.01)
        assert not is_free(probe, "key")
        gate.touch()
        assert job.wait(60) == "succeeded"
        assert is_free(probe, "key")
