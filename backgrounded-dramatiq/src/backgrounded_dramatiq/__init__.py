"""backgrounded on Dramatiq: jobs run in the unmodified `dramatiq shop`.

    backgrounded.configure("dramatiq", queues=["custom"])
    user.backgrounded(queue="custom").do_stuff(1)

`DramatiqHandler` hands calls to the application's broker, or to one made from a URL; `Backgrounded` is the middleware
by which a worker runs them. Importing this package makes no broker and connects to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._handler import DramatiqHandler as DramatiqHandler
    from ._middleware import Backgrounded as Backgrounded

__version__ = "0.1.0"
__all__ = ["Backgrounded", "DramatiqHandler"]


def __getattr__(name: str) -> Any:
    if name == "DramatiqHandler":
        from ._handler import DramatiqHandler as found
    elif name == "Backgrounded":
        from ._middleware import Backgrounded as found  # type: ignore[assignment] # another class
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
