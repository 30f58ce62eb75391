"""What does one process of a worker do?

It claims a job, runs it, and writes down how it ended while it claims the next one. While there is nothing to do it
looks fifty times a second: at the file's version, at what falls due, and at the locks of the workers that run
something.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import random
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

import backgrounded
from backgrounded.alarm import INSIST, LONGEST, SHORTEST, stopped_after
from backgrounded.handler import Again, Delivery, Keep, Skip, State, failure_record

from ._alive import Locks
from ._file import File, identity, is_in_use
from ._handler import SQLiteHandler
from ._store import End, Job, Store

logger = logging.getLogger("backgrounded")

LOOK: Final = 0.02
"""Seconds between two looks of an idle process."""
CLEAN: Final = 30.0
"""Seconds between two times that old records are removed."""
TROUBLE: Final = 0.25
"""Seconds until a file that could not be used is tried again."""
PATIENCE: Final = 5.0
SOON: Final = 0.001
"""Seconds, at most, until a method is told that was in the middle of a transaction of ours."""
LAST_RESORT: Final = 10.0
"""Seconds after its time limit at which a method that no signal reaches, inside of C code, ends with its process;
also after the last signal that did reach it."""
SAY_AGAIN: Final = 10.0
"""Seconds between two lines of the log about a file that cannot be used."""
STANDARD_ERROR: Final = 2
CANNOT_START: Final = b"cannot-start"
"""What a process says to its parent, instead of its number, where another one would do no better."""
HAS_CLAIMED: Final = b"has-claimed"
"""What it says before its first job: if it dies from now on, it may have died of a job."""


def tell(parent: socket.socket, word: bytes) -> None:
    """Say a word to the process that started this one, if it lives."""
    with contextlib.suppress(OSError):
        parent.send(word + b"\n")


def _has_hung_up(parent: socket.socket) -> bool:
    try:
        return not parent.recv(1)
    except ConnectionResetError:  # it ended before it had read all that it was told
        return True


class _Stopped(BaseException):
    """Raised in a running method by a signal. A BaseException: the method's own `except Exception` lets it pass."""


class _TooLong(_Stopped):
    """The job's time limit is over."""


class _HandBack(_Stopped):
    """The worker's period of grace is over."""


class _HandedBack(Again):
    """The run was broken off, and counts for nothing: another worker has it at once."""

    def __init__(self) -> None:
        super().__init__(0)


class Process:
    """One process of a worker, for these queues of a handler. `parent` is the line to the process that started it."""

    def __init__(self, handler: SQLiteHandler, queues: Sequence[str], parent: socket.socket) -> None:
        self.handler = handler
        self.queues = queues
        self.parent = parent
        self.stopping = False
        self.breaking_off = False
        self.orphaned = False
        self._in_method = False
        self._has_told = False
        self._store = Store(File(handler.path, patience=PATIENCE, durable=False))
        self._next_clean = time.monotonic()
        self._next_complaint = 0.0

    def run(self) -> None:
        """Work until told to stop, until the parent process is no more, or until the file is another one."""
        self._listen()
        watch = Watch(self._store, self.queues)
        tell(self.parent, b"%d" % watch.number)
        end: End | None = None
        try:
            while (not self._told_to_go(within=0) or end is not None) and not watch.is_of_another_file():
                job, end = self._turn(watch, end), None
                if job is not None:
                    self._tell_of_claim()
                    end = self._perform(job)
                elif not self.stopping:
                    self._rest(watch)
        finally:
            watch.leave()

    def _tell_of_claim(self) -> None:
        if not self._has_told:
            self._has_told = True
            tell(self.parent, HAS_CLAIMED)

    # -- signals

    def _listen(self) -> None:
        signal.signal(signal.SIGTERM, self._finish)
        signal.signal(signal.SIGINT, self._break_off)
        signal.signal(signal.SIGALRM, self._ring)

    def _finish(self, *_: Any) -> None:
        self.stopping = True

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        self.stopping = self.breaking_off = True
        self._ring(number, frame)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        """Stop the method; in a moment, if it has called something in the background and stands in a transaction."""
        if not self._in_method:
            return
        if is_in_use(frame):
            # At a moment that nobody can foresee: a method that calls without end on a slow disk is in the next
            # transaction whenever a millisecond has passed since the one before.
            signal.setitimer(signal.ITIMER_REAL, SOON * (1 - random.random()), INSIST)
            return
        if self.breaking_off:
            raise _HandBack
        _set_last_resort(LAST_RESORT)
        raise _TooLong

    # -- one job after the other

    def _turn(self, watch: Watch, end: End | None) -> Job | None:
        """Write down an end, and claim the next job; for as long as the file cannot be written to, try again."""
        while True:
            queues = () if self.stopping else self.queues
            try:
                watch.revive()
                self._clean()
                if end is None and not (queues and self._store.is_waiting(queues)):
                    return None
                return self._store.turn(watch.number, end, queues)
            except (sqlite3.Error, OSError) as error:
                self._complain(error)
                if self._told_to_go(within=TROUBLE) and end is None:
                    return None

    def _complain(self, error: Exception) -> None:
        if time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + SAY_AGAIN
            logger.error("%s cannot be used, trying again: %s", self.handler.path, error)

    def _clean(self) -> None:
        if time.monotonic() >= self._next_clean:
            removed = self._store.clean()
            self._next_clean = time.monotonic() + (0 if removed else CLEAN)

    def _rest(self, watch: Watch) -> None:
        """Wait until there may be something to do, if only to clean up."""
        watch.look_ahead()
        while not self._told_to_go(within=LOOK) and not watch.has_news() and time.monotonic() < self._next_clean:
            pass

    def _told_to_go(self, within: float) -> bool:
        """Wait so many seconds; whether it is time to go, since the process that started this one ended or said so."""
        if self.orphaned:
            time.sleep(within)
        elif select.select([self.parent], [], [], within)[0] and _has_hung_up(self.parent):
            self.orphaned = self.stopping = True
        return self.stopping

    def _perform(self, job: Job) -> End:
        deadline = None if job.timeout is None else time.time() + job.timeout
        delivery = Delivery(job.alias, job.queue, job.attempt, job.deaths, job.id, deadline, redelivered=job.deaths > 0)
        self._listen()  # a job before may have taken a signal for itself
        try:
            value = backgrounded.perform(
                job.wire, delivery, fallback=lambda: self.handler, limit=lambda: self._limit(job)
            )
        except (_HandedBack, _HandBack):  # the latter where the signal came in the last moment of the stretch
            return End(job, State.QUEUED)
        except Again as again:
            state = State.SCHEDULED if again.seconds > 0 else State.QUEUED
            return End(job, state, due=time.time() + again.seconds, attempt=job.attempt + 1)
        except Skip as skip:
            return End(job, skip.state)
        except Keep as keep:
            return End(job, State.KEPT, {"reason": keep.reason, "code": keep.code})
        except _TooLong:  # as above
            return End(job, State.FAILED, failure_record(_timed_out(job)))
        except BaseException as error:
            return End(job, State.FAILED, failure_record(error))
        finally:
            self._disarm(job)
        return End(job, State.SUCCEEDED, value)

    @contextlib.contextmanager
    def _limit(self, job: Job) -> Iterator[None]:
        """A stretch of the run in which a signal may stop it: at its time limit, or to hand it back."""
        if self.breaking_off:
            raise _HandedBack
        try:
            try:
                self._in_method = True
                if job.timeout is not None:
                    self._set_alarm(min(max(job.timeout, SHORTEST), LONGEST))
                yield
            finally:
                self._in_method = False
        except _TooLong:
            raise _timed_out(job) from None
        except _HandBack:
            raise _HandedBack from None
        finally:
            self._disarm(job)

    def _disarm(self, job: Job) -> None:
        self._in_method = False
        if job.timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()

    @staticmethod
    def _set_alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, INSIST)
        _set_last_resort(seconds + LAST_RESORT)


