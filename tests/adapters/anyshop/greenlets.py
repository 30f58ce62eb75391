"""The application in a web server of greenlets: so many requests at the same time, each with a call, or a result."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402 # gevent wants to be first
import sys  # noqa: E402

import backgrounded  # noqa: E402
import gevent  # noqa: E402

from .models import Account  # noqa: E402

kind, _, place = os.environ["BACKGROUNDED_URL"].rpartition("+")
# All of them wait in line for a few connections: how long that takes is not asked here.
backgrounded.configure(kind or place.partition(":")[0], url=place, enqueue_timeout=60)
account = Account("ada", sys.argv[1])
REQUESTS = range(120)
"""More than the connections of redis-py 8 (100) and of a PostgreSQL as it is installed (100)."""

calls = [gevent.spawn(account.backgrounded(queue="nobody").note, f"request {number}") for number in REQUESTS]
print(len({call.get(60).id for call in calls}), "called")
job = account.backgrounded(queue="custom", delay=1).note("awaited")
results = [gevent.spawn(job.result, 60) for _ in REQUESTS]
print({result.get() for result in results})
side_by_side = int(os.environ["ANYSHOP_SIDE_BY_SIDE"])
meeting = [account.backgrounded(queue="custom").meet(side_by_side) for _ in range(side_by_side)]
print({job.result(60) for job in meeting})
