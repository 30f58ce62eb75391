"""How do our words become Huey's?

A queue of ours is one Huey: the application's, or one made here for a URL. Huey's own words for a task that we use are
its id, its eta and its priority; retries, limits and ends are decided by the core and carried out in `_line`, and what
became of a job stands in a ledger beside it.
"""

from __future__ import annotations

import logging
import shlex
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final
from urllib.parse import quote

from backgrounded import (
    Call,
    ConfigurationError,
    EnqueueError,
    InvalidOption,
    UnsupportedOption,
)
from backgrounded.handler import (
    ENQUEUE_TIMEOUT,
    WORKER_PATIENCE,
    Feature,
    Finding,
    Kept,
    State,
    kept_options,
    result_of,
    wait_for_end,
    warn_without_app,
    with_settings,
    worker_settings,
)
from huey import Huey

from ._ledger import Ledger
from ._line import Line, is_installed, line_of
from ._made import Place
from ._settings import (
    KEPT,
    check_huey,
    check_name,
    check_queues,
    check_timeout,
    check_workers,
    find,
    guarantees_of,
    is_name,
    loaded,
    not_kept,
    patience_of,
)

logger = logging.getLogger("backgrounded")

DEFAULT_URL: Final = "sqlite:///jobs.db"
_LEVEL: Final = 5
"""Our priority 5, and none, are Huey's 0, so that our jobs and the application's own tasks stand side by side."""


