"""Which workers live?

A worker holds a lock on one byte of a file beside the queue, the byte of its own number, and the kernel drops it with
the process. No clock is asked, and no process id, which may belong to somebody else by now. The locks are POSIX record
locks, the kind that SQLite itself relies on, so they work wherever the queue does; a child that a job forks does not
inherit them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from backgrounded import ConfigurationError

try:
    import fcntl
except ImportError as error:
    raise ConfigurationError("sqlite: workers need POSIX locks; on this system jobs can be called, not run.") from error

SUFFIX: Final = "-workers"


class Locks:
    """The locks of one process on the workers' file of one queue.

    There must be one of these for a file in a process, and it is never closed: closing any descriptor of a file lets
    go of all locks that the process holds on it.
    """

    greatest: Final = 2**53
    """The greatest number that a worker may have."""

    def __init__(self, queue: Path) -> None:
        self._mine: set[int] = set()
        self._descriptor = _opened(queue.with_name(queue.name + SUFFIX), queue.stat().st_mode & 0o660)

    def take(self, number: int) -> None:
        """Hold the lock of this number for as long as the process lives."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, number)
        self._mine.add(number)

    def is_alive(self, number: int) -> bool:
        """Whether a process holds the lock of this number."""
        if number in self._mine:
            return True
        if not 0 < number <= self.greatest:
            return False  # no worker has it: a stranger wrote it
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)
        return False

    def drop(self, number: int) -> None:
        """Let go of the lock: this worker has left."""
        self._mine.discard(number)
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)


def _opened(path: Path, mode: int) -> int:
    """A descriptor of this file. Where it has to be made, it gets this mode, whatever the umask."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(descriptor, mode)
    return descriptor
