"""What these tests are written with."""

from __future__ import annotations

import time
import uuid
from typing import Any

from backgrounded.testing.probe import Event, events
from backgrounded_dramatiq._message import Message

NAME = "dramatiqshop.jobs.Item.give"


def starts(oracle: str, id: str) -> list[Event]:
    """The starts of a job so far, as the oracle saw them."""
    return [event for event in events(oracle, "start") if event.job_id == id]


def wire(oracle: str, **more: Any) -> dict[str, Any]:
    """A good wire, or one with other things in it."""
    target = {"built": ["dramatiqshop.jobs:Item", [oracle], {}]}
    return {"v": 1, "id": uuid.uuid4().hex, "target": target, "method": "give", "args": [1], "at": time.time(), **more}


def send_wire(handler: Any, written: Any, queue: str = "default", **more: Any) -> str:
    """Hand over what no caller would, and the id under which it goes."""
    id = uuid.uuid4().hex
    handler.broker.send([Message(id, written, more.pop("name", NAME), queue, **more)])
    return id
