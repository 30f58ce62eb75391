"""Does the contract bite where it matters most, with a handler or a worker that is broken, in real processes?"""

from __future__ import annotations

import pytest
import sqlite_sabotages
from sqlite_contract import SQLiteContract

from bites import bites

pytestmark = [pytest.mark.worker, pytest.mark.slow]

globals().update(bites(SQLiteContract, sqlite_sabotages.TABLE))
