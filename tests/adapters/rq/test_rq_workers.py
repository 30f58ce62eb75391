"""What do RQ's workers do with our jobs: which kinds, what they say, how they end, who finds what they left?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import backgrounded
import pytest
from backgrounded import JobFailed, NoResult, ResultTimeout, Retry
from backgrounded_rq import RQHandler
from backgrounded_rq._settings import VERSION
from redis import Redis
from redis.connection import Connection
from rq import Queue, Worker
from rq.job import Job as RQJob
from rqshop.jobs import Item
from rqtools import HERE

import servers
from needs import missing
from waiting import eventually

pytestmark = pytest.mark.worker
CANARY = "canary-4711"


# -- kinds of workers


# RQ 2.2's SpawnWorker fails each job: the code that it gives its child holds reprs of redis-py's own objects.
KINDS = ["Worker", "SimpleWorker", *(["SpawnWorker"] if VERSION >= (2, 8) else [])]


@pytest.mark.parametrize("kind_of_worker", KINDS)
@pytest.mark.parametrize("safe", [pytest.param(False, marks=pytest.mark.slow), True])
def test_each_kind_of_worker_runs_methods_coroutines_retries_and_failures(
    handler, start_worker, tag, starts, kind_of_worker, safe
):
    queue = f"kind-{kind_of_worker}-{safe}"
    command = handler.worker_command([queue]) if safe else ["rq", "worker", "--url", handler.url, queue]
    start_worker([*command, "-w", f"rq.worker.{kind_of_worker}"])
    item = Item(tag).backgrounded(queue=queue)
    jobs = [item.echo([1, (2,)]), item.later(3), Item(tag).backgrounded(queue=queue, retry=1).fail()]
    assert jobs[0].result(timeout=60) == [1, (2,)]
    assert jobs[1].result(timeout=60) == 3
    with pytest.raises(JobFailed, match="no luck"):
        jobs[2].result(timeout=60)
    if kind_of_worker == "SimpleWorker":
        limited = Item(tag).backgrounded(queue=queue, timeout=1).sleep(30)
        with pytest.raises(JobFailed, match="stopped after its timeout"):
            limited.result(timeout=60)
    assert [attempt for attempt, _ in starts(tag)][:4] == [1, 1, 1, 2]


def test_a_method_sees_its_job(handler, kind, tag):
    job = Item(tag).backgrounded(queue=kind, timeout=50).running()
    id, queue, attempt, deadline, alias = job.result(timeout=60)
    assert (id, queue, attempt, alias) == (job.id, kind, 1, "default")
    assert 40 < deadline - time.time() <= 50


def test_a_nested_call_goes_back_where_its_job_came_from(url, kind, redis, tag, starts):
    """The workers of these tests have configured nothing."""
    with backgrounded.using("rq", url=url, name="mail", serializer="json" if kind == "safe" else None):
        job = Item(tag).backgrounded(queue=kind, handler="mail").call_another(f"{tag}-2", kind)
        nested = backgrounded.job(job.result(timeout=60), handler="mail")
        assert nested.result(timeout=60) == f"from {tag}"
        outer, inner = (redis.hget(RQJob.key_for(id), "data") for id in (job.id, nested.id))
        assert outer[:2] == inner[:2] == b"x\x9c"
        assert Item(tag).backgrounded(queue=kind, handler="mail").running().result(timeout=60)[4] == "mail"


# -- what they say


def test_arguments_are_nowhere_but_in_the_job(url, redis, start_worker, tmp_path, caplog):
    """Through every path: done, failed, retried, timed out, killed, kept, expired, on both kinds of workers."""
    (tmp_path / "spy.py").write_text(SPY)
    spied = tmp_path / "records"
    env = {"PYTHONPATH": os.pathsep.join([str(HERE), str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    caplog.set_level(logging.DEBUG)
    for queue in ("spied-plain", "spied-safe"):
        with backgrounded.using("rq", url=url) as handler:
            command = ["rq", "worker", "--url", url, "--with-scheduler", queue]
            command = handler.worker_command([queue]) if queue == "spied-safe" else command
            spying = ["--exception-handler", "spy.handler", "--verbose"]
            worker = start_worker([*command, *spying], SPIED=str(spied), **env)
            item = Item("spied")
            jobs = [
                item.backgrounded(queue=queue).fail_with("no luck", CANARY),
                item.backgrounded(queue=queue, retry=Retry(1, wait=1)).fail_with("no luck", CANARY),
                item.backgrounded(queue=queue, expires=0.000_001).fail_with("no luck", CANARY),
                Item(f"spied-{queue}").backgrounded(queue=queue, unique=queue).die_with(9, CANARY),
                item.backgrounded(queue=queue, delay=1).fail_with("no luck", CANARY),
                backgrounded.background(item, queue=queue).sleep_with(0, CANARY),
                item.backgrounded(queue=queue, timeout=1).sleep_with(9, CANARY),
            ]
            for job in jobs:
                job.wait(timeout=60)
                assert CANARY not in repr(job)
            for job in jobs:
                fields = redis.hgetall(RQJob.key_for(job.id))
                assert CANARY.encode() not in b"".join(value for key, value in fields.items() if key != b"data")
                assert CANARY not in str(RQJob.fetch(job.id, connection=redis))
            listed = subprocess.run(
                ["rq", "info", "--url", url], capture_output=True, text=True, check=True, env=_env_with_scripts()
            )
            assert CANARY not in listed.stdout + listed.stderr
            assert CANARY not in worker.log
            assert "rqshop.jobs.Item.fail_with" in worker.log
            assert b"die_with" in b"".join(bytes(str(kept.wire), "utf-8") for kept in handler.kept())
            for key in redis.scan_iter("rq:worker*"):
                assert CANARY not in str(redis.dump(key))
    assert spied.read_text().count("record") > 10
    assert CANARY not in spied.read_text()
    assert CANARY not in caplog.text
    assert CANARY not in str([vars(record) for record in caplog.records])


SPY = """
import logging, os, subprocess

