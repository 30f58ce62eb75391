"""Do the core's own handlers keep what every handler promises?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
from backgrounded.handlers.inline import InlineHandler
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.handlers.null import NullHandler
from backgrounded.handlers.thread import ThreadHandler
from backgrounded.testing import HandlerContract

from local_contracts import MemoryContract


class Logged(HandlerContract):
    """The log is what a worker writes that is a thread of this process."""

    @pytest.fixture(autouse=True)
    def _log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog

    def worker_output(self) -> str:
        return "\n".join(f"{record.getMessage()} {vars(record)}" for record in self._caplog.records)


class TestMemory(Logged, MemoryContract):
    pass


class TestThread(Logged):
    lateness = 10

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls) -> Iterator[ThreadHandler]:
        handler = ThreadHandler(queues=[])
        yield handler
        handler.close()

    @contextlib.contextmanager
    def worker(self, handler: ThreadHandler, *queues: str) -> Iterator[None]:
        with handler.serving(*queues):
            yield


class TestInline(Logged):
    immediate = True

    @pytest.fixture
    def handler(self) -> InlineHandler:
        return InlineHandler()


class TestNull(Logged):
    runs = False

    @pytest.fixture
    def handler(self) -> NullHandler:
        return NullHandler()


def test_memory_keeps_every_feature_but_a_worker() -> None:
    assert {str(feature) for feature in MemoryHandler().features ^ set(type(next(iter(MemoryHandler().features))))} == {
        "worker"
    }
