"""The application's own app, as it was before anybody thought of `backgrounded`."""

from __future__ import annotations

import os

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["PROCRASTINATESHOP_URL"]))


@app.task(queue="tasks", name="greet")
def greet(name: str) -> str:
    return f"hello {name}"