def write(what, text):
    with open(os.environ["SPIED"], "a") as file:
        file.write(f"{what} {text}\\n")

class Handler(logging.Handler):
    def emit(self, record):
        write("record", repr(vars(record)))

logging.getLogger().addHandler(Handler())
logging.getLogger("rq.worker").addHandler(Handler())
logging.getLogger("rq.job").addHandler(Handler())
logging.getLogger("backgrounded").addHandler(Handler())

def handler(job, *exc_info):
    write("job", repr([vars(job).get(name) for name in ("_args", "_kwargs", "description", "_func_name", "meta")]))
    write("title", open(f"/proc/{os.getpid()}/cmdline").read())
    return True
"""


def _env_with_scripts() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_dashboard_shows_the_method(handler, redis, url):
    dashboard = pytest.importorskip("rq_dashboard", reason="rq-dashboard is not installed")
    import flask

    job = Item(CANARY).backgrounded(queue="dashed").fail_with("no luck", CANARY)
    app = flask.Flask(__name__)
    app.config.from_object(dashboard.default_settings)
    app.config["RQ_DASHBOARD_REDIS_URL"] = url
    dashboard.web.setup_rq_connection(app)
    app.register_blueprint(dashboard.blueprint, url_prefix="/rq")
    client = app.test_client()
    page = client.get("/rq/0/data/jobs/dashed/queued/8/asc/1.json").get_data(as_text=True)
    assert [found["description"] for found in json.loads(page)["jobs"]] == ["rqshop.jobs.Item.fail_with"]
    detail = client.get(f"/rq/0/data/job/{job.id}.json").get_data(as_text=True)
    assert "rqshop.jobs.Item.fail_with" in detail
    assert CANARY not in page + detail
    shown_while_it_runs = RQJob.fetch(job.id, connection=redis).get_call_string()
    assert "rqshop.jobs.Item.fail_with" in shown_while_it_runs
    assert CANARY not in shown_while_it_runs
    job.cancel()


# -- the command


def test_the_command_passes_on_what_a_worker_needs(handler, monkeypatch, caplog):
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    command = handler.worker_command(["a", "b"])
    assert command[0] == "rq"
    assert command[-2:] == ["a", "b"]
    assert "BACKGROUNDED_APP is not set" in caplog.text
    caplog.clear()
    monkeypatch.setenv("BACKGROUNDED_APP", "shop.jobs,shop.more")
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "shop")
    command = handler.worker_command()
    assert command[0] == "env"
    assert {"BACKGROUNDED_APP=shop.jobs,shop.more", "BACKGROUNDED_ALLOW=shop", "default"} <= set(command)
    assert not caplog.records


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ({"host": "h", "port": 7, "db": 3}, "redis://h:7/3"),
        ({"unix_socket_path": "/run/r.sock", "db": 2}, "unix:///run/r.sock?db=2"),
        (
            {"host": "h", "ssl": True, "ssl_ca_certs": "/ca.pem"},
            "rediss://h:6379/0?ssl_cert_reqs=required&ssl_ca_certs=",
        ),
        ({"host": "h", "password": "p w@/"}, "redis://:p%20w%40%2F@h:6379/0"),
        ({"host": "h", "username": "u:1", "password": "secret"}, "redis://u%3A1:secret@h:6379/0"),
        ({"unix_socket_path": "/r", "password": "secret"}, "unix://:secret@/r?db=0"),
    ],
)
def test_a_borrowed_connection_is_found_again_by_the_worker(monkeypatch, connection, expected):
    monkeypatch.setenv("BACKGROUNDED_APP", "x")
    handler = RQHandler(connection=Redis(**connection))
    command = handler.worker_command()
    secret = connection.get("password")
    url = command[command.index("--url") + 1] if not secret else _setting(command, "RQ_REDIS_URL")
    assert url.startswith(expected)
    made, given = (found.connection_pool.connection_kwargs for found in (Redis.from_url(url), handler.connection))
    for word in ("host", "port", "db", "path", "username", "password", "ssl_ca_certs"):
        assert made.get(word) == given.get(word) or (word, made.get(word), given.get(word)) == ("db", None, 0)
    assert secret is None or secret not in " ".join(command[command.index("rq") :]) + repr(handler)


def _setting(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"{name}="))


def test_a_connection_that_no_url_can_name_has_no_command():
    from redis.sentinel import Sentinel

    handler = RQHandler(connection=Sentinel([("h", 1)]).master_for("mymaster"))
    with pytest.raises(backgrounded.ConfigurationError, match="Sentinel"):
        handler.worker_command()


def test_a_server_with_a_password_is_reached_and_the_password_is_in_no_list_of_processes(
    start_worker, tag, monkeypatch, caplog, starts
):
    monkeypatch.setenv("BACKGROUNDED_APP", "rqshop.jobs")
    with servers.redis() as server:
        Redis(port=server.port).config_set("requirepass", "hush-hush")
        url = f"redis://:hush-hush@127.0.0.1:{server.port}/0"
        with backgrounded.using("rq", url=url) as handler:
            worker = start_worker(handler.worker_command(["q"]))
            assert Item(tag).backgrounded(queue="q").echo(1).result(timeout=60) == 1
            assert b"hush" not in Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()
            assert worker.stop() == 0
        with backgrounded.using("rq", url=url.replace("hush-hush", "wrong-one")) as handler:
            with pytest.raises(backgrounded.EnqueueError) as failed:
                Item(tag).backgrounded.echo()
            assert "wrong-one" not in f"{failed.value}{handler!r}{caplog.text}"
            assert failed.value.uncertain is False


def test_a_worker_that_was_told_of_no_application_says_what_to_set(handler, url, start_worker, tag, redis, starts):
    start_worker(["rq", "worker", "--url", url, "untold"], BACKGROUNDED_APP=None)
    job = Item(tag).backgrounded(queue="untold").echo()
    with pytest.raises(NoResult, match="BACKGROUNDED_APP"):
        job.result(timeout=60)
    [kept] = [kept for kept in handler.kept() if kept.id == job.id]
    assert "BACKGROUNDED_APP" in kept.reason
    start_worker(["rq", "worker", "--url", url, "untold"])
    Worker.all(connection=redis)
    handler.forget(job.id)


def test_the_directory_in_which_a_worker_starts_is_enough(handler, url, start_worker, folder, tag):
    shutil.copytree(HERE / "rqshop", folder / "cwdshop", dirs_exist_ok=True)
    sys.path.insert(0, str(folder))
    try:
        from cwdshop.jobs import Item as Here
    finally:
        sys.path.remove(str(folder))
    start_worker(["rq", "worker", "--url", url, "cwd"], BACKGROUNDED_APP="cwdshop.jobs", PYTHONPATH=None)
    assert Here(tag).backgrounded(queue="cwd").echo(1).result(timeout=60) == 1


# -- asking


class Counting(Connection):
    commands = 0

    def send_packed_command(self, command, check_health=True):
        type(self).commands += 1
        return super().send_packed_command(command, check_health)


@pytest.mark.parametrize("socket_timeout", [None, 4])
def test_waiting_for_a_result_is_no_busy_loop(url, tag, socket_timeout, monkeypatch):
    monkeypatch.setattr("backgrounded_rq._handler.LONGEST_WAIT", 40)
    connection = Redis.from_url(url, connection_class=Counting, socket_timeout=socket_timeout)
    with backgrounded.using("rq", connection=connection):
        job = Item(tag).backgrounded(queue="nobody").echo()
        before, started = Counting.commands, time.monotonic()
        with pytest.raises(ResultTimeout):
            job.result(timeout=5)
        assert 5 <= time.monotonic() - started < 30
        assert Counting.commands - before <= 20
        assert job.exception() is None
        job.cancel()
        with pytest.raises(NoResult, match="cancelled"):
            job.result()
    connection.close()


def test_a_result_wakes_whoever_waits_for_it(handler, kind, tag, monkeypatch):
    monkeypatch.setattr("backgrounded_rq._handler.LONGEST_WAIT", 40)
    monkeypatch.setitem(handler.connection.connection_pool.connection_kwargs, "socket_timeout", None)
    handler.connection.connection_pool.disconnect()
    job = Item(tag).backgrounded(queue=kind).sleep(0.3)
    started = time.monotonic()
    assert job.result(timeout=60) == "slept"
    assert time.monotonic() - started < 30


ASK = """
import json, sys, backgrounded
backgrounded.configure("rq", url=sys.argv[1])
told = []
for id in sys.argv[2:]:
    job = backgrounded.job(id)
    failure = job.exception(timeout=60)
    seen = failure and [failure.type_name, failure.message, "raise ValueError" in failure.traceback]
    told.append([job.wait(timeout=60), seen])
    if job.state == "succeeded":
        told[-1].append(job.result())
