"""How is the Dramatiq adapter put to the contract? What the tests here share: a real worker, and when it is ready."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded.testing.frame import Oracle, Send
from backgrounded_dramatiq import DramatiqHandler

from processes import running
from servers import free_port
from waiting import eventually

HERE = Path(__file__).parent
PROBE = {"BACKGROUNDED_APP": "backgrounded.testing.probe"}
SETTLED = "backgrounded.testing.probe.settled succeeded"
READY = "Worker process is ready for action."


class DramatiqContract(HandlerContract):
    """Workers are processes of Dramatiq's own command, with one thread; their output goes to one file."""

    deadline = 60.0
    output: ClassVar[Path]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DramatiqHandler]:
        cls.output = tmp_path_factory.mktemp("dramatiq") / "workers.log"
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
    def make(cls, url: str) -> DramatiqHandler:
        return DramatiqHandler(url, processes=1, threads=1)

    def worker(self, handler: DramatiqHandler, *queues: str) -> AbstractContextManager[Any]:
        return dramatiq_worker(handler, queues, self.output)

    def worker_output(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def settle(self, send: Send, oracle: Oracle) -> None:
        """Dramatiq's first process writes down what the others have said a moment later: that of the marker last."""
        said = self.worker_output().count(SETTLED)
        super().settle(send, oracle)
        eventually(lambda: self.worker_output().count(SETTLED) > said)

    def dead_handler(self) -> DramatiqHandler:
        return DramatiqHandler(f"redis://127.0.0.1:{free_port()}/0")

    def environment(self, handler: DramatiqHandler) -> Mapping[str, str] | None:
        return {**PROBE, "BACKGROUNDED_URL": f"dramatiq+{handler.url}"}


def shop_on(broker: str, results: str | None = None, **more: str) -> dict[str, str]:
    """The environment of an application that has its broker and its results there."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    found = {**PROBE, "DRAMATIQSHOP_BROKER": broker, "PYTHONPATH": path, **more}
    return found if results is None else {**found, "DRAMATIQSHOP_RESULTS": results}


def dramatiq_worker(
    handler: DramatiqHandler, queues: Sequence[str], output: Path, **environment: str
) -> AbstractContextManager[Any]:
    """The worker of `worker_command()`, ready when it says so itself."""
    before = _readies(output)
    return running(
        handler.worker_command(queues),
        environment={**PROBE, **environment},
        output=output,
        is_ready=lambda: _readies(output) > before,
    )


def _readies(output: Path) -> int:
    return output.read_text(errors="replace").count(READY) if output.exists() else 0


def for_pika(url: str) -> str:
    """A URL of the default virtual host: kombu writes it with two slashes at the end, pika without any."""
    return url.removesuffix("//")
