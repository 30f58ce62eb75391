"""A real server, real `celery worker` processes, and an application that has an app of its own."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any

import backgrounded
import pytest
from celery_contract import AGAIN, PROBE, is_ready

from processes import running
from servers import redis_server

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shop_url() -> Iterator[str]:
    """The broker and result backend of the application: a server that no contract shares."""
    with redis_server() as url:
        yield f"{url}/0"


@pytest.fixture(scope="session")
def shop(shop_url: str) -> Iterator[Any]:
    """The application's own Celery app, as its module makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERYSHOP_BROKER", shop_url)
        patch.setenv("CELERYSHOP_RESULTS", shop_url)
        patch.syspath_prepend(HERE)
        sys.modules.pop("celeryshop.celery", None)
        from celeryshop.celery import app

        yield app


@pytest.fixture
def handler(shop: Any) -> Iterator[Any]:
    with backgrounded.using("celery", app=shop) as handler:
        yield handler


@pytest.fixture(scope="session")
def start_worker(
    shop_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Worker]]:
    """Start `celery -A celeryshop.celery worker` with more options, for one job at a time."""
    folder = tmp_path_factory.mktemp("celery")

    def start(*options: str, **environment: str) -> AbstractContextManager[Worker]:
        return Worker(folder / f"{uuid.uuid4().hex[:8]}.log", shop_url, options, environment)

    return start


class Worker:
    """An unmodified worker of the application, inside of a `with` block; `log` is what it said."""

    def __init__(self, path: Path, url: str, options: tuple[str, ...], environment: dict[str, str]) -> None:
        self.path = path
        self.name = path.stem
        self.process: Popen[bytes]
        begin = environment.pop("before", "celery -A celeryshop.celery").split()
        command = [*begin, "worker", "-n", f"{self.name}@%h", "--concurrency", "1"]
        folders = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        given = {"BACKGROUNDED_APP": "celeryshop.jobs", "CELERYSHOP_BROKER": url, "CELERYSHOP_RESULTS": url}
        self._start = lambda: running(
            [
                *command,
                "--prefetch-multiplier",
                "1",
                "--without-mingle",
                "--without-gossip",
                "--loglevel",
                "INFO",
                *options,
            ],
            environment={"PYTHONPATH": folders, **PROBE, **given, **environment},
            output=path,
            is_ready=lambda: any(is_ready(line, self.name) for line in self.log.splitlines()),
            again=AGAIN,
        )

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""

    def __enter__(self) -> Worker:
        self._stack = ExitStack()
        self.process = self._stack.enter_context(self._start())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def shop_worker(start_worker: Callable[..., Any]) -> Iterator[Worker]:
    """The worker that most tests share, on the queues `shop` and `tasks`, as the application starts it today."""
    with start_worker("-Q", "shop,tasks", "--task-events") as worker:
        yield worker


@pytest.fixture
def oracle(tmp_path: Path) -> str:
    return str(tmp_path / "oracle.jsonl")
