"""What was set aside: is it there, as it came, until somebody decides, and what does that change?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from backgrounded import ConfigurationError
from backgrounded.testing.probe import Probe, Record, events, given
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqliteshop import Item
from sqlitetools import Workers, made, row

from waiting import eventually

REASON = b'{"reason":"It was a test.","code":"refused"}'


def keep(handler: SQLiteHandler, probe: Probe, word: str) -> str:
    """Call something, and set it aside; its id."""
    call = made(lambda: probe.backgrounded.note(word))
    handler.enqueue(call)
    query(handler.path, "UPDATE jobs SET state = 'kept', outcome = ? WHERE id = ?", REASON, call.id)
    return call.id


@pytest.mark.worker
def test_what_was_set_aside_is_there_after_a_restart_and_runs_when_it_is_replayed(
    handler: SQLiteHandler, workers: Workers, oracle: str, tmp_path: Path
) -> None:
    there = tmp_path / "row"
    there.touch()
    record = Record(oracle, str(there))
    there.unlink()
    with workers(handler):
        job = record.backgrounded(priority=8, timeout=30).find(7)
        assert job.wait(60) == "kept"
    again = SQLiteHandler(handler.url, processes=1)
    [kept] = again.kept()
    assert (kept.id, kept.name, kept.code) == (job.id, "backgrounded.testing.probe.Record.find", "target-gone")
    assert kept.reason
    assert kept.wire == row(handler, job.id)["wire"]
    assert row(handler, job.id)["forget_at"] is None
    with workers(handler):
        there.touch()
        again.replay(job.id)
        assert job.result(60) == 7
    assert len(events(oracle, "gone")) == 1
    assert list(again.kept()) == []


@pytest.mark.worker
def test_a_job_that_is_replayed_begins_from_the_beginning(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    """Attempts and deaths are counted anew: it has as many tries as at first."""
    with workers(handler):
        job = item.backgrounded(retry=2).die(5)
        assert job.wait(60) == "kept"
        assert row(handler, job.id)["deaths"] == 3
        handler.replay(job.id)
        assert job.result(60) == "survived"
    assert [event.attempt for event in events(oracle, "die")] == [1] * 6
    assert row(handler, job.id)["deaths"] == 2


def test_a_job_that_is_replayed_is_as_if_it_were_called_now(handler: SQLiteHandler, probe: Probe) -> None:
    id = keep(handler, probe, "x")
    query(handler.path, "UPDATE jobs SET attempt = 7, deaths = 3, due = 1 WHERE id = ?", id)
    before = row(handler, id)
    handler.replay(id)
    after = row(handler, id)
    assert after["due"] > 1_000_000_000
    changed = {"state": "queued", "attempt": 1, "deaths": 0, "outcome": None, "due": after["due"]}
    assert after == {**before, **changed}
    assert handler.state(id) == "queued"


def test_what_was_set_aside_is_listed_oldest_first_however_much_it_is(handler: SQLiteHandler, probe: Probe) -> None:
    """More of it than is read at once, and some of it goes while it is read."""
    ids = [keep(handler, probe, str(number)) for number in range(250)]
    assert [kept.id for kept in handler.kept()] == ids
    for kept in handler.kept():
        handler.forget(kept.id)
    assert list(handler.kept()) == []
    assert query(handler.path, "SELECT count(*) FROM jobs") == [(0,)]


def test_what_is_forgotten_is_gone(handler: SQLiteHandler, probe: Probe) -> None:
    first, second = keep(handler, probe, "x"), keep(handler, probe, "y")
    handler.forget(first)
    assert handler.state(first) == "unknown"
    assert [kept.id for kept in handler.kept()] == [second]


@pytest.mark.parametrize("state", [None, "queued", "running", "succeeded", "cancelled"])
def test_what_is_not_kept_can_neither_be_replayed_nor_forgotten(
    handler: SQLiteHandler, probe: Probe, state: str | None
) -> None:
    id = "0" * 32 if state is None else probe.backgrounded.note().id
    query(handler.path, "UPDATE jobs SET state = ?", state)
    for change in (handler.replay, handler.forget):
        with pytest.raises(ConfigurationError, match=f"No job '{id}' is kept here"):
            change(id)
    assert query(handler.path, "SELECT state FROM jobs") == ([(state,)] if state else [])


@pytest.mark.parametrize("folder", [".", "missing"])
def test_looking_after_what_was_kept_where_there_is_no_file_says_so_and_makes_none(tmp_path: Path, folder: str) -> None:
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/{folder}/typo.db")
    uses: list[Callable[[], object]] = [
        lambda: list(handler.kept()),
        lambda: handler.replay("0" * 32),
        lambda: handler.forget("0" * 32),
    ]
    for use in uses:
        with pytest.raises(ConfigurationError, match=r"there is no queue at .*typo\.db: name the one that"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_queue_that_is_removed_while_what_was_kept_is_listed_is_not_made_anew(
    handler: SQLiteHandler, probe: Probe
) -> None:
    ids = [keep(handler, probe, str(number)) for number in range(101)]
    listing = handler.kept()
    assert next(listing).id == ids[0]
    handler.path.unlink()
    with pytest.raises(ConfigurationError, match="there is no queue"):
        list(listing)
    assert not handler.path.exists()


def test_what_is_kept_is_not_cancelled(handler: SQLiteHandler, probe: Probe) -> None:
    id = keep(handler, probe, "x")
    assert handler.cancel(id) is False
    assert handler.state(id) == "kept"


@pytest.mark.parametrize(
    "outcome", [None, b"", b"{", b"[1]", b'{"reason":7}', b"[" * 100_000, 7], ids=lambda o: repr(o)[:12]
)
def test_a_reason_that_cannot_be_read_hides_neither_its_job_nor_the_others(
    handler: SQLiteHandler, probe: Probe, outcome: object
) -> None:
    ids = [keep(handler, probe, word) for word in "abc"]
    query(handler.path, "UPDATE jobs SET outcome = ? WHERE id = ?", outcome, ids[1])
    found = list(handler.kept())
    assert [kept.id for kept in found] == ids
    assert all(isinstance(kept.reason, str) and isinstance(kept.code, str) for kept in found)
    handler.replay(ids[1])
    assert handler.state(ids[1]) == "queued"


@pytest.mark.worker
def test_a_job_of_a_release_to_come_is_kept_as_it_came(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str
) -> None:
    call = made(lambda: probe.backgrounded.note("good"))
    strange = made(lambda: probe.backgrounded.note("from the future"))
    strange = type(strange)(**{**vars(strange), "tree": {**strange.tree, "v": 99}})
    with workers(handler):
        handler.enqueue(strange)
        handler.enqueue(call)
        eventually(lambda: events(oracle, "note"))
        eventually(lambda: handler.state(strange.id) == "kept")
    assert [event.given for event in events(oracle, "note")] == [given("good")]
    [kept] = handler.kept()
    assert kept.wire == strange.wire
