"""How many jobs a second do the SQLite engine and Huey's own SQLite queue run, side by side on the same disk?

    python benchmarks/sqlite_vs_huey.py [--jobs 4000] [--rounds 5] [--folder /where/the/disk/is]

Each has two processes, its own worker command and its defaults, and a job that adds one byte to a file. The two take
turns, so that what else the machine does hits both; the ratio is that of the medians. Huey is used without
`backgrounded`: its own task, its own consumer.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

PROCESSES: Final = 2
COUNTER, HUEY_FILE = "BENCHMARK_COUNTER", "BENCHMARK_HUEY"
LONGEST: Final = 300.0

if HUEY_FILE in os.environ:  # in Huey's consumer, and where its tasks are called
    from huey import SqliteHuey

    huey: Any = SqliteHuey(filename=os.environ[HUEY_FILE])

    @huey.task()  # type: ignore[untyped-decorator] # as above
    def task() -> None:
        add_one()

elif "BACKGROUNDED_URL" in os.environ:
    from backgrounded import backgroundable

    @backgroundable
    def job(_: int) -> None:
        add_one()


def add_one() -> None:
    target = os.open(os.environ[COUNTER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(target, b".")
    os.close(target)


def call(jobs: int) -> None:
    """In a process of its own: hand over so many jobs, one by one, and print how many a second."""
    module = __import__(Path(__file__).stem)
    if HUEY_FILE in os.environ:
        hand_over: Callable[[int], Any] = lambda _: module.task()  # noqa: E731 # one word for two engines
    else:
        import backgrounded

        hand_over = backgrounded.later(module.job)
    began = time.perf_counter()
    for number in range(jobs):
        hand_over(number)
    print(jobs / (time.perf_counter() - began))


def measure(command: Sequence[str], environment: dict[str, str], folder: Path, jobs: int) -> tuple[float, float]:
    """Calls a second, and jobs a second, of one engine: the jobs wait before its worker starts."""
    counter = folder / "counter"
    counter.touch()
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": paths, "PYTHONPATH": str(Path(__file__).parent), COUNTER: str(counter), **environment}
    called = subprocess.run(
        [sys.executable, __file__, "--call", str(jobs)], env=env, check=True, capture_output=True, text=True
    )
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        tenth, rest = until(counter, jobs // 10), until(counter, jobs)
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(30)
    return float(called.stdout), (rest[1] - tenth[1]) / (rest[0] - tenth[0])


def until(counter: Path, size: int) -> tuple[float, int]:
    """The moment at which so many jobs have run, and how many really had."""
    end = time.perf_counter() + LONGEST
    while time.perf_counter() < end:
        if (found := counter.stat().st_size) >= size:
            return time.perf_counter(), found
        time.sleep(0.002)
    raise TimeoutError(f"{counter.stat().st_size} of {size} jobs have run")


def ours(folder: Path, jobs: int) -> tuple[float, float]:
    url = f"sqlite:///{folder / 'jobs.db'}"
    command = [sys.executable, "-m", "backgrounded_sqlite", "--url", url, "--processes", str(PROCESSES), "default"]
    return measure(command, {"BACKGROUNDED_URL": url, "BACKGROUNDED_APP": Path(__file__).stem}, folder, jobs)


def theirs(folder: Path, jobs: int) -> tuple[float, float]:
    command = ["huey_consumer", f"{Path(__file__).stem}.huey", "-k", "process", "-w", str(PROCESSES)]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    return measure(command, {HUEY_FILE: str(folder / "huey.db")}, folder, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the queues are made (default: the directory for temporary files)")
    parser.add_argument("--call", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.call is not None:
        return call(parsed.call)
    found: dict[str, list[tuple[float, float]]] = {"sqlite": [], "huey": []}
    for number in range(parsed.rounds):
        for name, run in (("sqlite", ours), ("huey", theirs)):
            with tempfile.TemporaryDirectory(prefix="backgrounded-benchmark-", dir=parsed.folder) as folder:
                called, ran = run(Path(folder), parsed.jobs)
            found[name].append((called, ran))
            print(f"round {number + 1} {name}: {called:.0f} calls/s, {ran:.0f} jobs/s", flush=True)
    for column, what in enumerate(("calls/s", "jobs/s")):
        sqlite, other = (statistics.median(row[column] for row in found[name]) for name in ("sqlite", "huey"))
        print(f"{what}: sqlite {sqlite:.0f}, huey {other:.0f}, ratio {sqlite / other:.2f}")
    return None


if __name__ == "__main__":
    main()