def _set_last_resort(seconds: float) -> None:
    # It needs no turn of the interpreter, writes where each thread stands, without values, and ends the process.
    faulthandler.dump_traceback_later(seconds, exit=True, file=STANDARD_ERROR)


def _timed_out(job: Job) -> TimeoutError:
    assert job.timeout is not None, "or nobody would have set the alarm"
    return stopped_after(job.timeout)


class Watch:
    """What a process knows of the others, and they of it: its number is locked from the beginning to the end."""

    def __init__(self, store: Store, queues: Sequence[str]) -> None:
        self._store = store
        self._path = store.file.path
        store.file.make()  # where nobody has called anything yet
        self._identity = identity(self._path)
        self._locks = Locks(self._path)
        self.number = store.enlist(self._locks, os.getpid(), queues)
        self._version = (0, 0)
        self._next_due: float | None = None
        self._owners: list[int] = []
        self._next_revival = 0.0

    def is_of_another_file(self) -> bool:
        """Whether the file that this process works on was removed or replaced."""
        return identity(self._path) != self._identity

    def leave(self) -> None:
        with contextlib.suppress(sqlite3.Error, OSError):  # whoever comes next does it, now that the lock is free
            self._store.leave(self.number)
        self._locks.drop(self.number)  # now: a thread that a method has left behind may keep the process for long

    def revive(self) -> None:
        """Let the jobs of workers that died run again."""
        moment = time.monotonic()
        if moment < self._next_revival:
            return
        self._next_revival = moment + LOOK
        dead = [owner for owner in self._store.owners() if not self._locks.is_alive(owner)]
        if dead:
            count = self._store.give_back(dead)
            logger.warning("a worker died: %d of its jobs run again", count, extra={"job_state": "queued"})

    def look_ahead(self) -> None:
        """Note what time and the others may bring."""
        try:
            self._next_due, self._owners = self._store.next_due(), self._store.owners()
        except (sqlite3.Error, OSError):
            self._version = (0, 0)  # news: the next turn finds out, and says so

    def has_news(self) -> bool:
        """Whether the file has changed, a job is due, or a worker that ran something is dead."""
        try:
            version = self._store.version()
        except (sqlite3.Error, OSError):
            return True
        if version != self._version:
            self._version = version
            return True
        if self._next_due is not None and time.time() >= self._next_due:
            return True
        if not all(self._locks.is_alive(owner) for owner in self._owners):
            self._next_revival = 0.0
            return True
        return False
