"""Where do the call, the handler, the hooks and the worker meet?

On the caller's side `submit` turns a target, a method and arguments into a `Call` and hands it to the configured
handler. On the worker's side `perform` is the one door: it reads a wire, finds the target, runs the method and says
what shall happen next.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final, cast

from ._configuration import DEFAULT, Configuration, Hooks, Runtime, around, configuration_of, configured, listed, runtime
from .calls import NO_OPTIONS, Call, Options, Retry, new_id, now, worker_options
from .codec import Envelope
from .errors import (
    BadArguments,
    BatchError,
    CallError,
    Duplicate,
    EnqueueError,
    PerformError,
    Refused,
    SignatureChanged,
    TargetNotFound,
    TargetUnavailable,
)
from .handler import Again, Delivery, Feature, Handler, Keep, Skip, State
from .references import Method

logger = logging.getLogger("backgrounded")

TRIP: Final = 1_000
"""Calls in one trip of a batch or a map."""
BATCH_LIMIT: Final = 10_000
MOST_DEATHS: Final = 3
"""A job that has killed this many workers is set aside."""


# -- the caller's side


@dataclass
class Ticket:
    """A call that has been accepted, and what became of its hand-over. `state` is None once the engine has it."""

    call: Call
    configuration: Configuration
    engine_id: str | None = None
    state: State | None = None
    existing_id: str | None = None

    @property
    def id(self) -> str:
        return self.existing_id or self.call.id


def submit(obj: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Ticket:
    """Hand one call over, or put it into the open batch. Raises CallError before, EnqueueError while sending."""
    ticket = prepare(obj, method, args, kwargs, options)
    batch = _batch.get()
    if batch is None:
        deliver([ticket])
    else:
        batch.add(ticket)
    return ticket


def prepare(obj: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Ticket:
    """Check everything that can be checked at the call, and encode it. Nothing is sent."""
    state = runtime()
    hooks = state.hooks
    plan = state.names.method(obj if isinstance(obj, (type, ModuleType)) else type(obj), method)
    target = _target_of(obj, plan, method)
    plan.check_arguments(args, kwargs)
    options = options.over(plan.declared)
    configuration = _configuration_for(options)
    options = configuration.accept(options)
    created = now()
    headers = _headers(state, hooks, plan.name, options)
    reference = state.codec.encode_target(target)
    args_tree, kwargs_tree, size = state.codec.encode_call(args, kwargs)
    tree: dict[str, Any] = {"v": 1, "id": new_id(), "target": reference, "method": method, "at": created}
    if not reference.keys() & _TELLING:
        tree["name"] = plan.name
    if args_tree:
        tree["args"] = args_tree
    if kwargs_tree:
        tree["kwargs"] = kwargs_tree
    if headers:
        tree["headers"] = headers
    if options is not NO_OPTIONS and (needed := worker_options(options, created)):
        tree["options"] = needed
    state.codec.check_size(plan.name, tree, size)
    call = Call(tree["id"], reference, method, plan.name, args, kwargs, options, headers, tree, created, configuration.alias)
    check = getattr(configuration.handler, "check", None)
    if check is not None:
        check(call)
    return Ticket(call, configuration, state=State.DEFERRED)


def _configuration_for(options: Options) -> Configuration:
    """Where a call goes: where it says, else where the job came from that makes it, else to the default."""
    running = _running.get()
    alias = options.handler or (DEFAULT if running is None else running.job.handler)
    if running is not None and running.fallback is not None and configured(alias) is None:
        return Configuration(alias, alias, running.fallback())
    return configuration_of(alias)


_TELLING: Final = frozenset({"class", "module", "built"})
"""References from which a worker can tell the readable name of a job before it has found the target."""


def _target_of(obj: Any, plan: Method, name: str) -> Any:
    """What the reference names: the class for class and static methods, else the object itself."""
    if plan.kind == "function":
        return obj
    if plan.kind == "instance":
        if isinstance(obj, type):
            raise BadArguments(f"{plan.name} is a method of instances: call it on an object, not on the class.")
        if name in getattr(obj, "__dict__", ()):
            raise CallError(f"{plan.name} is overridden on this one object: no worker could rebuild that.")
        return obj
    return obj if isinstance(obj, type) else type(obj)


def _headers(state: Runtime, hooks: Hooks, name: str, options: Options) -> dict[str, Any]:
    if hooks.headers is None:
        return {}
    merged: dict[str, Any] = {}
    for found in reversed(hooks.headers(name=name, options=options)):
        merged.update(found or {})
    return {key: state.codec.encode(value, f"headers[{key!r}]") for key, value in merged.items()}


def deliver(tickets: Sequence[Ticket]) -> None:
    """Hand accepted calls over, all to the same handler, and note on the tickets what became of them."""
    configuration = tickets[0].configuration
    calls = [ticket.call for ticket in tickets]
    hooks = runtime().hooks
    try:
        if hooks.enqueue is None:
            engine_ids = _send(configuration, calls)
        else:
            engine_ids = around(
                hooks.enqueue, lambda calls, send: send(calls), calls=calls, send=lambda some: _send(configuration, some)
            )
    except Skip as skip:
        for ticket in tickets:
            ticket.state = skip.state
        return
    except Duplicate as duplicate:
        _settle_duplicate(tickets[0], duplicate)
        return
    except BaseException as error:
        _note_failure(tickets, error)
        if hooks.not_sent is not None and isinstance(error, EnqueueError):
            hooks.not_sent(calls=calls, error=error)
        raise
    for ticket, engine_id in zip(tickets, engine_ids):
        ticket.engine_id, ticket.state = engine_id, None
        logger.info("enqueued %s", ticket.call.name, extra=_extra(ticket))


def _send(configuration: Configuration, calls: Sequence[Call]) -> list[str | None]:
    if len(calls) > 1:
        return list(cast(Any, configuration.handler).enqueue_many(calls))
    return [configuration.handler.enqueue(calls[0])]


def _settle_duplicate(ticket: Ticket, duplicate: Duplicate) -> None:
    unique = ticket.call.options.unique
    if unique is None or unique.on_conflict == "raise":
        ticket.state = State.UNSENT
        raise duplicate
    ticket.existing_id, ticket.engine_id, ticket.state = duplicate.existing_id, None, None


def _note_failure(tickets: Sequence[Ticket], error: BaseException) -> None:
    sent = frozenset(error.sent) if isinstance(error, BatchError) else frozenset()
    unknown = frozenset(error.unknown) if isinstance(error, BatchError) else frozenset()
    uncertain = isinstance(error, EnqueueError) and not isinstance(error, BatchError) and error.uncertain
    for ticket in tickets:
        if ticket.call.id in sent:
            ticket.state = None
        elif uncertain or ticket.call.id in unknown:
            ticket.state = State.UNKNOWN
        else:
            ticket.state = State.UNSENT


def _extra(ticket: Ticket) -> dict[str, Any]:
    call = ticket.call
    return {
        "job_id": call.id,
        "job_name": call.name,
        "job_queue": call.options.queue,
        "job_handler": call.handler,
    }


# -- many calls


class Batch:
    """Calls that wait for the end of a `with batch()` block."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def add(self, ticket: Ticket) -> None:
        if len(self.tickets) >= BATCH_LIMIT:
            raise CallError(
                f"A batch holds at most {BATCH_LIMIT:,} calls. For a stream of any length use later(f).map(items)."
            )
        self.tickets.append(ticket)

    def drop_after(self, position: int) -> None:
        """Forget what was added after `position`: an exception ended the block."""
        for ticket in self.tickets[position:]:
            ticket.state = State.DROPPED
        del self.tickets[position:]


