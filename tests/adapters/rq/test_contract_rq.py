"""Does the RQ adapter keep what every handler promises, in RQ's own workers?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import backgrounded
import pytest
import rq.connections
from backgrounded import Retry
from backgrounded.testing.probe import Probe, describe, events, values
from backgrounded_rq import RQHandler
from rq_contract import PRIORITIES, RQContract, plain_command, rq_worker

pytestmark = pytest.mark.worker


class TestPlainWorker(RQContract):
    """An unmodified `rq worker`: RQ's pickle serializer, RQ's own job class, a fork for each job."""

    serializer = "pickle"
    deadline = 90.0  # each job is a fork that imports everything: on a busy machine this is a matter of seconds

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return plain_command(handler, queues)


class TestOurWorkerCommand(RQContract):
    """What `worker_command()` says: JSON, and a job class that runs our function only."""

    serializer = "json"
    deadline = 90.0

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

    @pytest.mark.skipif(
        not hasattr(rq.connections, "get_connection_kwargs"),
        reason="the SpawnWorker of this RQ writes redis-py's settings into a script: a SyntaxError with redis-py 8",
    )
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
