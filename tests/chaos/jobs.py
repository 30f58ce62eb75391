"""What runs in the workers of every engine that `backgrounded` drives? Functions that tell the oracle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from backgrounded import backgroundable, current_job, later

import oracle

if oracle.WORKER in os.environ:  # callers import this, too
    oracle.tell("W", f"{time.time():.0f}")


@backgroundable
def work(id: str, seconds: float = 0.0) -> None:
    """Start, take this long, end."""
    oracle.tell("S", id, _attempt())
    if seconds:
        time.sleep(seconds)
    oracle.tell("D", id, _attempt())


@backgroundable
def wait_for(id: str, gate: str) -> None:
    """Start, and end when the file is there (after two minutes in any case: a broken test leaves nothing running)."""
    oracle.tell("S", id, _attempt())
    for _ in oracle.looks(120):
        if Path(gate).exists():
            break
    oracle.tell("D", id, _attempt())


@backgroundable
def ignore_everything(id: str, gate: str) -> None:
    """As `wait_for`, whatever is raised in it meanwhile."""
    oracle.tell("S", id, _attempt())
    while not Path(gate).exists():
        try:
            time.sleep(0.005)
        except BaseException:
            continue
    oracle.tell("D", id, _attempt())


@backgroundable
def call_without_end() -> None:
    """Calls all the time, for a queue that nobody serves."""
    while True:
        later(work, queue="nobody")("-")


@backgroundable
def die(id: str) -> None:
    """Start, and take the whole process along."""
    oracle.tell("S", id, _attempt())
    os.kill(os.getpid(), signal.SIGKILL)


def canary(path: str) -> None:
    """What a hostile row would like to reach: it has not opted in."""
    Path(path).touch()


def _attempt() -> int:
    job = current_job()
    return 0 if job is None else job.attempt
