"""Does the contract bite where it matters most, with a handler or a worker that is broken, in Huey's own consumers?"""

from __future__ import annotations

import huey_sabotages
import pytest
from huey_contract import SqliteContract

from bites import Prepared, bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]


class PreparedContract(Prepared, SqliteContract):
    """Of consumers that have run a job."""


globals().update(bites(PreparedContract, huey_sabotages.TABLE))
