"""Which app does a worker serve that `worker_command()` starts?

    procrastinate --app=backgrounded_procrastinate.worker.app worker

That of BACKGROUNDED_URL, such as procrastinate+postgresql://localhost/shop; without it, that of the handler which the
modules in BACKGROUNDED_APP configure. It is made for a URL, or the application's own, which is told of our tasks where
no module of the application does so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import backgrounded

from ._handler import ProcrastinateHandler

if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))  # where the application is; a script does not have it

_handler = backgrounded.worker_handler(ProcrastinateHandler)
if _handler is None:
    raise backgrounded.ConfigurationError(
        "backgrounded_procrastinate.worker serves the app of BACKGROUNDED_URL, such as "
        "procrastinate+postgresql://localhost/shop or procrastinate://shop.tasks:app."
    )
app = _handler.app
