"""The Celery app of an application that has its queues on RabbitMQ."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("anyshop.on_rabbitmq", broker=os.environ["ANYSHOP_BROKER"], backend=os.environ["ANYSHOP_RESULTS"])
