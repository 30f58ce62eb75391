"""How do our words become RQ's, and RQ's states ours?

One job of ours is one job of RQ with our id. RQ's `retry=` carries the deaths of workers only (three starts), retries
of the method are decided by the core and carried out with RQ's returned `Retry`. What RQ does not remember, how a job
ended for us, stands as JSON in one more field of the job's hash.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar, Final

import rq
from backgrounded import Call, ConfigurationError, Duplicate, EnqueueError, InvalidOption, NoResult, ResultTimeout
from backgrounded.errors import DecodeError
from backgrounded.handler import Feature, Guarantees, Kept, State, failure_from
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry as RedisRetry
from rq import Queue
from rq.job import Retry
from rq.results import Result

from ._job import Job, wire_of

VERSION: Final = tuple(int(part) for part in rq.__version__.split(".")[:2])
RETRY_COUNTS_WAITS: Final = VERSION >= (2, 3)
SERIALIZER_ALIASES: Final = VERSION >= (2, 9)

DEATHS: Final = 2
"""How many workers may die on a job before RQ itself fails it: three starts in all."""
FAILURE_TTL: Final = 365 * 86_400
"""Seconds for which a job whose method failed is kept in the failed registry: RQ's own default."""
RESULT_TTL: Final = 86_400
END: Final = "backgrounded"
"""The field of the job's hash that says how it ended for us."""
LOCK: Final = "backgrounded:unique:"

_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_STATES: Final = {
    "created": State.QUEUED,
    "queued": State.QUEUED,
    "ready_to_enqueue": State.QUEUED,
    "rate_limited": State.QUEUED,
    "deferred": State.QUEUED,
    "scheduled": State.SCHEDULED,
    "started": State.RUNNING,
    "finished": State.SUCCEEDED,
    "stopped": State.CANCELLED,
    "canceled": State.CANCELLED,
}
_OURS: Final = {"func", "args", "kwargs", "timeout", "result_ttl", "description", "job_id", "retry", "pipeline", "unique"}
_REFUSED: Final = {
    "ttl": "RQ's ttl deletes the job without a trace; use expires",
    "on_success": "a job of ours runs our function only",
    "on_failure": "a job of ours runs our function only",
    "on_stopped": "a job of ours runs our function only",
    "webhooks": "a job of ours runs our function only",
}
NATIVE: Final = frozenset(inspect.signature(Queue.enqueue_call).parameters) - _OURS - _REFUSED.keys() - {"self"}
"""The words of RQ's own that `native={...}` takes, as the installed RQ has them."""


