"""What is written down about jobs, and in which transactions?

One row is one job, from the call to the end of what is remembered of it:

    scheduled -> queued -> running -> succeeded | failed | kept | expired | ...
        ^-----------^----------'        cancelled before it ran

A job is claimed in the transaction that hands it out: from then on it belongs to a worker, by number. Its end is
written in the transaction that claims the next one, and only if it still belongs to that worker.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backgrounded import Call, ConfigurationError, Duplicate, PerformError
from backgrounded.handler import Kept, State

from ._file import File

if TYPE_CHECKING:
    from ._alive import Locks

RESULT_TTL: Final = 86_400.0
"""Seconds for which the end of a job is remembered, if the call does not say."""
FAILURE_TTL: Final = 30 * 86_400.0
"""The same for a job whose method failed: somebody may want to know on Monday."""
PROMOTED: Final = 500
FORGOTTEN: Final = 500
"""Rows that one transaction moves at most, so that nobody waits long for it."""
DEFAULT_PRIORITY: Final = 5
MOST_ATTEMPTS: Final = 2**31
NO_FILE: Final = -1
"""Stands for the version of a file that is not there."""


@dataclass(frozen=True)
class Job:
    """A job that was claimed. `run` is the number of the claim: a later one makes an older one void."""

    seq: int
    run: int
    id: str
    name: str
    queue: str
    alias: str
    attempt: int
    deaths: int
    timeout: float | None
    result_ttl: float | None
    wire: Any = field(repr=False)


@dataclass(frozen=True)
class End:
    """What became of a run. `outcome` is what is remembered: the result, the failure, or the reason."""

    job: Job
    state: State
    outcome: Any = field(default=None, repr=False)
    due: float | None = None
    attempt: int | None = None


class Store:
    """The jobs in one file. Every method raises sqlite3.Error or OSError where the file cannot be used."""

    def __init__(self, file: File) -> None:
        self.file = file

    # -- the caller's side

    def put(self, calls: Sequence[Call], default_queue: str) -> None:
        """Write these calls down, all or none. One whose id is there already stays as it is. Raises Duplicate."""
        rows = [_row_of(call, default_queue) for call in calls]

        def work(connection: sqlite3.Connection) -> None:
            if all(call.options.unique is None for call in calls):
                connection.executemany(_INSERT, rows)
                return
            for call, row in zip(calls, rows, strict=True):
                if connection.execute(_INSERT, row).rowcount:  # one that was taken before has had its key
                    _take_key(connection, call)

        self.file.write(work)

    def cancel(self, id: str) -> bool:
        """Whether the job was waiting, and now never runs."""

        def work(connection: sqlite3.Connection) -> bool:
            done = connection.execute(
                "UPDATE jobs SET state = 'cancelled', forget_at = ? + coalesce(result_ttl, ?) "
                "WHERE id = ? AND state IN ('queued', 'scheduled')",
                (time.time(), RESULT_TTL, id),
            ).rowcount
            if done:
                _free_key(connection, "id = ?", id)
            return bool(done)

        try:
            return self.file.write(work, make=False)
        except FileNotFoundError:
            return False

    def look(self, id: str) -> tuple[State, bytes | None]:
        """The state of a job, and what is remembered of its end, as JSON (None: nothing)."""
        try:
            row = self.file.read(
                lambda connection: connection.execute(
                    "SELECT state, due, forget_at, outcome FROM jobs WHERE id = ?", (id,)
                ).fetchone(),
                make=False,
            )
        except FileNotFoundError:
            return State.UNKNOWN, None
        if row is None or (row[2] is not None and row[2] <= time.time()):
            return State.UNKNOWN, None
        try:
            state = State(row[0])
        except ValueError:
            return State.UNKNOWN, None
        if state is State.SCHEDULED and row[1] <= time.time():
            state = State.QUEUED  # due, and no worker has looked yet
        return state, row[3]

    def version(self) -> tuple[int, int]:
        """What changes when another connection has written something, when this one is a new one, or with the file."""
        try:
            number: int = self.file.read(
                lambda connection: connection.execute("PRAGMA data_version").fetchone()[0], make=False
            )
        except FileNotFoundError:
            return self.file.opened, NO_FILE
        return self.file.opened, number

    def kept(self) -> Iterator[Kept]:
        """What was set aside, oldest first. Raises ConfigurationError where there is no file."""
        last = 0
        while page := self._kept_after(last):
            for seq, id, name, wire, outcome in page:
                reason, code = _reason_of(outcome)
                yield Kept(id, reason, wire, name, code)
                last = seq

    def _kept_after(self, seq: int) -> list[Any]:
        try:
            return self.file.read(
                lambda connection: connection.execute(
                    "SELECT seq, id, name, wire, outcome FROM jobs "
                    "WHERE state = 'kept' AND seq > ? ORDER BY seq LIMIT 100",
                    (seq,),
                ).fetchall(),
                make=False,
            )
        except FileNotFoundError as error:
            raise self._missing() from error

    def _missing(self) -> ConfigurationError:
        return ConfigurationError(
            f"sqlite: there is no queue at {self.file.path}: name the one that the application uses. "
            "It is made by the first call or by a worker."
        )

    def replay(self, id: str) -> None:
        """Put a kept job back, as if it were called now."""
        self._change_kept(
            "UPDATE jobs SET state = 'queued', due = ?, attempt = 1, deaths = 0, outcome = NULL "
            "WHERE id = ? AND state = 'kept'",
            (time.time(), id),
        )

    def forget(self, id: str) -> None:
        """Drop a kept job."""
        self._change_kept("DELETE FROM jobs WHERE id = ? AND state = 'kept'", (id,))

    def _change_kept(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            changed = self.file.write(lambda connection: connection.execute(statement, values).rowcount, make=False)
        except FileNotFoundError as error:
            raise self._missing() from error
        if changed != 1:
            raise ConfigurationError(f"No job {values[-1]!r} is kept here.")

    def waiting(self) -> dict[str, int]:
        """How many jobs are ready to run, by queue."""
        return dict(
            self.file.read(
                lambda connection: connection.execute(
                    "SELECT queue, count(*) FROM jobs WHERE state = 'queued' GROUP BY queue"
                ).fetchall()
            )
        )

    # -- the worker's side

    def enlist(self, locks: Locks, pid: int, queues: Sequence[str]) -> int:
        """The number of a new worker. Nobody sees it before its lock is held."""
        number = random.SystemRandom().randint(
            1, locks.greatest
        )  # not counted: a file that is made anew would begin again

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT INTO workers VALUES (?, ?, ?)", (number, pid, json.dumps(list(queues))))
            locks.take(number)
            for (other,) in connection.execute("SELECT id FROM workers WHERE id <> ?", (number,)).fetchall():
                if not locks.is_alive(other):
                    connection.execute("DELETE FROM workers WHERE id = ?", (other,))
            return number

        return self.file.write(work)

    def leave(self, number: int) -> None:
        """Strike a worker off the list, and hand back what it was running, as if it had not been started."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE jobs SET state = 'queued', owner = NULL WHERE state = 'running' AND owner = ?", (number,)
            )
            connection.execute("DELETE FROM workers WHERE id = ?", (number,))

        self.file.write(work)

    def owners(self) -> list[int]:
        """The numbers of the workers that run something."""
        found = self.file.read(
            lambda connection: connection.execute("SELECT DISTINCT owner FROM jobs WHERE state = 'running'").fetchall()
        )
        return [owner for (owner,) in found if isinstance(owner, int)]

    def give_back(self, dead: Iterable[int]) -> int:
        """Let the jobs of dead workers run again, and count the deaths. How many jobs these are.

        One death may be anybody's fault, and the job keeps its place. From the second one on it goes behind those that
        are due, so that jobs which kill their workers do not keep the others waiting.
        """
        moment = time.time()

        def work(connection: sqlite3.Connection) -> int:
            count = 0
            for number in dead:
                count += connection.execute(
                    "UPDATE jobs SET state = 'queued', owner = NULL, deaths = deaths + 1, "
                    "due = CASE WHEN deaths > 0 THEN ? ELSE due END WHERE state = 'running' AND owner = ?",
                    (moment, number),
                ).rowcount
                connection.execute("DELETE FROM workers WHERE id = ?", (number,))
            return count

        return self.file.write(work)

    def is_waiting(self, queues: Sequence[str]) -> bool:
        """Whether something is due. Asked before a transaction is begun, for which others would have to wait."""

        def look(connection: sqlite3.Connection) -> bool:
            if connection.execute(
                "SELECT 1 FROM jobs WHERE state = 'scheduled' AND due <= ? LIMIT 1", (time.time(),)
            ).fetchone():
                return True
            ready = "SELECT 1 FROM jobs WHERE state = 'queued' AND queue = ? LIMIT 1"
            return any(connection.execute(ready, (queue,)).fetchone() for queue in queues)

        return self.file.read(look)

    def next_due(self) -> float | None:
        """When the next of the scheduled jobs is due, in seconds since the epoch."""
        due: float | None = self.file.read(
            lambda connection: connection.execute(
                "SELECT min(due) FROM jobs WHERE state = 'scheduled' AND typeof(due) = 'real'"
            ).fetchone()[0]
        )
        return due

    def turn(self, owner: int, end: End | None, queues: Sequence[str]) -> Job | None:
        """Write down how a run ended, and claim the next job of these queues: one transaction.

        The more urgent job first, then the one that was due earlier, whatever its queue.
        """
        moment = time.time()

        def work(connection: sqlite3.Connection) -> Job | None:
            if end is not None:
                _write_end(connection, owner, end, moment)
            connection.execute(_PROMOTE, (moment, PROMOTED))
            firsts = (connection.execute(_FIRST, (queue,)).fetchone() for queue in queues)
            best = min((row for row in firsts if row is not None), default=None, key=_rank)
            if best is None:
                return None
            seq = best[2]
            connection.execute(
                "UPDATE jobs SET state = 'running', owner = ?, run = run + 1 WHERE seq = ?", (owner, seq)
            )
            if best[3] == "start":
                _free_key(connection, "seq = ?", seq)
            return _job_of(best[4:])

        return self.file.write(work)

    def clean(self) -> int:
        """Forget what need not be remembered any more, some of it. How many jobs these were."""
        moment = time.time()
        if not self.file.read(
            lambda connection: connection.execute("SELECT 1 FROM jobs WHERE forget_at <= ?", (moment,)).fetchone()
        ):
            return 0

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM keys WHERE until <= ?", (moment,))
            return connection.execute(
                "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE forget_at <= ? LIMIT ?)", (moment, FORGOTTEN)
            ).rowcount

        return self.file.write(work)


