"""How does one suite of promises run on any handler?

What stands under the tests of `contract.py`: the handler and its worker, the oracle, what is skipped and why. Tests
call through `send`, on the queue of a worker that the whole class shares; what needs a worker of its own starts one on
queues of its own.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

import pytest

import backgrounded
from backgrounded import Call, Job, State, UnsupportedOption, background
from backgrounded.handler import OPTION_FEATURES, Feature
from backgrounded.handlers.memory import MemoryHandler

from . import probe as probes
from .probe import Event, Probe

T = TypeVar("T", bound=Callable[..., Any])

LANE: Final = "contract"
"""The queue of the worker that the tests of a class share."""
PAUSE: Final = 0.01
"""Seconds between two looks at the oracle or at a state."""


# -- what a test needs


@dataclass(frozen=True)
class Needs:
    """What a test needs of a handler: `features`; that its jobs `run` at all; that they run in a `worker`.

    `options` of a call that shall be refused where the handler does not declare the first of the features.
    """

    features: tuple[Feature, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    run: bool = True
    worker: bool = False


_NEEDS: Final = "__contract_needs__"


def needs(*features: Feature, run: bool = True, worker: bool = False, **options: Any) -> Callable[[T], T]:
    """Say what a test needs. Where it is missing, the test is skipped with the reason; if `options` are given, only
    after a call with them was refused."""

    def mark(test: T) -> T:
        setattr(test, _NEEDS, Needs(features, options, run, worker))
        return test

    return mark


def keeps(handler: Any, option: str, value: Any) -> bool:
    """Whether a handler's features promise to keep this option."""
    if option == "retry" and value and getattr(value, "waits", False) and Feature.RETRY_WAIT not in handler.features:
        return False
    return option not in OPTION_FEATURES or OPTION_FEATURES[option] in handler.features


def promises_of(cls: type) -> dict[str, Any]:
    """The tests of the contract that a class subclasses, by name."""
    contract = next((base for base in cls.__mro__ if "__contract__" in vars(base)), None)
    if contract is None:
        return {}
    return {name: getattr(contract, name) for name in dir(contract) if name.startswith("test_")}


# -- what tests hold in hand


class Oracle:
    """The file that knows what ran, and waits for it."""

    def __init__(self, path: Path, contract: Frame) -> None:
        self.path = str(path)
        self._contract = contract
        self._patience = contract.deadline

    def events(self, what: str | None = None) -> list[Event]:
        """What has run so far, oldest first."""
        return probes.events(self.path, what)

    def wait(self, what: str, count: int = 1) -> list[Event]:
        """The events called `what`, once there are `count` of them; fails when the next one does not come in time.

        The deadline is that of one event: how many jobs an engine runs in a second is no promise.
        """
        found = self.events(what)

        def another() -> bool:
            known = len(found)
            found[:] = self.events(what)
            return len(found) > known

        while len(found) < count:
            self._contract.until(another, lambda: f"{count} x {what!r}, but saw {[e.what for e in self.events()]}")
        return found

    def wait_in_vain(self, what: str, count: int) -> None:
        """Wait for events whose absence is judged later; after one of these waits was in vain, there are no more."""
        end = time.monotonic() + self._patience
        while len(self.events(what)) < count:
            if time.monotonic() > end:
                self._patience = 0.0
                return
            time.sleep(PAUSE)

    def given(self, what: str) -> list[str]:
        """With what it ran, oldest first."""
        return [event.given for event in self.events(what)]


class Send:
    """`send(**options).note(1)` calls a method of the test's probe on the shared worker's queue."""

    def __init__(self, probe: Probe, queue: str | None) -> None:
        self.probe = probe
        self.queue = queue

    def __call__(self, **options: Any) -> Any:
        return self.to(self.probe, **options)

    def to(self, obj: Any, **options: Any) -> Any:
        """The same for another object, class or module."""
        if self.queue is not None:
            options.setdefault("queue", self.queue)
        return background(obj, **options)

    def later(self, function: Callable[..., Any]) -> Any:
        """The same for a function or bound method."""
        options: Any = {} if self.queue is None else {"queue": self.queue}
        return backgrounded.later(function, **options)


class Gate:
    """Keeps the shared worker busy until it is opened, so that what is called in the meantime has to wait."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def open(self) -> None:
        Path(self.path).touch()


class _Standing:
    """The worker that the tests of a class share: started for the first one, stopped after the last one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._handler: Any = None
        self.shared: dict[str, Any] = {}
        """What takes long, and is called once for several tests, by name."""

    def serve(self, contract: Frame, handler: Any) -> None:
        if self._handler is handler:
            return
        self.stop()
        self._stack.enter_context(contract.worker(handler, contract.lane_of(handler)))
        self._handler = handler

    def stop(self) -> None:
        self._handler = None
        self.shared = {}
        self._stack.close()


