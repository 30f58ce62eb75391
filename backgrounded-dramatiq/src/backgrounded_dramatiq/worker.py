"""Which broker does a worker run that is started as `dramatiq backgrounded_dramatiq.worker`?

That of BACKGROUNDED_URL, such as dramatiq+redis://localhost:6379/0; without it, what the modules in BACKGROUNDED_APP
set or configure, which are imported first.
"""

from __future__ import annotations

import os

import dramatiq
from backgrounded import ConfigurationError, worker_handler

from ._handler import DramatiqHandler
from ._middleware import attach
from ._settings import global_broker

_handler = worker_handler(DramatiqHandler)
_named = _handler if "BACKGROUNDED_URL" in os.environ else None
if _named is None and (_found := global_broker()) is not None:
    attach(_found)
elif _handler is not None:
    dramatiq.set_broker(_handler.broker.dramatiq)
else:
    raise ConfigurationError(
        "backgrounded_dramatiq.worker runs the broker of BACKGROUNDED_URL, such as "
        "dramatiq+redis://localhost:6379/0, or the one that a module in BACKGROUNDED_APP sets or configures."
    )
