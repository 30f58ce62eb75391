"""What can be done to a queue that is a file: frozen writers, full disks, forks, and rows that a stranger wrote?"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import backgrounded
import pytest

import runs
from engines import HERE, SQLite
from faults import Started, children, descriptors, isolation, resident
from oracle import looks
from runs import READY, Bench, Report, bench

pytestmark = pytest.mark.chaos
Note = Callable[[Report], Report]

FREEZE = """
import os, signal, sys
from backgrounded_sqlite._file import File, path_of

def freeze(connection):
    connection.execute("UPDATE jobs SET priority = 5")
    os.kill(os.getpid(), signal.SIGSTOP)

File(path_of(sys.argv[1]), patience=2, durable=True).write(freeze)
"""
INTERRUPT = """
import contextvars, random, signal, sqlite3, sys, threading
import backgrounded
from backgrounded_sqlite._file import path_of
from jobs import work

class Interrupt(BaseException):
    pass

def interrupt(*_):
    raise Interrupt

backgrounded.configure("sqlite", url=sys.argv[1])
backgrounded.later(work, queue="nobody")("-")
other = sqlite3.connect(path_of(sys.argv[1]), timeout=1, isolation_level=None)
moments, hits = random.Random(int(sys.argv[2])), 0
signal.signal(signal.SIGALRM, interrupt)
for number in range(int(sys.argv[3])):
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0001, 0.003))
        while True:
            backgrounded.later(work, queue="nobody")("-")
    except Interrupt:
        other.execute("BEGIN IMMEDIATE")  # "database is locked", if the interrupted call still holds it
        other.execute("COMMIT")
