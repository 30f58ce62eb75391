"""What is a handler, and what does a worker tell the core?

This is the contract between the core and an engine's adapter. A handler hands calls over; everything beyond
`enqueue` is optional and is found by its feature. In the worker the adapter calls `backgrounded.perform(wire,
delivery)` and carries out, with its engine's own means, what the core decides: the result, `Again`, `Keep`, `Skip`,
or the method's own exception, which means *fail*.

A minimal handler:

    class Printer:
        protocol = 1
        features = frozenset({Feature.QUEUES})

        def enqueue(self, call):
            print(call.wire)
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final, Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlencode
from weakref import WeakMethod

from .calls import DEFAULT_PRIORITY, Call, Options
from .errors import (
    ConfigurationError,
    JobFailed,
    NoResult,
    PerformError,
    ResultTimeout,
    UnsupportedOption,
    type_name,
)

logger = logging.getLogger("backgrounded")

PROTOCOL: Final = 1
"""The version of this contract. It changes when an adapter written for it would stop working."""
ENQUEUE_TIMEOUT: Final = 2.0
"""Seconds that a caller waits for a broker or a store, where `enqueue_timeout` says nothing else."""
WORKER_PATIENCE: Final = 30.0
"""Seconds that a worker waits for them, also with what its jobs call. No person waits there, and what a worker gives up
it has to hand over again: if the broker has taken it all the same, the job runs once more than it should."""


class Feature(str, Enum):
    """What a handler keeps beyond "run this". What it does not name is refused at the call."""

    QUEUES = "queues"
    DELAY = "delay"
    PRIORITY = "priority"
    RETRY = "retry"
    RETRY_WAIT = "retry_wait"
    TIMEOUT = "timeout"
    EXPIRES = "expires"
    UNIQUE = "unique"
    RESULTS = "results"
    RESULT_TTL = "result_ttl"
    STATE = "state"
    CANCEL = "cancel"
    BULK = "bulk"
    NATIVE = "native"
    KEPT = "kept"
    WORKER = "worker"

    def __str__(self) -> str:
        return self.value


OPTION_FEATURES: Final[Mapping[str, Feature]] = {
    "queue": Feature.QUEUES,
    "delay": Feature.DELAY,
    "at": Feature.DELAY,
    "priority": Feature.PRIORITY,
    "retry": Feature.RETRY,
    "timeout": Feature.TIMEOUT,
    "expires": Feature.EXPIRES,
    "unique": Feature.UNIQUE,
    "result_ttl": Feature.RESULT_TTL,
    "native": Feature.NATIVE,
}
"""Which feature keeps which option. `after_commit` and `handler` are the core's own and need none."""


class State(str, Enum):
    """Where a job is. `unknown` means that the engine cannot tell (any more)."""

    DEFERRED = "deferred"
    DROPPED = "dropped"
    UNSENT = "unsent"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISCARDED = "discarded"
    ABORTED = "aborted"
    KEPT = "kept"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more by itself."""
        return self in _ENDED


_ENDED: Final = frozenset(
    {
        State.DROPPED,
        State.UNSENT,
        State.SUCCEEDED,
        State.FAILED,
        State.CANCELLED,
        State.EXPIRED,
        State.DISCARDED,
        State.ABORTED,
        State.KEPT,
    }
)


@dataclass(frozen=True)
class Guarantees:
    """What a handler promises, for machines. The defaults promise nothing.

    `delivery` is "at-least-once", "at-most-once" or "none"; `durable_publish` whether an accepted job survives the
    broker's death; `recovery_s` the seconds after which a job of a dead worker runs again (None: unknown or never);
    `clock` whether clocks that differ are harmless; `dedupe` whether handing the same id over twice runs it once.
    `notes` are sentences about the conditions.
    """

    delivery: str = "none"
    durable_publish: bool = False
    recovery_s: float | None = None
    clock: bool = False
    dedupe: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """What only the adapter knows about one run.

    `handler` is the configured alias that the job came by; `attempt` counts from 1 and counts failures of the method
    only; `deaths` counts workers that died on this job (None: the engine does not say); `deadline` is the moment, in
    seconds since the epoch, at which the engine stops the run.
    """

    handler: str = "default"
    queue: str | None = None
    attempt: int = 1
    deaths: int | None = None
    engine_id: str | None = None
    deadline: float | None = None
    redelivered: bool = False


class Verdict(Exception):
    """What the core decided about a run that did not succeed. Adapters catch its three kinds."""


class Again(Verdict):
    """Run the job again in so many `seconds` (0: at once). The cause is the error."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"again in {seconds:g} seconds")


class Keep(Verdict):
    """Set the job aside with its payload, without expiry, and do not run it again by itself.

    `reason` is a sentence for people, `code` a stable word for machines; the cause is the PerformError.
    """

    def __init__(self, reason: str, code: str = PerformError.code) -> None:
        self.reason = reason
        self.code = code
        super().__init__(reason)


class Skip(Verdict):
    """Acknowledge the job and do not run it: it ends in `state` (expired, cancelled, discarded or aborted)."""

    def __init__(self, state: str) -> None:
        self.state = State(state)
        if self.state not in _SKIPPED:
            raise ValueError(f"a job that was not run is expired, cancelled, discarded or aborted, not {state}")
        super().__init__(f"skipped: {self.state}")


