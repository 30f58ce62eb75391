"""How is a worker started? `python -m backgrounded_sqlite --url sqlite:///jobs.db custom`, or `backgrounded worker`."""

from __future__ import annotations

import argparse
import logging
import socket
import sqlite3
import sys
from collections.abc import Sequence

import backgrounded
from backgrounded import BackgroundedError

from ._handler import GRACE, SQLiteHandler
from ._process import CANNOT_START, Process, tell
from ._worker import Worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit code is 1 when it could not start."""
    parsed = _parser().parse_args(arguments)
    try:
        handler = SQLiteHandler(parsed.url, queue=parsed.queue, processes=parsed.processes, grace=parsed.grace)
        queues = list(dict.fromkeys(parsed.queues)) or [handler.default_queue]
        if parsed.child is not None:
            return _work(handler, queues, socket.socket(fileno=parsed.child))
        _show_log()
        return Worker(handler, queues).run()
    except BackgroundedError as error:
        print(f"backgrounded: {error}", file=sys.stderr)
        return 1
    except (sqlite3.Error, OSError) as error:  # the next one may have more luck
        print(f"backgrounded: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backgrounded_sqlite", description="Run jobs of a SQLite queue.")
    parser.add_argument("queues", nargs="*", help="names of queues (default: default)")
    parser.add_argument("--url", help="such as sqlite:///jobs.db, which is the default")
    parser.add_argument("--queue", help="the queue of calls that name none (default: default)")
    parser.add_argument("--processes", type=int, help="how many jobs run at the same time")
    parser.add_argument(
        "--grace", type=float, default=GRACE, help="seconds to end after SIGTERM (default: %(default)g)"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser


def _show_log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")


def _work(handler: SQLiteHandler, queues: Sequence[str], parent: socket.socket) -> int:
    """Run jobs until there is a reason to end; one that meets the next process as well is told to the parent."""
    parent.set_inheritable(False)
    try:
        backgrounded.load_app()
        _show_log()  # after the application, which may have said how it wants its log
        Process(handler, queues, parent).run()
    except BackgroundedError:
        tell(parent, CANNOT_START)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
