"""How did a job end: for RQ, and for us?

RQ says "failed" of a job whose method failed and of one that was set aside, "finished" of one that returned and of one
that expired. Which it was stands as JSON in one more field of the job's hash, our mark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from backgrounded.handler import State
from rq import Queue

from ._settings import LONGEST_TTL

END: Final = "backgrounded"
"""The field of the job's hash that says how it ended for us."""
DIED: Final = "The last worker died on this job, or was stopped, before it could say anything."

_STATES: Final = {
    "created": State.QUEUED,
    "queued": State.QUEUED,
    "ready_to_enqueue": State.QUEUED,
    "rate_limited": State.QUEUED,
    "deferred": State.QUEUED,
    "scheduled": State.SCHEDULED,
    "started": State.RUNNING,
    "finished": State.SUCCEEDED,
    "failed": State.KEPT,  # without our mark the last worker died on it, and our code did not get to say anything
    "stopped": State.CANCELLED,
    "canceled": State.CANCELLED,
}
_ENDS: Final = {
    "queued": {str(State.CANCELLED): State.CANCELLED},  # by RQ's scheduler, that was about to when it was cancelled
    "failed": {"failed": State.FAILED},
    "finished": {str(end): end for end in (State.EXPIRED, State.CANCELLED, State.DISCARDED, State.ABORTED)},
}
"""What our mark says about RQ's states."""
_FORGET: Final = """
if redis.call('hget', KEYS[1], 'status') ~= 'canceled' or redis.call('exists', KEYS[2]) == 1 then return end
redis.call('zrem', KEYS[3], ARGV[1])
redis.call('expire', KEYS[1], ARGV[2])
redis.call('expire', KEYS[4], ARGV[2])
"""


_TAKE_BACK: Final = """
local taken = redis.call('lrem', KEYS[1], 0, ARGV[1])
taken = taken + redis.call('zrem', KEYS[2], ARGV[1]) + redis.call('zrem', KEYS[3], ARGV[1])
if taken > 0 or redis.call('hget', KEYS[4], 'status') == 'rate_limited' then
    redis.call('hset', KEYS[4], ARGV[2], ARGV[3])
    return 1
end
return 0
"""
_CANCELLED: Final = json.dumps({"end": str(State.CANCELLED)})


def read_state(status: Any, end: Any) -> tuple[State, Mapping[str, Any]]:
    """Our state, and our own record of how it ended, from a job's hash that anybody may have written."""
    try:
        record = json.loads(end or b"{}")
    except ValueError:
        record = {}
    record = record if isinstance(record, dict) else {}
    native = "" if status is None else status.decode(errors="replace")
    return _ENDS.get(native, {}).get(str(record.get("end")), _STATES.get(native, State.UNKNOWN)), record


def write_end(job: Any, record: Mapping[str, Any]) -> None:
    """Note on the job's hash how it ended for us."""
    job.connection.hset(job.key, END, json.dumps(record))


def take_back(job: Any) -> bool:
    """Whether the job was waiting and now is not: whoever takes it out, worker or we, has it.

    It is marked in the same step: RQ's scheduler reads what is due, and puts that into the queue afterwards, whatever
    has become of it.
    """
    queue = Queue(job.origin, connection=job.connection)
    keys = [queue.key, queue.scheduled_job_registry.key, queue.deferred_job_registry.key, job.key]
    return bool(job.connection.eval(_TAKE_BACK, len(keys), *keys, job.id, END, _CANCELLED))


def take_mark(job: Any) -> bool:
    """Take the mark of a run before off, which RQ's own `rq requeue` leaves. True: the job was cancelled, and stays."""
    with job.connection.pipeline() as pipeline:
        pipeline.hget(job.key, END)
        pipeline.hdel(job.key, END)
        was_cancelled = read_state(b"finished", pipeline.execute()[0])[0] is State.CANCELLED
    if was_cancelled:
        write_end(job, {"end": str(State.CANCELLED)})
    return was_cancelled


def forget_cancelled(pipeline: Any, job: Any) -> None:
    """Let a job that was cancelled be remembered for its `result_ttl`; RQ remembers it for ever.

    It leaves RQ's registry of cancelled jobs at once, which nobody else cleans. A job that others depend on stays as it
    is: RQ takes a dependency that is gone for one that was met.
    """
    if job.result_ttl is None or job.result_ttl < 0:
        return
    registry = Queue(job.origin, connection=job.connection).canceled_job_registry
    keys = [job.key, job.dependents_key, registry.key, job.dependencies_key]
    pipeline.eval(_FORGET, len(keys), *keys, job.id, min(job.result_ttl, LONGEST_TTL))
