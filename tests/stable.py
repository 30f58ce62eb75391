"""What is a test called whose parameter looks different in every process?"""

from __future__ import annotations

import re

MOVING = re.compile(r" at 0x\w+|datetime\.datetime\([^)]*\)+|\d{4}-\d\d-\d\d [\d:.+]+")


def stable_id(value: object) -> str:
    """A parameter as text, without addresses and moments: processes that share the tests must call them the same."""
    return MOVING.sub("", str(value))
