"""Does the Huey adapter keep what every handler promises, in Huey's own consumers?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded_huey import HueyHandler
from huey import PriorityRedisHuey
from huey_contract import APPLICATIONS, HueyContract, SqliteContract, consumer
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry

from servers import free_port

pytestmark = pytest.mark.worker

ONE_EACH = "a queue is a Huey, and a consumer of Huey serves one: the test of this class asks for one command each"


class UrlContract(HueyContract):
    """Hueys made for a URL, in the consumers that `worker_command()` starts."""

    exempt: ClassVar[Mapping[str, str]] = {"test_the_worker_s_command_names_its_queues": ONE_EACH}

    def test_the_worker_s_command_names_its_queues(self, handler: HueyHandler, queue: str, other_queue: str) -> None:
        assert queue in handler.worker_command([queue])[-1]
        with pytest.raises(backgrounded.ConfigurationError, match=f"'{queue}'.*'{other_queue}'"):
            handler.worker_command([queue, other_queue])

    def environment(self, handler: HueyHandler) -> Mapping[str, str]:
        return {"BACKGROUNDED_URL": self.url_of(handler), "BACKGROUNDED_APP": "backgrounded.testing.probe"}

    def url_of(self, handler: HueyHandler) -> str:
        settings = dict(word.partition("=")[::2] for word in handler.worker_command() if "=" in word)
        return settings["BACKGROUNDED_URL"]


class TestSqliteUrl(UrlContract, SqliteContract):
    """On a file."""


@pytest.mark.slow
class TestRedisUrl(UrlContract):
    """On a server of Redis."""

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HueyHandler]:
        cls.output = tmp_path_factory.mktemp("huey") / "consumers.log"
        handler = HueyHandler(redis_url)
        yield handler
        handler.close()

    def dead_handler(self) -> HueyHandler:
        return HueyHandler(f"redis://127.0.0.1:{free_port()}/0")


class TestApplicationsHuey(HueyContract):
    """The Huey of an application, on Redis with Huey's pickles, in the consumer that the application starts."""

    url: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HueyHandler]:
        cls.output = tmp_path_factory.mktemp("huey") / "consumers.log"
        cls.url = f"{redis_url}?socket_timeout=60"  # as the page on Huey has it: no job is lost to a busy machine
        huey = PriorityRedisHuey("hueyshop", url=cls.url)
        yield HueyHandler(huey=huey)
        huey.storage.pool.disconnect()

    def worker(self, handler: HueyHandler, *queues: str) -> AbstractContextManager[Any]:
        command = ["huey_consumer", "-k", "process", "-w", "1", "-g", "TERM", "hueyshop.jobs.huey"]
        return consumer(command, self.output, HUEYSHOP_REDIS=self.url)

    def environment(self, handler: HueyHandler) -> Mapping[str, str]:
        url = "huey://hueyshop.jobs:huey"
        return {"BACKGROUNDED_URL": url, "HUEYSHOP_REDIS": self.url, "PYTHONPATH": str(APPLICATIONS)}

    def dead_handler(self) -> HueyHandler:
        pool = ConnectionPool.from_url(f"redis://127.0.0.1:{free_port()}/0", retry=Retry(NoBackoff(), 0))
        return HueyHandler(huey=PriorityRedisHuey("dead", connection_pool=pool))
