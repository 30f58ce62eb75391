"""How does a call get to the broker: in how many trips, how soon does it fail, and what is refused before?"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import backgrounded
import dramatiq
import pytest
import redis
from backgrounded import BatchError, ConfigurationError, EnqueueError, InvalidOption, UnsupportedOption, later
from backgrounded.handler import WORKER_PATIENCE, Feature
from backgrounded.testing.probe import Probe, events
from backgrounded_dramatiq import Backgrounded, DramatiqHandler, _handler, _run
from backgrounded_dramatiq._broker import Broker
from backgrounded_dramatiq._message import Message, hide
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend, StubBackend
from dramatiqshop.jobs import Item
from dramatiqtools import NAME

from processes import forked, in_the_middle
from servers import free_port, freeze, frozen, redis_server
from servers import redis as server
from waiting import eventually


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as url:
        yield f"{url}/0"


@pytest.fixture
def store(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
        yield connection


@pytest.fixture(autouse=True)
def no_broker_is_set() -> Iterator[None]:
    dramatiq.set_broker(None)  # type: ignore[arg-type] # as it is before an application sets one
    yield
    dramatiq.set_broker(None)  # type: ignore[arg-type]


def handlers_on(url: str) -> dict[str, DramatiqHandler]:
    return {"ours": DramatiqHandler(url), "borrowed": DramatiqHandler(broker=RedisBroker(url=url))}


def messages_in(store: redis.Redis, queue: str, namespace: str = "backgrounded") -> list[dict[str, Any]]:
    """What is in a queue, in order."""
    ids = store.lrange(f"{namespace}:{queue}", 0, -1)
    return [json.loads(store.hget(f"{namespace}:{queue}.msgs", id)) for id in ids]


# -- which broker


def test_neither_importing_nor_configuring_makes_a_broker():
    script = (
        "import sys, backgrounded, backgrounded_dramatiq; from backgrounded_dramatiq import DramatiqHandler\n"
        "handler = backgrounded.configure('dramatiq', queues=['custom'])\n"
        "import dramatiq.broker; print(dramatiq.broker.global_broker, len(handler.features), handler.needs != 1,\n"
        "      sorted({'pika', 'redis'} & sys.modules.keys()), repr(handler))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "None 15 True [] <DramatiqHandler of a broker that is not set yet>"


def test_without_a_broker_the_error_says_the_way_out():
    with backgrounded.using("dramatiq"):
        with pytest.raises(ConfigurationError, match=r"dramatiq\.set_broker"):
            Probe("x").backgrounded.note()
        assert dramatiq.broker.global_broker is None


def test_a_broker_that_is_set_later_is_taken_and_so_is_another_after_it(url, store):
    with backgrounded.using("dramatiq") as handler:
        for namespace in ("first", "second"):
            broker = RedisBroker(url=url, namespace=namespace)
            dramatiq.set_broker(broker)
            Probe("x").backgrounded.note()
            assert len(messages_in(store, "default", namespace)) == 1
            assert handler.broker.dramatiq is broker


def test_a_broker_that_is_made_after_the_configuration_has_our_middleware_and_one_before_gets_it_once(url, caplog):
    before = RedisBroker(url=url)
    with backgrounded.using("dramatiq", queues=["custom"]):
        later_made = RedisBroker(url=url)
        assert sum(isinstance(item, Backgrounded) for item in later_made.middleware) == 1
        for broker in (before, later_made):
            dramatiq.set_broker(broker)
            Probe("x").backgrounded.note()
            Probe("x").backgrounded.note()
            assert [type(item) for item in broker.middleware].count(Backgrounded) == 1
            assert isinstance(broker.middleware[0], Backgrounded)
    assert "same type twice" not in caplog.text


def test_a_name_is_looked_up_at_the_first_use(url, tmp_path, monkeypatch):
    (tmp_path / "latershop.py").write_text(
        "import backgrounded\nbackgrounded.configure('dramatiq', broker='latershop:made.broker')\n"
        "from dramatiq.brokers.redis import RedisBroker\nclass made: broker = RedisBroker(url=" + repr(url) + ")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import latershop

    assert backgrounded.get_handler().broker.dramatiq is latershop.made.broker
    assert Feature.PRIORITY not in backgrounded.get_handler().features
    backgrounded.reset()
    for name in ("latershop:nothing", "latershop", "nowhere:broker"):
        with pytest.raises(ConfigurationError, match=name):
            DramatiqHandler(name).guarantees  # noqa: B018 # it is looked up


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "redis://h/0", "broker": "shop:broker"}, "one of url and broker"),
        ({"url": "kafka://h"}, "scheme 'kafka'"),
        ({"broker": 7}, "broker must be a broker or its name"),
        ({"queue": "no name"}, "no name that Dramatiq takes"),
        ({"queues": "custom"}, "list of names"),
        ({"queues": ["mail.DQ"]}, "no name that Dramatiq takes"),
        ({"store": "amqp://h"}, "store must be redis"),
        ({"heartbeat_timeout": 5}, "in the broker, which is yours"),
        ({"url": "amqp://h", "heartbeat_timeout": 5}, "for Redis"),
        ({"url": "redis://h/0?heartbeat_timeout=x"}, "must be seconds"),
        ({"url": "redis://h/0", "heartbeat_timeout": -1}, "must be seconds"),
        ({"enqueue_timeout": True}, "enqueue_timeout: must be seconds"),
        ({"threads": 0}, "threads: must be a number"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_configured(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        DramatiqHandler(**settings)


def test_what_a_worker_has_to_know_of_a_broker_of_ours_stands_in_its_url(url, monkeypatch):
    made = DramatiqHandler(url, queue="mail", store="redis://h:7/1", heartbeat_timeout=7)
    (setting,) = [word for word in made.worker_command() if word.startswith("BACKGROUNDED_URL=")]
    monkeypatch.setenv(*setting.split("=", 1))
    backgrounded.reset()
    found: Any = backgrounded.get_handler()
    assert found.default_queue == "mail"
    assert found.broker.dramatiq.heartbeat_timeout == 7_000
    assert found.broker.store == "redis://h:7/1"
    assert found.broker.dramatiq.client.connection_pool.connection_kwargs["port"] == int(
        url.rpartition(":")[2].partition("/")[0]
    )
    backgrounded.reset()


# -- trips


def calls_of(store: redis.Redis, before: Mapping[str, Any]) -> dict[str, int]:
    """How often each command was carried out since then, but for those of this test and what scripts call."""
    now = {name.removeprefix("cmdstat_"): found["calls"] for name, found in store.info("commandstats").items()}
    counted = {name: count - before.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name, count in now.items()}
    return {name: count for name, count in counted.items() if count and name.startswith(("eval", "script", "ping"))}


@pytest.mark.parametrize("which", ["ours", "borrowed"])
def test_a_call_is_dramatiqs_own_trip_and_that_of_its_record(url, store, which):
    with backgrounded.using(handlers_on(url)[which]):
        Probe("x").backgrounded.note()
        before = store.info("commandstats")
        Probe("x").backgrounded.note()
    assert calls_of(store, before) == {"evalsha": 2}


def test_a_thousand_calls_are_two_trips(url, store, monkeypatch):
    sent: list[int] = []
    send = redis.Connection.send_packed_command

    def counting(self: Any, command: Any, *rest: Any, **more: Any) -> Any:
        sent.append(os.getpid())
        return send(self, command, *rest, **more)

    with backgrounded.using(DramatiqHandler(url)):
        Probe("x").backgrounded.note()
        store.script_flush()  # as after a restart
        monkeypatch.setattr(redis.Connection, "send_packed_command", counting)
        later(Probe("x").note).map(range(1_000))
        monkeypatch.undo()
    assert len(sent) == 2
    found = messages_in(store, "default")
    assert [message["options"]["backgrounded"]["wire"]["args"] for message in found[1:]] == [[n] for n in range(1_000)]
    assert len(list(store.scan_iter("backgrounded:backgrounded:job:*", count=5_000))) == 1_001


# -- a broker that is down, frozen, or gone


@pytest.mark.parametrize("which", ["ours", "borrowed"])
def test_a_dead_broker_is_one_error_at_once(which):
    with backgrounded.using(handlers_on(f"redis://127.0.0.1:{free_port()}/0")[which]):
        started = time.monotonic()
        with pytest.raises(EnqueueError, match="refused") as failed:
            Probe("x").backgrounded.note()
        assert time.monotonic() - started < 2.5
        assert failed.value.uncertain is False


@pytest.mark.parametrize("which", ["ours", "borrowed"])
def test_a_frozen_broker_is_one_error_in_two_seconds(which):
    with redis_server() as base:
        with redis.Redis.from_url(base) as connection:
            pid = connection.info("server")["process_id"]
        with backgrounded.using(handlers_on(f"{base}/0")[which]) as handler:
            Probe("x").backgrounded.note()
            freeze(pid)
            try:
                for call in (Probe("x").backgrounded.note, lambda: later(Probe("x").note).map([1, 2])):
                    started = time.monotonic()
                    with pytest.raises(EnqueueError):
                        call()
                    assert time.monotonic() - started < 3.9, "two answers would take four"
            finally:
                os.kill(pid, signal.SIGCONT)
            Probe("x").backgrounded.note()
            handler.close()


def test_a_message_of_which_nobody_knows_whether_it_arrived_is_uncertain_and_never_sent_again():
    """The record's store answers, the broker does not."""
    with redis_server() as base, redis_server() as records, redis.Redis.from_url(base) as connection:
        pid = connection.info("server")["process_id"]
        handler = DramatiqHandler(base + "/0", store=records + "/0")
        with backgrounded.using(handler):
            Probe("x").backgrounded.note()
            freeze(pid)
            try:
                with pytest.raises(EnqueueError) as failed:
                    Probe("x").backgrounded.note()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert failed.value.uncertain is True
            eventually(lambda: connection.llen("backgrounded:default") == 2)
        handler.close()


