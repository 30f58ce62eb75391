"""How does somebody who writes a handler find out that it keeps its promises?

    from backgrounded.testing import HandlerContract

    class TestRiver(HandlerContract):
        @pytest.fixture
        def handler(self): ...

        @contextmanager
        def worker(self, handler, *queues): ...

`HandlerContract` needs pytest, and is loaded when it is asked for. A worker loads `backgrounded.testing.probe` alone
(BACKGROUNDED_APP=backgrounded.testing.probe): it needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import HandlerContract as HandlerContract

__all__ = ["HandlerContract"]


def __getattr__(name: str) -> Any:
    if name != "HandlerContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest  # here, not above: workers have no pytest

    # Asserts in test modules are rewritten by pytest so that a failure shows the values; these are test modules, too.
    pytest.register_assert_rewrite(f"{__name__}.promises", f"{__name__}.frame")
    from .contract import HandlerContract

    globals()[name] = HandlerContract
    return HandlerContract
