"""backgrounded without a server: a durable queue in one SQLite file, with worker processes of its own.

    backgrounded.configure("sqlite", url="sqlite:///jobs.db")
    user.backgrounded(queue="custom").do_stuff(1)

`SQLiteHandler` writes calls into the file, and `backgrounded worker custom` runs them.
"""

from __future__ import annotations

from ._handler import SQLiteHandler

__version__ = "0.1.0"
__all__ = ["SQLiteHandler"]
