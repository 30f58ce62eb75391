"""How do our words become Procrastinate's?

A job of ours is one job of Procrastinate's task `backgrounded.perform`, and a row beside it (`_store`); what a worker
does with it is in `_line`. Procrastinate's own words that we use are the queue, the time, and the priority.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import quote

import procrastinate
import psycopg
from backgrounded import Call, ConfigurationError, EnqueueError, InvalidOption
from backgrounded.handler import (
    ENQUEUE_TIMEOUT,
    WORKER_PATIENCE,
    Feature,
    Guarantees,
    Kept,
    State,
    check_seconds,
    printable,
    result_of,
    wait_for_end,
    warn_without_app,
    with_settings,
    worker_settings,
)

from ._connections import AllInUse, Connections, NotConnected
from ._line import Line, is_installed
from ._settings import (
    FEATURES,
    check_app,
    check_count,
    check_url,
    database_of,
    find,
    guarantees_of,
    is_name,
    why_no_queue,
)
from ._store import RECOVER, Store

Theirs = psycopg.Connection[Any] | Callable[[], psycopg.Connection[Any] | None]


class ProcrastinateHandler:
    """Hands calls to Procrastinate.

    `app` is the application's app, or its name, "shop.tasks:app", which may still be importing. `url` is the database,
    postgresql://localhost/shop: without an app, one of our own is made for it; beside an app, it is needed where the
    app's connector does not tell.

    `connection` is a psycopg.Connection of the application's, or a callable that gives the one to use now (or None):
    calls become part of the transaction there, and are sent if it commits. Its own timeouts hold.

    `queue` is the default queue's name; `concurrency` says how many jobs a worker of `worker_command` runs at the same
    time; `enqueue_timeout` (2 by default) bounds a hand-over, in seconds.

    Raises ConfigurationError for what cannot work; nothing is connected before the first use.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = FEATURES
    priority_levels: ClassVar[int] = 10
    guarantees: Guarantees

    def __init__(
        self,
        url: str | None = None,
        *,
        app: procrastinate.App | str | None = None,
        connection: Theirs | None = None,
        queue: str = "default",
        concurrency: int = 1,
        enqueue_timeout: float = ENQUEUE_TIMEOUT,
    ) -> None:
        if app is None and url is not None and is_name(url):
            url, app = None, url  # BACKGROUNDED_URL=procrastinate://shop.tasks:app
        if app is None and url is None:
            raise ConfigurationError(
                'procrastinate: give app="shop.tasks:app", or url="postgresql://localhost/shop": which database is it?'
            )
        if (why := why_no_queue(queue)) is not None:
            raise ConfigurationError(f"procrastinate: queue: {why}, got {queue!r}.")
        self.url = None if url is None else check_url(url)
        self.default_queue = queue
        self.concurrency = check_count(concurrency, "concurrency")
        self.guarantees = guarantees_of(check_seconds("procrastinate", "enqueue_timeout", enqueue_timeout))
        self._patience = enqueue_timeout
        self._connection = connection
        self._given = app
        self._app: procrastinate.App | None = None
        self._store: Store | None = None
        if app is not None and not isinstance(app, str):
            self._app = self._install(check_app(app, "app"))
        elif isinstance(app, str) and not is_name(app):
            raise ConfigurationError(f'procrastinate: app: must be an App or its name, "shop.tasks:app", got {app!r}.')

    @property
    def app(self) -> procrastinate.App:
        """The app of Procrastinate's that runs our jobs: found or made at the first use, and told of our tasks."""
        if self._app is None:
            found = find(self._given) if isinstance(self._given, str) else _made_for(self.url)
            self._app = self._install(found)
        return self._app

    def _install(self, app: procrastinate.App) -> procrastinate.App:
        if not is_installed(app):
            Line(self._store_of(app, WORKER_PATIENCE), lambda: self).register(app)
        return app

    @property
    def store(self) -> Store:
        """The tables, as a caller asks them."""
        if self._store is None:
            self._store = self._store_of(None if self.url else self.app, self._patience)
        return self._store

    def _store_of(self, app: procrastinate.App | None, patience: float) -> Store:
        conninfo, more = (self.url, {}) if self.url or app is None else database_of(app)
        return Store(Connections(conninfo or "", more, patience), self.default_queue)

    def close(self) -> None:
        """Close the connections that were opened here; the next use connects again."""
        if self._store is not None:
            self._store.connections.close()

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse a queue that no worker could serve."""
        queue = call.options.queue
        if queue is not None and (why := why_no_queue(queue)) is not None:
            raise InvalidOption("queue", f"{why}, got {printable(queue)!r}")

    def enqueue(self, call: Call) -> str:
        return self.enqueue_many([call])[0]

    def enqueue_many(self, calls: Sequence[Call]) -> list[str]:
        """One statement, whatever their number: all of them arrive, or none."""
        theirs = self._connection() if callable(self._connection) else self._connection
        try:
            return [str(number) for number in self.store.put(calls, theirs)]
        except psycopg.Error as error:
            told = f"{type(error).__name__}: {_told(error)}"
            raise EnqueueError(
                f"Procrastinate could not take {calls[0].name}: {told}", uncertain=_is_uncertain(error, theirs)
            ) from error

    # -- asking

    def state(self, id: str) -> State:
        return self.store.look(id)[0]

    def result(self, id: str, timeout: float | None) -> Any:
        end = math.inf if timeout is None else time.monotonic() + timeout

        def look() -> tuple[State, Any]:
            while True:
                try:
                    return self.store.look(id)
                except AllInUse:  # who has the time to wait for the job waits in line once more
                    if time.monotonic() >= end:
                        raise

        return result_of(id, *wait_for_end(look, timeout))

    def cancel(self, id: str) -> bool:
        return self.store.cancel(id)

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        return self.store.kept()

    def kept_ids(self) -> Iterator[str]:
        """The ids alone: of a million jobs their wires are gigabytes."""
        return self.store.kept_ids()

    def replay(self, id: str) -> None:
        if not self.store.replay(id):
            raise ConfigurationError(f"No job {id!r} is kept here.")

    def forget(self, id: str) -> None:
        if not self.store.forget(id):
            raise ConfigurationError(f"No job {id!r} is kept here.")

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """Procrastinate's own worker of these queues, and of the one that gives back the jobs of dead workers. It looks
        each second for what has become due, where Procrastinate's default is five.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        The URL travels in the environment, not among the arguments that `ps` shows.
        """
        warn_without_app()
        names = [*(list(queues) or [self.default_queue]), RECOVER]
        for name in names:
            if (why := why_no_queue(name)) is not None:
                raise ConfigurationError(f"procrastinate: queues: {why}, got {name!r}.")
        command = [
            *("procrastinate", "--app=backgrounded_procrastinate.worker.app", "worker"),
            *(f"--queues={','.join(names)}", "--concurrency", str(self.concurrency)),
            *("--fetch-job-polling-interval", "1"),
        ]
        return with_settings(command, {**worker_settings(), "BACKGROUNDED_URL": self._url_for_worker()})

    def _url_for_worker(self) -> str:
        if self._given is None:
            join = "&" if "?" in str(self.url) else "?"
            return f"procrastinate+{self.url}{join}queue={quote(self.default_queue, safe='')}"
        if isinstance(self._given, str) and self.url is None:
            return f"procrastinate://{self._given}?queue={quote(self.default_queue, safe='')}"
        raise ConfigurationError(
            'procrastinate: a worker finds an app by its name: configure("procrastinate", app="shop.tasks:app"). '
            "Or start it yourself: procrastinate --app=shop.tasks.app worker -q custom,backgrounded.recover"
        )


def install(app: procrastinate.App, url: str | None = None) -> None:
    """Let the workers of this app run our jobs. `configure("procrastinate", app=app)` does it as well.

    Say it in a module that `procrastinate --app=` imports: a worker that does not know our task fails each job of ours
    that it takes, and those are kept then. `url` is needed where the app's connector does not tell its database.
    """
    ProcrastinateHandler(url, app=app)


def _made_for(url: str | None) -> procrastinate.App:
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


def _told(error: psycopg.Error) -> str:
    """What the server says, and what to do about it where that is known. Its details would quote values."""
    said = error.diag.message_primary or str(error).partition("\n")[0]
    if isinstance(error, _NO_SCHEMA):
        return f"{said}. Is its schema there, of 3.2 or newer? procrastinate --app=shop.tasks.app schema --apply"
    return printable(said)


_NO_SCHEMA: Final = (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject)


def _is_uncertain(error: psycopg.Error, theirs: psycopg.Connection[Any] | None) -> bool:
    """Whether the calls may have arrived: the connection was lost in the middle, and nobody else has yet to commit."""
    is_lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return is_lost and not isinstance(error, NotConnected) and (theirs is None or theirs.autocommit)
