"""Where do the call, the handler, the hooks and the worker meet?

On the caller's side `submit` turns a target, a method and arguments into a `Call` and hands it to the configured
handler. On the worker's side `perform` is the one door: it reads a wire, finds the target, runs the method and says
what shall happen next.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast

from ._configuration import (
    DEFAULT,
    Configuration,
    Hooks,
    Runtime,
    around,
    configuration_of,
    configured,
    listed,
    read_installed,
    runtime,
)
from .calls import NO_OPTIONS, Call, Options, Retry, new_id, now, worker_options
from .codec import Envelope
from .errors import (
    BadArguments,
    BatchError,
    CallError,
    ConfigurationError,
    Duplicate,
    EnqueueError,
    PerformError,
    Refused,
    SignatureChanged,
    TargetNotFound,
    TargetUnavailable,
)
from .handler import Again, Delivery, Feature, Handler, Keep, Skip, State, Verdict
from .references import Method, is_class, owner_of

logger = logging.getLogger("backgrounded")

H = TypeVar("H")

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
    batch = open_batch()
    if batch is None:
        deliver([ticket])
    else:
        batch.add(ticket)
    return ticket


def prepare(obj: Any, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Ticket:
    """Check everything that can be checked at the call, and encode it. Nothing is sent."""
    state = runtime()
    hooks = state.hooks
    plan = state.names.method(owner_of(obj), method)
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
    alias = configuration.alias
    call = Call(tree["id"], reference, method, plan.name, args, kwargs, options, headers, tree, created, alias)
    check = getattr(configuration.handler, "check", None)
    if check is not None:
        check(call)
    return Ticket(call, configuration, state=State.DEFERRED)


def _configuration_for(options: Options) -> Configuration:
    """Where a call goes: where it says, else where the job came from that makes it, else to the default."""
    running = _running.get()
    alias = options.handler or (DEFAULT if running is None else running.job.handler)
    if running is not None and running.fallback is not None and alias == running.job.handler:
        return configured(alias) or Configuration(alias, alias, running.fallback())
    return configuration_of(alias)


_TELLING: Final = frozenset({"class", "module", "built"})
"""References from which a worker can tell the readable name of a job before it has found the target."""


def _target_of(obj: Any, plan: Method, name: str) -> Any:
    """What the reference names: the class for class and static methods, else the object itself."""
    if plan.kind == "function":
        return obj
    if is_class(obj):
        if plan.kind == "instance":
            raise BadArguments(f"{plan.name} is a method of instances: call it on an object, not on the class.")
        return obj
    if name in _attributes_of(obj):
        raise CallError(f"{plan.name} is overridden on this one object: no worker could rebuild that.")
    return obj if plan.kind == "instance" else type(obj)


def _attributes_of(obj: Any) -> Mapping[str, Any]:
    """What stands in an object's own `__dict__`, past any `__getattribute__` of its class."""
    try:
        return cast(Mapping[str, Any], object.__getattribute__(obj, "__dict__"))
    except AttributeError:
        return {}


def _headers(state: Runtime, hooks: Hooks, name: str, options: Options) -> dict[str, Any]:
    if hooks.headers is None:
        return {}
    merged: dict[str, Any] = {}
    for found in reversed(hooks.headers(name=name, options=options)):
        merged.update(found)
    return state.codec.encode_headers(merged) if merged else {}


def deliver(tickets: Sequence[Ticket]) -> None:
    """Hand accepted calls over, all to the same handler, and note on the tickets what became of them."""
    hooks = runtime().hooks
    try:
        if hooks.enqueue is None:
            _send(tickets)
        else:
            calls = tuple(ticket.call for ticket in tickets)
            around(hooks.enqueue, lambda calls: _send(tickets), calls=calls)
    except Skip as skip:
        _settle(tickets, skip.state)
    except Duplicate as duplicate:
        _settle_duplicate(tickets[0], duplicate)
    except BaseException as error:
        _note_failure(tickets, error)
        if isinstance(error, EnqueueError):
            _tell_not_sent(hooks, tickets, error)
        raise


