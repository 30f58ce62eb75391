"""An application that has a Huey, with a task of its own, and uses it for `backgrounded` as well."""

from __future__ import annotations

import os

import backgrounded
from backgrounded.testing.probe import events, record
from huey import PriorityRedisHuey

huey = PriorityRedisHuey("hueyshop", url=os.environ["HUEYSHOP_REDIS"])
backgrounded.configure("huey", huey=huey)


@huey.task(retries=1)
def own(path: str, value: int) -> int:
    """The application's own task: it fails at its first run, and Huey's own retry runs it again."""
    record(path, "own", value)
    if len(events(path, "own")) < 2:
        raise ValueError("no luck")
    return value + 1
