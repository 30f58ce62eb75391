"""What happened to the jobs of a run? The jobs and the callers say so themselves, past the engine.

The oracle is one file that only grows. Each event is one line and one `os.write`:

    T id attempt mono pid worker    a caller is about to hand this job over
    A ...                           and the call returned
    E ...                           or raised EnqueueError
    W ...                           a worker has imported the application (the id is the wall clock)
    S ...                           a run of the job starts
    D ...                           and ends

`mono` is CLOCK_MONOTONIC, which all processes of a machine share; `worker` is the name that the harness gave to the
worker, since process ids mean nothing outside of a namespace. Nothing here knows an engine.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = "CHAOS_ORACLE"
WORKER: Final = "CHAOS_WORKER"
"""The environment variables that tell a process where the oracle is, and what it is called itself."""
_opened: dict[tuple[int, str], int] = {}


@dataclass(frozen=True)
class Event:
    kind: str
    id: str
    attempt: int
    mono: float
    pid: int
    worker: str


def tell(kind: str, id: str, attempt: int = 0) -> None:
    """Add one event, in one write."""
    line = f"{kind} {id} {attempt} {time.monotonic():.6f} {os.getpid()} {os.environ.get(WORKER, '-')}\n"
    os.write(_descriptor(), line.encode())


def _descriptor() -> int:
    place = os.getpid(), os.environ[FILE]
    if place not in _opened:
        _opened[place] = os.open(place[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return _opened[place]


class Oracle:
    """The harness's side: what it has read so far, as sets. `look` reads on, and returns what is new."""

    def __init__(self, path: Path, pause: float = 0.002) -> None:
        self.path = path
        self.pause = pause
        """Seconds between two looks."""
        self.tried: dict[str, Event] = {}
        self.accepted: dict[str, Event] = {}
        self.refused: dict[str, Event] = {}
        self.workers: dict[str, Event] = {}
        self.starts: dict[str, list[Event]] = {}
        self.ends: dict[str, list[Event]] = {}
        self.running: dict[str, set[str]] = defaultdict(set)
        """What each worker has started, and not ended."""
        path.touch(0o600)
        self._file = path.open("rb", buffering=0)
        self._rest = b""

    def close(self) -> None:
        self._file.close()

    def look(self) -> list[Event]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [self._note(line) for line in lines]

    def _note(self, line: bytes) -> Event:
        kind, id, attempt, mono, pid, worker = line.decode().split(" ")
        event = Event(kind, id, int(attempt), float(mono), int(pid), worker)
        if kind == "S":
            self.starts.setdefault(id, []).append(event)
            self.running[worker].add(id)
        elif kind == "D":
            self.ends.setdefault(id, []).append(event)
            self.running[worker].discard(id)
        elif kind == "W":
            self.workers[worker] = event
        else:
            {"T": self.tried, "A": self.accepted, "E": self.refused}[kind][id] = event
        return event

    # -- questions about sets

    @property
    def lost(self) -> set[str]:
        """Accepted, and never run to the end."""
        return self.accepted.keys() - self.ends.keys()

    @property
    def phantoms(self) -> set[str]:
        """Run, though nobody called."""
        return self.starts.keys() - self.tried.keys()

    @property
    def started_twice(self) -> set[str]:
        return {id for id, events in self.starts.items() if len(events) > 1}

    @property
    def completed_twice(self) -> set[str]:
        return {id for id, events in self.ends.items() if len(events) > 1}

    # -- waiting

    def looks(self, within: float) -> Iterator[None]:
        return looks(within, self.pause)

    def until(self, question: Callable[[], bool], within: float, what: str) -> None:
        """Read on until it is so. Fails after so many seconds."""
        for _ in self.looks(within):
            self.look()
            if question():
                return
        raise AssertionError(f"not within {within:g} s: {what}")

    def settle(self, quiet: float) -> None:
        """Read on until nothing is lost, or until nothing has been told for so many seconds."""
        self.look()
        last = time.monotonic()
        while self.lost and time.monotonic() - last < quiet:
            if self.look():
                last = time.monotonic()
            else:
                time.sleep(self.pause)


def looks(within: float, pause: float = 0.002) -> Iterator[None]:
    """One look after the other, for so many seconds; one more at the end."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        yield
        time.sleep(pause)
    yield


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
