"""Which Redis, and what may go wrong on the way there?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import quote, urlencode

from backgrounded import ConfigurationError
from backgrounded.handler import not_reached
from backgrounded.records import redis_pool
from redis import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ExecAbortError
from redis.exceptions import TimeoutError as RedisTimeoutError

_REFUSALS: Final = (AuthenticationError, AuthorizationError, BusyLoadingError, ExecAbortError)


class _Budget:
    """What is left, in seconds, of the time in which Redis has to answer. What we compute in between does not count."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._since: float | None = None

    def start(self) -> bool:
        """Whether the clock did not run already: then whoever has started it stops it."""
        is_first = self._since is None
        if is_first:
            self._since = time.monotonic()
        return is_first

    def stop(self) -> None:
        self._left, self._since = self._remaining(), None

    def _remaining(self) -> float:
        return self._left if self._since is None else self._left - (time.monotonic() - self._since)

    @property
    def remaining(self) -> float:
        """Raises TimeoutError when nothing is left."""
        remaining = self._remaining()
        if remaining <= 0:
            raise TimeoutError("the time of this hand-over is over")
        return remaining


_budget: Final[ContextVar[_Budget | None]] = ContextVar("backgrounded_rq_budget", default=None)


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """All that connections of `connect` wait for in this block has so many seconds together; or its outer block has."""
    if _budget.get() is not None or seconds is None:
        yield
        return
    token = _budget.set(_Budget(seconds))
    try:
        yield
    finally:
        _budget.reset(token)


_Mixin: Any = object
"""For type checkers, which would look for the methods of redis-py's connections in a class that is none."""


class _Punctual(_Mixin):  # type: ignore[misc] # see there
    """A connection whose connecting, handshake, commands and answers share the time of the block that they stand in.

    redis-py by itself gives its timeout to each of them anew.
    """

    def __init__(self, **settings: Any) -> None:
        self._patience: float | None = settings.get("socket_timeout")
        super().__init__(**settings)

    @property
    def socket_timeout(self) -> float | None:
        """What redis-py asks for when it has connected."""
        budget = _budget.get()
        if budget is None:
            return self._patience
        return budget.remaining if self._patience is None else min(self._patience, budget.remaining)

    @socket_timeout.setter
    def socket_timeout(self, value: float | None) -> None: ...

    @property
    def socket_connect_timeout(self) -> float | None:
        """What redis-py asks for before it connects, to each address of a host anew."""
        return self.socket_timeout

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: float | None) -> None: ...

    def connect(self) -> Any:
        return self._spend(super().connect)

    def send_packed_command(self, *args: Any, **options: Any) -> Any:
        return self._spend(super().send_packed_command, *args, **options)

    def read_response(self, *args: Any, **options: Any) -> Any:
        return self._spend(super().read_response, *args, **options)

    def _spend(self, step: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Take a step that ends when the time is over, and costs what it takes of it."""
        budget = _budget.get()
        is_counted = budget is not None and budget.start()
        try:
            if self._sock:
                self._sock.settimeout(self._time_for_a_step())
            return step(*args, **options)
        finally:
            if budget is not None and is_counted:
                budget.stop()

    def _time_for_a_step(self) -> float | None:
        """An answer that is late by now would be taken for that of the next command: without time, we hang up."""
        try:
            return self.socket_timeout
        except TimeoutError as error:
            self.disconnect()
            raise RedisTimeoutError(str(error)) from None


class _Tcp(_Punctual, Connection): ...


class _Tls(_Punctual, SSLConnection): ...


class _Unix(_Punctual, UnixDomainSocketConnection): ...


_PUNCTUAL: Final[dict[Any, Any]] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
"""By name, and not made of what the pool has: RQ's workers may pickle the class."""


def connect(url: str, timeout: float) -> Redis:
    """A connection that answers or fails within the timeout, and never sends a write again by itself."""
    try:
        pool = redis_pool(timeout, url)
        pool.connection_class = _PUNCTUAL[pool.connection_class]
        return Redis(connection_pool=pool)
    except ValueError as error:
        raise ConfigurationError(f"rq: url: {error}. An example: redis://localhost:6379/0") from None


def check_connection(connection: Any) -> Redis:
    """Refuse what RQ cannot work with."""
    if not isinstance(connection, Redis):
        raise ConfigurationError(
            f"rq: connection must be a redis.Redis, got {type(connection).__module__}.{type(connection).__qualname__}."
        )
    if settings_of(connection).get("decode_responses"):
        raise ConfigurationError(
            "rq: a connection with decode_responses=True cannot carry jobs: RQ stores bytes. Give one without it."
        )
    return connection


def settings_of(connection: Redis) -> dict[str, Any]:
    settings: dict[str, Any] = connection.connection_pool.connection_kwargs
    return settings


def url_of(connection: Redis) -> str:
    """The URL under which a worker finds what this connection finds. Raises ConfigurationError if none can say it."""
    settings = settings_of(connection)
    if not ("path" in settings or "host" in settings) or settings.get("credential_provider"):
        raise ConfigurationError(
            "rq: no URL can name this connection (Sentinel, credentials). Start `rq worker -c` with settings of yours."
        )
    secure = issubclass(connection.connection_pool.connection_class, SSLConnection)
    user, password = settings.get("username") or "", settings.get("password")
    login = "" if password is None else f"{quote(user, safe='')}:{quote(password, safe='')}@"
    query = {
        key: value for key, value in settings.items() if secure and key.startswith("ssl_") and isinstance(value, str)
    }
    if "path" in settings:
        query["db"] = str(settings.get("db") or 0)
        return f"unix://{login}{settings['path']}?{urlencode(query)}"
    place = f"{login}{settings['host']}:{settings.get('port', 6379)}/{settings.get('db') or 0}"
    return f"redis{'s' * secure}://{place}" + (f"?{urlencode(query)}" if query else "")


def never_sent(error: BaseException) -> bool:
    """Whether Redis certainly took nothing of a transaction: it was not reached, or it said no before the EXEC.

    A command that fails within the EXEC takes back none of the others. For redis-py it is the same kind of error as one
    that was refused before; only of the latter an ExecAbortError is the context.
    """
    return any(isinstance(cause, _REFUSALS) for cause in (error, error.__context__)) or not_reached(error)
