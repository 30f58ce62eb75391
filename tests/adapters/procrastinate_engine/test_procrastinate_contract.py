"""Does the Procrastinate adapter keep what every handler promises, in Procrastinate's own workers?"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from backgrounded_procrastinate import ProcrastinateHandler
from procrastinate_contract import PROBE, ProcrastinateContract, folders

pytestmark = pytest.mark.worker


class TestOurApp(ProcrastinateContract):
    """An app made from a URL, and what `worker_command()` says."""


@pytest.mark.slow
class TestApplicationsApp(ProcrastinateContract):
    """An application's own app that never heard of us, by its name."""

    @classmethod
    def settings(cls) -> Mapping[str, str]:
        return {**PROBE, "PROCRASTINATESHOP_URL": cls.url}

    @classmethod
    def make(cls) -> ProcrastinateHandler:
        sys.modules.pop("procrastinateshop.plain", None)  # of another class, with another database
        return ProcrastinateHandler(app="procrastinateshop.plain:app")

    def environment(self, handler: ProcrastinateHandler) -> Mapping[str, str]:
        return {**PROBE, "BACKGROUNDED_URL": "procrastinate://procrastinateshop.plain:app", "PYTHONPATH": folders()}
