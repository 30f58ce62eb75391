"""How is chaos ordered? `--long` for the full sizes, `--seed N` for the moments of a former run, `--engine NAME`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engines import ENGINES, SERVED, Engine
from runs import Report

LINE = "chaos"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--long", action="store_true", help="the sizes of the promises, instead of those of each change")
    group.addoption("--seed", type=int, help="of the moments at which harm is done")
    group.addoption("--engine", choices=["sqlite", *SERVED], help="put only this engine to the test")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long", False))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--seed", None)
    return random.SystemRandom().randrange(10**6) if given is None else given


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    """The embedded one, where a test names no other."""
    name = getattr(request, "param", "sqlite")
    if request.config.getoption("--engine", None) not in (None, name):
        pytest.skip("--engine names another one")
    return ENGINES[name]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Any:
    """Note what came of an experiment; the lines stand at the end of the run, also of one side by side. Returns it."""

    def note(found: Report) -> Report:
        request.node.user_properties.append((LINE, str(found)))
        return found

    return note


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an experiment has its files."""
    return tmp_path


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ended = [test for tests in terminalreporter.stats.values() for test in tests if getattr(test, "when", "") == "call"]
    lines = [line for test in ended for name, line in test.user_properties if name == LINE]
    if lines:
        terminalreporter.section("chaos")
    for line in lines:
        terminalreporter.write_line(line)
