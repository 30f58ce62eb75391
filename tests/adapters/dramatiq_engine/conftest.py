"""A real server, real `dramatiq` processes, and an application that has a broker of its own."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import backgrounded
import dramatiq
import pytest
from dramatiq_contract import HERE, READY, shop_on

from processes import children, running
from servers import redis_server


@pytest.fixture(scope="session")
def shop_url() -> Iterator[str]:
    """The broker of the application: a server that no contract shares."""
    with redis_server() as url:
        yield f"{url}/0"


@pytest.fixture(scope="module")
def shop(shop_url: str) -> Iterator[dramatiq.Broker]:
    """The application's own broker, as its module makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shop_on(shop_url).items():
            patch.setenv(name, value)
        patch.syspath_prepend(HERE)
        sys.modules.pop("dramatiqshop.broker", None)
        from dramatiqshop.broker import broker

        yield broker
        dramatiq.set_broker(None)  # type: ignore[arg-type] # as it was


@pytest.fixture
def handler(shop: dramatiq.Broker) -> Iterator[Any]:
    with backgrounded.using("dramatiq", broker=shop) as handler:
        yield handler


@pytest.fixture(scope="session")
def start_worker(
    shop_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Worker]]:
    """Start `dramatiq dramatiqshop.app` with more options, one process and one thread unless they say otherwise."""
    folder = tmp_path_factory.mktemp("dramatiq")

    def start(*options: str, **environment: str) -> AbstractContextManager[Worker]:
        given = {**shop_on(shop_url), "BACKGROUNDED_APP": "dramatiqshop.jobs", **environment}
        return Worker(folder / f"{uuid.uuid4().hex[:8]}.log", options, given)

    return start


class Worker:
    """An unmodified worker of the application, inside of a `with` block; `log` is what it said."""

    def __init__(self, path: Path, options: tuple[str, ...], environment: dict[str, str]) -> None:
        self.path = path
        self.process: Popen[bytes]
        begin = environment.pop("before", "dramatiq dramatiqshop.app").split()
        self._start = lambda: running(
            [*begin, "--processes", "1", "--threads", "1", *options],
            environment=environment,
            output=path,
            is_ready=lambda: READY in self.log,
        )

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""

    def kill(self) -> None:
        """End all of its processes at once, and let none of them say anything."""
        for pid in (self.process.pid, *children(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Worker:
        self._stack = ExitStack()
        self.process = self._stack.enter_context(self._start())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def shop_worker(start_worker: Callable[..., Any]) -> Iterator[Worker]:
    """The worker that most tests share, as the application starts it today; it says all that it can."""
    with start_worker("--verbose") as worker:
        yield worker


@pytest.fixture
def oracle(tmp_path: Path) -> str:
    return str(tmp_path / "oracle.jsonl")
