"""What may be configured, and what may be said to RQ in its own words?"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import rq
from backgrounded import Call, ConfigurationError, InvalidOption
from backgrounded.handler import Guarantees
from redis import Redis
from rq import Queue
from rq.job import Dependency
from rq.job import Job as RQJob
from rq.serializers import DefaultSerializer, JSONSerializer, resolve_serializer

from ._connection import settings_of

VERSION: Final = tuple(int(part) for part in rq.__version__.split(".")[:2])
RETRY_COUNTS_WAITS: Final = VERSION >= (2, 8)
"""Before 2.8, RQ did not count a returned Retry that waits."""
SERIALIZER_ALIASES: Final = VERSION >= (2, 9)
KEEPS_FOREIGN_META: Final = VERSION >= (3, 0)
"""Before 3.0, a scheduler with another serializer than the job's ended at the job's meta."""
LONGEST_TIMEOUT: Final = 2**31 - 1
"""Seconds, some 68 years: RQ's workers hand a time limit to alarm(2), which takes a C int."""
LONGEST_TTL: Final = 36_525 * 86_400
"""Seconds, 100 years. RQ gives a ttl to Redis when the method has run, and takes a refusal then for a death."""
_OURS: Final = {
    "func",
    "args",
    "kwargs",
    "timeout",
    "result_ttl",
    "description",
    "job_id",
    "retry",
    "pipeline",
    "unique",
}
_REFUSED: Final = {
    "ttl": "RQ's ttl deletes the job without a trace; use expires",
    "on_success": "a job of ours runs our function only",
    "on_failure": "a job of ours runs our function only",
    "on_stopped": "a job of ours runs our function only",
    "webhooks": "a job of ours runs our function only",
}
NATIVE: Final = frozenset(inspect.signature(Queue.enqueue_call).parameters) - _OURS - _REFUSED.keys() - {"self"}
"""The words of RQ's own that `native={...}` takes, as the installed RQ has them."""
PREPARED: Final = frozenset(inspect.signature(Queue.prepare_data).parameters) - {"depends_on"}
"""The words that RQ takes for one of many jobs."""
_KINDS: Final[dict[str, Any]] = {"repeat": getattr(rq, "Repeat", None), "rate_limit": getattr(rq, "RateLimit", None)}
"""What these words must be, in an RQ that has them."""
_check_id: Final[Callable[[str], None]] = getattr(rq.job, "validate_job_id", lambda id: None)
"""Refuses an id that no job of RQ can have, in an RQ that knows of such."""


def check_limits(call: Call) -> None:
    """Refuse a time limit that RQ's workers cannot count. Raises InvalidOption."""
    timeout = call.options.timeout
    if timeout is not None and timeout > LONGEST_TIMEOUT:
        raise InvalidOption("timeout", f"RQ counts at most {LONGEST_TIMEOUT} seconds (68 years), got {timeout:g}")


def check_native(call: Call, native: Mapping[str, Any], serializer: Any) -> None:
    """Refuse words that RQ does not have, or that would break what we promise. Raises InvalidOption."""
    for word in native:
        if word not in NATIVE:
            reason = _REFUSED.get(word) or f"RQ {rq.__version__} takes: {', '.join(sorted(NATIVE))}"
            raise InvalidOption("native", f"{word!r}: {reason}")
    if "depends_on" in native and call.due is not None:
        raise InvalidOption("native", "depends_on: RQ ignores it for a job that is scheduled; leave out delay and at")
    if "at_front" in native and not isinstance(native["at_front"], bool):
        raise InvalidOption("native", f"at_front: must be True or False, got {native['at_front']!r}")
    if "failure_ttl" in native and not _is_ttl(native["failure_ttl"]):
        raise InvalidOption(
            "native",
            f"failure_ttl: must be whole seconds up to {LONGEST_TTL} (100 years), or -1, got {native['failure_ttl']!r}",
        )
    _check_dependencies(native.get("depends_on"))
    for word, kind in _KINDS.items():
        if native.get(word) is not None and not isinstance(native[word], kind):
            raise InvalidOption("native", f"{word}: must be an rq.{kind.__name__}, got {native[word]!r}")
    if "meta" in native:
        _check_meta(call, native["meta"], serializer)


