"""Does the contract bite where it matters most, with an adapter that is broken and Celery's own, honest workers?"""

from __future__ import annotations

import celery_sabotages
import pytest
from celery_contract import CeleryContract

from bites import bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]

globals().update(bites(CeleryContract, celery_sabotages.TABLE))