def test_a_batch_that_is_refused_in_part_says_what_became_of_each(url, store):
    store.set("backgrounded:taken", "somebody else has this key")
    with backgrounded.using(DramatiqHandler(url)):
        with pytest.raises(BatchError) as failed, backgrounded.batch() as jobs:  # noqa: PT012
            for queue in ("mail", "taken", "mail"):
                Probe("x").backgrounded(queue=queue).note()
        first, refused, last = (job.id for job in jobs)
        error = failed.value
        assert (list(error.sent), list(error.unsent), list(error.unknown)) == ([first, last], [refused], [])
        assert [job.state for job in jobs] == ["queued", "unsent", "queued"]
    assert [message["message_id"] for message in messages_in(store, "mail")] == [first, last]


def test_a_redis_without_memory_has_certainly_not_taken_it(url, store):
    with backgrounded.using(DramatiqHandler(url)):
        store.config_set("maxmemory", 1)
        try:
            with pytest.raises(EnqueueError, match="memory") as failed:
                Probe("x").backgrounded.note()
            with pytest.raises(BatchError) as batch, backgrounded.batch() as jobs:  # noqa: PT012 # raises at its exit
                Probe("x").backgrounded.note()
                Probe("x").backgrounded.note()
        finally:
            store.config_set("maxmemory", 0)
    assert failed.value.uncertain is False
    assert batch.value.unsent == tuple(job.id for job in jobs)


