"""backgrounded on Celery: jobs run in the unmodified `celery -A shop worker`.

    backgrounded.configure("celery", app="shop.celery:app")
    user.backgrounded(queue="custom").do_stuff(1)

`CeleryHandler` hands calls to Celery, and one task, `backgrounded.perform`, runs all of them. Importing this package
registers the task with every Celery app of the process, and loads next to nothing: each start of `celery` does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import task as task

if TYPE_CHECKING:
    from ._handler import CeleryHandler as CeleryHandler

__version__ = "0.1.0"
__all__ = ["CeleryHandler"]


def __getattr__(name: str) -> Any:
    if name != "CeleryHandler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._handler import CeleryHandler

    globals()[name] = CeleryHandler
    return CeleryHandler
