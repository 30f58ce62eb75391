"""How do tests see what was called, and run it when they want?

with backgrounded.using("memory") as handler:
    user.backgrounded(delay=60).do_stuff(1)
    assert handler.calls[0].name == "shop.models.User.do_stuff"
    handler.clock.advance(60)
    handler.run()
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ..calls import Call
from ..handler import Feature, Guarantees
from ._local import DEFAULT_QUEUE, LocalQueue, Waiting


class MemoryHandler(LocalQueue):
    """Records calls, runs them on demand, and keeps every option against a clock that tests move.

    Words in `native` are taken unseen, since the application under test may say them to another engine.
    `calls` are the `Call`s that wait, oldest first; `kept` the jobs that were set aside.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(Feature) - {Feature.WORKER}
    guarantees: Final = Guarantees("at-most-once", notes=("Jobs live in this process and die with it.",))
    priority_levels: Final = 10
    default_queue: Final = DEFAULT_QUEUE

    def __init__(self) -> None:
        super().__init__()

    @property
    def calls(self) -> list[Call]:
        with self._changed:
            return [waiting.call for waiting in self._waiting.values()]

    def run(self, *queues: str) -> int:
        """Run what waits now and is due, in the given queues or all; return how many ran.

        The more urgent first. What the jobs enqueue stays waiting, and so does what is to be tried again. The first
        job that fails for good, or is set aside, ends the run and its error is raised.
        """
        count = 0
        for waiting in self._due_now(queues):
            with self._changed:
                if not self._waits(waiting):  # cancelled by one of these jobs, or taken by another thread
                    continue
                self._start_of(waiting)
            count += 1
            error = self._execute(waiting)
            if error is not None:
                raise error
        return count

    def _due_now(self, queues: tuple[str, ...]) -> list[Waiting]:
        with self._changed:
            ready = [item for lane in self._advanced(queues) for item in lane.ready]
        return [waiting for _, waiting in sorted(ready)]

    def result(self, call_id: str, timeout: float | None) -> Any:
        """As ever, but without a timeout it does not wait: nothing would run the job in the meantime."""
        return super().result(call_id, 0 if timeout is None else timeout)

    def clear(self) -> None:
        """Forget everything: what waits, what ended, what was set aside, the unique keys."""
        with self._changed:
            self._waiting.clear()
            self._lanes.clear()
            self._set_aside.clear()
            self.kept.clear()
            self._ledger.clear()