_SKIPPED: Final = frozenset({State.EXPIRED, State.CANCELLED, State.DISCARDED, State.ABORTED})


@dataclass(frozen=True)
class Kept:
    """A job that was set aside: its id, the reason, and the wire as it came (a tree or bytes)."""

    id: str
    reason: str
    wire: Any = field(repr=False)
    name: str | None = None
    code: str = PerformError.code


def kept_ids(handler: Any) -> Iterable[str]:
    """The ids of the jobs that a handler has set aside, by its own `kept_ids` where it has one."""
    own = getattr(handler, "kept_ids", None)
    return (job.id for job in handler.kept()) if own is None else own()


class KeptQueue:
    """The jobs that were set aside in a queue of a broker that shows nothing: to look, all is taken out and put back.

    For an adapter, which has `_taken_out`. A job may be there twice, if a worker died just after it had put it aside.
    """

    def _taken_out(self) -> AbstractContextManager[Sequence[tuple[Any, Mapping[str, Any], Callable[[], object]]]]:
        """All of it, for a block, oldest first: a message with `id`, `wire` and `name`; the body it came in, with
        `reason` and `code`; and what removes it. The rest is put back when the block ends, or the process."""
        raise NotImplementedError

    def kept(self) -> list[Kept]:
        """The jobs that were set aside, oldest first; one for each id."""
        with self._taken_out() as found:
            kept = {
                message.id: Kept(message.id, str(body.get("reason")), message.wire, message.name, str(body.get("code")))
                for message, body, _ in found
            }
            return list(kept.values())

    @contextmanager
    def take(self, id: str) -> Iterator[Any]:
        """The message of a kept job, which is kept no more if the block succeeds. Raises ConfigurationError."""
        with self._taken_out() as found:
            mine = [item for item in found if item[0].id == id]
            if not mine:
                raise ConfigurationError(f"No job {id!r} is kept here.")
            yield mine[0][0]
            for _, _, remove in mine:
                remove()


@dataclass(frozen=True)
class Finding:
    """What `Handler.examine` found in the engine as it is set up now: what is so, and the way out.

    A `gap` makes something untrue that is promised; the rest is advice.
    """

    what: str
    way_out: str
    gap: bool = False


@runtime_checkable
class Handler(Protocol):
    """An object that hands jobs to one engine. It holds no state of a single call.

    `protocol` is the literal 1 on the class; `features` what it keeps; `enqueue` hands one call over and returns the
    engine's own id, or None. An engine that cannot be reached is an EnqueueError with the cause kept.

    Optional, found by feature: `needs: Mapping[Feature, str]` (what a worker must be started with for a feature),
    `guarantees: Guarantees`, `priority_levels: int`, `default_queue: str`, and the methods

        enqueue_many(calls) -> list[str | None]      BULK; raises BatchError
        state(id) -> State                           STATE
        result(id, timeout) -> tree                  RESULTS; raises JobFailed, ResultTimeout, NoResult
        cancel(id) -> bool                           CANCEL
        kept() -> Iterable[Kept], replay(id), forget(id)     KEPT
        kept_ids() -> Iterable[str]                          KEPT, where the payloads are much to read
        check(call) -> None                          refuse a call before it is sent, beyond its features
        worker_command(queues) -> list[str]          WORKER
        examine() -> Iterable[Finding]               any: ask the live engine, for `backgrounded doctor`

    All of them take our id. What `examine` raises is a finding, too: the engine cannot be reached.
    """

    protocol: ClassVar[int]
    features: frozenset[Feature]

    def enqueue(self, call: Call) -> str | None: ...


def kept_options(features: Sequence[Feature] | frozenset[Feature]) -> list[str]:
    """The names of the options that a handler with these features keeps."""
    return [option for option, feature in OPTION_FEATURES.items() if feature in features]


def says_nothing(option: str, options: Options) -> bool:
    """Whether an option asks for no more than its absence does."""
    return (option == "priority" and options.priority == DEFAULT_PRIORITY) or (option == "delay" and not options.delay)


def refuse_unkept(call: Call, handler: str, features: frozenset[Feature]) -> None:
    """As the core does it before, for a handler that knows its features only now. Raises UnsupportedOption."""
    for option in call.options.given():
        if OPTION_FEATURES.get(option) not in (None, *features) and not says_nothing(option, call.options):
            raise UnsupportedOption(option, handler, kept_options(features))


def take_from_url(url: str, names: Collection[str]) -> tuple[str, dict[str, Any]]:
    """A URL without these words of its query, and the words: the adapter's own, beside what is for the engine."""
    place, _, query = url.partition("?")
    words = parse_qsl(query, keep_blank_values=True)
    taken = {name: value for name, value in words if name in names}
    return put_into_url(place, [(name, value) for name, value in words if name not in names]), taken


def put_into_url(url: str, words: Iterable[tuple[str, object]]) -> str:
    """A URL with these words in its query, behind those that are there: what `take_from_url` takes apart."""
    query = urlencode(list(words))
    return url + ("&" if "?" in url else "?") * bool(query) + query


