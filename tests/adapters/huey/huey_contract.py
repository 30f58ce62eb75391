"""How is the Huey adapter put to the contract? Consumers are processes of Huey's own command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_huey import HueyHandler

from processes import running
from waiting import eventually

APPLICATIONS = Path(__file__).parent
"""Where the applications of these tests can be imported from."""


class HueyContract(HandlerContract):
    """The output of the consumers goes to one file for the class."""

    output: ClassVar[Path]
    deadline = 60.0

    def command(self, handler: HueyHandler, queue: str) -> list[str]:
        return handler.worker_command([queue])

    @contextlib.contextmanager
    def worker(self, handler: HueyHandler, *queues: str) -> Iterator[Any]:
        """A consumer serves one queue."""
        with ExitStack() as stack:
            for queue in queues:
                stack.enter_context(consumer(self.command(handler, queue), self.output))
            yield

    def worker_output(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class SqliteContract(HueyContract):
    """Hueys made for the URL of a file, in the consumers that `worker_command()` starts."""

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HueyHandler]:
        folder = tmp_path_factory.mktemp("huey")
        cls.output = folder / "consumers.log"
        handler = HueyHandler(f"sqlite:///{folder}/jobs.db")
        yield handler
        handler.close()

    def dead_handler(self) -> HueyHandler:
        return HueyHandler("sqlite:////nowhere/at/all/jobs.db")


@contextlib.contextmanager
def consumer(command: Sequence[str], output: Path, **environment: str) -> Iterator[Any]:
    """A `huey_consumer`, ready when it has begun to listen to signals, the last thing that it does at its start."""
    settings = {
        "BACKGROUNDED_APP": "backgrounded.testing.probe",
        "PYTHONPATH": os.pathsep.join([str(APPLICATIONS), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    with running(command, environment=settings, output=output, is_ready=lambda: True) as process:
        eventually(lambda: process.poll() is not None or _listens_to_signals(process.pid))
        assert process.poll() is None, output.read_text()
        yield process


def _listens_to_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> 14 & 1)  # SIGTERM is signal 15