class RQHandler:
    """Hands calls to RQ on Redis (or Valkey).

    `url` makes a connection of its own; `connection` or `queue` (RQ's own objects) reuse the application's. A `queue`
    given as a name is the default queue. `serializer` is "pickle" (RQ's default, for a plain `rq worker`) or "json"
    (for `rq worker -S json`), or what RQ takes; what travels is plain either way, and both are read.

    `priorities={8: "high", 2: "low"}` sends priority 8 and above of `custom` to `custom.high`, 2 and below to
    `custom.low`; `worker_command` lists them in order. `enqueue_timeout` bounds a hand-over, in seconds.
    """

    protocol: ClassVar[int] = 1
    needs: ClassVar[Mapping[Feature, str]] = {
        Feature.DELAY: "rq worker --with-scheduler",
        Feature.RETRY_WAIT: "rq worker --with-scheduler",
    }

    def __init__(
        self,
        url: str | None = None,
        *,
        connection: Redis | None = None,
        queue: str | Queue | None = None,
        serializer: Any = None,
        priorities: Mapping[int, str] | None = None,
        enqueue_timeout: float = 2.0,
    ) -> None:
        given = queue if isinstance(queue, Queue) else None
        if sum(item is not None for item in (url, connection, given)) > 1:
            raise ConfigurationError("rq: give one of url, connection and queue=Queue(...), each brings a connection.")
        self.url = url or "redis://localhost:6379/0"
        self.borrowed = connection is not None or given is not None
        self.connection = given.connection if given else connection or _connect(self.url, enqueue_timeout)
        self.default_queue = given.name if given else queue if isinstance(queue, str) else "default"
        self.priorities = _check_priorities(priorities or {})
        self.priority_levels = len(self.priorities) + 1
        self.features = _FEATURES | {Feature.PRIORITY} if self.priorities else _FEATURES
        self.guarantees = _guarantees(self.borrowed, enqueue_timeout)
        self._serializer = given.serializer if given else _check_serializer(serializer)
        self._queue_class = type(given) if given else Queue
        self._queues: dict[str, Queue] = {given.name: given} if given else {}

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse words that RQ does not have, or that would break what we promise."""
        for word in call.options.native or ():
            if word not in NATIVE:
                reason = _REFUSED.get(word) or f"RQ {rq.__version__} takes: {', '.join(sorted(NATIVE))}"
                raise InvalidOption("native", f"{word!r}: {reason}")
        if "depends_on" in (call.options.native or ()) and call.due is not None:
            raise InvalidOption("native", "depends_on: RQ ignores it for a job that is scheduled; leave out delay and at")

    def enqueue(self, call: Call) -> str:
        self._claim(call)
        try:
            return self.enqueue_many([call])[0]
        except EnqueueError as error:
            if not error.uncertain:
                release(self.connection, call.id, call.tree, "done")
            raise

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """One round trip, one transaction: all of the calls are taken, or none is."""
        try:
            with self.connection.pipeline() as pipeline:
                for call in calls:
                    self._put(call, None if _needs_no_pipeline(call) else pipeline)
                pipeline.execute()
        except (RedisError, OSError) as error:
            what = calls[0].name if len(calls) == 1 else f"{len(calls)} jobs"
            raise EnqueueError(
                f"RQ could not take {what}: {type(error).__name__}: {error}", uncertain=not _never_sent(error)
            ) from error
        return [call.id for call in calls]

    def _put(self, call: Call, pipeline: Any) -> None:
        options = call.options
        queue = self._queue(self.queue_of(call))
        words: dict[str, Any] = {
            "args": [call.tree],
            "kwargs": {} if call.handler == "default" else {"handler": call.handler},
            "result_ttl": RESULT_TTL if options.result_ttl is None else math.ceil(options.result_ttl),
            "failure_ttl": -1,
            "description": call.name,
            "job_id": call.id,
            "retry": Retry(max=DEATHS),
            "pipeline": pipeline,
            **(options.native or {}),
        }
        timeout = -1 if options.timeout is None else math.ceil(options.timeout)
        function = f"backgrounded_rq.run.{call.name}"
        if call.due is None or call.due <= time.time():
            queue.enqueue_call(function, timeout=timeout, **words)
        else:
            # RQ cuts to whole seconds: the next whole one is not early.
            moment = datetime.fromtimestamp(math.ceil(call.due), timezone.utc)
            queue.enqueue_at(moment, function, job_timeout=timeout, **words)

    def queue_of(self, call: Call) -> str:
        """The queue of RQ that a call goes to: its own, or the one beside it for its priority."""
        name = call.options.queue or self.default_queue
        level = next((self.priorities[key] for key in self._levels(call.options.priority)), None)
        return name if level is None else f"{name}.{level}"

    def _levels(self, priority: int | None) -> Iterator[int]:
        if priority is not None:
            yield from (key for key in sorted(self.priorities, reverse=True) if 5 < key <= priority)
            yield from (key for key in sorted(self.priorities) if priority <= key < 5)

    def _queue(self, name: str) -> Queue:
        if name not in self._queues:
            self._queues[name] = self._queue_class(name, connection=self.connection, serializer=self._serializer)
        return self._queues[name]

    def _claim(self, call: Call) -> None:
        unique = call.options.unique
        if unique is None:
            return
        key, ttl = LOCK + unique.key, math.ceil(unique.ttl * 1000)
        try:
            if not self.connection.set(key, call.id, nx=True, px=ttl):
                raise Duplicate(unique.key, _text(self.connection.get(key)))
        except (RedisError, OSError) as error:
            raise EnqueueError(f"RQ could not take {call.name}: {type(error).__name__}: {error}") from error

    # -- asking

    def state(self, id: str) -> State:
        return self._look(id)[0]

    def _look(self, id: str) -> tuple[State, Mapping[str, Any]]:
        status, end = self.connection.hmget(Job.key_for(id), ["status", END])
        record = json.loads(end) if end else {}
        if not status:
            return State.UNKNOWN, record
        native = _text(status)
        if native == "failed":
            # Without our mark the last worker died on it, and our code did not get to say anything.
            return (State.FAILED if record.get("end") == "failed" else State.KEPT), record
        if native == "finished" and record:
            return State(record["end"]), record
        return _STATES.get(native, State.UNKNOWN), record

    def result(self, id: str, timeout: float | None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            newest = self.connection.xrevrange(Result.get_key(id), count=1)
            state, record = self._look(id)
            if state is State.SUCCEEDED:
                return self._return_value(id)
            if state is State.FAILED:
                raise failure_from(record)
            if state.ended or state is State.UNKNOWN:
                raise NoResult(_no_result(id, state, record))
            remaining = 1.0 if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise ResultTimeout(f"Job {id} has not ended: it is {state}.")
            last = newest[0][0] if newest else "0-0"
            self.connection.xread({Result.get_key(id): last}, block=max(1, int(min(remaining, 0.25) * 1000)))

    def _return_value(self, id: str) -> Any:
        try:
            latest = Job(id, connection=self.connection).latest_result()
        except Exception as error:
            raise NoResult(f"The result of job {id} cannot be read: {type(error).__name__}.") from error
        return None if latest is None else latest.return_value

    def cancel(self, id: str) -> bool:
        if self.state(id) not in (State.QUEUED, State.SCHEDULED):
            return False
        job = Job.fetch(id, connection=self.connection)
        job.cancel()
        release(self.connection, id, wire_of(job), "done")
        return True

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        for queue in Queue.all(connection=self.connection):
            ids = queue.failed_job_registry.get_job_ids(cleanup=False)
            for job in Job.fetch_many(ids, connection=self.connection):
                if job is not None and (kept := self._kept(job)) is not None:
                    yield kept

    def _kept(self, job: Job) -> Kept | None:
        state, record = self._look(job.id)
        if state is not State.KEPT:
            return None
        try:
            wire = wire_of(job)
        except DecodeError:
            wire = job.data
        return Kept(job.id, record.get("reason", _DIED), wire, job.description, record.get("code", "deaths"))

    def replay(self, id: str) -> None:
        job = self._fetch_kept(id)
        job.retries_left = DEATHS
        job.number_of_retries = 0
        self.connection.hdel(job.key, END)
        job.requeue()

    def forget(self, id: str) -> None:
        self._fetch_kept(id).delete()

    def _fetch_kept(self, id: str) -> Job:
        if self.state(id) is not State.KEPT:
            raise ConfigurationError(f"No job {id!r} is kept here.")
        return Job.fetch(id, connection=self.connection)

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """RQ's own worker for these queues, made to run jobs of this package only, with scheduler and quick recovery.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        """
        settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key in _PASSED_ON]
        command = ["rq", "worker", "--url", self._location(), "--with-scheduler"]
        command += ["-S", "json" if SERIALIZER_ALIASES else "rq.serializers.JSONSerializer", "-j", "backgrounded_rq.Job"]
        command += ["--worker-ttl", "20", "--maintenance-interval", "5", "--job-monitoring-interval", "2"]
        command += [level for name in queues or [self.default_queue] for level in self._with_priorities(name)]
        return ["env", *settings, *command] if settings else command

    def _with_priorities(self, name: str) -> list[str]:
        above = [f"{name}.{self.priorities[key]}" for key in sorted(self.priorities, reverse=True) if key > 5]
        below = [f"{name}.{self.priorities[key]}" for key in sorted(self.priorities, reverse=True) if key < 5]
        return [*above, name, *below]

    def _location(self) -> str:
        if not self.borrowed:
            return self.url
        settings = self.connection.connection_pool.connection_kwargs
        if "path" in settings:
            return f"unix://{settings['path']}?db={settings.get('db', 0)}"
        return f"redis://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"

    def __repr__(self) -> str:
        return f"<RQHandler of {shlex.quote(self.default_queue)}>"


