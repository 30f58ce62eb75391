"""Whoever can write to the broker: what do they gain, over a worker and over a process that asks for a state?"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backgrounded
import dramatiq
import pytest
import redis
from backgrounded.testing.probe import events
from backgrounded_dramatiq import DramatiqHandler
from dramatiqshop.jobs import Item
from dramatiqtools import NAME, starts, wire

from waiting import eventually

pytestmark = pytest.mark.worker
CANARY = "canary-0815"


@pytest.fixture
def store(shop_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(shop_url) as connection:
        yield connection


def send(broker: dramatiq.Broker, told: Any, name: str = NAME, queue: str = "default", **options: Any) -> str:
    """A message of Dramatiq's, as a stranger could write it: with anything in our option."""
    message: Any = dramatiq.Message(queue, name, (), {}, {"backgrounded": told, **options})
    broker.enqueue(message)
    return str(message.message_id)


def hostile(oracle: str, canary: Path) -> dict[str, Any]:
    """What could stand in our option."""
    touch = [f"touch {canary}"]
    return {
        "nothing": {},
        "no wire": {"wire": None},
        "a list": [1, 2],
        "a text": {"wire": "[nonsense"},
        "only a text": "nonsense",
        "a module": {"wire": wire(oracle, target={"module": "os"}, method="system", args=touch)},
        "a foreign class": {"wire": wire(oracle, target={"class": "subprocess:Popen"}, method="wait")},
        "a private method": {"wire": wire(oracle, method="_start", args=[])},
        "deep": {"wire": json.loads("[" * 400 + "]" * 400)},
        "numbers that are none": {
            "wire": wire(oracle, v=99),
            "timeout": "x",
            "due": [],
            "result_ttl": -1,
            "handler": 7,
            "attempt": -3,
        },
        "no number at all": {"wire": wire(oracle, v=99), "due": 1e308 * 10, "timeout": True, "attempt": 1e9},
    }


def test_nothing_of_it_runs_all_of_it_is_kept_and_the_worker_goes_on(handler, shop, shop_worker, oracle, tmp_path):
    canary = tmp_path / "canary"
    ids = {name: send(shop, told) for name, told in hostile(oracle, canary).items()}
    assert Item(oracle).backgrounded.give(7).result(timeout=60) == 7
    eventually(lambda: all(handler.state(id).ended for id in ids.values()))
    assert {name: id for name, id in ids.items() if handler.state(id) != "kept"} == {}
    kept = {item.id: item for item in handler.kept()}
    assert kept.keys() >= {*ids.values()}
    assert all(str(canary) not in kept[id].reason and oracle not in kept[id].reason for id in ids.values())
    assert kept[ids["a text"]].wire == "[nonsense"
    for id in ids.values():
        handler.forget(id)
    assert not canary.exists()
    assert shop_worker.process.poll() is None


def test_dramatiqs_own_words_in_a_message_of_ours_are_not_obeyed(handler, shop, shop_worker, oracle):
    greeting = Path(oracle + ".greeting")
    bad = send(
        shop,
        {"wire": wire(oracle, method="fail", args=[])},
        max_retries=20,
        min_backoff=1,
        max_backoff=1,
        on_failure="greet",
        max_age=1,
        time_limit=1,
        on_retry_exhausted="greet",
    )
    good = send(
        shop,
        {"wire": wire(oracle, method="spin", args=[2.5])},
        time_limit=1,
        on_success="greet",
        notify_shutdown=True,
        throws=1,
        store_results=True,
        pipe_target={"queue_name": "shop", "actor_name": "greet", "args": [str(greeting)], "kwargs": {}, "options": {}},
    )
    # In either order: Dramatiq does not keep that of two messages of the same priority that it fetched together.
    eventually(lambda: (handler.state(bad), handler.state(good)) == ("failed", "succeeded"))
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1
    assert len(events(oracle, "start")) == 3
    assert not greeting.exists()


