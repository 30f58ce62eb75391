"""Does the Dramatiq adapter keep what every handler promises, in Dramatiq's own workers?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping

import dramatiq
import pytest
from backgrounded_dramatiq import DramatiqHandler
from dramatiq_contract import HERE, DramatiqContract, for_pika, shop_on

from servers import BUSY, free_port, rabbitmq

pytestmark = pytest.mark.worker

SHOP = {"BACKGROUNDED_URL": "dramatiq://dramatiqshop.broker:broker"}


def fresh_shop() -> DramatiqHandler:
    """A handler on the application's broker, whose module is imported anew at the first use."""
    sys.modules.pop("dramatiqshop.broker", None)  # of another class, with another broker
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    importlib.invalidate_caches()
    return DramatiqHandler("dramatiqshop.broker:broker", processes=1, threads=1, enqueue_timeout=BUSY)


class TestOurBroker(DramatiqContract):
    """A broker made from a URL, and what `worker_command()` says."""


@pytest.mark.slow
class TestBorrowedBroker(DramatiqContract):
    """An application's own broker on Redis, as its module makes it, with Dramatiq's defaults."""

    @classmethod
    def settings(cls, url: str) -> Mapping[str, str]:
        return {**shop_on(url), **SHOP}

    @classmethod
    def make(cls, url: str) -> DramatiqHandler:
        return fresh_shop()

    def environment(self, handler: DramatiqHandler) -> Mapping[str, str] | None:
        return SHOP


class OnRabbit(DramatiqContract):
    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DramatiqHandler]:
        cls.output = tmp_path_factory.mktemp("dramatiq") / "workers.log"
        with rabbitmq() as node, pytest.MonkeyPatch.context() as patch:
            handler = cls.on(for_pika(node.url), redis_url, patch)
            yield handler
            handler.close()

    @classmethod
    def on(cls, url: str, redis_url: str, patch: pytest.MonkeyPatch) -> DramatiqHandler:
        raise NotImplementedError

    def dead_handler(self) -> DramatiqHandler:
        return DramatiqHandler(f"amqp://guest:guest@127.0.0.1:{free_port()}")


class TestRabbitMQ(OnRabbit):
    """A broker of ours on RabbitMQ, with what is known of jobs in a Redis."""

    @classmethod
    def on(cls, url: str, redis_url: str, patch: pytest.MonkeyPatch) -> DramatiqHandler:
        for name, value in shop_on(url).items():
            patch.setenv(name, value)
        return DramatiqHandler(url, store=redis_url, processes=1, threads=1, enqueue_timeout=BUSY)


@pytest.mark.slow
class TestRabbitMQAlone(OnRabbit):
    """The application's own broker on RabbitMQ, without a Redis: fewer features."""

    exempt = {  # noqa: RUF012 # a class variable of the contract's
        "test_a_job_is_stopped_at_its_timeout_and_says_which": "it counts its own markers, of which there are two "
        "where states cannot be asked; the class above passes it"
    }

    @classmethod
    def on(cls, url: str, redis_url: str, patch: pytest.MonkeyPatch) -> DramatiqHandler:
        for name, value in {**shop_on(url), **SHOP}.items():
            patch.setenv(name, value)
        return fresh_shop()

    def environment(self, handler: DramatiqHandler) -> Mapping[str, str] | None:
        return SHOP


@pytest.fixture(autouse=True, scope="module")
def _no_broker_stays() -> Iterator[None]:
    yield
    dramatiq.set_broker(None)  # type: ignore[arg-type] # as it was
