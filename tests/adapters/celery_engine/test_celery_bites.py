"""Does the contract bite where it matters most, with an adapter that is broken and Celery's own, honest workers?"""

from __future__ import annotations

from pathlib import Path

import celery_sabotages
import pytest
from celery_sabotages import Sabotage

from nested import run_tests

pytestmark = [pytest.mark.worker, pytest.mark.slow]

BROKEN = [cls for cls in vars(celery_sabotages).values() if isinstance(cls, type) and getattr(cls, "caught_by", "")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    chosen = [f"{cls.__name__}::{cls.caught_by}" for cls in BROKEN]
    chosen += [f"TestUnbroken::{cls.caught_by}" for cls in BROKEN]
    return run_tests(Path(celery_sabotages.__file__), chosen, tmp_path_factory.mktemp("bites"))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__.removeprefix("Test"))
def test_a_broken_adapter_is_caught(broken: type[Sabotage], outcomes: dict[tuple[str, str], str]) -> None:
    assert outcomes[broken.__name__, broken.caught_by] == "failed"


def test_the_same_tests_pass_where_nothing_is_broken(outcomes: dict[tuple[str, str], str]) -> None:
    found = {test: outcome for (cls, test), outcome in outcomes.items() if cls == "TestUnbroken"}
    assert found == {cls.caught_by: "passed" for cls in BROKEN}
