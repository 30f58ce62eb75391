"""Does the contract bite where it matters most, with a handler or a worker of Procrastinate that is broken?"""

from __future__ import annotations

import procrastinate_sabotages
import pytest
from procrastinate_contract import ProcrastinateContract

from bites import bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]

globals().update(bites(ProcrastinateContract, procrastinate_sabotages.TABLE))
