"""What does the caller hold in hand after a call?

A `Job`: the id, and what the engine says of it now. Nothing is cached: `state` and `result()` ask the engine each
time, so a handle made from an id in another process says the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from . import _runtime
from ._configuration import DEFAULT, Configuration, configuration_of, load_plugins, runtime
from ._runtime import Ticket
from .errors import BackgroundedError, CallError, JobFailed, NoResult, ResultError, ResultTimeout
from .handler import Feature, State

R = TypeVar("R")


class Job(Generic[R]):
    """The handle on one job: `id` (ours, made at the call), `engine_id` (the engine's own, or None), `name`.

    `job.result(timeout=5)` waits at most so many seconds.
    """

    __slots__ = ("_configuration", "_id", "_ticket", "name")

    def __init__(self, id: str, configuration: Configuration, name: str | None = None, ticket: Ticket | None = None):
        self._id = id
        self.name = name
        self._configuration = configuration
        self._ticket = ticket

    @property
    def id(self) -> str:
        """Ours, made at the call. The first job's id, once the hand-over has found that this one is its duplicate."""
        return self._id if self._ticket is None else self._ticket.id

    @property
    def engine_id(self) -> str | None:
        """The engine's own id; None where it gives none, or before the job was sent."""
        return None if self._ticket is None else self._ticket.engine_id

    @property
    def state(self) -> State:
        """Where the job is now: asks the engine, unless it never got there."""
        if self._here is not None:
            return self._here
        if Feature.STATE not in self._configuration.handler.features:
            return State.UNKNOWN
        return cast(State, self._engine.state(self.id))

    def result(self, timeout: float | None = None) -> R:
        """What the method returned. Waits until the job has ended, at most `timeout` seconds (None: for ever).

        Raises JobFailed when the method raised, ResultTimeout when it has not ended, NoResult when there will be none.
        """
        tree = self._ask(timeout)
        load_plugins()  # one may bring the converter that the result needs
        return cast(R, runtime().codec.decode(tree, "result"))

    def exception(self, timeout: float | None = 0) -> JobFailed | None:
        """How the method failed, or None if it did not (yet). Waits at most `timeout` seconds, by default not."""
        self._require_results()
        try:
            self._ask(timeout)
        except JobFailed as failed:
            return failed
        except ResultError:
            return None
        return None

    def wait(self, timeout: float | None = None) -> State:
        """Wait until the job has ended, at most `timeout` seconds, and say its state. Raises ResultTimeout."""
        self._require_results()
        with contextlib.suppress(JobFailed, NoResult):
            self._ask(timeout)
        return self.state

    def cancel(self) -> bool:
        """Take the job back if it has not started. True: it will not run. Raises CallError where that is not kept."""
        if self._ticket is not None and self._here is not None:
            if self._here is State.DEFERRED:
                self._ticket.state = State.CANCELLED
            return True
        if Feature.CANCEL not in self._configuration.handler.features:
            raise CallError(f"Handler {self._configuration.kind!r} cannot cancel jobs.")
        return bool(self._engine.cancel(self.id))

    @property
    def _engine(self) -> Any:
        return self._configuration.handler

    @property
    def _here(self) -> State | None:
        """The state of a job that is not with the engine; None when the engine has it, or may have it."""
        state = None if self._ticket is None else self._ticket.state
        return None if state is State.UNKNOWN else state

    def _ask(self, timeout: float | None) -> Any:
        """The result as a tree, from the engine."""
        self._require_results()
        if self._here is State.DEFERRED:
            raise ResultTimeout(f"Job {self.id} has not been sent yet: it is deferred.")
        if self._here is not None:
            raise NoResult(f"Job {self.id} has no result: it is {self._here}.")
        return self._engine.result(self.id, timeout)

    def _require_results(self) -> None:
        if Feature.RESULTS not in self._configuration.handler.features:
            raise NoResult(f"Handler {self._configuration.kind!r} keeps no results.")

    def __repr__(self) -> str:
        return f"<Job {self.name or ''} {self.id}>"


def job_of(ticket: Ticket) -> Job[Any]:
    """The handle on a call that was accepted."""
    return Job(ticket.id, ticket.configuration, ticket.call.name, ticket)


def job(id: str, handler: str = DEFAULT) -> Job[Any]:
    """The handle on a job by its id, also in another process. Nothing is asked before `state` or `result()` is."""
    return Job(id, configuration_of(handler))


class Jobs(list["Job[Any]"]):
    """The jobs of a batch, in the order of the calls."""


@contextlib.contextmanager
def batch() -> Iterator[Jobs]:
    """Collect calls and send them at the exit, a thousand a trip. An exception inside the block sends nothing.

    The jobs have their ids at once and are `deferred` until the exit. At most 10,000 calls. An inner batch joins the
    outer one. Awaited tasks are in the batch, other threads are not. Raises BatchError when a trip fails.
    """
    jobs = Jobs()
    with _runtime.batching() as collected:
        try:
            yield jobs
        finally:
            jobs.extend(job_of(ticket) for ticket in collected.tickets)


@dataclass(frozen=True)
class MapResult:
    """What became of a map: how many calls were `sent`, how many `failed` to be handed over, and the first of the
    errors they failed with (at most ten)."""

    sent: int
    failed: int
    errors: tuple[BackgroundedError, ...] = ()