def _check_dependencies(given: Any) -> None:
    """Refuse what RQ would stumble over when it looks for these jobs, which it does after the call was accepted."""
    if given is None:
        return
    items = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    for item in items:
        for job in item.dependencies if isinstance(item, Dependency) else [item]:
            if not isinstance(job, RQJob) and not (isinstance(job, str) and job):
                raise InvalidOption("native", f"depends_on: must be ids, jobs or Dependency of RQ, got {job!r}")
            try:
                _check_id(job if isinstance(job, str) else job.id)
            except ValueError as error:
                raise InvalidOption("native", f"depends_on: {error}") from None


def _check_meta(call: Call, meta: Any, serializer: Any) -> None:
    try:
        json.dumps({**meta})
    except (TypeError, ValueError):
        raise InvalidOption("native", "meta: must be a dict of plain values, as JSON has them") from None
    waits = call.due is not None or bool(call.options.retry and call.options.retry.waits)
    if waits and not KEEPS_FOREIGN_META and serializer is not JSONSerializer:
        raise InvalidOption("native", f'meta: RQ {rq.__version__} loses it on a wait; configure serializer="json"')


def _is_ttl(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (0 < value <= LONGEST_TTL or value == -1)


def check_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"rq: enqueue_timeout: must be seconds above 0, got {timeout!r}.")
    return timeout


def check_name(queue: Any) -> str:
    if queue is not None and not (isinstance(queue, str) and queue):
        raise ConfigurationError(f"rq: queue: must be a name or an rq.Queue, got {queue!r}.")
    return queue or "default"


def check_priorities(priorities: Mapping[int, str]) -> dict[int, str]:
    for key, level in priorities.items():
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key <= 9 or key == 5:
            raise ConfigurationError(f"rq: priorities: {key!r} must be 0 to 9 and not 5, which is a queue's own.")
        if not isinstance(level, str) or not level:
            raise ConfigurationError(f"rq: priorities: {level!r} must be a name such as 'high'.")
    if len(set(priorities.values())) < len(priorities):
        raise ConfigurationError("rq: priorities: two levels have the same name, which would make them one.")
    return dict(priorities)


def check_serializer(serializer: Any) -> Any:
    named = {None: DefaultSerializer, "pickle": DefaultSerializer, "json": JSONSerializer}
    if serializer is None or serializer in ("pickle", "json"):
        return named[serializer]
    try:
        return resolve_serializer(serializer)
    except (NotImplementedError, ValueError, ImportError) as error:
        raise ConfigurationError(f'rq: serializer: {error} Give "pickle", "json", or what RQ takes.') from error


def serializer_name(serializer: Any) -> str:
    """What a worker is told. It reads pickled calls of ours with the JSON one too, and plain values only."""
    if serializer in (DefaultSerializer, JSONSerializer):
        return "json" if SERIALIZER_ALIASES else "rq.serializers.JSONSerializer"
    if not isinstance(serializer, type):
        raise ConfigurationError("rq: a worker finds a serializer by name: give a class, not an object.")
    return f"{serializer.__module__}.{serializer.__qualname__}"


def guarantees_of(borrowed: bool, connection: Redis, several_queues: bool) -> Guarantees:
    """What is promised; "at-least-once" is not, where priorities make every worker one of several queues."""
    notes = [
        "At least once for workers of one queue: a worker of several queues holds a job nowhere between taking and "
        "starting it, and loses it if it is killed in that moment.",
        "A job whose worker dies runs again within 90 s with worker_command(); with RQ's defaults after up to 14 min, "
        "and 15 more if that worker died during RQ's maintenance.",
        "What Redis acknowledged survives its death only with appendonly.",
        "A plain `rq worker` runs whatever is written to Redis; worker_command() gives one that runs our jobs only.",
    ]
    if borrowed:
        notes.append("The connection is the application's: its timeouts and its retries of writes apply.")
        if settings_of(connection).get("socket_timeout") is None:
            notes.append("It has no socket_timeout: a call can hang for as long as Redis does not answer.")
    else:
        notes.append(f"A hand-over succeeds or fails within {settings_of(connection)['socket_timeout']:g} s.")
    if several_queues:
        return Guarantees("none", notes=tuple(notes))
    return Guarantees("at-least-once", recovery_s=90.0, notes=tuple(notes))
