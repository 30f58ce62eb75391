"""What becomes of rows that a stranger, another release or a bad deploy has written? No worker runs here."""

from __future__ import annotations

from typing import Any

import pytest
from backgrounded import State
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
