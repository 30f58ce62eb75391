"""backgrounded on Huey: jobs run in the unmodified `huey_consumer`, at most once.

    backgrounded.configure("huey", huey=huey)  # beside `huey = RedisHuey("shop")`
    user.backgrounded.do_stuff(1)

`HueyHandler` hands calls to Huey. `install(huey)` is for a module that a consumer imports and that configures nothing:
it tells that Huey what to do with our jobs.
"""

from __future__ import annotations

from ._handler import HueyHandler
from ._line import install

__version__ = "0.1.0"
__all__ = ["HueyHandler", "install"]