def test_a_name_that_nobody_has_goes_where_dramatiq_puts_it(handler, shop, shop_worker, store, oracle):
    """Without our option it is none of ours; and a name that would forge a line of the log is nobody's."""
    forged = "x\n[2026-01-01 00:00:00,000] [PID 1] all is well\x1b[2J"
    message: Any = dramatiq.Message("default", "no.such.actor", (CANARY,), {}, {})
    shop.enqueue(message)
    ours = send(shop, {"wire": wire(oracle)}, name=forged)
    eventually(lambda: {message.message_id, ours} <= dead_letters(store))
    assert handler.state(ours) == "unknown"
    good = Item(oracle).backgrounded.give(1)
    assert good.result(timeout=60) == 1
    # Dramatiq's first process writes down what the others said a moment later, that of the last job last.
    eventually(lambda: good.id in shop_worker.log)
    assert "Failed to process message no.such.actor(" in shop_worker.log
    assert "\x1b" not in shop_worker.log
    assert not [line for line in shop_worker.log.splitlines() if line.startswith("[2026-01-01")]


def dead_letters(store: redis.Redis, namespace: str = "shop") -> set[str]:
    return {json.loads(stored)["message_id"] for stored in store.hvals(f"{namespace}:default.XQ.msgs")}


@pytest.mark.parametrize(
    "written",
    [
        b"nonsense",
        b"\xff\xfe",
        b"[1]",
        b'{"queue_name": 1}',
        {"queue_name": "elsewhere"},
        {"queue_name": ["default"]},
        {"actor_name": ["x"]},
        {"kwargs": 7},
        {"options": None},
        {"options": {}},
        {"options": {"redis_message_id": "x", "eta": "soon"}},
        {"message_timestamp": "now"},
    ],
)
def test_a_worker_of_a_broker_of_ours_dead_letters_what_is_no_message_at_once(our_worker, oracle, written):
    """Dramatiq's own would restart its consumer, and leave the good ones that it had taken with it."""
    handler, worker, store = our_worker
    id = uuid.uuid4().hex
    good = {
        "queue_name": "default",
        "actor_name": NAME,
        "args": [],
        "kwargs": {},
        "message_id": id,
        "options": {"redis_message_id": id},
        "message_timestamp": int(time.time() * 1000),
    }
    data = written if isinstance(written, bytes) else json.dumps({**good, **written}).encode()
    with backgrounded.using(handler):
        store.hset("backgrounded:default.msgs", id, data)
        with store.pipeline() as pipeline:  # beside a good one, so that both are taken together
            pipeline.rpush("backgrounded:default", id)
            pipeline.execute()
        job = Item(oracle).backgrounded.give(1)
        assert job.result(timeout=20) == 1
    eventually(lambda: store.hget("backgrounded:default.XQ.msgs", id) == data)
    assert store.hget("backgrounded:default.msgs", id) is None
    assert "unexpected error" not in worker.log
    assert worker.process.poll() is None


@pytest.fixture(scope="module")
def our_worker(shop_url: str, start_worker: Any) -> Iterator[Any]:
    url = f"{shop_url.rpartition('/')[0]}/3"
    handler = DramatiqHandler(url)
    ours = {"BACKGROUNDED_URL": f"dramatiq+{handler.url}", "before": "dramatiq backgrounded_dramatiq.worker"}
    with start_worker("-Q", "default", **ours) as worker, redis.Redis.from_url(url) as connection:
        yield handler, worker, connection
    handler.close()


def test_an_attempt_that_is_none_counts_from_one(handler, shop, shop_worker, oracle):
    for attempt in (-5, 0, "x", None, True):
        written = wire(oracle)
        id = send(shop, {"wire": written, "attempt": attempt})
        eventually(lambda id=id: handler.state(id) == "succeeded")
        assert [event.attempt for event in starts(oracle, written["id"])] == [1]


def test_what_somebody_else_wrote_among_the_kept_jobs_is_not_shown_and_stays(handler, store):
    foreign = {"a": b"nonsense", "b": b"[1]", "c": b'{"id": 1}', "d": b'{"kept": "x"}', "e": b"\xff"}
    store.hset("shop:backgrounded:kept", mapping=foreign)
    assert list(handler.kept()) == []
    with pytest.raises(backgrounded.ConfigurationError):
        handler.replay("a")
    assert store.hlen("shop:backgrounded:kept") == len(foreign)
    store.delete("shop:backgrounded:kept")
