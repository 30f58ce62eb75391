"""How does a message get into the Redis of a RedisBroker, and where in it do jobs lie that were set aside?

Dramatiq's own script puts it there, so the keys are Dramatiq's; the connections are ours: with timeouts, and never
trying again by themselves.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import dramatiq
import redis
from backgrounded import ConfigurationError
from backgrounded.handler import Finding, Kept, not_reached
from backgrounded.records import examine_redis, redis_pool
from redis.exceptions import RedisError, ResponseError

from ._message import Message
from ._sending import NotSent, message_of

DOWN: Final = (RedisError, OSError)
_NOT_NOW: Final = 0
"""A hand-over does no maintenance: that is for workers."""
_UNUSED: Final = 1_000
"""The script wants a size of chunks, which matters to maintenance and to workers alone."""


_REMOVE: Final = "if redis.call('hget', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('hdel', KEYS[1], ARGV[1]) end"
"""A kept job is taken out as it was found: a worker may have kept it anew meanwhile."""


class Redis:
    """The Redis of a broker, over connections of our own."""

    kind = "redis"
    down = DOWN
    keeps = True
    signals = True

    def __init__(self, broker: Any, patience: float) -> None:
        self.broker = broker
        self.client = bounded(broker.client, patience)
        self._script = self.client.register_script(broker.scripts["dispatch"].script)
        self._kept = f"{prefix_of(broker)}backgrounded:kept"
        self._remove = self.client.register_script(_REMOVE)

    # -- sending

    def prepare(self, message: dramatiq.Message[None]) -> None:
        """What stands in each message for Redis: an id of this one hand-over, by which it is acknowledged."""
        message.options["redis_message_id"] = str(uuid.uuid4())

    def send(self, messages: Sequence[dramatiq.Message[None]]) -> None:
        """Hand messages over in one round trip. Raises NotSent."""
        if len(messages) == 1:
            self._send_one(messages[0])
        else:
            self._send_all(messages)

    def _send_one(self, message: dramatiq.Message[None]) -> None:
        try:
            self._script(keys=[self.broker.namespace], args=self._words(message))
        except DOWN as error:
            certain = not_reached(error) or isinstance(error, ResponseError)
            raise NotSent(error, unknown=[] if certain else [message.message_id]) from error

    def _send_all(self, messages: Sequence[dramatiq.Message[None]]) -> None:
        ids = [message.message_id for message in messages]
        with self.client.pipeline(transaction=False) as pipeline:
            # The first brings the script, the others name it: a pipeline of script objects would ask for it before.
            for number, message in enumerate(messages):
                run = pipeline.evalsha if number else pipeline.eval
                run(
                    self._script.sha if number else self._script.script,
                    1,
                    self.broker.namespace,
                    *self._words(message),
                )
            try:
                answers = pipeline.execute(raise_on_error=False)
            except DOWN as error:
                raise NotSent(error, unknown=[] if not_reached(error) else ids) from error
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        if refused:
            answered = zip(ids, answers, strict=True)
            sent = [id for id, answer in answered if not isinstance(answer, Exception)]
            raise NotSent(refused[0], sent=sent) from refused[0]

    def _words(self, message: dramatiq.Message[None]) -> list[Any]:
        """What Dramatiq's script takes, in its order; see the top of its dispatch.lua."""
        broker, now = self.broker, int(time.time() * 1000)
        place = [broker.broker_id, broker.heartbeat_timeout, broker.dead_message_ttl, _NOT_NOW, _UNUSED]
        return ["enqueue", now, message.queue_name, *place, message.options["redis_message_id"], message.encode()]

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        if self.client is not self.broker.client:
            self.client.connection_pool.disconnect()

    def examine(self) -> Iterator[Finding]:
        """Whether this Redis keeps what it acknowledged."""
        return examine_redis(self.client)

    # -- what was set aside

    def keep(self, message: Message, reason: str, code: str) -> None:
        """Put a job aside. Raises what `down` names."""
        body = {"reason": reason, "code": code, "kept": time.time(), **asdict(message)}
        self.client.hset(self._kept, message.id, json.dumps(body, default=repr))

    def kept(self) -> list[Kept]:
        """The jobs that were set aside, oldest first."""
        bodies = [body for _, stored in self.client.hscan_iter(self._kept) if (body := _body_of(stored)) is not None]
        bodies.sort(key=lambda body: float(body.get("kept") or 0))
        return [
            Kept(str(body["id"]), str(body.get("reason")), body["wire"], body["name"], str(body.get("code")))
            for body in bodies
        ]

    @contextmanager
    def take(self, id: str) -> Iterator[Message]:
        """The kept job of this id, which is kept no more if the block succeeds. Raises ConfigurationError."""
        stored: Any = self.client.hget(self._kept, id)
        body = _body_of(stored)
        if body is None:
            raise ConfigurationError(f"No job {id!r} is kept here.")
        yield message_of(body)
        self._remove(keys=[self._kept], args=[id, stored])


def _body_of(stored: Any) -> dict[str, Any] | None:
    """What `keep` wrote; None for what somebody else did."""
    try:
        body = json.loads(stored)
        message_of(body)
        float(body.get("kept") or 0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(body)


def prefix_of(broker: Any) -> str:
    """What our keys begin with beside a broker or a result backend: applications with a namespace each stay apart."""
    return f"{broker.namespace}:"


def from_url(url: str, patience: float) -> redis.Redis:
    """A client whose every step has so many seconds, and that never tries again by itself."""
    return redis.Redis(connection_pool=redis_pool(patience, url))


def bounded(client: Any, patience: float) -> Any:
    """The same for the place of another client; that client itself where its pool is of a kind made otherwise."""
    if not is_copied(client):
        return client
    pool: Any = client.connection_pool
    kind: Any = pool.connection_class
    settings = {**pool.connection_kwargs, "retry_on_timeout": False, "retry_on_error": []}
    return redis.Redis(connection_pool=redis_pool(patience, connection_class=kind, **settings))


def is_copied(client: Any) -> bool:
    """Whether we make connections of our own to where a client leads."""
    return type(client.connection_pool) in (redis.ConnectionPool, redis.BlockingConnectionPool)
