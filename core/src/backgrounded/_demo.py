"""What does it look like? A tiny application, its method called here and run in another process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ._configuration import load_handler, using
from .errors import ConfigurationError

APPLICATION: Final = """\
import os

from backgrounded import Backgrounded


class User(Backgrounded):
    def __init__(self, name):
        self.name = name

    def __backgrounded_args__(self):  # how a worker builds this user again
        return (self.name,), {}

    def do_stuff(self, n):
        return f"{self.name} did {n} things in pid {os.getpid()}"
"""
QUEUE: Final = "custom"
PATIENCE: Final = 30.0
"""Seconds to wait for the result."""


def demo(handler: str) -> int:
    """Show it on one engine: the application, the call, the worker, the result, and what to do next.

    Raises ConfigurationError when the handler brings no server to show it on.
    """
    engine = getattr(load_handler(handler), "demo", None)
    if engine is None:
        raise ConfigurationError(f"Handler {handler!r} has no demo. It needs no other process, or brings no server.")
    with tempfile.TemporaryDirectory(prefix="backgrounded-demo-") as folder, engine() as url:
        _show(f"A tiny application, {folder}/shop.py:", APPLICATION)
        Path(folder, "shop.py").write_text(APPLICATION)
        os.environ["BACKGROUNDED_APP"] = "shop"
        sys.path.insert(0, folder)
        shop: Any = importlib.import_module("shop")
        with using(handler, url=url) as configured_handler:
            configured: Any = configured_handler  # worker_command() comes with Feature.WORKER
            job = shop.User("Ada").backgrounded(queue=QUEUE).do_stuff(3)
            command = configured.worker_command([QUEUE])
            _show(
                f"Called here, in pid {os.getpid()}; the job is {job.state}:",
                f'backgrounded.configure("{handler}", url="{url}")\n'
                f'job = User("Ada").backgrounded(queue="{QUEUE}").do_stuff(3)',
            )
            _show("A worker, in a process of its own:", " ".join(command))
            with _running(command, folder) as log:
                result = job.result(timeout=PATIENCE)
            said = [line for line in log.read_text().splitlines() if "shop.User.do_stuff" in line]
            _show("It said:", "\n".join(said))
            _show(f"The result, read back in pid {os.getpid()}; the job has {job.state}:", result)
    _show("Next:", _NEXT.format(handler=handler))
    return 0


_NEXT: Final = """\
pip install "backgrounded[{handler}]"
backgrounded.configure("{handler}", url=...)   # or BACKGROUNDED_URL
class YourModel(Backgrounded): ...     # or background(obj).method(), or later(function)(...)
backgrounded worker --app your.module custom"""


@contextmanager
def _running(command: list[str], folder: str) -> Iterator[Path]:
    """The worker, with this interpreter's scripts on the path, and its log; which is shown if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    log = Path(folder, "worker.log")
    with log.open("w") as output:
        env = {**os.environ, "PATH": path}
        worker = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        yield log
    except BaseException:
        _show("The worker said:", log.read_text())
        raise
    finally:
        worker.terminate()
        worker.wait()


def _show(title: str, text: str) -> None:
    print(f"{title}\n\n{textwrap.indent(text.rstrip(), '    ')}\n", flush=True)
