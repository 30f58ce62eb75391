"""What happens between a call and Procrastinate's tables? No worker runs here."""

from __future__ import annotations

import contextvars
import os
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import backgrounded
import procrastinate
import psycopg
import pytest
from backgrounded import (
    ConfigurationError,
    Duplicate,
    EnqueueError,
    InvalidOption,
    NoResult,
    ResultTimeout,
    UnsupportedOption,
)
from backgrounded_procrastinate import ProcrastinateHandler, install
from backgrounded_procrastinate._connections import MOST, Connections, NotConnected
from procrastinate.testing import InMemoryConnector
from psycopg.rows import dict_row

from postgres import postgres_server, procrastinate_on
from processes import forked
from servers import free_port
from waiting import eventually

CANARY = "canary-4711"


# -- what stands in the tables


def test_a_job_is_one_of_procrastinate_s_with_our_id_and_the_name_of_the_method(handler, shop, ask, item):
    before = time.time()
    job = item.backgrounded(queue="custom", priority=8, delay=60).give(1)
    after = time.time()
    with shop.open():
        [found] = shop.job_manager.list_jobs(id=int(job.engine_id))
    assert (found.queue, found.task_name, found.priority, found.status) == ("custom", "backgrounded.perform", 3, "todo")
    assert found.task_kwargs == {"name": "procrastinateshop.jobs.Item.give", "id": job.id}
    assert before + 59.9 < found.scheduled_at.timestamp() < after + 60.1
    assert job.state == "scheduled"


def test_many_calls_are_one_statement_and_keep_their_order(handler, ask, item):
    with backgrounded.batch() as jobs:
        for number in range(1_000):
            item.backgrounded(priority=number % 10).give(number)
    numbers = [int(job.engine_id) for job in jobs]
    assert numbers == sorted(numbers)
    rows = ask(
        "SELECT mine.id, job.priority, job.args->>'id', job.xmin FROM backgrounded_jobs AS mine "
        "JOIN procrastinate_jobs AS job ON job.id = mine.number WHERE number = ANY(%s) ORDER BY number",
        numbers,
    )
    assert [row[:3] for row in rows] == [(job.id, index % 10 - 5, job.id) for index, job in enumerate(jobs)]
    assert len({row[3] for row in rows}) == 1, "they were written by more than one transaction"


def test_of_two_that_find_no_table_one_makes_it_and_the_other_waits(new_database, item):
    url = new_database()

    def call(connection: Any = None) -> str:
        handler = ProcrastinateHandler(url, connection=connection, enqueue_timeout=30)
        with backgrounded.using(handler):
            return item.backgrounded.give(1).id

    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url) as first, psycopg.connect(url, autocommit=True) as looker, ThreadPoolExecutor(1) as pool:
        call(first)  # has made it, and has not committed
        second = pool.submit(call)
        eventually(lambda: looker.execute(waits).fetchone() == (1,))
        first.commit()
        assert ProcrastinateHandler(url).state(second.result(60)) == "queued"


# -- transactions


def test_a_call_is_part_of_a_transaction_of_the_application(handler, shop, shop_url, item):
    with psycopg.connect(shop_url, row_factory=dict_row) as theirs:
        theirs.execute("CREATE TABLE IF NOT EXISTS orders (id integer)")
        theirs.commit()
        with backgrounded.using("procrastinate", app=shop, connection=theirs):
            theirs.execute("INSERT INTO orders VALUES (1)")
            kept = item.backgrounded.give(1)
            assert kept.state == "unknown", "another transaction saw it before the commit"
            theirs.commit()
            assert kept.state == "queued"
            first_of_all = item.backgrounded.give(1)  # nothing has begun a transaction yet
            assert first_of_all.state == "unknown"
            with backgrounded.batch() as jobs:
                item.backgrounded.give(2)
                item.backgrounded.give(3)
            theirs.rollback()
            assert [job.state for job in (first_of_all, *jobs)] == ["unknown"] * 3


def test_a_savepoint_that_is_rolled_back_takes_its_calls_with_it(handler, shop, shop_url, item):
    with psycopg.connect(shop_url) as theirs, backgrounded.using("procrastinate", app=shop, connection=lambda: theirs):
        outer = item.backgrounded.give(1)
        with theirs.transaction(force_rollback=True):
            inner = item.backgrounded.give(2)
        theirs.commit()
        assert (outer.state, inner.state) == ("queued", "unknown")