_batch: ContextVar[Batch | None] = ContextVar("backgrounded_batch", default=None)


def in_batch() -> bool:
    """Whether calls made here wait for the end of a batch."""
    return _batch.get() is not None


@contextlib.contextmanager
def batching() -> Iterator[Batch]:
    """Collect calls; send them at the exit. An inner one joins the outer; an exception inside sends nothing of it."""
    outer = _batch.get()
    batch = Batch() if outer is None else outer
    start = len(batch.tickets)
    token = _batch.set(batch)
    try:
        yield batch
    except BaseException:
        batch.drop_after(start)
        raise
    finally:
        _batch.reset(token)
    if outer is None:
        deliver_all(batch.tickets)


def trips(tickets: Sequence[Ticket]) -> Iterator[list[Ticket]]:
    """Tickets in trips: of one handler, in order, at most a thousand; one by one where there is no bulk, or a key."""
    by_handler: dict[int, list[Ticket]] = {}
    for ticket in tickets:
        by_handler.setdefault(id(ticket.configuration.handler), []).append(ticket)
    for group in by_handler.values():
        bulk = Feature.BULK in group[0].configuration.handler.features
        trip: list[Ticket] = []
        for ticket in group:
            alone = not bulk or ticket.call.options.unique is not None
            if trip and (alone or len(trip) == TRIP):
                yield trip
                trip = []
            trip.append(ticket)
            if alone:
                yield trip
                trip = []
        if trip:
            yield trip


