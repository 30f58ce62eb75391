"""The application's own broker, with settings and an actor of its own."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import dramatiq
from dramatiq.middleware import AgeLimit, Retries, ShutdownNotifications, TimeLimit
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

PLACE = os.environ["DRAMATIQSHOP_BROKER"]

if PLACE.startswith("redis"):
    from dramatiq.brokers.redis import RedisBroker

    chance = int(os.environ.get("DRAMATIQSHOP_MAINTENANCE", "1000"))
    heartbeat = int(os.environ.get("DRAMATIQSHOP_HEARTBEAT", "60000"))
    broker: dramatiq.Broker = RedisBroker(
        url=PLACE, namespace="shop", maintenance_chance=chance, heartbeat_timeout=heartbeat
    )
else:
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    most = os.environ.get("DRAMATIQSHOP_PRIORITIES")
    broker = RabbitmqBroker(url=PLACE, confirm_delivery=True, max_priority=int(most) if most else None)

if "DRAMATIQSHOP_RESULTS" in os.environ:
    broker.add_middleware(Results(backend=RedisBackend(url=os.environ["DRAMATIQSHOP_RESULTS"]), store_results=True))

if "DRAMATIQSHOP_STRICT" in os.environ:  # what an application may want for its own actors
    strict = {
        AgeLimit: AgeLimit(max_age=1),
        TimeLimit: TimeLimit(time_limit=500, interval=100),
        ShutdownNotifications: ShutdownNotifications(notify_shutdown=True),
        Retries: Retries(max_retries=20, min_backoff=1, retry_when=lambda retries, error: retries < 20),
    }
    broker.middleware[:] = [strict.get(type(item), item) for item in broker.middleware]


class Monitor(dramatiq.Middleware):
    """Shows the message of a failure as Sentry's middleware does, which sends it away."""

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is not None:
            logging.getLogger("monitor").warning("failed: %s", json.dumps(message.asdict(), default=repr))


broker.add_middleware(Monitor())
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="shop", max_retries=1, min_backoff=100)
def greet(path: str) -> str:
    with open(path, "a") as file:  # noqa: PTH123 # as applications write it
        file.write("hello\n")
    return "hello"