def test_the_table_is_made_in_their_transaction_too_and_again_after_a_rollback(new_database, item):
    url = new_database()
    with psycopg.connect(url) as theirs, backgrounded.using("procrastinate", url=url, connection=theirs) as handler:
        lost = item.backgrounded.give(1)
        theirs.rollback()
        sent = item.backgrounded.give(2)
        theirs.commit()
        assert (lost.state, sent.state) == ("unknown", "queued")
        handler.close()


def test_a_duplicate_does_not_end_their_transaction(handler, shop, shop_url, ask, item):
    with psycopg.connect(shop_url) as theirs, backgrounded.using("procrastinate", app=shop, connection=theirs):
        first = item.backgrounded(unique="theirs").give(1)
        before = theirs.execute("SELECT count(*) FROM procrastinate_jobs").fetchone()
        with pytest.raises(Duplicate) as duplicate:
            item.backgrounded(unique="theirs").give(2)
        assert duplicate.value.existing_id == first.id
        assert theirs.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == before
        after = item.backgrounded.give(3)
        theirs.commit()
        assert (first.state, after.state) == ("queued", "queued")


def test_a_callable_that_has_no_connection_means_ours(handler, shop, item):
    with backgrounded.using("procrastinate", app=shop, connection=lambda: None):
        assert item.backgrounded.give(1).state == "queued"


# -- cancelled, unique


def test_what_procrastinate_itself_cancels_reads_as_cancelled_and_frees_its_key(handler, shop, item):
    job = item.backgrounded(unique="by hand").give(1)
    with shop.open():
        assert shop.job_manager.cancel_job_by_id(int(job.engine_id))
    assert job.state == "cancelled"
    assert not job.cancel()
    assert item.backgrounded(unique="by hand").give(2).state == "queued"


def test_an_end_that_could_not_be_written_is_no_result(handler, ask, item):
    job = item.backgrounded(delay=600).give(1)
    for status in ("doing", "succeeded"):
        ask(f"UPDATE procrastinate_jobs SET status = '{status}' WHERE id = %s", int(job.engine_id))
    assert job.state == "unknown"
    with pytest.raises(NoResult):
        job.result(timeout=0)


@pytest.mark.parametrize("id", ["", "no such job", "a\0b", "\ud800", "'; --"])
def test_whatever_is_asked_for_by_an_id_that_is_none_is_unknown(handler, id):
    assert handler.state(id) == "unknown"
    assert handler.cancel(id) is False
    for ask in (handler.replay, handler.forget):
        with pytest.raises(ConfigurationError, match="is kept here"):
            ask(id)


# -- trouble


def test_a_database_that_is_down_is_an_error_with_its_cause_and_nothing_is_uncertain(item):
    with backgrounded.using("procrastinate", url=f"postgresql://me:hush@127.0.0.1:{free_port()}/shop"):
        began = time.monotonic()
        with pytest.raises(EnqueueError) as error:
            item.backgrounded.give(CANARY)
        assert time.monotonic() - began < 20
        assert isinstance(error.value.__cause__, psycopg.OperationalError)
        assert not error.value.uncertain
        assert "hush" not in str(error.value)
        assert CANARY not in str(error.value)


def test_a_database_that_does_not_answer_is_an_error_in_time_and_the_next_call_works(item):
    with postgres_server() as server, backgrounded.using("procrastinate", url=procrastinate_on(server)) as handler:
        item.backgrounded.give(0)
        server.freeze()
        try:
            for uncertain in (True, False):  # on the connection that is there, and on a new one
                began = time.monotonic()
                with pytest.raises(EnqueueError) as error:
                    item.backgrounded.give(CANARY)
                assert time.monotonic() - began < 20
                assert error.value.uncertain is uncertain
        finally:
            server.thaw()
        assert item.backgrounded.give(1).state == "queued"
        handler.close()


