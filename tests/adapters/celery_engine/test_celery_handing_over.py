"""How does a call get to the broker: in how many trips, how soon does it fail, and what is refused before?"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import backgrounded
import kombu
import pytest
import redis
from backgrounded import ConfigurationError, EnqueueError, InvalidOption, UnsupportedOption, later
from backgrounded.handler import Feature
from backgrounded.testing.probe import Probe
from backgrounded_celery import CeleryHandler, _run
from celery import Celery
from kombu import Exchange, Queue

from processes import forked, in_the_middle
from servers import free_port, freeze, frozen, redis_server
from servers import redis as server
from waiting import eventually

KOMBU_BATCHES = hasattr(kombu.Producer, "batch")
"""Since 5.7."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as url:
        yield f"{url}/0"


@pytest.fixture
def store(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
        yield connection


def app_of(broker: str, backend: str | None = None, **settings: Any) -> Celery:
    app = Celery(uuid.uuid4().hex, broker=broker, backend=backend, set_as_current=False)
    app.conf.update(settings)
    return app


def handlers_on(url: str) -> dict[str, CeleryHandler]:
    return {
        "ours": CeleryHandler(url),
        "borrowed, without results": CeleryHandler(app=app_of(url)),
        "borrowed, with results": CeleryHandler(app=app_of(url, url)),
    }


# -- trips


def calls_of(store: redis.Redis, before: Mapping[str, Any]) -> dict[str, int]:
    """How often each command was carried out since then, but for those of this test and what scripts call."""
    now = {name.removeprefix("cmdstat_"): found["calls"] for name, found in store.info("commandstats").items()}
    counted = {name: count - before.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name, count in now.items()}
    return {
        name: count for name, count in counted.items() if count and name in ("evalsha", "lpush", "subscribe", "ping")
    }


@pytest.mark.parametrize(
    ("which", "trips"),
    [
        ("ours", {"evalsha": 1, "lpush": 1}),
        ("borrowed, without results", {"lpush": 1}),
        ("borrowed, with results", {"evalsha": 1, "lpush": 1}),
    ],
)
def test_a_call_takes_no_more_trips_than_celerys_own(url, store, which, trips):
    """Celery's own, with results, subscribes to the result and pushes."""
    with backgrounded.using(handlers_on(url)[which]):
        Probe("x").backgrounded.note()
        before = store.info("commandstats")
        Probe("x").backgrounded.note()
    assert calls_of(store, before) == trips


def test_a_thousand_calls_are_two_trips(url, store, monkeypatch):
    sent: list[int] = []
    send = redis.Connection.send_packed_command

    def counting(self: Any, command: Any, *rest: Any, **more: Any) -> Any:
        sent.append(os.getpid())
        return send(self, command, *rest, **more)

    with backgrounded.using(CeleryHandler(url)) as handler:
        Probe("x").backgrounded.note()
        monkeypatch.setattr(redis.Connection, "send_packed_command", counting)
        later(Probe("x").note).map(range(1_000))
        monkeypatch.undo()
        assert len(sent) == (2 if KOMBU_BATCHES else 1_001)
        assert store.llen("default\x06\x163") == 1_001
        assert len(list(store.scan_iter("backgrounded:job:*", count=5_000))) == 1_001
    assert Feature.BULK in handler.features


# -- where it goes


def test_a_named_queue_gets_the_message_whatever_the_routes_add(url, store):
    queues = [Queue(name, Exchange(f"{name}-x", "topic"), routing_key=f"{name}.#") for name in ("most", "video")]
    routes = {"*": {"queue": "most", "routing_key": "most.any"}}
    with backgrounded.using("celery", app=app_of(url, url, task_queues=queues, task_routes=routes)):
        Probe("x").backgrounded(queue="video").note()
        Probe("x").backgrounded.note()
    assert [store.llen(f"{name}\x06\x163") for name in ("video", "most")] == [1, 1]


def test_a_route_may_name_an_exchange_alone(url, store):
    queues = [Queue("most"), Queue("video", Exchange("media", "topic"), routing_key="media.#")]
    settings = {"task_queues": queues, "task_default_queue": "most"}
    routes = {"*": {"exchange": "media", "exchange_type": "topic", "routing_key": "media.any"}}
    for app in (app_of(url, url, **settings), app_of(url, url, **settings, task_routes=routes)):
        with backgrounded.using("celery", app=app):
            Probe("x").backgrounded(queue="video").note()  # so that there is such a queue
            Probe("x").backgrounded.note()
    assert [store.llen(f"{name}\x06\x163") for name in ("most", "video")] == [1, 3]


def test_a_queue_that_the_app_would_not_make_is_refused(url, store):
    settings = {"task_queues": [Queue("most")], "task_default_queue": "most", "task_create_missing_queues": False}
    with backgrounded.using("celery", app=app_of(url, url, **settings)):
        Probe("x").backgrounded(queue="most").note()
        with pytest.raises(InvalidOption, match=r"'mos' is none of the app's task_queues"):
            Probe("x").backgrounded(queue="mos").note()
    astray = app_of(url, url, **settings, task_routes={"*": {"queue": "mos"}})
    with backgrounded.using("celery", app=astray), pytest.raises(ConfigurationError, match="'mos'"):
        Probe("x").backgrounded.note()
    assert len(list(store.scan_iter("backgrounded:job:*"))) == 1


def test_the_doctor_asks_the_result_backend_too_where_it_is_apart(url):
    with redis_server() as apart:
        for backend, told in ((url, ["jobs"]), (f"{apart}/0", ["jobs", "records of jobs"])):
            found = [finding.what for finding in CeleryHandler(app=app_of(url, backend)).examine()]
            assert found == [
                f"Redis writes no append-only file: {what} that it has acknowledged die with it." for what in told
            ]
    away = CeleryHandler(app=app_of(url, f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(redis.ConnectionError):
        list(away.examine())


def test_closing_closes_all_connections(url, store):
    before = ids_of_connections(store)  # those that other tests left may end at any moment
    with backgrounded.using(CeleryHandler(url)) as handler:
        Probe("x").backgrounded.note()
        opened = ids_of_connections(store) - before
        assert opened
        handler.close()
        eventually(lambda: not opened & ids_of_connections(store))
        Probe("x").backgrounded.note()
        handler.close()


def ids_of_connections(store: redis.Redis) -> set[str]:
    return {client["id"] for client in store.client_list()}


def test_callers_who_wait_in_line_fail_in_time_and_have_certainly_sent_nothing(url, store, monkeypatch):
    monkeypatch.setattr("backgrounded_celery._broker.CONNECTIONS", 2)
    with redis_server() as base, redis.Redis.from_url(base) as broker:
        pid = broker.info("server")["process_id"]
        with backgrounded.using(CeleryHandler(app=app_of(f"{base}/0", url))) as handler:
            Probe("x").backgrounded.note()
            freeze(pid)
            try:
                with ThreadPoolExecutor(6) as pool:
                    context = [copy_context() for _ in range(6)]
                    failures = list(pool.map(lambda one: one.run(_how_it_fails), context))
            finally:
                os.kill(pid, signal.SIGCONT)
            handler.close()
    assert sorted(failed.uncertain for failed, _ in failures) == [False] * 4 + [True] * 2
    assert max(seconds for _, seconds in failures) < 3.5
    assert len(list(store.scan_iter("backgrounded:job:*"))) == 3


def _how_it_fails() -> tuple[EnqueueError, float]:
    began = time.monotonic()
    with pytest.raises(EnqueueError) as failed:
        Probe("x").backgrounded.note()
    return failed.value, time.monotonic() - began


# -- a broker that is down, frozen, or gone


@pytest.mark.parametrize("which", ["ours", "borrowed, without results", "borrowed, with results"])
def test_a_dead_broker_is_one_error_at_once(which):
    with backgrounded.using(handlers_on(f"redis://127.0.0.1:{free_port()}/0")[which]):
        started = time.monotonic()
        with pytest.raises(EnqueueError, match="refused") as failed:
            Probe("x").backgrounded.note()
        assert time.monotonic() - started < 2.5
        assert failed.value.uncertain is False


@pytest.mark.parametrize("which", ["ours", "borrowed, without results", "borrowed, with results"])
def test_a_frozen_broker_is_one_error_in_two_seconds(which):
    with redis_server() as base:
        pid = redis.Redis.from_url(base).info("server")["process_id"]
        with backgrounded.using(handlers_on(f"{base}/0")[which]):
            Probe("x").backgrounded.note()
            freeze(pid)
            try:
                started = time.monotonic()
                with pytest.raises(EnqueueError):
                    Probe("x").backgrounded.note()
                assert time.monotonic() - started < 3.9, "two answers would take four"
            finally:
                os.kill(pid, signal.SIGCONT)
            Probe("x").backgrounded.note()


def test_a_result_backend_that_is_down_sends_nothing(url, store):
    app = app_of(url, f"redis://127.0.0.1:{free_port()}/0")
    with backgrounded.using("celery", app=app), pytest.raises(EnqueueError) as failed:
        Probe("x").backgrounded.note()
    assert failed.value.uncertain is False
    assert not store.keys("celery*")


def test_a_call_that_was_not_handed_over_leaves_no_record_and_no_key(url, store):
    app = app_of(f"redis://127.0.0.1:{free_port()}/0", url)
    with backgrounded.using("celery", app=app):
        for _ in range(2):
            with pytest.raises(EnqueueError):
                Probe("x").backgrounded(unique="key").note()
    assert store.keys("backgrounded:*") == []


def test_a_process_that_forks_does_not_share_the_connection(url, store):
    with backgrounded.using(CeleryHandler(url)):
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
    assert store.llen("forked\x06\x163") == 101


def test_a_fork_in_the_middle_of_a_call_of_another_thread_does_not_hold_the_child_up(url):
    handler = CeleryHandler(url)
    with backgrounded.using(handler):
        call = Probe("x").backgrounded(queue="forked").note
        with in_the_middle(call, handler._broker.records.client.connection_pool):
            assert forked(call) == 0


# -- what the message says


def test_the_message_names_the_method_and_shows_no_arguments(url, store):
    with backgrounded.using(CeleryHandler(url)):
        job = Probe("x").backgrounded(queue="q", priority=9, timeout=5, result_ttl=60).give("secret")
    message = json.loads(store.rpop("q"))
    headers = message["headers"]
    assert headers["task"] == "backgrounded.perform"
    assert headers["id"] == message["properties"]["correlation_id"] == job.id
    assert headers["shadow"] == "backgrounded.testing.probe.Probe.give"
    assert "secret" not in json.dumps(headers)
    assert (headers["ignore_result"], headers["retries"], headers["timelimit"]) == (True, 0, [20, None])
    assert message["properties"]["delivery_mode"] == 2


@pytest.mark.parametrize(
    ("priority", "bucket"), [(9, ""), (7, ""), (6, "3"), (5, "3"), (None, "3"), (1, "6"), (0, "9")]
)
def test_the_more_urgent_is_the_higher_number(url, store, priority, bucket):
    with backgrounded.using(CeleryHandler(url)):
        Probe("x").backgrounded(queue="q", priority=priority).note()
    assert store.llen("q" + (bucket and f"\x06\x16{bucket}")) == 1


def test_the_applications_routes_and_serializers_are_respected(url, store):
    app = app_of(url, task_routes={"backgrounded.perform": {"queue": "routed"}}, task_compression="gzip")
    with backgrounded.using("celery", app=app):
        Probe("x").backgrounded.note()
        Probe("x").backgrounded(queue="named").note()
    assert store.llen("routed\x06\x163") == store.llen("named\x06\x163") == 1
    assert json.loads(store.rpop("routed\x06\x163"))["headers"]["compression"] == "application/x-gzip"


def test_nothing_of_the_applications_settings_is_touched(url, store):
    app = app_of(url, url, broker_transport_options={"visibility_timeout": 7200})
    before = {**app.conf}
    with backgrounded.using("celery", app=app) as handler:
        Probe("x").backgrounded(delay=5).note()
        assert "7200 s" in " ".join(handler.guarantees.notes)
    assert {**app.conf} == before
    assert app.conf.broker_transport_options == {"visibility_timeout": 7200}


# -- what is refused


@pytest.mark.parametrize("option", ["unique", "result_ttl", "native"])
def test_what_needs_a_result_backend_is_refused_without_one(url, option):
    values = {"unique": "key", "result_ttl": 5, "native": {"x": 1}}
    with backgrounded.using("celery", app=app_of(url)), pytest.raises(UnsupportedOption) as refused:
        Probe("x").backgrounded(**{option: values[option]}).note()
    assert refused.value.option == option


def test_a_broker_that_nobody_tried_keeps_no_priority_and_promises_nothing():
    handler = CeleryHandler(app=app_of("memory://", "rpc://"))
    assert Feature.PRIORITY not in handler.features
    assert handler.needs.keys() <= handler.features
    assert (handler.guarantees.delivery, handler.priority_levels) == ("none", 1)
    with backgrounded.using(handler):
        Probe("x").backgrounded(priority=5).note()
        with pytest.raises(UnsupportedOption):
            Probe("x").backgrounded(priority=8).note()


@pytest.mark.parametrize(
    ("settings", "delivery"),
    [
        ({}, "at-least-once"),
        ({"task_annotations": {"backgrounded.perform": {"acks_late": False}}}, "none"),
        ({"task_annotations": {"*": {"acks_late": False}}}, "none"),
        ({"task_annotations": {"*": {"rate_limit": "1/s"}}}, "at-least-once"),
        ({"task_always_eager": True}, "none"),
    ],
)
def test_the_guarantees_are_lowered_by_what_an_app_sets(settings, delivery):
    found = CeleryHandler(app=app_of("amqp://h//", **settings)).guarantees
    assert found.delivery == delivery
    assert (delivery == "at-least-once") or "acks_late" in " ".join(found.notes) or "always_eager" in found.notes[0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "redis://h/0", "app": "shop.celery:app"}, "one of url and app"),
        ({"queue": ""}, "queue: must be a name"),
        ({"app": 7}, "app must be a Celery app"),
        ({"app": "shop.celery:app", "visibility_timeout": 5}, "set result_backend and visibility_timeout in the app"),
        ({"visibility_timeout": 0}, "visibility_timeout: must be seconds"),
        ({"url": "redis://h/0?visibility_timeout=x"}, "visibility_timeout: must be seconds"),
        ({"url": "amqp://h//", "visibility_timeout": 5}, "visibility_timeout is for Redis"),
        ({"url": "sqs://h"}, "scheme 'sqs'"),
        ({"enqueue_timeout": True}, "enqueue_timeout: must be seconds"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_configured(settings, reason):
    with pytest.raises(ConfigurationError, match=reason):
        CeleryHandler(**settings)


def test_an_object_or_a_name_or_a_url_says_which_app_it_is(url, monkeypatch):
    monkeypatch.setenv("BACKGROUNDED_URL", f"celery+{url}?queue=mail")
    backgrounded.reset()
    handler = backgrounded.get_handler()
    assert (handler.url, handler.default_queue) == (f"{url}?queue=mail", "mail")
    assert CeleryHandler().url == "redis://localhost:6379/0"
    assert CeleryHandler("shop.celery:app").borrowed
    backgrounded.reset()


def test_what_a_worker_has_to_know_of_an_app_of_ours_stands_in_its_url(url, monkeypatch):
    made = CeleryHandler(url, queue="mail", result_backend="redis://h:7/1", visibility_timeout=60)
    command = made.worker_command()
    (setting,) = [word for word in command if word.startswith("BACKGROUNDED_URL=")]
    monkeypatch.setenv(*setting.split("=", 1))
    backgrounded.reset()
    found = backgrounded.get_handler()
    assert found.url == made.url
    assert found.default_queue == "mail"
    assert found.app.conf.broker_transport_options["visibility_timeout"] == 60
    assert (found.app.conf.broker_url, found.app.backend.url) == (url, "redis://h:7/1")
    backgrounded.reset()


# -- calls of jobs, in a process that has configured no handler for them


def test_a_nested_call_bears_a_broker_that_is_slow_to_answer():
    with server() as place:
        handler = _run._handler_of(app_of(f"{place.url}/0"))
        with backgrounded.using(handler), ThreadPoolExecutor(1) as thread:
            with frozen(place, seconds=4):
                job = thread.submit(copy_context().run, Probe("x").backgrounded.note)
            assert job.result(60).id
        handler.close()