_FEATURES: Final = frozenset(Feature) - {Feature.PRIORITY}
_PASSED_ON: Final = ("BACKGROUNDED_ALLOW", "BACKGROUNDED_APP", "BACKGROUNDED_URL")
_DIED: Final = "The last worker died on this job, or was stopped, before it could say anything."


def _connect(url: str, timeout: float) -> Redis:
    """A connection that answers or fails within the timeout, and never sends a write again by itself."""
    return Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=RedisRetry(NoBackoff(), 0)
    )


def _check_priorities(priorities: Mapping[int, str]) -> dict[int, str]:
    for key, level in priorities.items():
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key <= 9 or key == 5:
            raise ConfigurationError(f"rq: priorities: {key!r} must be 0 to 9 and not 5, which is a queue's own.")
        if not isinstance(level, str) or not level:
            raise ConfigurationError(f"rq: priorities: {level!r} must be a name such as 'high'.")
    return dict(priorities)


def _check_serializer(serializer: Any) -> Any:
    from rq.serializers import DefaultSerializer, JSONSerializer, resolve_serializer

    named = {None: DefaultSerializer, "pickle": DefaultSerializer, "json": JSONSerializer}
    return named[serializer] if serializer is None or serializer in ("pickle", "json") else resolve_serializer(serializer)


