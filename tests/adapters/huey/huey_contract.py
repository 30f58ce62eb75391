"""How is the Huey adapter put to the contract? Consumers are processes of Huey's own command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_huey import HueyHandler

from processes import running

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


def consumer(command: Sequence[str], output: Path, **environment: str) -> AbstractContextManager[Any]:
    """A `huey_consumer`, ready when it has begun to listen to signals, the last thing that it does at its start."""
    return running(
        command,
        environment={
            "BACKGROUNDED_APP": "backgrounded.testing.probe",
            "PYTHONPATH": os.pathsep.join([str(APPLICATIONS), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        output=output,
        is_ready=_all_listen,
    )


def _all_listen() -> bool:
    try:
        return all(map(_listens_to_signals, _consumers()))
    except (FileNotFoundError, ProcessLookupError):  # another one has just ended
        return False


def _consumers() -> list[int]:
    """The consumers that this process has started, also those that are still on their way there."""
    listed = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    children = [int(child) for line in listed for child in line]
    return [child for child in children if b"huey_consumer" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _listens_to_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> 14 & 1)  # SIGTERM is signal 15
