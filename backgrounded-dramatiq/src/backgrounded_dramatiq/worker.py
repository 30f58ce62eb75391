"""Which broker does a worker run that is started as `dramatiq backgrounded_dramatiq.worker`?

That of BACKGROUNDED_URL, such as dramatiq+redis://localhost:6379/0; without it, what the modules in BACKGROUNDED_APP
set or configure, which are imported first.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import dramatiq
from backgrounded import ConfigurationError, get_handler

from ._handler import DramatiqHandler
from ._middleware import attach
from ._settings import global_broker

for _name in os.environ.get("BACKGROUNDED_APP", "").split(","):
    if _name.strip():
        importlib.import_module(_name.strip())

if "BACKGROUNDED_URL" not in os.environ and (_found := global_broker()) is not None:
    attach(_found)  # without asking for a handler, which would make one for nested calls to run inside of their job
else:
    _handler: Any = get_handler()
    if not isinstance(_handler, DramatiqHandler):
        raise ConfigurationError(
            "backgrounded_dramatiq.worker runs the broker of BACKGROUNDED_URL, such as "
            "dramatiq+redis://localhost:6379/0, or the one that a module in BACKGROUNDED_APP sets or configures."
        )
    dramatiq.set_broker(_handler.broker.dramatiq)
