"""What if a signal strikes in the middle of a call: its handler calls as well, or raises an exception?

Between any two lines of what a call goes through, one after the other; and by real signals, at random moments.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import linecache
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import backgrounded
import pytest
from backgrounded import EnqueueError
from backgrounded.testing.probe import Probe
from backgrounded_sqlite import SQLiteHandler, _connection, _file, _handler, _process, _store
from backgrounded_sqlite._connection import gate
from backgrounded_sqlite._file import File
from sqlite_contract import query
from sqlitetools import elsewhere, is_sound, locked, made

LINES = {module.__file__ for module in (_connection, _file, _handler, _store)}
MOST_LINES = 2_000
"""Ten times as many as a call goes through that opens the file."""


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    """Python ends no connection that an earlier test has left: that goes through lines of this engine as well, at any
    moment. In an open batch an interruption has struck there, and its call was one more of the batch."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Interruption:
    """Does something before one of the lines of this engine, as a signal's handler may; the first one is number 0."""

    def __init__(self, line: int, do: Callable[[], object]) -> None:
        self._left = line
        self._do = do
        self._seen: set[tuple[FrameType, int]] = set()

    @property
    def has_been(self) -> bool:
        return self._left < 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in LINES:
            return None
        if event == "line" and not self.has_been and not self._ends_a_block(frame):
            self._left -= 1
            if self.has_been:
                self._do()
        return self

    def _ends_a_block(self, frame: FrameType) -> bool:
        """Whether a `with` is left: Python looks for no signal between the end of a block and that of its lock."""
        place = frame, frame.f_lineno
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            return False
        is_there_again = place in self._seen
        self._seen.add(place)
        return is_there_again

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


def at_each_line(do: Callable[[], object]) -> Iterator[Interruption]:
    """One after the other, until none comes."""
    for line in range(MOST_LINES):
        interruption = Interruption(line, do)
        yield interruption
        if not interruption.has_been:
            assert line > 10
            return
    pytest.fail(f"it goes through more than {MOST_LINES} lines: does it wait for something?")


# -- a handler that calls


class Inner:
    """Calls, as a signal's handler does, and counts what became of it."""

    def __init__(self, probe: Probe, **options: Any) -> None:
        self.call = probe.backgrounded(queue="inner", **options).note
        self.sent: list[str] = []
        self.refused: list[EnqueueError] = []

    def was_refused_with_certainty(self) -> bool:
        """Many times: there are that many lines in the middle of a transaction."""
        said = all("nothing was done, call again" in str(error) and not error.uncertain for error in self.refused)
        return said and len(self.refused) > 10

    def __call__(self) -> None:
        try:
            self.sent.append(self.call().id)
        except EnqueueError as error:
            self.refused.append(error)


def single(probe: Probe, number: int) -> list[str]:
    return [probe.backgrounded(queue="outer").note().id]


def unique(probe: Probe, number: int) -> list[str]:
    return [probe.backgrounded(queue="outer", unique=f"outer {number}").note().id]


def batch(probe: Probe, number: int) -> list[str]:
    with backgrounded.batch() as jobs:
        for _ in range(3):
            probe.backgrounded(queue="outer").note()
    return [job.id for job in jobs]


@pytest.mark.parametrize("warm", [True, False], ids=["open", "not-open"])
@pytest.mark.parametrize("outer", [single, unique, batch], ids=lambda outer: outer.__name__)
def test_a_call_in_the_middle_of_another_one_is_done_or_refused_at_once_and_the_other_one_is_done(
    handler: SQLiteHandler, probe: Probe, outer: Callable[[Probe, int], list[str]], warm: bool
) -> None:
    probe.backgrounded(queue="first").note()
    inner, done = Inner(probe), list[str]()
    for number, interruption in enumerate(at_each_line(inner)):
        if not warm:
            handler._store.file.close()
        with interruption:
            done += outer(probe, number)
        assert not gate.is_inside
    assert stored(handler, "outer") == done
    assert stored(handler, "inner") == inner.sent
    assert inner.was_refused_with_certainty()
    assert query(handler.path, "SELECT * FROM keys WHERE job NOT IN (SELECT id FROM jobs)") == []
    assert is_sound(handler.path)


