"""What stands in the database beside Procrastinate's own tables?

One table, `backgrounded_jobs`. Procrastinate logs the arguments of its jobs, and forgets what they returned: so its job
carries our id and the method's name alone, and a row of ours has the wire, how often the job was tried, and how it
ended. Both are written in one statement. `number` is Procrastinate's own id of the job.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from backgrounded import Call, Duplicate
from backgrounded.handler import Kept, State, printable
from backgrounded.records import RESULT_TTL
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ._connections import Connections

logger = logging.getLogger("backgrounded")
T = TypeVar("T")

PERFORM: Final = "backgrounded.perform"
"""The name of the task that runs all calls: what stands in Procrastinate's tables, so it must never change."""
RECOVER: Final = "backgrounded.recover"
"""The name of the task that gives back the jobs of dead workers, and of its queue."""
_TRIES: Final = 3
"""How often a call with a key is handed over whose rival has ended before it could be named."""
LEVEL: Final = 5
"""Our priority 5, and none, are Procrastinate's 0, so that our jobs and the application's own stand side by side."""

_INDEX: Final = """
CREATE INDEX IF NOT EXISTS backgrounded_jobs_kept ON backgrounded_jobs (number, id) WHERE state = 'kept';
"""
TABLE: Final = f"""
CREATE TABLE IF NOT EXISTS backgrounded_jobs (
    id text PRIMARY KEY,
    number bigint NOT NULL,
    name text NOT NULL,
    handler text NOT NULL,
    wire text NOT NULL,
    queue text NOT NULL,
    priority integer NOT NULL,
    attempt integer NOT NULL DEFAULT 1,
    begun integer NOT NULL DEFAULT 0,
    ttl double precision NOT NULL,
    unique_key text,
    unique_until timestamp with time zone,
    unique_to_start boolean,
    state text,
    outcome text,
    forget_at timestamp with time zone
);
CREATE UNIQUE INDEX IF NOT EXISTS backgrounded_jobs_unique ON backgrounded_jobs (unique_key)
    WHERE unique_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS backgrounded_jobs_forget ON backgrounded_jobs (forget_at) WHERE forget_at IS NOT NULL;
{_INDEX}"""
_DEFER: Final = """
unnest(procrastinate_defer_jobs_v1(ARRAY(
    SELECT ROW(queue, 'backgrounded.perform', priority, NULL, NULL,
        jsonb_build_object('name', name, 'id', id), {due})::procrastinate_job_to_defer_v1
    FROM {given}
)))
"""
_PUT: Final = f"""
WITH given AS (
    SELECT * FROM unnest(
        %(id)s::text[], %(name)s::text[], %(handler)s::text[], %(wire)s::text[], %(queue)s::text[],
        %(priority)s::integer[], %(due)s::double precision[], %(ttl)s::double precision[]
    ) WITH ORDINALITY AS given(id, name, handler, wire, queue, priority, due, ttl, place)
), numbers AS (
    SELECT number, place
    FROM {_DEFER.format(due="to_timestamp(due)", given="given ORDER BY place")}
    WITH ORDINALITY AS numbers(number, place)
)
INSERT INTO backgrounded_jobs
    (id, number, name, handler, wire, queue, priority, ttl, unique_key, unique_until, unique_to_start)
SELECT id, number, name, handler, wire, queue, priority, ttl,
    %(key)s::text, now() + make_interval(secs => %(key_ttl)s::double precision), %(to_start)s::boolean
FROM given JOIN numbers USING (place) ORDER BY place
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING
RETURNING number
"""
_FREE_KEY: Final = """
UPDATE backgrounded_jobs SET unique_key = NULL
WHERE unique_key = %(key)s AND (unique_until <= now() OR NOT EXISTS (
    SELECT FROM procrastinate_jobs AS job WHERE job.id = number AND job.status IN ('todo', 'doing')))
"""
_LOOK: Final = """
SELECT mine.state, mine.outcome, job.status::text, coalesce(job.scheduled_at > now(), false)
FROM backgrounded_jobs AS mine LEFT JOIN procrastinate_jobs AS job ON job.id = mine.number
WHERE mine.id = %(id)s AND (mine.forget_at IS NULL OR mine.forget_at > now())
"""
_FORGET_AT: Final = "now() + make_interval(secs => greatest(0, least(ttl, 3155760000)))"
"""A hundred years at most, whatever stands there: PostgreSQL knows no time after the year 294276."""
_CANCEL: Final = f"""
WITH cancelled AS (
    SELECT procrastinate_cancel_job_v1(number, false, false) AS number FROM backgrounded_jobs WHERE id = %(id)s
)
UPDATE backgrounded_jobs AS mine SET state = 'cancelled', unique_key = NULL,
    forget_at = {_FORGET_AT}
FROM cancelled WHERE mine.id = %(id)s AND mine.number = cancelled.number RETURNING mine.id
"""
_BEGIN: Final = """
UPDATE backgrounded_jobs
SET begun = begun + 1, unique_key = CASE WHEN unique_to_start THEN NULL ELSE unique_key END
WHERE id = %(id)s AND number = %(number)s AND state IS NULL
RETURNING wire, handler, name, attempt, begun - 1
"""
_IS_KNOWN: Final = "SELECT id FROM backgrounded_jobs WHERE id = %(id)s"
_AGAIN: Final = "UPDATE backgrounded_jobs SET attempt = attempt + 1, begun = 0 WHERE id = %(id)s AND state IS NULL"
_END: Final = f"""
UPDATE backgrounded_jobs SET state = %(state)s, outcome = %(outcome)s, unique_key = NULL,
    forget_at = CASE WHEN %(state)s = 'kept' THEN NULL ELSE {_FORGET_AT} END
WHERE id = %(id)s AND state IS NULL
"""
_KEEP_STRAY: Final = """
INSERT INTO backgrounded_jobs (id, number, name, handler, wire, queue, priority, ttl, state, outcome)
VALUES (%(id)s, %(number)s, 'unreadable', 'default', %(wire)s, %(queue)s, %(priority)s, 0, 'kept', %(outcome)s)
"""
_LAST_KEPT: Final = "SELECT max(number) FROM backgrounded_jobs WHERE state = 'kept'"
_SET_ASIDE: Final = """
SELECT number, id, octet_length(wire) FROM backgrounded_jobs
WHERE state = 'kept' AND (number, id) > (%(number)s, %(id)s) AND number <= %(last)s
ORDER BY number, id LIMIT %(most)s
"""
_KEPT: Final = """
SELECT id, outcome, wire, name FROM backgrounded_jobs
WHERE id = ANY(%(ids)s) AND coalesce(state, '') = 'kept' ORDER BY number, id
"""
"""`coalesce` keeps PostgreSQL from going through all that is kept, for a part of it."""
_REPLAY: Final = f"""
WITH given AS (SELECT * FROM backgrounded_jobs WHERE id = %(id)s AND state = 'kept'),
    deferred AS (SELECT number FROM {_DEFER.format(due="NULL", given="given")} AS deferred(number))
UPDATE backgrounded_jobs AS mine
SET number = deferred.number, attempt = 1, begun = 0, state = NULL, outcome = NULL, forget_at = NULL
FROM deferred WHERE mine.id = %(id)s AND mine.state = 'kept' RETURNING mine.id
"""
_FORGET: Final = "DELETE FROM backgrounded_jobs WHERE id = %(id)s AND state = 'kept' RETURNING id"
_TIDY: Final = (
    # What Procrastinate ended and we did not: failed by a worker without our task, taken back by hand, or run without
    # that its end could be written.
    f"""
UPDATE backgrounded_jobs AS mine SET unique_key = NULL,
    state = CASE job.status WHEN 'failed' THEN 'kept' WHEN 'succeeded' THEN 'unknown' ELSE job.status::text END,
    forget_at = CASE WHEN job.status <> 'failed' THEN {_FORGET_AT} END,
    outcome = %(outcome)s
FROM procrastinate_jobs AS job
WHERE job.id = mine.number AND mine.state IS NULL AND job.status NOT IN ('todo', 'doing')
""",
    """
WITH gone AS (DELETE FROM backgrounded_jobs WHERE forget_at <= now() RETURNING number)
DELETE FROM procrastinate_jobs AS job USING gone WHERE job.id = gone.number AND job.status NOT IN ('todo', 'doing')
""",
    f"DELETE FROM procrastinate_jobs WHERE task_name = '{RECOVER}' AND status NOT IN ('todo', 'doing')",
    # A table that was made before there was this index. Looked for first: CREATE INDEX waits for all who write.
    f"DO $$ BEGIN IF to_regclass('backgrounded_jobs_kept') IS NULL THEN {_INDEX} END IF; END $$",
)
_BEFORE_ALL: Final = (-(2**63), "")
_IDS: Final = 10_000
_WIRES: Final = 1_000
_WIRES_BYTES: Final = 1_000_000
"""How much of what was kept is read at once: all of it in one answer would take longer than there is time."""
_STATES: Final = {
    "todo": State.QUEUED,
    "doing": State.RUNNING,
    "cancelled": State.CANCELLED,
    "aborted": State.ABORTED,
    "aborting": State.RUNNING,
    "failed": State.FAILED,
    "succeeded": State.UNKNOWN,
}
"""What Procrastinate's word means for a job of which no end is written down here."""


