"""What is a connection to SQLite in a process that has threads, and may fork?

SQLite keeps in the memory of the process which locks it holds on which file. A forked child has that memory and not
the locks: it would believe that it holds them, and write where others write, even on a new connection; and if another
thread was inside of SQLite at the fork, it would wait for ever for a mutex that nobody lets go of. So no connection of
ours is there at a fork: the fork waits for those that are in use, and closes all.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Final

LONGEST_WAIT: Final = 5.0
"""Seconds for which a fork waits: nobody is inside for that long, but what an exception broke off at a bad moment."""


class Gate:
    """Lets threads into SQLite, and a fork only when none of them is inside.

    Threads are noted and not counted: one that an exception of a signal tore out between two lines is still inside, and
    out again after its next visit. Each has a connection noted with it, once its transaction comes to its end.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin again, open and with nobody inside, as in a child that has one thread."""
        self._lock = threading.RLock()  # let go of in C: an exception of a signal does not strike before that
        self._changed = threading.Condition(self._lock)
        self._inside: dict[int, Connection | None] = {}
        self._closed = False

    def enter(self) -> None:
        while not self.try_to_enter():
            with self._lock:
                self._changed.wait_for(lambda: not self._closed)

    def try_to_enter(self) -> bool:
        """Enter, unless a fork is about to happen; never waits for one."""
        with self._lock:
            if not self._closed:
                self._inside[threading.get_ident()] = None
            return not self._closed

    def leave(self, outer: Connection | None = None) -> None:
        """Leave; to the visit that this one has interrupted at its end, if it has, with the connection of that."""
        with self._lock:
            if outer is None:
                self._inside.pop(threading.get_ident(), None)
            else:
                self._inside[threading.get_ident()] = outer
            self._changed.notify_all()

    def note_end(self, connection: Connection | None) -> None:
        """The transaction of this thread is about to be committed on this connection; None: it was not."""
        self._inside[threading.get_ident()] = connection

    @property
    def is_inside(self) -> bool:
        """Whether this thread is inside: a transaction may be open, and locks held that everybody waits for."""
        return threading.get_ident() in self._inside

    @property
    def ending(self) -> Connection | None:
        return self._inside.get(threading.get_ident())

    @property
    def is_over(self) -> bool:
        """Whether the transaction of this thread was committed, and all that is left to it is to leave."""
        ending = self.ending
        return ending is not None and not (ending.is_open and ending.in_transaction)

    def close(self) -> None:
        """Let nobody in, and wait until those inside are out."""
        with self._lock:
            self._closed = True
            end = time.monotonic() + LONGEST_WAIT
            while self._inside and time.monotonic() < end:
                self._changed.wait(0.1)

    def open(self) -> None:
        with self._lock:
            self._closed = False
            self._changed.notify_all()


class Connection(sqlite3.Connection):
    """A connection to a file that is there. It is closed by somebody, or at a fork.

    An open one stands in `_open`, so that Python never ends one at a moment of its own, when nobody has it any more:
    that is outside of the gate, and a fork in that moment would leave mutexes of SQLite's locked in the child.
    """

    is_open = False

    def __init__(self, path: Path) -> None:
        place = f"{path.as_uri()}?mode=rw"  # SQLite would make a file that is gone, for everybody to read
        super().__init__(place, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        self.text_factory = _as_text
        self.is_open = True
        _open.add(self)

    def close(self) -> None:
        self.is_open = False
        super().close()
        _open.discard(self)


class Hold:
    """What a thread has of its connection, which is closed with it, in whatever thread and moment that is.

    Where a fork is about to happen it is left to that: nobody knows what this thread holds, so it must not wait.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        if not self.connection.is_open:
            return
        if gate.is_inside:
            self.connection.close()
        elif gate.try_to_enter():
            try:
                self.connection.close()
            finally:
                gate.leave()


def _as_text(found: bytes) -> str:
    """What stands in a column of texts, whatever a stranger has put there: one row must not stop all the others."""
    return found.decode("utf-8", "replace")


gate = Gate()
_open: set[Connection] = set()


def _close_all() -> None:
    gate.close()
    for connection in list(_open):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all, after_in_parent=gate.open, after_in_child=gate.renew)
