"""Would the harness notice? The SQLite engine with one mistake put into it, named by the environment.

A worker imports this module in the place of `jobs`, before it takes its first job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from backgrounded_sqlite import _alive, _store

import jobs  # noqa: F401 # what the worker is to run

MISTAKE: Final = "CHAOS_MISTAKE"


def everybody_lives() -> None:
    """Whoever holds a job is believed to be alive for ever."""
    _alive.Locks.is_alive = lambda self, number: True  # type: ignore[method-assign] # this is the mistake


def nothing_is_given_back() -> None:
    """The death of a worker is noticed, and nothing done about its jobs."""

    def give_back(self: _store.Store, dead: Iterable[int]) -> int:
        numbers = [(number,) for number in dead]
        self.file.write(lambda connection: connection.executemany("DELETE FROM workers WHERE id = ?", numbers))
        return 0

    _store.Store.give_back = give_back  # type: ignore[method-assign] # this is the mistake


def claims_are_deleted() -> None:
    """A job is taken off the table when it is handed out, as many queues do."""
    turn = _store.Store.turn

    def forgetful(self: _store.Store, owner: int, end: Any, queues: Sequence[str]) -> Any:
        job = turn(self, owner, end, queues)
        if job is not None:
            self.file.write(lambda connection: connection.execute("DELETE FROM jobs WHERE seq = ?", (job.seq,)))
        return job

    _store.Store.turn = forgetful  # type: ignore[method-assign] # this is the mistake


def ends_are_not_written() -> None:
    """A job that ended is given to the next worker all the same."""
    write_end = _store._write_end

    def write_nothing(connection: Any, owner: int, end: Any, moment: float) -> None:
        connection.execute("UPDATE jobs SET state = 'queued', owner = NULL WHERE seq = ? AND run < 2", (end.job.seq,))
        write_end(connection, owner, end, moment)

    _store._write_end = write_nothing


MISTAKES: Final[dict[str, Callable[[], None]]] = {
    mistake.__name__: mistake
    for mistake in (everybody_lives, nothing_is_given_back, claims_are_deleted, ends_are_not_written)
}
if MISTAKE in os.environ:
    MISTAKES[os.environ[MISTAKE]]()
