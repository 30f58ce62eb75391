"""Whose file may it be, who may read it, and what if it is something else, gone, or another one?"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import backgrounded
import pytest
from backgrounded import ConfigurationError, EnqueueError
from backgrounded.testing.probe import Probe, events
from backgrounded_sqlite import SQLiteHandler
from backgrounded_sqlite._alive import Locks
from backgrounded_sqlite._connection import Connection
from backgrounded_sqlite._file import File, _make, is_busy
from backgrounded_sqlite._store import Store
from sqlite_contract import query
from sqlitetools import NOBODY, Workers, elsewhere, is_sound

from needs import missing
from waiting import eventually


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def sidecars(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}-*"))


# -- who may read it


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.worker
@pytest.mark.parametrize("first", ["caller", "worker"])
def test_the_files_are_their_owner_s_alone_whatever_the_umask(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, no_umask: None, first: str
) -> None:
    """Whoever makes them."""
    if first == "caller":
        probe.backgrounded.note()
    with workers.unready(handler.worker_command(), more={"BACKGROUNDED_APP": "backgrounded.testing.probe"}):
        eventually(lambda: len(sidecars(handler.path)) == 3)
        probe.backgrounded.note()
        eventually(lambda: events(oracle, "note"))
        found = [handler.path, *sidecars(handler.path)]
        assert [path.name for path in found] == ["jobs.db", "jobs.db-shm", "jobs.db-wal", "jobs.db-workers"]
        assert {mode(path) for path in found} == {0o600}


@pytest.mark.parametrize("bits", [0o602, 0o666], ids=oct)
def test_a_file_that_everybody_may_write_to_is_refused(handler: SQLiteHandler, probe: Probe, bits: int) -> None:
    probe.backgrounded.note()
    handler.path.chmod(bits)
    with pytest.raises(ConfigurationError, match=r"chmod o-w"):
        SQLiteHandler(handler.url).state("0" * 32)
    handler.path.chmod(0o660)
    assert SQLiteHandler(handler.url).state("0" * 32) == "unknown"


@pytest.mark.parametrize("umask", [0, 0o027, 0o077], ids=oct)
def test_a_file_that_is_for_a_group_has_sidecars_for_the_group(
    handler: SQLiteHandler, probe: Probe, umask: int
) -> None:
    """A queue of two users: they share a group, a directory, and the file."""
    handler.path.touch()
    handler.path.chmod(0o660)
    before = os.umask(umask)
    try:
        probe.backgrounded.note()
        Locks(handler.path)
    finally:
        os.umask(before)
    assert len(sidecars(handler.path)) == 3
    assert {mode(path) for path in sidecars(handler.path)} == {0o660}


def test_the_workers_file_keeps_the_mode_that_somebody_gave_it(handler: SQLiteHandler, probe: Probe) -> None:
    probe.backgrounded.note()
    beside = handler.path.with_name("jobs.db-workers")
    beside.touch()
    beside.chmod(0o640)
    Locks(handler.path)
    assert mode(beside) == 0o640


# -- whose it is

AS_NOBODY = f"""
import os, sys
import backgrounded, backgrounded_sqlite, backgrounded.testing.probe as probe
backgrounded.configure("memory")
probe.Probe("/nowhere").backgrounded.note()  # all that it takes is imported: where Python is may be closed to nobody
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
backgrounded.configure(backgrounded_sqlite.SQLiteHandler, url=f"sqlite:///{{sys.argv[1]}}")
try:
    print("took", probe.Probe("/nowhere").backgrounded.note().id)
except backgrounded.ConfigurationError as error:
    print(type(error).__name__, error)
except backgrounded.EnqueueError as error:
    cause = error.__cause__
    print(type(error).__name__, type(cause).__name__, error.uncertain, getattr(cause, "filename", ""))
"""


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A directory like /tmp. What this process makes in it is another user's to those who ask as `nobody`."""
    if os.geteuid() != 0:
        missing("to be root, who can be another user")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o1777)
        yield path


def as_nobody(path: Path) -> str:
    """What an ordinary user gets for a call on this queue."""
    return elsewhere(AS_NOBODY, str(path))


@pytest.fixture
def own(everybodys: Path) -> Path:
    """A directory of nobody's own."""
    folder = everybodys / "own"
    folder.mkdir(0o700)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def give(path: Path, user: int) -> None:
    os.chown(path, user, user, follow_symlinks=False)


STRANGER = 65533