def _send(tickets: Sequence[Ticket]) -> None:
    """Give the calls to their handler. Written down here, at once: a hook that fails afterwards takes nothing back."""
    handler: Any = tickets[0].configuration.handler
    if len(tickets) == 1:
        engine_ids = [handler.enqueue(tickets[0].call)]
    else:
        engine_ids = handler.enqueue_many([ticket.call for ticket in tickets])
    for ticket, engine_id in zip(tickets, engine_ids, strict=True):
        ticket.engine_id, ticket.state = engine_id, None
        if logger.isEnabledFor(logging.INFO):
            logger.info("enqueued %s", ticket.call.name, extra=_extra(ticket))


def _settle(tickets: Iterable[Ticket], state: State) -> None:
    """Those that have not gone stay here, in this state."""
    for ticket in tickets:
        if ticket.state is State.DEFERRED:
            ticket.state = state


def _settle_duplicate(ticket: Ticket, duplicate: Duplicate) -> None:
    unique = ticket.call.options.unique
    if unique is None or unique.on_conflict == "raise":
        ticket.state = State.UNSENT
        raise duplicate
    ticket.existing_id, ticket.engine_id, ticket.state = duplicate.existing_id, None, None


def _note_failure(tickets: Sequence[Ticket], error: BaseException) -> None:
    """What became of each. What is no error of ours may come from the method itself, run inline: the handler knows."""
    if isinstance(error, BatchError):
        for ticket in tickets:
            if ticket.call.id in error.sent:
                ticket.state = None
        _settle((ticket for ticket in tickets if ticket.call.id in error.unknown), State.UNKNOWN)
    certain = isinstance(error, CallError) or (isinstance(error, EnqueueError) and not _is_uncertain(error))
    _settle(tickets, State.UNSENT if certain else State.UNKNOWN)


def _is_uncertain(error: EnqueueError) -> bool:
    return error.uncertain and not isinstance(error, BatchError)


def _tell_not_sent(hooks: Hooks, tickets: Sequence[Ticket], error: EnqueueError) -> None:
    lost = tuple(ticket.call for ticket in tickets if ticket.state in (State.UNSENT, State.UNKNOWN))
    if hooks.not_sent is not None and lost:
        try:
            hooks.not_sent(calls=lost, error=error)
        except Exception:
            logger.exception("a backgrounded_not_sent hook failed; the caller gets the error of the hand-over")


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
    """Calls that wait for the end of a `with batch()` block, in the thread that opened it."""

    def __init__(self, outer: Batch | None = None) -> None:
        self.outer = outer
        self.tickets: list[Ticket] = []
        self.thread = threading.get_ident()
        self.closed = False

    def __len__(self) -> int:
        return len(self.tickets) + (0 if self.outer is None else len(self.outer))

    def add(self, ticket: Ticket) -> None:
        if len(self) >= BATCH_LIMIT:
            raise CallError(
                f"A batch holds at most {BATCH_LIMIT:,} calls. For a stream of any length use later(f).map(items)."
            )
        self.tickets.append(ticket)

    def drop(self) -> None:
        """An exception ended the block: nothing of it is sent."""
        _settle(self.tickets, State.DROPPED)

    def send(self) -> None:
        """Hand over what was collected, or leave it to the outer batch."""
        if self.outer is None:
            deliver_all(self.tickets)
        else:
            self.outer.tickets.extend(self.tickets)


_batch: ContextVar[Batch | None] = ContextVar("backgrounded_batch", default=None)


def open_batch() -> Batch | None:
    """The batch that calls made here go into. A task that outlives it sends at once, and so does another thread, even
    one to which the context was copied."""
    batch = _batch.get()
    return None if batch is None or batch.closed or batch.thread != threading.get_ident() else batch


@contextlib.contextmanager
def batching() -> Iterator[Batch]:
    """Collect calls; send them at the exit. An inner one joins the outer; an exception inside sends nothing of it."""
    batch = Batch(outer=open_batch())
    token = _batch.set(batch)
    try:
        yield batch
    except BaseException:
        batch.drop()
        raise
    finally:
        batch.closed = True
        _batch.reset(token)
    batch.send()


