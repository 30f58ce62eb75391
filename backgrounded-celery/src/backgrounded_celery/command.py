"""How does a worker of an application that never heard of us find our task?

Celery imports what is registered under the entry points `celery.commands` at each start of `celery`. Importing this
module registers the task; the command itself says what an app's settings mean for our promises.
"""

from __future__ import annotations

from typing import Any

import click

from . import task  # noqa: F401 # registers the task


@click.command("backgrounded", short_help="What this app promises for calls of `backgrounded`.")
@click.pass_context
def command(context: Any) -> None:
    """Print what calls of `backgrounded` are promised with the settings of this app."""
    from ._handler import CeleryHandler  # here, not above: each start of `celery` imports this module

    handler = CeleryHandler(app=context.obj.app)
    click.echo(f"features: {', '.join(sorted(handler.features))}")
    click.echo(f"delivery: {handler.guarantees.delivery}")
    for note in handler.guarantees.notes:
        click.echo(f"- {note}")
