"""What is different on RabbitMQ, beyond what the contract sees?"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

import backgrounded
import pika
import pytest
from backgrounded import BatchError, EnqueueError, NoResult
from backgrounded.__main__ import main
from backgrounded_dramatiq import DramatiqHandler, _rabbit
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq_contract import for_pika
from dramatiqshop.jobs import Item, open_files
from dramatiqtools import send_wire, starts, wire

from processes import forked
from servers import RabbitMQ, free_port, freeze, rabbitmq
from servers import redis as server
from slow_retry import attempts_on_a_slow
from waiting import eventually

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    with rabbitmq() as node:
        yield node


@pytest.fixture
def url(node: RabbitMQ) -> str:
    return for_pika(node.url)


@pytest.fixture
def handler(url: str, shop_url: str) -> Iterator[DramatiqHandler]:
    with backgrounded.using("dramatiq", url=url, store=shop_url) as handler:
        yield handler
        handler.close()


@pytest.fixture
def work(handler: DramatiqHandler, start_worker: Any) -> Any:
    ours = {"BACKGROUNDED_URL": f"dramatiq+{handler.url}", "before": "dramatiq backgrounded_dramatiq.worker"}
    return lambda queue, **more: start_worker("-Q", queue, **ours, **more)


@contextmanager
def channel_of(url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def count_in(url: str, queue: str) -> int:
    with channel_of(url) as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)


def test_a_job_of_a_killed_worker_runs_again_at_once_and_one_that_kills_three_is_kept(handler, work, oracle):
    job = Item(oracle).backgrounded(queue="killed", retry=5).hang()
    for count in (1, 2, 3):
        with work("killed") as worker:
            ready = time.monotonic()
            eventually(lambda count=count: len(starts(oracle, job.id)) == count)
            assert time.monotonic() - ready < handler.guarantees.recovery_s
            worker.kill()
    with work("killed"):
        with pytest.raises(NoResult, match="3 workers died"):
            job.result(timeout=60)
        assert Item(oracle).backgrounded(queue="killed").give(1).result(timeout=60) == 1
    assert [event.attempt for event in starts(oracle, job.id)] == [1, 1, 1]
    handler.forget(job.id)


def test_a_frozen_broker_is_one_error_in_two_seconds(handler, node, url):
    Item("x").backgrounded(queue="nobody").give(1)
    fresh = DramatiqHandler(url)
    freeze(node.pid)
    try:
        for tried, uncertain in ((handler, True), (fresh, False)):
            started = time.monotonic()
            with backgrounded.using(tried), pytest.raises(EnqueueError) as failed:
                Item("x").backgrounded(queue="nobody").give(1)
            assert time.monotonic() - started < 3.9, "two answers would take four"
            assert failed.value.uncertain is uncertain
    finally:
        os.kill(node.pid, signal.SIGCONT)
        fresh.close()
    eventually(lambda: _is_sent(handler))


def test_a_retry_on_a_broker_that_is_slow_to_answer_is_one(handler, node, work, tmp_path):
    with work("slow", BACKGROUNDED_APP="backgrounded.testing.probe"):
        assert attempts_on_a_slow(node, "slow", tmp_path) == [1, 2, 3]


def _is_sent(handler: DramatiqHandler) -> bool:
    try:
        Item("x").backgrounded(queue="nobody").give(1)
    except EnqueueError:
        return False
    return True


def test_a_batch_is_confirmed_together(handler, url):
    with backgrounded.batch() as jobs:
        for number in range(1_000):
            Item("x").backgrounded(queue="batch").give(number)
    assert count_in(url, "batch") == 1_000
    assert {job.state for job in jobs} == {"queued"}
    with channel_of(url) as channel:
        channel.queue_purge("batch")


def limit_queues(broker: RabbitmqBroker, monkeypatch: pytest.MonkeyPatch, messages: int) -> None:
    """Let the broker declare queues that take so many messages and refuse the others."""
    theirs = broker._build_queue_arguments
    limit = {"x-max-length": messages, "x-overflow": "reject-publish"}
    monkeypatch.setattr(broker, "_build_queue_arguments", lambda name: {**theirs(name), **limit})


def test_a_batch_that_stops_half_way_says_what_became_of_each(handler, url, monkeypatch):
    limit_queues(handler.broker.dramatiq, monkeypatch, messages=2)
    with pytest.raises(BatchError) as failed, backgrounded.batch() as jobs:  # noqa: PT012 # raises at its exit
        for number in range(5):
            Item("x").backgrounded(queue="short").give(number)
    error = failed.value
    assert len(error.sent) == count_in(url, "short") == 2
    assert {*error.sent, *error.unsent} == {job.id for job in jobs}
    assert error.unknown == ()
    assert sorted(job.state for job in jobs) == ["queued"] * 2 + ["unsent"] * 3


def test_many_nested_calls_go_over_the_worker_s_connections(url, shop_url, start_worker, oracle):
    """This worker has configured nothing."""
    broker = RabbitmqBroker(url=url, confirm_delivery=True, max_priority=9)
    broker.add_middleware(Results(backend=RedisBackend(url=shop_url)))
    given = {"DRAMATIQSHOP_BROKER": url, "DRAMATIQSHOP_PRIORITIES": "9", "DRAMATIQSHOP_RESULTS": shop_url}
    before = "dramatiq dramatiqshop.broker backgrounded_dramatiq.worker"
    with (
        backgrounded.using("dramatiq", broker=broker) as handler,
        start_worker("-Q", "nested", before=before, BACKGROUNDED_APP="dramatiqshop.jobs", **given),
    ):
        jobs = [Item(oracle).backgrounded(queue="nested").nest_many("unheard", 200) for _ in range(2)]
        assert max(job.result(timeout=60) for job in jobs) < 9  # one connection is four
        assert count_in(url, "unheard") == 400
        handler.close()


def test_a_queue_that_no_worker_of_dramatiqs_consumes_is_refused(handler, url):
    """One of Celery's on the same RabbitMQ, say: its worker would drop the message that it does not know."""
    with channel_of(url) as channel:
        channel.queue_declare("celery", durable=True)
        with pytest.raises(EnqueueError, match=r"PRECONDITION_FAILED.*for queue 'celery'") as failed:
            Item("x").backgrounded(queue="celery").give(1)
        assert failed.value.uncertain is False
        assert count_in(url, "celery") == 0


