"""The application whose methods the workers of these tests run, beyond the contract's probe.

What happens is written to the oracle, the file at `path`, as the probe writes it.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backgrounded
from backgrounded import Backgrounded
from backgrounded.handler import Delivery
from backgrounded.testing.probe import events, record


class Item(Backgrounded):
    """Methods that are hard to stop, that die, and that fork."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.path,), {}

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> str:
        record(self.path, "sleep")
        time.sleep(seconds)
        record(self.path, "slept")
        return "slept"

    async def sleep_asynchronously(self, seconds: float) -> str:
        record(self.path, "sleep")
        await asyncio.sleep(seconds)
        record(self.path, "slept")
        return "slept"

    def spin(self, seconds: float) -> str:
        """Keep the processor busy, and make no call that a signal could interrupt."""
        record(self.path, "spin")
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            count += 1
        return "spun"

    def swallow_exceptions(self, seconds: float) -> str:
        """Go on after every Exception, as loops do that must not end."""
        record(self.path, "swallow")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                time.sleep(0.01)
            except Exception:
                record(self.path, "swallowed")
        return "went on"

    def swallow_once(self, seconds: float) -> str:
        """Go on after the first BaseException, as a bare `except:` does."""
        record(self.path, "swallow")
        try:
            time.sleep(seconds)
        except BaseException:
            record(self.path, "swallowed")
        time.sleep(seconds)
        return "went on"

    def alarm(self) -> float:
        """For how long the kernel's timer of this process still runs; 0: it does not."""
        return signal.getitimer(signal.ITIMER_REAL)[0]

    def swallow_everything(self, seconds: float) -> str:
        record(self.path, "swallow")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:  # in here: outside of `try` an exception would pass
                    time.sleep(0.01)
            except BaseException:
                record(self.path, "swallowed")
        return "went on"

    def call_without_end(self) -> None:
        """Call something in the background, for a queue that nobody serves, and do nothing in between."""
        record(self.path, "call")
        call = self.backgrounded(queue="nobody").pid
        while True:
            call()

    def stand_in_c(self) -> None:
        """Where no signal is looked at, and nobody else gets the interpreter either."""
        record(self.path, "stand")
        sum(itertools.repeat(0))

    def swallow_and_stand_in_c(self) -> None:
        record(self.path, "swallow")
        try:
            time.sleep(60)
        except BaseException:
            self.stand_in_c()

    def die(self, deaths: int, secret: str = "") -> str:
        """Kill the process it runs in, so many times."""
        record(self.path, "die")
        if len(events(self.path, "die")) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def exit(self, code: int) -> None:
        """End the process it runs in, each time, as C code does that calls exit()."""
        record(self.path, "exit")
        os._exit(code)

    def fail_then_die(self, secret: str = "") -> str:
        """Fail at the first run, die in the second one, return from the third."""
        record(self.path, "run")
        count = len(events(self.path, "run"))
        if count == 1:
            raise ValueError("no luck")
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    def fork_and_die(self, gate: str) -> str:
        """Leave a child behind that lives until the file `gate` exists, and be killed; the second run returns."""
        record(self.path, "fork")
        if len(events(self.path, "fork")) > 1:
            return "survived"
        if not os.fork():
            record(self.path, "child")
            _await(gate)
            record(self.path, "child ends")
            os._exit(0)
        _until(lambda: bool(events(self.path, "child")))
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    def fork_and_call(self) -> str:
        """A child calls in the background, and so does its parent, afterwards."""
        pid = os.fork()
        if not pid:
            self.backgrounded.note("child")
            os._exit(0)
        os.waitpid(pid, 0)
        self.backgrounded.note("parent")
        return "called"

    def note(self, word: str) -> None:
        record(self.path, "note", word)

    def give(self, value: Any) -> Any:
        return value

    def call_note(self) -> str:
        """Call another method in the background, without saying where."""
        return str(self.backgrounded.note("nested").id)

    def show_command_lines(self) -> list[str]:
        """The command lines of all processes of this machine, as `ps` shows them."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                found.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
        return found

    def quarrel(self, secret: str) -> None:
        """Fail and quote nothing."""
        raise ValueError("no luck")

    def overstay(self, secret: str) -> None:
        time.sleep(60)


def _await(gate: str) -> None:
    _until(Path(gate).exists)


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def _write_deliveries_down(path: str) -> None:
    """Let this process tell the oracle what the adapter says of each run, before the run."""
    honest = backgrounded.perform

    def perform(wire: Any, delivery: Delivery, **rest: Any) -> Any:
        record(path, "delivery", delivery.attempt, delivery.deaths, delivery.redelivered)
        return honest(wire, delivery, **rest)

    backgrounded.perform = perform  # type: ignore[assignment]  # what it passes on is the same


def _insist_soon() -> None:
    """Let this process lose its patience with a method within seconds."""
    from backgrounded_sqlite import _process

    _process.INSIST, _process.LAST_RESORT = 0.5, 1.5  # type: ignore[misc]  # Final, but for this


def _have_a_slow_disk() -> None:
    """Let each transaction of this process take its time, in C as an fsync does, where it comes to its end."""
    from backgrounded_sqlite import _file

    commit = _file._commit

    def slow(connection: Any) -> None:
        commit(connection)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)

    _file._commit = slow


if "SQLITESHOP_DELIVERIES" in os.environ:
    _write_deliveries_down(os.environ["SQLITESHOP_DELIVERIES"])
if "SQLITESHOP_IMPATIENT" in os.environ:
    _insist_soon()
if "SQLITESHOP_SLOW_DISK" in os.environ:
    _have_a_slow_disk()
