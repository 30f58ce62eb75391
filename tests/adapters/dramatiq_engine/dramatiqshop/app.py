"""What the application's worker imports, `dramatiq dramatiqshop.app`: the configuration comes before the broker."""

from __future__ import annotations

import backgrounded

backgrounded.configure("dramatiq", queues=["listed"])

import dramatiqshop.broker  # noqa: E402
import dramatiqshop.jobs  # noqa: E402, F401
