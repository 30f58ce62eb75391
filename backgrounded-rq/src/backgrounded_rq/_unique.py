"""Who holds a unique key?

A key is a string in Redis that holds the id of its job. RQ's own `unique=` blocks for a year after a failure, so this
is a lock of ours: taken before the hand-over for a moment only, then, in the transaction that hands the job over, for
the time that was asked for. A hand-over that did not happen therefore blocks nobody for long, whatever went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from backgrounded import Call, Duplicate
from backgrounded.handler import State
from redis import Redis

LOCK: Final = "backgrounded:unique:"
CLAIM: Final = 10_000
"""Milliseconds for which a key is held before the job is in the queue. Longer than any hand-over may take."""

_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_HOLD: Final = """
local holder = redis.call('get', KEYS[1])
if not holder or holder == ARGV[1] then redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
"""


def claim(connection: Redis, call: Call, state_of: Callable[[str], State]) -> None:
    """Take the call's key, or raise Duplicate with the id of the job that holds it.

    A holder that has ended without giving the key back (its last worker died on it, or RQ's own commands stopped or
    removed it) does not hold it any more.
    """
    unique = call.options.unique
    if unique is None:
        return
    key = LOCK + unique.key
    while not connection.set(key, call.id, nx=True, px=min(CLAIM, math.ceil(unique.ttl * 1000))):
        with connection.pipeline() as pipeline:
            pipeline.get(key)
            pipeline.pttl(key)
            holder, remaining = pipeline.execute()
        if holder is None:
            continue
        holder = holder.decode()
        state = state_of(holder)
        if not (state.ended or (state is State.UNKNOWN and remaining > CLAIM)):
            raise Duplicate(unique.key, holder)
        connection.eval(_RELEASE, 1, key, holder)


def hold(pipeline: Any, call: Call) -> None:
    """Keep the key for the job's time, in the transaction that hands it over."""
    unique = call.options.unique
    if unique is not None:
        pipeline.eval(_HOLD, 1, LOCK + unique.key, call.id, math.ceil(unique.ttl * 1000))


def release(connection: Any, id: str, wire: Any, moment: str) -> None:
    """Give back the key that a wire says it holds, if this job holds it until this moment ("start" or "done")."""
    options = wire.get("options") if isinstance(wire, Mapping) else None
    unique = options.get("unique") if isinstance(options, Mapping) else None
    if isinstance(unique, Mapping) and moment in (unique.get("until"), "done"):
        connection.eval(_RELEASE, 1, f"{LOCK}{unique.get('key')}", id)
