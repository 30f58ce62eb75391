"""What the workers of these tests run; each start is told to the oracle, with the count of starts so far."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from backgrounded import Backgrounded, batch, current_job
from backgrounded.testing.probe import events, record
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import SkipMessage, TimeLimitExceeded


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

    def die(self, deaths: int) -> str:
        """Kill the process it runs in, so many times."""
        if self._start() <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def hang(self) -> None:
        self._start()
        time.sleep(1000)

    def meet(self, folder: str, name: str, others: int) -> list[object]:
        """Wait for others that run at the same time, and say who this is: what is not shared."""
        self._start()
        (Path(folder) / name).touch()
        end = time.monotonic() + 60
        while len(list(Path(folder).iterdir())) < others and time.monotonic() < end:
            time.sleep(0.01)
        job = current_job()
        return [name, job.id, os.getpid(), threading.get_ident(), job.deadline]

    def swallow(self) -> str:
        """Bears any failing request, as many methods do, and lets Dramatiq's word for "too long" through."""
        try:
            self._start()
            for _ in range(10_000):
                time.sleep(0.01)
        except OSError:
            return "swallowed"
        except TimeLimitExceeded:
            record(self.path, "cleaned up")
            raise
        return "slept"

    def spin(self, seconds: float) -> str:
        """Use up time in Python."""
        self._start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return "spun"

    def say_in_dramatiq(self, word: str) -> None:
        self._start()
        words = {"Retry": Retry("again", delay=1), "SkipMessage": SkipMessage("no"), "Limit": RateLimitExceeded("no")}
        raise words.get(word, TimeLimitExceeded())

    def nest(self, queue: str) -> str:
        self._start()
        return Item(self.path).backgrounded(queue=queue).give("nested").id

    def nest_many(self, queue: str, count: int) -> int:
        """Make so many calls together, and say how many files this process has open for them that it had not before."""
        self._start()
        before = open_files()
        with batch():
            for number in range(count):
                Item(self.path).backgrounded(queue=queue).give(number)
        return open_files() - before

    async def agive(self, value: object) -> object:
        self._start()
        return value

    def _start(self) -> int:
        job = current_job()
        assert job is not None
        record(self.path, "start", job.id)
        return sum(event.job_id == job.id for event in events(self.path, "start"))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
