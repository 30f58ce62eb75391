"""How is the SQLite handler put to the contract? What its contract, its sabotages and its own tests share."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from backgrounded.testing import HandlerContract
from backgrounded_sqlite import SQLiteHandler

from processes import running


class SQLiteContract(HandlerContract):
    """A worker is one process, so that jobs run one at a time; its output goes to one file for the class."""

    output: ClassVar[Path]
    handler_class: ClassVar[type[SQLiteHandler]] = SQLiteHandler

    @pytest.fixture(scope="class")
    @classmethod
    def handler(cls, tmp_path_factory: pytest.TempPathFactory) -> SQLiteHandler:
        folder = tmp_path_factory.mktemp("sqlite")
        cls.output = folder / "workers.log"
        return cls.handler_class(f"sqlite:///{folder}/jobs.db", processes=1)

    def worker(self, handler: SQLiteHandler, *queues: str) -> AbstractContextManager[Any]:
        return sqlite_worker(handler, queues, self.output)

    def worker_output(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def dead_handler(self) -> SQLiteHandler:
        return SQLiteHandler("sqlite:////nowhere/jobs.db")

    def environment(self, handler: SQLiteHandler) -> Mapping[str, str]:
        return {"BACKGROUNDED_URL": handler.url, "BACKGROUNDED_APP": "backgrounded.testing.probe"}


def sqlite_worker(
    handler: SQLiteHandler,
    queues: Sequence[str],
    output: Path,
    *options: str,
    app: str = "backgrounded.testing.probe",
    environment: Mapping[str, str] | None = None,
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker with all of its processes, ready when each of them is on the file's list."""

    def is_ready() -> bool:
        return len(listed(handler.path, queues)) == handler.processes

    return running(
        [*handler.worker_command(queues), *options],
        environment={"BACKGROUNDED_APP": app, **(environment or {})},
        output=output,
        is_ready=is_ready,
    )


def listed(path: Path, queues: Sequence[str]) -> list[int]:
    """The process ids of those that work on these queues, as the file says."""
    return [pid for pid, served in query(path, "SELECT pid, queues FROM workers") if json.loads(served) == list(queues)]


def query(path: Path, statement: str, *values: Any) -> list[Any]:
    """What stands in the file, past the handler."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        try:
            return connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # nobody has opened the queue yet
                return []
            raise
