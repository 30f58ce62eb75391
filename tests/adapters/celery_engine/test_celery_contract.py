"""Does the Celery adapter keep what every handler promises, in Celery's own workers?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from backgrounded_celery import CeleryHandler
from celery import Celery
from celery_contract import PROBE, CeleryContract

from servers import BUSY, free_port, rabbitmq

pytestmark = pytest.mark.worker


def shop_on(broker: str, results: str) -> Mapping[str, str]:
    """The environment of an application that has its broker and its results there."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**PROBE, "CELERYSHOP_BROKER": broker, "CELERYSHOP_RESULTS": results, "PYTHONPATH": path}


def fresh_shop() -> CeleryHandler:
    """A handler on the application's app, whose module is imported anew at the first use."""
    sys.modules.pop("celeryshop.celery", None)  # of another class, with another broker
    return CeleryHandler("celeryshop.celery:app", enqueue_timeout=BUSY)


class TestOurApp(CeleryContract):
    """An app made from a URL, and what `worker_command()` says."""


@pytest.mark.slow
class TestAppWithoutResults(CeleryContract):
    """An application's own app that never heard of us, and that has no result backend."""

    @classmethod
    def settings(cls, url: str) -> Mapping[str, str]:
        return shop_on(url, "")

    @classmethod
    def make(cls, url: str) -> CeleryHandler:
        return fresh_shop()

    def environment(self, handler: CeleryHandler) -> Mapping[str, str] | None:
        return {"BACKGROUNDED_URL": "celery://celeryshop.celery:app"}


class TestRabbitMQ(CeleryContract):
    """The application's own app on RabbitMQ, with queues that have priorities, and results in Redis."""

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryHandler]:
        cls.output = tmp_path_factory.mktemp("celery") / "workers.log"
        with rabbitmq() as node, pytest.MonkeyPatch.context() as patch:
            for name, value in shop_on(node.url, redis_url).items():
                patch.setenv(name, value)
            patch.setenv("CELERYSHOP_PRIORITIES", "yes")
            handler = fresh_shop()
            yield handler
            handler.close()

    def dead_handler(self) -> CeleryHandler:
        dead = f"amqp://127.0.0.1:{free_port()}//"
        return CeleryHandler(app=Celery("dead", broker=dead, set_as_current=False))

    def environment(self, handler: CeleryHandler) -> Mapping[str, str] | None:
        return {"BACKGROUNDED_URL": "celery://celeryshop.celery:app"}
