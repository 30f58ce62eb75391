"""What if there is no engine at all? The method runs at the call, in this thread, through the wire all the same."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from .._runtime import perform
from ..calls import Call
from ..handler import Again, Delivery, Feature, Guarantees, Keep, Skip, State, failure_from, failure_record
from ._local import DEFAULT_QUEUE, Clock, Ledger


class InlineHandler:
    """Runs each job before the call returns. The method's exception reaches the caller.

    Retries come at once, so waits are refused; so are delays and limits. Results of the last 10,000 jobs are kept in
    memory. A job that cannot be performed raises its PerformError.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(
        {
            Feature.QUEUES,
            Feature.PRIORITY,
            Feature.RETRY,
            Feature.UNIQUE,
            Feature.RESULTS,
            Feature.RESULT_TTL,
            Feature.STATE,
        }
    )
    guarantees: Final = Guarantees("at-most-once", notes=("Runs in the caller's process, and dies with it.",))
    default_queue: Final = DEFAULT_QUEUE

    def __init__(self) -> None:
        self._ledger = Ledger(Clock())

    def enqueue(self, call: Call) -> str | None:
        self._ledger.claim(call)
        try:
            self._run(call)
        finally:
            self._ledger.release(call)
        return None

    def _run(self, call: Call) -> None:
        attempt = 1
        while True:
            try:
                tree = perform(call.tree, Delivery(call.handler, call.options.queue or DEFAULT_QUEUE, attempt))
            except Again:
                attempt += 1
                continue
            except Skip as skip:
                self._ledger.note(call.id, skip.state, call.options)
            except Keep as keep:
                raise self._failed(call, keep.__cause__ or keep) from None
            except BaseException as error:
                self._failed(call, error)
                raise
            else:
                self._ledger.note(call.id, State.SUCCEEDED, call.options, tree=tree)
            return

    def _failed(self, call: Call, error: BaseException) -> BaseException:
        self._ledger.note(call.id, State.FAILED, call.options, failure=failure_from(failure_record(error)))
        return error

    def state(self, call_id: str) -> State:
        return self._ledger.state(call_id)

    def result(self, call_id: str, timeout: float | None) -> Any:
        return self._ledger.result(call_id, timeout)