def test_many_callers_share_ten_connections_and_wait_in_line(shop_url, ask, item):
    ours = "datname = current_database() AND backend_type = 'client backend'"
    sessions = f"SELECT count(*) FROM pg_stat_activity WHERE {ours}"
    with (
        backgrounded.using("procrastinate", url=shop_url, enqueue_timeout=60) as handler,
        psycopg.connect(shop_url) as other,
        ThreadPoolExecutor(30) as pool,
    ):
        item.backgrounded.give(0)
        other.execute("LOCK TABLE procrastinate_jobs")
        jobs = [pool.submit(contextvars.copy_context().run, item.backgrounded.give, number) for number in range(30)]
        eventually(lambda: ask(f"{sessions} AND wait_event_type = 'Lock'") == [(10,)])
        # The ten, theirs, and the one that asks: PostgreSQL lists one that was closed for a moment longer.
        eventually(lambda: ask(sessions) == [(12,)])
        other.rollback()
        assert len({job.result(60).id for job in jobs}) == 30
        handler.close()


def test_who_waits_in_line_for_too_long_has_sent_nothing(shop_url):
    connections = Connections(shop_url, {}, patience=1)
    with ExitStack() as held:
        for _ in range(10):
            held.enter_context(connections.one())
        with pytest.raises(NotConnected, match="All 10 connections of this process"):
            held.enter_context(connections.one())
    with connections.one() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    connections.close()


def test_who_waits_for_a_job_waits_in_line_for_as_long(shop_url, item, monkeypatch):
    with (
        backgrounded.using("procrastinate", url=shop_url, enqueue_timeout=60) as handler,
        ThreadPoolExecutor(1) as other,
    ):
        job = item.backgrounded.give(0)
        with ExitStack() as held:
            for _ in range(MOST):
                held.enter_context(handler.store.connections.one())
            monkeypatch.setattr(handler.store.connections, "patience", 0.4)  # the line's; a use of one has its minute
            with pytest.raises(NotConnected, match="All 10"):
                job.result(0)
            waiting = other.submit(job.result, 60)
            assert not wait([waiting], 1).done
            monkeypatch.undo()
        assert job.cancel()
        with pytest.raises(NoResult, match="cancelled"):
            waiting.result(60)
        handler.close()