def deliver_all(tickets: Sequence[Ticket]) -> None:
    """Hand over many calls. A trip that fails raises BatchError, which says what became of each."""
    for trip in trips(tickets):
        try:
            deliver(trip)
        except EnqueueError as error:
            sent = [ticket.id for ticket in tickets if ticket.state is None]
            unknown = [ticket.id for ticket in tickets if ticket.state is State.UNKNOWN]
            unsent = [ticket.id for ticket in tickets if ticket.state in (State.UNSENT, State.DEFERRED)]
            _mark_unsent(tickets)
            raise BatchError(sent, unsent, unknown) from error
        except BaseException:
            _mark_unsent(tickets)
            raise


def _mark_unsent(tickets: Iterable[Ticket]) -> None:
    for ticket in tickets:
        if ticket.state is State.DEFERRED:
            ticket.state = State.UNSENT


# -- the worker's side


@dataclass(frozen=True)
class CurrentJob:
    """The run that is going on: what a method may know about the job that called it.

    `attempt` counts from 1; `deadline` is when the engine will stop the run, in seconds since the epoch; `handler` is
    the alias the job came by.
    """

    id: str
    name: str
    queue: str | None
    attempt: int
    deadline: float | None
    headers: Mapping[str, Any] = field(repr=False)
    handler: str = DEFAULT


@dataclass(frozen=True)
class _Running:
    job: CurrentJob
    fallback: Callable[[], Handler] | None


_running: ContextVar[_Running | None] = ContextVar("backgrounded_job", default=None)


def current_job() -> CurrentJob | None:
    """The job that is running here, or None outside of one."""
    running = _running.get()
    return None if running is None else running.job


def perform(
    wire: bytes | str | Mapping[str, Any],
    delivery: Delivery | None = None,
    *,
    moment: float | None = None,
    fallback: Callable[[], Handler] | None = None,
) -> Any:
    """Run the job in a wire, bytes or tree, and return its result as a JSON-safe tree. The one door of a worker.

    Raises `Again(seconds)`, `Keep(reason)` or `Skip(state)` of `backgrounded.handler`; anything else means *fail* and
    is the method's own exception. Without a delivery nothing is retried. `moment` is the time by the handler's clock;
    `fallback` makes a handler for nested calls where this process has none configured under the job's alias.
    """
    try:
        load_app()
        state = runtime()
        envelope = state.codec.read(wire)
    except PerformError as error:
        logger.error("kept a job: %s", error, extra={"job_state": "kept", "job_code": error.code})
        raise Keep(str(error), error.code) from error
    job = _describe(state, envelope, delivery)
    token = _running.set(_Running(job, fallback))
    started = time.perf_counter()
    outcome, cause = State.SUCCEEDED, None
    try:
        _check_runnable(envelope, delivery, now() if moment is None else moment)
        return _run(state, job, envelope, delivery)
    except Skip as skip:
        outcome = skip.state
        raise
    except Again as again:
        outcome, cause = State.SCHEDULED, again.__cause__
        raise
    except Keep as keep:
        outcome, cause = State.KEPT, keep.__cause__
        raise
    except BaseException as error:
        outcome, cause = State.FAILED, error
        raise
    finally:
        _report(state, job, outcome, cause, time.perf_counter() - started)
        _running.reset(token)


def _describe(state: Runtime, envelope: Envelope, delivery: Delivery | None) -> CurrentJob:
    delivery = delivery or Delivery()
    return CurrentJob(
        id=envelope.id,
        name=_name_of(envelope),
        queue=envelope.options.get("queue") or delivery.queue,
        attempt=delivery.attempt,
        deadline=delivery.deadline,
        headers=state.codec.decode(envelope.headers, "headers") if envelope.headers else {},
        handler=delivery.handler,
    )


def _name_of(envelope: Envelope) -> str:
    """The readable name of a job, before anything is looked up. For people only."""
    if envelope.name is not None:
        return envelope.name
    named = next(iter(envelope.target.values()))
    owner = named[0] if isinstance(named, list) and named else named
    return f"{str(owner).replace(':', '.')}.{envelope.method}"


def _check_runnable(envelope: Envelope, delivery: Delivery | None, moment: float) -> None:
    expires = envelope.options.get("expires")
    if expires is not None and moment >= expires:
        raise Skip(State.EXPIRED)
    if delivery is not None and delivery.deaths is not None and delivery.deaths >= MOST_DEATHS:
        raise Keep(f"{delivery.deaths} workers died on this job.", "deaths")


