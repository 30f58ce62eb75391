"""What the workers of these tests run; each start is told to the oracle, with the count of starts so far."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import backgrounded
from backgrounded import Backgrounded, current_job
from backgrounded.testing.probe import events, record
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded


class NoLuck(Exception):
    """The application's own word, in a module that the worker's main process may not have."""


class Item(Backgrounded):
    def __init__(self, path: str) -> None:
        self.path = path

    def __backgrounded_args__(self):
        return (self.path,), {}

    def give(self, value: object, secret: str = "") -> object:
        self._start()
        return value

    def fail(self, message: str = "no luck", secret: str = "") -> None:
        self._start()
        raise ValueError(message)

    def fail_in_our_words(self) -> None:
        self._start()
        raise NoLuck("no luck")

    def lose_its_directory(self) -> None:
        self._start()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)

    def die(self, deaths: int) -> str:
        """Kill the process it runs in, so many times."""
        if self._start() <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def die_once_in_every_attempt(self) -> None:
        if self._start() % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no luck")

    def hang(self, deaf: bool) -> None:
        """Run for ever; deaf to every signal that can be blocked."""
        if deaf:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM])
        self._start()
        time.sleep(1000)

    def swallow(self) -> str:
        """Bears any failing request, as many methods do, and lets Celery's word for "too long" through."""
        try:
            self._start()
            time.sleep(1000)
        except OSError:
            return "swallowed"
        except SoftTimeLimitExceeded:
            record(self.path, "cleaned up")
            raise
        return "slept"

    def meet(self, all_of_them: int) -> None:
        """Wait until so many have begun."""
        self._start()
        while len(events(self.path, "start")) < all_of_them:
            time.sleep(0.01)
        record(self.path, "met")

    def say_in_celery(self, word: str) -> None:
        self._start()
        words = {"Ignore": Ignore(), "Reject": Reject("no", requeue=True), "Retry": Retry()}
        raise words.get(word, MemoryError())

    def nest(self, queue: str) -> str:
        self._start()
        return Item(self.path).backgrounded(queue=queue).give("nested").id

    def nest_many(self, count: int) -> int:
        """How many files, connections among them, so many calls leave open."""
        before = _open_files()
        with backgrounded.batch():
            for _ in range(count):
                self.backgrounded(queue="nobody's").give(1)
        for _ in range(count):
            self.backgrounded(queue="nobody's").give(1)
        return _open_files() - before

    def where(self) -> list[object]:
        self._start()
        return [os.getpid(), threading.current_thread() is threading.main_thread(), current_job().deadline]

    def _start(self) -> int:
        job = current_job()
        assert job is not None
        record(self.path, "start", job.id)
        return sum(event.job_id == job.id for event in events(self.path, "start"))


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
