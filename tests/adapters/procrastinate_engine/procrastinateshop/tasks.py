"""The application's own app, which runs our jobs beside its own."""

from __future__ import annotations

import os
from pathlib import Path

import backgrounded_procrastinate
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["PROCRASTINATESHOP_URL"]))
backgrounded_procrastinate.install(app)


@app.task(queue="tasks", name="greet", retry=2)
def greet(path: str, name: str) -> None:
    Path(path).write_text(f"hello {name}")
