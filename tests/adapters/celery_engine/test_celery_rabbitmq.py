"""What is different on RabbitMQ, beyond what the contract sees?"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import BatchError, EnqueueError, Retry, UnsupportedOption
from backgrounded.testing.probe import events
from backgrounded_celery import CeleryHandler
from celery import Celery
from celery.signals import before_task_publish
from celery_contract import celery_worker
from celeryshop.jobs import Item
from celerytools import starts
from kombu import Exchange, Queue

from cutting_proxy import CuttingProxy, cutting_proxy
from servers import BUSY, RabbitMQ, freeze, rabbitmq
from slow_retry import attempts_on_a_slow
from waiting import eventually

pytestmark = pytest.mark.worker
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    with rabbitmq() as node:
        yield node


@pytest.fixture
def handler(node: RabbitMQ, shop_url: str) -> Iterator[Any]:
    app = Celery(uuid.uuid4().hex, broker=node.url, backend=shop_url, set_as_current=False)
    with backgrounded.using("celery", app=app) as handler:
        yield handler
        handler.close()


def test_a_job_of_a_killed_worker_runs_again_at_once(handler, node, start_worker, oracle):
    job = Item(oracle).backgrounded(queue="killed").hang(deaf=False)
    for count in (1, 2):
        with start_worker("-Q", "killed", "--pool", "solo", CELERYSHOP_BROKER=node.url) as worker:
            ready = time.monotonic()
            eventually(lambda count=count: len(starts(oracle, job.id)) == count)
            assert time.monotonic() - ready < handler.guarantees.recovery_s
            worker.process.kill()
            worker.process.wait()
    assert handler.guarantees.delivery == "at-least-once"


def test_a_url_of_rabbitmq_makes_an_app_with_priorities_and_results_where_it_says(node, shop_url, oracle, tmp_path):
    shop = {"BACKGROUNDED_APP": "celeryshop.jobs", "PYTHONPATH": str(HERE)}
    url = f"{node.url}?result_backend={shop_url}"
    with backgrounded.using("celery", url=url, queue="ours", enqueue_timeout=BUSY) as handler:
        jobs = [Item(oracle).backgrounded(priority=number).give(number) for number in (0, 9, 4)]
        with celery_worker(handler, ["ours"], tmp_path / "log", **shop):
            assert [job.result(30) for job in jobs] == [0, 9, 4]
        assert [event.job_id for event in events(oracle, "start")] == [jobs[1].id, jobs[2].id, jobs[0].id]
        assert handler.guarantees.delivery == "at-least-once"
        assert handler.priority_levels == 10
        # Ours are confirmed over connections of our own; in a worker of greenlets Celery's events would wait for ever.
        assert "confirm_publish" not in handler.app.conf.broker_transport_options
        handler.close()
    with backgrounded.using("celery", url=node.url) as handler, pytest.raises(UnsupportedOption):
        Item(oracle).backgrounded(unique="results are nowhere").give(1)


def test_two_workers_of_the_command_work_on_one_machine(node, oracle, monkeypatch, tmp_path):
    """RabbitMQ gives the control queue of a worker to the first of its name only (Kombu 5.7), and a second one ends."""
    monkeypatch.setenv("CELERYSHOP_BROKER", node.url)
    monkeypatch.delitem(sys.modules, "celeryshop.celery", raising=False)  # another test's, with another broker:
    monkeypatch.delattr("celeryshop.celery", raising=False)  # Celery asks the package, too
    shop = {"BACKGROUNDED_APP": "celeryshop.jobs", "PYTHONPATH": str(HERE)}
    with backgrounded.using("celery", app="celeryshop.celery:app", enqueue_timeout=BUSY) as handler:
        first, second = (celery_worker(handler, ["twins"], tmp_path / name, **shop) for name in ("first", "second"))
        with first, second:
            for _ in range(2):
                Item(oracle).backgrounded(queue="twins").meet(2)
            eventually(lambda: len(events(oracle, "met")) == 2)
        handler.close()


def test_a_frozen_broker_is_one_error_in_two_seconds(handler, node):
    Item("x").backgrounded(queue="nobody").give(1)
    fresh = CeleryHandler(app=Celery("fresh", broker=node.url, set_as_current=False))
    freeze(node.pid)
    try:
        for tried in (handler, fresh):
            started = time.monotonic()
            with backgrounded.using(tried), pytest.raises(EnqueueError):
                Item("x").backgrounded(queue="nobody").give(1)
            assert time.monotonic() - started < 3.9, "two answers would take four"
    finally:
        os.kill(node.pid, signal.SIGCONT)
        fresh.close()
    eventually(lambda: _is_sent(handler))


def _is_sent(handler: CeleryHandler) -> bool:
    try:
        Item("x").backgrounded(queue="nobody").give(1)
    except EnqueueError:
        return False
    return True


def test_a_batch_that_stops_half_way_says_what_became_of_each(handler, node):
    """RabbitMQ takes messages one by one."""
    eventually(lambda: _is_sent(handler))
    published: list[str] = []

    def freeze_at_the_third(headers: Any = None, **_: Any) -> None:
        published.append(headers["id"])
        if len(published) == 3:
            freeze(node.pid)

    before_task_publish.connect(freeze_at_the_third)
    try:
        with pytest.raises(BatchError) as failed, backgrounded.batch() as jobs:  # noqa: PT012 # raises at its exit
            for number in range(5):
                Item("x").backgrounded(queue="nobody").give(number)
    finally:
        before_task_publish.disconnect(freeze_at_the_third)
        os.kill(node.pid, signal.SIGCONT)
    eventually(lambda: _is_sent(handler))  # awake again, for the next test
    ids = [job.id for job in jobs]
    error = failed.value
    assert (list(error.sent), list(error.unknown), list(error.unsent)) == (ids[:2], ids[2:3], ids[3:])
    assert [job.state for job in jobs[3:]] == ["unsent", "unsent"]


def test_queues_without_priorities_have_none_and_a_broker_that_says_no_is_an_error_of_ours(handler, node):
    """RabbitMQ ignores priorities in queues that were declared without, and such a queue cannot be changed."""
    Item("x").backgrounded(queue="plain", priority=5).give(1)
    with pytest.raises(UnsupportedOption, match="priority"):
        Item("x").backgrounded(queue="plain", priority=8).give(1)
    app = Celery(uuid.uuid4().hex, broker=node.url, set_as_current=False)
    app.conf.task_queue_max_priority = 10
    with backgrounded.using("celery", app=app), pytest.raises(EnqueueError, match="inequivalent arg") as refused:
        Item("x").backgrounded(queue="plain", priority=8).give(1)
    assert refused.value.uncertain is False


# -- connections that end while nobody uses them


def test_a_call_after_a_broken_connection_goes_over_a_new_one(node, shop_url):
    with cutting_proxy(node.port) as proxy:
        app = Celery(uuid.uuid4().hex, broker=through(proxy, node), backend=shop_url, set_as_current=False)
        with backgrounded.using("celery", app=app, enqueue_timeout=BUSY) as handler:
            for _ in range(2):
                Item("x").backgrounded(queue="nobody").give(1)
                assert proxy.cut()
            handler.close()


def test_a_retry_after_a_broken_connection_is_one(handler, node, shop_url, start_worker, oracle):
    with cutting_proxy(node.port) as proxy:
        places = {"CELERYSHOP_BROKER": node.url, "CELERYSHOP_WRITES": through(proxy, node)}
        with start_worker("-Q", "cut", **places):
            for _ in range(2):
                job = Item(oracle).backgrounded(queue="cut", retry=1).fail()
                assert job.wait(timeout=60) == "failed"
                assert [event.attempt for event in starts(oracle, job.id)] == [1, 2]
                assert proxy.cut()


def test_a_retry_on_a_broker_that_is_slow_to_answer_is_one(handler, node, start_worker, tmp_path):
    with start_worker("-Q", "slow", CELERYSHOP_BROKER=node.url, BACKGROUNDED_APP="backgrounded.testing.probe"):
        assert attempts_on_a_slow(node, "slow", tmp_path) == [1, 2, 3]


def through(proxy: CuttingProxy, node: RabbitMQ) -> str:
    return node.url.replace(f":{node.port}", f":{proxy.port}")


# -- where messages go


TOPICS = {
    "task_queues": [Queue(name, Exchange(f"{name}-x", "topic"), routing_key=f"{name}.#") for name in ("most", "video")],
    "task_default_queue": "most",
    "task_routes": {"*": {"queue": "most", "routing_key": "most.any"}},
}


def test_a_named_queue_gets_the_job_whatever_the_routes_add(node, shop_url, start_worker, oracle):
    app = Celery(uuid.uuid4().hex, broker=node.url, backend=shop_url, set_as_current=False)
    app.conf.update(TOPICS)
    with backgrounded.using("celery", app=app, enqueue_timeout=BUSY) as handler:
        job = Item(oracle).backgrounded(queue="video", retry=1).fail()
        routed = Item(oracle).backgrounded.give(1)
        with start_worker("-Q", "video", CELERYSHOP_BROKER=node.url):
            assert job.wait(timeout=60) == "failed"
        assert [event.job["queue"] for event in starts(oracle, job.id)] == ["video", "video"]
        assert routed.state == "queued"
        app.conf.task_routes["*"]["routing_key"] = "nowhere"
        with pytest.raises(EnqueueError, match="NO_ROUTE") as refused:
            Item(oracle).backgrounded.give(2)
        assert refused.value.uncertain is False
        handler.close()


@pytest.mark.skipif(find_spec("celery.utils.quorum_queues") is None, reason="Celery knows quorum queues since 5.5")
def test_jobs_on_quorum_queues_wait_and_are_tried_again_where_they_are(
    node, shop_url, start_worker, oracle, monkeypatch
):
    monkeypatch.setenv("CELERYSHOP_BROKER", node.url)
    monkeypatch.setenv("CELERYSHOP_RESULTS", shop_url)
    monkeypatch.delitem(sys.modules, "celeryshop.quorum", raising=False)
    settings = {"CELERYSHOP_BROKER": node.url, "before": "celery -A celeryshop.quorum"}
    with (
        backgrounded.using("celery", app="celeryshop.quorum:app", enqueue_timeout=BUSY) as handler,
        start_worker("-Q", "quorum", **settings),
        start_worker("-Q", "video-quorum", **settings),
    ):
        item, began = Item(oracle), time.time()
        jobs = [
            item.backgrounded(queue="video-quorum", retry=Retry(2, wait=wait), delay=delay).fail()
            for wait, delay in ((0, None), (0.5, 0.5), (2, 2))
        ]
        for job in jobs:
            assert job.wait(timeout=60) == "failed"
        found = [starts(oracle, job.id) for job in jobs]
        assert [[event.attempt for event in each] for each in found] == [[1, 2, 3]] * 3
        assert {event.job["queue"] for each in found for event in each} == {"video-quorum"}
        assert len({event.pid for each in found for event in each}) == 1
        assert found[2][0].at >= began + 2
        assert found[2][2].at >= began + 6
        handler.close()
