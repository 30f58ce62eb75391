"""How is a worker started, what does it say, and what if a process dies?"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import backgrounded
import pytest
from backgrounded import JobFailed, NoResult, Retry
from backgrounded.testing.probe import Probe, events, given
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqliteshop import Item
from sqlitetools import Workers, children, elsewhere, is_running, is_sound, locked, made, row

from waiting import eventually

CANARY = "canary-4711"


# -- the command


def test_the_command_names_this_python_the_file_the_processes_and_the_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BACKGROUNDED_APP", "shop.jobs,shop.more")
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "shop")
    monkeypatch.chdir(tmp_path)
    command = SQLiteHandler("sqlite:///a b.db", processes=3).worker_command(["mail", "slow"])
    assert command[:3] == ["env", "BACKGROUNDED_ALLOW=shop", "BACKGROUNDED_APP=shop.jobs,shop.more"]
    assert command[3:6] == [sys.executable, "-m", "backgrounded_sqlite"]
    assert command[command.index("--url") + 1] == f"sqlite:///{tmp_path}/a%20b.db"
    assert command[command.index("--processes") + 1] == "3"
    assert command[-2:] == ["mail", "slow"]
    assert not caplog.records


def test_without_an_application_the_command_is_plain_and_a_warning_says_what_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = SQLiteHandler(queue="mine", processes=1).worker_command()
    assert command[0] == sys.executable
    assert command[-1] == "mine"
    assert "BACKGROUNDED_APP is not set" in caplog.text
    assert "BACKGROUNDED_APP=shop.jobs" in caplog.text


def test_a_period_of_grace_is_passed_on() -> None:
    command = SQLiteHandler(grace=1.5).worker_command()
    assert command[command.index("--grace") + 1] == "1.5"


@pytest.mark.worker
@pytest.mark.parametrize("folder", ["a b", "ä", "C#", "what?", "100%25"])
def test_a_worker_finds_the_file_in_whatever_directory_the_caller_is(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, probe: Probe, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    with backgrounded.using(SQLiteHandler("sqlite:///jobs.db", processes=1)) as handler:
        assert isinstance(handler, SQLiteHandler)
        job = probe.backgrounded.give(1)
        with workers(handler):
            assert job.result(60) == 1


@pytest.mark.worker
@pytest.mark.parametrize(
    "queue",
    [
        "-x",
        "--url",
        "a b",
        "ä",
    ],
)
def test_a_queue_may_be_called_anything(handler: SQLiteHandler, workers: Workers, probe: Probe, queue: str) -> None:
    job = probe.backgrounded(queue=queue).give(1)
    with workers(handler, queue):
        assert job.result(60) == 1


@pytest.mark.worker
def test_a_nested_call_goes_to_the_default_queue_of_its_handler(tmp_path: Path, workers: Workers, item: Item) -> None:
    """The worker's processes have configured nothing: they know it from the command."""
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/jobs.db", queue="mine", processes=1)
    with backgrounded.using(handler):
        nested = item.backgrounded(queue="mine").call_note
        with workers(handler, "mine"):
            assert backgrounded.job(nested().result(60)).wait(60) == "succeeded"


