"""What a test needs of the machine, such as a server or a second Python: what if it is missing?"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test, with the reason; in CI (`CI` is set) fail it, since CI is where it has to run."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have it: {what}", pytrace=False)
    pytest.skip(what)
