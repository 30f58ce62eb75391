"""What these tests are written with: wait for a condition, run a worker."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from waiting import eventually

HERE = Path(__file__).parent


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Worker:
    """A worker process, ended by its own id; `log` is what it said."""

    def __init__(self, command: list[str], folder: Path, name: str, **env: str | None) -> None:
        self.path = folder / f"{name}.log"
        merged = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        merged |= {
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "BACKGROUNDED_APP": "rqshop.jobs",
        }
        merged = {key: value for key, value in {**merged, **env}.items() if value is not None}
        with self.path.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=merged,
                cwd=folder,
                preexec_fn=die_with_parent,  # noqa: PLW1509 one system call, no lock
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def ready(self) -> Worker:
        eventually(lambda: "Listening on" in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self

    def stop(self, patience: float = 30) -> int:
        """Told twice: RQ may miss the first SIGTERM (see rq_contract.rq_worker)."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()