@dataclass(frozen=True)
class Taken:
    """A job that a worker has begun: what it needs to be told. `deaths` of workers since the last orderly end."""

    wire: str
    handler: str
    name: str
    attempt: int
    deaths: int


class Store:
    """The table and Procrastinate's, over connections of our own. Every method raises psycopg.Error."""

    def __init__(self, connections: Connections, default_queue: str = "default") -> None:
        self.connections = connections
        self.default_queue = default_queue

    # -- handing over

    def put(self, calls: Sequence[Call], theirs: psycopg.Connection[Any] | None = None) -> list[int]:
        """Hand calls over, all or none, in one statement: Procrastinate's numbers of them. Raises Duplicate.

        On a connection of `theirs` it is part of the transaction there. A call with a key goes alone.
        """
        words = self._words(calls)
        unique = calls[0].options.unique
        key = None if unique is None else unique.key
        words |= {"key": key, "key_ttl": unique and unique.ttl, "to_start": unique and unique.until == "start"}

        def run(connection: psycopg.Connection[Any]) -> list[int]:
            if key is None:
                return [number for (number,) in _rows(connection, _PUT, words)]
            with connection.transaction():
                _execute(connection, _FREE_KEY, words)
                found = [number for (number,) in _rows(connection, _PUT, words)]
                if not found:
                    raise psycopg.Rollback  # takes back what Procrastinate has of it by now
            return found

        holder = ""
        for _ in range(_TRIES):
            numbers = self._ask(run) if theirs is None else _join(run, theirs)
            if numbers:
                return numbers
            holder = self._holder(key, theirs)
            if holder:
                break
        raise Duplicate(str(key), holder)

    def _words(self, calls: Sequence[Call]) -> dict[str, Any]:
        options = [call.options for call in calls]
        return {
            "id": [call.id for call in calls],
            "name": [call.name for call in calls],
            "handler": [call.handler for call in calls],
            "wire": [call.wire.decode() for call in calls],
            "queue": [said.queue or self.default_queue for said in options],
            "priority": [0 if said.priority is None else said.priority - LEVEL for said in options],
            "due": [call.due for call in calls],
            "ttl": [RESULT_TTL if said.result_ttl is None else said.result_ttl for said in options],
        }

    def _holder(self, key: str | None, theirs: psycopg.Connection[Any] | None) -> str:
        def run(connection: psycopg.Connection[Any]) -> str:
            found = _rows(connection, "SELECT id FROM backgrounded_jobs WHERE unique_key = %(key)s", {"key": key})
            return str(found[0][0]) if found else ""  # it has ended meanwhile

        return self._ask(run) if theirs is None else run(theirs)

    def _ask(self, run: Callable[[psycopg.Connection[Any]], T]) -> T:
        with self.connections.one() as connection:
            return _with_table(connection, run)

    def _one(self, query: str, *, id: str, **words: Any) -> Any:
        """The first row of what a query finds about a job, or None: there is no such job."""
        if not id.isascii() or "\0" in id:  # nothing of ours, and PostgreSQL takes it for an error
            return None
        words["id"] = id
        found = self._ask(lambda connection: _rows(connection, query, words))
        return found[0] if found else None

    # -- asking

    def look(self, id: str) -> tuple[State, Any]:
        """The state of a job, and its outcome as it was written down."""
        found = self._one(_LOOK, id=id)
        if found is None:
            return State.UNKNOWN, None
        state, outcome, status, is_late = found
        if state is None:
            known = _STATES.get(status, State.UNKNOWN)
            return (State.SCHEDULED if known is State.QUEUED and is_late else known), None
        try:
            return State(state), None if outcome is None else json.loads(outcome)
        except (ValueError, RecursionError):  # anybody may have written it
            return State.UNKNOWN, None

    def cancel(self, id: str) -> bool:
        """Take a job back that waits. Procrastinate's own function decides between this and a worker."""
        return self._one(_CANCEL, id=id) is not None

    # -- in a worker

    def begin(self, id: object, number: int | None) -> Taken | None:
        """Note that a worker runs this job of Procrastinate's; None: it is no job of ours, or not this one's turn."""
        found = self._one(_BEGIN, id=id, number=number) if isinstance(id, str) else None
        return None if found is None else Taken(*found)

    def is_known(self, id: object) -> bool:
        return isinstance(id, str) and self._one(_IS_KNOWN, id=id) is not None

    def again(self, id: str) -> None:
        """The next run counts as the next attempt."""
        self._do(_AGAIN, id=id)

    def end(self, id: str, state: State, outcome: Any = None) -> None:
        """Write down how a job ended, and what there is to know about it, JSON-safe."""
        self._do(_END, id=id, state=str(state), outcome=json.dumps(outcome))

    def keep_stray(self, number: int | None, words: object, queue: str, priority: int, outcome: Any) -> str:
        """Keep what stands in our queue and is no job of ours. Its new id."""
        id = uuid.uuid4().hex
        about = {"number": number or 0, "queue": queue, "priority": priority, "outcome": json.dumps(outcome)}
        self._do(_KEEP_STRAY, id=id, wire=json.dumps(words), **about)
        return id

    def tidy(self, outcome: Any) -> None:
        """Remove what is to be forgotten, and end what Procrastinate has ended without us, with this outcome.

        A part of it that fails is logged, and holds none of the others up.
        """
        for query in _TIDY:
            try:
                self._do(query, outcome=json.dumps(outcome))
            except psycopg.Error:
                logger.exception("a part of the clean-up of backgrounded_jobs failed; it is tried again in a minute")

    def _do(self, query: str, **words: Any) -> None:
        self._ask(lambda connection: _execute(connection, query, words))

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        """What has been set aside by now, oldest first, read a page at a time, with no transaction open between two.

        A job is there once: one that is replayed meanwhile has a new number, which comes after the last.
        """
        for ids in _pages(self._set_aside()):
            for id, outcome, wire, name in self._found(_KEPT, ids=ids):
                about = _about(outcome)
                yield Kept(id, str(about.get("reason")), wire, printable(name), str(about.get("code")))

    def kept_ids(self) -> Iterator[str]:
        """The ids of that alone."""
        return (id for id, _ in self._set_aside())

    def _set_aside(self) -> Iterator[tuple[str, int]]:
        """Their ids, and the sizes of their wires."""
        number, id = _BEFORE_ALL
        [(last,)] = self._found(_LAST_KEPT)
        while found := self._found(_SET_ASIDE, number=number, id=id, last=last, most=_IDS):
            yield from ((id, size) for _, id, size in found)
            number, id, _ = found[-1]

    def _found(self, query: str, **words: Any) -> list[Any]:
        return self._ask(lambda connection: _rows(connection, query, words))

    def replay(self, id: str) -> bool:
        return self._one(_REPLAY, id=id) is not None

    def forget(self, id: str) -> bool:
        return self._one(_FORGET, id=id) is not None


