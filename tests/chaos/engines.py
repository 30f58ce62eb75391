"""Which engines does the harness know, and what has it to know of each?

Where its jobs are kept, the command of one whole worker, and how a caller hands a job over. What is promised the
handler says itself. To add an engine, write a class of these few lines and name it in `ENGINES`: RQ shows how one with
a server looks.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import backgrounded
from backgrounded.handler import Guarantees

import oracle
from postgres import postgres_server, procrastinate_on
from servers import Server, rabbitmq, redis

HERE: Final = Path(__file__).parent
QUEUE: Final = "default"
PAUSE: Final = 0.25
"""Seconds that a caller waits after it was refused."""
VISIBILITY: Final = 5
"""Seconds after which Redis hands a job of a dead worker of Celery's over again."""


class Engine:
    """One that `backgrounded` drives. A worker runs `processes` jobs at a time, if it can run more than one.

    `name` is the harness's, `handler_name` the handler's. A `lossy` one is known to lose jobs, and is not waited for.
    """

    name: ClassVar[str]
    handler_name: ClassVar[str]
    app: ClassVar[str] = "jobs"
    lossy: ClassVar[bool] = False
    loads_late: ClassVar[bool] = False
    """A worker imports the application with its first job, and not before."""
    pause: ClassVar[float] = 0.002
    """Seconds between two looks at what happens: few where milliseconds are measured, since each look takes time."""
    trusts_clocks: ClassVar[bool] = False
    """Its workers compare the times that others wrote with their own clocks. While these differ, they take one another
    for dead, and start jobs twice."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, Server | None]]:
        """Where callers and workers meet, for as long as the block runs: the URL, and the server, if there is one."""
        raise NotImplementedError

    def settings(self, processes: int) -> dict[str, Any]:
        """What `configure` is told beside the URL."""
        return {}

    def handler(self, url: str, processes: int = 1) -> Any:
        return self.configured(self.handler_name, url=url, **self.settings(processes))

    def configured(self, name: str, **settings: Any) -> Any:
        """A handler, which `close` closes."""
        self._made.append(backgrounded.configure(name, **settings))
        return self._made[-1]

    def close(self) -> None:
        """Close what this process has opened."""
        while self._made:
            getattr(self._made.pop(), "close", tuple)()

    def command(self, url: str, processes: int) -> list[str]:
        """One whole worker."""
        return list(self.handler(url, processes).worker_command([QUEUE]))

    def environment(self, url: str) -> Mapping[str, str]:
        """What a worker finds in its environment, beside the oracle."""
        return {"BACKGROUNDED_APP": self.app}

    def guarantees(self, url: str) -> Guarantees:
        found: Guarantees = getattr(self.handler(url), "guarantees", Guarantees())
        return found

    def caller(self, url: str) -> Callable[..., None]:
        """A function that hands over the job called `id`: `call(id, seconds)`, with options of the call.

        The environment of a worker stands in that of the caller, too.
        """
        self.handler(url)
        from jobs import work

        def call(id: str, seconds: float = 0.0, **options: Any) -> None:
            backgrounded.later(work, **options)(id, seconds)

        return call

    def sender(self, url: str) -> Callable[[list[str]], None]:
        """A function that hands over many jobs, which take no time, at once."""
        self.handler(url)
        from jobs import work

        def send(ids: list[str]) -> None:
            assert not backgrounded.later(work).map(ids).failed

        return send


class SQLite(Engine):
    name = handler_name = "sqlite"

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, None]]:
        yield f"sqlite:///{folder / 'jobs.db'}", None

    def settings(self, processes: int) -> dict[str, Any]:
        return {"processes": processes}


class Served(Engine):
    """One with a server. What takes seconds there is not looked at a thousand times."""

    pause = 0.02


class OnRedis(Served):
    """One with a Redis that writes what it has acknowledged to the disk."""

    redis: ClassVar[Mapping[str, str]] = {"appendonly": "yes"}

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, Server]]:
        with redis(**self.redis) as server:
            yield f"{server.url}/0", server


class RQ(OnRedis):
    name = handler_name = "rq"
    loads_late = True
    trusts_clocks = True


class RQOnMemory(RQ):
    """A control: Redis as it comes, which forgets all when it is killed."""

    name = "rq, Redis without appendonly"
    redis: ClassVar[Mapping[str, str]] = {}
    lossy = True


class Celery(OnRedis):
    """`celery worker` on an app that the handler made. A job of a dead worker comes back after `VISIBILITY`."""

    name = "celery-redis"
    handler_name = "celery"
    trusts_clocks = True

    def settings(self, processes: int) -> dict[str, Any]:
        return {"visibility_timeout": VISIBILITY}

    def command(self, url: str, processes: int) -> list[str]:
        options = ["--concurrency", str(processes), "--without-mingle", "--without-gossip", "--include", self.app]
        return [*super().command(url, processes), *options]


class CeleryOnRabbitMQ(Celery):
    """The same on an application's own app, with RabbitMQ; what is known of the jobs is in a Redis, which lives on."""

    name = "celery-rabbitmq"
    trusts_clocks = False

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, Server]]:
        with rabbitmq() as server, redis() as results:
            os.environ["CHAOS_RESULTS"] = results.url
            yield server.url, server

    def handler(self, url: str, processes: int = 1) -> Any:
        os.environ["CHAOS_CELERY"] = url
        sys.modules.pop("plain_celery", None)  # it may be that of another server
        return self.configured("celery", app="plain_celery:app")

    def environment(self, url: str) -> Mapping[str, str]:
        return {**super().environment(url), "CHAOS_CELERY": url}