def check_seconds(handler: str, name: str, seconds: Any) -> float:
    """An argument of a handler that is a time; as text, too, as a URL has it. Raises ConfigurationError for what is no
    number above 0, or infinite."""
    try:
        found = positive(float(seconds) if isinstance(seconds, str) else seconds)
    except ValueError:
        found = None
    if found is None:
        raise ConfigurationError(f"{handler}: {name}: must be seconds above 0, got {seconds!r}.")
    return float(found)


def positive(value: Any) -> float | None:
    """A finite number above 0, as it may be believed of a message that anybody may have written; else None."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    return value if is_one else None


def after_fork(renew: Callable[[], None]) -> None:
    """Call a bound method in each child that this process forks, for as long as its object lives.

    What other threads held at that moment stays held in the child, where they are not: locks, places in a line.
    """
    found = WeakMethod(renew)

    def renew_there() -> None:
        renew = found()
        if renew is not None:
            renew()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew_there)


_PASSED_ON: Final = ("BACKGROUNDED_ALLOW", "BACKGROUNDED_APP", "BACKGROUNDED_URL")


def worker_settings() -> dict[str, str]:
    """What a worker that is started from here has to find in its environment, for a `worker_command`."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def warn_without_app() -> None:
    """Say so, if a worker that is started from here will know no code of the application."""
    if not os.environ.get("BACKGROUNDED_APP"):
        logger.warning(
            "BACKGROUNDED_APP is not set: the worker will know no code of the application, and keep each job. "
            "Set it to the modules to import, such as BACKGROUNDED_APP=shop.jobs."
        )


def with_settings(command: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """A command with these settings in its environment, as a `worker_command` gives it."""
    return ["env", *(f"{name}={value}" for name, value in settings.items()), *command] if settings else list(command)


def printable(text: object) -> str:
    """A text from a broker or a store for a line of a log: without line ends and control characters, and not long."""
    return "".join(char if char.isprintable() else "?" for char in str(text)[:300])


def not_reached(error: BaseException) -> bool:
    """Whether a client's error says that it was not connected to the server at all: then nothing can have arrived."""
    causes = [error, error.__cause__, error.__context__]
    return any(isinstance(cause, ConnectionRefusedError) or "connecting to" in str(cause) for cause in causes)


LONGEST_TRACEBACK: Final = 16_384


def failure_record(error: BaseException) -> dict[str, str]:
    """A failure as plain text, ready for any store: type, message, traceback (bounded, without locals)."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "type": type_name(error),
        "message": _message_of(error)[:LONGEST_TRACEBACK],
        "traceback": text[-LONGEST_TRACEBACK:],
    }


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be read)"


def outcome_from(id: str, stored: bytes | None) -> Any:
    """What was written down as JSON about the end of a job; None: nothing. Raises NoResult for what cannot be read."""
    try:
        return None if stored is None else json.loads(stored)
    except (TypeError, ValueError, RecursionError) as error:  # anybody may have written it
        raise _unreadable(id) from error


def _unreadable(id: str) -> NoResult:
    return NoResult(f"What is written down about the end of job {id} cannot be read.")


def result_of(id: str, state: State, outcome: Any) -> Any:
    """What `Handler.result` gives back, or raises, of a job that was found in this state.

    `outcome` is what the store has of its end: the result, the `failure_record`, or why it was kept, under "reason".
    Raises JobFailed; NoResult where it ended without a result or nothing is known of it; ResultTimeout before its end.
    """
    if state is State.SUCCEEDED:
        return outcome
    about: Mapping[str, Any] = outcome if isinstance(outcome, Mapping) else {}
    if state is State.FAILED and (about or outcome is None):
        raise failure_from(about)
    if state is State.FAILED:
        raise _unreadable(id)
    if state is State.UNKNOWN:
        raise NoResult(f"Nothing is known (any more) of job {id}.")
    if not state.ended:
        raise ResultTimeout(f"Job {id} has not ended: it is {state}.")
    reason = printable(about.get("reason") or "") if state is State.KEPT else ""
    raise NoResult(f"Job {id} has no result: it is {state}" + (f": {reason}" if reason else "."))


def wait_for_end(look: Callable[[], tuple[State, Any]], timeout: float | None) -> tuple[State, Any]:
    """What `look` finds when the job has ended, nothing is known of it, or the timeout (in seconds) is over.

    For a store that wakes nobody: it is asked after 10 ms, and then more and more rarely, down to twice a second.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    pause, longest = 0.01, 0.5
    while True:
        state, outcome = look()
        remaining = end - time.monotonic()
        if state.ended or state is State.UNKNOWN or remaining <= 0:
            return state, outcome
        time.sleep(min(pause, remaining))
        pause = min(pause * 1.5, longest)


def failure_from(record: Mapping[str, Any]) -> JobFailed:
    """The error to raise for a stored failure. Nothing is looked up by the names in it."""
    found = record.get("traceback")
    return JobFailed(str(record.get("type", "")), str(record.get("message", "")), None if found is None else str(found))
