"""Which engines does the harness know, and what has it to know of each?

Where its jobs are kept, the command of one whole worker, and how a caller hands a job over. What is promised the
handler says itself. To add an engine, write a class of these few lines and name it in `ENGINES`: RQ shows how one with
a server looks, and Celery and Dramatiq will look the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import backgrounded
from backgrounded.handler import Guarantees

import oracle
from servers import redis_server

HERE: Final = Path(__file__).parent
QUEUE: Final = "default"


class Engine:
    """One that `backgrounded` drives. A worker runs `processes` jobs at a time, if it can run more than one."""

    name: ClassVar[str]
    app: ClassVar[str] = "jobs"
    lossy: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def place(self, folder: Path) -> Iterator[str]:
        """The URL under which callers and workers meet, for as long as the block runs."""
        raise NotImplementedError

    def settings(self, processes: int) -> dict[str, Any]:
        """What `configure` is told beside the URL."""
        return {}

    def handler(self, url: str, processes: int = 1) -> Any:
        backgrounded.configure(self.name, url=url, **self.settings(processes))
        return backgrounded.get_handler()

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
    name = "sqlite"

    @contextmanager
    def place(self, folder: Path) -> Iterator[str]:
        yield f"sqlite:///{folder / 'jobs.db'}"

    def settings(self, processes: int) -> dict[str, Any]:
        return {"processes": processes}


class RQ(Engine):
    name = "rq"

    @contextmanager
    def place(self, folder: Path) -> Iterator[str]:
        with redis_server() as url:
            yield f"{url}/0"


class PlainHuey(Engine):
    """The control: Huey by itself. It promises nothing, and has to lose jobs here, or the harness sees nothing."""

    name = "plain-huey"
    app = "plain_huey"
    lossy = True

    @contextmanager
    def place(self, folder: Path) -> Iterator[str]:
        yield str(folder / "huey.db")

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
        self._mistake = mistake

    def environment(self, url: str) -> Mapping[str, str]:
        return {**super().environment(url), "CHAOS_MISTAKE": self._mistake}

    def __str__(self) -> str:
        return f"sqlite, broken: {self._mistake}"


ENGINES: Final[dict[str, Engine]] = {engine.name: engine for engine in (SQLite(), RQ(), PlainHuey())}


def produce(call: Callable[..., None], prefix: str, count: int, seconds: float = 0.0) -> None:
    """Hand over so many jobs, one call at a time, and tell the oracle of each, also if it is not taken."""
    for number in range(count):
        id = f"{prefix}{number}"
        oracle.tell("T", id)
        try:
            call(id, seconds)
        except backgrounded.EnqueueError as error:
            oracle.tell("E", id)
            print(f"{id} is refused: {error}", flush=True)
        else:
            oracle.tell("A", id)


if __name__ == "__main__":  # a process that calls: NAME URL PREFIX COUNT SECONDS
    produce(ENGINES[sys.argv[1]].caller(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
