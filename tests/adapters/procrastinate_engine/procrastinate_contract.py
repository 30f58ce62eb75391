"""How is the Procrastinate adapter put to the contract? Workers are processes of Procrastinate's own command."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_procrastinate import ProcrastinateHandler

from processes import running
from servers import free_port

PROBE = {"BACKGROUNDED_APP": "backgrounded.testing.probe"}
HERE = Path(__file__).parent


class ProcrastinateContract(HandlerContract):
    """The output of the workers goes to files of the class."""

    deadline = 60.0
    folder: ClassVar[Path]
    url: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcrastinateHandler]:
        cls.folder, cls.url = tmp_path_factory.mktemp("procrastinate"), database
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cls.settings().items():
                patch.setenv(name, value)
            patch.syspath_prepend(HERE)
            handler = cls.make()
            yield handler
            handler.close()

    @classmethod
    def settings(cls) -> Mapping[str, str]:
        return PROBE

    @classmethod
    def make(cls) -> ProcrastinateHandler:
        return ProcrastinateHandler(cls.url)

    @contextmanager
    def worker(self, handler: ProcrastinateHandler, *queues: str) -> Iterator[Any]:
        with worker(handler.worker_command(queues), self.folder):
            yield

    def worker_output(self) -> str:
        return "".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))

    def dead_handler(self) -> ProcrastinateHandler:
        return ProcrastinateHandler(f"postgresql://postgres@127.0.0.1:{free_port()}/shop")

    def environment(self, handler: ProcrastinateHandler) -> Mapping[str, str]:
        return {**PROBE, "BACKGROUNDED_URL": f"procrastinate+{self.url}"}


def folders() -> str:
    """Where the application of these tests is found."""
    return os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])


@dataclass(frozen=True)
class Worker:
    """A worker that is ready; `log` is what it said."""

    process: Popen[bytes]
    path: Path

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")


@contextmanager
def worker(command: Sequence[str], folder: Path, **environment: str) -> Iterator[Worker]:
    """A worker inside of the block, ready when it says that it begins to look for jobs."""
    path = folder / f"{uuid.uuid4().hex[:8]}.log"
    with running(
        command,
        environment={**PROBE, "PYTHONPATH": folders(), **environment},
        output=path,
        is_ready=lambda: path.exists() and "Starting worker on" in path.read_text(),
    ) as process:
        yield Worker(process, path)
