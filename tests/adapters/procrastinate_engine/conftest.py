"""A real PostgreSQL, a database of its own for each class, and real `procrastinate worker` processes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import backgrounded
import procrastinate
import psycopg
import pytest
from procrastinate_contract import worker
from procrastinateshop.jobs import Item

from postgres import Postgres, postgres_server

HERE = Path(__file__).parent
_turn = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE pattern")
        app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=f"{server.url}/pattern"))
        with app.open():
            app.schema_manager.apply_schema()
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: Postgres) -> Callable[[], str]:
    """The URL of a new database with Procrastinate's schema, and nothing of ours."""

    def make() -> str:
        name = f"shop{next(_turn)}"
        with psycopg.connect(f"{postgres.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE pattern")
        return f"{postgres.url}/{name}"

    return make


@pytest.fixture(scope="class")
def database(new_database: Callable[[], str]) -> str:
    """A database that no other class of tests uses."""
    return new_database()


@pytest.fixture(scope="module")
def shop_url(new_database: Callable[[], str]) -> str:
    """The database of the application: one for a module of tests."""
    return new_database()


@pytest.fixture(scope="module")
def shop(shop_url: str) -> Iterator[procrastinate.App]:
    """The application's own app, as its module makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROCRASTINATESHOP_URL", shop_url)
        patch.syspath_prepend(HERE)
        sys.modules.pop("procrastinateshop.tasks", None)
        from procrastinateshop.tasks import app

        yield app


@pytest.fixture
def handler(shop: procrastinate.App) -> Iterator[Any]:
    with backgrounded.using("procrastinate", app=shop, enqueue_timeout=30) as handler:
        yield handler
        handler.close()


@pytest.fixture(scope="module")
def start_worker(shop_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Start `procrastinate --app=procrastinateshop.tasks.app worker` for these queues, as the application does."""
    folder = tmp_path_factory.mktemp("procrastinate")

    def start(*queues: str, app: str = "procrastinateshop.tasks.app", **environment: str) -> Any:
        command = ["procrastinate", f"--app={app}", "worker", "--fetch-job-polling-interval", "1"]
        given = {"PROCRASTINATESHOP_URL": shop_url, "BACKGROUNDED_APP": "procrastinateshop.jobs", **environment}
        return worker([*command, f"--queues={','.join(queues)}"], folder, **given)

    return start


@pytest.fixture(scope="module")
def shop_worker(start_worker: Callable[..., Any]) -> Iterator[Any]:
    """The worker that most tests share. It gives nothing back: tests that look for that start another one."""
    with start_worker("default", "tasks") as running:
        yield running


@pytest.fixture
def item() -> Item:
    return Item("/nowhere")


@pytest.fixture
def ask(shop_url: str) -> Callable[..., Any]:
    """What a query finds in the application's database."""

    def ask(query: str, *values: Any) -> Any:
        with psycopg.connect(shop_url, autocommit=True) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else None

    return ask


@pytest.fixture
def oracle(tmp_path: Path) -> str:
    return str(tmp_path / "oracle.jsonl")
