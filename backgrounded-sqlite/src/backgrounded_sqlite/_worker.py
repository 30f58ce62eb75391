"""How many processes work, and what when one of them dies?

The process that an operator sees starts the others, which do the work, and is there when one of them dies or all shall
end. It imports nothing of the application, and has no connection to the file while they run.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ._file import File
from ._handler import SQLiteHandler
from ._process import CANNOT_START, HAS_CLAIMED, PATIENCE
from ._store import Store

logger = logging.getLogger("backgrounded")

LAST: Final = 2.0
"""Seconds between the signal that breaks a method off and the one that nothing survives."""
SHORT_LIFE: Final = 1.0
LONGEST_PAUSE: Final = 5.0
"""A process that lived for less than the one and had no job is followed after a pause, of at most the other."""


@dataclass
class Child:
    """A process that works: its line, and what it has said on it. What it exits with may be the word of a job."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    number: int | None = None
    since: float = 0.0
    cannot_start: bool = False
    has_claimed: bool = False

    def listen(self) -> None:
        """Take note of what it has said since; never waits."""
        try:
            said = self.line.recv(4096, socket.MSG_DONTWAIT)
        except OSError:
            return
        for word in said.split():
            if word.isdigit():
                self.number, self.since = int(word), time.monotonic()
            elif word == CANNOT_START:
                self.cannot_start = self.number is None
            elif word == HAS_CLAIMED:
                self.has_claimed = True

    @property
    def failed_to_start(self) -> bool:
        """Whether it died before it worked, or soon after, and of no job: how long an import takes says nothing."""
        return not self.has_claimed and (self.number is None or time.monotonic() - self.since < SHORT_LIFE)


class Worker:
    """The process that an operator sees: it keeps as many others working as were asked for, and ends them."""

    def __init__(self, handler: SQLiteHandler, queues: Sequence[str]) -> None:
        self.handler = handler
        self.queues = queues
        self._store = Store(File(handler.path, patience=PATIENCE, durable=True))
        self._children: list[Child] = []
        self._wishes = 0
        self._pause = 0.0
        self._not_before = 0.0

    def run(self) -> int:
        """Until SIGTERM or SIGINT; a second one ends the period of grace."""
        self._look_at_file()
        waker, wake = socket.socketpair()
        for end in (waker, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for wish in (signal.SIGTERM, signal.SIGINT):
            signal.signal(wish, self._wish)
        code = 0
        try:
            while not self._wishes and not code:
                self._hire()
                self._wait(waker, max(0.0, self._not_before - time.monotonic()) if self._is_short() else None)
                code = self._bury()
        finally:
            self._end(waker)
        return code

    def _wish(self, *_: Any) -> None:
        self._wishes += 1

    def _look_at_file(self) -> None:
        """Say what will be done, and refuse to begin what cannot work."""
        waiting = self._store.waiting()
        self._store.file.close()
        logger.info("%d processes work on %s of %s", self.handler.processes, ", ".join(self.queues), self.handler.path)
        if not os.environ.get("BACKGROUNDED_APP"):
            logger.warning("BACKGROUNDED_APP is not set: no code of the application is known, and each job is kept")
        for queue, count in sorted(waiting.items()):
            if queue not in self.queues:
                logger.warning("%d jobs wait in the queue %s, which this worker does not serve", count, queue)

    # -- the others

    def _is_short(self) -> bool:
        return len(self._children) < self.handler.processes

    def _hire(self) -> None:
        while self._is_short() and time.monotonic() >= self._not_before:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "backgrounded_sqlite", "--child", str(theirs.fileno())]
                command += ["--url", self.handler.url, "--queue", self.handler.default_queue, "--", *self.queues]
                try:
                    # A session of its own: Ctrl-C reaches this process alone, which then says what it means.
                    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
                except OSError as error:  # no memory, or too many processes: there may be some later
                    ours.close()
                    logger.error("no process can be started, trying again: %s", error)
                    self._not_before = time.monotonic() + LONGEST_PAUSE
                    return
            self._children.append(Child(process, ours))

    def _wait(self, waker: socket.socket, seconds: float | None) -> None:
        """Until a signal has come, a process has said its number, or the time is over."""
        lines = {child.line: child for child in self._children if child.number is None}
        readable, _, _ = select.select([waker, *lines], [], [], seconds)
        for line in readable:
            if line is waker:
                waker.recv(4096)
            elif line in lines:
                lines.pop(line).listen()

    def _bury(self) -> int:
        """Take those that ended off the list. 1, if one of them says that it is of no use to start another."""
        code = 0
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            child.listen()
            child.line.close()
            if child.cannot_start:
                logger.error("process %d cannot start, nor could another one: this worker ends", child.process.pid)
                code = 1
            elif not self._wishes:
                self._mourn(child)
        return code

    def _mourn(self, child: Child) -> None:
        logger.warning("process %d ended (%s), another one takes its place", child.process.pid, _how(child.process))
        self._pause = min(max(0.1, self._pause * 2), LONGEST_PAUSE) if child.failed_to_start else 0.0
        self._not_before = time.monotonic() + self._pause

    # -- the end

    def _end(self, waker: socket.socket) -> None:
        """Let running jobs finish, then break them off, then kill; what was not finished is handed back."""
        self._signal(signal.SIGTERM)
        logger.info("no more jobs are begun; those that run have %g seconds to finish", self.handler.grace)
        self._gone(waker, self.handler.grace, until_wish=2)
        self._signal(signal.SIGINT)
        self._gone(waker, LAST)
        for child in self._children:
            child.process.send_signal(signal.SIGSTOP)  # it keeps its lock: nobody else takes it for dead yet
            is_back = child.number is None or self._hand_back(child.number)
            child.process.kill()
            child.process.wait()
            if child.number is not None and not is_back and not self._hand_back(child.number):
                logger.error("a job was not handed back, and will run again after a death")
        self._store.file.close()

    def _hand_back(self, number: int) -> bool:
        """Hand back what a process was running. False: it could not be, as where it was frozen while it wrote."""
        try:
            self._store.leave(number)
        except (sqlite3.Error, OSError) as error:
            logger.warning("a job was not handed back: %s", error)
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            child.process.send_signal(number)

    def _gone(self, waker: socket.socket, seconds: float, until_wish: int | None = None) -> None:
        end = time.monotonic() + seconds
        while self._children and (left := end - time.monotonic()) > 0:
            if until_wish is not None and self._wishes >= until_wish:
                return
            self._wait(waker, left)
            self._bury()


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"exit {code}" if code >= 0 else signal.Signals(-code).name
