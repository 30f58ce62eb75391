"""Does an attempt come twice where a server stands still while a worker asks it for that attempt?"""

from __future__ import annotations

from pathlib import Path

from backgrounded.testing.probe import Probe, events

from servers import Server, frozen
from waiting import eventually


def attempts_on_a_slow(server: Server, queue: str, folder: Path) -> list[int]:
    """The attempts of a job with two retries; `server` answers nothing for 4 s when it asks for the first of them.

    A worker has to serve `queue`, with the probe as its application. It has more patience than a caller: what it gives
    up, and has sent all the same, comes twice.
    """
    oracle, gate = str(folder / "oracle.jsonl"), folder / "gate"
    probe = Probe(oracle)
    probe.backgrounded(queue=queue, retry=1).fail(1).result(60)  # its worker is connected
    job = probe.backgrounded(queue=queue, retry=2).hold(str(gate), failures=9)
    eventually(lambda: events(oracle, "holding"))
    with frozen(server, seconds=4):
        gate.touch()
    assert job.wait(timeout=60) == "failed"
    probe.backgrounded(queue=queue).note("afterwards").wait(60)
    return [event.attempt for event in events(oracle, "holding")]