handler = backgrounded.get_handler()
told.append(sorted(kept.id for kept in handler.kept() if kept.id in sys.argv))
told.append(backgrounded.job(sys.argv[5]).cancel() if len(sys.argv) > 5 else None)
print(json.dumps(told))
"""


def test_another_process_is_told_the_same(handler, kind, url, tag):
    done = Item(tag).backgrounded(queue=kind).echo({"a": [1]})
    failed = Item(tag).backgrounded(queue=kind).fail("why")
    kept = Item(f"{tag}-kept").backgrounded(queue=kind).die(9)
    asked = [sys.executable, "-c", ASK, url, done.id, failed.id, kept.id]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(told.stdout) == [
        ["succeeded", None, {"a": [1]}],
        ["failed", ["ValueError", "why", True]],
        ["kept", None],
        [kept.id],
        None,
    ]
    handler.replay(kept.id)
    eventually(lambda: kept.state == "kept")
    handler.forget(kept.id)
    assert kept.state == "unknown"
    with pytest.raises(backgrounded.ConfigurationError):
        handler.replay(kept.id)


def test_what_runs_or_has_ended_cannot_be_cancelled(handler, kind, tag, starts):
    job = Item(tag).backgrounded(queue=kind).sleep(0.5)
    eventually(lambda: starts(tag))
    assert job.cancel() is False
    assert job.result(timeout=60) == "slept"
    assert job.cancel() is False
    assert backgrounded.job("0" * 32).cancel() is False


def test_a_cancellation_that_says_yes_is_kept(handler, kind, tag, starts, tmp_path):
    """Against a worker that takes jobs all the time."""
    jobs = [Item(tag).backgrounded(queue=kind).echo() for _ in range(15)]
    gate = tmp_path / "gate"
    held = Item(f"{tag}-held").backgrounded(queue=kind).hold(str(gate))
    jobs += [Item(tag).backgrounded(queue=kind).echo() for _ in range(15)]  # there to be cancelled, however slow we are
    cancelled = [job for job in jobs if job.cancel()]
    gate.touch()
    for job in jobs:
        job.wait(timeout=60)
    assert held.result(timeout=60) == "held"
    assert cancelled
    assert len(starts(tag)) == len(jobs) - len(cancelled)


# -- ends


@pytest.mark.parametrize("simple", [False, True])
def test_a_worker_that_is_asked_to_stop_finishes_its_job(handler, start_worker, tag, starts, oracle, tmp_path, simple):
    command = [*handler.worker_command([tag]), *(["-w", "rq.worker.SimpleWorker"] if simple else [])]
    worker = start_worker(command)
    gate = tmp_path / "gate"
    job = Item(tag).backgrounded(queue=tag).hold(str(gate))
    after = Item(tag).backgrounded(queue=tag).echo(1)
    eventually(lambda: starts(tag))
    worker.process.terminate()
    eventually(lambda: "warm shut down requested" in worker.log)
    gate.touch()
    assert worker.process.wait(60) == 0
    assert f"end {tag}" in oracle.read_text()
    assert (job.state, after.state) == ("succeeded", "queued")


def test_a_job_of_a_worker_that_is_made_to_stop_runs_again(handler, start_worker, tag, starts):
    """The second signal ends a SimpleWorker in the middle of a method: a death, not a failure of the method."""
    worker = start_worker([*handler.worker_command([tag]), "-w", "rq.worker.SimpleWorker"])
    job = Item(tag).backgrounded(queue=tag).hang_once()
    eventually(lambda: starts(tag))
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: "warm shut down requested" in worker.log)
    time.sleep(1.1)  # RQ takes no second signal within a second of when it has heard the first
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(60)
    assert job.state == "queued"
    assert len(starts(tag)) == 1


def test_the_job_of_a_dead_worker_is_found_by_rqs_own_cleaning(handler, start_worker, redis, tag, starts):
    """The short form: the clock is moved for RQ's registry, not for the machine."""
    job, _ = _kill_whole_worker(handler, start_worker, tag, starts)
    Queue(tag, connection=redis).started_job_registry.cleanup(timestamp=time.time() + 1000)
    start_worker(handler.worker_command([tag]))
    assert job.result(timeout=60) == "survived"
    assert [attempt for attempt, _ in starts(tag)] == [1, 1]


