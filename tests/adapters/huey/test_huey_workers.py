"""What does a consumer do with our jobs, with what is none, and when it is ended?"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import backgrounded
import pytest
from backgrounded import NoResult, State
from backgrounded.testing import probe as probes
from backgrounded.testing.probe import events
from backgrounded_huey import HueyHandler
from huey import PriorityRedisHuey
from hueytools import Bomb

from processes import forked
from servers import redis
from waiting import eventually

HERE = Path(__file__).parent
PLAIN = ["huey_consumer", "-k", "process", "hueyshop.jobs.huey"]
"""A consumer as an application starts it today."""
UNTOLD = "import os, huey\nhuey = huey.PriorityRedisHuey('hueyshop', url=os.environ['HUEYSHOP_REDIS'])\n"
"""A module of an application that knows nothing of us."""


@pytest.fixture
def shop(redis_url, monkeypatch):
    """The Huey of the application `hueyshop`, as a producer has it; its consumers find the same server."""
    monkeypatch.setenv("HUEYSHOP_REDIS", redis_url)
    huey = PriorityRedisHuey("hueyshop", url=redis_url)
    huey.flush()
    yield huey
    huey.storage.pool.disconnect()


# -- beside the application's own tasks


@pytest.mark.worker
def test_the_applications_own_tasks_run_as_ever_beside_our_jobs(shop, consume, probe, path):
    def own(path: str, value: int) -> None: ...

    own.__module__ = "hueyshop.jobs"
    task = shop.task(retries=1)(own)
    with backgrounded.using("huey", huey=shop), consume(PLAIN):
        result, job = task(path, 1), probe.backgrounded(retry=3).fail(2)
        assert job.result(60) == 3
        eventually(lambda: len(events(path, "own")) == 2)
        eventually(lambda: result.get(preserve=True) == 2)
    assert [event.attempt for event in events(path, "fail")] == [1, 2, 3]


@pytest.mark.worker
def test_a_consumer_whose_modules_do_not_know_us_loses_the_job_and_says_which_task_it_lacks(
    shop, consume, probe, path, log, tmp_path
):
    """Huey's doing: it takes a job off its queue before it looks for the task."""
    (tmp_path / "untold.py").write_text(UNTOLD)
    with backgrounded.using("huey", huey=shop):
        job = probe.backgrounded.note()
        with consume(["huey_consumer", "untold.huey"], PYTHONPATH=str(tmp_path)):
            eventually(lambda: "backgrounded_huey.perform not found in TaskRegistry" in log.read_text())
        assert (len(shop), job.state, events(path)) == (0, State.QUEUED, [])


