"""A real server, real `rq worker` processes, and the file in which their application writes what happened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded_rq import RQHandler
from redis import Redis
from rqtools import Worker

from servers import redis_server


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rq")


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def url(base_url: str) -> str:
    return f"{base_url}/0"


@pytest.fixture(scope="session")
def oracle(folder: Path) -> Path:
    path = folder / "happened"
    path.touch()
    os.environ["RQSHOP_LOG"] = str(path)
    return path


@pytest.fixture
def starts(oracle: Path) -> Callable[[str], list[tuple[int, float]]]:
    """The starts of the jobs with this tag so far: attempt and moment."""

    def of(tag: str) -> list[tuple[int, float]]:
        lines = [line.split() for line in oracle.read_text().splitlines()]
        return [(int(line[2]), float(line[3])) for line in lines if line[:2] == ["start", tag]]

    return of


@pytest.fixture(scope="session")
def start_worker(folder: Path, oracle: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker with a command; all of them are ended with the session."""
    started: list[Worker] = []

    def start(command: list[str], **env: str | None) -> Worker:
        worker = Worker(command, folder, f"worker-{len(started)}", **env)
        started.append(worker)
        return worker.ready()

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.process.terminate()
    for worker in started:
        worker.stop()


@pytest.fixture(scope="session")
def plain_worker(start_worker: Callable[..., Worker], url: str) -> Worker:
    """RQ's own worker, as anybody starts it, on the queue `plain`."""
    return start_worker(["rq", "worker", "--url", url, "--with-scheduler", "plain"])


@pytest.fixture(scope="session")
def safe_worker(start_worker: Callable[..., Worker], url: str, oracle: Path) -> Worker:
    """The worker of worker_command(), on the queue `safe`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKGROUNDED_APP", "rqshop.jobs")
        return start_worker(RQHandler(url, serializer="json").worker_command(["safe"]))


@pytest.fixture(params=["plain", "safe"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of workers, by the name of the queue that they listen to; the worker runs."""
    request.getfixturevalue(f"{request.param}_worker")
    return str(request.param)


@pytest.fixture
def handler(url: str) -> Iterator[Any]:
    with backgrounded.using("rq", url=url) as handler:
        yield handler


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as connection:
        yield connection


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A name of this test's own, for its jobs."""
    return f"{request.node.name}-{time.monotonic_ns()}".replace(" ", "_")
