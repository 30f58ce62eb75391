"""What do the adapters' contracts stand on? One server for the session, and a database of its own for each class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from servers import redis_server

DATABASES = 16
_turn = itertools.count()


@pytest.fixture(scope="session")
def redis_without_database() -> Iterator[str]:
    """The URL of a server of our own, without the number of a database."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="class")
def redis_url(redis_without_database: str) -> str:
    """The URL of an empty database, which no other class of tests uses at the same time."""
    import redis

    url = f"{redis_without_database}/{next(_turn) % DATABASES}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url
