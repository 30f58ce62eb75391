"""What these tests are written with: wait for a condition, look into the file, run code elsewhere, start a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import backgrounded
from backgrounded import Call
from backgrounded.handlers.memory import MemoryHandler
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import listed, query, sqlite_worker

from processes import WITH_PARENT

HERE = Path(__file__).parent
NOBODY = 65534


def row(handler: SQLiteHandler, id: str) -> dict[str, Any]:
    """What the file holds about a job."""
    names = [name for _, name, *_ in query(handler.path, "PRAGMA table_info(jobs)")]
    [found] = query(handler.path, "SELECT * FROM jobs WHERE id = ?", id)
    return dict(zip(names, found, strict=True))


def is_sound(path: Path) -> bool:
    return bool(query(path, "PRAGMA integrity_check") == [("ok",)])


def made(call: Callable[[], Any], **changes: Any) -> Call:
    """The `Call` that a call makes, with other fields, and not sent."""
    with backgrounded.using(MemoryHandler) as recorder:
        call()
    return replace(cast(MemoryHandler, recorder).calls[0], **changes)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Inside the block another connection is writing; its end lets go, unless the block has done so."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def elsewhere(script: str, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
    """What a Python of its own prints when it runs this; it must end well."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path_of_tests(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def path_of_tests() -> str:
    return os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


class Workers:
    """Starts workers for the queues of a handler; `output` is what all of them said."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "workers.log"

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @contextlib.contextmanager
    def __call__(
        self, handler: SQLiteHandler, *queues: str, options: Sequence[str] = (), app: str = "sqliteshop", **more: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that is ready, with all of its processes; told to end and awaited at the end of the block."""
        environment = {"PYTHONPATH": path_of_tests(), **more}
        names = queues or (handler.default_queue,)
        app = f"backgrounded.testing.probe,{app}" if app else app
        with sqlite_worker(handler, names, self.output, *options, app=app, environment=environment) as process:
            yield process

    @contextlib.contextmanager
    def unready(
        self, command: Sequence[str], *, cwd: Path | None = None, more: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A process of this command, of which nothing is awaited; killed at the end of the block."""
        environment = {**os.environ, "PYTHONPATH": path_of_tests(), **more}
        with self.output.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-ISc", WITH_PARENT, *command], env=environment, cwd=cwd, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            process.kill()
            process.wait()


def children(handler: SQLiteHandler, *queues: str) -> list[int]:
    """The process ids of a worker's processes, as the file says."""
    return listed(handler.path, queues or (handler.default_queue,))


def is_running(pid: int) -> bool:
    """Whether a process lives: neither gone nor a zombie that nobody has buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
