"""Everything that the application calls in the background, and what comes of it, one line each."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import backgrounded
from backgrounded import Retry, UnknownMethod

from .models import Account

book = sys.argv[1]
account = Account("ada", book)
first = account.backgrounded(queue="custom").note("first")
began = time.monotonic()
delayed = account.backgrounded(queue="custom", delay=1).note("delayed")
failed = account.backgrounded(queue="custom", retry=Retry(2, wait=0)).fail()
nobody = account.backgrounded(queue="nobody").note("nobody")
with backgrounded.batch() as jobs:
    for number in range(3):
        account.backgrounded(queue="custom").note(f"batch {number}")

print(first.result(60), first.state)
print(delayed.result(60), time.monotonic() - began >= 1)
print(repr(failed.exception(60)), failed.state)
print([job.result(60) for job in jobs])
print(nobody.state, backgrounded.job(first.id).result(0))
lines = Path(book).read_text().split("\n")[:-1]
print(sorted(line.rpartition(" ")[0] for line in lines))
print({line.rpartition(" ")[2] for line in lines}.isdisjoint({str(os.getpid())}))
try:
    account.backgrounded.nothing()  # type: ignore[attr-defined]
except UnknownMethod as error:
    print(error)
