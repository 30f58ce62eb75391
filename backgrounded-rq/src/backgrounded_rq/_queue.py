"""For how long does a worker that died keep the others from giving back its jobs?"""

from __future__ import annotations

from typing import Final

from rq.queue import Queue as RQQueue

LONGEST_MAINTENANCE: Final = 20
"""Seconds. Two maintenances at once can run a job twice, so it is far longer than one takes."""


class Queue(RQQueue):
    """RQ's queue, of which a worker that is killed during its maintenance holds the lock for 20 seconds at most.

    Give it to a worker: `rq worker --queue-class backgrounded_rq.Queue`. RQ's own holds that lock for 899 seconds after
    such a death (rq.queue.Queue.acquire_maintenance_lock), and until then no job of any dead worker runs again.
    """

    def acquire_maintenance_lock(self) -> bool:
        """Whether this worker shall do it. A lock is shortened whoever has taken it: also a plain worker of RQ's."""
        is_ours = super().acquire_maintenance_lock()
        if self.connection.ttl(self.registry_cleaning_key) > LONGEST_MAINTENANCE:
            self.connection.expire(self.registry_cleaning_key, LONGEST_MAINTENANCE)
        return is_ours