# -- the frame


class Frame:
    """What `HandlerContract` stands on; see there."""

    deadline: ClassVar[float] = 30.0
    lateness: ClassVar[float] = 20.0
    immediate: ClassVar[bool] = False
    runs: ClassVar[bool] = True
    many: ClassVar[int] = 1_100
    exempt: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        promised = promises_of(cls)
        if not promised:
            return
        for name, reason in cls.exempt.items():
            if name not in promised:
                raise TypeError(f"{cls.__name__}.exempt: the contract has no test {name!r}.")
            if not isinstance(reason, str) or not reason.strip():
                raise TypeError(f"{cls.__name__}.exempt: {name} needs a reason, a sentence for people.")
        for name, test in promised.items():
            if getattr(cls, name, None) is not test and name not in cls.exempt:
                raise TypeError(
                    f"{cls.__name__} overrides {name}, which is a promise to users. A promise that cannot be kept is "
                    f"named, with its reason, in {cls.__name__}.exempt."
                )

    # -- what the subclass gives

    @pytest.fixture
    def handler(self) -> Any:
        """The handler under test. With scope="class" (or wider) the tests of the class share one worker."""
        raise NotImplementedError(f"{type(self).__name__} must have a fixture `handler`.")

    def worker(self, handler: Any, *queues: str) -> AbstractContextManager[Any]:
        """A context in which the engine's real worker runs the jobs of these queues, one at a time.

        It is ready when the block begins and has ended when the block ends; jobs that were running are finished.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a context manager worker(handler, *queues).")

    def dead_handler(self) -> Any:
        """A handler whose engine is down. None: such a one cannot be made."""
        return None

    def environment(self, handler: Any) -> Mapping[str, str] | None:
        """The environment in which a fresh interpreter has this handler: {"BACKGROUNDED_URL": ...}, if there is one."""
        return None

    def worker_output(self) -> str | None:
        """All that workers have written and logged so far. None: it cannot be read."""
        return None

    # -- what tests use

    def lane_of(self, handler: Any) -> str:
        """The queue of the shared worker: one of its own, or the only one there is."""
        return LANE if Feature.QUEUES in handler.features else str(getattr(handler, "default_queue", "default"))

    def until(self, condition: Callable[[], bool], what: Callable[[], str] | str = "") -> None:
        """Wait for a condition; fail when the deadline has passed."""
        end = time.monotonic() + self.deadline
        while not condition():
            if time.monotonic() > end:
                waited = what if isinstance(what, str) else what()
                pytest.fail(f"waited {self.deadline:g} s for {waited or 'a condition'}{self._output()}")
            time.sleep(PAUSE)

    def _output(self) -> str:
        text = self.worker_output()
        return "" if not text else f"\n-- the workers' output (its end):\n{text[-6000:]}"

    def ends(self, job: Job[Any] | None, state: State, what: str = "the job") -> None:
        """Wait until a job has ended, and check how."""
        if job is None or Feature.STATE not in self._handler.features:
            return
        self.until(lambda: job.state.ended, lambda: f"{what} to end as {state}; it is {job.state}")
        assert job.state is state, f"{what} is {job.state}, not {state}{self._output()}"

    def fails(self, call: Callable[[], Job[Any]], error: type[BaseException] = Exception) -> Job[Any] | None:
        """Make a call whose job will fail; its handle. Where jobs run at the call, its error comes instead: None."""
        if not self.immediate:
            return call()
        with pytest.raises(error):
            call()
        return None

    def settle(self, send: Send, oracle: Oracle) -> None:
        """Wait until all that was due on the shared queue has run.

        What a run put back there to be run again at once has run too: where states can be asked, if the job was awaited
        (`ends`), else because everything has its turn twice.
        """
        for _ in range(1 if Feature.STATE in self._handler.features else 2):
            count = len(oracle.events("settled"))
            send.to(probes, priority=self._last()).settled(oracle.path)
            oracle.wait("settled", count + 1)

    def _last(self) -> int | None:
        """The lowest priority, where there are any: what waits runs first."""
        return 0 if Feature.PRIORITY in self._handler.features else None

    @contextlib.contextmanager
    def holding(self, send: Send, oracle: Oracle, tmp_path: Path) -> Iterator[Gate]:
        """The shared worker is busy inside the block, or until the gate is opened."""
        gate = Gate(tmp_path / f"gate-{uuid.uuid4().hex[:8]}")
        before = len(oracle.events("holding"))
        send().hold(gate.path)
        try:  # also where it is not awaited to its beginning: it would keep the worker from the next test
            oracle.wait("holding", before + 1)
            yield gate
        finally:
            gate.open()

    def doctored(self, call: Callable[[], Any], **changes: Any) -> Call:
        """The `Call` that a call makes, with other things in its tree, and not sent."""
        with backgrounded.using(MemoryHandler) as recorder:
            call()
        made: Call = cast(MemoryHandler, recorder).calls[0]
        return replace(made, tree={**made.tree, **changes})

    # -- fixtures

    @pytest.fixture(scope="class")
    @classmethod
    def standing(cls) -> Iterator[_Standing]:
        standing = _Standing()
        yield standing
        standing.stop()

    @pytest.fixture(autouse=True)
    def _in_frame(self, request: pytest.FixtureRequest, handler: Any) -> Iterator[None]:
        self._handler = handler
        name = request.function.__name__
        if name in self.exempt and getattr(type(self), name) is promises_of(type(self))[name]:
            pytest.skip(f"exempt: {self.exempt[name]}")
        getattr(handler, "guarantees", None)  # asks the application's own app, and with it the features are true
        with backgrounded.using(handler, name="second"), backgrounded.using(handler):
            self._check_needs(getattr(request.function, _NEEDS, Needs()), handler)
            yield

    def _check_needs(self, wanted: Needs, handler: Any) -> None:
        if wanted.options:
            self._check_refusals(wanted.options, handler)
        missing = [str(feature) for feature in wanted.features if feature not in handler.features]
        if missing:
            refused = " (refused at the call, as it must be)" if wanted.options else ""
            pytest.skip(f"the handler does not declare: {', '.join(missing)}{refused}")
        if wanted.run and not self.runs:
            pytest.skip("the handler runs nothing")
        if wanted.worker and self.immediate:
            pytest.skip("the handler runs jobs at the call: there is no worker, and nothing waits")

    def _check_refusals(self, options: Mapping[str, Any], handler: Any) -> None:
        """An option of a feature that the handler does not declare is refused at the call, by name."""
        for option, value in options.items():
            if not keeps(handler, option, value):
                with pytest.raises(UnsupportedOption, match=repr(option)) as refusal:
                    Probe("/nowhere").backgrounded(**{option: value}).note()
                assert refusal.value.option == option

    @pytest.fixture
    def oracle(self, tmp_path: Path) -> Oracle:
        return Oracle(tmp_path / "oracle.jsonl", self)

    @pytest.fixture
    def probe(self, oracle: Oracle) -> Probe:
        return Probe(oracle.path)

    @pytest.fixture
    def send(
        self,
        request: pytest.FixtureRequest,
        handler: Any,
        probe: Probe,
        standing: _Standing,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Send:
        """Calls on the shared worker's queue; the worker runs."""
        lane = self.lane_of(handler)
        queue = lane if Feature.QUEUES in handler.features else None
        if self.runs and not self.immediate:
            standing.serve(self, handler)
            self._begin(request, Oracle(tmp_path_factory.mktemp("early") / "oracle.jsonl", self), queue, standing)
        return Send(probe, queue)

    def _begin(self, request: pytest.FixtureRequest, oracle: Oracle, queue: str | None, standing: _Standing) -> None:
        """Call what takes long as soon as the worker is there, if its test will have its turn."""
        chosen = {item.originalname for item in request.session.items if getattr(item, "cls", None) is type(self)}  # type: ignore[attr-defined]  # items of classes are functions
        for name, begin in self.early().items():
            if name in chosen and name not in standing.shared and not self._lacks(name):
                standing.shared[name] = oracle, begin(Send(Probe(oracle.path), queue))

    def early(self) -> dict[str, Callable[[Send], Any]]:
        """The first halves of tests that take long, by the names of these tests."""
        return {}

    def _lacks(self, name: str) -> bool:
        wanted: Needs = getattr(getattr(self, name), _NEEDS, Needs())
        return not self._handler.features.issuperset(wanted.features)

    @pytest.fixture
    def queue(self) -> str:
        """The name of a queue that nobody else uses."""
        return f"q{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def other_queue(self) -> str:
        return f"r{uuid.uuid4().hex[:8]}"
