"""Does the contract bite where it matters most, with a handler or a worker of Celery that is broken?"""

from __future__ import annotations

import celery_sabotages
import pytest
from celery_contract import CeleryContract

from bites import Prepared, bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]


class PreparedContract(Prepared, CeleryContract):
    """Of workers whose process has run a job."""


globals().update(bites(PreparedContract, celery_sabotages.TABLE))
