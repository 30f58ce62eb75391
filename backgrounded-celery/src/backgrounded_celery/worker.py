"""Which app does a worker run that has none of its own? `celery -A backgrounded_celery.worker worker`.

The one of the handler that BACKGROUNDED_URL names, such as celery+redis://localhost:6379/0; without it, that of the
handler which the modules in BACKGROUNDED_APP configure. They are imported here, once for all processes of the pool.
"""

from __future__ import annotations

from backgrounded import ConfigurationError, worker_handler

from . import task  # noqa: F401 # registers the task
from ._handler import CeleryHandler

_handler = worker_handler(CeleryHandler)
if _handler is None:
    raise ConfigurationError(
        "backgrounded_celery.worker runs the app of BACKGROUNDED_URL, such as celery+redis://localhost:6379/0."
    )
app = _handler.app
