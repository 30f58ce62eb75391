"""The application whose methods the workers of these tests run. What happens is written to the file RQSHOP_LOG."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from backgrounded import Backgrounded, backgroundable, current_job


def note(*words: object) -> None:
    """One line, in one write: several processes write to this file."""
    line = " ".join(map(str, (*words, f"{time.time():.6f}"))) + "\n"
    file = os.open(os.environ["RQSHOP_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


def starts(tag: str) -> int:
    lines = Path(os.environ["RQSHOP_LOG"]).read_text().splitlines()
    return sum(line.startswith(f"start {tag} ") for line in lines)


class Item(Backgrounded):
    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __backgrounded_args__(self):
        return (self.tag,), {}

    def echo(self, value: object = None) -> object:
        self._start()
        return value

    def fail(self, message: str = "no luck") -> None:
        self._start()
        raise ValueError(message)

    def fail_but_second(self) -> None:
        """Fails at the first attempt, and not at the second."""
        self._start()
        if starts(self.tag) % 2:
            raise ValueError("no luck")

    def fail_with(self, message: str, secret: str) -> None:
        self._start()
        raise ValueError(message)

    def die(self, deaths: int) -> str:
        """Kills the process it runs in, so many times."""
        self._start()
        if starts(self.tag) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def fail_but_die_on(self, *those: int) -> None:
        self._start()
        if starts(self.tag) in those:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no luck")

    def die_with(self, deaths: int, secret: str) -> None:
        self.die(deaths)

    def sleep(self, seconds: float) -> str:
        self._start()
        time.sleep(seconds)
        note("end", self.tag)
        return "slept"

    def sleep_with(self, seconds: float, secret: str) -> str:
        return self.sleep(seconds)

    def hang_once(self) -> str:
        self._start()
        if starts(self.tag) == 1:
            time.sleep(1000)
        return "survived"

    def hold(self, gate: str) -> str:
        """Runs until the file `gate` is there."""
        self._start()
        end = time.monotonic() + 120
        while not Path(gate).exists() and time.monotonic() < end:
            time.sleep(0.01)
        note("end", self.tag)
        return "held"

    async def later(self, value: object) -> object:
        self._start()
        return value

    def leave(self) -> None:
        self._start()
        sys.exit(3)

    def call_another(self, tag: str, queue: str) -> str:
        self._start()
        return Item(tag).backgrounded(queue=queue).echo(f"from {self.tag}").id

    def running(self) -> list[object]:
        job = current_job()
        assert job is not None
        return [job.id, job.queue, job.attempt, job.deadline, job.handler]

    def modules(self) -> bool:
        return "rqshop.jobs" in sys.modules

    def _start(self) -> None:
        job = current_job()
        note("start", self.tag, job.attempt if job else 0)


@backgroundable
def add(left: int, right: int) -> int:
    return left + right
