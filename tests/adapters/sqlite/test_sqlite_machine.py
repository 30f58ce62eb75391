"""Does the store keep its promises in whatever order things happen? Held against a model, by Hypothesis."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backgrounded_sqlite._store as module
import pytest
from backgrounded import Call, ConfigurationError, Duplicate, State, Unique
from backgrounded.testing.probe import Probe
from backgrounded_sqlite._file import File
from backgrounded_sqlite._store import End, Job, Store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from sqlitetools import made

QUEUES = ["a", "b"]
OWNERS = [11, 12, 13]
KEYS = ["k"]
DAY = 86_400.0
WAITING, ENDED = {"queued", "scheduled"}, {"succeeded", "failed", "kept", "expired", "cancelled"}


class Clock:
    """Stands in for the `time` that the store reads: moves when it is told to."""

    def __init__(self) -> None:
        self.moment = time.time()

    def time(self) -> float:
        return self.moment


@dataclass
class Model:
    """What a job must be."""

    call: Call
    queue: str
    priority: int
    due: float
    order: int
    key: Unique | None
    state: str = "queued"
    attempt: int = 1
    deaths: int = 0
    run: int = 0
    owner: int | None = None

    @property
    def place(self) -> tuple[int, float, int]:
        return -self.priority, self.due, self.order


class StoreMachine(RuleBasedStateMachine):
    """Calls, claims, ends, deaths, cancellations and the passing of time, against a dict of what must be."""

    calls = Bundle("calls")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(File(self.folder / "jobs.db", patience=5, durable=False))
        self.clock = Clock()
        module.time = self.clock  # type: ignore[assignment,attr-defined]  # all that it asks is time()
        self.jobs: dict[str, Model] = {}
        self.keys: dict[str, tuple[str, float]] = {}
        self.given: set[tuple[str, int]] = set()

    def teardown(self) -> None:
        module.time = time  # type: ignore[attr-defined]  # as above
        if hasattr(self, "store"):
            self.store.file.close()
            shutil.rmtree(self.folder)

    # -- the model

    def held(self, key: str) -> str | None:
        """The id of the job that has the key."""
        id, until = self.keys.get(key, ("", 0.0))
        return id if until > self.clock.moment else None

    def free(self, job: Model) -> None:
        if job.key is not None and self.keys.get(job.key.key, ("", 0.0))[0] == job.call.id:
            del self.keys[job.key.key]

    def promote(self) -> None:
        for job in self.jobs.values():
            if job.state == "scheduled" and job.due <= self.clock.moment:
                job.state = "queued"

    def of(self, claim: Job, owner: int) -> Model | None:
        """The job of a claim that still holds."""
        job = self.jobs.get(claim.id)
        valid = job is not None and (job.state, job.owner, job.run) == ("running", owner, claim.run)
        return job if valid else None

    # -- the caller's side

    @rule(
        target=calls,
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from([None, 2, 5, 8]),
        delay=st.sampled_from([None, None, 0.5, 2]),
        key=st.sampled_from([None, *KEYS]),
        until=st.sampled_from(["start", "done"]),
        ttl=st.sampled_from([1, 3600]),
    )
    def put(
        self, queue: str, priority: int | None, delay: float | None, key: str | None, until: Any, ttl: float
    ) -> Any:
        unique = None if key is None else Unique(key, until=until, ttl=ttl)
        options: Any = {"queue": queue, "priority": priority, "delay": delay, "unique": unique}
        call = made(lambda: Probe("/nowhere").backgrounded(**options).note(), created=self.clock.moment)
        if key is not None and self.held(key) is not None:
            with pytest.raises(Duplicate) as refusal:
                self.store.put([call], "default")
            assert refusal.value.existing_id == self.held(key)
            return multiple()
        self.store.put([call], "default")
        due = call.created + (delay or 0)
        state = "scheduled" if due > self.clock.moment else "queued"
        job = Model(call, queue, 5 if priority is None else priority, due, len(self.jobs), unique, state)
        self.jobs[call.id] = job
        if key is not None:
            self.keys[key] = call.id, self.clock.moment + ttl
        return call

    @rule(call=calls)
    def put_again(self, call: Call) -> None:
        """A call that was taken before changes nothing, whatever has become of it."""
        if call.id in self.jobs:
            self.store.put([call], "default")

    @rule(call=calls)
    def cancel(self, call: Call) -> None:
        job = self.jobs.get(call.id)
        waiting = job is not None and job.state in WAITING
        assert self.store.cancel(call.id) is waiting
        if job is not None and waiting:
            job.state = "cancelled"
            self.free(job)

    @rule(call=calls)
    def replay(self, call: Call) -> None:
        job = self.jobs.get(call.id)
        if job is None or job.state != "kept":
            with pytest.raises(ConfigurationError):
                self.store.replay(call.id)
            return
        self.store.replay(call.id)
        job.state, job.attempt, job.deaths, job.due = "queued", 1, 0, self.clock.moment

    @rule(call=calls)
    def forget(self, call: Call) -> None:
        job = self.jobs.get(call.id)
        if job is None or job.state != "kept":
            with pytest.raises(ConfigurationError):
                self.store.forget(call.id)
            return
        self.store.forget(call.id)
        del self.jobs[call.id]

    # -- the worker's side

    @rule(
        target=claims, owner=st.sampled_from(OWNERS), queues=st.lists(st.sampled_from(QUEUES), min_size=1, unique=True)
    )
    def claim(self, owner: int, queues: list[str]) -> Any:
        return self.turn(owner, None, queues)

    @rule(
        target=claims,
        claim=claims,
        kind=st.sampled_from(["succeeded", "failed", "kept", "expired", "again", "later", "handed back"]),
        stolen=st.booleans(),
        queues=st.lists(st.sampled_from(QUEUES), unique=True),
    )
    def end(self, claim: tuple[int, Job], kind: str, stolen: bool, queues: list[str]) -> Any:
        """By its owner or by another one; of the run that goes on or of one that does not count any more."""
        owner, run = claim
        if stolen:
            owner = OWNERS[(OWNERS.index(owner) + 1) % len(OWNERS)]
        job = self.of(run, owner)
        end = {
            "again": lambda: End(run, State.QUEUED, due=self.clock.moment, attempt=run.attempt + 1),
            "later": lambda: End(run, State.SCHEDULED, due=self.clock.moment + 1, attempt=run.attempt + 1),
            "handed back": lambda: End(run, State.QUEUED),
            "kept": lambda: End(run, State.KEPT, {"reason": "r", "code": "c"}),
        }.get(kind, lambda: End(run, State(kind), {"k": kind}))()
        if job is not None:
            job.state, job.owner = end.state.value, None
            job.due = job.due if end.due is None else end.due
            job.attempt = job.attempt if end.attempt is None else end.attempt
            if job.state in ENDED:
                self.free(job)
        return self.turn(owner, end, queues)

    def turn(self, owner: int, end: End | None, queues: list[str]) -> Any:
        self.promote()
        found = self.store.turn(owner, end, queues)
        ready = [job for job in self.jobs.values() if job.state == "queued" and job.queue in queues]
        if not ready:
            assert found is None
            return multiple()
        best = min(ready, key=lambda job: job.place)
        assert found is not None
        best.state, best.owner, best.run = "running", owner, best.run + 1
        assert (found.id, found.run, found.attempt, found.deaths) == (best.call.id, best.run, best.attempt, best.deaths)
        assert (found.id, found.run) not in self.given, "one claim was given to two"
        self.given.add((found.id, found.run))
        if best.key is not None and best.key.until == "start":
            self.free(best)
        return owner, found

    @rule(owner=st.sampled_from(OWNERS))
    def die(self, owner: int) -> None:
        held = [job for job in self.jobs.values() if job.owner == owner and job.state == "running"]
        assert self.store.give_back([owner]) == len(held)
        for job in held:
            job.due = self.clock.moment if job.deaths else job.due
            job.state, job.owner, job.deaths = "queued", None, job.deaths + 1

    @rule(owner=st.sampled_from(OWNERS))
    def leave(self, owner: int) -> None:
        self.store.leave(owner)
        for job in self.jobs.values():
            if job.owner == owner and job.state == "running":
                job.state, job.owner = "queued", None

    # -- time

    @rule(seconds=st.sampled_from([0.1, 0.5, 1, 2]))
    def wait(self, seconds: float) -> None:
        self.clock.moment += seconds

    @precondition(lambda self: any(job.state in ENDED for job in self.jobs.values()))
    @rule()
    def wait_long(self) -> None:
        """Until what has ended is forgotten, but for what is kept."""
        self.clock.moment += 31 * DAY
        while self.store.clean():
            pass
        self.jobs = {id: job for id, job in self.jobs.items() if job.state not in ENDED - {"kept"}}

    # -- what holds at any time

    @invariant()
    def every_job_is_in_the_one_state_that_it_must_be_in(self) -> None:
        if not hasattr(self, "store"):
            return
        found = self._query("SELECT id, state, owner, run, attempt, deaths, due FROM jobs")
        rows = {id: rest for id, *rest in found}
        assert rows.keys() == self.jobs.keys()
        for id, job in self.jobs.items():
            assert rows[id] == [job.state, job.owner, job.run, job.attempt, job.deaths, job.due], id
            state, _ = self.store.look(id)
            due = job.state == "scheduled" and job.due <= self.clock.moment
            assert state == ("queued" if due else job.state)

    @invariant()
    def a_key_is_held_by_the_one_job_that_must_hold_it(self) -> None:
        if not hasattr(self, "store"):
            return
        moment = self.clock.moment
        rows = self._query("SELECT key, job FROM keys WHERE until > ?", moment)
        assert dict(rows) == {key: id for key, (id, until) in self.keys.items() if until > moment}

    def _query(self, statement: str, *values: Any) -> list[Any]:
        return self.store.file.read(lambda connection: connection.execute(statement, values).fetchall())

    @invariant()
    def what_is_due_is_found(self) -> None:
        if not hasattr(self, "store"):
            return
        ready = [
            job for job in self.jobs.values()
            if job.state == "queued" or (job.state == "scheduled" and job.due <= self.clock.moment)
        ]  # fmt: skip
        assert self.store.is_waiting(QUEUES) is bool(ready)
        later = [job.due for job in self.jobs.values() if job.state == "scheduled"]
        assert self.store.next_due() == min(later, default=None)
        running = {job.owner for job in self.jobs.values() if job.state == "running"}
        assert set(self.store.owners()) == running


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("SQLITE_MACHINE_EXAMPLES", "60")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_sqlite_is_new_enough_for_what_the_store_says(tmp_path: Path) -> None:
    """`ON CONFLICT DO NOTHING` and partial indices: 3.24, of the year 2018."""
    assert sqlite3.sqlite_version_info >= (3, 24)
    with contextlib.closing(sqlite3.connect(tmp_path / "x")) as connection:
        assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