def test_who_died_during_maintenance_keeps_no_other_worker_from_it(handler, start_worker, redis, tag):
    """RQ holds its lock for 15 minutes, and it stays where its owner is killed."""
    queue = Queue(tag, connection=redis)
    assert queue.acquire_maintenance_lock()
    start_worker(handler.worker_command([tag]))
    eventually(lambda: 0 < redis.ttl(queue.registry_cleaning_key) <= 20)
    assert not queue.acquire_maintenance_lock(), "its owner may still need it"


@pytest.mark.slow
def test_the_job_of_a_dead_worker_runs_again_within_ninety_seconds(handler, start_worker, redis, tag, starts):
    job, died = _kill_whole_worker(handler, start_worker, tag, starts)
    Queue(tag, connection=redis).acquire_maintenance_lock()  # it died at the worst moment
    start_worker(handler.worker_command([tag]))
    eventually(lambda: len(starts(tag)) == 2, 90)
    print(f"recovery_s={starts(tag)[1][1] - died:.1f}")
    assert job.result(timeout=60) == "survived"


def _kill_whole_worker(handler, start_worker, tag, starts):
    """F1: worker, work horse and scheduler die in one moment, as when a container ends."""
    unshare = ["unshare", "-Ur", "-p", "-f", "--kill-child", "--"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        missing("unshare with user and process namespaces, to kill a worker whole")
    worker = start_worker([*unshare, *handler.worker_command([tag])])
    job = Item(tag).backgrounded(queue=tag).hang_once()
    eventually(lambda: starts(tag))
    worker.process.kill()
    worker.process.wait()
    return job, time.time()
