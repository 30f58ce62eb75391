"""Which Huey is made for a URL, and what stands in its queues?

Its queues hold JSON of one form only: the words of our task. Whatever else is written there becomes a call that is
refused, and so is kept; nothing in it names code, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from datetime import timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from backgrounded import ConfigurationError
from backgrounded.handler import after_fork, printable
from backgrounded.records import redis_pool
from huey import Huey, PriorityRedisHuey, SqliteHuey

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
        """A new Huey for this queue; None: for the jobs' records. Raises what the store raises."""
        made = self._make(PREFIX if queue is None else f"{PREFIX}.{queue}")
        self._hueys.append(made)
        return made

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


class _SqliteHuey(_OurTasksOnly, SqliteHuey):  # type: ignore[misc]  # Huey has no types
    """On a file of SQLite, whose connections must not be used, or even closed, on the other side of a fork."""

    storage: Any

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.storage_kwargs["create_tables"] = False  # they are there now
        self._inherited: list[Any] = []
        after_fork(self._renew)

    def _renew(self) -> None:
        self._inherited.append(self.storage)
        self.storage = self.create_storage()


class _RedisHuey(_OurTasksOnly, PriorityRedisHuey):  # type: ignore[misc]  # Huey has no types
    """On a server of Redis or Valkey, in sorted sets: the more urgent first."""
