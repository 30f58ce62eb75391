"""Stores of every kind, consumers that share them, and the file in which their application writes what happened."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded.testing.probe import Probe
from backgrounded_huey import HueyHandler
from huey_contract import consumer


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The file in which runs are written down."""
    return str(tmp_path / "oracle.jsonl")


@pytest.fixture
def probe(path: str) -> Probe:
    return Probe(path)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def handler(file_url: str) -> Iterator[HueyHandler]:
    """On a file of its own."""
    with backgrounded.using("huey", url=file_url) as handler:
        assert isinstance(handler, HueyHandler)
        yield handler
        handler.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the consumers say."""
    return tmp_path / "consumers.log"


@pytest.fixture
def consume(log: Path) -> Callable[..., AbstractContextManager[Any]]:
    """`with consume(command) as process:` runs a consumer."""
    return partial(consumer, output=log)


@pytest.fixture
def name() -> str:
    """The name of a Huey that nobody else uses."""
    return f"h{uuid.uuid4().hex[:8]}"
