"""Which app of Procrastinate's, and which database?"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, Final

import procrastinate
import psycopg
from backgrounded import ConfigurationError
from backgrounded.handler import Feature, Guarantees
from psycopg.conninfo import conninfo_to_dict

FEATURES: Final = frozenset(
    {
        Feature.QUEUES,
        Feature.DELAY,
        Feature.PRIORITY,
        Feature.RETRY,
        Feature.RETRY_WAIT,
        Feature.EXPIRES,
        Feature.UNIQUE,
        Feature.RESULTS,
        Feature.RESULT_TTL,
        Feature.STATE,
        Feature.CANCEL,
        Feature.BULK,
        Feature.KEPT,
        Feature.WORKER,
    }
)
"""No limits of time: a job runs in a thread of the worker, and nothing stops a thread."""
LONGEST_QUEUE: Final = 128
_NAME: Final = re.compile(r"[A-Za-z_][\w.]*[:.]\w+")


def is_name(text: str) -> bool:
    """Whether this names an app in a module: "shop.tasks:app"."""
    return _NAME.fullmatch(text) is not None


def find(name: str) -> procrastinate.App:
    """The app of this name; imports its module. Raises ConfigurationError."""
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"procrastinate: app={name!r}: {type(error).__name__}: {error}.") from error
    return check_app(found, f"app={name!r}")


def check_app(app: Any, what: str) -> procrastinate.App:
    if not isinstance(app, procrastinate.App):
        raise ConfigurationError(f"procrastinate: {what}: is no procrastinate.App, but {type(app).__qualname__}.")
    return app


def check_url(url: Any) -> str:
    """What libpq connects to. Raises ConfigurationError, without the password that may stand there."""
    if not isinstance(url, str) or not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError("procrastinate: url: must be such as postgresql://user@localhost:5432/shop.")
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigurationError("procrastinate: url: libpq cannot read it. See postgresql://localhost/shop.") from None
    return url


def database_of(app: procrastinate.App) -> tuple[str, Mapping[str, Any]]:
    """The connection string of an app and what is said beside it, as its connector was given them."""
    given = getattr(app.connector, "_pool_args", None)  # of both psycopg connectors; no public name tells it unopened
    conninfo, more = (given or {}).get("conninfo", ""), (given or {}).get("kwargs") or {}
    if given is None or not isinstance(conninfo, str) or not isinstance(more, Mapping):
        raise ConfigurationError(
            f"procrastinate: the database of a {type(app.connector).__name__} cannot be told from outside. "
            'Give it beside the app: configure("procrastinate", app=..., url="postgresql://...").'
        )
    return conninfo, more


def check_count(count: Any, what: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"procrastinate: {what}: must be at least 1, got {count!r}.")
    return count


def why_no_queue(name: object) -> str | None:
    """Why this cannot be the name of a queue; None: it can."""
    if not isinstance(name, str) or not name:
        return "must be a name"
    if len(name) > LONGEST_QUEUE:
        return f"must not be longer than {LONGEST_QUEUE} letters"
    if "," in name or name != name.strip():
        return "must hold no comma, and no space at its ends: no worker could be told to serve it"
    return None


def guarantees_of(patience: float) -> Guarantees:
    notes = (
        "Jobs of a worker that died are given back by a worker that serves the queue backgrounded.recover, as "
        "worker_command() and a worker without -q do: 30 s after its last sign of life, and within another minute.",
        "A worker that is frozen for 30 s is taken for dead: its job runs a second time beside it.",
        "A job that was accepted survives the death of PostgreSQL, unless synchronous_commit is off.",
        f"A hand-over succeeds or fails within {patience:g} s for each address of the server.",
        "The clocks of the caller (delay, at), the worker (waits of retries) and PostgreSQL have to agree.",
    )
    return Guarantees("at-least-once", durable_publish=True, recovery_s=100.0, notes=notes)