class PlainCelery(OnRedis):
    """A control: Celery by itself, as it comes. It acknowledges a message before it runs the task."""

    name = "plain-celery"
    app = "plain_celery"
    lossy = True

    def command(self, url: str, processes: int) -> list[str]:
        return ["celery", "-A", "plain_celery", "worker", "--concurrency", str(processes)]

    def environment(self, url: str) -> Mapping[str, str]:
        return {"CHAOS_CELERY": url}

    def guarantees(self, url: str) -> Guarantees:
        return Guarantees()

    def caller(self, url: str) -> Callable[..., None]:
        os.environ["CHAOS_CELERY"] = url
        sys.modules.pop("plain_celery", None)
        from plain_celery import work

        return lambda id, seconds=0.0: work.delay(id, seconds)


class PlainHuey(Engine):
    """The control: Huey by itself. It promises nothing, and has to lose jobs here, or the harness sees nothing."""

    name = "plain-huey"
    app = "plain_huey"
    lossy = True

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, None]]:
        yield str(folder / "huey.db"), None

    def command(self, url: str, processes: int) -> list[str]:
        return [str(Path(sys.executable).with_name("huey_consumer")), "plain_huey.huey"]

    def environment(self, url: str) -> Mapping[str, str]:
        return {"CHAOS_HUEY": url}

    def guarantees(self, url: str) -> Guarantees:
        return Guarantees()

    def caller(self, url: str) -> Callable[..., None]:
        from plain_huey import work

        return lambda id, seconds=0.0: work(id, seconds)


class Broken(SQLite):
    """The SQLite engine with a mistake of `broken.py` in its workers: it has to be found out."""

    app = "broken"
    lossy = True

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self._mistake = mistake

    def environment(self, url: str) -> Mapping[str, str]:
        return {**super().environment(url), "CHAOS_MISTAKE": self._mistake}

    def __str__(self) -> str:
        return f"sqlite, broken: {self._mistake}"


class Dramatiq(OnRedis):
    """`dramatiq` on a broker that the handler made. On Redis a worker that is silent for `VISIBILITY` is dead."""

    name = "dramatiq-redis"
    handler_name = "dramatiq"
    trusts_clocks = True

    def settings(self, processes: int) -> dict[str, Any]:
        return {"processes": 1, "threads": processes, "heartbeat_timeout": VISIBILITY}


class DramatiqOnRabbitMQ(Dramatiq):
    """The same on RabbitMQ; what is known of the jobs is in a Redis, which lives on."""

    name = "dramatiq-rabbitmq"
    trusts_clocks = False

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, Server]]:
        with rabbitmq() as server, redis() as results:
            yield f"{server.url.removesuffix('//')}?store={results.url}", server

    def settings(self, processes: int) -> dict[str, Any]:
        return {"processes": 1, "threads": processes}


class Procrastinate(Served):
    """`procrastinate worker` on an app that the handler made, with a PostgreSQL of its own."""

    name = handler_name = "procrastinate"

    @contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, Server]]:
        with postgres_server() as server:
            yield procrastinate_on(server), server

    def settings(self, processes: int) -> dict[str, Any]:
        return {"concurrency": processes}


SERVED: Final = {
    engine.name: engine
    for engine in (
        RQ(),
        Celery(),
        CeleryOnRabbitMQ(),
        Dramatiq(),
        DramatiqOnRabbitMQ(),
        Procrastinate(),
    )
}
"""The engines with a server."""
CONTROLS: Final = {engine.name: engine for engine in (PlainHuey(), PlainCelery(), RQOnMemory())}
ENGINES: Final[dict[str, Engine]] = {"sqlite": SQLite(), **SERVED, **CONTROLS}


def produce(
    call: Callable[..., None],
    prefix: str,
    count: int,
    seconds: float = 0.0,
    pause: float = 0.0,
    enough: Path | None = None,
) -> None:
    """Hand over so many jobs, one call at a time, and tell the oracle of each, also if it is not taken.

    With `enough` more of them until there is such a file, in the pace at which one worker can do them.
    """
    for number in itertools.count():
        if number >= count and (enough is None or enough.exists()):
            break
        id = f"{prefix}{number}"
        oracle.tell("T", id)
        try:
            call(id, seconds)
        except backgrounded.EnqueueError as error:
            oracle.tell("E", id)
            print(f"{id} is refused: {error}", flush=True)
            time.sleep(PAUSE)
        else:
            oracle.tell("A", id)
            time.sleep(pause if number < count else max(pause, seconds))


if __name__ == "__main__":  # a process that calls: NAME URL PREFIX COUNT [SECONDS [PAUSE [ENOUGH]]]
    produce(
        ENGINES[sys.argv[1]].caller(sys.argv[2]),
        sys.argv[3],
        int(sys.argv[4]),
        *map(float, sys.argv[5:7]),
        *map(Path, sys.argv[7:]),
    )
