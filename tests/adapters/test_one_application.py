"""Does one application run on every engine, without a line that changes? Each has its own worker, a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from postgres import postgres_server, procrastinate_on
from processes import running
from servers import free_port, rabbitmq, redis_server

pytestmark = pytest.mark.worker
HERE = Path(__file__).parent
WORKER = (sys.executable, "-m", "backgrounded", "worker")
SAID = """\
ada: first succeeded
ada: delayed True
JobFailed('LookupError: no such account') failed
['ada: batch 0', 'ada: batch 1', 'ada: batch 2']
queued ada: first
['batch 0', 'batch 1', 'batch 2', 'delayed', 'first', 'try', 'try', 'try']
True
anyshop.models.Account has no method 'nothing'.
"""


@contextmanager
def on_a_file(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    yield {"BACKGROUNDED_URL": f"{scheme}:///{folder / 'jobs.db'}"}


@contextmanager
def on_redis(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    with redis_server() as url:
        yield {"BACKGROUNDED_URL": f"{scheme}+{url}/0"}


@contextmanager
def celery_on_rabbitmq(app: str, folder: Path) -> Iterator[dict[str, str]]:
    with rabbitmq() as node, redis_server() as results:
        yield {"BACKGROUNDED_URL": f"celery://{app}", "ANYSHOP_BROKER": node.url, "ANYSHOP_RESULTS": results}


@contextmanager
def on_postgresql(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    with postgres_server() as server:
        yield {"BACKGROUNDED_URL": f"{scheme}+{procrastinate_on(server)}"}


@contextmanager
def dramatiq_on_rabbitmq(_: str, folder: Path) -> Iterator[dict[str, str]]:
    with rabbitmq() as node, redis_server() as results:
        yield {"BACKGROUNDED_URL": f"dramatiq+{node.url}?store={results}"}


ENGINES = {
    "sqlite": (on_a_file, "sqlite"),
    "rq": (on_redis, "rq"),
    "huey": (on_a_file, "huey+sqlite"),
    "celery-redis": (on_redis, "celery"),
    "procrastinate": (on_postgresql, "procrastinate"),
    "dramatiq-redis": (on_redis, "dramatiq"),
    "dramatiq-rabbitmq": (dramatiq_on_rabbitmq, "dramatiq"),
    "celery-rabbitmq": (celery_on_rabbitmq, "anyshop.on_rabbitmq:app"),
}


def said_beside(worker: Sequence[str], program: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """What a program of the application prints while a worker runs; where it fails, what both complain of."""
    environment = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]), **environment}
    output = folder / "worker.log"
    with running(worker, environment=environment, output=output, is_ready=lambda: True):
        said = subprocess.run(
            [sys.executable, *program, str(folder / "book")],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return said.stdout if said.returncode == 0 else said.stdout + said.stderr + output.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_application_runs_on_every_engine_without_a_line_that_changes(engine: str, tmp_path: Path) -> None:
    place, what = ENGINES[engine]
    with place(what, tmp_path) as settings:
        environment = {"BACKGROUNDED_APP": "anyshop.models", **settings}
        assert said_beside([*WORKER, "custom"], ["-m", "anyshop"], environment, tmp_path) == SAID


GREENLETS: dict[str, tuple[str, ...]] = {
    "sqlite": (),
    "rq": (),
    "celery-redis": (
        *("celery", "-A", "backgrounded_celery.worker", "worker"),
        *("--pool", "gevent", "--concurrency", "10", "-Q", "custom"),
    ),
    "procrastinate": (),
    "dramatiq-redis": ("dramatiq-gevent", "backgrounded_dramatiq.worker", "--processes", "1", "-Q", "custom"),
}
"""By engine, its worker where that runs greenlets too: then `async` methods run side by side there."""


@pytest.mark.parametrize("engine", GREENLETS)
def test_an_application_of_greenlets_calls_and_waits_in_many_of_them(engine: str, tmp_path: Path) -> None:
    place, what = ENGINES[engine]
    with place(what, tmp_path) as settings:
        environment = {"BACKGROUNDED_APP": "anyshop.models", **settings}
        environment["ANYSHOP_SIDE_BY_SIDE"] = "5" if GREENLETS[engine] else "1"
        worker = GREENLETS[engine] or [*WORKER, "custom"]
        said = said_beside(worker, ["-m", "anyshop.greenlets"], environment, tmp_path)
        assert said == "120 called\n{'ada: awaited'}\n{'met'}\n"


def elsewhere(url: str) -> str:
    """A file of its own, or a server that is not there."""
    return f"{url}.other" if "sqlite" in url else re.sub(r":\d+", f":{free_port()}", url)


TO_MAIL = """
import sys
from anyshop.two import Account
print(Account("ada", sys.argv[1]).backgrounded(handler="mail", queue="custom").note("first").result(60))
"""


@pytest.mark.parametrize("engine", ["sqlite", "rq", "huey", "celery-redis", "procrastinate", "dramatiq-redis"])
@pytest.mark.parametrize("other", ["memory", "the same"])
def test_a_worker_serves_the_handler_that_it_is_started_for(engine: str, other: str, tmp_path: Path) -> None:
    """Whatever the application's default is."""
    place, what = ENGINES[engine]
    with place(what, tmp_path) as settings:
        mail = settings["BACKGROUNDED_URL"]
        environment = {
            "BACKGROUNDED_APP": "anyshop.two",
            "ANYSHOP_DEFAULT": "memory" if other == "memory" else elsewhere(mail),
            "ANYSHOP_MAIL": mail,
        }
        worker = [*WORKER, "--handler", "mail", "custom"]
        assert said_beside(worker, ["-c", TO_MAIL], environment, tmp_path) == "ada: first\n"
