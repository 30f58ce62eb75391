"""What does one job look like on its way, in our words and as a message of Dramatiq's?

Dramatiq shows the arguments of a message in its log, so a message of ours has none: all that a worker needs stands in
one option, which shows nothing of itself.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

import dramatiq
from backgrounded.handler import positive, printable
from dramatiq.common import dq_name, q_name

OURS: Final = "backgrounded"
"""The option of a message in which a job of ours stands."""
PRIORITY: Final = "broker_priority"
"""RabbitMQ's priority of a message, higher first."""
LONGEST_HOP: Final = 900.0
"""Seconds for which a worker may hold a message that is not due. RabbitMQ closes a channel on which a message was not
acknowledged for 30 minutes, and a worker takes delayed messages in the order in which they were sent, up to a bound:
what is due soon must not wait behind what is due next year. So a longer delay is carried in hops."""


@dataclass(frozen=True)
class Message:
    """One job on its way: all that a worker is told, and all that sends it again.

    `priority` is RabbitMQ's, `due` in seconds since the epoch, `attempt` counts from 1. `timeout` and `result_ttl` are
    seconds, `handler` is the alias that the call came by.
    """

    id: str
    wire: Any = field(repr=False)
    name: str
    queue: str
    priority: int | None = None
    handler: str = "default"
    due: float | None = None
    attempt: int = 1
    timeout: float | None = None
    result_ttl: float | None = None

    def for_dramatiq(self) -> dramatiq.Message[None]:
        """The message that brings it to a worker, to the queue of what is delayed if it is not due yet."""
        told = {word: value for word in _TOLD if (value := getattr(self, word)) is not None}
        if self.handler != "default":
            told["handler"] = self.handler
        options: dict[str, Any] = {OURS: Hidden(told)}
        if self.priority is not None:
            options[PRIORITY] = self.priority
        queue, moment = self.queue, time.time()
        if self.due is not None and self.due > moment:
            queue = dq_name(queue)
            options["eta"] = math.ceil(1000 * min(self.due, moment + LONGEST_HOP))
        return dramatiq.Message(queue, self.name, (), {}, options, self.id)


_TOLD: Final = ("wire", "due", "attempt", "timeout", "result_ttl")


class Hidden(dict[str, Any]):
    """A dict that does not show what is in it, in no log and no traceback. To every encoder it is a dict."""

    def __repr__(self) -> str:
        return "{...}"

    def __reduce__(self) -> tuple[Any, ...]:  # a pickle of it needs nothing of ours
        return dict, (dict(self),)


def is_ours(message: Any) -> bool:
    return OURS in message.options


def message_from(message: Any) -> Message:
    """The job in a message of Dramatiq's, as far as that can be believed: anybody may have written it."""
    told = message.options[OURS]
    if not isinstance(told, dict):
        told = {"wire": told}
    handler, priority, attempt = told.get("handler"), message.options.get(PRIORITY), told.get("attempt")
    return Message(
        id=str(message.message_id),
        wire=told.get("wire"),
        name=printable(message.actor_name),
        queue=q_name(message.queue_name),
        priority=_count(priority),
        handler=handler if isinstance(handler, str) else "default",
        due=positive(told.get("due")),
        attempt=_count(attempt) or 1,
        timeout=positive(told.get("timeout")),
        result_ttl=0.0 if told.get("result_ttl") == 0 else positive(told.get("result_ttl")),
    )


def hide(message: Any) -> None:
    """Let a message that a worker has taken show as little as one that was made here, and a monitor even less.

    Sentry's middleware sends `message.asdict()` away with each error. A worker's message is a proxy, so what is encoded
    when somebody sends it again is still the whole.
    """
    told, whole = message.options[OURS], message.asdict
    message.options[OURS] = Hidden(told if isinstance(told, dict) else {"wire": told})

    def shown() -> dict[str, Any]:
        fields: dict[str, Any] = whole()
        return {**fields, "options": {**fields["options"], OURS: repr(Hidden())}}

    message.asdict = shown


def _count(value: Any) -> int | None:
    is_one = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if is_one else None
