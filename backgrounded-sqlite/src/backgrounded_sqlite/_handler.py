"""How do our words become rows, and rows our states?

The file does what a broker does elsewhere. Nothing is kept in the handler but where it is.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from backgrounded import Call, ConfigurationError, EnqueueError
from backgrounded.handler import (
    ENQUEUE_TIMEOUT,
    Feature,
    Finding,
    Guarantees,
    Kept,
    State,
    outcome_from,
    result_of,
    warn_without_app,
    with_settings,
    worker_settings,
)

from ._file import File, path_of, url_of
from ._store import Store

logger = logging.getLogger("backgrounded")

DEFAULT_QUEUE: Final = "default"
GRACE: Final = 25.0
"""Seconds that running jobs have to finish after SIGTERM: less than the 30 that Kubernetes waits."""
FIRST_LOOK: Final = 0.002
LAST_LOOK: Final = 0.025
"""Seconds between two looks at a file for a result: at first, and in the end."""


class SQLiteHandler:
    """Keeps jobs in one SQLite file, which `backgrounded worker` runs in processes on the same machine.

    `url` is "sqlite:///jobs.db" (in the current directory, and the default) or "sqlite:////var/lib/jobs.db"; the file
    is made by the first call or worker, for its owner alone (0600). `queue` is the name of the default queue.
    `processes` is how many a worker has (by default one for each core, at most four), `grace` how many seconds its
    running jobs have to finish when it is told to end (25). `enqueue_timeout` bounds how many a call waits for others
    that write (2).

    Raises ConfigurationError for what cannot work.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = frozenset(Feature) - {Feature.NATIVE}
    guarantees: Final = Guarantees(
        "at-least-once",
        durable_publish=True,
        recovery_s=1.0,
        clock=True,
        dedupe=True,
        notes=(
            "A job of a worker that died runs again within a second, where another one of the same queue is alive.",
            "A call is on the disk when it returns. What a worker writes is there for any process at once, and after a "
            "loss of power perhaps not yet: then a job that had ended runs again.",
            "The file has to be on a disk of this machine: SQLite cannot share it over a network.",
            "A worker that is frozen keeps what it runs until it goes on or dies.",
        ),
    )
    priority_levels: Final = 10

    def __init__(
        self,
        url: str | None = None,
        *,
        queue: str | None = None,
        processes: int | None = None,
        grace: float = GRACE,
        enqueue_timeout: float = ENQUEUE_TIMEOUT,
    ) -> None:
        self.path = path_of("sqlite:///jobs.db" if url is None else url)
        self.url = url_of(self.path)
        self.default_queue = _check_queue(queue)
        self.processes = _check_processes(processes)
        self.grace = _check_seconds("grace", grace, least=0)
        patience = _check_seconds("enqueue_timeout", enqueue_timeout, least=0.001)
        self._store = Store(File(self.path, patience=patience, durable=True))

    # -- handing over

    def enqueue(self, call: Call) -> str:
        return self.enqueue_many([call])[0]

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """One transaction: all of the calls are taken, or none is. One that was taken before is not taken again.

        What a signal's handler raises may come when they have been taken: then the error is uncertain.
        """
        try:
            self._store.put(calls, self.default_queue)
        except (sqlite3.Error, OSError, EnqueueError) as error:
            what = calls[0].name if len(calls) == 1 else f"{len(calls)} jobs"
            reason = f"{type(error).__name__}: {error}"
            if self._store.file.may_have_committed:
                raise EnqueueError(f"{self.path} took {what}, or may have, before {reason}", uncertain=True) from error
            raise EnqueueError(f"{self.path} could not take {what}: {reason}") from error
        return [call.id for call in calls]

    # -- asking

    def state(self, id: str) -> State:
        return self._store.look(id)[0]

    def result(self, id: str, timeout: float | None) -> Any:
        end = math.inf if timeout is None else time.monotonic() + timeout
        pause, seen = FIRST_LOOK, (0, 0)
        while True:
            version = self._store.version()
            if version != seen or pause == LAST_LOOK:
                state, stored = self._store.look(id)
                if state.ended or state is State.UNKNOWN or time.monotonic() >= end:
                    return result_of(id, state, outcome_from(id, stored))
            seen = version
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(pause * 1.5, LAST_LOOK)

    def cancel(self, id: str) -> bool:
        return self._store.cancel(id)

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        return self._store.kept()

    def replay(self, id: str) -> None:
        self._store.replay(id)

    def forget(self, id: str) -> None:
        self._store.forget(id)

    def examine(self) -> Iterator[Finding]:
        """Whether there is a place for the file, which is made by the first call."""
        folder = self.path.parent
        if not folder.is_dir():
            yield Finding(f"There is no directory {folder}: each call fails.", "make it, or mend the URL", gap=True)

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """The worker for these queues: this Python, and as many processes as were configured.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        """
        warn_without_app()
        command = [sys.executable, "-m", "backgrounded_sqlite", "--url", self.url, "--processes", str(self.processes)]
        command += ["--grace", f"{self.grace:g}"] if self.grace != GRACE else []
        command += ["--queue", self.default_queue] if self.default_queue != DEFAULT_QUEUE else []
        served = list(queues) or [self.default_queue]
        command += ["--"] if any(queue.startswith("-") for queue in served) else []
        return with_settings([*command, *served], worker_settings())

    @staticmethod
    @contextmanager
    def demo() -> Iterator[str]:
        """The URL of a file of its own, for `python -m backgrounded demo`; removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="backgrounded-demo-") as folder:
            yield url_of(Path(folder, "jobs.db"))

    def __repr__(self) -> str:
        return f"<SQLiteHandler of {str(self.path)!r}>"


def _check_queue(queue: Any) -> str:
    if queue is not None and not (isinstance(queue, str) and queue):
        raise ConfigurationError(f"sqlite: queue: must be a name, got {queue!r}.")
    return queue or DEFAULT_QUEUE


def _check_processes(processes: Any) -> int:
    if processes is None:
        return min(4, os.cpu_count() or 1)
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ConfigurationError(f"sqlite: processes: must be a whole number of at least 1, got {processes!r}.")
    return processes


def _check_seconds(name: str, seconds: Any, least: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not least <= seconds < math.inf:
        raise ConfigurationError(f"sqlite: {name}: must be seconds, at least {least:g}, got {seconds!r}.")
    return seconds
