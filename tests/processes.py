"""How does a test run a real worker?

It is awaited until it is ready, ended by its own process id, and ends by itself when the tests are killed.
"""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

# In the child, before the worker: let it be told to end (SIGTERM) when the process that started it is no more.
WITH_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)


def forked(work: Callable[[], object], within: int = 30) -> int:
    """The wait status of a child that is forked to do this. It is 0 if it has, and not hung for so many seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 and later: that there are threads is meant
        child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.register(signal.SIGALRM, file=2, chain=True)
            signal.alarm(within)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


@contextlib.contextmanager
def in_the_middle(call: Callable[[], object], pool: Any) -> Iterator[None]:
    """Inside the block another thread makes this call, and has the lock of this pool of redis-py, whose first it is."""
    make, arrived, go_on = pool.make_connection, threading.Event(), threading.Event()

    def stand_still() -> object:
        arrived.set()
        assert go_on.wait(60)
        return make()

    pool.make_connection = stand_still
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
    thread.start()
    try:
        assert arrived.wait(10)
        del pool.make_connection
        yield
    finally:
        go_on.set()
        thread.join()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: Path,
    is_ready: Callable[[], bool],
    within: float = 60.0,
    again: float | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process inside the block: ready at its beginning, told to end (SIGTERM) and awaited at its end.

    One that may miss the first SIGTERM, or whose children may, is told `again` after so many seconds, and they with it.

    Commands are looked for beside the Python that runs the tests first; what they write is appended to `output`.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
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
        while True:
            has_ended = process.poll() is not None  # asked first: one that is ready may end the moment after
            if is_ready():
                break
            if has_ended or time.monotonic() > end:
                pytest.fail(f"{command} is not ready (exit {process.poll()}):\n{output.read_text()[-4000:]}")
            time.sleep(0.01)
        yield process
    finally:
        _end(process, output, within, again)


def children(pid: int) -> list[int]:
    """The process ids of what this process has started, and which still lives."""
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for found in lists for child in found.split()]


def _end(process: subprocess.Popen[bytes], output: Path, within: float, again: float | None) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    if again is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(again)
        for pid in [] if process.poll() is not None else [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"a worker did not end within {within:g} s of SIGTERM:\n{output.read_text()[-4000:]}")
