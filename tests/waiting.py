"""How does a test wait for what must come?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def eventually(ask: Callable[[], T], seconds: float = 60, every: float = 0.01) -> T:
    """The first true answer; fails with the last one when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        is_last = time.monotonic() > deadline  # looked at before: a pause after the question must not be the answer
        if answer := ask():
            return answer
        if is_last:
            pytest.fail(f"not within {seconds} s; at last it was {answer!r}")
        time.sleep(every)
