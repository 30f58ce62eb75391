"""Does the SQLite handler keep what every handler promises, in its own worker?"""

from __future__ import annotations

import pytest
from sqlite_contract import SQLiteContract

pytestmark = pytest.mark.worker


class TestSQLite(SQLiteContract):
    """The command of `worker_command()`, with one process."""
