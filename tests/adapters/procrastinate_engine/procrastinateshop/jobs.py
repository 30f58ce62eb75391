"""What the workers of these tests run; each start is told to the oracle."""

from __future__ import annotations

import asyncio
import os
import signal

from backgrounded import Backgrounded, current_job
from backgrounded.testing.probe import events, record
from procrastinate.exceptions import JobAborted


class Item(Backgrounded):
    def __init__(self, path: str) -> None:
        self.path = path

    def __backgrounded_args__(self):
        return (self.path,), {}

    def give(self, value: object, secret: str = "") -> object:
        self._start()
        return value

    async def agive(self, value: object) -> object:
        self._start()
        await asyncio.sleep(0)
        return value

    def fail(self, message: str = "no luck", secret: str = "") -> None:
        self._start()
        raise ValueError(message)

    def die(self, deaths: int) -> str:
        if self._start() <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def say(self, word: str) -> None:
        self._start()
        words = {
            "JobAborted": JobAborted(),
            "CancelledError": asyncio.CancelledError(),
            "StopIteration": StopIteration(1),
        }
        raise words.get(word, KeyboardInterrupt())

    def nest(self) -> str:
        self._start()
        return Item(self.path).backgrounded.give("nested").id

    def _start(self) -> int:
        job = current_job()
        assert job is not None
        record(self.path, "start", job.id)
        return sum(event.job_id == job.id for event in events(self.path, "start"))