def test_a_file_of_our_own_in_everybody_s_directory_is_fine(everybodys: Path) -> None:
    assert as_nobody(everybodys / "jobs.db").startswith("took ")
    assert as_nobody(everybodys / "jobs.db").startswith("took ")


@pytest.mark.parametrize("there", [True, False], ids=["to-a-file", "dangling"])
def test_a_stranger_s_link_in_everybody_s_directory_is_refused(everybodys: Path, own: Path, there: bool) -> None:
    aim, link = own / "aim.db", everybodys / "jobs.db"
    if there:
        aim.touch()
        give(aim, NOBODY)
    link.symlink_to(aim)
    give(link, STRANGER)
    assert (
        as_nobody(link)
        == f"ConfigurationError sqlite: {link} belongs to another user, in a directory that is everybody's.\n"
    )
    assert aim.exists() is there
    assert not there or aim.read_bytes() == b""


def test_a_link_of_our_own_is_followed(everybodys: Path, own: Path) -> None:
    aim, link = own / "aim.db", everybodys / "jobs.db"
    link.symlink_to(aim)
    give(link, NOBODY)
    assert as_nobody(link).startswith("took ")
    assert query(aim, "SELECT count(*) FROM jobs") == [(1,)]
    assert link.is_symlink()


def test_a_stranger_s_file_in_everybody_s_directory_is_refused(everybodys: Path) -> None:
    path = everybodys / "jobs.db"
    path.touch()
    path.chmod(0o660)
    os.chown(path, STRANGER, NOBODY)
    assert "belongs to another user" in as_nobody(path)
    assert path.read_bytes() == b""


def test_a_stranger_s_file_behind_a_link_of_our_own_is_refused(everybodys: Path, own: Path) -> None:
    aim, link = everybodys / "jobs.db", own / "jobs.db"
    aim.touch()
    aim.chmod(0o660)
    os.chown(aim, STRANGER, NOBODY)
    link.symlink_to(aim)
    give(link, NOBODY)
    assert "belongs to another user" in as_nobody(link)
    assert aim.read_bytes() == b""


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", "-workers"])
def test_a_stranger_s_file_beside_ours_in_everybody_s_directory_is_refused(everybodys: Path, suffix: str) -> None:
    """Whoever writes to the journal writes to the queue."""
    path = everybodys / "jobs.db"
    assert as_nobody(path).startswith("took ")
    beside = everybodys / f"jobs.db{suffix}"
    beside.touch()
    beside.chmod(0o666)
    give(beside, STRANGER)
    assert as_nobody(path).startswith("ConfigurationError sqlite: ")


# -- what it holds


def text(path: Path) -> None:
    path.write_text("Dear diary, today nobody wanted a queue.\n" * 100)


def short_text(path: Path) -> None:
    path.write_text("hello")


def another_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE invoices (id)")
        connection.execute("INSERT INTO invoices VALUES (1)")


def another_marked_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA application_id = 1")
        connection.execute("PRAGMA user_version = 1")


def newer_queue(path: Path) -> None:
    handler = SQLiteHandler(f"sqlite:///{path}")
    handler._store.file.make()
    handler._store.file.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA user_version = 2")