_INSERT: Final = """
INSERT INTO jobs (id, state, queue, priority, due, name, alias, timeout, result_ttl, unique_key, unique_until, wire)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""
_PROMOTE: Final = """
UPDATE jobs SET state = 'queued' WHERE seq IN
(SELECT seq FROM jobs WHERE state = 'scheduled' AND due <= ? ORDER BY due LIMIT ?)
"""
_FIRST: Final = """
SELECT -priority, due, seq, unique_until,
    seq, run + 1, id, name, queue, alias, attempt, deaths, timeout, result_ttl, wire
FROM jobs WHERE queue = ? AND state = 'queued' ORDER BY priority DESC, due, seq LIMIT 1
"""


def _row_of(call: Call, default_queue: str) -> tuple[Any, ...]:
    options, due = call.options, call.due
    unique = options.unique
    later = due is not None and due > time.time()
    return (
        call.id,
        "scheduled" if later else "queued",
        options.queue or default_queue,
        DEFAULT_PRIORITY if options.priority is None else options.priority,
        call.created if due is None else due,
        call.name,
        call.handler,
        options.timeout,
        options.result_ttl,
        None if unique is None else unique.key,
        None if unique is None else unique.until,
        call.wire,
    )


def _reason_of(outcome: Any) -> tuple[str, str]:
    """Why a job was set aside, for people and for machines."""
    try:
        record: Mapping[str, Any] = json.loads(outcome)
        return str(record["reason"]), str(record["code"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return "What was written down about it cannot be read.", PerformError.code


def _rank(row: Sequence[Any]) -> tuple[float, float, int]:
    """The place of the first job of a queue among those of the other queues."""
    priority, due, seq = row[:3]
    return (
        priority if isinstance(priority, (int, float)) else 0,
        due if isinstance(due, (int, float)) else 0,
        seq,
    )


def _job_of(row: Sequence[Any]) -> Job:
    """A row as a job. What stands in a file may be anything: a count that is none is not believed."""
    seq, run, id, name, queue, alias, attempt, deaths, timeout, result_ttl, wire = row
    return Job(
        seq,
        run if isinstance(run, int) else 1,
        str(id),
        str(name),
        str(queue),
        str(alias),
        attempt if isinstance(attempt, int) and 0 < attempt < MOST_ATTEMPTS else 1,
        deaths if isinstance(deaths, int) and deaths >= 0 else 0,
        timeout if isinstance(timeout, float) and timeout > 0 else None,
        result_ttl if isinstance(result_ttl, float) else None,
        wire,
    )


def _take_key(connection: sqlite3.Connection, call: Call) -> None:
    unique, moment = call.options.unique, time.time()
    if unique is None:
        return
    held = connection.execute("SELECT job FROM keys WHERE key = ? AND until > ?", (unique.key, moment)).fetchone()
    if held is not None and held[0] != call.id:
        raise Duplicate(unique.key, held[0])
    connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", (unique.key, call.id, moment + unique.ttl))


def _free_key(connection: sqlite3.Connection, which: str, value: Any) -> None:
    """Give back the key of the job that `which` names, if it still holds one."""
    found = connection.execute(f"SELECT unique_key, id FROM jobs WHERE {which}", (value,)).fetchone()
    if found is not None and found[0] is not None:
        connection.execute("DELETE FROM keys WHERE key = ? AND job = ?", found)


def _write_end(connection: sqlite3.Connection, owner: int, end: End, moment: float) -> None:
    """Only if the job is still this worker's, by this claim."""
    job, ended = end.job, end.state.ended
    outcome = None if end.outcome is None else json.dumps(end.outcome, separators=(",", ":")).encode()
    forget_at = None
    if ended and end.state is not State.KEPT:
        default = FAILURE_TTL if end.state is State.FAILED else RESULT_TTL
        forget_at = moment + (default if job.result_ttl is None else job.result_ttl)
    written = connection.execute(
        "UPDATE jobs SET state = ?, owner = NULL, outcome = ?, forget_at = ?, due = coalesce(?, due), attempt = ? "
        "WHERE seq = ? AND run = ? AND state = 'running' AND owner = ?",
        (
            end.state.value,
            outcome,
            forget_at,
            end.due,
            job.attempt if end.attempt is None else end.attempt,
            job.seq,
            job.run,
            owner,
        ),
    ).rowcount
    if written and ended:
        _free_key(connection, "seq = ?", job.seq)
