"""What these tests are written with."""

from __future__ import annotations

from backgrounded.testing.probe import Event, events


def starts(oracle: str, id: str) -> list[Event]:
    """The starts of a job so far, as the oracle saw them."""
    return [event for event in events(oracle, "start") if event.job_id == id]
