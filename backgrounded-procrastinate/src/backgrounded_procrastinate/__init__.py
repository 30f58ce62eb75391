"""backgrounded on Procrastinate: jobs run in the unmodified `procrastinate worker`, on PostgreSQL.

    backgrounded.configure("procrastinate", url="postgresql://localhost/shop")
    user.backgrounded(queue="custom").do_stuff(1)

`ProcrastinateHandler` hands calls to Procrastinate. `install(app)` is for a module that a worker imports and that
configures nothing: it registers our tasks with that app.
"""

from __future__ import annotations

from ._handler import ProcrastinateHandler, install

__version__ = "0.1.0"
__all__ = ["ProcrastinateHandler", "install"]
