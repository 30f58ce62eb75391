"""What does a worker's main process need, so that its pool can work and tell it how a run ended?

The main process knows less of the application than the processes of its pool, which import it with the first job. It
reads how a run ended from a pickle of Celery's, and what it cannot import there ends the whole worker.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from backgrounded import JobFailed
from backgrounded.handler import failure_from, failure_record


class _Above:
    """The modules that the main process had imported when it forked this one; None: this is no process of a pool."""

    modules: frozenset[str] | None = None

    def note(self) -> None:
        self.modules = frozenset(sys.modules)


_above = _Above()


def prepare() -> None:
    """In a worker's main process, before there is a pool. The modules where the worker starts are found in all of it:
    `celery -A shop` takes that directory out of the path again when it has imported the app."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_above.note)


def make_readable(einfo: Any, error: BaseException) -> None:
    """Put text in the place of an exception that the main process could not read."""
    if not _is_readable((einfo.type, einfo.exception)):
        einfo.type, einfo.exception = JobFailed, failure_from(failure_record(error))


def readable(error: BaseException | None) -> BaseException | None:
    """This exception, or what it says, where the main process could not read it."""
    return error if error is None or _is_readable(error) else failure_from(failure_record(error))


def _is_readable(value: Any) -> bool:
    """Whether the main process has imported all that a pickle of this names."""
    if _above.modules is None:
        return True
    try:
        reader = _Reader(io.BytesIO(pickle.dumps(value)))
        reader.load()
    except Exception:  # whatever a class does when it is taken apart, or made again
        return False
    return reader.modules <= _above.modules


class _Reader(pickle.Unpickler):
    """Reads what this very process has written, and notes which modules that took."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module)
        return super().find_class(module, name)
