"""Does the contract bite where it matters most, with an adapter that is broken and RQ's own, honest workers?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import rq_sabotages
from backgrounded_rq import RQHandler
from rq_contract import RQContract, plain_command

from bites import bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]


class PlainContract(RQContract):
    serializer = "pickle"
    deadline = 60.0

    def command(self, handler: RQHandler, queues: Sequence[str]) -> list[str]:
        return plain_command(handler, queues)


globals().update(bites(PlainContract, rq_sabotages.TABLE))