@pytest.mark.worker
def test_a_worker_serves_the_queue_called_default_if_nobody_says_which(
    handler: SQLiteHandler, workers: Workers, probe: Probe
) -> None:
    job = probe.backgrounded.give(1)
    command = [sys.executable, "-m", "backgrounded_sqlite", "--url", handler.url, "--processes", "2"]
    with workers.unready(command, more={"BACKGROUNDED_APP": "backgrounded.testing.probe"}):
        assert job.result(60) == 1
        eventually(lambda: len(children(handler, "default")) == 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "postgres:///x"], "is not like sqlite:///jobs.db"),
        (["--processes", "0"], "processes: must be"),
        (["--grace", "-1"], "grace: must be"),
        (["--url", "sqlite:////dev/null"], "is no file"),
        (["--url", "sqlite:////dev/none/jobs.db"], "No such file or directory: '/dev/none'"),
        (["--url", "sqlite:////dev/null/jobs.db"], "Not a directory: '/dev/null'"),
    ],
    ids=["url", "processes", "grace", "no-file", "no-directory", "a-file-for-a-directory"],
)
def test_a_worker_that_cannot_begin_says_why_and_ends_with_1(tmp_path: Path, arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "backgrounded_sqlite", *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert said in run.stderr
    assert "Traceback" not in run.stderr


# -- the application


@pytest.mark.worker
def test_without_an_application_jobs_are_kept_with_the_sentence(
    handler: SQLiteHandler, workers: Workers, item: Item
) -> None:
    job = item.backgrounded.give(1)
    with workers(handler, app=""):
        with pytest.raises(NoResult, match="BACKGROUNDED_APP"):
            job.result(60)
        assert "BACKGROUNDED_APP" in workers.log
    [kept] = handler.kept()
    assert kept.id == job.id
    assert "BACKGROUNDED_APP" in kept.reason
    handler.replay(job.id)
    with workers(handler):
        assert job.result(60) == 1


@pytest.mark.worker
@pytest.mark.parametrize("why", ["missing", "raises", "leaves"])
def test_an_application_that_cannot_be_imported_ends_the_worker_and_leaves_the_jobs(
    handler: SQLiteHandler, workers: Workers, probe: Probe, tmp_path: Path, why: str
) -> None:
    source = {"raises": "raise ValueError('my secret')", "leaves": "raise SystemExit(0)"}.get(why)
    if source is not None:
        (tmp_path / "broken_shop.py").write_text(source)
    job = probe.backgrounded.note()
    environment = {
        "BACKGROUNDED_APP": "broken_shop",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    with workers.unready(handler.worker_command(), more=environment) as process:
        assert process.wait(60) == 1
    assert "BACKGROUNDED_APP=broken_shop" in workers.log
    assert "cannot start, nor could another one: this worker ends" in workers.log
    assert job.state == "queued"
    assert list(handler.kept()) == []


@pytest.mark.worker
def test_the_directory_in_which_a_worker_starts_is_enough_to_find_the_application(
    handler: SQLiteHandler, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "herenow_jobs.py").write_text(
        "from backgrounded import backgroundable\n\n@backgroundable\ndef add(left, right):\n    return left + right\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import herenow_jobs  # type: ignore[import-not-found]  # written above

    job = backgrounded.later(herenow_jobs.add)(1, 2)
    with workers.unready(handler.worker_command(), cwd=tmp_path, more={"BACKGROUNDED_APP": "herenow_jobs"}):
        assert job.result(60) == 3


# -- several


@pytest.mark.worker
def test_two_workers_of_several_processes_run_each_job_once(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str
) -> None:
    handler.processes = 2
    with workers(handler, "a", "b"), workers(handler, "b"):
        with backgrounded.batch() as jobs:
            for number in range(200):
                probe.backgrounded(queue="ab"[number % 2]).note(number)
        for job in jobs:
            assert job.wait(60) == "succeeded"
        assert len(children(handler, "a", "b")) == len(children(handler, "b")) == 2
    ran = [event.job_id for event in events(oracle, "note")]
    assert sorted(map(str, ran)) == sorted(job.id for job in jobs)
    assert len({event.pid for event in events(oracle, "note")}) > 1
    assert query(handler.path, "SELECT * FROM workers") == []
    assert is_sound(handler.path)


@pytest.mark.worker
def test_a_worker_says_what_waits_in_queues_that_it_does_not_serve(
    handler: SQLiteHandler, workers: Workers, probe: Probe
) -> None:
    for queue in ("mail", "mail", "slow"):
        probe.backgrounded(queue=queue).note()
    with workers(handler, "slow", "other"):
        pass
    assert "2 jobs wait in the queue mail, which this worker does not serve" in workers.log
    assert "in the queue slow" not in workers.log
    assert f"1 processes work on slow, other of {handler.path}" in workers.log


# -- deaths


@pytest.mark.worker
def test_a_job_whose_process_died_runs_again_in_another_one_and_the_death_is_counted(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str, tmp_path: Path
) -> None:
    deliveries = str(tmp_path / "deliveries")
    with workers(handler, SQLITESHOP_DELIVERIES=deliveries) as process:
        job = item.backgrounded.die(1)
        assert job.result(60) == "survived"
        assert process.poll() is None
        assert row(handler, job.id)["deaths"] == 1
        assert len({event.pid for event in events(oracle, "die")}) == 2
        assert [event.attempt for event in events(oracle, "die")] == [1, 1], "a death is no failure of the method"
        seen = [event.given for event in events(deliveries, "delivery")]
        assert seen == [given(1, 0, False), given(1, 1, True)]
    assert "ended (SIGKILL), another one takes its place" in workers.log
    assert "a worker died: 1 of its jobs run again" in workers.log


@pytest.mark.worker
def test_failures_and_deaths_are_counted_apart(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    with workers(handler):
        job = item.backgrounded(retry=2).fail_then_die()
        assert job.result(60) == "survived"
    assert [event.attempt for event in events(oracle, "run")] == [1, 2, 2]
    assert (row(handler, job.id)["attempt"], row(handler, job.id)["deaths"]) == (2, 1)


@pytest.mark.worker
def test_a_job_that_kills_its_third_worker_is_kept_and_the_others_run(
    handler: SQLiteHandler, workers: Workers, item: Item, probe: Probe, oracle: str
) -> None:
    with workers(handler):
        poison = item.backgrounded(priority=9).die(99)
        after = probe.backgrounded.give(1)
        assert after.result(60) == 1
        assert poison.wait(60) == "kept"
        assert len(events(oracle, "die")) == 3
        [kept] = handler.kept()
        assert (kept.id, kept.code) == (poison.id, "deaths")
        assert "3 workers died" in kept.reason


@pytest.mark.worker
@pytest.mark.parametrize("code", [0, 1, 3])
def test_what_a_job_exits_with_is_a_death_and_nothing_else(
    handler: SQLiteHandler, workers: Workers, item: Item, probe: Probe, oracle: str, code: int
) -> None:
    """Whatever the exit codes of our own processes may mean."""
    with workers(handler) as process:
        poison = item.backgrounded.exit(code)
        after = probe.backgrounded.give(1)
        assert after.result(60) == 1
        assert poison.wait(60) == "kept"
        assert len(events(oracle, "exit")) == 3
        assert process.poll() is None
        assert workers.log.count(f"ended (exit {code}), another one takes its place") == 3


@pytest.mark.worker
def test_jobs_that_kill_their_workers_keep_those_behind_them_waiting_for_little(
    handler: SQLiteHandler, workers: Workers, item: Item, probe: Probe, oracle: str
) -> None:
    """Each of them costs two new processes, without a pause; its third one comes after the jobs that are due."""
    poison = [item.backgrounded.exit(1) for _ in range(7)]
    good = [probe.backgrounded.note(number) for number in range(5)]
    started = time.monotonic()
    with workers(handler):
        for job in good:
            assert job.wait(60) == "succeeded"
        assert time.monotonic() - started < 40, "with a pause of up to five seconds after each death it was 80"
        for job in poison:
            assert job.wait(60) == "kept"
    exits = [event.at for event in events(oracle, "exit")]
    assert len(exits) == 21
    assert exits[13] < min(event.at for event in events(oracle, "note"))
    assert exits[14] > max(event.at for event in events(oracle, "note"))


@pytest.mark.worker
def test_another_worker_takes_over_when_a_whole_worker_dies(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with workers(handler, "a") as first:
        job = probe.backgrounded(queue="a").hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        (begun,) = events(oracle, "holding")
        with workers(handler, "a", "b"):
            first.kill()
            os.kill(begun.pid, signal.SIGKILL)
            died = time.time()
            eventually(lambda: len(events(oracle, "holding")) == 2)
            assert events(oracle, "holding")[1].at - died < 20
            gate.touch()
            assert job.wait(60) == "succeeded"
    assert row(handler, job.id)["deaths"] == 1


@pytest.mark.worker
def test_a_process_that_a_job_left_behind_does_not_keep_the_job(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with workers(handler):
        job = item.backgrounded.fork_and_die(str(gate))
        assert job.result(60) == "survived"
        assert not events(oracle, "child ends")
        (child,) = events(oracle, "child")
        assert is_running(child.pid)
        gate.touch()
        eventually(lambda: events(oracle, "child ends"))


@pytest.mark.worker
def test_a_job_may_fork_and_both_may_call(handler: SQLiteHandler, workers: Workers, item: Item, oracle: str) -> None:
    with workers(handler):
        assert item.backgrounded.fork_and_call().result(60) == "called"
        eventually(lambda: len(events(oracle, "note")) == 2)
        assert item.backgrounded.give(1).result(60) == 1
    assert row(handler, query(handler.path, "SELECT id FROM jobs")[0][0])["deaths"] == 0
    assert is_sound(handler.path)


@pytest.mark.worker
def test_processes_that_die_at_once_are_followed_by_others_after_growing_pauses(
    handler: SQLiteHandler, workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "deadly_shop.py").write_text(
        "import os, time\n"
        "with open(os.environ['BIRTHS'], 'a') as file:\n"
        "    file.write(f'{time.monotonic()}\\n')\n"
        "os._exit(9)\n"
    )
    births = tmp_path / "births"
    environment = {
        "BACKGROUNDED_APP": "deadly_shop",
        "BIRTHS": str(births),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    with workers.unready(handler.worker_command(), more=environment) as process:
        eventually(lambda: births.exists() and len(births.read_text().splitlines()) >= 5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    moments = [float(line) for line in births.read_text().splitlines()]
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=False):
        assert pause >= least
    assert "ended (exit 9)" in workers.log


@pytest.mark.worker
def test_a_worker_whose_parent_process_was_killed_finishes_its_jobs_and_goes(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    handler.processes = 2
    gate = tmp_path / "gate"
    with workers(handler) as process:
        pids = children(handler)
        job = probe.backgrounded.hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        process.kill()
        process.wait()
        (begun,) = events(oracle, "holding")
        (idle,) = {*pids} - {begun.pid}
        eventually(lambda: not is_running(idle))
        after = probe.backgrounded.note()
        gate.touch()
        assert job.wait(60) == "succeeded"
        eventually(lambda: not is_running(begun.pid))
        assert after.state == "queued"
        assert query(handler.path, "SELECT * FROM workers") == []


@pytest.mark.worker
@pytest.mark.slow
def test_a_worker_outlives_a_file_that_is_busy_for_long(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    """Longer than its patience, while a job ends and while a process takes the place of another."""
    gate = tmp_path / "gate"
    with workers(handler) as process:
        job = probe.backgrounded.hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        with locked(handler.path):
            gate.touch()
            eventually(lambda: "cannot be used, trying again" in workers.log)
        assert job.wait(60) == "succeeded"
        assert len(events(oracle, "holding")) == 1
        with locked(handler.path):
            os.kill(children(handler)[0], signal.SIGKILL)
            eventually(lambda: "takes its place" in workers.log)
            eventually(lambda: workers.log.count("is locked") >= 2 or process.poll() is not None)
        assert probe.backgrounded.give(1).result(60) == 1
        assert process.poll() is None


# -- the end


@pytest.mark.worker
def test_a_worker_that_is_told_to_end_finishes_what_runs_and_begins_nothing(
    handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with workers(handler) as process:
        [pid] = children(handler)
        job, after = probe.backgrounded.hold(str(gate)), probe.backgrounded.note()
        eventually(lambda: events(oracle, "holding"))
        process.send_signal(signal.SIGTERM)
        eventually(lambda: "no more jobs are begun" in workers.log)
        gate.touch()
        assert process.wait(60) == 0
        assert (job.state, after.state) == ("succeeded", "queued")
        assert not is_running(pid)
    assert query(handler.path, "SELECT * FROM workers") == []


@pytest.mark.worker
@pytest.mark.parametrize("how", ["grace", "second", "interrupt"])
def test_a_job_that_does_not_end_in_time_is_broken_off_and_runs_again_as_if_it_had_not_begun(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str, how: str
) -> None:
    with workers(handler, options=["--grace", "0.3" if how == "grace" else "60"]) as process:
        job = item.backgrounded(retry=3).sleep(60)
        eventually(lambda: events(oracle, "sleep"))
        started = time.monotonic()
        process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
        if how != "grace":
            eventually(lambda: "no more jobs are begun" in workers.log)
            process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
        assert process.wait(60) == 0
        assert time.monotonic() - started < 20
    assert job.state == "queued"
    found = row(handler, job.id)
    assert (found["attempt"], found["deaths"], found["owner"]) == (1, 0, None)
    with workers(handler, options=["--grace", "0"]):
        eventually(lambda: len(events(oracle, "sleep")) == 2)
        assert events(oracle, "sleep")[1].attempt == 1
    assert (row(handler, job.id)["attempt"], row(handler, job.id)["deaths"]) == (1, 0)
    assert not events(oracle, "slept")


@pytest.mark.worker
def test_two_signals_at_once_are_two(handler: SQLiteHandler, workers: Workers, item: Item, oracle: str) -> None:
    with workers(handler, options=["--grace", "50"]) as process:
        job = item.backgrounded.sleep(60)
        eventually(lambda: events(oracle, "sleep"))
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
    assert job.state == "queued"


@pytest.mark.worker
def test_a_method_that_cannot_be_broken_off_is_killed_and_handed_back(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    with workers(handler, options=["--grace", "0.1"]) as process:
        job = item.backgrounded.swallow_everything(60)
        eventually(lambda: events(oracle, "swallow"))
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert 2 <= time.monotonic() - told < 20
        (begun,) = events(oracle, "swallow")
        assert not is_running(begun.pid)
        assert len(events(oracle, "swallowed")) == 1
    found = row(handler, job.id)
    assert (found["state"], found["attempt"], found["deaths"], found["owner"]) == ("queued", 1, 0, None)


@pytest.mark.worker
def test_a_process_that_is_killed_at_the_end_of_the_grace_counts_no_death_for_those_who_watch(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    """Another worker looks fifty times a second who is dead."""
    with workers(handler, options=["--grace", "0.1"]) as process:
        job = item.backgrounded.swallow_everything(60)
        eventually(lambda: events(oracle, "swallow"))
        with workers(handler, "default", "other", options=["--grace", "0"]):
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            eventually(lambda: len(events(oracle, "swallow")) == 2)
            assert row(handler, job.id)["deaths"] == 0


@pytest.mark.worker
def test_a_broken_off_coroutine_is_handed_back_too(
    handler: SQLiteHandler, workers: Workers, item: Item, oracle: str
) -> None:
    with workers(handler, options=["--grace", "0.1"]) as process:
        job = item.backgrounded.sleep_asynchronously(60)
        eventually(lambda: events(oracle, "sleep"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert (job.state, row(handler, job.id)["deaths"]) == ("queued", 0)


@pytest.mark.worker
def test_an_idle_worker_ends_at_once(handler: SQLiteHandler, workers: Workers) -> None:
    with workers(handler) as process:
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert time.monotonic() - started < 20  # the period of grace is 25


# -- what it shows


@pytest.mark.worker
def test_no_argument_is_in_a_log_or_in_a_list_of_processes(
    handler: SQLiteHandler, workers: Workers, item: Item, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    """Through every path: done, failed, retried, timed out, killed, kept, expired, cancelled."""
    caplog.set_level(logging.DEBUG)
    kept = made(lambda: item.backgrounded.quarrel(CANARY))
    with workers(handler) as process:
        jobs = [
            probe.backgrounded.note(CANARY),
            item.backgrounded.quarrel(CANARY),
            item.backgrounded(retry=Retry(1, wait=0.1)).quarrel(CANARY),
            item.backgrounded(timeout=0.1).overstay(CANARY),
            item.backgrounded.die(9, CANARY),
            item.backgrounded(expires=0.000_001).quarrel(CANARY),
            item.backgrounded(delay=0.1).quarrel(CANARY),
        ]
        cancelled = item.backgrounded(delay=60).quarrel(CANARY)
        assert cancelled.cancel()
        shown = item.backgrounded.show_command_lines().result(60)
        for job in jobs:
            job.wait(60)
            assert CANARY not in repr(job) + repr(job.exception())
        query(handler.path, "UPDATE jobs SET wire = ? WHERE id = ?", kept.wire[:-1], jobs[0].id)
        query(handler.path, "UPDATE jobs SET state = 'queued', run = 0 WHERE id = ?", jobs[0].id)
        assert jobs[0].wait(60) == "kept"
        assert CANARY not in repr(list(handler.kept()))
        assert process.poll() is None
    assert any("backgrounded_sqlite" in line for line in shown)
    assert not any(CANARY in line for line in shown)
    assert CANARY not in workers.log + caplog.text
    assert CANARY not in str([vars(record) for record in caplog.records])
    assert "sqliteshop.Item.quarrel failed" in workers.log


@pytest.mark.worker
def test_a_method_sees_its_job(handler: SQLiteHandler, workers: Workers, probe: Probe, oracle: str) -> None:
    with workers(handler, "mail"), backgrounded.using(handler, name="second"):
        job = probe.backgrounded(handler="second", queue="mail").give(1)
        assert job.result(60) == 1
    (event,) = events(oracle, "give")
    expected = {"id": job.id, "name": "backgrounded.testing.probe.Probe.give", "queue": "mail", "attempt": 1}
    assert event.job == {**expected, "deadline": None, "handler": "second"}


@pytest.mark.worker
def test_a_method_that_leaves_the_process_fails_and_the_process_lives_on(
    served: SQLiteHandler, probe: Probe, item: Item
) -> None:
    pid = item.backgrounded.pid().result(60)
    with pytest.raises(JobFailed) as failure:
        probe.backgrounded.leave().result(60)
    assert failure.value.type_name == "SystemExit"
    assert item.backgrounded.pid().result(60) == pid


# -- what others may have written into the file

HOSTILE: dict[str, str] = {
    "a-due-time-that-is-a-text": "due = 'soon', state = 'scheduled'",
    "a-due-time-that-is-bytes": "due = x'00', priority = 9",
    "a-priority-that-is-a-text": "priority = 'x'",
    "counts-that-are-texts": "attempt = 'x', deaths = 'y', run = 'z', timeout = 'w', result_ttl = 'v'",
    "counts-that-are-huge": "attempt = 9223372036854775807, deaths = 9223372036854775807",
    "a-run-that-is-the-last": "run = 9223372036854775807",
    "a-timeout-beyond-time": "timeout = 9e999, result_ttl = 9e999",
    "a-wire-that-is-a-number": "wire = 7",
    "a-wire-that-is-a-text": "wire = 'x'",
    "a-wire-that-is-a-pickle": "wire = x'80049516'",
    "a-wire-that-is-deep": "wire = replace(hex(zeroblob(50000)), '00', '[')",
    "a-name-that-is-bytes": "name = x'ff', alias = x'fe'",
    "an-owner-that-is-a-text": "state = 'running', owner = 'x'",
    "an-owner-beyond-files": "state = 'running', owner = 9223372036854775807",
    "an-owner-below-zero": "state = 'running', owner = -5",
    "a-state-that-nobody-knows": "state = 'levitating'",
}


@pytest.mark.worker
@pytest.mark.parametrize("which", HOSTILE)
def test_a_row_that_others_have_written_does_not_stop_a_worker(
    served: SQLiteHandler, standing: SQLiteHandler, probe: Probe, which: str
) -> None:
    probe.backgrounded.give(0).result(60)
    [pid] = children(served)
    other, strange = probe.backgrounded(queue="nobody's").note(), probe.backgrounded(queue="nobody's").note()
    query(served.path, f"UPDATE jobs SET queue = 'default', {HOSTILE[which]} WHERE id = ?", strange.id)
    try:
        for number in range(3):
            assert probe.backgrounded.give(number).result(60) == number
            time.sleep(0.1)  # the worker rests
        assert children(served) == [pid]
    finally:
        query(served.path, "DELETE FROM jobs WHERE id IN (?, ?)", other.id, strange.id)


@pytest.mark.worker
@pytest.mark.parametrize("which", ["a-due-time-that-is-bytes", "a-due-time-that-is-a-text"])
def test_a_row_that_others_have_written_does_not_stop_a_worker_of_several_queues(
    handler: SQLiteHandler, workers: Workers, probe: Probe, which: str
) -> None:
    with workers(handler, "a", "b"):
        [pid] = children(handler, "a", "b")
        strange = probe.backgrounded(queue="nobody's").note()
        query(handler.path, f"UPDATE jobs SET queue = 'a', {HOSTILE[which]}, priority = 5 WHERE id = ?", strange.id)
        for number in range(3):
            assert probe.backgrounded(queue="b").give(number).result(60) == number
        assert children(handler, "a", "b") == [pid]


def test_the_worker_can_be_started_by_the_core_s_command(handler: SQLiteHandler, tmp_path: Path) -> None:
    script = "import sys; from backgrounded.__main__ import main; main(['worker', 'a', '--print'])"
    with contextlib.suppress(SystemExit):
        shown = elsewhere(script, BACKGROUNDED_URL=handler.url, BACKGROUNDED_APP="backgrounded.testing.probe")
        assert "-m backgrounded_sqlite" in shown
        assert shown.split()[-1] == "a"
