"""backgrounded on RQ: jobs run in the unmodified `rq worker`.

    backgrounded.configure("rq", url="redis://localhost:6379/0")
    user.backgrounded(queue="custom").do_stuff(1)

`RQHandler` hands calls to RQ, `run` is what a worker runs, and `Job` is a job class for workers that shall run nothing
else: `rq worker -S json -j backgrounded_rq.Job custom`. `Queue` is a queue class with which the death
of one worker does not keep the others from giving back its jobs.
"""

from __future__ import annotations

from ._handler import RQHandler
from ._job import Job
from ._queue import Queue

__version__ = "0.1.0"
__all__ = ["Job", "Queue", "RQHandler"]
