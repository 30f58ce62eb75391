"""What is known of a job, and who holds a unique key, where an engine does not remember it?

For adapters whose engine has a Redis at hand: each job has one record there, a hash of ours: its state, how often it
was begun without an end, how it ended, and the key that it holds. Every step is one script, so that a job is either
begun or cancelled, never both. Nothing of Redis is imported before an adapter brings its client.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from .calls import Call
from .errors import Duplicate
from .handler import Finding, State, outcome_from, result_of

DAY: Final = 86_400
WAITING: Final = 30 * DAY
"""Seconds after its due time for which a job that has not ended is remembered."""
LONGEST_WAIT: Final = 1.0
"""Seconds until a wait for a result looks again: a message of Redis to its listeners can get lost."""

# s: state, d: due, n: begun without an end, o: outcome, k: the key it holds, u: until when. `queued` is scheduled, too.
_LIBRARY: Final = """
local ended = {succeeded=1, failed=1, cancelled=1, expired=1, discarded=1, aborted=1, kept=1}
local function release(record, id)
    local key = redis.call('hget', record, 'k')
    if key and redis.call('get', key) == id then redis.call('del', key) end
end
"""
_PUT: Final = """
if KEYS[2] then
    local holder = redis.call('get', KEYS[2])
    if holder and holder ~= ARGV[1] then
        local state = redis.call('hget', ARGV[4] .. holder, 's')
        if state and not ended[state] then return holder end
    end
    redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[5])
