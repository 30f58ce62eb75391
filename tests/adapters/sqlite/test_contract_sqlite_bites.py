"""Does the contract bite where it matters most, with a handler or a worker that is broken, in real processes?"""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlite_sabotages
from sqlite_sabotages import BROKEN, Sabotage

from nested import run_tests

pytestmark = [pytest.mark.worker, pytest.mark.slow]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    chosen = [f"{name}::{cls.caught_by}" for name, cls in BROKEN.items()]
    chosen += sorted({f"TestUnbroken::{cls.caught_by}" for cls in BROKEN.values()})
    return run_tests(Path(sqlite_sabotages.__file__), chosen, tmp_path_factory.mktemp("bites"))


@pytest.mark.parametrize("name", [name.removeprefix("Test") for name in BROKEN])
def test_a_broken_adapter_is_caught(name: str, outcomes: dict[tuple[str, str], str]) -> None:
    broken: type[Sabotage] = BROKEN[f"Test{name}"]
    assert outcomes[broken.__name__, broken.caught_by] == "failed"


def test_the_same_tests_pass_where_nothing_is_broken(outcomes: dict[tuple[str, str], str]) -> None:
    found = {test: outcome for (cls, test), outcome in outcomes.items() if cls == "TestUnbroken"}
    assert found == {cls.caught_by: "passed" for cls in BROKEN.values()}


def test_there_are_enough_of_them() -> None:
    """A dozen, of both sides."""
    assert len(BROKEN) >= 12
    assert sum("break_worker" in vars(cls) for cls in BROKEN.values()) >= 6