def test_a_call_that_was_not_handed_over_leaves_no_record_and_no_key(url, store):
    broker = RedisBroker(url=f"redis://127.0.0.1:{free_port()}/0")
    with backgrounded.using("dramatiq", broker=broker, store=url):
        for _ in range(2):
            with pytest.raises(EnqueueError):
                Probe("x").backgrounded(unique="key").note()
    assert store.keys("*") == []


def test_a_store_that_is_down_sends_nothing(url, store):
    handler = DramatiqHandler(url, store=f"redis://127.0.0.1:{free_port()}/0")
    with backgrounded.using(handler), pytest.raises(EnqueueError) as failed:
        Probe("x").backgrounded.note()
    assert failed.value.uncertain is False
    assert store.keys("*") == []


def test_a_middleware_that_refuses_a_message_leaves_no_record(url, store):
    class Refuses(dramatiq.Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            raise dramatiq.middleware.MiddlewareError("not on a Sunday")

    broker = RedisBroker(url=url)
    broker.add_middleware(Refuses())
    refused = pytest.raises(dramatiq.middleware.MiddlewareError, match="Sunday")
    with backgrounded.using("dramatiq", broker=broker), refused:
        Probe("x").backgrounded.note()
    assert store.keys("*") == []


def test_a_process_that_forks_does_not_share_the_connection(url, store):
    with backgrounded.using(DramatiqHandler(url)):
        Probe("x").backgrounded(queue="forked").note()
        child = os.fork()
        if child == 0:
            try:
                for _ in range(50):
                    Probe("x").backgrounded(queue="forked").note()
            finally:
                os._exit(0)
        for _ in range(50):
            Probe("x").backgrounded(queue="forked").note()
        assert os.waitpid(child, 0)[1] == 0
    assert store.llen("backgrounded:forked") == 101


def test_a_fork_in_the_middle_of_a_call_of_another_thread_does_not_hold_the_child_up(url):
    handler = DramatiqHandler(url)
    with backgrounded.using(handler):
        call = Probe("x").backgrounded(queue="forked").note
        with in_the_middle(call, handler._broker.records.client.connection_pool):
            assert forked(call) == 0


@pytest.mark.parametrize("named", [True, False])
def test_a_handler_that_is_closed_leaves_no_connection_to_its_store_and_connects_again(store, named):
    """Its own, that is: the application's result backend keeps those that it has."""
    broker = RabbitmqBroker(**CONFIRMED)
    with redis_server() as apart, redis.Redis.from_url(apart) as watching:
        results = RedisBackend(url=f"{apart}/1")
        results.client.ping()
        if not named:
            broker.add_middleware(Results(backend=results))
        handler = DramatiqHandler(broker=broker, store=f"{apart}/0" if named else None)
        handler.close()
        for _ in range(2):
            assert handler.state("nothing") == "unknown"
            eventually(lambda: connected(watching) == 3, seconds=20)
            handler.close()
            eventually(lambda: connected(watching) == 2, seconds=20)
        results.client.close()


def connected(store: redis.Redis) -> int:
    return int(store.info("clients")["connected_clients"])


def test_a_client_of_the_applications_that_cannot_be_copied_is_not_closed(url):
    broker = RabbitmqBroker(**CONFIRMED)
    pool = type("TheirPool", (redis.ConnectionPool,), {}).from_url(url)
    broker.add_middleware(Results(backend=RedisBackend(client=redis.Redis(connection_pool=pool))))
    handler = DramatiqHandler(broker=broker)
    assert handler.state("nothing") == "unknown"
    handler.close()
    (connection,) = pool._available_connections
    assert connection._sock is not None
    pool.disconnect()


# -- what the message says


def test_the_message_names_the_method_and_shows_no_arguments(url, store):
    seen: list[Any] = []
    gone: list[str] = []

    class Sees(dramatiq.Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            seen.append((repr(message), str(message), delay, pickle.loads(pickle.dumps(message.options))))

        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            gone.append(message.message_id)

    broker = RedisBroker(url=url)
    broker.add_middleware(Sees())
    with backgrounded.using("dramatiq", broker=broker):
        job = Probe("x").backgrounded(queue="q", timeout=5, result_ttl=60).give("secret")
        Probe("x").backgrounded(queue="q", delay=100).give("secret")
    (message,) = messages_in(store, "q", "dramatiq")
    assert gone[0] == job.id
    assert (message["actor_name"], message["message_id"]) == ("backgrounded.testing.probe.Probe.give", job.id)
    assert (message["args"], message["kwargs"]) == ([], {})
    told = message["options"]["backgrounded"]
    assert told["wire"]["args"] == ["secret"]
    assert (told["attempt"], told["timeout"], told["result_ttl"]) == (1, 5, 60)
    (delayed,) = messages_in(store, "q.DQ", "dramatiq")
    assert delayed["queue_name"] == "q.DQ"
    assert 90_000 < delayed["options"]["eta"] - time.time() * 1000 < 101_000
    (shown, short, delay, pickled), (_, _, second_delay, _) = seen
    assert "secret" not in shown + short
    assert short == "backgrounded.testing.probe.Probe.give()"
    assert type(pickled["backgrounded"]) is dict
    assert (delay, 90_000 < second_delay < 101_000) == (None, True)


def test_a_message_that_a_worker_has_taken_shows_nothing_and_can_be_sent_again_whole():
    message = Message("3f", {"args": ["secret"]}, NAME, "q").for_dramatiq()
    taken: Any = dramatiq.MessageProxy(dramatiq.Message.decode(message.encode()))
    hide(taken)
    assert "secret" not in f"{taken} {taken.options} {json.dumps(taken.asdict())}"
    assert taken.asdict()["options"]["backgrounded"] == "{...}"
    assert dramatiq.Message.decode(taken.encode()) == message == taken.copy()


def test_a_name_that_an_actor_of_the_applications_has_is_not_taken_from_it(url, store):
    broker = RedisBroker(url=url)
    dramatiq.actor(lambda: None, actor_name="backgrounded.testing.probe.Probe.note", broker=broker)
    with backgrounded.using("dramatiq", broker=broker):
        Probe("x").backgrounded.note()
    assert messages_in(store, "default", "dramatiq")[0]["actor_name"] == (
        "backgrounded.backgrounded.testing.probe.Probe.note"
    )


def test_nothing_of_the_applications_settings_is_touched(url, store):
    broker = RedisBroker(url=url, maintenance_chance=77, heartbeat_timeout=55_555)
    before = {**broker.client.connection_pool.connection_kwargs}
    with backgrounded.using("dramatiq", broker=broker):
        Probe("x").backgrounded(delay=5).note()
    assert {**broker.client.connection_pool.connection_kwargs} == before
    assert (broker.maintenance_chance, broker.heartbeat_timeout) == (77, 55_555)
    assert broker.get_declared_actors() == set()
    assert dramatiq.broker.global_broker is None


def test_ten_thousand_names_leave_no_more_than_a_bounded_number_of_actors(url):
    broker = RedisBroker(url=url)
    DramatiqHandler(broker=broker)
    actors: Any = broker.actors
    for number in range(10_000):
        actor = broker.get_actor(f"shop.models.User.method_{number}")
        assert actor.actor_name == f"shop.models.User.method_{number}"
    assert len(actors) == 0
    assert actors._made.cache_info().currsize == 1_024
    for name in ("", "x\ny", "x" * 2_000, "\x1b[2J"):
        with pytest.raises(dramatiq.ActorNotFound):
            broker.get_actor(name)


# -- what is kept, and what is promised


@pytest.mark.parametrize("option", ["priority", "native"])
def test_what_redis_does_not_keep_is_refused(url, option):
    values = {"priority": 8, "native": {"x": 1}}
    with backgrounded.using(DramatiqHandler(url)):
        with pytest.raises(UnsupportedOption) as refused:
            Probe("x").backgrounded(**{option: values[option]}).note()
        Probe("x").backgrounded(priority=5).note()
    assert refused.value.option == option


@pytest.mark.parametrize("queue", ["two words", "mail.DQ", "mail.XQ", "mail.msgs", "__heartbeats__", "1st", "ü"])
def test_a_queue_that_dramatiq_could_not_take_is_refused(url, queue):
    with backgrounded.using(DramatiqHandler(url)), pytest.raises(InvalidOption, match="Dramatiq's queues"):
        Probe("x").backgrounded(queue=queue).note()


RABBIT = "amqp://guest:guest@h"
CONFIRMED = {"url": RABBIT, "confirm_delivery": True}
NEEDS_A_REDIS = {Feature.UNIQUE, Feature.RESULTS, Feature.RESULT_TTL, Feature.STATE, Feature.CANCEL}


@pytest.mark.parametrize(
    ("broker", "delivery", "recovery", "note"),
    [
        (RedisBroker(url="redis://h"), "at-least-once", None, "maintenance_chance=1000"),
        (RedisBroker(url="redis://h", maintenance_chance=1_000_000), "at-least-once", 61.0, "60 s in one call"),
        (RedisBroker(url="redis://h", maintenance_chance=0), "at-least-once", None, "maintenance_chance=0"),
        (RabbitmqBroker(url=RABBIT), "none", None, "confirm_delivery=True"),
        (RabbitmqBroker(**CONFIRMED), "at-least-once", 10.0, "max_priority=9"),
        (StubBroker(), "none", None, "nothing is promised"),
    ],
)
def test_the_guarantees_say_what_a_borrowed_broker_lacks(broker, delivery, recovery, note):
    handler = DramatiqHandler(broker=broker)
    found = handler.guarantees
    assert (found.delivery, found.recovery_s) == (delivery, recovery)
    assert note in " ".join(found.notes)
    assert handler.needs.keys() <= handler.features


def test_a_broker_of_ours_promises_what_its_settings_are_made_for():
    assert DramatiqHandler("redis://h/0").guarantees.recovery_s <= 30
    rabbit = DramatiqHandler(f"{RABBIT}/shop", store="redis://h/0")
    assert (rabbit.guarantees.delivery, rabbit.guarantees.recovery_s) == ("at-least-once", 10.0)
    assert rabbit.features >= {Feature.PRIORITY, Feature.KEPT} | NEEDS_A_REDIS
    assert "confirm_delivery" not in " ".join(rabbit.guarantees.notes)


def test_a_broker_finds_its_redis_in_its_results_middleware(url):
    plain, with_results, with_others = (RabbitmqBroker(**CONFIRMED) for _ in range(3))
    with_results.add_middleware(Results(backend=RedisBackend(url=url, namespace="shop")))
    with_others.add_middleware(Results(backend=StubBackend()))
    assert not DramatiqHandler(broker=plain).features & NEEDS_A_REDIS
    assert not DramatiqHandler(broker=with_others).features & NEEDS_A_REDIS
    found = DramatiqHandler(broker=with_results)
    assert found.features >= NEEDS_A_REDIS
    assert found.state("nothing") == "unknown"
    with pytest.raises(ConfigurationError, match="no Redis is at hand"):
        DramatiqHandler(broker=plain).state("x")


@pytest.mark.parametrize(("most", "kept"), [(None, False), (5, False), (9, True), (255, True)])
def test_priorities_are_kept_where_the_queues_are_made_for_all_of_them(most, kept):
    handler = DramatiqHandler(broker=RabbitmqBroker(**CONFIRMED, max_priority=most))
    assert (Feature.PRIORITY in handler.features) is kept
    assert handler.priority_levels == (10 if kept else 1)


def test_a_redis_is_asked_once_and_a_store_apart_for_itself(url):
    with redis_server() as apart:
        handlers = DramatiqHandler(url), DramatiqHandler(url, store=f"{apart}/0")
        told = [[finding.what for finding in handler.examine()] for handler in handlers]
    losing = "Redis writes no append-only file: {} that it has acknowledged die with it."
    assert told == [[losing.format("jobs")], [losing.format("jobs"), losing.format("records of jobs")]]


# -- a broker of Dramatiq's for tests


def test_a_stub_broker_runs_jobs_in_this_process_and_promises_nothing(tmp_path):
    oracle = str(tmp_path / "oracle.jsonl")
    broker = StubBroker()
    with backgrounded.using("dramatiq", broker=broker, queues=["custom"]) as handler:
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        try:
            probe = Probe(oracle)
            probe.backgrounded(queue="custom").note(1)
            probe.backgrounded(delay=0.2).note(2)
            probe.backgrounded(retry=2).fail(None)
            eventually(lambda: len(events(oracle, "note")) == 2 and len(events(oracle, "fail")) == 3)
            eventually(lambda: len(broker.dead_letters) == 1)
            assert not {Feature.KEPT, Feature.STATE, Feature.PRIORITY} & handler.features
            assert list(handler.kept()) == []
            with pytest.raises(ConfigurationError, match="StubBroker keeps nothing"):
                handler.replay("x")
        finally:
            worker.stop()


# -- calls of jobs, in a process that has configured no handler for them


def test_nested_calls_leave_a_handler_of_the_applications_alone(url, store, tmp_path):
    """They come by an alias that this process does not know, and it has another store than the broker has."""
    broker = RedisBroker(url=url)
    handler = DramatiqHandler(broker=broker, queue="mail", store=f"{url.rpartition('/')[0]}/1")
    middleware: Any = broker.middleware[0]
    before = middleware.store, set(middleware.queues)
    with backgrounded.using(handler, name="elsewhere"):  # no thread of the worker sees that
        job = Item(str(tmp_path / "oracle.jsonl")).backgrounded(handler="elsewhere", queue="mail").nest("unheard")
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        nested = handler.result(job.id, 60)
    finally:
        worker.stop()
    assert handler.state(nested) == "queued"
    assert [message["message_id"] for message in messages_in(store, "unheard", "dramatiq")] == [nested]
    assert (middleware.store, middleware.queues) == before
    for client in (broker.client, handler.broker.way.client, handler.broker.records.client):
        client.close()


def test_threads_that_nest_their_first_calls_at_once_get_one_handler(url, monkeypatch):
    ready = threading.Barrier(8)
    make = _handler.NestedHandler.__init__

    def make_together(self: Any, broker: Any) -> None:
        ready.wait(60)
        make(self, broker)

    monkeypatch.setattr(_handler.NestedHandler, "__init__", make_together)
    broker = Broker(RedisBroker(url=url), WORKER_PATIENCE)
    with ThreadPoolExecutor(8) as threads:
        found = {*threads.map(_run._handler_of, [broker] * 8)}
    assert found == {_run._handler_of(broker)}


def test_a_nested_call_bears_a_broker_that_is_slow_to_answer():
    with server() as place:
        handler = _run._handler_of(Broker(RedisBroker(url=f"{place.url}/0"), WORKER_PATIENCE))
        with backgrounded.using(handler), ThreadPoolExecutor(1) as thread:
            with frozen(place, seconds=4):
                job = thread.submit(copy_context().run, Probe("x").backgrounded.note)
            assert job.result(60).state == "queued"
        handler.close()


# -- the worker's command


def test_the_command_passes_on_what_a_worker_needs(url, monkeypatch, caplog):
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "shop")
    broker = RedisBroker(url=url)
    one_x = dramatiq.__version__.startswith("1.")
    prefetch = ["dramatiq_queue_prefetch=8"] if one_x else []
    monkeypatch.setitem(sys.modules, "commandshop", type(sys)("commandshop"))
    sys.modules["commandshop"].broker = broker
    named = DramatiqHandler("commandshop:broker", queues=["mail"], processes=2)
    assert named.worker_command() == [
        *["env", "BACKGROUNDED_ALLOW=shop", "dramatiq_delay_queue_prefetch=65535", *prefetch],
        *["dramatiq", "commandshop:broker", "backgrounded_dramatiq.worker"],
        *["--processes", "2", "--threads", "8", "-Q", "default", "mail"],
    ]
    nameless = DramatiqHandler(broker=broker)
    with pytest.raises(ConfigurationError, match="by its name"):
        nameless.worker_command()
    dramatiq.set_broker(broker)
    monkeypatch.setenv("BACKGROUNDED_APP", "shop.jobs")
    assert nameless.worker_command(["a"])[-6:] == [
        *["dramatiq", "backgrounded_dramatiq.worker", "--threads", "8"],
        *["-Q", "a"],
    ]
    monkeypatch.delenv("BACKGROUNDED_APP")
    ours = DramatiqHandler("amqp://me:hush@h/shop", threads=3).worker_command(["a", "b"])
    assert "BACKGROUNDED_APP is not set" in caplog.text
    assert "BACKGROUNDED_URL=dramatiq+amqp://me:hush@h/shop" in ours
    assert "dramatiq_queue_prefetch=3" in ours
    assert "hush" not in " ".join(ours[ours.index("dramatiq") :])
