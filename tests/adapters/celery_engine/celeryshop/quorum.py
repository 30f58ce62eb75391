"""An app on quorum queues of RabbitMQ, for which Celery 5.5 and later delays messages by RabbitMQ's own means."""

from __future__ import annotations

import os

from celery import Celery
from kombu import Exchange, Queue

app = Celery("celeryshop.quorum", broker=os.environ["CELERYSHOP_BROKER"], backend=os.environ["CELERYSHOP_RESULTS"])
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_default_queue="quorum",
    task_default_queue_type="quorum",
    task_default_exchange="quorum",
    task_default_exchange_type="topic",
    task_default_routing_key="quorum",
    task_queues=[
        Queue(name, Exchange(name, type="topic"), routing_key=name, queue_arguments={"x-queue-type": "quorum"})
        for name in ("quorum", "video-quorum")
    ],
)