def _guarantees(borrowed: bool, timeout: float) -> Guarantees:
    notes = [
        "At least once for workers of one queue: a worker of several queues holds a job nowhere between taking and "
        "starting it, and loses it if it is killed in that moment.",
        "A job whose worker dies runs again within 90 s with worker_command(); with RQ's defaults after up to 14 min.",
        "What Redis acknowledged survives its death only with appendonly.",
        "A plain `rq worker` runs whatever is written to Redis; worker_command() gives one that runs our jobs only.",
    ]
    if borrowed:
        notes.append("The connection is the application's: its timeouts and its retries of writes apply.")
    else:
        notes.append(f"A hand-over succeeds or fails within {timeout:g} s.")
    return Guarantees("at-least-once", durable_publish=False, recovery_s=90.0, notes=tuple(notes))


def _needs_no_pipeline(call: Call) -> bool:
    """RQ watches keys for these, which a transaction that is being filled cannot."""
    return bool({"depends_on", "rate_limit"}.intersection(call.options.native or ()))


def _never_sent(error: BaseException) -> bool:
    """Whether Redis certainly did not take the command: it was not reached, or it said no."""
    if isinstance(error, ResponseError):
        return True
    return isinstance(error.__cause__ or error.__context__, ConnectionRefusedError) or "connecting to" in str(error)


def _no_result(id: str, state: State, record: Mapping[str, Any]) -> str:
    reason = record.get("reason", _DIED if state is State.KEPT else "")
    return f"Job {id} has no result: it is {state}." + (f" {reason}" if reason else "")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def write_end(job: Any, record: Mapping[str, Any]) -> None:
    """Note on the job's hash how it ended for us."""
    job.connection.hset(job.key, END, json.dumps(record))


def release(connection: Redis, id: str, wire: Any, moment: str) -> None:
    """Give back the unique key that a wire says it holds, if this job holds it until this moment."""
    options = wire.get("options") if isinstance(wire, Mapping) else None
    unique = options.get("unique") if isinstance(options, Mapping) else None
    if isinstance(unique, Mapping) and moment in (unique.get("until"), "done"):
        connection.eval(_RELEASE, 1, f"{LOCK}{unique.get('key')}", id)


