"""Which connections to a Redis does an adapter make for itself? Imported where redis-py is, by `records` alone."""

from __future__ import annotations

import threading

from redis import ConnectionPool


class Pool(ConnectionPool):
    """One that a fork may strike in the middle of another thread's call: its lock is held in the child for ever.

    redis-py begins anew after a fork with `reset`, which made a new lock up to release 5.2, and leaves the old since.
    """

    def reset(self) -> None:
        self._lock = threading.RLock()
        super().reset()