def cut_queue(path: Path) -> None:
    newer_queue(path)
    os.truncate(path, 4096 + 100)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (text, "is no SQLite file"),
        (short_text, "is no SQLite file"),
        (another_database, "holds something else: give the queue a file of its own"),
        (another_marked_database, "holds something else: give the queue a file of its own"),
        (newer_queue, "is of version 2, and this release knows 1: upgrade it here too"),
        (cut_queue, "is "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_queue_of_ours_is_refused_and_left_as_it_is(
    handler: SQLiteHandler, probe: Probe, make: Callable[[Path], None], said: str
) -> None:
    make(handler.path)
    before = handler.path.read_bytes(), mode(handler.path)
    for use in (probe.backgrounded.note, lambda: handler.state("0" * 32), lambda: list(handler.kept())):
        with pytest.raises(ConfigurationError, match=said) as refusal:
            use()
        assert str(handler.path) in str(refusal.value)
    assert (handler.path.read_bytes(), mode(handler.path)) == before
    assert not sidecars(handler.path)


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device"])
def test_what_is_no_file_is_refused(
    handler: SQLiteHandler, probe: Probe, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "directory":
        handler.path.mkdir()
    elif kind == "fifo":
        os.mkfifo(handler.path)
    elif kind == "device":
        handler.path.symlink_to("/dev/null")
    else:
        monkeypatch.chdir(handler.path.parent)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("jobs.db")
    with pytest.raises(ConfigurationError, match="is no file"):
        probe.backgrounded.note()


def test_an_empty_file_becomes_the_queue(handler: SQLiteHandler, probe: Probe) -> None:
    handler.path.touch()
    probe.backgrounded.note()
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(1,)]


def test_the_file_says_what_it_is(handler: SQLiteHandler, probe: Probe) -> None:
    probe.backgrounded.note()
    assert query(handler.path, "PRAGMA application_id") == [(int.from_bytes(b"bgjq", "big"),)]
    assert query(handler.path, "PRAGMA user_version") == [(1,)]
    assert query(handler.path, "PRAGMA journal_mode") == [("wal",)]


def test_a_directory_that_is_missing_is_an_error_of_the_hand_over(tmp_path: Path) -> None:
    with backgrounded.using(SQLiteHandler(f"sqlite:///{tmp_path}/missing/jobs.db")):
        with pytest.raises(EnqueueError, match=str(tmp_path / "missing")) as error:
            Probe("/nowhere").backgrounded.note()
        assert isinstance(error.value.__cause__, FileNotFoundError)
        (tmp_path / "missing").mkdir()
        assert Probe("/nowhere").backgrounded.note().state == "queued"


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_may_only_be_read_is_an_error_of_the_hand_over(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "jobs.db")
        handler = SQLiteHandler(f"sqlite:///{path}")
        handler._store.file.make()
        handler._store.file.close()
        Path(folder).chmod(0o555 if what == "directory" else 0o777)
        path.chmod(0o444)
        if what == "directory":
            path.unlink()
        assert as_nobody(path).split() in (
            ["EnqueueError", "OperationalError", "False"],
            ["EnqueueError", "PermissionError", "False", str(path)],
        )
        Path(folder).chmod(0o777)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_companion_that_is_closed_to_us_is_named(own: Path, suffix: str) -> None:
    """As one that was there already when somebody opened the file itself to a group."""
    path, beside = own / "jobs.db", own / f"jobs.db{suffix}"
    assert as_nobody(path).startswith("took ")
    beside.touch(0o600)
    assert as_nobody(path).split() == ["EnqueueError", "PermissionError", "False", str(beside)]
    beside.chmod(0o444)
    assert as_nobody(path).split() == ["EnqueueError", "PermissionError", "False", str(beside)]


# -- gone, or another one


def remove(path: Path) -> None:
    for beside in sidecars(path):
        if not beside.name.endswith("-workers"):
            beside.unlink()
    path.unlink()


def remove_it_alone(path: Path) -> None:
    """`rm jobs.db`, which leaves beside it what the worker still has in use."""
    path.unlink()


def replace_by_another_queue(path: Path) -> None:
    other = SQLiteHandler(f"sqlite:///{path.with_name('other.db')}")
    other._store.file.make()
    other._store.file.close()
    for beside in sidecars(path):
        if not beside.name.endswith("-workers"):
            beside.unlink()
    other.path.replace(path)


CHANGES = pytest.mark.parametrize(
    "change", [remove, remove_it_alone, replace_by_another_queue], ids=lambda change: change.__name__
)


@CHANGES
def test_calls_go_to_the_file_that_is_there(
    handler: SQLiteHandler, probe: Probe, change: Callable[[Path], None]
) -> None:
    first = probe.backgrounded.note(1)
    assert first.state == "queued"
    change(handler.path)
    second = probe.backgrounded.note(2)
    assert (first.state, second.state) == ("unknown", "queued")
    assert query(handler.path, "SELECT id FROM jobs") == [(second.id,)]
    assert is_sound(handler.path)


def test_processes_that_make_the_file_at_the_same_time_have_one_queue(tmp_path: Path) -> None:
    """A worker of two processes and the first caller, all new: nobody's half-made file is a stranger's."""
    files = 400
    assert elsewhere(MAKE_THEM, str(tmp_path), str(files)) == ""
    for number in range(files):
        assert len(query(tmp_path / f"{number}.db", "SELECT id FROM jobs")) == 4


MAKE_THEM = """
import multiprocessing, sys
import backgrounded
from backgrounded.testing.probe import Probe
from backgrounded_sqlite import SQLiteHandler

context = multiprocessing.get_context("fork")
together = context.Barrier(4)

def make(folder, files):
    for number in range(files):
        backgrounded.configure(SQLiteHandler, url=f"sqlite:///{folder}/{number}.db", enqueue_timeout=30)
        together.wait(60)
        Probe("/nowhere").backgrounded.note()

makers = [context.Process(target=make, args=(sys.argv[1], int(sys.argv[2]))) for _ in range(4)]
for maker in makers:
    maker.start()
for maker in makers:
    maker.join()
sys.exit(any(maker.exitcode for maker in makers))
"""


@contextlib.contextmanager
def a_queue_being_made_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_queue_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Or one would take away what another has just put beside its file. As everywhere, one waits for the other."""
    file = File(tmp_path / "jobs.db", patience=0, durable=False)
    with a_queue_being_made_in(tmp_path):
        with pytest.raises(sqlite3.OperationalError) as raised:
            Store(file).waiting()
        assert is_busy(raised.value)
        assert list(tmp_path.iterdir()) == []
    assert Store(file).waiting() == {}


def test_where_directories_cannot_be_locked_a_queue_is_made_and_nothing_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some file systems of virtual machines: who cannot know that it is alone leaves what lies there."""
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "jobs.db-workers").touch()
    (tmp_path / "jobs.db-journal").touch()
    _make(tmp_path / "jobs.db")
    assert len(list(tmp_path.iterdir())) == 3
    assert mode(tmp_path / "jobs.db") == 0o600
    monkeypatch.undo()
    (tmp_path / "jobs.db").unlink()
    _make(tmp_path / "jobs.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.db", "jobs.db-workers"]


