"""Which Huey is made for a URL, and what stands in its queues?

Its queues hold JSON of one form only: the words of our task. Whatever else is written there becomes a call that is
refused, and so is kept; nothing in it names code, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from backgrounded import ConfigurationError
from backgrounded.handler import after_fork, printable
from backgrounded.records import redis_pool
from huey import Huey, PriorityRedisHuey, SqliteHuey
from huey.storage import SqliteStorage

from ._line import UNREADABLE, line_of

PREFIX: Final = "backgrounded"
"""What the names of our Hueys begin with, so that none is taken for the application's own on the same store."""


class Place:
    """The store that a URL names; each queue on it is a Huey of its own. Nothing is opened before the first use.

    `patience` bounds a trip to the store, in seconds. Raises ConfigurationError for a URL that names none.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.patience = patience
        self._hueys: list[Any] = []
        self._shared: Any = None
        scheme = urlsplit(url).scheme
        if scheme == "sqlite":
            self._make: Any = self._sqlite
            self._path = _path_of(url)
            self.url = f"sqlite:///{quote(str(self._path))}"
        elif scheme in ("redis", "rediss", "unix"):
            self._make = self._redis
            self.url = url
            _pool(url, patience)
        else:
            raise ConfigurationError(
                f"huey: url: cannot use {scheme or 'a URL without a scheme'}. "
                "Examples: sqlite:///jobs.db (relative), sqlite:////var/lib/shop/jobs.db, redis://localhost:6379/0"
            )

    def huey(self, queue: str | None) -> Huey:
        """A new Huey for this queue; None: for the jobs' records. Nothing is opened here."""
        made = self._make(PREFIX if queue is None else f"{PREFIX}.{queue}")
        self._hueys.append(made)
        return made

    def open(self) -> None:
        """Make the tables of a file now. Raises what the file raises: a consumer of none had better not start."""
        if self._make == self._sqlite:
            for huey in self._hueys:
                if not huey.storage.has_tables:
                    huey.storage.initialize_schema()

    def close(self) -> None:
        """Close what is open; it is opened again when it is used."""
        for huey in self._hueys:
            huey.storage.close()
        if self._shared is not None:
            self._shared.disconnect()

    def _sqlite(self, name: str) -> Huey:
        return _SqliteHuey(name, filename=str(self._path), timeout=self.patience, results=False, serializer=_Json())

    def _redis(self, name: str) -> Huey:
        self._shared = self._shared or _pool(self.url, self.patience)
        return _RedisHuey(name, connection_pool=self._shared, clean_name=False, results=False, serializer=_Json())


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or parts.fragment or path in ("", "/", ":memory:"):
        raise ConfigurationError(
            "huey: url: a file is named by sqlite:///jobs.db (relative) or sqlite:////var/lib/shop/jobs.db, "
            "and by nothing beside it."
        )
    return Path(path).absolute()


def _pool(url: str, patience: float) -> Any:
    """Connections that answer or fail in time, and never send a write again by themselves."""
    try:
        return redis_pool(patience, url)
    except ImportError:
        raise ConfigurationError(
            "huey: url: the package redis is missing. pip install 'backgrounded-huey[redis]'"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"huey: url: {error}. An example: redis://localhost:6379/0") from None


class _Json:
    """What Huey writes beside tasks, such as a revocation, as JSON."""

    @staticmethod
    def serialize(data: Any) -> bytes:
        return json.dumps(data).encode()

    @staticmethod
    def deserialize(data: Any) -> Any:
        return json.loads(bytes(data))


class _OurTasksOnly:
    """The part of a Huey that writes a task into its store and reads it again."""

    def serialize_task(self, task: Any) -> bytes:
        due = None if task.eta is None else task.eta.replace(tzinfo=timezone.utc).timestamp()
        message = {"id": task.id, "due": due, "priority": task.priority, "words": task.kwargs}
        return json.dumps(message, separators=(",", ":")).encode()

    def deserialize_task(self: Any, data: Any) -> Any:
        """Never raises: Huey has taken the job off its queue already, and would lose it."""
        try:
            message = json.loads(bytes(data))
            id, due, priority = printable(message["id"]), message["due"], message["priority"]
            return line_of(self).task(
                id, _checked(message["words"]), None if due is None else float(due), priority and float(priority)
            )
        except Exception:
            words = {"wire": bytes(data).decode(errors="backslashreplace"), "name": UNREADABLE}
            return line_of(self).task(uuid.uuid4().hex, words, None, None)


