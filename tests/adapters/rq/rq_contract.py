"""How is the RQ adapter put to the contract? What `test_contract_rq.py` and `test_rq_bites.py` share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_rq import RQHandler
from rq import Worker
from rq.scheduler import RQScheduler

from processes import running
from servers import free_port

PRIORITIES = {8: "high", 2: "low"}


class RQContract(HandlerContract):
    """Workers are processes of RQ's own command, whose output goes to one file for the class."""

    serializer: ClassVar[str]
    output: ClassVar[Path]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RQHandler]:
        cls.output = tmp_path_factory.mktemp("rq") / "workers.log"
        handler = RQHandler(redis_url, serializer=cls.serializer, priorities=PRIORITIES)
        yield handler
        handler.connection.close()

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        raise NotImplementedError

    def worker(self, handler: RQHandler, *queues: str) -> AbstractContextManager[Any]:
        return rq_worker(self.command(handler, queues), handler, queues, self.output)

    def worker_output(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def dead_handler(self) -> RQHandler:
        return RQHandler(f"redis://127.0.0.1:{free_port()}/0", serializer=self.serializer)

    def environment(self, handler: RQHandler) -> Mapping[str, str]:
        return {"BACKGROUNDED_URL": f"rq+{handler.url}", "BACKGROUNDED_APP": "backgrounded.testing.probe"}


def rq_worker(
    command: Sequence[str], handler: RQHandler, queues: Sequence[str], output: Path
) -> AbstractContextManager[Any]:
    """A worker of RQ, ready when it is listed and its scheduler has the queues' locks.

    RQ (2.2 to 3.0) looks whether it was told to end, and is idle only then: what comes in between is heard after the
    next job. And a scheduler that it starts in the last second of the stop does not hear of it, and is waited for. So
    both are told again.
    """
    name = f"worker-{uuid.uuid4().hex[:8]}"
    at = command.index("worker") + 1

    def is_ready() -> bool:
        locks = [RQScheduler.get_locking_key(queue) for queue in queues]
        listed = name in (worker.name for worker in Worker.all(connection=handler.connection))
        return listed and handler.connection.exists(*locks) == len(locks)

    return running(
        [*command[:at], "--name", name, *command[at:]],
        environment={"BACKGROUNDED_APP": "backgrounded.testing.probe"},
        output=output,
        is_ready=is_ready,
        again=20,
    )


def plain_command(handler: RQHandler, queues: Sequence[str], *options: str) -> list[str]:
    """`rq worker` as an application uses it today."""
    levels = [level for queue in queues for level in (f"{queue}.high", queue, f"{queue}.low")]
    return ["rq", "worker", "--url", handler.url, "--with-scheduler", *options, "--", *levels]
