"""How are the core's own handlers put to the contract? What their contract and its sabotages share."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.testing import HandlerContract


class MemoryContract(HandlerContract):
    """`memory`, run by a thread that calls `run()` again and again, as time goes by."""

    lateness = 10
    exempt: ClassVar[dict[str, str]] = {
        "test_a_retry_is_as_urgent_as_its_job": "run() runs what waited when it was called; what is tried again waits.",
        "test_a_retry_is_no_more_urgent_than_its_job": "As the other: what is tried again waits for the next run().",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls) -> MemoryHandler:
        return MemoryHandler()

    @contextlib.contextmanager
    def worker(self, handler: MemoryHandler, *queues: str) -> Iterator[None]:
        leave = threading.Event()

        def work() -> None:
            while not leave.is_set():
                with contextlib.suppress(BaseException):  # a job's final error is raised in run(), also a SystemExit
                    handler.run(*queues)
                leave.wait(0.002)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            leave.set()
            thread.join()