class HueyHandler:
    """Hands calls to Huey.

    `huey` is the application's Huey, or its name, "shop.jobs:huey", which may still be importing. With `queues`,
    `{"custom": custom_huey}`, `queue="custom"` goes to that one. `url` makes Hueys of our own instead, one for each
    queue that is named: in a file, `sqlite:///jobs.db` (the default), or on a server, `redis://localhost:6379/0`.

    `queue` is the default queue's name; `workers` says how many processes `worker_command` starts; `enqueue_timeout`
    (2 by default) bounds each of the two trips of a hand-over, in seconds, to a store opened here.

    Raises ConfigurationError for what cannot work; nothing is opened before the first use.
    """

    protocol: ClassVar[int] = 1
    features: frozenset[Feature] = KEPT | {Feature.QUEUES, Feature.WORKER}
    """Of Hueys made for a URL. On a Huey of the application's, queues come with `queues`, a worker's command with its
    name, and the rest as far as its store goes."""
    needs: ClassVar[Mapping[Feature, str]] = {Feature.TIMEOUT: "huey_consumer --worker-type process"}
    priority_levels: ClassVar[int] = 10

    def __init__(
        self,
        url: str | None = None,
        *,
        huey: Huey | str | None = None,
        queue: str = "default",
        queues: Mapping[str, Huey | str] | None = None,
        workers: int = 1,
        enqueue_timeout: float | None = None,
    ) -> None:
        if url is not None and huey is not None:
            raise ConfigurationError("huey: give url or huey, not both: each says where jobs go.")
        if url is not None and is_name(url):
            url, huey = None, url  # BACKGROUNDED_URL=huey://shop.jobs:huey
        if huey is None and queues is not None:
            raise ConfigurationError("huey: queues= goes with huey=; with a url, every queue has a Huey of its own.")
        if huey is not None and enqueue_timeout is not None:
            raise ConfigurationError("huey: a Huey of yours brings its timeouts; leave enqueue_timeout out.")
        self.default_queue = check_name(queue, "queue")
        self.workers = check_workers(workers)
        self._lock = threading.RLock()
        self._lines: dict[str, Line] = {}
        self._given: dict[str, Huey | str] = {}
        self._names: dict[str, str] = {}
        self._place: Place | None = None
        self._made_ledger: Ledger | None = None
        if huey is None:
            patience = check_timeout(ENQUEUE_TIMEOUT if enqueue_timeout is None else enqueue_timeout)
            self._place = Place(DEFAULT_URL if url is None else url, patience)
            self.guarantees = guarantees_of(patience)
        else:
            self.guarantees = guarantees_of(None)
            others = check_queues(queues or {})
            if self.default_queue in others:
                raise ConfigurationError(f"huey: queues: {self.default_queue!r} is the one that huey= is for.")
            self._take({self.default_queue: check_huey(huey, "huey"), **others})

    def _take(self, given: Mapping[str, Huey | str]) -> None:
        """Use the application's Hueys. What is there already learns of our task now, as in a consumer it must."""
        self._names = {queue: huey for queue, huey in given.items() if isinstance(huey, str)}
        self.features = KEPT | ({Feature.QUEUES} if len(given) > 1 else frozenset())
        self.features |= {Feature.WORKER} if self._names else frozenset()
        self._given = {queue: (isinstance(huey, str) and loaded(huey)) or huey for queue, huey in given.items()}
        for queue, huey in self._given.items():
            if not isinstance(huey, str):
                self._line(queue)

    # -- queues

    def _line(self, queue: str) -> Line:
        """The line of a queue. Raises ConfigurationError."""
        if queue not in self._lines:  # looked for without the lock: a fork must not find it held for long
            with self._lock:
                if queue not in self._lines:
                    self._lines[queue] = self._borrow(queue) if self._place is None else self._make(self._place, queue)
        return self._lines[queue]

    def _borrow(self, queue: str) -> Line:
        given = self._given[queue]
        huey = find(given) if isinstance(given, str) else given
        if isinstance(given, str) and not is_installed(huey):
            module, _, name = given.partition(":")
            logger.warning(
                "huey: importing %s does not tell its Huey of our jobs: a consumer of it would lose them. "
                "Add backgrounded_huey.install(%s) to %s.",
                *(module, name, module),
            )
        self.features = self.features.difference(not_kept(huey))
        return line_of(huey, queue, fallback=lambda: self)

    def _make(self, place: Place, queue: str) -> Line:
        if self._made_ledger is None:
            self._made_ledger = Ledger(place.huey(None))
        return line_of(place.huey(queue), queue, self._made_ledger, fallback=lambda: self)

    def _searched(self) -> list[Line]:
        """Lines that have the records of all jobs between them."""
        return [self._line(queue) for queue in self._given or [self.default_queue]]

    def serve(self, queue: str) -> Huey:
        """The Huey of a queue, for a consumer in this process."""
        if self._place is not None:
            self._place.patience = WORKER_PATIENCE
        elif queue not in self._given:
            raise ConfigurationError(f"huey: {self._unknown(queue)}")
        line = self._line(queue)
        if self._place is not None:
            self._place.open()
        return line.huey

    def close(self) -> None:
        """Close what was opened here; the next use opens it again. What is the application's stays open."""
        if self._place is not None:
            self._place.close()

    # -- handing over

    def check(self, call: Call) -> None:
        """Refuse a queue that there is not, and what a Huey does not keep that was not there to be asked before."""
        if self._place is not None:
            return
        options = call.options
        queue = options.queue or self.default_queue
        if queue not in self._given:
            raise InvalidOption("queue", self._unknown(queue))
        huey = self._line(queue).huey
        if huey.immediate:
            raise ConfigurationError(
                "huey: a Huey in immediate mode runs jobs before the call returns, without retries, delays or limits. "
                'For tests and scripts say configure("inline") or configure("memory").'
            )
        missing = not_kept(huey)
        for option, feature, is_asked in (
            ("priority", Feature.PRIORITY, options.priority not in (None, _LEVEL)),
            ("delay", Feature.DELAY, bool(options.delay)),
            ("at", Feature.DELAY, options.at is not None),
            ("retry", Feature.RETRY_WAIT, options.retry is not None and options.retry.waits),
        ):
            if is_asked and feature in missing:
                raise UnsupportedOption(option, "huey", kept_options(self.features), missing[feature])

    def _unknown(self, queue: str) -> str:
        return f"{queue!r}: there is no Huey for it. The queues are: {', '.join(sorted(self._given))}"

    def enqueue(self, call: Call) -> str:
        """Two trips to the store: the job's record, then the job. Huey speaks to any store, whose errors have no common
        base, so each of them is an EnqueueError."""
        options = call.options
        due = call.due if call.due is not None and call.due > time.time() else None
        try:
            line = self._line(options.queue or self.default_queue)
            line.ledger.expect(call.id, 1, due)
        except ConfigurationError:
            raise
        except Exception as error:
            raise EnqueueError(f"Huey could not take {call.name}: {type(error).__name__}: {error}") from error
        words = {"wire": call.tree, "name": call.name, "handler": call.handler, "timeout": options.timeout}
        priority = None if options.priority is None else options.priority - _LEVEL
        try:
            line.send(call.id, words, due, priority)
        except Exception as error:
            uncertain = not isinstance(error, sqlite3.Error)  # SQLite has taken it whole or not at all
            if not uncertain:
                with suppress(Exception):  # the job's record stays behind, of a job that there is not
                    line.ledger.forget(call.id)
            raise EnqueueError(
                f"Huey could not take {call.name}: {type(error).__name__}: {error}", uncertain=uncertain
            ) from error
        return call.id

    # -- asking

    def state(self, id: str) -> State:
        return self._look(id)[0]

    def _look(self, id: str) -> tuple[State, Mapping[str, Any]]:
        for line in self._searched():
            state, record = line.ledger.look(id)
            if state is not State.UNKNOWN:
                return state, record
        return State.UNKNOWN, {}

    def result(self, id: str, timeout: float | None) -> Any:
        state, record = wait_for_end(lambda: self._look(id), timeout)
        where = {State.SUCCEEDED: "result", State.FAILED: "failure"}
        return result_of(id, state, record.get(where[state]) if state in where else record)

    def cancel(self, id: str) -> bool:
        return any(line.ledger.cancel(id) for line in self._searched())

    # -- what was set aside

    def kept(self) -> Iterator[Kept]:
        """Reads all that is in the key-value part of the stores."""
        for line in self._searched():
            for id, record in line.ledger.kept():
                words = _words(record)
                reason, code = str(record.get("reason") or ""), str(record.get("code") or "")
                yield Kept(id, reason, words.get("wire"), words.get("name"), code)

    def replay(self, id: str) -> None:
        """Put a kept job back into its queue, as if it were called now. After an EnqueueError it is still kept."""
        line, record = self._kept_at(id)
        is_sent = False
        try:
            line.ledger.expect_again(id, record)
            line.send(id, _words(record), None, record.get("priority"))
            is_sent = True
            line.ledger.drop_copy(id)
        except Exception as error:  # as in `enqueue`
            uncertain = is_sent or not isinstance(error, sqlite3.Error)
            raise EnqueueError(f"Huey could not take job {id} again: {error!r}", uncertain=uncertain) from error

    def forget(self, id: str) -> None:
        self._kept_at(id)[0].ledger.forget(id)

    def _kept_at(self, id: str) -> tuple[Line, Mapping[str, Any]]:
        for line in self._searched():
            record = line.ledger.kept_record(id)
            if record:
                return (line if self._place is None else self._line(str(record.get("queue")))), record
        raise ConfigurationError(f"No job {id!r} is kept here.")

    def examine(self) -> Iterator[Finding]:
        """Whether a Huey of the application's gives up on answers that its server may still send, with jobs in them."""
        for line in self._searched() if self._place is None else ():
            patience = patience_of(line.huey)
            if patience is not None and patience < WORKER_PATIENCE:
                yield Finding(
                    f"The Huey {line.huey.name} gives up on its server after {patience:g} s: a consumer loses the jobs "
                    "in an answer that comes later.",
                    f"say socket_timeout={2 * WORKER_PATIENCE:g} where it is made, or in its URL",
                )

    # -- workers

    def worker_command(self, queues: Iterable[str] = ()) -> list[str]:
        """Huey's own consumer of this queue, made to keep what is promised: processes, for time limits, which finish
        their jobs at SIGTERM, are replaced within a second, and look for jobs often.

        Set BACKGROUNDED_APP where this runs: it is passed on, and names the modules to import before the first job.
        The URL travels in the environment, not among the arguments that `ps` shows.
        """
        queue, *more = list(queues) or [self.default_queue]
        if more:
            raise ConfigurationError(
                "huey: a consumer serves one queue, since a queue is a Huey. Start one for each: "
                + ", ".join(f"worker_command([{name!r}])" for name in (queue, *more))
            )
        settings = worker_settings()
        if self._place is None:
            options, path = [], self._name_of(queue).replace(".", "%2E")
        else:
            join = "&" if "?" in self._place.url else "?"
            settings["BACKGROUNDED_URL"] = f"huey+{self._place.url}{join}queue={quote(self.default_queue, safe='')}"
            options, path = ["--no-periodic"], quote(queue, safe="").replace(".", "%2E")
            warn_without_app()
        command = [
            "huey_consumer",
            *_CONSUMER,
            "--workers",
            str(self.workers),
            *options,
            f"backgrounded_huey.worker.{path}",
        ]
        return with_settings(command, settings)

    def _name_of(self, queue: str) -> str:
        if queue not in self._given:
            raise ConfigurationError(f"huey: {self._unknown(queue)}")
        if queue not in self._names:
            raise ConfigurationError(
                "huey: a consumer finds a Huey by its name, and this one was given as an object. "
                'Say configure("huey", huey="shop.jobs:huey").'
            )
        return self._names[queue]

    @staticmethod
    @contextmanager
    def demo() -> Iterator[str]:
        """The URL of a file of its own, for `python -m backgrounded demo --handler huey`; removes it afterwards."""
        with tempfile.TemporaryDirectory(prefix="backgrounded-huey-") as folder:
            yield f"sqlite:///{folder}/jobs.db"

    def __repr__(self) -> str:
        return f"<HueyHandler of {shlex.quote(self.default_queue)}>"


def _words(record: Mapping[str, Any]) -> Mapping[str, Any]:
    words = record.get("words")
    return words if isinstance(words, Mapping) else {}


_CONSUMER: Final = (
    *("--worker-type", "process", "--graceful-signal", "TERM"),
    *("--health-check-interval", "1", "--delay", "0.05", "--max-delay", "0.5"),
)
