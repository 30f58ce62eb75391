"""What these tests are written with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def eventually(ask: Callable[[], T], seconds: float = 60, every: float = 0.02) -> T:
    """The first true answer; fails with the last one when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s; at last it was {answer!r}")
        time.sleep(every)
    return answer


def stored(huey: Any) -> list[bytes]:
    """What stands in the queue of a Huey, as it stands there."""
    return [bytes(item) for item in huey.storage.enqueued_items()]


def children_of(pid: int) -> list[int]:
    listed = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for line in listed for child in line]


class Bomb:
    """What runs code where it is unpickled: it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)