def _pages(jobs: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """The ids of jobs, as many together as their wires can be read at once."""
    page: list[str] = []
    total = 0
    for id, size in jobs:
        if page and (len(page) == _WIRES or total + size > _WIRES_BYTES):
            yield page
            page, total = [], 0
        page.append(id)
        total += size
    if page:
        yield page


def _join(run: Callable[[psycopg.Connection[Any]], T], theirs: psycopg.Connection[Any]) -> T:
    """Run something in the transaction that is open on a connection, or that begins with it, and leave it open."""
    if not theirs.autocommit and theirs.info.transaction_status is TransactionStatus.IDLE:
        theirs.execute("SELECT 1")  # begins one; else `transaction()` would begin its own, and commit it
    return _with_table(theirs, run)


def _rows(connection: psycopg.Connection[Any], query: str, words: Mapping[str, Any] | None = None) -> list[Any]:
    """What a query finds, as tuples, whatever the application makes of the rows of its connection."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query.encode(), words).fetchall()  # as bytes: type checkers want texts to be literals


def _execute(connection: psycopg.Connection[Any], query: str, words: Mapping[str, Any] | None = None) -> None:
    connection.execute(query.encode(), words)


def _with_table(connection: psycopg.Connection[Any], run: Callable[[psycopg.Connection[Any]], T]) -> T:
    """Run something; where our table is missing, make it and run it again."""
    try:
        with _guarded(connection):
            return run(connection)
    except psycopg.errors.UndefinedTable as error:
        if "backgrounded_jobs" not in str(error):
            raise
    with connection.transaction():
        # Several may find out at once, and CREATE TABLE IF NOT EXISTS then fails in all but one.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('backgrounded_jobs'))")
        _execute(connection, TABLE)
    return run(connection)


@contextmanager
def _guarded(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Inside of a transaction of somebody else's, a savepoint: an error must not end the transaction."""
    if connection.info.transaction_status is TransactionStatus.INTRANS:
        with connection.transaction():
            yield
    else:
        yield


def _about(outcome: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(outcome or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
