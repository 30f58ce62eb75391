"""What these tests are written with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest
from backgrounded.testing.probe import Event, events

T = TypeVar("T")


def eventually(ask: Callable[[], T], seconds: float = 60, every: float = 0.02) -> T:
    """The first true answer; fails with the last one when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s; at last it was {answer!r}")
        time.sleep(every)
    return answer


def starts(oracle: str, id: str) -> list[Event]:
    """The starts of a job so far, as the oracle saw them."""
    return [event for event in events(oracle, "start") if event.job_id == id]
