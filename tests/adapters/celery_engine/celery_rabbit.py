"""How do the tests get a RabbitMQ? A private node on free ports, ended with what wanted it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import kombu
from processes import running

from needs import missing
from servers import free_port

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@dataclass(frozen=True)
class Node:
    url: str
    pid: int


@contextmanager
def rabbitmq_server() -> Iterator[Node]:
    """A node of its own, empty."""
    if not SERVER.exists():
        missing("a RabbitMQ server (Debian: rabbitmq-server)")
    port, mapper = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="rabbit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "plugins").write_text("[].")
        environment = {
            "HOME": name,
            "RABBITMQ_NODENAME": f"backgrounded{port}@localhost",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
        }
        url = f"amqp://guest:guest@127.0.0.1:{port}//"
        try:
            with running(
                [str(SERVER)],
                environment=environment,
                output=folder / "output",
                is_ready=lambda: _answers(url),
                within=120,
            ):
                yield Node(url, _pid_of(folder))
        finally:
            _end_port_mapper(mapper)


def _pid_of(home: Path) -> int:
    """The process of the node that has this home; what was started is a shell before it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended in the meantime
            continue
        if words[0].endswith(b"beam.smp") and str(home).encode() in words:
            return int(process.name)
    raise LookupError(f"no node lives in {home}")


def _answers(url: str) -> bool:
    try:
        with kombu.Connection(url, connect_timeout=1) as connection:
            connection.connect()
    except (OSError, kombu.exceptions.OperationalError):
        return False
    return True


def _end_port_mapper(port: int) -> None:
    """Erlang's port mapper is a daemon, which the first node starts and none ends."""
    mapper = shutil.which("epmd")
    if mapper is not None:
        environment = {**os.environ, "ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        subprocess.run([mapper, "-kill"], env=environment, capture_output=True, check=False)
