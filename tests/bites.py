"""Does the contract bite? What puts a table of sabotages (`sabotage.py`) to the contract of its engine.

A test module has one line, `globals().update(bites(RQContract, rq_sabotages.TABLE))`, which makes these classes:

- TestBrokenCaller: all sabotages of the caller's side, one after the other, with one honest worker;
- TestBrokenWorker...: one class, and one worker, for each sabotage of that side;
- TestUnbrokenWorker, their control: a worker that is started as they are, and that nobody breaks.

Of the contract, each class has only the promises that its sabotages are found by. Where something is broken, a test
passes if the promise fails; `pytest -rP` shows how. The hooks for it are taken over by `conftest.py`. That the honest
caller keeps its promises is what the engine's `test_..._contract.py` shows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded.testing import probe

from sabotage import SABOTAGE, Sabotage
from waiting import eventually

BUGS = (AttributeError, ImportError, NameError, SyntaxError, TypeError)
"""What a sabotage raises that is itself written wrongly: then nothing has been found."""


def bites(contract: type, table: Mapping[str, Sabotage]) -> dict[str, type]:
    """The classes of tests for a table, by name."""
    caller = {name: sabotage for name, sabotage in table.items() if not sabotage.in_worker}
    worker = {name: sabotage for name, sabotage in table.items() if sabotage.in_worker}
    chosen = {"TestBrokenCaller": (BrokenCaller, caller), "TestUnbrokenWorker": (UnbrokenWorker, worker)}
    for name, sabotage in worker.items():
        chosen[f"TestBrokenWorker{name.title().replace('_', '')}"] = BrokenWorker, {name: sabotage}
    return {
        name: type(name, (base, contract), {"sabotages": sabotages, "__doc__": base.__doc__})
        for name, (base, sabotages) in chosen.items()
        if sabotages
    }


def finds(sabotage: Sabotage, test: str) -> bool:
    """Whether a test, or one of its forms, has to fail over a sabotage."""
    return test in {promise.partition("[")[0] for promise in sabotage.found_by}


class Chosen:
    """Before a contract: of its promises, those that some sabotages are found by."""

    sabotages: ClassVar[Mapping[str, Sabotage]] = {}

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        for sabotage in cls.sabotages.values():
            for promise in sabotage.found_by:
                assert hasattr(cls, promise.partition("[")[0]), f"{sabotage.name}: the contract has no {promise}"

    @classmethod
    def has(cls, test: str) -> bool:
        """Whether a test is one of them, or has a form that is."""
        return any(finds(sabotage, test) for sabotage in cls.sabotages.values())


class StartedToBreak(Chosen):
    """Workers that import what can break them."""

    breaks: ClassVar[str] = ""
    endings: ClassVar[ThreadPoolExecutor]
    ended: ClassVar[list[Future[None]]]

    @pytest.fixture(scope="module", autouse=True)
    @classmethod
    def _has_ended(cls) -> Iterator[None]:
        """The shared worker may take its time to end: the module waits for it, the next class does not."""
        cls.endings, cls.ended = ThreadPoolExecutor(), []
        yield
        cls.endings.shutdown()
        for ending in cls.ended:
            ending.result()

    @contextmanager
    def worker(self, handler: Any, *queues: str) -> Iterator[Any]:
        tables = {str(sys.modules[item.breaks.__module__].__file__) for item in self.sabotages.values()}
        folders = [str(Path(file).parent) for file in (__file__, *tables)]
        with ExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(SABOTAGE, self.breaks)
                patch.setenv("BACKGROUNDED_APP", "backgrounded.testing.probe,sabotage")
                patch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
                worker = stack.enter_context(super().worker(handler, *queues))  # type: ignore[misc] # the contract's
            yield worker
            if queues == (self.lane_of(handler),):  # type: ignore[attr-defined] # the contract's
                self.ended.append(self.endings.submit(stack.pop_all().close))


class Prepared:
    """Before a contract whose workers import their application, and with it what breaks them, at their first job: they
    have run one. Such a contract has a file for its workers' `output`."""

    output: ClassVar[Path]

    @contextmanager
    def worker(self, handler: Any, *queues: str) -> Iterator[Any]:
        with super().worker(handler, *queues) as worker:  # type: ignore[misc] # the contract's
            if SABOTAGE in os.environ:
                for queue in queues:
                    self._run_one(queue)
            yield worker

    def _run_one(self, queue: str) -> None:
        path = str(self.output.with_name(f"{queue}.jsonl"))
        backgrounded.background(probe, queue=queue).settled(path)
        eventually(lambda: probe.events(path))


class UnbrokenWorker(StartedToBreak):
    """The control: all of these promises are kept when nothing is broken."""


class Broken(Chosen):
    """Each promise has to fail over each of its sabotages."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        found = [item for item in self.sabotages.values() if finds(item, metafunc.function.__name__)]
        metafunc.parametrize("sabotage", found, ids=[item.name for item in found], indirect=True)

    @pytest.fixture(autouse=True)
    def sabotage(self, request: pytest.FixtureRequest, handler: Any) -> Iterator[Sabotage]:
        """What is broken during this test; on the caller's side, it is broken here."""
        sabotage: Sabotage = request.param
        if sabotage.within is not None:
            request.instance.deadline = sabotage.within
        with pytest.MonkeyPatch.context() as patch:
            if not sabotage.in_worker:
                sabotage.breaks(patch)
            yield sabotage


class BrokenCaller(Broken):
    """The caller's process is broken, and the workers are honest."""


class BrokenWorker(Broken, StartedToBreak):
    """The workers are broken, and the caller's process is honest."""

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        (sabotage,) = cls.sabotages.values()
        cls.breaks = f"{sabotage.breaks.__module__}:{sabotage.name}"


# -- the hooks


def pytest_pycollect_makeitem(collector: Any, name: str) -> list[Any] | None:
    """Leave out the promises that are not chosen."""
    cls = getattr(collector, "obj", None)
    is_one = isinstance(cls, type) and issubclass(cls, Chosen)
    return [] if is_one and name.startswith("test_") and not cls.has(name) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the forms that are not chosen."""
    items[:] = [item for item in items if _is_chosen(item)]


def _is_chosen(item: Any) -> bool:
    sabotage = item.callspec.params.get("sabotage") if hasattr(item, "callspec") else None
    if not isinstance(sabotage, Sabotage):
        return True
    forms = [promise.partition("[") for promise in sabotage.found_by]
    return any(item.originalname == promise and item.name.endswith(form) for promise, _, form in forms)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Turn the outcome round where something is broken."""
    sabotage = pyfuncitem.funcargs.get("sabotage")
    if not isinstance(sabotage, Sabotage):
        return (yield)
    try:
        yield
    except BUGS:
        raise
    except (Exception, pytest.fail.Exception) as error:
        if sabotage.within is None and str(error).startswith("waited"):
            raise  # for a machine that was too slow, or for what never comes: then the table must say so
        pyfuncitem.add_report_section("call", "found", f"{type(error).__name__}: {error}")  # pytest -rP shows it
        return True
    except pytest.skip.Exception as reason:
        pytest.fail(f"{sabotage.name} cannot be found by what is skipped: {reason}")
    pytest.fail(f"{sabotage.name} is not found by {pyfuncitem.name}", pytrace=False)