def _run(state: Runtime, job: CurrentJob, envelope: Envelope, delivery: Delivery | None) -> Any:
    """Run it and turn what went wrong into a verdict. This is the only place where one is made."""
    try:
        hook = state.hooks.perform
        if hook is None:
            value = _invoke(state, envelope)
        else:
            value = around(hook, lambda job, run: run(), job=job, run=lambda: _invoke(state, envelope))
    except (Skip, Keep, Again):
        raise
    except TargetUnavailable as error:
        wait = _wait(envelope, delivery, error, filtered=False)
        if wait is None:
            raise Keep(str(error), error.code) from error
        raise Again(wait) from error
    except PerformError as error:
        raise Keep(str(error), error.code) from error
    except Exception as error:
        wait = _wait(envelope, delivery, error)
        if wait is None:
            raise
        raise Again(wait) from error
    return _encode_result(state, job, value)


def _wait(
    envelope: Envelope, delivery: Delivery | None, error: Exception, *, filtered: bool = True
) -> float | None:
    """Seconds until the next run, or None: there is none."""
    tree = envelope.options.get("retry")
    if tree is None or delivery is None:
        return None
    policy = Retry(**tree)
    if not filtered:
        policy = replace(policy, on=(), give_up_on=())
    return policy.next_wait(error, delivery.attempt)


def _encode_result(state: Runtime, job: CurrentJob, value: Any) -> Any:
    if value is None:
        return None
    tree = state.codec.encode(value, "result")
    state.codec.check_size(job.name, tree)
    return tree


def _invoke(state: Runtime, envelope: Envelope) -> Any:
    """Find the target, bind the arguments, call the method, wait for it if it is a coroutine."""
    target = state.codec.decode_target(envelope.target)
    owner = target if isinstance(target, (type, ModuleType)) else type(target)
    method = state.names.admitted(owner, envelope.method)
    args, kwargs = state.codec.decode_arguments(envelope.args, envelope.kwargs)
    try:
        method.check_arguments(tuple(args), kwargs)
    except BadArguments as error:
        raise SignatureChanged(f"The arguments do not fit {method.name}{method.signature}.") from error
    if method.kind == "instance":
        if target is owner:
            raise Refused(f"{method.name} is a method of instances, and the wire names the class.")
        args = [target, *args]
    elif method.kind == "class":
        args = [owner, *args]
    return await_if_needed(method.function(*args, **kwargs))


def await_if_needed(value: Any) -> Any:
    """The value, or what it resolves to when it is a coroutine: in a loop of its own, also where one is running."""
    if not inspect.isawaitable(value):
        return value
    import asyncio  # here, not above: most applications that import this package never need it

    async def resolve() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(resolve())
    import concurrent.futures
    import contextvars

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, resolve()).result()


def _report(state: Runtime, job: CurrentJob, outcome: State, cause: BaseException | None, seconds: float) -> None:
    level = {State.KEPT: logging.ERROR, State.FAILED: logging.WARNING}.get(outcome, logging.INFO)
    extra = {
        "job_id": job.id,
        "job_name": job.name,
        "job_queue": job.queue,
        "job_handler": job.handler,
        "job_attempt": job.attempt,
        "job_state": str(outcome),
        "job_seconds": seconds,
        "job_error": None if cause is None else type(cause).__name__,
    }
    reason = f": {cause}" if isinstance(cause, PerformError) else ""
    logger.log(level, "%s %s (attempt %d)%s", job.name, outcome, job.attempt, reason, extra=extra)
    hook = state.hooks.ended
    if hook is not None:
        try:
            hook(job=job, state=outcome, error=cause, seconds=seconds)
        except Exception:
            logger.exception("a backgrounded_ended hook failed; the job's outcome stands", extra=extra)


_apps_loaded: str | None = None


def load_app() -> None:
    """Import the modules in BACKGROUNDED_APP, once. Raises TargetNotFound, so that jobs are kept until it is mended."""
    global _apps_loaded
    wanted = os.environ.get("BACKGROUNDED_APP", "")
    if _apps_loaded == wanted:
        return
    for module in listed("BACKGROUNDED_APP"):
        try:
            importlib.import_module(module)
        except Exception as error:
            raise TargetNotFound(
                f"BACKGROUNDED_APP={wanted}: the module {module} could not be imported ({type(error).__name__})."
            ) from error
    _apps_loaded = wanted