def _checked(given: Any) -> Mapping[str, Any]:
    """The words of our task, if they are of the right kinds. Raises ValueError, TypeError or KeyError."""
    words: dict[str, Any] = {"name": UNREADABLE, "handler": "default", "attempt": 1, "timeout": None, **given}
    good = {
        "wire": True,
        "name": isinstance(words["name"], str),
        "handler": isinstance(words["handler"], str),
        "attempt": type(words["attempt"]) is int and words["attempt"] >= 1,
        "timeout": words["timeout"] is None or 0 < float(words["timeout"]) < math.inf,
    }
    if words.keys() != good.keys() or not all(good.values()):
        raise ValueError("not the words of a task of ours")
    return words


class _Turn:
    """A lock that is not awaited for ever: SQLite's own error after so many seconds."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._end = 0.0

    def __enter__(self) -> None:
        end = time.monotonic() + self._patience
        if not self._lock.acquire(timeout=self._patience):
            raise sqlite3.OperationalError(
                f"database is locked: other threads of this process have had it for {self._patience:g} s"
            )
        self._end = end

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def left(self) -> float:
        """Seconds that whose turn it is has of its patience."""
        return max(0.0, self._end - time.monotonic())


class _SqliteStorage(SqliteStorage):  # type: ignore[misc]  # Huey has no types
    """Each use of the file ends within `timeout` seconds. All threads share one connection, and wait for their turn: so
    a use is patient with others' processes for as long only as its turn has left. Nothing is opened before the first.
    """

    def __init__(self, name: str, *, timeout: float, create_tables: bool = True, **settings: Any) -> None:
        words: Any = {**settings, "timeout": timeout, "create_tables": False}
        super().__init__(name, **words)
        self.lock = _Turn(timeout)
        self.has_tables = not create_tables

    @property
    def conn(self) -> Any:
        """Asked for at the beginning of each use, by whose turn it is."""
        self._timeout = self.lock.left()
        connection = super().conn
        connection.execute(f"pragma busy_timeout = {round(1000 * self.lock.left())}")
        return connection

    @contextmanager
    def db(self, commit: bool = False, close: bool = False) -> Iterator[Any]:
        """A use of the file; with `commit`, a transaction that writes."""
        with super().db(False, close) as cursor:
            if not commit:
                yield cursor
                return
            try:
                self._begin(cursor.connection)
                yield cursor
                cursor.connection.commit()
            except BaseException:  # Huey ends its workers with a KeyboardInterrupt
                cursor.connection.rollback()
                raise

    def _begin(self, connection: Any) -> None:
        """Whoever must wait asks every millisecond. SQLite's own way of waiting sleeps longer with each try, and so a
        call would starve where a consumer writes all the time on a slow disk."""
        connection.execute("pragma busy_timeout = 0")
        while True:
            try:
                connection.execute(self.begin_sql)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or not self.lock.left():
                    raise
            time.sleep(random.uniform(0.0002, 0.001))

    def _create_connection(self) -> Any:
        connection = super()._create_connection()
        try:
            if not self.has_tables:
                self._make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_tables(self, connection: Any) -> None:
        with connection:
            self._begin(connection)
            for statement in self.ddl:
                connection.execute(statement)
        self.has_tables = True


class _SqliteHuey(_OurTasksOnly, SqliteHuey):  # type: ignore[misc]  # Huey has no types
    """On a file of SQLite, whose connections must not be used, or even closed, on the other side of a fork."""

    storage: Any
    storage_class = _SqliteStorage

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._inherited: list[Any] = []
        after_fork(self._renew)

    def _renew(self) -> None:
        self._inherited.append(self.storage)
        self.storage_kwargs["create_tables"] = not self.storage.has_tables
        self.storage = self.create_storage()


class _RedisHuey(_OurTasksOnly, PriorityRedisHuey):  # type: ignore[misc]  # Huey has no types
    """On a server of Redis or Valkey, in sorted sets: the more urgent first."""
