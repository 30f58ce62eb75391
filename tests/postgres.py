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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from needs import missing
from servers import free_port

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
"""Where systems keep the programs of the server, which are not for every user's path."""


@dataclass(frozen=True)
class Server:
    """A running server: its superuser's URL without the name of a database, and its process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A server of its own, empty, without the syncs that keep data over a power failure."""
    programs = _programs()
    who = _somebody()
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        if who:
            shutil.chown(folder, who["user"])
        data, port = Path(folder) / "data", free_port()
        initdb = [programs / "initdb", "--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8"]
        made = subprocess.run([*initdb, "-D", data], cwd=folder, capture_output=True, text=True, check=False, **who)
        assert made.returncode == 0, made.stderr
        fast = [word for name in ("fsync", "synchronous_commit", "full_page_writes") for word in ("-c", f"{name}=off")]
        place = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            command = [programs / "postgres", "-D", data, *place, *fast, "-c", "max_connections=200"]
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, **who)
        try:
            _await(process, port, log)
            yield Server(f"postgresql://postgres@127.0.0.1:{port}", process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)  # a test may have frozen it
                process.send_signal(signal.SIGINT)  # fast: it hangs up on everybody
            process.wait(60)


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
