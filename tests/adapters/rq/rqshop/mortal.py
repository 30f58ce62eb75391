"""The same application in processes that die when RQ has written down that a job comes again: their run was over."""

from __future__ import annotations

import logging
import os
import signal

import rqshop.jobs  # noqa: F401 # whose methods are run


class Death(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "inished handling retry" in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)


logging.getLogger("rq.worker").addHandler(Death())
