"""What is known about a job beyond its place in a queue?

Huey knows what waits and what a task returned, and forgets the latter when it is read. So each job has one record of
ours in the key-value part of Huey's own store, as JSON, written and read past Huey's serializer: whoever asks for a
state or a result unpickles nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from backgrounded.handler import State
from huey import Huey
from huey.constants import EmptyData

REMEMBERED: Final = 10_000
"""Ended jobs whose records are there; the oldest are forgotten first. Huey's stores know no expiry: they would grow."""

_JOB: Final = "backgrounded.job:"
_RUN: Final = "backgrounded.run:"
_ENDED: Final = "backgrounded.ended"
_REPLAYED: Final = "backgrounded.replayed:"
_WAITING: Final = "waiting"
_STARTED: Final = b"started"
_CANCELLED: Final = b"cancelled"


class Ledger:
    """The records of the jobs of one Huey, or of several on one store.

    A run and a cancellation exclude one another: whichever puts the mark of that attempt down first has the job.
    """

    def __init__(self, huey: Huey) -> None:
        self._huey = huey

    # -- on its way

    def expect(self, id: str, attempt: int, due: float | None) -> None:
        """The job is going to wait, for its run number `attempt` and not before `due` (seconds since the epoch)."""
        self._write(id, {"state": _WAITING, "attempt": attempt, "due": due})
        if attempt > 1:
            self._store.delete_data(_mark(id, attempt - 1))

    def expect_again(self, id: str, record: Mapping[str, Any]) -> None:
        """A kept job is going to wait. It counts as kept, too, until `drop_copy`: what dies or fails in between loses
        nothing."""
        self._store.put_data(_REPLAYED + id, _json(record))
        self._store.delete_data(_mark(id, 1))  # of a cancellation that came too late, and died
        self.expect(id, 1, None)

    def drop_copy(self, id: str) -> None:
        """The job is in its queue again."""
        self._store.delete_data(_REPLAYED + id)

    def start(self, id: str, attempt: int) -> bool:
        """Whether this attempt may run: not if the job was cancelled in the meantime."""
        mark = _mark(id, attempt)
        if self._store.put_if_empty(mark, _STARTED) or _bytes(self._store.peek_data(mark)) != _CANCELLED:
            return True
        self._store.delete_data(mark)
        return False

    def cancel(self, id: str) -> bool:
        """Take the job back, if it waits and no worker has it."""
        while (record := self._read(id)).get("state") == _WAITING:
            mark = _mark(id, record["attempt"])
            if not self._store.put_if_empty(mark, _CANCELLED):
                return False
            if self._read(id) == record:
                self.end(id, None, State.CANCELLED)  # the mark stays, until a worker comes upon what is in the queue
                return True
            self._store.delete_data(mark)  # that run had begun and ended before the mark was down
        return False

    def end(self, id: str, attempt: int | None, state: State, **what: Any) -> None:
        """The job has ended, and what is to be known of that; a job that was set aside is never forgotten."""
        self._write(id, {"state": state.value, **what})
        if attempt is not None:
            self._store.delete_data(_mark(id, attempt))
        if state is not State.KEPT:
            self._forget_the_oldest(id)

    def _forget_the_oldest(self, id: str) -> None:
        """Give this job the place of the one that ended so many jobs ago."""
        place = f"{_ENDED}:{self._store.incr(_ENDED) % REMEMBERED}"
        oldest = _bytes(self._store.peek_data(place)).decode()
        self._store.put_data(place, id.encode())
        if oldest and oldest != id:
            self._store.delete_data(_JOB + oldest)
            if self._huey.results:
                self._store.delete_data(oldest)  # the error that Huey itself keeps until somebody reads it

    def forget(self, id: str) -> None:
        for kind in (_JOB, _REPLAYED):
            self._store.delete_data(kind + id)

    # -- asked

    def look(self, id: str) -> tuple[State, Mapping[str, Any]]:
        """Where the job is, and its record."""
        while True:
            record = self._read(id)
            if record.get("state") != _WAITING:
                return _state(record), record
            mark = _bytes(self._store.peek_data(_mark(id, record["attempt"])))
            if mark:
                return (State.CANCELLED if mark == _CANCELLED else State.RUNNING), record
            if self._read(id) == record:  # else it started and ended between the two looks
                return (State.SCHEDULED if (record.get("due") or 0) > time.time() else State.QUEUED), record

    def kept_record(self, id: str) -> Mapping[str, Any]:
        """The record of a job that was set aside; empty if it was not."""
        records = (_record(self._store.peek_data(kind + id)) for kind in (_JOB, _REPLAYED))
        return next((record for record in records if _state(record) is State.KEPT), {})

    def kept(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The jobs that were set aside, with their records. Reads all that is in the store."""
        records = {}
        for found, value in self._store.result_items().items():
            key = found.decode() if isinstance(found, bytes) else found
            if key.startswith((_JOB, _REPLAYED)) and _state(record := _record(value)) is State.KEPT:
                records[key.removeprefix(_JOB).removeprefix(_REPLAYED)] = record
        yield from records.items()

    # -- the store

    @property
    def _store(self) -> Any:
        return self._huey.storage  # asked each time: Huey replaces it when it enters or leaves its immediate mode

    def _write(self, id: str, record: Mapping[str, Any]) -> None:
        self._store.put_data(_JOB + id, _json(record))

    def _read(self, id: str) -> Mapping[str, Any]:
        return _record(self._store.peek_data(_JOB + id))


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def _mark(id: str, attempt: int) -> str:
    return f"{_RUN}{id}:{attempt}"


def _bytes(value: Any) -> bytes:
    return b"" if value is EmptyData else bytes(value)


def _record(value: Any) -> Mapping[str, Any]:
    """What stands under a key, if it is a record of ours: anybody may write there."""
    try:
        record = json.loads(_bytes(value) or b"{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    waits = isinstance(record.get("attempt"), int) and isinstance(record.get("due") or 0, (int, float))
    return record if waits or record.get("state") != _WAITING else {}


def _state(record: Mapping[str, Any]) -> State:
    try:
        return State(record.get("state"))
    except ValueError:
        return State.UNKNOWN
