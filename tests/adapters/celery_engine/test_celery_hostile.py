"""Whoever can write to the broker: what do they gain, over a worker and over a process that asks for a state?"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from backgrounded import NoResult
from backgrounded.testing.probe import events
from backgrounded_celery.task import TASK
from celeryshop.jobs import Item
from celerytools import starts

from waiting import eventually

pytestmark = pytest.mark.worker


@pytest.fixture
def store(shop_url):
    with redis.Redis.from_url(shop_url) as connection:
        yield connection


def wire(oracle: str, **more: Any) -> dict[str, Any]:
    target = {"built": ["celeryshop.jobs:Item", [oracle], {}]}
    return {"v": 1, "id": uuid.uuid4().hex, "target": target, "method": "give", "args": [1], "at": time.time(), **more}


def hostile(oracle: str, canary: Path) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Arguments of our task, as a stranger could write them."""
    touch = [f"touch {canary}"]
    return {
        "nothing": ([], {}),
        "two wires": ([wire(oracle), wire(oracle)], {}),
        "no wire": ([None], {}),
        "a list": ([[1, 2]], {}),
        "a text": (["[nonsense"], {}),
        "keywords of ours": ([], {"wire": wire(oracle), "task": 1, "args": 2}),
        "a module": ([wire(oracle, target={"module": "os"}, method="system", args=touch)], {}),
        "a foreign class": ([wire(oracle, target={"class": "subprocess:Popen"}, method="wait")], {}),
        "a private method": ([wire(oracle, method="_start", args=[])], {}),
        "deep": ([json.loads("[" * 400 + "]" * 400)], {}),
        "a limit that is none": ([wire(oracle, v=99)], {"timeout": "x", "due": [], "result_ttl": -1, "handler": 7}),
        "no number at all": ([wire(oracle, v=99)], {"due": 1e308 * 10, "timeout": True}),
    }


def send(shop: Any, args: Any, kwargs: Any, **options: Any) -> str:
    id = uuid.uuid4().hex
    shop.send_task(TASK, args=args, kwargs=kwargs, task_id=id, queue="shop", ignore_result=True, **options)
    return id


def test_nothing_of_it_runs_all_of_it_is_kept_and_the_worker_goes_on(handler, shop, shop_worker, oracle, tmp_path):
    canary = tmp_path / "canary"
    ids = {name: send(shop, *written) for name, written in hostile(oracle, canary).items()}
    assert Item(oracle).backgrounded.give(7).result(timeout=60) == 7
    eventually(lambda: all(handler.state(id).ended for id in ids.values()))
    assert {name: id for name, id in ids.items() if handler.state(id) != "kept"} == {}
    kept = {item.id: item for item in handler.kept()}
    assert kept.keys() >= {*ids.values()}
    assert all(str(canary) not in kept[id].reason and oracle not in kept[id].reason for id in ids.values())
    assert kept[ids["a text"]].wire == "[nonsense"
    for id in (ids["a module"], ids["nothing"]):
        handler.replay(id)
        eventually(lambda id=id: handler.state(id) == "kept")
    for id in ids.values():
        handler.forget(id)
    assert not {item.id for item in handler.kept()} & {*ids.values()}
    assert not canary.exists()
    assert shop_worker.process.poll() is None


def test_what_a_log_shows_is_one_line(handler, shop, shop_worker, oracle):
    id = send(
        shop,
        [wire(oracle)],
        {},
        shadow="x\n[2026-01-01 00:00:00,000: INFO/MainProcess] all is well\x1b[2J",
        argsrepr="x",
    )
    eventually(lambda: handler.state(id) == "succeeded")
    assert not [line for line in shop_worker.log.splitlines() if line.endswith("all is well") or "\x1b[2J" in line]


def test_a_count_of_retries_that_is_none_counts_from_one(handler, shop, shop_worker, oracle):
    for retries in (-5, 0):
        id = send(shop, [wire(oracle)], {}, retries=retries)
        eventually(lambda id=id: starts(oracle, id) or handler.state(id) == "succeeded")
    assert {event.attempt for event in events(oracle, "start")} == {1}


@pytest.mark.parametrize(
    "fields",
    [{"s": "nonsense"}, {"s": b"\xff"}, {"s": "queued", "d": "x"}, {"s": "succeeded", "o": "[nonsense"}, {"o": "1"}],
)
def test_a_record_that_cannot_be_read_is_an_error_of_ours(handler, store, fields):
    id = uuid.uuid4().hex
    store.hset(f"backgrounded:job:{id}", mapping=fields)
    with pytest.raises(NoResult, match=r"cannot be read|Nothing is known"):
        handler.result(id, 0)
    assert handler.state(id) in ("unknown", "succeeded")


def test_no_exception_is_built_from_a_stored_name(handler, store):
    id = uuid.uuid4().hex
    outcome = {"type": "os.system", "message": "touch /nowhere", "exc_type": "system", "exc_module": "os"}
    store.hset(f"backgrounded:job:{id}", mapping={"s": "failed", "o": json.dumps(outcome)})
    store.set(f"celery-task-meta-{id}", json.dumps({"status": "FAILURE", "result": outcome}))
    with pytest.raises(Exception, match="touch /nowhere") as failed:
        handler.result(id, 0)
    assert (type(failed.value).__name__, failed.value.type_name) == ("JobFailed", "os.system")
    store.delete(f"celery-task-meta-{id}")


def test_foreign_messages_in_the_queue_of_kept_jobs_stay_there(handler, shop, oracle):
    with shop.producer_or_acquire() as producer:
        for body in ({"a": 1}, [1], "text", {"id": None}):
            producer.publish(body, exchange="", routing_key="backgrounded.kept", serializer="json")
    before = [item.id for item in handler.kept()]
    assert [item.id for item in handler.kept()] == before
    with shop.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("backgrounded.kept", passive=True).message_count >= 4
        connection.default_channel.queue_purge("backgrounded.kept")
