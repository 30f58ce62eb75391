"""What does a worker of Procrastinate run?

Two tasks of ours, registered with its app. `backgrounded.perform` runs all calls: the core decides how a run ends, and
Procrastinate is told what it needs to act. `backgrounded.recover` is periodic: it gives back the jobs of dead workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import backgrounded
import procrastinate
import psycopg
from backgrounded.handler import (
    Again,
    Delivery,
    Handler,
    Keep,
    Skip,
    State,
    failure_from,
    failure_record,
    printable,
)
from procrastinate.exceptions import JobAborted, ProcrastinateException
from procrastinate.jobs import Job

from ._store import PERFORM, RECOVER, Store, Taken

logger = logging.getLogger("backgrounded")

HEARTBEAT: Final = 30.0
"""Seconds without a sign of life, after which a worker is taken for dead: Procrastinate's own, which beats each ten."""
FIRST: Final = 1_000
"""The priority of giving jobs back: before whatever waits."""
EVERY_MINUTE: Final = "* * * * *"
_PATIENCE: Final = 5.0
"""Seconds after which a job is tried again whose row cannot be reached."""
_ENGINE_WORDS: Final = (JobAborted, asyncio.CancelledError, StopIteration)
"""What Procrastinate or asyncio take for a word to themselves; from a method it is an error like any other."""


class Later(Exception):
    """To Procrastinate: run this job again in so many `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"again in {seconds:g} s")


class Verdicts(procrastinate.BaseRetryStrategy):
    """Procrastinate runs a job of ours again when the core has said so, and never otherwise."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> procrastinate.RetryDecision | None:
        if not isinstance(exception, Later):
            return None
        due = datetime.now(timezone.utc) + timedelta(seconds=exception.seconds)
        return procrastinate.RetryDecision(retry_at=due)


class Line:
    """One app of Procrastinate's that knows our tasks, and the store beside it."""

    def __init__(self, store: Store, fallback: Callable[[], Handler]) -> None:
        self.store = store
        self.fallback = fallback

    def register(self, app: procrastinate.App) -> None:
        """Register our two tasks. Their names stand in queues, and must never change."""
        app.task(name=PERFORM, pass_context=True, retry=Verdicts())(self.perform)
        words: Any = {"name": RECOVER, "queue": RECOVER, "queueing_lock": RECOVER, "priority": FIRST}
        recover = app.task(pass_context=True, **words)(self.recover)
        app.periodic(cron=EVERY_MINUTE)(recover)

    # -- a run

    def perform(self, context: procrastinate.JobContext, /, **words: Any) -> None:
        """Run the call that `words["id"]` names. What else stands in a job of this task was written by a stranger."""
        job = context.job
        try:
            taken = self.store.begin(words.get("id"), job.id)
            if taken is None:
                self._pass_over(job, words)
                return
        except psycopg.OperationalError as error:  # nothing has been run: so it can be tried again
            raise Later(_PATIENCE) from error
        self._run(str(words["id"]), taken, job)

    def _run(self, id: str, taken: Taken, job: Job) -> None:
        delivery = Delivery(
            handler=taken.handler,
            queue=job.queue,
            attempt=taken.attempt,
            deaths=taken.deaths,
            engine_id=str(job.id),
            redelivered=taken.deaths > 0,
        )
        try:
            result = backgrounded.perform(taken.wire, delivery, fallback=self.fallback)
        except Again as again:
            self._write_or_later(self.store.again, id)
            raise Later(again.seconds) from again.__cause__
        except Keep as keep:
            self._write_or_later(self.store.end, id, State.KEPT, {"reason": keep.reason, "code": keep.code})
            raise (keep.__cause__ or keep) from None
        except Skip as skip:
            self._write_or_later(self.store.end, id, skip.state)
        except BaseException as error:
            failure = failure_record(error)
            self._write(id, taken, State.FAILED, failure)
            if isinstance(error, Exception) and not isinstance(error, _ENGINE_WORDS):
                raise
            raise failure_from(failure) from error
        else:
            self._write(id, taken, State.SUCCEEDED, result)

    def _write_or_later(self, write: Callable[..., None], *words: Any) -> None:
        """Write down what must not be lost. The method is not to be run, or is to be run again anyway."""
        try:
            write(*words)
        except psycopg.OperationalError as error:
            raise Later(_PATIENCE) from error

    def _write(self, id: str, taken: Taken, state: State, outcome: Any) -> None:
        """Write down how a method ended that has run. If that fails it is logged: to run it again were worse."""
        try:
            self.store.end(id, state, outcome)
        except psycopg.Error:
            logger.exception("the end of %s could not be written", taken.name, extra={"job_id": id})

    def _pass_over(self, job: Job, words: dict[str, Any]) -> None:
        """A job that is not to be run: ours, and past, or a stranger's, which is kept."""
        if self.store.is_known(words.get("id")):
            logger.info("job %s of Procrastinate has nothing left to do", job.id)
            return
        reason = f"Job {job.id} of Procrastinate was not written by backgrounded: no such job is known here."
        about = {"reason": reason, "code": "bad-wire"}
        id = self.store.keep_stray(job.id, words, job.queue, job.priority, about)
        logger.error("kept a job: %s", printable(reason), extra={"job_id": id, "job_state": "kept"})

    # -- dead workers

    async def recover(self, context: procrastinate.JobContext, /, timestamp: int) -> None:
        """Give back the jobs of workers that died, and tidy up."""
        manager = context.app.job_manager
        for job in await manager.get_stalled_jobs(task_name=PERFORM, seconds_since_heartbeat=HEARTBEAT):
            try:
                await manager.retry_job(job, retry_at=datetime.now(timezone.utc))
            except ProcrastinateException:
                logger.info("job %s of Procrastinate was not dead after all", job.id, exc_info=True)
            else:
                logger.warning("job %s of Procrastinate runs again: its worker is dead", job.id)
        reason = "Procrastinate ended it, and no end of ours was written. Does every worker know backgrounded.perform?"
        await asyncio.to_thread(self.store.tidy, {"reason": reason, "code": "unknown-task"})


def is_installed(app: procrastinate.App) -> bool:
    """Whether an app knows our tasks."""
    return PERFORM in app.tasks
