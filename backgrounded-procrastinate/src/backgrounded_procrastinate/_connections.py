"""How is a database asked within bounded time, from any thread, and after a fork?

A query of libpq waits for as long as the server keeps the connection open. So each use of a connection has an alarm: it
shuts the socket, and the wait ends in an OperationalError.
"""

from __future__ import annotations

import math
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from backgrounded.handler import after_fork

MOST: Final = 10
"""Connections of one process: a server has a hundred for all, and each use takes milliseconds."""
_SHORTEST: Final = 2
"""Seconds: libpq takes a shorter `connect_timeout` for this."""
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""`select` takes no file beyond the 1,024th of a process."""


class NotConnected(psycopg.OperationalError):
    """There was no connection: nothing was sent."""


class AllInUse(NotConnected):
    """Others had all connections for as long as there was time to wait in line."""


class Connections:
    """At most ten connections to one database, in autocommit mode. Nothing is connected before the first use.

    `patience` bounds connecting and each use of a connection, the wait for one included, in seconds.
    """

    def __init__(self, conninfo: str, more: Mapping[str, Any], patience: float) -> None:
        self.patience = patience
        # Prepared statements do not survive a pooler that gives each transaction another session.
        self._arguments = {"prepare_threshold": None, **more, "conninfo": conninfo, "autocommit": True}
        self._idle: list[psycopg.Connection[Any]] = []
        self._inherited: list[psycopg.Connection[Any]] = []
        self._free = threading.Semaphore(MOST)
        weakref.finalize(self, _close, self._idle)
        after_fork(self._begin_anew)

    @contextmanager
    def one(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for the block; it goes back when the block succeeds. Raises psycopg.Error."""
        began = time.monotonic()
        line = self.patience / 2  # the rest is for the use: what is cut off in the middle may have arrived
        if not self._free.acquire(timeout=line):
            raise AllInUse(f"All {MOST} connections of this process have been in use for {line:g} s.")
        try:
            left = self.patience - (time.monotonic() - began)
            connection = self._take() or self._connect()
            try:
                with bounded(connection, left):
                    yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
        finally:
            self._free.release()

    def _connect(self) -> psycopg.Connection[Any]:
        seconds = max(_SHORTEST, math.ceil(self.patience))
        try:
            return psycopg.connect(**{"connect_timeout": seconds, **self._arguments})
        except psycopg.OperationalError as error:
            raise NotConnected(str(error)) from error

    def _begin_anew(self) -> None:
        """Leave the parent what it has opened: to close it here would end its sessions."""
        self._inherited += self._idle
        self._idle.clear()
        self._free = threading.Semaphore(MOST)

    def _take(self) -> psycopg.Connection[Any] | None:
        while (connection := _pop(self._idle)) is not None:
            is_usable = False
            try:
                is_usable = _is_usable(connection)
            finally:
                if not is_usable:
                    connection.close()
            if is_usable:
                return connection
        return None

    def close(self) -> None:
        """Close what is idle; the next use connects again."""
        _close(self._idle)


def _pop(idle: list[psycopg.Connection[Any]]) -> psycopg.Connection[Any] | None:
    """One that waits for its next use. Without a lock: another thread may take the last one first."""
    try:
        return idle.pop()
    except IndexError:
        return None


def _close(idle: list[psycopg.Connection[Any]]) -> None:
    while (connection := _pop(idle)) is not None:
        connection.close()


def _is_usable(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has said nothing since the last use: what it says to an idle one is that it ends."""
    if connection.closed:
        return False
    with _Selector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return not selector.select(0)


def _shut_down(descriptor: int) -> None:
    """Hang up over a descriptor that is not ours to close. It needs no other one: there may be none left."""
    line = socket.socket(fileno=descriptor)
    try:
        line.shutdown(socket.SHUT_RDWR)
    finally:
        line.detach()


@contextmanager
def bounded(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Hang up on the server, if the block takes longer."""
    lock = threading.Lock()
    is_over = False

    def hang_up() -> None:
        with lock:
            if is_over or connection.closed:
                return
            with suppress(OSError):
                _shut_down(connection.fileno())

    alarm = threading.Timer(seconds, hang_up)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        with lock:
            is_over = True
        alarm.cancel()
