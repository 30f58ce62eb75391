"""Which PostgreSQL do the tests talk to? A real one, started here as somebody who is not root, on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from needs import missing
from processes import children
from servers import free_port, freeze
from waiting import eventually

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
"""Where systems keep the programs of the server, which are not for every user's path."""


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server of its own, empty, without the syncs that keep data over a loss of power."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.end()


class Postgres:
    """A server over a folder: its superuser's URL without the name of a database, and its process."""

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}"
        self._programs, self._who = _programs(), _somebody()
        self._folder, self._data = folder, folder / "data"
        if self._who:
            shutil.chown(folder, self._who["user"])
        initdb = ["--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "-D", self._data]
        made = subprocess.run(
            [self._programs / "initdb", *initdb], cwd=folder, capture_output=True, text=True, check=False, **self._who
        )
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        fast = [word for name in ("fsync", "full_page_writes") for word in ("-c", f"{name}=off")]
        place = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        log = self._folder / "log"
        with log.open("wb") as output:
            command = [self._programs / "postgres", "-D", self._data, *place, *fast, "-c", "max_connections=200"]
            self.process = subprocess.Popen(command, cwd=self._folder, stdout=output, stderr=output, **self._who)
        _await(self.process, self.port, log)

    def end(self) -> None:
        """Fast: it hangs up on everybody, and gives its shared memory back."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # a test may have frozen it
            self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL, for it and for the processes that it leaves behind: they hold the memory that the next one wants."""
        left = children(self.process.pid)
        self._signal(signal.SIGKILL, self.process.pid, *left)
        self.process.wait(60)
        for pid in left:
            eventually(lambda pid=pid: _has_ended(pid))

    def freeze(self) -> None:
        """SIGSTOP, for it and then for those that it has started: it starts no more."""
        freeze(self.process.pid)
        for pid in children(self.process.pid):
            with suppress(ProcessLookupError):
                freeze(pid)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT, *children(self.process.pid), self.process.pid)

    @staticmethod
    def _signal(number: int, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def procrastinate_on(server: Postgres) -> str:
    """The URL of a database in which Procrastinate has its schema."""
    import procrastinate

    url = f"{server.url}/postgres"
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    with app.open():
        app.schema_manager.apply_schema()
    return url


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _programs() -> Path:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = [path for place in PLACES for path in sorted(Path("/").glob(place.lstrip("/")))]
    if not folders:
        missing("PostgreSQL: the package postgresql brings initdb and postgres")
    return folders[-1]


def _somebody() -> dict[str, Any]:
    """Whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        missing("the user postgres: the server refuses to run as root")
    return {"user": "postgres", "group": "postgres", "extra_groups": ()}


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while b"ready to accept connections" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"PostgreSQL does not start (exit {process.poll()}):\n{log.read_text()}")
        time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
