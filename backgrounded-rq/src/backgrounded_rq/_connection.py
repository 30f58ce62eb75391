"""Which Redis, and what may go wrong on the way there?"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlencode

from backgrounded import ConfigurationError
from backgrounded.handler import not_reached
from backgrounded.records import redis_pool
from redis import Redis, SSLConnection
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ExecAbortError

_REFUSALS: Final = (AuthenticationError, AuthorizationError, BusyLoadingError, ExecAbortError)


def connect(url: str, timeout: float) -> Redis:
    """A connection that answers or fails within the timeout, and never sends a write again by itself."""
    try:
        return Redis(connection_pool=redis_pool(timeout, url))
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
