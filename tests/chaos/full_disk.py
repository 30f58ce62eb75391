"""What if the disk is full, and what when there is room again (F13)?

    unshare -m python full_disk.py FOLDER SEED

The queue lies on a small disk that exists in this process's mount namespace alone; the oracle lies elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import backgrounded

from engines import SQLite
from faults import children
from oracle import looks
from runs import READY, Bench, bench

SIZE = "16m"
RESUMES_WITHIN = 5.0


class OnSmallDisk(SQLite):
    @contextlib.contextmanager
    def place(self, folder: Path) -> Iterator[tuple[str, None]]:
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], check=True)
        yield f"sqlite:///{disk / 'jobs.db'}", None


def fill(disk: Path) -> Path:
    """Leave no room on the disk."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    return ballast


def main(folder: Path, seed: int) -> int:
    with bench(OnSmallDisk(), folder, seed) as run:
        worker = run.worker(processes=2)
        run.ready(worker)
        for number in range(100):
            run.call(f"before{number}", 0.02)
        time.sleep(random.Random(seed).uniform(0, 0.5))
        ballast = fill(folder / "disk")
        refused_after = refused(run)
        stranger = run.python("engines.py", "sqlite", run.url, "stranger", 1, 0)  # a process that has not called before
        assert stranger.process.wait(READY) == 0, f"no EnqueueError in a new process:\n{run.output()[-2000:]}"
        unborn(folder / "disk" / "new.db")
        run.oracle.look()
        assert "stranger0" in run.oracle.refused, "a new process's call was not refused"
        os.kill(children(worker.pid)[0], 9)  # and one of the worker's processes dies meanwhile
        for _ in looks(3.0):
            assert worker.process.poll() is None, f"the worker has ended:\n{run.output()[-2000:]}"
        ended = len(run.oracle.ends)
        ballast.unlink()
        freed = time.monotonic()
        run.call("after", 0.0)
        run.oracle.until(
            lambda: len(run.oracle.ends) > ended and "after" in run.oracle.ends, READY, f"work goes on; see {run.log}"
        )
        resumed = time.monotonic() - freed
        run.settle()
        assert worker.process.poll() is None, "the worker has ended"
        report = run.report("F13", 1, [resumed], what="resume_ms", more=f"refused_after={refused_after} ")
        print(report, flush=True)
        assert not report.lost | report.phantoms
        assert resumed <= RESUMES_WITHIN
        return 0


def refused(run: Bench) -> int:
    """Call until a call is refused: what was reserved before is used up first. How many were taken."""
    for number in range(20_000):
        try:
            run.call(f"during{number}", 0.0)
        except backgrounded.EnqueueError:
            return number
    raise AssertionError("a full disk takes all calls")


def unborn(path: Path) -> None:
    """A queue cannot be made on a full disk, and says so as any other failure to hand over."""
    from jobs import work

    with backgrounded.using("sqlite", url=f"sqlite:///{path}"):
        try:
            backgrounded.later(work)("never")
        except backgrounded.EnqueueError:
            return
    raise AssertionError("a queue was made on a full disk")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
