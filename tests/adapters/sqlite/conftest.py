"""A queue of its own for each test, workers for it, and the file in which the application writes what happened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import backgrounded
import pytest
from backgrounded.testing.probe import Probe
from backgrounded_sqlite import SQLiteHandler
from sqliteshop import Item
from sqlitetools import Workers


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is configured, and the environment says nothing."""
    for name in [name for name in os.environ if name.startswith("BACKGROUNDED_")]:
        monkeypatch.delenv(name)
    backgrounded.reset()
    yield
    backgrounded.reset()


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[SQLiteHandler]:
    """The default handler: a file that does not exist yet, and workers of one process."""
    with backgrounded.using(SQLiteHandler(f"sqlite:///{tmp_path}/jobs.db", processes=1, enqueue_timeout=30)) as handler:
        assert isinstance(handler, SQLiteHandler)
        yield handler


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQLiteHandler]:
    """A handler and a worker with one process, for all tests of a module that leave them as they are."""
    folder = tmp_path_factory.mktemp("standing")
    handler = SQLiteHandler(f"sqlite:///{folder}/jobs.db", processes=1, enqueue_timeout=30)
    with Workers(folder)(handler, "default", options=["--grace", "1"]):
        yield handler


@pytest.fixture
def served(standing: SQLiteHandler) -> Iterator[SQLiteHandler]:
    """The default handler, whose worker runs."""
    with backgrounded.using(standing):
        yield standing


@pytest.fixture
def oracle(tmp_path: Path) -> str:
    return str(tmp_path / "happened.jsonl")


@pytest.fixture
def probe(oracle: str) -> Probe:
    return Probe(oracle)


@pytest.fixture
def item(oracle: str) -> Item:
    return Item(oracle)
