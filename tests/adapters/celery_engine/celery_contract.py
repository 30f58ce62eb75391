"""How is the Celery adapter put to the contract? What the tests here share: a real worker, and when it is ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_celery import CeleryHandler

from processes import running
from servers import free_port

PROBE = {"BACKGROUNDED_APP": "backgrounded.testing.probe"}
AGAIN = 20.0
"""Seconds after which the pool's process of a worker is told to end, too. Celery 5.7 that is told in the moment when a
job ends has been seen to wait for it: 60 s in a test, and 20 s with a task of its own, until it was killed."""


class CeleryContract(HandlerContract):
    """Workers are processes of Celery's own command, with one process for jobs; their output goes to one file."""

    deadline = 60.0
    output: ClassVar[Path]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryHandler]:
        cls.output = tmp_path_factory.mktemp("celery") / "workers.log"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cls.settings(redis_url).items():
                patch.setenv(name, value)
            handler = cls.make(redis_url)
            yield handler
            handler.close()

    @classmethod
    def settings(cls, url: str) -> Mapping[str, str]:
        return PROBE

    @classmethod
    def make(cls, url: str) -> CeleryHandler:
        return CeleryHandler(url)

    def worker(self, handler: CeleryHandler, *queues: str) -> AbstractContextManager[Any]:
        return celery_worker(handler, queues, self.output)

    def worker_output(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def dead_handler(self) -> CeleryHandler:
        return CeleryHandler(f"redis://127.0.0.1:{free_port()}/0")

    def environment(self, handler: CeleryHandler) -> Mapping[str, str] | None:
        return {**PROBE, "BACKGROUNDED_URL": f"celery+{handler.url}"}


def celery_worker(
    handler: CeleryHandler, queues: Sequence[str], output: Path, *options: str, **environment: str
) -> AbstractContextManager[Any]:
    """The worker of `worker_command()`, one job at a time; ready when it says so itself."""
    command = handler.worker_command(queues)
    name = command[command.index("--hostname") + 1].partition("@")[0]
    quick = ["--concurrency", "1", "--without-mingle", "--without-gossip", "--loglevel", "INFO"]
    return running(
        [*command, *quick, *options],
        environment={**PROBE, **environment},
        output=output,
        is_ready=lambda: output.exists() and any(is_ready(line, name) for line in output.read_text().splitlines()),
        again=AGAIN,
    )


def is_ready(line: str, name: str) -> bool:
    return f"{name}@" in line and line.endswith("ready.")
