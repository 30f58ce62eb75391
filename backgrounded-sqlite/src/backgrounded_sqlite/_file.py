"""Which file is it, may it be used, and how is it opened?

Each thread has a connection of its own, and none goes on with a file that has been removed or replaced under its name.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from backgrounded import ConfigurationError

from ._connection import Connection, Hold, gate

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

APPLICATION: Final = 0x62676A71
"""Marks the file as one of ours: "bgjq", in SQLite's header."""
SCHEMA: Final = 1
"""The version of the tables below. A worker refuses a file that is newer than it knows."""
_TABLES: Final = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due REAL NOT NULL,
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    timeout REAL,
    result_ttl REAL,
    unique_key TEXT,
    unique_until TEXT,
    attempt INTEGER NOT NULL DEFAULT 1,
    deaths INTEGER NOT NULL DEFAULT 0,
    run INTEGER NOT NULL DEFAULT 0,
    owner INTEGER,
    forget_at REAL,
    wire BLOB NOT NULL,
    outcome BLOB
);
CREATE INDEX jobs_ready ON jobs (queue, priority DESC, due, seq) WHERE state = 'queued';
CREATE INDEX jobs_later ON jobs (due) WHERE state = 'scheduled';
CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running';
CREATE INDEX jobs_kept ON jobs (seq) WHERE state = 'kept';
CREATE INDEX jobs_old ON jobs (forget_at) WHERE forget_at IS NOT NULL;
CREATE TABLE keys (key TEXT PRIMARY KEY, job TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE workers (id INTEGER PRIMARY KEY, pid INTEGER NOT NULL, queues TEXT NOT NULL)
"""
_SMALLEST_JOURNAL: Final = 16 * 1024 * 1024
_PRIVATE: Final = 0o600
_SQLITES: Final = ("-wal", "-shm", "-journal")
_COMPANIONS: Final = (*_SQLITES, "-workers")
_opening = threading.Lock()


def path_of(url: str) -> Path:
    """The absolute path that a URL names: "sqlite:///jobs.db" in this directory, "sqlite:////var/jobs.db" anywhere."""
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator or not rest.startswith("/") or "?" in rest or "#" in rest:
        raise ConfigurationError(f"sqlite: url: {url!r} is not like sqlite:///jobs.db or sqlite:////var/lib/jobs.db.")
    name = unquote(rest[1:])
    if not name or name.endswith("/") or "\0" in name:
        raise ConfigurationError("sqlite: url: the name of a file is missing, as in sqlite:///jobs.db.")
    if name == ":memory:":
        raise ConfigurationError('sqlite: a queue in memory has no workers. For tests say configure("memory").')
    return Path.cwd() / name


def url_of(path: Path) -> str:
    """The URL that names an absolute path."""
    return f"sqlite:///{quote(str(path))}"


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process holds the file, and trying again will help."""
    return isinstance(error, sqlite3.OperationalError) and str(error) in ("database is locked", "locking protocol")


class Nested(sqlite3.ProgrammingError):
    """A signal's handler, or a `__del__`, in the middle of another use of a queue by its thread: nothing was done.

    It cannot wait for that use, which goes on only after it, nor have a part in its transaction.
    """


class File:
    """The queue's file: its connections and its transactions.

    It is made at the first use. One that says `make=False` raises FileNotFoundError where there is none.
    `patience` is for how many seconds an operation waits for others; `durable` whether a commit is on the disk before
    it returns (it survives the death of any process in either case, this is about power).
    """

    def __init__(self, path: Path, *, patience: float, durable: bool) -> None:
        self.path = path
        self.patience = patience
        self.durable = durable
        self._local = threading.local()

    # -- what others use

    def make(self) -> None:
        """Make the file, where there is none, and open it."""
        self.read(lambda connection: None)

    def read(self, question: Callable[[sqlite3.Connection], T], *, make: bool = True) -> T:
        """The answer to a question of one statement. Raises sqlite3.Error, OSError, ConfigurationError."""
        outer = self._outer()
        try:
            return self._patiently(question, make)
        finally:
            gate.leave(outer)

    def write(self, work: Callable[[sqlite3.Connection], T], *, make: bool = True) -> T:
        """All of the work or nothing: one transaction. Raises sqlite3.Error, OSError, ConfigurationError.

        A function and no context manager: an exception that a signal raises, Ctrl-C or a time limit, may strike between
        a block and the manager's `__exit__`, and then nobody would end the transaction.
        """
        outer = self._outer()
        self._local.may_have_committed = True  # until it is known
        try:
            connection = self._patiently(_begin, make)
            value = work(connection)
            _commit(connection)
            return value
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._local.may_have_committed = gate.is_over
            gate.leave(outer)

    def close(self) -> None:
        """Close the connection of this thread."""
        self._local.hold = None

    @property
    def may_have_committed(self) -> bool:
        """Whether the last transaction of this thread is in the file, or may be, whatever was raised."""
        return getattr(self._local, "may_have_committed", False)

    @property
    def opened(self) -> int:
        """How often this thread has opened the file: what one connection has seen says nothing to the next."""
        count: int = getattr(self._local, "opened", 0)
        return count

    def _outer(self) -> Connection | None:
        """The connection of a use by this thread that this one interrupts at its end; None: it interrupts none.

        Most signals that strike a transaction wait for its COMMIT, as the disk does, and then it is over. Raises Nested
        where it is not.
        """
        if not is_in_use(sys._getframe(2)):
            return None
        self._local.may_have_committed = False
        if not gate.is_over:
            raise Nested(
                "a signal handler or a __del__ has interrupted another use of a queue in its thread; nothing was done, "
                "call again after that"
            )
        return gate.ending

    # -- inside the gate

    def _patiently(self, step: Callable[[Connection], T], make: bool) -> T:
        """Do it on the connection of this thread; while others are in the way, try again. Inside the gate afterwards.

        Also where the file has been taken away under the connection: the next try is made on a new one.
        SQLite's own way of waiting sleeps longer with each try, and so the unlucky starve where many write: we ask
        again every millisecond.
        """
        end = time.monotonic() + self.patience
        while True:
            gate.enter()
            try:
                return step(self._connection(make))
            except sqlite3.OperationalError as error:
                if not (is_busy(error) or identity(self.path) is None) or time.monotonic() > end:
                    _name_what_is_closed_to_us(self.path, error)
                    raise
            gate.leave()
            time.sleep(random.uniform(0.0002, 0.001))

    def _connection(self, make: bool) -> Connection:
        """The connection of this thread; a new one after a fork, and where the file is not the same any more."""
        local = self._local
        hold: Hold | None = getattr(local, "hold", None)
        if hold is not None and hold.connection.is_open and local.identity == identity(self.path):
            self._roll_back()  # what a signal has left behind
            return hold.connection
        local.hold = None
        opened = self._open(make)
        local.hold, local.opened = Hold(opened), self.opened + 1
        return opened

    def _roll_back(self) -> None:
        hold: Hold | None = getattr(self._local, "hold", None)
        if hold is not None and hold.connection.is_open and hold.connection.in_transaction:
            gate.note_end(None)
            with suppress(sqlite3.Error):  # the first error tells more; a lost connection rolls back by itself
                hold.connection.execute("ROLLBACK")

    # -- opening

    def _open(self, make: bool) -> Connection:
        # One at a time: whoever creates the file closes a descriptor of it, and that lets go of all locks that this
        # process holds on it (POSIX). For the same reason an existing file is looked at, never opened, but by SQLite.
        with _opening:
            return self._open_alone(make)

    def _open_alone(self, make: bool) -> Connection:
        path = _checked(self.path, make)
        self._local.identity = identity(path)
        connection = Connection(path)
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if "not a database" in str(error) or "malformed" in str(error):
                raise ConfigurationError(f"sqlite: {self.path} is no SQLite file ({error}).") from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")  # what a stranger wrote into the schema runs nothing
        self._check_ours(connection)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise ConfigurationError(
                f"sqlite: {self.path} is where SQLite cannot share memory, such as a network disk."
            )
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'NORMAL'}")
        connection.execute(f"PRAGMA journal_size_limit = {_SMALLEST_JOURNAL}")
        if _version(connection) == 0:
            self._create(connection)

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")  # one look: between two, another process may have made the tables
        try:
            version, mark = _version(connection), connection.execute("PRAGMA application_id").fetchone()[0]
            is_empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        finally:
            connection.rollback()
        if mark == 0 and version == 0 and is_empty:
            return
        if mark != APPLICATION:
            raise ConfigurationError(f"sqlite: {self.path} holds something else: give the queue a file of its own.")
        if version > SCHEMA:
            raise ConfigurationError(
                f"sqlite: {self.path} is of version {version}, and this release knows {SCHEMA}: upgrade it here too."
            )

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection) == 0:
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _begin(connection: Connection) -> Connection:
    connection.execute("BEGIN IMMEDIATE")
    return connection


