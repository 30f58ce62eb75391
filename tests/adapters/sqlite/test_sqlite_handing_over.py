"""What does a call leave in the file, and what if it cannot: all or nothing, once, in bounded time, from any thread?"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import BatchError, Duplicate, EnqueueError, Unique
from backgrounded.testing.probe import Probe, given
from backgrounded_sqlite import SQLiteHandler
from backgrounded_sqlite._connection import _close_all, gate
from sqlite_contract import query
from sqlitetools import elsewhere, is_sound, locked, made, row

# -- what is written down


def test_a_row_holds_the_wire_as_it_is_and_what_a_worker_must_know_before(handler: SQLiteHandler, probe: Probe) -> None:
    options: Any = {"queue": "a", "priority": 8, "timeout": 3, "result_ttl": 60, "delay": 30}
    call = made(lambda: probe.backgrounded(**options, unique=Unique("key", until="start")).note("ä", [1.5]))
    assert handler.enqueue(call) == call.id
    found = row(handler, call.id)
    assert found["wire"] == call.wire
    assert json.loads(found["wire"]) == call.tree
    assert isinstance(found["wire"], bytes)
    del found["wire"], found["seq"]
    assert found == {
        "id": call.id,
        "state": "scheduled",
        "queue": "a",
        "priority": 8,
        "due": call.created + 30,
        "name": "backgrounded.testing.probe.Probe.note",
        "alias": "default",
        "timeout": 3.0,
        "result_ttl": 60.0,
        "unique_key": "key",
        "unique_until": "start",
        "attempt": 1,
        "deaths": 0,
        "run": 0,
        "owner": None,
        "forget_at": None,
        "outcome": None,
    }


def test_a_call_that_says_nothing_is_due_now_and_in_the_default_queue(tmp_path: Path, probe: Probe) -> None:
    with backgrounded.using("sqlite", url=f"sqlite:///{tmp_path}/jobs.db", queue="mine", name="second"):
        before = time.time()
        job = probe.backgrounded(handler="second").note()
        handler = backgrounded.get_handler("second")
        assert isinstance(handler, SQLiteHandler)
        found = row(handler, job.id)
        assert before <= found["due"] <= time.time()
        known = {"state": "queued", "queue": "mine", "priority": 5, "alias": "second", "timeout": None}
        assert {name: found[name] for name in known} == known
        assert job.engine_id == job.id


def test_nothing_in_the_file_is_a_pickle(handler: SQLiteHandler, probe: Probe) -> None:
    probe.backgrounded.note({1, 2}, when=Probe)
    for file in handler.path.parent.glob("jobs.db*"):
        assert b"\x80\x04\x95" not in file.read_bytes()
        assert b"c__builtin__" not in file.read_bytes()


def test_a_call_is_on_the_disk_when_it_returns_and_another_process_sees_it(
    handler: SQLiteHandler, probe: Probe
) -> None:
    job = probe.backgrounded.note()
    script = "import sys, backgrounded; print(backgrounded.job(sys.argv[1]).state)"
    assert elsewhere(script, job.id, BACKGROUNDED_URL=handler.url) == "queued\n"
    synchronous = handler._store.file.read(lambda connection: connection.execute("PRAGMA synchronous").fetchone())
    assert synchronous == (2,)  # FULL


# -- all or nothing


def test_a_thousand_calls_are_one_transaction_in_the_order_of_the_calls(handler: SQLiteHandler, probe: Probe) -> None:
    calls = [made(lambda number=number: probe.backgrounded.note(number)) for number in range(1000)]  # type: ignore[misc]  # a default binds it
    handler._store.file.make()
    with contextlib.closing(sqlite3.connect(handler.path)) as observer:

        def version() -> int:
            return int(observer.execute("PRAGMA data_version").fetchone()[0])

        before, seen = version(), set[int]()
        done = threading.Event()

        def watch() -> None:
            with contextlib.closing(sqlite3.connect(handler.path)) as connection:
                while not done.is_set():
                    seen.add(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            assert handler.enqueue_many(calls) == [call.id for call in calls]
        finally:
            done.set()
            thread.join()
        assert version() == before + 1
        assert seen <= {0, 1000}
    assert query(handler.path, "SELECT id FROM jobs ORDER BY seq") == [(call.id,) for call in calls]


@pytest.mark.parametrize("when", ["BEFORE INSERT", "AFTER INSERT"])
def test_a_row_that_cannot_be_written_takes_its_whole_trip_with_it(
    handler: SQLiteHandler, probe: Probe, when: str
) -> None:
    first = probe.backgrounded.note("before")
    full = "(SELECT count(*) FROM jobs) >= 5 BEGIN SELECT raise(ABORT, 'full'); END"
    query(handler.path, f"CREATE TRIGGER full {when} ON jobs WHEN {full}")
    with pytest.raises(BatchError) as error, backgrounded.batch() as jobs:  # noqa: PT012  # raises at its exit
        for number in range(10):
            probe.backgrounded.note(number)
    assert isinstance(error.value.__cause__, EnqueueError)
    assert isinstance(error.value.__cause__.__cause__, sqlite3.IntegrityError)
    assert "10 jobs" in str(error.value.__cause__)
    assert (error.value.sent, len(error.value.unsent), error.value.unknown) == ((), 10, ())
    assert {job.state for job in jobs} == {"unsent"}
    assert query(handler.path, "SELECT id FROM jobs") == [(first.id,)]
    query(handler.path, "DROP TRIGGER full")
    probe.backgrounded.note("after")
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(2,)]


def test_a_duplicate_among_many_takes_none_of_them_and_no_key(handler: SQLiteHandler, probe: Probe) -> None:
    held = probe.backgrounded(unique="held").note()
    calls = [made(lambda key=key: probe.backgrounded(unique=key).note()) for key in ("a", "b", "held", "c")]  # type: ignore[misc]  # a default binds it
    with pytest.raises(Duplicate) as refusal:
        handler.enqueue_many(calls)
    assert (refusal.value.key, refusal.value.existing_id) == ("held", held.id)
    assert query(handler.path, "SELECT id FROM jobs") == [(held.id,)]
    assert query(handler.path, "SELECT key, job FROM keys") == [("held", held.id)]


def test_no_calls_are_no_jobs(handler: SQLiteHandler) -> None:
    assert handler.enqueue_many([]) == []


# -- once


def test_the_same_call_handed_over_again_is_the_same_job(handler: SQLiteHandler, probe: Probe) -> None:
    call = made(probe.backgrounded.note)
    assert handler.enqueue(call) == handler.enqueue(call) == call.id
    assert handler.enqueue_many([call, call]) == [call.id, call.id]
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(1,)]
    assert handler.cancel(call.id)
    handler.enqueue(call)
    assert handler.state(call.id) == "cancelled"


# -- in bounded time


@pytest.mark.parametrize("patience", [0.2, 1.0])
@pytest.mark.parametrize("warm", [True, False], ids=["open", "not-open"])
def test_a_locked_file_is_an_error_after_the_timeout_and_not_later(
    tmp_path: Path, probe: Probe, patience: float, warm: bool
) -> None:
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/jobs.db", enqueue_timeout=patience)
    SQLiteHandler(handler.url)._store.file.make()
    if warm:
        handler._store.file.make()
    with backgrounded.using(handler):
        with locked(handler.path):
            times = []
            while not times or (min(times) > patience + 0.5 and len(times) < 5):  # a busy machine only adds
                started = time.monotonic()
                with pytest.raises(EnqueueError, match="is locked") as error:
                    probe.backgrounded.note()
                times.append(time.monotonic() - started)
        assert patience <= min(times) <= patience + 0.5
        assert isinstance(error.value.__cause__, sqlite3.OperationalError)
        assert error.value.uncertain is False
        assert str(handler.path) in str(error.value)
        assert probe.backgrounded.note().state == "queued"
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(1,)]


def test_a_file_that_is_new_and_locked_is_an_error_after_the_timeout_as_well(tmp_path: Path, probe: Probe) -> None:
    """Before there are tables, SQLite's older kind of lock keeps everybody out, readers too."""
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/jobs.db", enqueue_timeout=0.5)
    with backgrounded.using(handler), contextlib.closing(sqlite3.connect(handler.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(EnqueueError, match="is locked"):
            probe.backgrounded.note()
        assert 0.5 <= time.monotonic() - started < 20
        other.execute("ROLLBACK")
        probe.backgrounded.note()


def test_a_file_that_is_let_go_in_time_takes_the_call(handler: SQLiteHandler, probe: Probe) -> None:
    handler._store.file.make()
    with locked(handler.path) as other:
        timer = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        timer.start()
        started = time.monotonic()
        job = probe.backgrounded.note()
        assert time.monotonic() - started < 20
        timer.join()
    assert job.state == "queued"


def test_readers_are_not_kept_waiting_by_a_writer(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note()
    with locked(handler.path):
        started = time.monotonic()
        assert job.state == "queued"
        assert list(handler.kept()) == []
        assert time.monotonic() - started < 20  # a call would wait for 30


def test_an_error_quotes_no_argument(handler: SQLiteHandler, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    handler._store.file.make()
    query(handler.path, "CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT raise(ABORT, 'full'); END")
    with pytest.raises(EnqueueError) as error:
        probe.backgrounded.note("canary-4711")
    assert "backgrounded.testing.probe.Probe.note" in str(error.value)
    assert "canary" not in f"{error.value!r}{error.value.__cause__!r}{caplog.text}"


# -- from threads and forks


def test_threads_call_side_by_side(handler: SQLiteHandler, probe: Probe) -> None:
    threads, calls = 8, 25
    ready, errors = threading.Barrier(threads), list[BaseException]()

    def call(name: int) -> None:
        try:
            with backgrounded.using(handler):
                ready.wait()
                for number in range(calls):
                    probe.backgrounded(queue=f"q{name}").note(number)
        except BaseException as error:
            errors.append(error)
        finally:
            handler._store.file.close()

    running = [threading.Thread(target=call, args=(name,)) for name in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert errors == []
    for name in range(threads):
        found = query(handler.path, "SELECT wire FROM jobs WHERE queue = ? ORDER BY seq", f"q{name}")
        assert [json.loads(wire)["args"] for (wire,) in found] == [[number] for number in range(calls)]
    assert is_sound(handler.path)


PREFORK = """
import os, sys, backgrounded
from backgrounded.testing.probe import Probe
probe = Probe("/nowhere")
backgrounded.configure("sqlite", url=sys.argv[1], enqueue_timeout=30)
probe.backgrounded.note("before")
children = []
for child in range(4):
    pid = os.fork()
    if not pid:
        for number in range(10):
            job = probe.backgrounded(queue="child").note(child, number)
            assert job.state == "queued"
        os._exit(0)
    children.append(pid)
    probe.backgrounded(queue="parent").note(child)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
probe.backgrounded(queue="parent").note("after")
"""


def test_after_a_fork_parent_and_children_go_on(handler: SQLiteHandler) -> None:
    elsewhere(PREFORK, handler.url)
    counts = query(handler.path, "SELECT queue, count(*) FROM jobs GROUP BY queue")
    assert dict(counts) == {"default": 1, "child": 40, "parent": 5}
    assert is_sound(handler.path)


ORPHAN = """
import os, sys, time, backgrounded
from backgrounded.testing.probe import Probe
probe = Probe("/nowhere")
probe.backgrounded.note("before")
if os.fork():
    os._exit(0)
parent = os.getppid()
sys.stdin.readline()  # the parent is no more
print(probe.backgrounded.note("first").id, flush=True)
sys.stdin.readline()  # another process has opened the queue, and closed it
print(probe.backgrounded.note("second").id, flush=True)
sys.stdin.readline()
"""


def test_the_calls_of_a_child_whose_parent_has_ended_are_seen_by_everybody(handler: SQLiteHandler) -> None:
    """As when a server loads the application, forks, and the first process goes."""
    environment = {**os.environ, "BACKGROUNDED_URL": handler.url}
    ask = "import sys, backgrounded; print(*(backgrounded.job(id).state for id in sys.argv[1:]))"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ORPHAN], env=environment, **pipes) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        first.wait(60)
        ids = []
        for _ in range(2):
            first.stdin.write("\n")
            first.stdin.flush()
            ids.append(first.stdout.readline().strip())
            assert elsewhere(ask, *ids, BACKGROUNDED_URL=handler.url).split() == ["queued"] * len(ids)
        first.stdin.write("\n")


FORK_AMONG_THREADS = """
import os, sys, threading, time, warnings, backgrounded
from backgrounded.testing.probe import Probe
warnings.simplefilter("ignore", DeprecationWarning)
probe = Probe("/nowhere")
handler = backgrounded.configure("sqlite", url=sys.argv[1], enqueue_timeout=5)
probe.backgrounded(queue="first").note()
stop, counts = threading.Event(), []

def call():
    count = 0
    while not stop.is_set():
        probe.backgrounded(queue="thread").note(count)
        count += 1
        time.sleep(0.001)
    counts.append(count)

threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for child in range(20):
    pid = os.fork()
    if not pid:
        if child % 2:
            probe.backgrounded(queue="child").note(child)
        os._exit(0)
    ends.append(os.waitpid(pid, 0)[1])
    if ends[-1]:
        break
stop.set()
for thread in threads:
    thread.join()
print(sum(counts), *ends)
"""


def test_a_fork_while_other_threads_are_writing_harms_nobody(handler: SQLiteHandler) -> None:
    """Their connections are in the child too, half-way through a transaction, and nobody there may touch them."""
    count, *ends = elsewhere(FORK_AMONG_THREADS, handler.url).split()
    assert ends == ["0"] * 20
    counts = query(handler.path, "SELECT queue, count(*) FROM jobs GROUP BY queue")
    assert dict(counts) == {"first": 1, "child": 10, "thread": int(count)}
    assert is_sound(handler.path)


FORK_WHILE_OPENING = """
import os, sys, threading, time, warnings, backgrounded
from backgrounded_sqlite import SQLiteHandler
from backgrounded.testing.probe import Probe
warnings.simplefilter("ignore", DeprecationWarning)
probe = Probe("/nowhere")
backgrounded.configure("sqlite", url=sys.argv[1], enqueue_timeout=30)
stop = threading.Event()

def open_queues():
    while not stop.is_set():
        handler = SQLiteHandler(sys.argv[2])
        handler._store.file.make()
        handler._store.file.close()

threads = [threading.Thread(target=open_queues, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for child in range(40):
    pid = os.fork()
    if not pid:
        import signal
        signal.alarm(20)
        probe.backgrounded(queue="child").note(child)
        os._exit(0)
    ends.append(os.waitpid(pid, 0)[1])
    if ends[-1]:
        break
stop.set()
print(*ends)
"""


def test_a_fork_while_another_thread_opens_a_queue_does_not_hang_the_child(
    handler: SQLiteHandler, tmp_path: Path
) -> None:
    handler._store.file.make()
    ends = elsewhere(FORK_WHILE_OPENING, handler.url, f"sqlite:///{tmp_path}/other.db").split()
    assert ends == ["0"] * 40
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(40,)]


def test_a_connection_that_is_given_up_when_a_fork_is_about_to_happen_is_left_to_it(handler: SQLiteHandler) -> None:
    """To close it takes mutexes of SQLite's, which would stay locked in the child; nor may the thread wait."""

    has_opened, is_closed = threading.Event(), threading.Event()

    def give_up() -> None:
        handler._store.file.make()
        has_opened.set()
        is_closed.wait(60)
        handler._store.file.close()
        gc.collect()

    def is_there() -> bool:
        return any(_leads_to(path, handler.path) for path in Path("/proc/self/fd").iterdir())

    thread = threading.Thread(target=give_up)
    thread.start()
    has_opened.wait(60)
    try:
        gate.close()
        is_closed.set()
        thread.join(60)
        assert not thread.is_alive()
        assert is_there()
        _close_all()
        assert not is_there()
    finally:
        gate.open()


def _leads_to(link: Path, path: Path) -> bool:
    try:
        return link.readlink() == path
    except FileNotFoundError:  # of the listing itself
        return False


def test_a_handler_serves_many_threads_one_after_the_other_and_leaves_no_descriptor_behind(
    handler: SQLiteHandler, probe: Probe
) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def call() -> None:
        with backgrounded.using(handler):
            probe.backgrounded.note()

    call()
    _in_thread(call)
    before = opened()
    for _ in range(20):
        _in_thread(call)
    assert opened() <= before
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(22,)]


def _in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_the_arguments_travel_as_values_and_not_as_objects(handler: SQLiteHandler, probe: Probe) -> None:
    job = probe.backgrounded.note((1, 2))
    tree = json.loads(row(handler, job.id)["wire"])
    assert tree["args"] != [[1, 2]]
    assert given((1, 2)) != given([1, 2])
