"""What becomes of rows that a stranger, another release or a bad deploy has written? No worker runs here."""

from __future__ import annotations

from itertools import islice
from typing import Any

import backgrounded
import psycopg
import pytest
from backgrounded import State
from backgrounded_procrastinate import _store
from procrastinateshop.jobs import Item

NO_END = {"reason": "no end of ours was written", "code": "unknown-task"}
TOO_LONG = ["8.64e13", "1e300", "infinity", "-1e300", "nan"]
"""Seconds after which no clock of PostgreSQL's shows a time."""


@pytest.fixture
def call(item: Item, ask: Any) -> Any:
    """A call that waits, with this in the column of its time to be remembered."""

    def make(ttl: str = "60") -> Any:
        job = item.backgrounded(delay=600).give(1)
        ask("UPDATE backgrounded_jobs SET ttl = %s::double precision WHERE id = %s", ttl, job.id)
        return job

    return make


@pytest.fixture
def end_without_us(ask: Any) -> Any:
    """Let Procrastinate end a job, of which no end of ours is written."""

    def end(job: Any, status: str) -> None:
        for each in ("doing", status):
            ask("UPDATE procrastinate_jobs SET status = %s WHERE id = %s", each, int(job.engine_id))

    return end


# -- how long they are remembered


@pytest.mark.parametrize("ttl", TOO_LONG)
def test_an_end_is_written_however_long_it_is_to_be_remembered(handler, call, ask, ttl):
    done, cancelled = call(ttl), call(ttl)
    handler.store.end(done.id, State.SUCCEEDED, 1)
    assert cancelled.cancel()
    [(age,)] = ask("SELECT extract(epoch FROM forget_at - now()) FROM backgrounded_jobs WHERE id = %s", done.id)
    if ttl.startswith("-"):
        assert age <= 0
    else:
        assert age > 99 * 365 * 86_400
        assert (done.result(0), cancelled.state) == (1, "cancelled")


@pytest.mark.parametrize("ttl", TOO_LONG)
def test_the_clean_up_goes_past_a_row_that_is_to_be_remembered_for_ever(handler, call, end_without_us, ask, ttl):
    strange, lost, old = call(ttl), call(), call("0")
    end_without_us(strange, "succeeded")
    end_without_us(lost, "failed")
    handler.store.end(old.id, State.SUCCEEDED, 1)
    handler.store.tidy(NO_END)
    assert ask("SELECT state FROM backgrounded_jobs WHERE id = %s", strange.id) in ([("unknown",)], [])
    assert ask("SELECT id FROM backgrounded_jobs WHERE id = %s", old.id) == []
    assert lost.state == "kept"
    handler.forget(lost.id)


def test_a_part_of_the_clean_up_that_fails_is_logged_and_holds_no_other_up(handler, call, end_without_us, ask, caplog):
    lost, old = call(), call("0")
    end_without_us(lost, "failed")
    handler.store.end(old.id, State.SUCCEEDED, 1)
    ask("INSERT INTO procrastinate_jobs (task_name, queue_name, status) VALUES ('backgrounded.recover', 'x', 'failed')")
    ask("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no more'; END $$")
    ask("CREATE TRIGGER full_up BEFORE UPDATE ON backgrounded_jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    try:
        handler.store.tidy(NO_END)
    finally:
        ask("DROP FUNCTION refuse CASCADE")
    assert "no more" in caplog.text
    assert ask("SELECT id FROM backgrounded_jobs WHERE id = %s", old.id) == []
    assert ask("SELECT id FROM procrastinate_jobs WHERE task_name = 'backgrounded.recover'") == []
    assert lost.state == "failed"
    handler.store.tidy(NO_END)
    assert lost.state == "kept"
    handler.forget(lost.id)


# -- what was set aside


@pytest.fixture
def crowded(new_database: Any) -> Any:
    """A handler of a database of its own, and how to ask it."""
    url = new_database()
    with (
        backgrounded.using("procrastinate", url=url) as handler,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        yield handler, connection.execute
        handler.close()


def keep_many(handler: Any, count: int) -> list[str]:
    with backgrounded.batch() as jobs:
        for number in range(count):
            Item("/nowhere").backgrounded.give(number)
    for job in jobs:
        handler.store.end(job.id, State.KEPT, NO_END)
    return [job.id for job in jobs]


def test_what_was_kept_is_read_a_megabyte_at_a_time_however_much_there_is(crowded, monkeypatch):
    """All of it in one answer would take longer than an answer may."""
    handler, execute = crowded
    keep_many(handler, 1)
    execute(
        "INSERT INTO backgrounded_jobs (id, number, name, handler, wire, queue, priority, ttl, state, outcome) "
        "SELECT 'many' || n, number + n, name, handler, repeat('x', CASE n WHEN 100 THEN 2000000 ELSE 30000 END), "
        "queue, priority, ttl, state, outcome FROM backgrounded_jobs, generate_series(1, 2000) AS n"
    )
    answers = []
    ask = _store._rows

    def rows(*words: Any) -> Any:
        found = ask(*words)
        answers.append(sum(len(str(row)) for row in found))
        return found

    monkeypatch.setattr(_store, "_rows", rows)
    listed = [kept.id for kept in handler.kept()]
    assert listed[1:] == [f"many{number}" for number in range(1, 2_001)]
    assert [size for size in answers if size > 1_100_000] == [pytest.approx(2_000_000, rel=0.01)]
    answers.clear()
    assert list(handler.kept_ids()) == listed
    assert sum(answers) < 200_000


@pytest.mark.parametrize("what", ["kept", "kept_ids"])
def test_what_is_replayed_while_it_is_listed_is_not_repeated_and_hides_no_other(crowded, monkeypatch, what):
    monkeypatch.setattr(_store, "_IDS", 10)
    monkeypatch.setattr(_store, "_WIRES", 4)
    handler, _ = crowded
    ids = keep_many(handler, 50)
    listed = []
    for kept in islice(getattr(handler, what)(), 100):
        id = getattr(kept, "id", kept)
        listed.append(id)
        handler.replay(id)
        handler.store.end(id, State.KEPT, NO_END)  # it fails again at once
        if id == ids[0]:
            handler.replay(ids[30])
            handler.forget(ids[31])
    assert listed == [*ids[:30], *ids[32:]]
    assert list(handler.kept_ids()) == listed


def test_a_table_of_before_gets_its_index_from_a_worker(crowded):
    handler, execute = crowded
    ids = keep_many(handler, 3)
    execute("DROP INDEX backgrounded_jobs_kept")
    assert [kept.id for kept in handler.kept()] == ids
    handler.store.tidy(NO_END)
    assert execute("SELECT to_regclass('backgrounded_jobs_kept')").fetchone() == ("backgrounded_jobs_kept",)
    assert [kept.id for kept in handler.kept()] == ids
