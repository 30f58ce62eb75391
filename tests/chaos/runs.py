"""What is done to an engine, and what must hold afterwards?

Each function is one experiment with any engine of `engines.py`: it starts workers and callers, does its harm at moments
that follow from a seed, waits for what the oracle has to show, and returns a `Report`, which is one line to print. That
the harm was done is asserted here; what may come of it is for the tests to say.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import backgrounded
from backgrounded.handler import Feature

from cutting_proxy import cutting_proxy
from engines import HERE, Engine
from faults import DAY, Started, adopt_orphans, bury, start
from oracle import FILE, Oracle, looks, percentile, tell
from servers import Server

READY: Final = 60.0
"""Seconds within which a process has to be up, or a job to be done, on a machine that has other things to do."""
IDLE: Final = 0.06
"""Seconds after which a worker that has ended a job is idle for sure: it has looked for more at least twice."""


@dataclass
class Report:
    """What came of an experiment. Times are in seconds."""

    engine: str
    fault: str
    seed: int
    jobs: int
    kills: int
    lost: set[str]
    phantoms: set[str]
    started_twice: set[str]
    completed_twice: set[str]
    times: list[float] = field(default_factory=list)
    what: str = "recovery_ms"
    more: str = ""
    delivery: str = ""
    """What the engine has promised."""

    @property
    def keeps_its_word(self) -> bool:
        return not self.phantoms and not (self.lost and self.delivery == "at-least-once")

    def __str__(self) -> str:
        shares = [percentile(self.times, share) for share in (0.5, 0.99, 1.0)] if self.times else []
        times = "/".join(f"{share * 1000:.0f}" for share in shares) or "-"
        return (
            f"{self.engine} {self.fault} jobs={self.jobs} kills={self.kills} lost={len(self.lost)} "
            f"phantom={len(self.phantoms)} started>1={len(self.started_twice)} "
            f"completed>1={len(self.completed_twice)} {self.what} p50/p99/max={times} {self.more}seed={self.seed}"
        )


class Bench:
    """An engine in a folder of its own, its oracle, and all processes of one experiment."""

    def __init__(self, engine: Engine, folder: Path, url: str, server: Server | None, seed: int) -> None:
        self.engine = engine
        self.folder = folder
        self.url = url
        self.server = server
        self.seed = seed
        self.random = random.Random(seed)
        self.oracle = Oracle(folder / "oracle", engine.pause)
        self.log = folder / "log"
        self.started: list[Started] = []
        self.kept = 0
        """How many jobs were kept for the deaths of workers, and replayed."""

    @property
    def environment(self) -> dict[str, str]:
        return {FILE: str(self.oracle.path)}

    def worker(self, *options: str, processes: int = 1, **how: Any) -> Started:
        """Start one more whole worker. It is ready when the oracle knows its name."""
        name = f"w{len(self.started)}"
        command = [*self.engine.command(self.url, processes), *options]
        return self._add(
            start(name, command, {**self.environment, **self.engine.environment(self.url)}, self.log, **how)
        )

    def hire(self, crew: dict[str, Started], *options: str, **how: Any) -> None:
        """Start one more whole worker, and put it on this list."""
        worker = self.worker(*options, **how)
        crew[worker.name] = worker

    def supervise(self, crew: dict[str, Started], **how: Any) -> None:
        """Follow each worker on this list that has ended by itself with a new one."""
        for name in [name for name, worker in crew.items() if worker.process.poll() is not None]:
            del crew[name]
            self.hire(crew, **how)

    def until(self, question: Callable[[], bool], what: str, crew: dict[str, Started]) -> None:
        """Read on until it is so, while the workers on this list are followed by new ones."""

        def is_so() -> bool:
            self.supervise(crew)
            return question()

        self.oracle.until(is_so, READY, f"{what}; see {self.log}")

    def goes_on(self, crew: dict[str, Started]) -> float:
        """Wait until another job starts: after how many seconds it does."""
        moment, starts = time.monotonic(), self.oracle.starts
        self.until(lambda: any(events[-1].mono > moment for events in starts.values()), "another job starts", crew)
        return time.monotonic() - moment

    def ready(self, *workers: Started) -> None:
        """Wait until these workers have imported the application; where only a job makes one do it, it gets one."""
        if self.engine.loads_late:
            self.call(id := f"hello{len(self.started)}")
            self.oracle.until(lambda: id in self.oracle.ends, READY, f"a worker at work; see {self.log}")
            return
        names = {worker.name for worker in workers}
        self.oracle.until(lambda: names <= self.oracle.workers.keys(), READY, f"{names} at work; see {self.log}")

    def python(self, script: str, *arguments: object) -> Started:
        """Start a script of this folder, or `-c` and a program."""
        command = [sys.executable, script if script == "-c" else str(HERE / script), *map(str, arguments)]
        return self._add(start("-", command, self.environment, self.log))

    def producer(self, prefix: str, count: int, *how: object) -> Started:
        """Start a process that calls: `produce` says how."""
        return self.python("engines.py", self.engine.name, self.url, prefix, count, *how)

    @contextmanager
    def load(self, jobs: int, seconds: float, pause: float = 0.0) -> Iterator[None]:
        """A process calls while the block runs, so that there is work as long as there is harm: these jobs at first,
        then one after the other. It has ended well when the block has."""
        enough = self.folder / "enough"
        caller = self.producer("j", jobs, seconds, pause, enough)
        yield
        enough.touch()
        assert caller.process.wait(READY + jobs * 0.1) == 0, self.output()[-4000:]

    def catch(self, worker: Started) -> bool:
        """Freeze this worker, and see whether it has a job in hand. One that has none goes on."""
        worker.freeze()
        self.oracle.look()
        if self.oracle.running[worker.name]:
            return True
        worker.thaw()
        return False

    def forks(self, how: str, count: int) -> None:
        """P20: a program calls, forks, and calls on, as `forks.py` says. Nobody hangs, and nobody is refused."""
        program = self.python("forks.py", self.engine.name, self.url, how, count)
        code = program.process.wait(600)
        self.oracle.look()
        hung = self.oracle.tried.keys() - self.oracle.accepted.keys() - self.oracle.refused.keys()
        assert not hung, f"see {self.log}"
        assert not self.oracle.refused, f"nobody was in the way; see {self.log}"
        assert code == 0, self.output()[-4000:]

    def _add(self, started: Started) -> Started:
        self.started.append(started)
        return started

    def call(self, id: str, seconds: float = 0.0, **options: Any) -> None:
        """Hand a job over from this process."""
        self.told(id, lambda: self._caller(id, seconds, **options))

    def send(self, ids: list[str]) -> None:
        """Hand many jobs over from this process, in large trips; they take no time."""
        for id in ids:
            tell("T", id)
        self.engine.sender(self.url)(ids)
        for id in ids:
            tell("A", id)

    @cached_property
    def _caller(self) -> Callable[..., None]:
        return self.engine.caller(self.url)

    @staticmethod
    def told(id: str, call: Callable[[], Any]) -> None:
        """Hand a job over, and tell the oracle."""
        tell("T", id)
        try:
            call()
        except backgrounded.EnqueueError:
            tell("E", id)
            raise
        tell("A", id)

    def settle(self) -> None:
        """Wait until all is done, or until nothing happens for longer than the engine needs to notice a death."""
        recovery = self.engine.guarantees(self.url).recovery_s
        self.oracle.settle(3.0 if self.engine.lossy else 20.0 + (recovery or 0.0))

    def settle_kept(self) -> None:
        """The same where workers are killed at random: a job that was hit three times is kept, and is replayed here."""
        handler = self.engine.handler(self.url) if not self.engine.lossy else None
        while handler is not None and Feature.KEPT in handler.features:
            self.oracle.settle(2.0)
            kept = [kept.id for kept in handler.kept() if kept.code == "deaths"] if self.oracle.lost else []
            for id in kept:
                handler.replay(id)
            self.kept += len(kept)
            if not kept:
                break
        self.settle()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def report(self, fault: str, kills: int, times: Sequence[float] = (), **more: Any) -> Report:
        self.oracle.look()
        found = self.oracle
        return Report(
            str(self.engine),
            fault,
            self.seed,
            len(found.accepted),
            kills,
            found.lost,
            found.phantoms,
            found.started_twice,
            found.completed_twice,
            list(times),
            delivery=self.engine.guarantees(self.url).delivery,
            **more,
        )

    @staticmethod
    def dismiss(started: Started) -> None:
        """End a process and all that it has started, if it still runs."""
        family = started.family() if started.process.poll() is None else []
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()
        bury(family[1:])

    def end(self) -> None:
        for started in self.started:
            self.dismiss(started)
        self.oracle.close()


@contextmanager
def bench(engine: Engine, folder: Path, seed: int) -> Iterator[Bench]:
    """A bench for the block. The oracle's place stands in the environment, where callers and workers look for it."""
    adopt_orphans()
    before = dict(os.environ)
    os.environ[FILE] = str(folder / "oracle")
    try:
        with engine.place(folder) as (url, server):
            os.environ.update(engine.environment(url))
            made = Bench(engine, folder, url, server, seed)
            try:
                yield made
            finally:
                made.end()
                engine.close()
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        backgrounded.reset()


