"""What do the transactions promise one by one: who owns a job, whose end counts, what is found again?"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backgrounded import Call, State, Unique
from backgrounded.testing.probe import Probe
from backgrounded_sqlite import SQLiteHandler
from backgrounded_sqlite._alive import Locks
from backgrounded_sqlite._file import File
from backgrounded_sqlite._process import Watch
from backgrounded_sqlite._store import End, Job, Store
from sqlite_contract import query
from sqlitetools import made, row

ONE, OTHER = 1, 2


@pytest.fixture
def store(handler: SQLiteHandler) -> Iterator[Store]:
    store = Store(File(handler.path, patience=5, durable=False))
    yield store
    store.file.close()


def put(store: Store, **options: Any) -> Call:
    call = made(lambda: Probe("/nowhere").backgrounded(**{"queue": "q", **options}).note())
    store.put([call], "default")
    return call


def claim(store: Store, owner: int) -> Job:
    job = store.turn(owner, None, ["q"])
    assert job is not None
    return job


ENDS = {
    "succeeded": lambda job: End(job, State.SUCCEEDED, {"late": True}),
    "failed": lambda job: End(job, State.FAILED, {"type": "late", "message": "late"}),
    "kept": lambda job: End(job, State.KEPT, {"reason": "late", "code": "late"}),
    "again-at-once": lambda job: End(job, State.QUEUED, due=1.0, attempt=9),
    "again-later": lambda job: End(job, State.SCHEDULED, due=1.0, attempt=9),
    "expired": lambda job: End(job, State.EXPIRED),
}


@pytest.mark.parametrize("kind", ENDS)
def test_an_end_by_who_does_not_own_the_job_any_more_changes_nothing(
    handler: SQLiteHandler, store: Store, kind: str
) -> None:
    """A process that was taken for dead, comes back, and says how its run has ended: given back, claimed, ended."""
    call = put(store, unique="key")
    late = claim(store, ONE)

    def late_end_changes_nothing(state: str) -> None:
        before, keys = row(handler, call.id), query(handler.path, "SELECT * FROM keys")
        assert before["state"] == state
        assert store.turn(ONE, ENDS[kind](late), []) is None
        assert (row(handler, call.id), query(handler.path, "SELECT * FROM keys")) == (before, keys)

    store.give_back([ONE])
    late_end_changes_nothing("queued")
    job = claim(store, OTHER)
    late_end_changes_nothing("running")
    store.turn(OTHER, End(job, State.SUCCEEDED, {"real": True}), [])
    late_end_changes_nothing("succeeded")
    assert handler.result(call.id, 0) == {"real": True}


def test_an_end_of_an_earlier_run_of_the_same_owner_changes_nothing(handler: SQLiteHandler, store: Store) -> None:
    call = put(store)
    first = claim(store, ONE)
    store.give_back([ONE])
    second = claim(store, ONE)
    assert (first.run, second.run) == (1, 2)
    store.turn(ONE, End(first, State.SUCCEEDED, 1), [])
    assert row(handler, call.id)["state"] == "running"
    store.turn(ONE, End(second, State.SUCCEEDED, 2), [])
    assert handler.result(call.id, 0) == 2


def test_an_end_by_another_than_the_owner_changes_nothing(handler: SQLiteHandler, store: Store) -> None:
    call = put(store)
    job = claim(store, ONE)
    store.turn(OTHER, End(job, State.SUCCEEDED, "not mine"), [])
    assert {"state": "running", "owner": ONE}.items() <= row(handler, call.id).items()


def test_an_end_counts_once(handler: SQLiteHandler, store: Store) -> None:
    call = put(store)
    job = claim(store, ONE)
    store.turn(ONE, End(job, State.SUCCEEDED, 1), [])
    store.turn(ONE, End(job, State.FAILED, {"type": "late", "message": "late"}), [])
    assert handler.result(call.id, 0) == 1


def test_an_end_of_a_run_after_the_replay_of_its_job_changes_nothing(handler: SQLiteHandler, store: Store) -> None:
    call = put(store)
    job = claim(store, ONE)
    store.turn(ONE, End(job, State.KEPT, {"reason": "r", "code": "c"}), [])
    store.replay(call.id)
    again = claim(store, ONE)
    store.turn(ONE, End(job, State.SUCCEEDED, 1), [])
    assert row(handler, call.id)["state"] == "running"
    assert again.run == 2


def test_an_end_is_written_in_the_transaction_that_claims_the_next(handler: SQLiteHandler, store: Store) -> None:
    first, second = put(store), put(store)
    job = claim(store, ONE)
    query(
        handler.path,
        "CREATE TRIGGER one BEFORE UPDATE ON jobs WHEN new.state = 'running' BEGIN SELECT raise(ABORT, 'x'); END",
    )
    with pytest.raises(sqlite3.IntegrityError):
        store.turn(ONE, End(job, State.SUCCEEDED), ["q"])
    assert (row(handler, first.id)["state"], row(handler, second.id)["state"]) == ("running", "queued")
    query(handler.path, "DROP TRIGGER one")
    following = store.turn(ONE, End(job, State.SUCCEEDED), ["q"])
    assert following is not None
    assert following.id == second.id
    assert (row(handler, first.id)["state"], row(handler, second.id)["state"]) == ("succeeded", "running")


def test_what_a_worker_leaves_is_handed_back_uncounted_and_what_a_dead_one_leaves_is_counted(
    handler: SQLiteHandler, store: Store
) -> None:
    call = put(store)
    claim(store, ONE)
    store.leave(ONE)
    assert {"state": "queued", "owner": None, "deaths": 0, "attempt": 1}.items() <= row(handler, call.id).items()
    claim(store, ONE)
    assert store.give_back([ONE]) == 1
    assert {"state": "queued", "owner": None, "deaths": 1, "attempt": 1}.items() <= row(handler, call.id).items()
    assert store.give_back([ONE]) == 0


def test_a_dead_worker_s_jobs_are_given_back_and_nobody_else_s(handler: SQLiteHandler, store: Store) -> None:
    mine, others = put(store), put(store)
    claim(store, ONE)
    claim(store, OTHER)
    assert sorted(store.owners()) == [ONE, OTHER]
    assert store.give_back([ONE]) == 1
    assert (row(handler, mine.id)["state"], row(handler, others.id)["state"]) == ("queued", "running")
    assert store.owners() == [OTHER]


def test_a_job_that_was_given_back_once_keeps_its_place(store: Store) -> None:
    first, _ = put(store), put(store)
    claim(store, ONE)
    store.give_back([ONE])
    assert claim(store, OTHER).id == first.id


def test_a_job_that_was_given_back_twice_goes_behind_those_that_are_due_and_no_further(store: Store) -> None:
    poison, good, less = put(store), put(store), put(store, priority=1)
    for _ in range(2):
        assert claim(store, ONE).id == poison.id
        store.give_back([ONE])
    later = put(store)
    assert [claim(store, OTHER).id for _ in range(4)] == [good.id, poison.id, later.id, less.id]


def test_a_job_that_was_handed_back_keeps_its_place_however_often(store: Store) -> None:
    first, _ = put(store), put(store)
    for _ in range(3):
        assert claim(store, ONE).id == first.id
        store.leave(ONE)


def test_a_second_worker_gets_the_next_job_and_a_third_one_none(store: Store) -> None:
    first, second = put(store), put(store)
    assert [claim(store, ONE).id, claim(store, OTHER).id] == [first.id, second.id]
    assert store.turn(3, None, ["q"]) is None
    assert store.turn(3, None, []) is None


def test_a_job_that_runs_or_has_ended_is_not_cancelled(handler: SQLiteHandler, store: Store) -> None:
    call = put(store, unique=Unique("key"))
    job = claim(store, ONE)
    assert store.cancel(call.id) is False
    store.turn(ONE, End(job, State.SUCCEEDED), [])
    assert store.cancel(call.id) is False
    assert row(handler, call.id)["state"] == "succeeded"


def test_no_job_is_due_before_its_time_to_whoever_asks(store: Store) -> None:
    call = put(store, delay=0.15)
    assert store.next_due() == call.due or time.time() >= (call.due or 0)
    while store.turn(ONE, None, ["q"]) is None:
        assert call.due is not None
        assert not store.is_waiting(["q"]) or time.time() >= call.due
    assert time.time() >= (call.due or 0)


def test_a_new_worker_is_listed_and_those_that_are_dead_are_not(handler: SQLiteHandler, store: Store) -> None:
    put(store)
    query(handler.path, "INSERT INTO workers VALUES (12345, 1, '[]')")
    locks = Locks(handler.path)
    number = store.enlist(locks, os.getpid(), ["q"])
    assert query(handler.path, "SELECT id, pid, queues FROM workers") == [(number, os.getpid(), '["q"]')]
    assert locks.is_alive(number)
    store.leave(number)
    assert query(handler.path, "SELECT * FROM workers") == []
    os.close(locks._descriptor)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_worker_that_rests_learns_that_the_file_is_another_one(
    handler: SQLiteHandler, store: Store, tmp_path: Path, calls: int
) -> None:
    """However often the new one was written to: its version may well be the number that the old one had."""
    put(store)
    watch = Watch(store, ["q"])
    while watch.has_news():
        watch.look_ahead()
    other = SQLiteHandler(f"sqlite:///{tmp_path}/other.db")
    other._store.file.make()
    for _ in range(calls):
        put(other._store)
    other._store.file.close()
    for suffix in ("-wal", "-shm"):
        handler.path.with_name(f"jobs.db{suffix}").unlink()
    other.path.replace(handler.path)
    assert any(watch.has_news() for _ in range(3))
    assert watch.is_of_another_file()


def test_a_worker_that_rests_has_no_news_where_nothing_happens(store: Store) -> None:
    put(store, queue="another")
    watch = Watch(store, ["q"])
    while watch.has_news():
        watch.look_ahead()
    assert not any(watch.has_news() for _ in range(10))