def trips(tickets: Sequence[Ticket]) -> Iterator[list[Ticket]]:
    """Tickets in trips: of one handler, in order, at most a thousand; one by one where there is no bulk, or a key.

    What was cancelled meanwhile stays out.
    """
    by_handler: dict[int, list[Ticket]] = {}
    for ticket in tickets:
        if ticket.state is State.DEFERRED:
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
            _settle(tickets, State.UNSENT)
            raise BatchError(sent, unsent, unknown) from error
        except BaseException:
            _settle(tickets, State.UNSENT)
            raise


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
    limit: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Any:
    """Run the job in a wire, bytes or tree, and return its result as a JSON-safe tree. The one door of a worker.

    Raises `Again(seconds)`, `Keep(reason)` or `Skip(state)` of `backgrounded.handler`; anything else means *fail* and
    is the method's own exception. Without a delivery nothing is retried. `moment` is the time by the handler's clock;
    `fallback` makes a handler for nested calls where this process has none configured under the job's alias. `limit`
    makes what stands around a stretch of the run: it turns the engine's own word for "too long" into a TimeoutError, so
    that the retry policy means the same on every engine.
    """
    read_installed()
    try:
        with limit(), last_moment:
            load_app()
        state = runtime()
        hooks = state.hooks
        envelope = state.codec.read(wire)
        job = _describe(state, envelope, delivery or Delivery())
    except (PerformError, ConfigurationError) as error:
        logger.error("kept a job: %s", error, extra={"job_state": "kept", "job_code": error.code})
        raise Keep(str(error), error.code) from error
    except TimeoutError as error:  # before the run had begun: importing the application took too long
        with contextlib.suppress(PerformError):
            _raise_again(runtime().codec.read(wire), delivery, error)
        raise
    once = None if fallback is None else functools.cache(fallback)  # the calls of a batch go together
    tokens = _running.set(_Running(job, once)), _batch.set(None)
    started = time.perf_counter()
    outcome: State = State.SUCCEEDED
    cause: BaseException | None = None
    try:
        _check_runnable(envelope, delivery, now() if moment is None else moment)
        return _run(state, job, envelope, delivery, limit)
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
        _report(hooks, job, outcome, cause, time.perf_counter() - started)
        _running.reset(tokens[0])
        _batch.reset(tokens[1])


