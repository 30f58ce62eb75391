"""What may be configured, and what does a Huey keep of what we promise?"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from backgrounded import ConfigurationError
from backgrounded.handler import Feature, Guarantees
from huey import Huey
from huey.storage import FileStorage, RedisStorage

KEPT: Final = frozenset(
    {
        Feature.DELAY,
        Feature.PRIORITY,
        Feature.RETRY,
        Feature.RETRY_WAIT,
        Feature.TIMEOUT,
        Feature.EXPIRES,
        Feature.RESULTS,
        Feature.STATE,
        Feature.CANCEL,
        Feature.KEPT,
    }
)
"""By a Huey in UTC on a store with priorities."""
_NAME: Final = re.compile(r"[\w.]+:\w+")


def not_kept(huey: Huey) -> dict[Feature, str]:
    """What this Huey does not keep of `KEPT`, with the reasons."""
    missing = {}
    if not huey.storage.priority or isinstance(huey.storage, FileStorage):  # a file takes none below its default
        missing[Feature.PRIORITY] = f"{type(huey.storage).__name__} has none; on Redis, take PriorityRedisHuey"
    if not huey.utc:
        reason = "with utc=False Huey reckons in local time, in which an hour comes twice a year"
        missing |= {Feature.DELAY: reason, Feature.RETRY_WAIT: reason}
    return missing


def patience_of(huey: Huey) -> float | None:
    """Seconds after which this Huey gives up on an answer of its server's. None: never, or it has no server."""
    if not isinstance(huey.storage, RedisStorage):
        return None
    pool = huey.storage.pool
    timeout: float | None = pool.connection_class(**pool.connection_kwargs).socket_timeout  # nothing is connected
    return timeout


def is_name(text: str) -> bool:
    """Whether this names a Huey in a module: "shop.jobs:huey"."""
    return _NAME.fullmatch(text) is not None


def loaded(name: str) -> Huey | None:
    """The Huey of this name, if its module has come as far as to have it."""
    module, _, attribute = name.partition(":")
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, Huey) else None


def find(name: str) -> Huey:
    """The Huey of this name; imports its module. Raises ConfigurationError."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"huey: {name}: {type(error).__name__}: {error}.") from error
    if not isinstance(found, Huey):
        raise ConfigurationError(f"huey: {name}: is no huey.Huey, but {type(found).__qualname__}.")
    return found


def check_huey(huey: Any, what: str) -> Any:
    """A Huey, or the dotted name of one, "shop.jobs:huey"."""
    if isinstance(huey, Huey) or (isinstance(huey, str) and is_name(huey)):
        return huey
    raise ConfigurationError(f'huey: {what}: must be a huey.Huey or a name such as "shop.jobs:huey", got {huey!r}.')


def check_queues(queues: Any) -> dict[str, Any]:
    if not isinstance(queues, Mapping):
        raise ConfigurationError(f'huey: queues: must be a dict such as {{"custom": custom_huey}}, got {queues!r}.')
    return {check_name(name, "queues"): check_huey(huey, f"queues[{name!r}]") for name, huey in queues.items()}


def check_name(queue: Any, what: str) -> str:
    if not (isinstance(queue, str) and queue):
        raise ConfigurationError(f"huey: {what}: must be a name, got {queue!r}.")
    return queue


def check_workers(workers: Any) -> int:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigurationError(f"huey: workers: must be at least 1, got {workers!r}.")
    return workers


def check_timeout(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ConfigurationError(f"huey: enqueue_timeout: must be seconds above 0, got {timeout!r}.")
    return timeout


def guarantees_of(patience: float | None) -> Guarantees:
    """What is promised. `patience` is that of a store of ours, in seconds; None: the store is the application's."""
    notes = [
        "At most once: Huey forgets a job when it hands it out. A consumer that is killed loses what it runs, and "
        "what it has just taken off the queue or the schedule. "
        'For at-least-once on one file, take backgrounded-sqlite: configure("sqlite").',
        "SIGTERM interrupts jobs, and loses them, unless huey_consumer runs with --graceful-signal TERM.",
        "A job of a consumer whose modules do not know this package is lost, and Huey logs it as an error: "
        "see backgrounded_huey.install.",
        "A job may start up to a second late: Huey's scheduler looks once a second.",
    ]
    if patience is None:
        notes.append("The Huey is the application's: its serializer (by default pickle) and its timeouts apply.")
    else:
        notes.append(f"A hand-over is two trips to the store, each of which succeeds or fails within {patience:g} s.")
    return Guarantees("at-most-once", notes=tuple(notes))
