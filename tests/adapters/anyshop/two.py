"""The application, where it has grown: its mail has queues of its own, and the rest another engine or place."""

from __future__ import annotations

import os

from backgrounded import configure

from .models import Account

__all__ = ["Account"]

for name, variable in (("default", "ANYSHOP_DEFAULT"), ("mail", "ANYSHOP_MAIL")):
    url = os.environ[variable]
    kind, _, place = url.rpartition("+")
    if kind or "://" in url:
        configure(kind or url.partition(":")[0], name=name, url=place)
    else:
        configure(url, name=name)