class LastMoment:
    """Stands inside of a limited stretch and does nothing: what another thread has set in this one arrives at the
    entry of its `__exit__`, if not before."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


last_moment: Final = LastMoment()


def _describe(state: Runtime, envelope: Envelope, delivery: Delivery) -> CurrentJob:
    return CurrentJob(
        id=envelope.id,
        name=_name_of(envelope),
        queue=envelope.options.get("queue") or delivery.queue,
        attempt=delivery.attempt,
        deadline=delivery.deadline,
        headers=state.codec.decode_headers(envelope.headers) if envelope.headers else {},
        handler=delivery.handler,
    )


def _name_of(envelope: Envelope) -> str:
    """The readable name of a job, before anything is looked up. For people only, and it never quotes a value."""
    ((kind, named),) = envelope.target.items()
    if kind not in _TELLING:
        return envelope.name or f"{kind}.{envelope.method}"
    owner: Any = named[0] if isinstance(named, list) and named else named
    is_name = isinstance(owner, str) and all(part.isidentifier() for part in owner.replace(":", ".").split("."))
    return f"{owner.replace(':', '.') if is_name else kind}.{envelope.method}"[:_LONGEST_NAME]


_LONGEST_NAME: Final = 1024


def _check_runnable(envelope: Envelope, delivery: Delivery | None, moment: float) -> None:
    expires = envelope.options.get("expires")
    if expires is not None and moment >= expires:
        raise Skip(State.EXPIRED)
    if delivery is not None and delivery.deaths is not None and delivery.deaths >= MOST_DEATHS:
        raise Keep(f"{delivery.deaths} workers died on this job.", "deaths")


def _run(
    state: Runtime,
    job: CurrentJob,
    envelope: Envelope,
    delivery: Delivery | None,
    limit: Callable[[], AbstractContextManager[object]],
) -> Any:
    """Run it and turn what went wrong into a verdict. This is the only place where one is made."""
    begun = False

    def run(job: CurrentJob) -> Any:
        with limit(), last_moment:
            return call()

    def call() -> Any:  # a frame of its own: a limit rings nowhere else
        nonlocal begun
        method = _find(state, envelope)
        begun = True  # from here on, a PerformError is one that the method itself has met
        return await_if_needed(method())

    hook = state.hooks.perform
    try:
        value = run(job) if hook is None else around(hook, run, job=job)
    except Verdict:
        raise
    except Exception as error:
        found = begun or not isinstance(error, PerformError)
        if found or isinstance(error, TargetUnavailable):
            _raise_again(envelope, delivery, error, filtered=found)
        if found:
            raise
        raise Keep(str(error), cast(PerformError, error).code) from error
    return _encode_result(state, job, value)


def _raise_again(envelope: Envelope, delivery: Delivery | None, error: Exception, *, filtered: bool = True) -> None:
    """Raise Again, if the policy in the wire gives the job another run after this error."""
    tree = envelope.options.get("retry")
    if tree is None or delivery is None:
        return
    policy = Retry(**tree)
    if not filtered:
        policy = replace(policy, on=(), give_up_on=())
    wait = policy.next_wait(error, delivery.attempt)
    if wait is not None:
        raise Again(wait) from error


def _encode_result(state: Runtime, job: CurrentJob, value: Any) -> Any:
    if value is None:
        return None
    tree = state.codec.encode(value, "result")
    state.codec.check_size(job.name, tree)
    return tree


def _find(state: Runtime, envelope: Envelope) -> Callable[[], Any]:
    """Find the target, admit the method and bind the arguments: what is left is to call it."""
    target = state.codec.decode_target(envelope.target, envelope.method)
    owner = owner_of(target)
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
    return functools.partial(method.function, *args, **kwargs)


def await_if_needed(value: Any) -> Any:
    """The value, or what it resolves to when it is a coroutine: in a loop of its own, also where one is running."""
    if not inspect.isawaitable(value):
        return value
    import asyncio  # here, not above: most applications that import this package never need it

    async def resolve() -> Any:
        return await value

    threads = _green_threads()
    if threads is None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(resolve())
        from concurrent.futures import ThreadPoolExecutor as threads
    import contextvars

    with threads(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, resolve()).result()


def _green_threads() -> Any:
    """Under gevent, what gives a thread of the system. Greenlets share one, and a thread runs one loop at a time."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return None
    return importlib.import_module("gevent.threadpool").ThreadPoolExecutor


def _report(hooks: Hooks, job: CurrentJob, outcome: State, cause: BaseException | None, seconds: float) -> None:
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
    if hooks.ended is not None:
        try:
            hooks.ended(job=job, state=outcome, error=cause, seconds=seconds)
        except Exception:
            logger.exception("a backgrounded_ended hook failed; the job's outcome stands", extra=extra)


_apps_loaded: list[str] = []
"""What BACKGROUNDED_APP said when all of it had been imported."""


def load_app() -> None:
    """Import the modules in BACKGROUNDED_APP, once. Raises TargetNotFound, so that jobs are kept until it is mended."""
    wanted = os.environ.get("BACKGROUNDED_APP", "")
    if [wanted] == _apps_loaded:
        return
    for module in listed("BACKGROUNDED_APP"):
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise TargetNotFound(
                f"BACKGROUNDED_APP={wanted}: the module {module} could not be imported ({type(error).__name__})."
            ) from error
    _apps_loaded[:] = [wanted]


def worker_handler(kind: type[H]) -> H | None:
    """The handler of this kind whose worker this process is, with BACKGROUNDED_APP imported. None: there is none.

    It is that of BACKGROUNDED_URL, as a `worker_command` sets it, whatever default the application configures; where
    that names another kind or nothing, it is the application's default. Raises TargetNotFound.
    """
    named = configured(DEFAULT)
    load_app()
    found = [one.handler for one in (named, configured(DEFAULT)) if one is not None]
    return next((handler for handler in found if isinstance(handler, kind)), None)