@pytest.mark.worker
def test_the_consumer_of_worker_command_knows_us_whatever_the_application_says(
    shop, consume, probe, tmp_path, monkeypatch
):
    (tmp_path / "untold.py").write_text(UNTOLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    command = HueyHandler(huey="untold:huey").worker_command()
    with backgrounded.using("huey", huey=shop), consume(command):
        assert probe.backgrounded(retry=1, timeout=60).fail(1).result(60) == 2


@pytest.mark.worker
def test_a_module_that_configures_nothing_installs_our_task(shop, consume, probe, path, tmp_path):
    (tmp_path / "told.py").write_text(
        "import os, backgrounded_huey, huey\n"
        "huey = huey.PriorityRedisHuey('hueyshop', url=os.environ['HUEYSHOP_REDIS'])\n"
        "backgrounded_huey.install(huey)\n"
    )
    with backgrounded.using("huey", huey=shop):
        with consume(["huey_consumer", "told.huey"], PYTHONPATH=str(tmp_path)):
            inner = probe.backgrounded.nest(None).result(60)
            backgrounded.job(inner).wait(60)
        assert [event.what for event in events(path)] == ["outer begins", "outer ends", "note"]


# -- limits


@pytest.mark.worker
def test_a_thread_worker_keeps_a_job_with_a_limit_and_runs_the_others(shop, consume, probe, path):
    with backgrounded.using("huey", huey=shop) as handler:
        with consume(["huey_consumer", "-k", "thread", "hueyshop.jobs.huey"]):
            limited, free = probe.backgrounded(timeout=60).note("limited"), probe.backgrounded.note("free")
            free.wait(60)
            with pytest.raises(NoResult, match="--worker-type process"):
                limited.result(60)
        assert [event.given for event in events(path)] == [probes.given("free")]
        [kept] = handler.kept()
        assert (kept.id, kept.code) == (limited.id, "configuration")
        handler.replay(limited.id)
        with consume([*PLAIN, "-g", "TERM"]):
            limited.wait(60)
        assert len(events(path)) == 2


@pytest.mark.worker
def test_a_limit_that_is_no_whole_number_is_kept_and_the_next_job_has_its_own(handler, consume, probe, path):
    with consume(handler.worker_command(["q"])):
        stopped = probe.backgrounded(queue="q", timeout=1.5).spend(60)
        failure = stopped.exception(60)
        assert str(failure) == "TimeoutError: stopped after its timeout of 1.5 seconds"
        probe.backgrounded(queue="q", timeout=1.5).note()
        probe.backgrounded(queue="q").spend(2.0).wait(60)
    assert [event.what for event in events(path)] == ["spending", "note", "spending", "spent"]


# -- how a consumer ends


@pytest.mark.worker
def test_the_consumer_of_worker_command_finishes_its_job_at_sigterm(handler, consume, probe, path, tmp_path):
    gate = tmp_path / "gate"
    with consume(handler.worker_command(["q"])) as process:
        job, after = probe.backgrounded(queue="q").hold(str(gate)), probe.backgrounded(queue="q").note()
        eventually(lambda: events(path, "holding"))
        process.send_signal(signal.SIGTERM)
        eventually(lambda: "Shutting down gracefully" in (tmp_path / "consumers.log").read_text())
        gate.touch()
        assert process.wait(60) == 0
    assert (job.state, after.state) == (State.SUCCEEDED, State.QUEUED)


@pytest.mark.worker
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_job_that_a_plain_consumer_interrupts_is_aborted_and_says_so(shop, consume, probe, path, tmp_path, kind):
    with backgrounded.using("huey", huey=shop):
        with consume(["huey_consumer", "-k", kind, "hueyshop.jobs.huey"]) as process:
            job = probe.backgrounded.hold(str(tmp_path / "never"))
            eventually(lambda: events(path, "holding"))
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        assert job.state is State.ABORTED
        with pytest.raises(NoResult, match="aborted"):
            job.result(0)


@pytest.mark.worker
def test_a_job_whose_worker_is_killed_does_not_run_again_and_the_next_one_runs(handler, consume, probe, path, tmp_path):
    """At most once, as we say."""
    with consume(handler.worker_command(["q"])):
        lost = probe.backgrounded(queue="q", retry=5).hold(str(tmp_path / "never"))
        [event] = eventually(lambda: events(path, "holding"))
        os.kill(event.pid, signal.SIGKILL)
        probe.backgrounded(queue="q").note().wait(60)
        assert len(events(path, "holding")) == 1
        assert lost.state is State.RUNNING, "nobody is there to say otherwise"


@pytest.mark.worker
@pytest.mark.parametrize(("patience", "is_lost"), [(60, False), (0.5, True)])
def test_a_consumer_that_gives_up_on_its_server_loses_the_jobs_in_an_answer_that_comes_later(
    monkeypatch, consume, probe, path, patience, is_lost
):
    with redis() as server:
        url = f"{server.url}/0?socket_timeout={patience}"
        monkeypatch.setenv("HUEYSHOP_REDIS", url)
        huey = PriorityRedisHuey("hueyshop", url=url)
        with backgrounded.using("huey", huey=huey), consume(PLAIN):
            for number in range(10 if is_lost else 2):
                due = time.time() + 2
                job = probe.backgrounded(at=datetime.fromtimestamp(due, timezone.utc)).note(number)
                eventually(huey.storage.schedule_size)
                eventually(lambda due=due: time.time() > due - 0.02)
                server.freeze()  # the scheduler asks once a second, so most often it has not asked since the job is due
                eventually(lambda due=due: time.time() > due + 2)
                server.thaw()
                eventually(lambda: huey.storage.schedule_size() == 0)
                if not is_lost:
                    job.wait(60)
                probe.backgrounded(priority=0).note("afterwards").wait(60)
                ran = {event.given for event in events(path, "note")}
                if probes.given(number) not in ran:
                    break
        huey.storage.pool.disconnect()
    assert (probes.given(number) not in ran) is is_lost


# -- what is taken back


@pytest.mark.worker
def test_a_cancellation_that_says_yes_is_kept_by_a_consumer_that_takes_jobs_all_the_time(
    file_url, consume, probe, path
):
    """It is patient: the consumer has the file most often."""
    with backgrounded.using("huey", url=file_url, enqueue_timeout=30) as handler:
        with consume(handler.worker_command(["q"])):
            jobs, cancelled = [], []
            for number in range(60):
                jobs.append(probe.backgrounded(queue="q").note(number))
                if number % 2 and jobs[-1].cancel():
                    cancelled.append(number)
            for job in jobs:
                job.wait(60)
            probe.backgrounded(queue="q").note("last").wait(60)
        handler.close()
    ran = [probes.given(number) for number in range(60) if number not in cancelled]
    assert cancelled
    assert [event.given for event in events(path, "note")] == [*ran, probes.given("last")]


@pytest.fixture
def run_first(shop, consume):
    """After `run_first(condition)` the next cancellation stands still once it has seen that the job waits, until a
    consumer has run the job and what the condition looks for is there."""

    def stand_still(condition):
        def put_late(*words):
            del shop.storage.put_if_empty
            with consume(PLAIN):
                eventually(condition)
            return shop.storage.put_if_empty(*words)

        shop.storage.put_if_empty = put_late

    with backgrounded.using("huey", huey=shop):
        yield stand_still


@pytest.mark.worker
def test_a_cancellation_that_is_slower_than_the_worker_says_no_and_changes_nothing(shop, run_first, probe):
    job = probe.backgrounded.note()
    run_first(lambda: job.state.ended)
    assert job.cancel() is False
    assert job.state is State.SUCCEEDED
    assert not marks(shop)


@pytest.mark.worker
def test_a_cancellation_that_is_slower_than_a_failing_run_takes_the_next_run_back(
    shop, consume, run_first, probe, path
):
    job = probe.backgrounded(retry=backgrounded.Retry(1, wait=2)).fail(1)
    run_first(lambda: job.state is State.SCHEDULED and not marks(shop))
    assert job.cancel() is True
    with consume(PLAIN):
        eventually(lambda: not marks(shop))  # whoever comes upon a job that was taken back takes the mark away
    assert job.state is State.CANCELLED
    assert len(events(path, "fail")) == 1


def marks(huey):
    """The keys under which a run or a cancellation has a job."""
    return [key for key in huey.storage.result_items() if "backgrounded.run:" in str(key)]


@pytest.mark.worker
def test_a_job_that_waits_for_its_next_try_can_be_cancelled(handler, consume, probe, path):
    queue = handler.serve("q")
    with consume(handler.worker_command(["q"])):
        job = probe.backgrounded(queue="q", retry=backgrounded.Retry(1, wait=600)).fail(1)
        eventually(lambda: job.state is State.SCHEDULED)
        assert job.cancel() is True
        eventually(queue.storage.scheduled_items)  # its record comes first
    [data] = queue.storage.scheduled_items()
    again = queue.deserialize_task(data)
    queue.execute(again, again.eta)  # as when it is due
    assert len(events(path, "fail")) == 1
    assert job.state is State.CANCELLED


@pytest.mark.worker
def test_a_job_that_was_revoked_in_hueys_own_way_is_cancelled(shop, consume, probe, path):
    with backgrounded.using("huey", huey=shop):
        job, after = probe.backgrounded.note(1), probe.backgrounded.note(2)
        shop.revoke_by_id(job.id)
        with consume(PLAIN):
            after.wait(60)
        assert job.state is State.CANCELLED
    assert [event.given for event in events(path)] == [probes.given(2)]


# -- what strangers write


@pytest.mark.worker
@pytest.mark.parametrize("store", ["file", "server"])
def test_what_strangers_write_into_a_queue_of_ours_runs_nothing_and_is_kept(
    store, file_url, redis_url, consume, probe, path, tmp_path, log
):
    bomb = tmp_path / "unpickled"
    strange = {
        "a pickle": pickle.dumps(Bomb(bomb)),
        "no text": b"\xff\x00\xfe",
        "no object": b"[1, 2]",
        "nothing": b"",
        "deep": b"[" * 100_000,
        "no words": b'{"id": "x1", "due": null, "priority": null}',
        "words of another task": b'{"id": "x2", "due": null, "priority": null, "words": {"wire": {}, "shell": "id"}}',
        "no attempt": b'{"id": "x3", "due": null, "priority": null, "words": {"wire": {}, "attempt": true}}',
        "no limit": b'{"id": "x4", "due": null, "priority": null, "words": {"wire": {}, "timeout": "x"}}',
        "no time": b'{"id": "x5", "due": 1e300, "priority": null, "words": {"wire": {}}}',
        "no wire": b'{"id": "x6", "due": null, "priority": null, "words": {"wire": [1]}}',
        "more lines": b'{"id": "x7\\nc", "due": null, "priority": null, "words": {"wire": {}, "name": "a\\nb"}}',
    }
    with backgrounded.using("huey", url=file_url if store == "file" else redis_url) as handler:
        huey = handler.serve("strange")
        for data in strange.values():
            huey.storage.enqueue(data)
        with consume(handler.worker_command(["strange"])) as process:
            probe.backgrounded(queue="strange").note().wait(60)
            assert process.poll() is None
        assert len(list(handler.kept())) == len(strange)
        assert [event.what for event in events(path)] == ["note"]
        assert not bomb.exists()
        assert "a?b: x7?c" in log.read_text()
        for kept in list(handler.kept()):
            assert kept.reason
            handler.forget(kept.id)
        handler.close()


# -- the command


@pytest.mark.worker
def test_a_queue_may_have_any_name_and_a_consumer_finds_it(handler, consume, probe):
    queue = "mail.high/ä 1%"
    with consume(handler.worker_command([queue])):
        assert probe.backgrounded(queue=queue).give(1).result(60) == 1


@pytest.mark.worker
def test_the_directory_in_which_a_consumer_starts_is_enough(handler, consume, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hueycwdshop.py").write_text("from backgrounded import backgroundable\n@backgroundable\ndef f(n): return n\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import hueycwdshop

    with consume(handler.worker_command(["q"]), BACKGROUNDED_APP="hueycwdshop", PYTHONPATH=""):
        assert backgrounded.later(hueycwdshop.f, queue="q")(7).result(60) == 7


def test_the_command_passes_on_what_a_consumer_needs(monkeypatch, caplog, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    handler = HueyHandler("sqlite:///jobs.db", queue="main", workers=3)
    command = handler.worker_command()
    assert command[:3] == ["env", f"BACKGROUNDED_URL=huey+sqlite:///{tmp_path}/jobs.db?queue=main", "huey_consumer"]
    assert command[-4:] == ["--workers", "3", "--no-periodic", "backgrounded_huey.worker.main"]
    assert "BACKGROUNDED_APP is not set" in caplog.text
    caplog.clear()
    monkeypatch.setenv("BACKGROUNDED_APP", "shop.jobs,shop.more")
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "shop")
    assert {"BACKGROUNDED_APP=shop.jobs,shop.more", "BACKGROUNDED_ALLOW=shop"} <= set(handler.worker_command())
    assert not caplog.records


def test_a_password_is_not_among_the_arguments_of_the_consumer():
    handler = HueyHandler("redis://user:hush-hush@localhost:6379/0")
    command = handler.worker_command(["q"])
    assert "hush" not in " ".join(command[command.index("huey_consumer") :]) + repr(handler)


def test_the_command_of_an_applications_huey_takes_its_name(monkeypatch):
    from huey import MemoryHuey

    monkeypatch.setenv("BACKGROUNDED_APP", "shop.more")
    named = HueyHandler(huey="shop.jobs:huey", queues={"mail": "shop.mail:mail_huey", "other": MemoryHuey()})
    assert named.worker_command()[-1] == "backgrounded_huey.worker.shop%2Ejobs:huey"
    assert named.worker_command(["mail"])[-1] == "backgrounded_huey.worker.shop%2Email:mail_huey"
    assert "--no-periodic" not in named.worker_command()
    with pytest.raises(backgrounded.ConfigurationError, match="given as an object"):
        named.worker_command(["other"])
    with pytest.raises(backgrounded.ConfigurationError, match=r"'nope'.*default, mail, other"):
        named.worker_command(["nope"])


def test_a_consumer_without_a_url_says_what_to_set(tmp_path):
    script = "from backgrounded_huey import worker; worker.default"
    environment = {key: value for key, value in os.environ.items() if key != "BACKGROUNDED_URL"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 1
    assert "set BACKGROUNDED_URL, such as BACKGROUNDED_URL=huey+sqlite:///jobs.db" in run.stderr


# -- across a fork


def test_a_forked_child_hands_over_on_a_connection_of_its_own(handler, probe, path):
    first = probe.backgrounded(queue="q").note("parent")
    connection = handler.serve("q").storage.conn

    def hand_over():
        probe.backgrounded(queue="q").note("child")
        assert handler.serve("q").storage.conn is not connection
        assert first.state is State.QUEUED

    assert forked(hand_over) == 0
    assert handler.serve("q").storage.conn is connection
    assert len(handler.serve("q")) == 2