def test_a_queue_that_was_deleted_is_made_again(handler, url):
    with channel_of(url) as channel:
        Item("x").backgrounded(queue="new").give(1)
        channel.queue_delete("new")
        Item("x").backgrounded(queue="new").give(2)
        assert count_in(url, "new") == 1
        # With what Dramatiq declares it, or its workers could not.
        broker = RabbitmqBroker(url=url, max_priority=9)
        broker.declare_queue("new", ensure=True)
        broker.close()


def test_an_idle_connection_is_replaced_and_one_that_the_broker_closed_is_noticed(handler, url, monkeypatch):
    way: Any = handler.broker.way
    Item("x").backgrounded(queue="idle").give(1)
    ((_, first),) = way._idle
    Item("x").backgrounded(queue="idle").give(2)
    ((_, second),) = way._idle
    assert first is second
    monkeypatch.setattr(_rabbit, "IDLE", 0.0)
    Item("x").backgrounded(queue="idle").give(3)
    monkeypatch.undo()
    ((_, third),) = way._idle
    assert third is not second
    third._connection._terminate_stream(ConnectionError("as if the network had gone"))
    Item("x").backgrounded(queue="idle").give(4)
    assert count_in(url, "idle") == 4


def use_at_once(way: Any, count: int) -> None:
    """As so many threads do whose calls are under way at the same moment."""
    with ExitStack() as calls:
        for _ in range(count):
            calls.enter_context(way._link(time.monotonic() + 10))


def test_connections_of_a_burst_of_calls_are_closed_when_nobody_has_wanted_them_for_long(handler, url, monkeypatch):
    Item("x").backgrounded(queue="burst").give(0)
    use_at_once(handler.broker.way, 20)
    burst = open_files()
    monkeypatch.setattr(_rabbit, "IDLE", 1.0)
    calls = 0

    def call_until_they_are_closed() -> bool:
        nonlocal calls
        calls += 1
        Item("x").backgrounded(queue="burst").give(calls)
        return open_files() <= burst - 3 * 19

    eventually(call_until_they_are_closed, seconds=20, every=0.1)
    assert count_in(url, "burst") == calls + 1


def test_after_a_long_silence_a_call_does_not_wait_for_all_connections_to_be_closed(handler, monkeypatch):
    way: Any = handler.broker.way
    Item("x").backgrounded(queue="silence").give(1)
    handler.close()
    use_at_once(way, 10)
    monkeypatch.setattr(_rabbit, "IDLE", 0.0)
    left = []
    for number in range(4):
        Item("x").backgrounded(queue="silence").give(number)
        left.append(len(way._idle))
    assert left == [7, 4, 1, 1]


def test_threads_that_close_and_take_connections_at_the_same_moment_lose_no_call(handler, url, monkeypatch):
    monkeypatch.setattr(_rabbit, "IDLE", 0.002)
    before = open_files()
    start = threading.Barrier(8)

    def call(thread: int) -> None:
        start.wait(60)
        for number in range(50):
            Item("x").backgrounded(queue="threads").give(number)
            time.sleep(0.001 * (number % thread))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(copy_context().run, call, thread) for thread in range(1, 9)]:
            done.result()
    assert count_in(url, "threads") == 400
    handler.close()
    assert open_files() <= before


@pytest.mark.parametrize("what", ["close", "call", "examine"])
def test_a_forked_child_closes_no_connection_of_its_parent(handler, url, monkeypatch, what):
    way: Any = handler.broker.way
    use_at_once(way, 3)
    parents = [link for _, link in way._idle]
    with monkeypatch.context() as patch:
        patch.setattr(_rabbit, "IDLE", 0.0)
        work = {
            "close": handler.close,
            "call": lambda: Item("x").backgrounded(queue="child").give(1),
            "examine": lambda: list(handler.examine()),
        }
        assert forked(work[what]) == 0
    assert all(link.is_alive() for link in parents)
    Item("x").backgrounded(queue="child").give(2)
    assert [link for _, link in way._idle] == parents