def test_a_connection_that_the_server_has_closed_is_not_used_again(handler, ask, item):
    item.backgrounded.give(1)
    others = "pid <> pg_backend_pid() AND datname = current_database()"
    ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    eventually(lambda: ask(f"SELECT count(*) FROM pg_stat_activity WHERE {others}") == [(0,)])
    assert item.backgrounded.give(2).state == "queued"


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """More of them than `select` can tell apart."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1_200), before[1]))
    with ExitStack() as held:
        for _ in range(1_050):
            held.enter_context(Path(os.devnull).open())
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_with_a_thousand_open_files_calls_and_asks_again_and_again(shop_url, many_open_files, item):
    with backgrounded.using("procrastinate", url=shop_url) as handler:
        jobs = [item.backgrounded.give(number) for number in range(3)]
        assert [job.state for job in jobs] == ["queued"] * 3
        with pytest.raises(ResultTimeout):
            jobs[0].result(0)
        handler.close()


def test_a_connection_that_cannot_be_examined_is_closed(shop_url, monkeypatch):
    connections = Connections(shop_url, {}, patience=10)
    with connections.one() as first:
        pass

    def fail(connection: Any) -> bool:
        raise OSError("Too many open files")

    monkeypatch.setattr("backgrounded_procrastinate._connections._is_usable", fail)
    with pytest.raises(OSError, match="Too many"), connections.one():
        pass
    assert first.closed
    monkeypatch.undo()
    with connections.one() as second:
        assert second.execute("SELECT 1").fetchone() == (1,)
    connections.close()


def test_a_forked_child_uses_no_connection_of_its_parent(handler, item):
    item.backgrounded.give(1)
    assert forked(lambda: item.backgrounded.give(2)) == 0
    assert item.backgrounded.give(3).state == "queued"


def test_a_fork_in_the_middle_of_calls_of_others_does_not_hold_the_child_up(handler, item, monkeypatch):
    item.backgrounded.give(1)
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def stand_still(connection: Any) -> bool:
        arrived.release()
        return go_on.wait(60)

    monkeypatch.setattr("backgrounded_procrastinate._connections._is_usable", stand_still)
    with ThreadPoolExecutor(MOST) as threads:
        calls = []
        for _ in range(MOST):  # one on the connection that is there, the others on new ones, until none is left
            calls.append(threads.submit(contextvars.copy_context().run, item.backgrounded.give, 2))
        assert arrived.acquire(timeout=10)
        monkeypatch.undo()
        status = forked(lambda: item.backgrounded.give(3))
        go_on.set()
        assert [call.result(60).state for call in calls] == ["queued"] * MOST
    assert status == 0


def test_a_database_without_procrastinate_s_schema_says_what_to_do(postgres, item):
    with psycopg.connect(f"{postgres.url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    with (
        backgrounded.using("procrastinate", url=f"{postgres.url}/bare") as handler,
        pytest.raises(EnqueueError, match="schema --apply") as error,
    ):
        item.backgrounded.give(1)
    assert not error.value.uncertain
    handler.close()


@pytest.mark.parametrize("queue", ["a,b", " a", "a ", "x" * 129])
def test_a_queue_that_no_worker_could_serve_is_refused(handler, item, queue):
    with pytest.raises(InvalidOption, match="queue"):
        item.backgrounded(queue=queue).give(1)
    with pytest.raises(ConfigurationError, match="queue"):
        ProcrastinateHandler("postgresql://localhost/shop", queue=queue)


def test_a_limit_of_time_is_refused(handler, item):
    with pytest.raises(UnsupportedOption, match="timeout"):
        item.backgrounded(timeout=5).give(1)


# -- secrets


def test_no_argument_is_in_a_log_or_in_procrastinate_s_tables(handler, ask, item, caplog):
    caplog.set_level("DEBUG")
    job = item.backgrounded.give(1, CANARY)
    assert CANARY not in caplog.text + repr([vars(record) for record in caplog.records])
    assert CANARY not in str(ask("SELECT * FROM procrastinate_jobs"))
    assert CANARY not in repr(job)


# -- configuration


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "which database"),
        ({"url": "mysql://localhost/shop"}, "postgresql://"),
        ({"url": "postgresql://me:hush@localhost:x y/shop?nonsense"}, "libpq cannot read"),
        ({"app": "shop tasks"}, "shop.tasks:app"),
        ({"app": 5}, "is no procrastinate.App"),
        ({"app": procrastinate.App(connector=InMemoryConnector())}, "cannot be told"),
        ({"url": "postgresql://localhost/shop", "concurrency": 0}, "concurrency"),
        ({"url": "postgresql://localhost/shop", "enqueue_timeout": -1}, "enqueue_timeout"),
        ({"url": "postgresql://localhost/shop", "quue": "x"}, "quue"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_configured(arguments, told):
    with pytest.raises(ConfigurationError, match=told) as error:
        backgrounded.configure("procrastinate", **arguments)
    assert "hush" not in str(error.value)


def test_an_app_is_looked_up_by_its_name_at_the_first_use(shop, item):
    with backgrounded.using("procrastinate", app="procrastinateshop.tasks:app") as handler:
        assert handler.app is shop
        assert item.backgrounded.give(1).state == "queued"
        handler.close()
    with (
        backgrounded.using("procrastinate", url="procrastinateshop.nowhere:app"),
        pytest.raises(ConfigurationError, match="nowhere"),
    ):
        item.backgrounded.give(1)


def test_a_database_may_be_named_beside_an_app_that_does_not_tell(shop_url, item):
    app = procrastinate.App(connector=InMemoryConnector())
    with backgrounded.using("procrastinate", app=app, url=shop_url) as handler:
        assert item.backgrounded.give(1).state == "queued"
        handler.close()


def test_an_app_is_told_of_our_tasks_once(shop):
    before = len(shop.tasks)
    install(shop)
    ProcrastinateHandler(app=shop)
    assert len(shop.tasks) == before


def test_the_command_carries_what_a_worker_needs(shop, monkeypatch, caplog):
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "shop")
    command = ProcrastinateHandler("postgresql://me:hush@localhost/shop?sslmode=require", queue="main").worker_command()
    assert "BACKGROUNDED_APP is not set" in caplog.text
    assert command[:3] == [
        *("env", "BACKGROUNDED_ALLOW=shop"),
        "BACKGROUNDED_URL=procrastinate+postgresql://me:hush@localhost/shop?sslmode=require&queue=main",
    ]
    assert "hush" not in " ".join(command[3:])
    assert "--queues=main,backgrounded.recover" in command
    with pytest.raises(ConfigurationError, match="by its name"):
        ProcrastinateHandler(app=shop).worker_command(["a"])
