"""How is a process started here, and what can be done to it?

Whatever is started dies with the harness (a parent-death signal), writes into a log that the harness can read, and is
signalled by its own process id or as a descendant of one. A worker in a process namespace of its own dies whole, as
with its machine or container: nothing that it started survives.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import oracle
from needs import missing
from processes import children
from servers import freeze

HERE: Final = Path(__file__).parent
PR_SET_CHILD_SUBREAPER: Final = 36
DAY: Final = 86_400
FAKETIME: Final = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
)


def adopt_orphans() -> None:
    """Let what our own processes leave behind become ours: where process 1 buries nobody, we do."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def bury(pids: Sequence[int]) -> None:
    """Wait for the end of adopted processes. Who has been buried by others is none of ours."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


class Started:
    """A process of the harness, and all that it starts."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.since = time.monotonic()
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": _path(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def family(self) -> list[int]:
        """The process ids of the process and of all that it has started, parents first."""
        found = [self.pid]
        for pid in found:
            found.extend(children(pid))
        return found

    def kill(self) -> None:
        """The whole of it, at once, if it is in a namespace of its own (F1). It is dead when this returns."""
        inside = children(self.pid)
        self.process.kill()
        self.process.wait()
        bury(inside)

    def stop(self, within: float = 60.0) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(within)

    def freeze(self) -> None:
        """SIGSTOP for all of it (F18): parents first, so that none of them notices, and the children that are found
        afterwards stay: a parent that stands still neither starts one nor buries it."""
        frozen = [self.pid]
        for pid in frozen:
            freeze(pid)
            frozen.extend(children(pid))

    def thaw(self) -> None:
        """SIGCONT for all of it, children first; one that did not stand still may end in between."""
        for pid in reversed(self.family()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill_child(self) -> bool:
        """The last descendant alone, which is the one that runs jobs (F2). False: there is none (yet)."""
        *_, last = self.family()
        if last == self.pid:
            return False
        try:
            os.kill(last, signal.SIGKILL)
        except ProcessLookupError:  # it has ended meanwhile
            return False
        return True


def start(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    isolated: bool = False,
    skew: int = 0,
) -> Started:
    """Start a process: in a process namespace of its own, so that `kill` leaves nothing of it, and with its clock off
    by so many seconds."""
    faked = {"LD_PRELOAD": faketime(), "FAKETIME": f"{skew:+d}s"} if skew else {}
    within = isolation("-p", "-f", "--kill-child") if isolated else []
    return Started(
        name,
        [_tool("setpriv"), "--pdeathsig", "KILL" if isolated else "TERM", "--", *within, *command],
        {oracle.WORKER: name, **environment, **faked},
        log,
    )


@cache
def isolation(*options: str) -> list[str]:
    """`unshare` with these options; without root in a user namespace, where that is allowed."""
    command = [_tool("unshare"), *options, "--"] if os.geteuid() == 0 else [_tool("unshare"), "-Ur", *options, "--"]
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        missing(f"{' '.join(command)} is not allowed here")
    return command


@cache
def faketime() -> str:
    """The library that shifts a process's clock (Debian: libfaketime)."""
    for path in FAKETIME:
        if Path(path).exists():
            return path
    missing("libfaketime shifts a process's clock: apt-get install libfaketime")


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _tool(name: str) -> str:
    return shutil.which(name) or missing(f"{name} (util-linux) is not here")


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
