"""Does the contract bite where it matters most, with a handler or a worker that is broken, in Huey's own consumers?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import backgrounded
import huey_sabotages
import pytest
from backgrounded.testing import probe as probes
from backgrounded_huey import HueyHandler
from huey_contract import SqliteContract

from bites import bites
from sabotage import SABOTAGE
from waiting import eventually

pytestmark = [pytest.mark.worker, pytest.mark.slow]


class PreparedContract(SqliteContract):
    """A consumer's worker imports its application, and with it what breaks it, at its first job: it has run one."""

    @contextlib.contextmanager
    def worker(self, handler: HueyHandler, *queues: str) -> Iterator[Any]:
        with super().worker(handler, *queues) as worker:
            if SABOTAGE in os.environ:
                for queue in queues:
                    self._run_one(queue)
            yield worker

    def _run_one(self, queue: str) -> None:
        path = str(self.output.with_name(f"{queue}.jsonl"))
        backgrounded.background(probes, queue=queue).settled(path)
        eventually(lambda: probes.events(path))


globals().update(bites(PreparedContract, huey_sabotages.TABLE))
