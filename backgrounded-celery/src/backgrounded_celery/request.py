"""What does a worker's main process do with a message of ours, before and after the run?"""

from __future__ import annotations

from typing import Any

from backgrounded.handler import ENQUEUE_TIMEOUT, State, failure_record, printable
from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.signals import task_revoked
from celery.worker.request import Request as CeleryRequest

from ._broker import Message, broker_of
from ._run import end
from .task import TASK


class Request(CeleryRequest):  # type: ignore[misc] # Celery has no types
    """Celery's request, of which `celery inspect` and Flower are told no arguments, and whose hard limit is a failure
    that can be read."""

    name: str

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.name = printable(self.name)  # it is what the log shows, and whoever sends a message chooses it
        if self._request_dict.get("shadow"):
            self._request_dict["shadow"] = self.name

    def info(self, safe: bool = False) -> Any:
        return super().info(safe=True)

    def on_failure(self, exc_info: Any, *args: Any, **rest: Any) -> Any:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, (WorkerLostError, SystemExit)) and not self._comes_back:
            _end(self.app, self.id, State.FAILED, failure_record(error))
        return super().on_failure(exc_info, *args, **rest)

    @property
    def _comes_back(self) -> bool:
        """Whether the broker hands it out again when its process has died."""
        return bool(self.task.acks_late and self.task.reject_on_worker_lost)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            error = TimeoutError(f"killed after {timeout:g} seconds: its timeout did not reach the method")
            _end(self.app, self.id, State.FAILED, failure_record(error))
        super().on_timeout(soft, timeout)


def _end(app: Any, id: Any, state: State, outcome: Any) -> None:
    """Write down the end of a job that cannot say it itself."""
    # The main process has all of its other jobs to serve.
    end(broker_of(app, ENQUEUE_TIMEOUT), Message(str(id), None, printable(id)), state, outcome)


@task_revoked.connect(weak=False)  # type: ignore[untyped-decorator] # as above
def _revoked(sender: Any = None, request: Any = None, **_: Any) -> None:
    """Somebody used Celery's own `revoke`: the worker does not run the job, or has ended it."""
    if getattr(sender, "name", None) == TASK:
        _end(sender.app, request.id, State.CANCELLED, None)
