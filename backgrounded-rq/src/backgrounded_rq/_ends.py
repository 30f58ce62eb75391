"""How did a job end: for RQ, and for us?

RQ says "failed" of a job whose method failed and of one that was set aside, "finished" of one that returned and of one
that expired. Which it was stands as JSON in one more field of the job's hash, our mark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from backgrounded.handler import State

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
    "failed": {"failed": State.FAILED},
    "finished": {str(end): end for end in (State.EXPIRED, State.CANCELLED, State.DISCARDED, State.ABORTED)},
}
"""What our mark says about RQ's states."""


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