# -- experiments


def nothing_happens(engine: Engine, folder: Path, seed: int, *, jobs: int, producers: int, processes: int) -> Report:
    """No fault at all: many callers, and a worker of some processes."""
    with bench(engine, folder, seed) as run:
        run.worker(processes=processes)
        callers = [run.producer(f"p{number}-", jobs // producers, 0) for number in range(producers)]
        began = time.monotonic()
        for _ in looks(600, pause=0.05):
            run.oracle.look()
            if all(caller.process.poll() is not None for caller in callers):
                break
        assert [caller.process.poll() for caller in callers] == [0] * producers, run.output()[-4000:]
        run.settle()
        assert len(run.oracle.accepted) == jobs
        rate = jobs / (time.monotonic() - began)
        assert "database is locked" not in run.output()
        return run.report("none", 0, more=f"jobs/s={rate:.0f} ")


def workers_die(
    engine: Engine,
    folder: Path,
    seed: int,
    *,
    jobs: int,
    kills: int,
    workers: int = 3,
    seconds: float = 0.01,
    whole: bool = True,
) -> Report:
    """F1, or F2 where not `whole`: under load, each worker is killed some time after it has started its first job.

    A worker that was killed whole, or that ends with its child, is followed by a new one at once. A child is left alive
    for a second at first: where one dies after the other, workers wait before they start the next.
    """
    with bench(engine, folder, seed) as run:
        oracle, least, longest = (run.oracle, 0.0, jobs / kills * seconds) if whole else (run.oracle, 1.1, 0.3)
        crew: dict[str, Started] = {}
        moments: dict[str, float] = {}
        torn: list[tuple[float, str]] = []
        done = 0
        with run.load(jobs, seconds):
            for _ in range(workers):
                run.hire(crew, isolated=True)
            for _ in oracle.looks(READY + kills * (1.0 + least + longest)):
                run.supervise(crew, isolated=True)
                for event in oracle.look():
                    if event.kind == "S" and event.worker in crew and event.worker not in moments:
                        moments[event.worker] = time.monotonic() + least + run.random.uniform(0, longest)
                for name in [name for name, moment in moments.items() if time.monotonic() >= moment]:
                    if (worker := crew.get(name)) is None:
                        del moments[name]
                        continue
                    if done == kills - 1 and not torn and not (oracle.running[name] and run.catch(worker)):
                        continue  # the last kill has to hit a job, if none has
                    del moments[name]
                    if whole:
                        worker.kill()
                        del crew[name]
                        run.hire(crew, isolated=True)
                    elif worker.kill_child():
                        worker.thaw()
                    else:
                        continue
                    oracle.look()
                    torn += [(time.monotonic(), id) for id in oracle.running[name]]
                    oracle.running[name].clear()
                    done += 1
                    if done == kills:
                        break
                if done == kills:
                    break
        assert done == kills, f"{done} of {kills} kills; see {run.log}"
        assert torn, "no kill has hit a job"
        run.settle_kept()
        again = [
            min((event.mono for event in oracle.starts[id] if event.mono > moment), default=None) for moment, id in torn
        ]
        delays = [found - moment for found, (moment, _) in zip(again, torn, strict=True) if found is not None]
        return run.report("F1" if whole else "F2", kills, delays, more=f"hit={len(torn)} kept={run.kept} ")


def server_dies(engine: Engine, folder: Path, seed: int, *, jobs: int, kills: int, seconds: float = 0.02) -> Report:
    """F5, F6: under load the server is killed, and started again over what it has written.

    A worker that ends for it is followed by a new one, as with a supervisor.
    """
    with bench(engine, folder, seed) as run:
        oracle, server, resumed = run.oracle, run.server, []
        assert server is not None
        crew: dict[str, Started] = {}
        with run.load(jobs, seconds):
            for _ in range(2):
                run.hire(crew)
            for _ in range(kills):
                mark = len(oracle.ends) + 5
                run.until(lambda mark=mark: len(oracle.ends) > mark, "work is done", crew)  # type: ignore[misc]
                time.sleep(run.random.uniform(0, 1))
                server.kill()
                time.sleep(run.random.uniform(0, 0.5))
                server.start()
                resumed.append(run.goes_on(crew))
            run.hire(crew)  # some workers end only when they next ask the server that was killed
        run.settle_kept()
        return run.report("F5", kills, resumed, what="resume_ms", more=f"refused={len(oracle.refused)} ")


def server_freezes(
    engine: Engine, folder: Path, seed: int, *, jobs: int, freezes: int, seconds: float = 0.02
) -> Report:
    """F3: under load the server is frozen. How long each call took, also of those that were refused for it."""
    with bench(engine, folder, seed) as run:
        oracle, resumed = run.oracle, []
        crew: dict[str, Started] = {}
        for _ in range(2):
            run.hire(crew)
        run.ready(*crew.values())
        marks = sorted(run.random.sample(range(1, jobs), freezes))
        with run.load(jobs, seconds, pause=seconds):
            for number, mark in enumerate(marks):
                run.until(lambda mark=mark: len(oracle.accepted) > mark, "it is called", crew)  # type: ignore[misc]
                _freeze_until_refused(run, crew, f"n{number}-")
                resumed.append(run.goes_on(crew))
        run.settle_kept()
        ended = {**oracle.accepted, **oracle.refused}
        took = [event.mono - oracle.tried[id].mono for id, event in ended.items()]
        more = f"freezes={freezes} refused={len(oracle.refused)} resume_ms(max)={max(resumed) * 1000:.0f} "
        return run.report("F3", 0, took, what="call_ms", more=more)


def _freeze_until_refused(run: Bench, crew: dict[str, Started], prefix: str) -> None:
    """Freeze the server until the caller at work was refused twice, on the connection that it had and on a new one, and
    the first call of another, which comes meanwhile, has ended."""
    server, refused = run.server, run.oracle.refused
    assert server is not None
    server.freeze()
    try:
        before = len(refused)
        newcomer = run.producer(prefix, 1, 0)
        run.until(lambda: newcomer.process.poll() is not None and len(refused) >= before + 3, "three refusals", crew)
    finally:
        server.thaw()
    assert newcomer.process.wait() == 0, run.output()[-4000:]


def connections_are_cut(
    engine: Engine, folder: Path, seed: int, *, jobs: int, cuts: int, seconds: float = 0.02
) -> Report:
    """F8: so many times, under load, half of the connections to the server, of a caller and of workers, are reset."""
    with bench(engine, folder, seed) as run:
        oracle, server, resumed = run.oracle, run.server, []
        assert server is not None
        crew: dict[str, Started] = {}
        marks = sorted(run.random.sample(range(1, jobs * 2), cuts))
        with cutting_proxy(server.port, seed=seed) as proxy:
            run.url = run.url.replace(f":{server.port}", f":{proxy.port}")
            for _ in range(2):
                run.hire(crew)
            run.ready(*crew.values())
            with run.load(jobs, seconds, pause=seconds):
                for mark in marks:
                    run.until(
                        lambda mark=mark: len(oracle.accepted) + len(oracle.ends) > mark,  # type: ignore[misc]
                        "work is done",
                        crew,
                    )
                    run.until(lambda: proxy.cut(0.5) > 0, "a connection is cut", crew)
                    resumed.append(run.goes_on(crew))
            run.settle_kept()
            more = f"cuts={proxy.cuts} refused={len(oracle.refused)} workers={len(run.started) - 1} "
            return run.report("F8", 0, resumed, what="resume_ms", more=more)


def replies_get_lost(engine: Engine, folder: Path, seed: int, *, calls: int) -> Report:
    """F11: of every tenth request of a caller's the server does what it says, and the answer is lost. So many calls, or
    more until of one in twenty the answer was lost."""
    with bench(engine, folder, seed) as run:
        server, number = run.server, 0
        assert server is not None
        run.ready(run.worker())
        with cutting_proxy(server.port, seed=seed, mark=b"") as proxy:
            call = engine.caller(run.url.replace(f":{server.port}", f":{proxy.port}"))
            while number < calls or proxy.cuts < calls * 0.05:
                proxy.probability = 0.1 * (number > 0)
                with suppress(backgrounded.EnqueueError):
                    run.told(id := f"j{number}", lambda id=id: call(id))  # type: ignore[misc]
                number += 1
        run.settle()
        return run.report("F11", 0, more=f"cuts={proxy.cuts} refused={len(run.oracle.refused)} ")


def idle_worker_takes_over(engine: Engine, folder: Path, seed: int, *, kills: int) -> Report:
    """F1 with another worker that has nothing to do: how long until the job of the dead one starts again?"""
    with bench(engine, folder, seed) as run:
        from jobs import wait_for

        oracle, delays = run.oracle, []
        crew: dict[str, Started] = {}
        for _ in range(3):  # one to work, one to have nothing to do, and one that may still be starting
            run.hire(crew, isolated=True)
        for number in range(kills):
            id, gate = f"j{number}", folder / f"gate{number}"
            oracle.until(lambda: len(crew.keys() & oracle.workers.keys()) > 1, READY, "two workers are there")
            time.sleep(IDLE + run.random.uniform(0, IDLE))
            run.told(id, lambda id=id, gate=gate: backgrounded.later(wait_for)(id, str(gate)))  # type: ignore[misc]
            oracle.until(lambda id=id: id in oracle.starts, READY, "a job starts")  # type: ignore[misc]
            time.sleep(run.random.uniform(0, IDLE))
            victim = crew.pop(oracle.starts[id][0].worker)
            moment = time.monotonic()
            victim.kill()
            oracle.until(lambda id=id: id in oracle.started_twice, READY, "the job starts again")  # type: ignore[misc]
            delays.append(oracle.starts[id][1].mono - moment)
            gate.touch()
            oracle.until(lambda id=id: id in oracle.ends, READY, "the job ends")  # type: ignore[misc]
            run.hire(crew, isolated=True)
        assert len(delays) == kills
        return run.report("F1-idle", kills, delays)


def clocks_differ(engine: Engine, folder: Path, seed: int, *, jobs: int, seconds: float) -> Report:
    """F15: half of the workers live a day ahead, half a day behind, and each job lasts for many looks."""
    with bench(engine, folder, seed) as run:
        crew = [run.worker(skew=skew) for skew in (DAY, -DAY, DAY, -DAY)]
        run.ready(*crew)
        for number in range(jobs):
            run.call(f"j{number}", seconds)
        run.settle()
        skews = {name: int(event.id) - time.time() for name, event in run.oracle.workers.items()}
        assert all(abs(abs(skew) - DAY) < DAY / 2 for skew in skews.values()), f"the clocks are not off: {skews}"
        worked = {event.worker for events in run.oracle.starts.values() for event in events}
        assert {skews[name] > 0 for name in worked} == {True, False}, "only those on one side have worked"
        return run.report("F15", 0, more=f"workers={len(worked)} ")


def idle_worker_starts(engine: Engine, folder: Path, seed: int, *, jobs: int) -> Report:
    """How long from a call to the start of the job, on a worker that has nothing to do?"""
    with bench(engine, folder, seed) as run:
        oracle, delays = run.oracle, []
        run.ready(run.worker())
        for number in range(jobs):
            time.sleep(IDLE + run.random.uniform(0, IDLE))
            run.call(id := f"j{number}")
            oracle.until(lambda id=id: id in oracle.ends, READY, "the job ends")  # type: ignore[misc]
            delays.append(oracle.starts[id][0].mono - oracle.tried[id].mono)
        return run.report("none", 0, delays, what="latency_ms")


def a_job_kills_its_process(engine: Engine, folder: Path, seed: int, *, jobs: int) -> tuple[Report, dict[str, str]]:
    """P12: jobs that kill what runs them, among good ones for the same worker. The states in which they end."""
    with bench(engine, folder, seed) as run:
        from jobs import die

        run.worker()
        poison = {}
        for number in range(jobs):
            if number in (0, jobs // 2):
                poison[f"poison{number}"] = backgrounded.later(die)(f"poison{number}")
                tell("T", f"poison{number}")
            run.call(f"j{number}")
        run.settle()
        states: dict[str, str] = {}
        for _ in run.oracle.looks(READY):
            states = {id: str(job.state) for id, job in poison.items()}
            if set(states.values()) == {"kept"}:
                break
        run.oracle.look()
        starts = {id: len(run.oracle.starts[id]) for id in poison}
        assert len(run.started) == 1
        assert run.started[0].process.poll() is None, "the worker lives"
        report = run.report("P12", sum(starts.values()))
        return report, {id: f"{states[id]} after {starts[id]} starts" for id in poison}


def workers_are_told_to_end(
    engine: Engine,
    folder: Path,
    seed: int,
    *,
    stops: int,
    seconds: float,
    options: Sequence[str] = (),
    is_written: Callable[[], bool] = lambda: True,
) -> Report:
    """P13: SIGTERM some time after a worker has started its first job; the next worker is started at once.

    `options` are the worker's own, such as a short period of grace. `is_written` says whether the engine has written
    down all that the jobs have told: what is read of it afterwards is as it stays.
    """
    with bench(engine, folder, seed) as run:
        oracle, longest = run.oracle, 0.2
        crew: dict[str, Started] = {}
        moments: dict[str, float] = {}
        leaving: list[Started] = []
        with run.load(int(stops * max(2.0, 0.4 / seconds)), seconds):
            for _ in range(2):
                run.hire(crew, *options)
            hit = 0
            for _ in oracle.looks(READY + stops * 6.0):  # each needs a worker that starts
                for event in oracle.look():
                    if event.kind == "S" and event.worker in crew and event.worker not in moments:
                        moments[event.worker] = time.monotonic() + run.random.uniform(0, longest)
                for name in [name for name, moment in moments.items() if time.monotonic() >= moment]:
                    if len(leaving) == stops - 1 and not hit and not oracle.running[name]:
                        continue  # the last one has to be busy, if none was
                    del moments[name]
                    hit += bool(oracle.running[name])
                    (worker := crew.pop(name)).process.terminate()
                    leaving.append(worker)
                    if len(leaving) < stops:
                        run.hire(crew, *options)
                if len(leaving) >= stops:
                    break
            assert len(leaving) >= stops, f"{len(leaving)} of {stops} workers told to end; see {run.log}"
            assert hit, "no worker was busy when it was told to end"
            codes = [worker.process.wait(READY) for worker in leaving]
            assert set(codes) == {0}, f"exit codes {set(codes)}; see {run.log}"
            run.worker(processes=2)
        run.settle()
        oracle.until(is_written, READY, "what was told is written down, too")
        return run.report("SIGTERM", 0, more=f"stops={len(leaving)} hit={hit} ")


def jobs_are_delayed(engine: Engine, folder: Path, seed: int, *, jobs: int) -> tuple[Report, int]:
    """P19: delays of one to four seconds. How late each job was, and how many were early."""
    with bench(engine, folder, seed) as run:
        run.ready(run.worker())
        delays = {f"j{number}": run.random.uniform(1, 4) for number in range(jobs)}
        for id, delay in delays.items():
            run.call(id, delay=delay)
        run.settle()
        first = {id: run.oracle.starts[id][0].mono for id in delays if id in run.oracle.starts}
        early = sum(moment < run.oracle.tried[id].mono + delays[id] for id, moment in first.items())
        late = [moment - run.oracle.accepted[id].mono - delays[id] for id, moment in first.items()]
        return run.report("none", 0, late, what="late_ms", more=f"early={early} "), early


def a_program_forks(engine: Engine, folder: Path, seed: int, how: str, *, count: int) -> Report:
    """P20, with a worker beside the program."""
    with bench(engine, folder, seed) as run:
        run.ready(run.worker())
        run.forks(how, count)
        run.settle()
        return run.report(f"P20-{how}", 0)


def frozen_then_killed(engine: Engine, folder: Path, seed: int, *, tries: int) -> Report:
    """F18: the only worker is frozen, a job is handed over, the worker is killed, and another one is started."""
    with bench(engine, folder, seed) as run:
        worker = run.worker(isolated=True)
        run.ready(worker)
        for number in range(tries):
            time.sleep(run.random.uniform(0, 0.1))
            worker.freeze()
            with suppress(backgrounded.EnqueueError):  # it may be frozen while it writes, and then nobody else can
                run.call(f"j{number}")
            worker.kill()
            worker = run.worker(isolated=True)
            run.ready(worker)
            run.settle()
        assert run.oracle.accepted, "no job was handed over"
        return run.report("F18", tries, more=f"refused={len(run.oracle.refused)} ")