signal.setitimer(signal.ITIMER_REAL, 0)
call = backgrounded.later(work, queue="nobody")
thread = threading.Thread(target=contextvars.copy_context().run, args=(call, "-"), daemon=True)
thread.start()
thread.join(20)
assert not thread.is_alive(), "the interrupted thread holds what another one needs"
"""
LATEST = 2.5
"""Seconds after which a call has failed or returned: the default of two, and something for the machine."""


@pytest.fixture
def run(folder: Path, seed: int) -> Iterator[Bench]:
    with bench(SQLite(), folder, seed) as found:
        yield found


def file(run: Bench) -> Path:
    return run.folder / "jobs.db"


def rows(run: Bench, statement: str, *values: Any) -> list[Any]:
    """What stands in the file, past the handler; or a stranger's writing into it."""
    with contextlib.closing(sqlite3.connect(file(run), timeout=10)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def test_a_call_fails_in_time_while_somebody_is_frozen_in_the_middle_of_writing(
    run: Bench, report: Note, long: bool
) -> None:
    worker = run.worker()
    run.ready(worker)
    run.call("before")
    run.settle()
    writer = subprocess.Popen([sys.executable, "-c", FREEZE, run.url])
    try:
        for _ in looks(READY):
            if Path(f"/proc/{writer.pid}/stat").read_text().split()[2] == "T":
                break
        strangers = [run.producer(f"s{number}-", 1, 0.0) for number in range(2)]
        threads = [threading.Thread(target=call_or_be_refused, args=(run, f"t{number}")) for number in range(4)]
        for thread in threads:
            thread.start()
        call_or_be_refused(run, "here")
        for thread in threads:
            thread.join()
        assert [stranger.process.wait(READY) for stranger in strangers] == [0, 0]
    finally:
        writer.kill()
        writer.wait()
    run.oracle.look()
    took = [event.mono - run.oracle.tried[id].mono for id, event in run.oracle.refused.items()]
    run.call("after")
    run.settle()
    found = report(run.report("P7", 1, took, what="refused_ms"))
    assert len(took) == 7, f"everybody else is refused; see {run.log}"
    assert sorted(took)[len(took) // 2] <= LATEST
    assert max(took) <= (LATEST if long else 20), "of seven that ask at once one may wait for its turn of the machine"
    assert not found.lost | found.started_twice | found.phantoms
    assert worker.process.poll() is None


def call_or_be_refused(run: Bench, id: str) -> None:
    with contextlib.suppress(backgrounded.EnqueueError):
        run.call(id)


def test_a_full_disk_refuses_calls_loses_nothing_and_is_worked_on_when_there_is_room(
    folder: Path, seed: int, report: Callable[[Any], Any]
) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [*isolation("-m"), sys.executable, str(HERE / "full_disk.py"), str(folder), str(seed)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    report("".join(line for line in found.stdout.splitlines() if " F13 " in line))
    assert found.returncode == 0, found.stderr[-4000:]


@pytest.mark.parametrize("how", ["prefork", "threads", "daemon"])
def test_a_program_that_forks_loses_no_job_and_is_never_stuck(how: str, run: Bench, report: Note, long: bool) -> None:
    run.ready(run.worker())
    rows(run, "SELECT 1")  # nobody keeps it open but the worker
    if how == "daemon":  # nobody at all
        run.started[0].stop()
    count = {"prefork": 500 if long else 20, "threads": 500 if long else 40, "daemon": 5}[how]
    run.forks(how, count)
    if how == "daemon":
        run.worker()
    run.settle()
    found = report(run.report(f"P20-{how}", 0))
    assert not found.lost | found.phantoms | found.started_twice
    assert rows(run, "PRAGMA integrity_check") == [("ok",)]


def test_a_run_that_is_broken_off_at_the_end_of_the_grace_counts_for_nothing(
    folder: Path, seed: int, report: Note, long: bool
) -> None:
    counted: set[Any] = set()

    def is_written() -> bool:
        with contextlib.closing(sqlite3.connect(folder / "jobs.db", timeout=10)) as connection:
            counted.clear()
            counted.update(connection.execute("SELECT state, attempt, deaths FROM jobs"))
        return not {state for state, *_ in counted} & {"queued", "running"}

    stops, options = 100 if long else 8, ["--grace", "0.05"]
    found = report(
        runs.workers_are_told_to_end(
            SQLite(), folder, seed, stops=stops, seconds=0.3, options=options, is_written=is_written
        )
    )
    assert found.started_twice, "no run was broken off"
    assert not found.lost | found.phantoms | found.completed_twice
    assert counted == {("succeeded", 1, 0)}


def test_a_method_that_will_not_end_is_killed_and_its_job_runs_again(run: Bench, report: Note) -> None:
    from jobs import ignore_everything

    gate = run.folder / "gate"
    worker = run.worker("--grace", "0.05")
    run.told("stubborn", lambda: backgrounded.later(ignore_everything)("stubborn", str(gate)))
    run.oracle.until(lambda: "stubborn" in run.oracle.starts, READY, "it starts")
    assert worker.stop() == 0
    gate.touch()
    run.worker()
    run.settle()
    found = report(run.report("SIGTERM-stubborn", 1))
    assert not found.lost | found.completed_twice
    assert found.started_twice
    run.oracle.until(lambda: rows(run, "SELECT state FROM jobs") == [("succeeded",)], READY, "its end is written")
    assert rows(run, "SELECT attempt, deaths FROM jobs") == [(1, 0)]


def test_a_time_limit_that_strikes_in_the_middle_of_a_call_leaves_the_file_to_others(
    run: Bench, report: Note, long: bool
) -> None:
    from jobs import call_without_end

    worker = run.worker()
    run.ready(worker)
    for number in range(jobs := 300 if long else 60):
        backgrounded.later(call_without_end, timeout=0.02 + number % 10 * 0.001)()
    run.call("behind")
    run.oracle.until(lambda: "behind" in run.oracle.ends, READY, f"the job behind them runs; see {run.log}")
    report(run.report("time limits", jobs))
    assert "cannot be used" not in run.output()


def test_an_exception_that_strikes_in_the_middle_of_a_call_leaves_the_file_to_others(
    run: Bench, seed: int, long: bool
) -> None:
    """As Ctrl-C does, or the time limit of another engine's worker or of a web server."""
    run.call("before")
    caller = run.python("-c", INTERRUPT, run.url, seed, 3_000 if long else 500)
    assert caller.process.wait(READY * 2) == 0, run.output()[-2000:]
    run.call("after")


def test_the_processes_of_a_worker_do_not_outlive_the_one_that_started_them(run: Bench, report: Note) -> None:
    """Nobody could tell them to end, and a supervisor would start as many again beside them."""
    worker = run.worker(processes=2)
    run.ready(worker)
    for number in range(100):
        run.call(f"j{number}", 0.1)
    run.oracle.until(lambda: len(run.oracle.running[worker.name]) == 2, READY, "both of them run something")
    family = worker.family()[1:]
    os.kill(worker.pid, signal.SIGKILL)
    worker.process.wait()
    gone = None
    for _ in looks(10.0):
        if not any(is_running(pid) for pid in family):
            gone = time.monotonic()
            break
    run.oracle.look()
    left = len(run.oracle.lost)
    run.worker(processes=2)
    run.settle()
    found = report(run.report("main process dies", 1, more=f"left={left} "))
    assert not found.lost | found.completed_twice
    assert gone is not None
    assert left, "they have run all jobs before they noticed"


# -- what a stranger writes into the file (P16)

INVALID = "cast(x'ff80' AS TEXT)"
"""An SQL expression: text that is no UTF-8."""
STATES = ("queued", "scheduled", "running", "succeeded", "kept", "unheard of")
WRONG = {
    "text": "'abc'",
    "empty": "''",
    "text that is no UTF-8": INVALID,
    "bytes": "x'00ff'",
    "a negative number": "-1",
    "zero": "0",
    "a fraction": "1.5",
    "the greatest number": "9223372036854775807",
    "the least number": "-9223372036854775808",
    "infinity": "9e999",
    "minus infinity": "-9e999",
    "null": "NULL",
}


def wires(canary: Path) -> dict[str, Any]:
    """What no worker may run, nor stumble over."""
    test_hostile = importlib.import_module("test_hostile")

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {canary}",)

    def wire(target: Any, method: str, *args: Any) -> bytes:
        return json.dumps({"v": 1, "id": "a1", "target": target, "method": method, "args": args}).encode()

    corpora = (test_hostile.BYTES, test_hostile.FIELDS, test_hostile.TARGETS)
    return {
        **{f"{name} ({number})": wire for number, corpus in enumerate(corpora) for name, wire in corpus.items()},
        "a pickle that runs": pickle.dumps(Bomb()),
        "a pickle, compressed": zlib.compress(pickle.dumps(Bomb())),
        "YAML that runs": f"!!python/object/apply:os.system ['touch {canary}']".encode(),
        "os.system": wire({"module": "os"}, "system", f"touch {canary}"),
        "subprocess": wire({"module": "subprocess"}, "run", ["touch", str(canary)]),
        "what has not opted in": wire({"module": "jobs"}, "canary", str(canary)),
        "a wire of ten megabytes": b'{"v":1,"args":["' + b"x" * 10_000_000 + b'"]}',
    }


def test_no_wire_that_a_stranger_wrote_runs_anything_or_ends_the_worker(run: Bench, report: Note) -> None:
    canary = run.folder / "canary"
    run.call("good")
    worker = loaded_worker(run)
    run.settle()
    family = worker.family()
    hostile = {name: wire for name, wire in wires(canary).items() if can_be_bound(wire)}
    began = time.monotonic()
    with contextlib.closing(sqlite3.connect(file(run), timeout=10)) as connection, connection:
        connection.executemany(
            "INSERT INTO jobs (state, queue, priority, due, name, alias, id, wire) "
            "SELECT 'queued', queue, priority, due, name, alias, ?, ? FROM jobs WHERE seq = 1",
            [(f"hostile-{name}", wire) for name, wire in hostile.items()],
        )
    for number in range(100):
        run.call(f"j{number}")
    run.settle()
    waiting = "SELECT 1 FROM jobs WHERE id LIKE 'hostile-%' AND state IN ('queued', 'running') LIMIT 1"
    run.oracle.until(lambda: not rows(run, waiting), READY, "all have had their turn")
    took = time.monotonic() - began
    found = report(run.report("P16-wires", 0, more=f"hostile={len(hostile)} s={took:.1f} "))
    ends = dict(rows(run, "SELECT id, state FROM jobs WHERE id LIKE 'hostile-%' AND state <> 'kept'"))
    assert not found.lost | found.phantoms | found.started_twice
    assert not canary.exists()
    assert not ends, "what cannot be run is kept"
    assert worker.family() == family, f"a process of the worker has died; see {run.log}"


def test_no_row_that_a_stranger_wrote_stops_the_worker(run: Bench, report: Note, long: bool) -> None:
    """In each column in turn stands each wrong value, of a job in each state; a good job behind it has to be run."""
    run.call("good")
    worker = loaded_worker(run, processes=1)
    run.settle()
    columns = [name for _, name, *_ in rows(run, "PRAGMA table_info(jobs)")]
    good = {
        column: f"(SELECT {column} FROM jobs WHERE id = 'template')"
        for column in columns
        if column not in ("seq", "owner", "forget_at", "outcome", "unique_key", "unique_until")
    }
    rows(run, "UPDATE jobs SET id = 'template'")
    everything = [(*combination, name) for combination in product(STATES, columns) for name in WRONG]
    tried, stops = 0, []
    worst = [each for each in everything if each[0] == "queued" and WRONG[each[2]] in (INVALID, "9e999")]
    for state, column, name in everything if long else worst + run.random.sample(everything, 60):
        changed = {**good, "id": "'hostile'", "state": f"'{state}'", column: WRONG[name]}
        try:
            rows(run, f"INSERT INTO jobs ({', '.join(changed)}) SELECT {', '.join(changed.values())}")
        except sqlite3.Error:
            continue  # SQLite itself refuses it
        tried += 1
        if not is_worked_past(run, worker, f"j{tried}"):
            stops.append(f"{state}, {column} is {name}")
            run.dismiss(worker)
        rows(run, "DELETE FROM jobs WHERE id <> 'template'")
        if worker.process.poll() is not None:
            run.ready(worker := loaded_worker(run, processes=1))
    for number in range(100):
        run.call(f"after{number}")
    run.oracle.until(lambda: all(f"after{number}" in run.oracle.ends for number in range(100)), READY, "all are done")
    report(run.report("P16-rows", 0, more=f"hostile={tried} stops={len(stops)} "))
    assert not stops, "; ".join(stops)
    assert not run.oracle.lost


def is_worked_past(run: Bench, worker: Started, id: str) -> bool:
    """Whether a job that is called now is run soon, by a worker whose processes live."""
    family = worker.family()
    run.call(id)
    for _ in looks(20.0):
        run.oracle.look()
        if id in run.oracle.ends:
            return worker.family() == family
    return False


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not dead and waiting for its funeral."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def can_be_bound(wire: Any) -> bool:
    if isinstance(wire, str):
        return wire.isascii()
    return isinstance(wire, bytes)


def loaded_worker(run: Bench, processes: int = 2) -> Started:
    """A worker that has also loaded the classes that the hostile wires name."""
    os.environ["BACKGROUNDED_APP"] = "jobs,values"
    os.environ["PYTHONPATH"] = str(HERE.parent / "core")
    worker = run.worker(processes=processes)
    run.ready(worker)
    return worker


# -- for a long time (P15)


def test_a_worker_that_has_run_many_jobs_is_as_small_and_as_fast_as_before(
    run: Bench, report: Note, long: bool
) -> None:
    jobs = 200_000 if long else 6_000
    ids = [f"j{number}" for number in range(jobs)]
    run.send(ids)
    worker = run.worker()
    run.ready(worker)
    (child,) = children(worker.pid)
    sizes: list[tuple[int, int]] = []
    files = 0
    for _ in looks(900, pause=0.01):
        run.oracle.look()
        done = len(run.oracle.ends)
        if done >= jobs // 10 and done > (sizes[-1][0] if sizes else 0) + jobs // 100:
            sizes.append((done, resident(child)))
            files = files or descriptors(child)
        if done >= jobs:
            break
    ends = sorted(events[0].mono for events in run.oracle.ends.values())
    window = jobs // 40
    full, empty = (window / (ends[first + window] - ends[first]) for first in (window, jobs - 2 * window - 1))
    slope = slope_of(sizes) * 100_000 / 1e6
    found = report(
        run.report("P15", 0, more=f"MB/100k={slope:.2f} jobs/s(full)={full:.0f} jobs/s(empty)={empty:.0f} fds={files} ")
    )
    assert not found.lost | found.started_twice
    assert descriptors(child) <= files
    if long:
        assert slope < 1.0
        assert full > empty / 1.5


def slope_of(points: list[tuple[int, int]]) -> float:
    """By how much the second grows with the first, by least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
