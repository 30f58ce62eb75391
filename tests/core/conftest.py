"""What does each test of the core start from? A fresh state, and an environment that says nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import backgrounded
import pytest
from backgrounded._configuration import runtime
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.handlers.thread import ThreadHandler

import shop.jobs
import shop.models  # noqa: F401  # a worker finds what has opted in once the application is loaded


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("BACKGROUNDED_")]:
        monkeypatch.delenv(name)
    backgrounded.reset()
    yield
    with contextlib.suppress(backgrounded.ConfigurationError):  # some tests leave an environment that is an error
        for configuration in runtime().configurations.values():
            if isinstance(configuration.handler, ThreadHandler):
                configuration.handler.close()
    backgrounded.reset()


@pytest.fixture
def memory() -> MemoryHandler:
    """The default handler: records calls, runs them when a test says so."""
    return backgrounded.configure("memory")  # type: ignore[return-value]