def test_a_process_that_forks_does_not_share_the_connection(handler, url):
    Item("x").backgrounded(queue="forked").give(0)
    child = os.fork()
    if child == 0:
        try:
            for number in range(50):
                Item("x").backgrounded(queue="forked").give(number)
        finally:
            os._exit(0)
    for number in range(50):
        Item("x").backgrounded(queue="forked").give(number)
    assert os.waitpid(child, 0)[1] == 0
    assert count_in(url, "forked") == 101


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"appendonly": "yes"}, 0, ""),
        ({}, 0, "advice: Redis writes no append-only file: records of jobs"),
        ({"appendonly": "yes", "maxmemory-policy": "volatile-lru"}, 1, "GAP: Redis has maxmemory-policy volatile-lru"),
    ],
)
def test_the_doctor_sees_a_store_that_loses_what_is_known_of_jobs(url, capsys, named, settings, code, said):
    """One that is named, or that of the application's results."""
    with server(**settings) as store:
        broker = RabbitmqBroker(url=url, confirm_delivery=True)
        if not named:
            broker.add_middleware(Results(backend=RedisBackend(url=f"{store.url}/0")))
        with backgrounded.using("dramatiq", broker=broker, store=f"{store.url}/0" if named else None) as handler:
            assert main(["doctor"]) == code
            handler.close()
    told = capsys.readouterr().out
    assert said in told
    assert bool(said) is ("Way out" in told)


def test_the_doctor_sees_a_store_that_is_not_there(url, capsys):
    with backgrounded.using("dramatiq", url=f"{url}?store=redis://127.0.0.1:{free_port()}/0") as handler:
        assert main(["doctor"]) == 1
        handler.close()
    assert "GAP: The engine cannot be asked: ConnectionError" in capsys.readouterr().out


def test_what_is_kept_lies_in_a_durable_queue_without_expiry(handler, work, url, oracle):
    with work("keeping"):
        kept: list[str] = []
        for _ in range(2):
            kept.append(send_wire(handler, wire(oracle, method="nope"), "keeping"))
            eventually(lambda: handler.state(kept[-1]) == "kept")
        assert [item.id for item in handler.kept()] == kept
        with channel_of(url) as channel:
            channel.queue_declare("backgrounded.kept", durable=True)
            for foreign in (b"nonsense", b"[1]", b'{"id": 1}', b"\xff"):
                channel.basic_publish("", "backgrounded.kept", foreign)
        assert [item.id for item in handler.kept()] == kept
        handler.replay(kept[0])
        eventually(lambda: [item.id for item in handler.kept()] == kept[::-1])
        for id in kept:
            handler.forget(id)
        assert list(handler.kept()) == []
        assert count_in(url, "backgrounded.kept") == 4
        with channel_of(url) as channel:
            channel.queue_purge("backgrounded.kept")


def test_a_message_that_nobody_can_read_does_not_end_the_worker(handler, work, url, oracle):
    with work("unread") as worker:
        assert Item(oracle).backgrounded(queue="unread").give(0).result(timeout=60) == 0
        with channel_of(url) as channel:
            for data in (b"nonsense", b"\xff", b"[1]"):
                channel.basic_publish("", "unread", data)
        assert Item(oracle).backgrounded(queue="unread").give(1).result(timeout=60) == 1
        eventually(lambda: count_in(url, "unread.XQ") == 3)
        assert worker.process.poll() is None


def test_a_broker_of_the_applications_sends_with_confirms_though_it_has_none_itself(url, shop_url, monkeypatch):
    broker = RabbitmqBroker(url=url)
    limit_queues(broker, monkeypatch, messages=1)
    with backgrounded.using("dramatiq", broker=broker, store=shop_url) as borrowed:
        Item("x").backgrounded(queue="full").give(1)
        with pytest.raises(EnqueueError, match="refused") as failed:
            Item("x").backgrounded(queue="full").give(2)
        assert failed.value.uncertain is False
        assert (broker.confirm_delivery, broker.connections) == (False, set())
        borrowed.close()


def test_a_worker_that_fetches_too_much_for_priorities_says_so(handler, work):
    with work("eager") as worker:
        eventually(lambda: "Priorities need dramatiq_queue_prefetch=1" in worker.log)
    with work("patient", dramatiq_queue_prefetch="1") as worker:
        pass
    assert "Priorities need" not in worker.log


def test_an_error_shows_no_password_and_no_argument(url):
    dead = DramatiqHandler("amqp://me:hush@127.0.0.1:1/%2F")
    with backgrounded.using(dead), pytest.raises(EnqueueError) as failed:
        Item("x").backgrounded.give("secret")
    assert "hush" not in f"{failed.value}{failed.value.__cause__}"
    assert "secret" not in f"{failed.value!r}"
