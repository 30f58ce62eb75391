"""Which Huey does a consumer serve that `worker_command()` starts?

    BACKGROUNDED_URL=huey+sqlite:///jobs.db huey_consumer backgrounded_huey.worker.custom
    huey_consumer backgrounded_huey.worker.shop%2Ejobs:huey

The first serves the queue `custom` of that URL, the second the application's `shop.jobs:huey`, and tells it of our task
where no module of the application does. What cannot stand in a dotted path is quoted as in a URL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import backgrounded

from ._handler import HueyHandler
from ._line import install
from ._settings import find

if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))  # huey_consumer does so only where it does not find what it is to serve


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if ":" in name:
        huey = find(unquote(name))
        install(huey)
        return huey
    handler = backgrounded.get_handler()
    if not isinstance(handler, HueyHandler):
        raise backgrounded.ConfigurationError(
            "A consumer of backgrounded_huey.worker finds its store in the environment: set BACKGROUNDED_URL, "
            "such as BACKGROUNDED_URL=huey+sqlite:///jobs.db."
        )
    return handler.serve(unquote(name))
