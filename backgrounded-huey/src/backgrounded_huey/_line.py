"""What does a consumer of Huey run?

A queue of ours is one Huey with one task of ours in its registry, under the name `backgrounded_huey.perform`. Whose
method it runs is said by its words; from them the task takes the name that Huey's log shows, so that a log line reads
`shop.models.User.do_stuff: 3f...`, never the arguments.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Final

import backgrounded
from backgrounded.handler import Again, Delivery, Handler, Keep, Skip, State, failure_from, failure_record, printable
from huey import Huey
from huey import signals as huey_signals
from huey.api import Task
from huey.exceptions import CancelExecution, RateLimitExceeded, RetryTask

from ._ledger import Ledger
from ._limit import time_limit

UNREADABLE: Final = "backgrounded_huey.unreadable"
_ENDS: Final = {
    huey_signals.SIGNAL_REVOKED: State.CANCELLED,
    huey_signals.SIGNAL_CANCELED: State.CANCELLED,
    huey_signals.SIGNAL_INTERRUPTED: State.ABORTED,
}
"""What Huey says of a job that it did not run, or did not let come to its end."""

_COMMANDS: Final = (RetryTask, CancelExecution, RateLimitExceeded)
"""What Huey takes for a word to itself, and may run a job again for; from a method it is an error like any other."""


def perform(
    line: Line,
    task: Any,
    wire: Any,
    name: str = UNREADABLE,
    handler: str = "default",
    attempt: int = 1,
    timeout: float | None = None,
) -> None:
    """Run the call in `wire` as this task of Huey. The words beside it: the readable `name`, the configured `handler`
    it came by, the number of the `attempt` (from 1), and the seconds after which it is stopped (`timeout`).

    What it returns and how it fails goes into the ledger; Huey is told what it needs to act: again, not run, or the
    error.
    """
    ledger = line.ledger
    if not ledger.start(task.id, attempt):
        raise CancelExecution(retry=False)
    delivery = Delivery(
        handler=handler,
        queue=line.queue,
        attempt=attempt,
        engine_id=task.id,
        deadline=None if timeout is None else time.time() + timeout,
    )
    try:
        result = backgrounded.perform(wire, delivery, fallback=line.fallback, limit=lambda: time_limit(timeout))
    except Again as again:
        ledger.expect(task.id, attempt + 1, time.time() + again.seconds)
        task.kwargs = {**task.kwargs, "attempt": attempt + 1}
        # Without a delay Huey puts it back at once; with one, however short, the scheduler does at its next tick.
        raise RetryTask(delay=again.seconds or None) from None
    except Skip as skip:
        ledger.end(task.id, attempt, skip.state)
        raise CancelExecution(retry=False) from None
    except Keep as keep:
        words = {word: value for word, value in task.kwargs.items() if word != "attempt"}
        kept = {"reason": keep.reason, "code": keep.code, "priority": task.priority, "queue": line.queue}
        ledger.end(task.id, attempt, State.KEPT, words=words, **kept)
        raise (keep.__cause__ or keep) from None
    except KeyboardInterrupt:
        raise  # Huey's own way to end a worker in the middle of a job; it sends a signal then, see `_note_end`
    except BaseException as error:
        failure = failure_record(error)
        ledger.end(task.id, attempt, State.FAILED, failure=failure)
        if isinstance(error, Exception) and not isinstance(error, _COMMANDS):
            raise
        raise failure_from(failure) from error  # SystemExit would end the worker
    ledger.end(task.id, attempt, State.SUCCEEDED, result=result)


class NamedTask(Task):  # type: ignore[misc]  # Huey has no types
    """A task of Huey that goes by the name of the method that it runs."""

    def __init__(self, args: Any = None, kwargs: Any = None, *rest: Any, **words: Any) -> None:
        super().__init__(args, kwargs, *rest, **words)
        self.__module__, _, self.name = printable(self.kwargs.get("name", UNREADABLE)).rpartition(".")


class Line:
    """One Huey as a queue of ours: puts calls into it, and is what a consumer of it runs them with.

    `ledger` has the jobs' records; `queue` is the queue's name, if it has one.
    """

    def __init__(self, huey: Huey, ledger: Ledger, queue: str | None, fallback: Callable[[], Handler] | None) -> None:
        self.huey = huey
        self.ledger = ledger
        self.queue = queue
        self.fallback = fallback or self._handler
        self._task = self._register()

    def send(self, id: str, words: Mapping[str, Any], due: float | None, priority: float | None) -> None:
        """Put a call into the queue, to run at `due` (seconds since the epoch) or later. Raises what the store does."""
        self.huey.enqueue(self.task(id, words, due, priority))

    def task(self, id: str, words: Mapping[str, Any], due: float | None, priority: float | None) -> Any:
        """A task of this Huey, as its queue holds it. Its times are UTC without a zone, as Huey reckons."""
        eta = None if due is None else datetime.fromtimestamp(due, timezone.utc).replace(tzinfo=None)
        return self._task(None, dict(words), id=id, eta=eta, priority=priority)

    def _register(self) -> Any:
        def run(*, task: Any, **words: Any) -> None:
            perform(self, task, **words)

        run.__module__ = "backgrounded_huey"  # with `name`, what stands in the queue: it must never change
        registered = self.huey.task(name="perform", context=True, task_base=NamedTask)(run)
        self.huey.signal(*_ENDS)(self._note_end)
        return registered.task_class

    def _note_end(self, word: str, task: Any, *_: Any) -> None:
        with _unbroken():
            if isinstance(task, self._task) and not self.ledger.look(task.id)[0].ended:
                self.ledger.end(task.id, task.kwargs.get("attempt", 1), _ENDS[word])

    def _handler(self) -> Handler:
        """A handler for nested calls, where this worker has configured none: the same Huey."""
        from ._handler import HueyHandler  # here, not above: it imports this module

        return HueyHandler(huey=self.huey)


@contextmanager
def _unbroken() -> Iterator[None]:
    """A stretch in which no signal strikes: Huey 3.4 tells its workers to end twice, within a second."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_LINE: Final = "_backgrounded_line"
_lock: Final = threading.RLock()


def is_installed(huey: Huey) -> bool:
    return hasattr(huey, _LINE)


def line_of(huey: Huey, queue: str | None = None, ledger: Ledger | None = None, fallback: Any = None) -> Line:
    """The one line that a Huey has; made at the first use, with what is said then. It lives as long as the Huey."""
    with _lock:
        if not is_installed(huey):
            setattr(huey, _LINE, Line(huey, ledger or Ledger(huey), queue, fallback))
        line: Line = getattr(huey, _LINE)
        return line


def install(huey: Huey) -> None:
    """Let a consumer of this Huey run our jobs. `configure("huey", huey=huey)` does it as well.

    Say it in a module that `huey_consumer` imports: Huey takes a job off its queue before it finds out that it does not
    know its task, logs "backgrounded_huey.perform not found in TaskRegistry", and the job is lost.
    """
    if not isinstance(huey, Huey):
        raise backgrounded.ConfigurationError(f"install() takes a huey.Huey, got {type(huey).__qualname__}.")
    line_of(huey)