end
redis.call('del', KEYS[1])
redis.call('hset', KEYS[1], 's', 'queued', 'd', ARGV[2])
if KEYS[2] then redis.call('hset', KEYS[1], 'k', KEYS[2], 'u', ARGV[6]) end
redis.call('pexpire', KEYS[1], ARGV[3])
"""
_BEGIN: Final = """
local state = redis.call('hget', KEYS[1], 's')
if state and ended[state] then return {state, 0} end
local begun = redis.call('hincrby', KEYS[1], 'n', 1)
redis.call('hset', KEYS[1], 's', 'running')
if redis.call('hget', KEYS[1], 'u') == 'start' then release(KEYS[1], ARGV[1]) end
if redis.call('pttl', KEYS[1]) < 0 then redis.call('pexpire', KEYS[1], ARGV[2]) end
return {'running', begun - 1}
"""
_AGAIN: Final = """
redis.call('hset', KEYS[1], 's', 'queued', 'd', ARGV[2])
redis.call('hdel', KEYS[1], 'n', 'o')
redis.call('pexpire', KEYS[1], ARGV[3])
"""
_END: Final = """
release(KEYS[1], ARGV[1])
redis.call('hset', KEYS[1], 's', ARGV[2], 'o', ARGV[3])
redis.call('hdel', KEYS[1], 'n')
if ARGV[4] == '' then redis.call('persist', KEYS[1]) else redis.call('pexpire', KEYS[1], ARGV[4]) end
redis.call('publish', KEYS[1], ARGV[2])
"""
_CANCEL: Final = """
if redis.call('hget', KEYS[1], 's') ~= 'queued' then return 0 end
release(KEYS[1], ARGV[1])
redis.call('hset', KEYS[1], 's', 'cancelled')
redis.call('publish', KEYS[1], 'cancelled')
return 1
"""
_DROP: Final = """
release(KEYS[1], ARGV[1])
redis.call('del', KEYS[1])
"""


RESULT_TTL: Final = float(DAY)
"""Seconds for which an outcome is remembered, where a job does not say otherwise."""
UNLIMITED: Final = 2**31
"""`max_connections` of redis-py, as it was before there was a limit."""


def redis_pool(patience: float, url: str | None = None, **settings: Any) -> Any:
    """A pool of redis-py for connections of an adapter's own, to where a URL leads, or the settings of another pool.

    Each step has so many seconds, and nothing is sent again by itself. As many are opened as are wanted at once: since
    release 8 redis-py refuses the one after the hundredth, and a web process has more requests than that. A fork
    leaves them to the parent, also in the middle of a call. Raises ImportError, and ValueError for what is no URL of a
    Redis.
    """
    from redis import UnixDomainSocketConnection
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from ._redis import Pool

    settings |= {
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": UNLIMITED,
    }
    pool: Any = Pool(**settings) if url is None else Pool.from_url(url, **settings)
    if issubclass(pool.connection_class, UnixDomainSocketConnection):  # it has one timeout for both
        del pool.connection_kwargs["socket_connect_timeout"]
    if url is not None:
        _check_words(pool)
    return pool


def _check_words(pool: Any) -> None:
    """Refuse what redis-py would stumble over at the first use. Nothing is connected."""
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        raise ValueError(f"a word of it is none of redis-py's: {error}") from error


def examine_redis(client: Any, holds: str = "jobs") -> Iterator[Finding]:
    """Whether a Redis keeps what it acknowledged, for `Handler.examine`. Errors of redis-py go through.

    `holds` says what that is: "records of jobs", where the jobs themselves lie elsewhere.
    """
    info = client.info()
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        yield Finding(
            f"Redis has maxmemory-policy {policy}: when its memory is full it throws {holds} away, and says nothing.",
            "CONFIG SET maxmemory-policy noeviction, in its configuration file too",
            gap=True,
        )
    if not info.get("aof_enabled"):
        yield Finding(
            f"Redis writes no append-only file: {holds} that it has acknowledged die with it.",
            "CONFIG SET appendonly yes, in its configuration file too",
        )


class Records:
    """The records of the jobs that are handed over with one Redis beside them.

    `client` is a redis.Redis, `prefix` what its keys begin with: two applications in one database want two. Errors of
    redis-py go through as they are.
    """

    def __init__(self, client: Any, prefix: str = "") -> None:
        self.client = client
        self._jobs = f"{prefix}backgrounded:job:"
        self._locks = f"{prefix}backgrounded:unique:"
        scripts = {"put": _PUT, "begin": _BEGIN, "again": _AGAIN, "end": _END, "cancel": _CANCEL, "drop": _DROP}
        self._scripts = {name: client.register_script(_LIBRARY + script) for name, script in scripts.items()}

    def _run(self, name: str, id: str, *args: Any, client: Any = None, lock: str | None = None) -> Any:
        keys = [self._key(id)] if lock is None else [self._key(id), lock]
        return self._scripts[name](keys=keys, args=[id, *args], client=client)

    def _key(self, id: str) -> str:
        return f"{self._jobs}{id}"

    # -- the caller's side

    def put(self, calls: Sequence[Call]) -> None:
        """Note that these calls are on their way, in one round trip. Raises Duplicate for a key that is held.

        A call with a key goes alone.
        """
        if len(calls) == 1:
            self._put_one(calls[0])
            return
        with self.client.pipeline(transaction=False) as pipeline:  # no script: a pipeline asks for each first
            for call in calls:
                key = self._key(call.id)
                pipeline.delete(key)
                pipeline.hset(key, mapping={"s": "queued", "d": call.due or 0})
                pipeline.pexpire(key, _waiting(call.due))
            pipeline.execute()

    def _put_one(self, call: Call) -> None:
        unique = call.options.unique
        args: list[Any] = [call.due or 0, _waiting(call.due)]
        if unique is None:
            self._run("put", call.id, *args)
            return
        args += [self._jobs, math.ceil(unique.ttl * 1000), unique.until]
        holder = self._run("put", call.id, *args, lock=self._locks + unique.key)
        if holder is not None:
            raise Duplicate(unique.key, _text(holder))

    def drop(self, ids: Iterable[str]) -> None:
        """Forget jobs: they were not handed over, or somebody asked for it."""
        with self.client.pipeline(transaction=False) as pipeline:
            for id in ids:
                self._run("drop", id, client=pipeline)
            pipeline.execute()

    def cancel(self, id: str) -> bool:
        """Whether the job was waiting, and now never runs."""
        return bool(self._run("cancel", id))

    # -- the worker's side

    def begin(self, id: str) -> tuple[State, int]:
        """`running`, and how many runs before this one had no end; or the state in which the job has ended already."""
        state, deaths = self._run("begin", id, _waiting(None))
        return State(_text(state)), int(deaths)

    def again(self, id: str, due: float | None) -> None:
        """The job waits for its next run."""
        self._run("again", id, due or 0, _waiting(due))

    def end(self, id: str, state: State, outcome: Any, seconds: float | None) -> None:
        """The job has ended, and is remembered for so many seconds (None: until somebody decides).

        `outcome` is JSON-safe: what the method returned, its `failure_record`, or why it was kept, under "reason".
        """
        kept_for = "" if seconds is None else max(1, math.ceil(seconds * 1000))
        self._run("end", id, str(state), json.dumps(outcome), kept_for)

    # -- asking

    def look(self, id: str) -> tuple[State, bytes | None]:
        """The state of a job, and its outcome as it is stored. A state that cannot be read is unknown."""
        state, due, outcome = self.client.hmget(self._key(id), ["s", "d", "o"])
        try:
            found = State.UNKNOWN if state is None else State(_text(state))
            is_late = found is State.QUEUED and float(due or 0) > time.time()
        except ValueError:  # anybody may have written it
            return State.UNKNOWN, None
        return (State.SCHEDULED if is_late else found), outcome

    def wait(self, id: str, timeout: float | None) -> tuple[State, bytes | None]:
        """The same, when the job has ended, nothing is known of it, or the timeout (in seconds) is over."""
        found = self.look(id)
        end = math.inf if timeout is None else time.monotonic() + timeout
        if _is_last(found) or time.monotonic() >= end:
            return found
        with self.client.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(self._key(id))
            while not _is_last(found := self.look(id)) and (remaining := end - time.monotonic()) > 0:
                listener.get_message(timeout=min(remaining, LONGEST_WAIT))
        return found

    def state(self, id: str) -> State:
        """As `Handler.state`."""
        return self.look(id)[0]

    def result(self, id: str, timeout: float | None) -> Any:
        """As `Handler.result`. Raises JobFailed, NoResult, ResultTimeout."""
        state, stored = self.wait(id, timeout)
        return result_of(id, state, outcome_from(id, stored))


def _is_last(found: tuple[State, Any]) -> bool:
    return found[0].ended or found[0] is State.UNKNOWN


def _waiting(due: float | None) -> int:
    """Milliseconds for which a job that waits until then is remembered."""
    return math.ceil(1000 * (max(0.0, (due or 0) - time.time()) + WAITING))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