def refuse(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOTSUP, "no locks here")


def test_a_queue_is_made_in_a_directory_that_may_be_written_to_and_not_be_read(own: Path) -> None:
    own.chmod(0o300)
    assert as_nobody(own / "jobs.db").startswith("took ")


def test_a_file_that_goes_in_the_moment_of_opening_is_not_made_by_sqlite(tmp_path: Path) -> None:
    """It would be for everybody to read."""
    with pytest.raises(sqlite3.OperationalError):
        Connection(tmp_path / "jobs.db")
    assert list(tmp_path.iterdir()) == []


def test_what_fails_since_the_file_has_gone_is_tried_with_the_next_one(handler: SQLiteHandler, probe: Probe) -> None:
    probe.backgrounded.note()

    def count(connection: sqlite3.Connection) -> int:
        found: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        if found:
            remove(handler.path)
            raise sqlite3.OperationalError("disk I/O error")
        return found

    assert handler._store.file.read(count) == 0


def test_a_companion_of_the_file_may_go_while_it_is_looked_at(handler: SQLiteHandler) -> None:
    """As the journal does with the last connection of another process."""
    handler._store.file.make()
    companion = handler.path.with_name("jobs.db-workers")
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            companion.touch()
            companion.unlink()

    restless = threading.Thread(target=come_and_go)
    restless.start()
    try:
        for _ in range(800):
            handler._store.file.close()
            assert handler.state("0" * 32) == "unknown"
    finally:
        over.set()
        restless.join()


@pytest.mark.worker
@CHANGES
def test_a_worker_serves_the_file_that_is_there(
    handler: SQLiteHandler, workers: Workers, probe: Probe, change: Callable[[Path], None]
) -> None:
    with workers(handler) as process:
        assert probe.backgrounded.give(1).result(60) == 1
        change(handler.path)
        assert probe.backgrounded.give(2).result(60) == 2
        change(handler.path)
        assert probe.backgrounded.give(3).result(60) == 3
        assert process.poll() is None


@pytest.mark.worker
def test_a_worker_whose_file_goes_while_it_runs_a_job_serves_the_next_one(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    with workers(handler):
        lost = probe.backgrounded.hold(str(tmp_path / "gate"))
        eventually(lambda: events(oracle, "holding"))
        remove(handler.path)
        found = probe.backgrounded.give(2)
        (tmp_path / "gate").touch()
        assert found.result(60) == 2
        assert lost.state == "unknown"
        assert len(events(oracle, "holding")) == 1


@pytest.mark.worker
def test_a_queue_may_be_copied_away_and_back(
    handler: SQLiteHandler, workers: Workers, probe: Probe, tmp_path: Path
) -> None:
    """With nobody at work, the file alone is the whole queue."""
    job = probe.backgrounded.give([1])
    handler._store.file.close()
    assert [path.name for path in sidecars(handler.path)] == []
    shutil.move(handler.path, tmp_path / "copy.db")
    assert job.state == "unknown"
    handler._store.file.close()
    shutil.move(tmp_path / "copy.db", handler.path)
    with workers(handler):
        assert job.result(60) == [1]
