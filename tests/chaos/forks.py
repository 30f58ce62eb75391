"""What if a program that has used the queue forks, as web servers, daemons and test runners do?

    python forks.py NAME URL prefork|threads|daemon COUNT

`prefork`: a parent that has called, and children that call at the same time as it does, each from two threads.
`threads`: the parent's threads call all the time while it forks, so that a fork may meet any of their moments.
`daemon`:  a parent that has called forks and is gone; the child calls on while other processes come and go (SQLite).

Each call is told to the oracle. A child that hangs says where, is ended, and leaves what it has tried.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable

from engines import ENGINES, produce

Call = Callable[..., None]
STUCK = 60
"""Seconds after which a child that forked in the wrong moment is taken for stuck."""


def forked(work: Callable[[], None], patience: int = 0) -> int:
    """The process id of a child that does this, and nothing else."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(STUCK + patience)
        work()
        code = 0
    finally:
        os._exit(code)


def prefork(call: Call, url: str, count: int) -> list[int]:
    """The exit statuses of the children."""

    def family(name: str) -> None:
        threads = [threading.Thread(target=produce, args=(call, f"{name}-{number}-", count)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def child(name: str) -> None:
        family(name)
        assert not ended([forked(lambda: family(f"{name}-child"), count)])

    produce(call, "before-", 1)
    children = [forked(lambda name=f"c{number}": child(name), count) for number in range(3)]  # type: ignore[misc]
    family("parent")
    return ended(children)


def threads(call: Call, url: str, count: int) -> list[int]:
    """The exit statuses of the children."""
    stop = threading.Event()

    def call_all_the_time(name: str) -> None:
        turn = 0
        while not stop.is_set():  # each time in a new thread, which opens a connection of its own
            turn += 1
            one = threading.Thread(target=produce, args=(call, f"{name}-{turn}-", 3))
            one.start()
            one.join()

    produce(call, "before-", 1)  # a fork in the middle of an import of another thread is a trap of Python's own
    busy = [threading.Thread(target=call_all_the_time, args=(f"t{number}",)) for number in range(4)]
    for thread in busy:
        thread.start()
    try:
        found = []
        for number in range(count):
            one = forked(lambda name=f"f{number}-": produce(call, name, 2))  # type: ignore[misc]
            found += ended([one])
            if found:
                break
    finally:
        stop.set()
    for thread in busy:
        thread.join()
    return found


def daemon(call: Call, url: str, count: int) -> list[int]:
    """The exit statuses of the children."""
    from backgrounded_sqlite._file import path_of

    def parent() -> None:
        produce(call, "parent-", 1)
        forked(child)

    def child() -> None:
        produce(call, "first-", count)
        os.write(say, b"1")
        os.read(listen, 1)
        produce(call, "second-", count)
        os.write(say, b"2")

    (said, say), (listen, tell) = os.pipe(), os.pipe()
    status = ended([forked(parent)])
    os.close(say)
    first = os.read(said, 1)
    with contextlib.closing(sqlite3.connect(path_of(url))) as connection, connection:  # another process: the last
        connection.execute("DELETE FROM jobs WHERE id = ''")  # that closes the file tidies up behind it
    os.write(tell, b"!")
    second = os.read(said, 1)  # nothing, if it is gone
    return status or ([] if first + second == b"12" else [1])


def ended(pids: list[int]) -> list[int]:
    """The statuses of those that did not end well."""
    return [status for pid in pids if (status := os.waitpid(pid, 0)[1])]


if __name__ == "__main__":
    name, url, how, count = sys.argv[1:]
    failed = {"prefork": prefork, "threads": threads, "daemon": daemon}[how](ENGINES[name].caller(url), url, int(count))
    print(f"{how}: statuses of children that failed: {failed}", flush=True)
    sys.exit(bool(failed))
