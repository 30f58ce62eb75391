"""How is everything switched off? Calls are checked and encoded as ever, and then nothing happens."""

from __future__ import annotations

from typing import ClassVar, Final

from ..calls import Call
from ..handler import Feature, Guarantees, State
from ._local import DEFAULT_QUEUE


class NullHandler:
    """Takes every job and runs none: each is `discarded` at once, and its unique key is free again."""

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(
        {
            Feature.QUEUES,
            Feature.PRIORITY,
            Feature.RETRY,
            Feature.RETRY_WAIT,
            Feature.UNIQUE,
            Feature.RESULT_TTL,
            Feature.STATE,
        }
    )
    guarantees: Final = Guarantees("none", notes=("Runs nothing, by intention.",))
    default_queue: Final = DEFAULT_QUEUE

    def enqueue(self, call: Call) -> str | None:
        return None

    def state(self, call_id: str) -> State:
        return State.DISCARDED