def _commit(connection: Connection) -> None:
    gate.note_end(connection)
    try:
        connection.execute("COMMIT")
    except sqlite3.Error:
        gate.note_end(None)
        raise


def is_in_use(frame: FrameType | None) -> bool:
    """Whether the thread of this frame is inside of SQLite, from here or from further below on its stack.

    One that an exception of a signal tore out is not, though the gate may still note it.
    """
    while frame is not None and gate.is_inside:
        if frame.f_code in _USES:
            return True
        frame = frame.f_back
    return False


_USES: Final = frozenset({File.read.__code__, File.write.__code__, Hold.__del__.__code__})


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def identity(path: Path) -> tuple[int, int] | None:
    """Which file stands under this name; None: there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 # at every call, and a third of the time of Path.stat
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _checked(path: Path, make: bool) -> Path:
    """The file itself, there, and safe to use. Raises ConfigurationError where others could have put it there."""
    if path.is_symlink():
        _refuse_foreign(path)
    real = path.resolve()
    for suffix in _COMPANIONS:
        _refuse_foreign(real.with_name(real.name + suffix))
    if make and identity(real) is None:
        _make(real)
    try:
        found = real.stat()
    except FileNotFoundError:
        if not make:
            raise
        return _checked(path, make)  # it has gone in between
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"sqlite: {path} is no file.")
    if found.st_mode & stat.S_IWOTH:
        raise ConfigurationError(f"sqlite: everybody may write to {path}: chmod o-w, or they call your code.")
    _refuse_foreign(real)
    return real


def _make(path: Path) -> None:
    """Make the file, alone: what lies beside it belongs to one that is gone.

    A process that has not noticed yet still holds the shared memory of that one. Whoever joined it would look into one
    journal by the index of another. As only one process at a time does this, it takes away nothing that is in use.
    """
    with _alone_in(path.parent) as is_alone:
        if is_alone and identity(path) is None:
            for suffix in _SQLITES:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), _PRIVATE))


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """While no other process makes a queue in this directory. False where that cannot be known: a directory that may
    be written to and not be read, a file system without locks. Raises an error that `is_busy` where one does."""
    if sys.platform == "win32":  # where no worker has a file open
        yield False
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        yield False
        return
    try:
        yield _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise sqlite3.OperationalError("database is locked") from error
    except OSError:
        return False
    return True


def _name_what_is_closed_to_us(path: Path, error: sqlite3.Error) -> None:
    """Raise PermissionError with the name of the companion that this user may not write to: SQLite names none."""
    real = path.resolve()
    for suffix in _SQLITES:
        beside = real.with_name(real.name + suffix)
        if beside.exists() and not os.access(beside, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(beside)) from error


def _refuse_foreign(path: Path) -> None:
    """Refuse what another user has put where everybody may put things, such as /tmp: the file, or a link to it."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # one look: a companion may go at any moment
        return
    if not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0):
        return
    if path.parent.stat().st_mode & stat.S_IWOTH:
        raise ConfigurationError(f"sqlite: {path} belongs to another user, in a directory that is everybody's.")
