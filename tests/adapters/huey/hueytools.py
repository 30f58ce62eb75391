"""What these tests are written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def stored(huey: Any) -> list[bytes]:
    """What stands in the queue of a Huey, as it stands there."""
    return [bytes(item) for item in huey.storage.enqueued_items()]


class Bomb:
    """What runs code where it is unpickled: it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)
