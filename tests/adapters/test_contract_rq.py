"""Does the RQ adapter keep what every handler promises, in RQ's own workers?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded import Retry
from backgrounded.testing import HandlerContract
from backgrounded.testing.probe import Probe, describe, events, values
from backgrounded_rq import RQHandler
from processes import running
from rq import Worker
from rq.scheduler import RQScheduler

from servers import free_port

pytestmark = pytest.mark.worker

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
    """A worker of RQ, ready when it is listed and its scheduler has the queues' locks."""
    name = f"worker-{uuid.uuid4().hex[:8]}"

    def is_ready() -> bool:
        locks = [RQScheduler.get_locking_key(queue) for queue in queues]
        listed = name in (worker.name for worker in Worker.all(connection=handler.connection))
        return listed and handler.connection.exists(*locks) == len(locks)

    return running(
        [*command, "--name", name],
        environment={"BACKGROUNDED_APP": "backgrounded.testing.probe"},
        output=output,
        is_ready=is_ready,
    )


def plain_command(handler: RQHandler, queues: Sequence[str], *options: str) -> list[str]:
    """`rq worker` as an application uses it today."""
    levels = [level for queue in queues for level in (f"{queue}.high", queue, f"{queue}.low")]
    return ["rq", "worker", "--url", handler.url, "--with-scheduler", *options, *levels]


class TestPlainWorker(RQContract):
    """An unmodified `rq worker`: RQ's pickle serializer, RQ's own job class, a fork for each job."""

    serializer = "pickle"

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return plain_command(handler, queues)


class TestOurWorkerCommand(RQContract):
    """What `worker_command()` says: JSON, and a job class that runs our function only."""

    serializer = "json"

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return handler.worker_command(queues)


@pytest.mark.slow
class TestSimpleWorker(RQContract):
    """Without a fork: the jobs run in the worker's own process, which has to live on."""

    serializer = "pickle"

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return plain_command(handler, queues, "--worker-class", "rq.SimpleWorker")


class TestSpawnWorker:
    """A fresh interpreter for each job: five jobs a second, so these are the outlines of the contract only."""

    def test_a_job_runs_fails_and_is_tried_again_in_processes_of_their_own(
        self, redis_url: str, tmp_path: Path
    ) -> None:
        handler = RQHandler(redis_url, priorities=PRIORITIES)
        probe, path = Probe(str(tmp_path / "oracle.jsonl")), str(tmp_path / "oracle.jsonl")
        samples = values()
        command = plain_command(handler, ["spawned"], "--worker-class", "rq.SpawnWorker")
        with backgrounded.using(handler), rq_worker(command, handler, ["spawned"], tmp_path / "worker.log"):
            good = probe.backgrounded(queue="spawned").give(samples)
            bad = probe.backgrounded(queue="spawned", retry=1).fail(None, message="as asked")
            later = probe.backgrounded(queue="spawned", delay=0.5, retry=Retry(1, wait=0.1)).fail(1, "once")
            assert describe(good.result(60)) == describe(samples)
            assert str(bad.exception(60)) == "backgrounded.testing.probe.ProbeError: as asked"
            assert later.result(60) == 2
        ran = events(path, "give") + events(path, "fail")
        assert [event.attempt for event in events(path, "fail") if event.job_id == bad.id] == [1, 2]
        assert len(ran) == 5
        assert len({event.pid for event in ran}) == 5
