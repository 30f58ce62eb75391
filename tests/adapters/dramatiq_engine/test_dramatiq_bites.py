"""Does the contract bite where it matters most, with a handler or a worker of Dramatiq that is broken?"""

from __future__ import annotations

import dramatiq_sabotages
import pytest
from dramatiq_contract import DramatiqContract

from bites import bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]

globals().update(bites(DramatiqContract, dramatiq_sabotages.TABLE))