def test_a_handler_that_was_held_up_by_the_disk_may_call(handler: SQLiteHandler, probe: Probe) -> None:
    """Where most signals strike: Python runs the handler after the COMMIT, and nothing is in its way any more."""
    probe.backgrounded(queue="outer").note()
    inner = Inner(probe)
    [commit] = [
        number
        for number, line in enumerate(lines_of(lambda: probe.backgrounded(queue="outer").note()))
        if line == ("_commit", "COMMIT")
    ]
    with Interruption(commit + 1, inner):
        probe.backgrounded(queue="outer").note()
    assert (len(inner.sent), inner.refused) == (1, [])
    assert stored(handler, "inner") == inner.sent
    assert len(stored(handler, "outer")) == 3


def lines_of(do: Callable[[], object]) -> list[tuple[str, str]]:
    """Which lines of this engine this goes through: the name of the function, and whether it is the COMMIT."""
    found = []

    def note(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in LINES:
            return None
        if event == "line":
            found.append((frame.f_code.co_name, word_at(frame)))
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        do()
    finally:
        sys.settrace(before)
    return found


def word_at(frame: FrameType) -> str:
    return "COMMIT" if '"COMMIT"' in linecache.getline(frame.f_code.co_filename, frame.f_lineno) else ""


QUESTIONS: dict[str, Callable[[SQLiteHandler, str], Any]] = {
    "state": lambda handler, id: handler.state(id),
    "cancel": lambda handler, id: handler.cancel(id),
    "kept": lambda handler, id: list(handler.kept()),
}


@pytest.mark.parametrize("inner", QUESTIONS)
@pytest.mark.parametrize("outer", QUESTIONS)
def test_whatever_else_is_asked_in_the_middle_of_something_is_answered_or_refused(
    handler: SQLiteHandler, probe: Probe, outer: str, inner: str
) -> None:
    job = probe.backgrounded.note()
    assert job.cancel()
    answers = {"state": "cancelled", "cancel": False, "kept": []}
    refused = []

    def ask() -> None:
        try:
            assert QUESTIONS[inner](handler, job.id) == answers[inner]
        except sqlite3.ProgrammingError as error:
            refused.append(str(error))

    for interruption in at_each_line(ask):
        with interruption:
            assert QUESTIONS[outer](handler, job.id) == answers[outer]
        assert not gate.is_inside
    assert all("has interrupted another use of a queue in its thread" in said for said in refused)
    assert refused
    with locked(handler.path):
        pass


def test_calls_to_two_queues_are_refused_in_the_middle_of_each_other_too(
    handler: SQLiteHandler, probe: Probe, tmp_path: Path
) -> None:
    """A fork must find neither of them inside of SQLite."""
    other = SQLiteHandler(f"sqlite:///{tmp_path}/other.db")
    with backgrounded.using(other, name="other"):
        inner, done = Inner(probe, handler="other"), list[str]()
        for number, interruption in enumerate(at_each_line(inner)):
            with interruption:
                done += single(probe, number)
            assert not gate.is_inside
    assert stored(handler, "outer") == done
    assert stored(other, "inner") == inner.sent
    assert inner.was_refused_with_certainty()


def test_another_thread_calls_meanwhile(handler: SQLiteHandler, probe: Probe) -> None:
    """It is no other use of this thread's, and waits for the file as it does for any other process."""
    first, second = (File(handler.path, patience=5, durable=False) for _ in range(2))
    handler.enqueue(made(probe.backgrounded.note))

    def count(connection: sqlite3.Connection) -> Any:
        return connection.execute("SELECT count(*) FROM jobs").fetchone()

    with ThreadPoolExecutor(1) as threads:
        assert first.write(lambda connection: threads.submit(second.read, count).result(60)) == (1,)


SIGNALS = """
import contextlib, json, signal, sys, time
import backgrounded
from backgrounded import EnqueueError
from backgrounded.testing.probe import Probe

backgrounded.configure("sqlite", url=sys.argv[1])
probe = Probe("/nowhere")
sent, failed = [], []

def call_as_well(*_):
    with contextlib.suppress(EnqueueError):
        sent.append(probe.backgrounded(queue="inner", unique=str(time.monotonic())).note().id)
    ring()

def ring():
    # Once: no handler is to interrupt itself, however slow the machine is.
    if time.monotonic() < end:
        signal.setitimer(signal.ITIMER_REAL, 0.0037)

def call(number):
    if number % 3 == 0:
        return [probe.backgrounded(queue="outer").note()]
    if number % 3 == 1:
        return [probe.backgrounded(queue="outer", unique=str(number)).note()]
    with backgrounded.batch() as jobs:
        for _ in range(50):
            probe.backgrounded(queue="outer").note()
    return jobs

signal.signal(signal.SIGALRM, call_as_well)
done, number, end = [], 0, time.monotonic() + 3
ring()
while time.monotonic() < end:
    number += 1
    try:
        done += [job.id for job in call(number)]
    except Exception as error:
        failed.append(repr(error))
signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps([done, sent, failed]))
"""


def test_a_signal_s_handler_that_calls_takes_nothing_back(handler: SQLiteHandler) -> None:
    done, sent, failed = json.loads(elsewhere(SIGNALS, handler.url))
    assert failed == []
    # As sets: what is called while a batch is open goes with the batch.
    assert {*stored(handler, "outer"), *stored(handler, "inner")} == {*done, *sent}
    assert len(sent) > 20
    assert query(handler.path, "SELECT * FROM keys WHERE job NOT IN (SELECT id FROM jobs)") == []
    assert is_sound(handler.path)


def stored(handler: SQLiteHandler, queue: str) -> list[str]:
    return [id for (id,) in query(handler.path, "SELECT id FROM jobs WHERE queue = ? ORDER BY seq", queue)]


# -- a handler that raises


class Interrupt(BaseException):
    """As Ctrl-C, or the time limit of a worker."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that strikes in a `__del__`
@pytest.mark.parametrize("warm", [True, False], ids=["open", "not-open"])
@pytest.mark.parametrize("kind", [Interrupt, TimeoutError, ValueError])
def test_an_exception_between_any_two_lines_leaves_a_file_that_everybody_can_use_and_no_certainty_that_is_none(
    handler: SQLiteHandler, probe: Probe, kind: type[BaseException], warm: bool
) -> None:
    """An alarm's TimeoutError is an OSError, as a full disk may be."""
    probe.backgrounded(queue="first").note()

    def raise_it() -> None:
        raise kind

    ends = set()
    for interruption in at_each_line(raise_it):
        call = made(lambda: probe.backgrounded(queue="outer", unique="it").note())
        if not warm:
            handler._store.file.close()
        try:
            with interruption:
                handler.enqueue(call)
        except EnqueueError as error:
            ends.add((error.uncertain, is_stored(handler, call.id)))
        except kind:
            pass
        assert probe.backgrounded(queue="next").note().state == "queued"
        assert not gate.is_inside
        with locked(handler.path):
            pass
        query(handler.path, "DELETE FROM jobs WHERE queue = 'outer'")
        query(handler.path, "DELETE FROM keys")
    assert (False, True) not in ends, "what is in the file was reported as not sent"
    if kind is TimeoutError:
        assert {(False, False), (True, True)} <= ends
    assert is_sound(handler.path)


def is_stored(handler: SQLiteHandler, id: str) -> bool:
    return query(handler.path, "SELECT 1 FROM jobs WHERE id = ?", id) != []


def test_a_handler_that_calls_and_does_not_mind_the_refusal_fails_the_call_that_it_interrupts_and_says_so_rightly(
    handler: SQLiteHandler, probe: Probe
) -> None:
    probe.backgrounded(queue="first").note()
    ends = set()
    for interruption in at_each_line(lambda: probe.backgrounded(queue="inner").note()):
        call = made(lambda: probe.backgrounded(queue="outer").note())
        try:
            with interruption:
                handler.enqueue(call)
        except EnqueueError as error:
            ends.add((error.uncertain, is_stored(handler, call.id)))
        assert not gate.is_inside
    assert ends == {(False, False)}


def test_a_method_s_time_limit_waits_for_a_transaction_and_not_for_one_that_was_torn_out(
    handler: SQLiteHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler._store.file.make()
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(handler._store.file):
        process = _process.Process(handler, ["default"], theirs)
        process._in_method = True
        rings = []

        def ring(connection: sqlite3.Connection) -> None:
            process._ring(signal.SIGALRM, sys._getframe())
            rings.append(signal.setitimer(signal.ITIMER_REAL, 0)[0])

        before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        try:
            handler._store.file.write(ring)
            assert rings[0] > 0, "told again in a moment"
            gate.enter()  # as one that was torn out leaves it
            with pytest.raises(_process._TooLong):
                process._ring(signal.SIGALRM, sys._getframe())
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)
            gate.leave()
