"""Which app does a worker run that has none of its own? `celery -A backgrounded_celery.worker worker`.

The one of the handler that BACKGROUNDED_URL names, such as celery+redis://localhost:6379/0.
"""

from __future__ import annotations

from typing import Any

from backgrounded import ConfigurationError, get_handler

from . import task  # noqa: F401 # registers the task
from ._handler import CeleryHandler

_handler: Any = get_handler()
if not isinstance(_handler, CeleryHandler):
    raise ConfigurationError(
        "backgrounded_celery.worker runs the app of BACKGROUNDED_URL, such as celery+redis://localhost:6379/0."
    )
app = _handler.app
