"""What do Celery's workers do with our jobs: which pools, what they say, how jobs die, who finds what is left?"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import backgrounded
import kombu.transport.redis
import pytest
from backgrounded import InvalidOption, JobFailed, NoResult, Retry
from backgrounded.handler import Feature
from backgrounded.testing.probe import Probe, events
from backgrounded_celery import CeleryHandler
from celery import Celery
from celery_contract import celery_worker
from celeryshop.jobs import Item
from celerytools import starts

from servers import redis as server
from slow_retry import attempts_on_a_slow
from waiting import eventually

pytestmark = pytest.mark.worker
CANARY = "canary-4711"
SWEEPS_OFTEN = hasattr(kombu.transport.redis.Channel, "unacked_restore_interval")
"""Before 5.7 kombu looks every 100 s for what was not acknowledged, and cannot be told otherwise."""


# -- an application that never heard of us


def test_the_task_is_found_by_the_worker_of_an_app_that_never_heard_of_us(handler, shop, shop_worker, oracle):
    job = Item(oracle).backgrounded.give([1, (2,)])
    assert job.result(timeout=60) == [1, (2,)]
    assert starts(oracle, job.id)[0].job["queue"] == "shop"
    assert shop.tasks["celeryshop.celery.greet"].delay("you").get(timeout=60) == "hello you"


def test_every_start_of_celery_loads_next_to_nothing_of_ours():
    script = (
        "import sys, celery.bin.celery as c; before = set(sys.modules)\n"
        "assert 'backgrounded' in c.celery.commands, list(c.celery.commands)\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('backgrounded', 'redis'))))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "backgrounded_celery.task" in loaded
    assert not {"backgrounded_celery._handler", "backgrounded_celery._broker", "redis"} & {*loaded}


def test_the_command_says_what_an_app_promises(shop_url):
    given = {"CELERYSHOP_BROKER": shop_url, "CELERYSHOP_RESULTS": ""}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **given}
    command = [sys.executable, "-m", "celery", "-A", "celeryshop.celery", "backgrounded"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "priority" in told.splitlines()[0]
    assert "unique" not in told.splitlines()[0]
    assert "worker_prefetch_multiplier = 1" in told
    assert "result_backend" in told


def test_an_app_is_looked_up_by_its_name_at_the_first_use(handler, shop, monkeypatch):
    import celeryshop

    monkeypatch.delitem(sys.modules, "celeryshop.celery")
    monkeypatch.delattr(celeryshop, "celery")
    monkeypatch.setenv("CELERYSHOP_RESULTS", "rpc://")
    with backgrounded.using("celery", url="celeryshop.celery:app") as named:
        assert "celeryshop.celery" not in sys.modules
        assert Feature.RESULTS in named.features
        with pytest.raises(backgrounded.UnsupportedOption, match="unique"):
            Item("x").backgrounded(unique="key").give(1)
        assert Feature.RESULTS not in named.features
        assert named.app is sys.modules["celeryshop.celery"].app
    with (
        backgrounded.using("celery", app="celeryshop.nowhere:app"),
        pytest.raises(backgrounded.ConfigurationError, match="nowhere"),
    ):
        Item("x").backgrounded.give(1)


@pytest.fixture
def only_there(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """The application where the worker is to start, and nowhere on its path; and the command that starts it there."""
    shutil.copytree(Path(__file__).parent / "celeryshop", tmp_path / "celerycwd")
    (tmp_path / "celerycwd" / "__init__.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        yield importlib.import_module("celerycwd.jobs"), f"env -C {tmp_path} celery -A celerycwd.celery"
    for name in [name for name in sys.modules if name.startswith("celerycwd")]:
        del sys.modules[name]


def test_the_directory_in_which_a_worker_starts_is_enough(handler, start_worker, only_there, oracle):
    """Celery takes it from the path when it has imported the app. An exception goes through the main process, too."""
    jobs, command = only_there
    item = jobs.Item(oracle)
    with start_worker("-Q", "cwd", BACKGROUNDED_APP="celerycwd.jobs", PYTHONPATH="", before=command) as worker:
        assert item.backgrounded(queue="cwd").give(1).result(timeout=60) == 1
        for tries in (0, 1):
            failed = item.backgrounded(queue="cwd", retry=tries).fail_in_our_words()
            assert failed.exception(timeout=60).type_name == "celerycwd.jobs.NoLuck"
            assert len(starts(oracle, failed.id)) == tries + 1
        assert item.backgrounded(queue="cwd").lose_its_directory().wait(timeout=60) == "succeeded"
        assert item.backgrounded(queue="cwd").give(2).result(timeout=60) == 2
        assert "Unrecoverable" not in worker.log


UNREADABLE = """
import os, sys

sys.path.append(os.environ["VENDOR"])
import vendored

from celeryshop.jobs import Item

class Customer(Item):
    def fail_in_their_words(self):
        self._start()
        raise vendored.Sorry("no luck")
"""


def test_an_exception_that_only_the_pools_process_knows_does_not_end_the_worker(
    handler, start_worker, tmp_path, monkeypatch, oracle
):
    """Celery's main process would import what it names, and ends where that cannot be."""
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "vendored.py").write_text("class Sorry(Exception):\n    pass\n")
    (tmp_path / "unreadable.py").write_text(UNREADABLE)
    monkeypatch.setenv("VENDOR", str(tmp_path / "vendor"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    from unreadable import Customer

    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    with start_worker("-Q", "vendor", BACKGROUNDED_APP="unreadable", PYTHONPATH=path) as worker:
        customer = Customer(oracle)
        failed = customer.backgrounded(queue="vendor", retry=1).fail_in_their_words()
        assert failed.exception(timeout=60).type_name == "vendored.Sorry"
        assert customer.backgrounded(queue="vendor").give(1).result(timeout=60) == 1
        assert len(starts(oracle, failed.id)) == 2
        assert "JobFailed" in worker.log
        assert "Unrecoverable" not in worker.log


EARLY = """
import os
from backgrounded import Backgrounded

HERE = os.getpid()

class Early(Backgrounded):
    def __backgrounded_args__(self):
        return (), {}

    def where(self):
        return [HERE, os.getppid()]
"""


def test_a_worker_of_ours_imports_the_application_once_for_all_processes(shop_url, tmp_path, monkeypatch):
    (tmp_path / "earlyshop.py").write_text(EARLY)
    monkeypatch.syspath_prepend(tmp_path)
    from earlyshop import Early

    early = {"BACKGROUNDED_APP": "earlyshop", "PYTHONPATH": str(tmp_path)}
    with backgrounded.using("celery", url=shop_url) as handler:
        with celery_worker(handler, ["early"], tmp_path / "log", **early):
            imported, parent = Early().backgrounded(queue="early").where().result(timeout=60)
        handler.close()
    assert imported == parent


def test_a_nested_call_goes_back_where_its_job_came_from(handler, shop_worker, oracle):
    """This worker has configured nothing."""
    job = Item(oracle).backgrounded.nest("shop")
    assert backgrounded.job(job.result(timeout=60)).result(timeout=60) == "nested"


def test_nested_calls_of_a_job_share_their_connections(handler, shop_worker, oracle):
    """And a job's batch is one, where the worker has configured nothing."""
    assert Item(oracle).backgrounded.nest_many(50).result(timeout=60) < 10


# -- what they say


def test_arguments_are_nowhere_but_in_the_message(handler, shop, shop_worker, oracle, caplog):
    told = []
    with shop.connection_for_read() as connection:
        receiver = shop.events.Receiver(connection, handlers={"*": told.append})

        with receiver.consumer_context(wakeup=False) as (listening, _, _):

            def hears(enough: Callable[[], bool]) -> bool:
                with contextlib.suppress(TimeoutError):
                    listening.drain_events(timeout=1)
                return enough()

            eventually(lambda: hears(lambda: "worker-heartbeat" in {event["type"] for event in told}))
            item = Item(oracle)
            jobs = [
                item.backgrounded.give(CANARY, CANARY),
                item.backgrounded.fail("no luck", CANARY),
                item.backgrounded(retry=Retry(1, wait=0.2)).fail("no luck", CANARY),
                item.backgrounded(expires=0.000_001).give(1, CANARY),
            ]
            delayed = item.backgrounded(delay=600).give(2, CANARY)
            shown = eventually(lambda: found if "Item.give" in (found := shown_by(shop)) else "")
            assert delayed.cancel()
            for job in jobs:
                job.wait(timeout=60)
            ends = ("task-succeeded", "task-failed")
            eventually(lambda: hears(lambda: sum(event["type"] in ends for event in told) == len(jobs)))
    assert "celeryshop.jobs.Item.give" in shown
    assert {event["name"] for event in told if event["type"] == "task-received"} == {
        "celeryshop.jobs.Item.give",
        "celeryshop.jobs.Item.fail",
    }
    assert "Task celeryshop.jobs.Item.give[" in shop_worker.log
    everything = f"{shown}{told}{shop_worker.log}{caplog.text}{jobs!r}{[job.exception() for job in jobs[:2]]}"
    assert CANARY not in everything


def shown_by(app: Celery) -> str:
    """What `celery inspect scheduled` shows, when it shows anything."""
    found = app.control.inspect(timeout=1).scheduled() or {}
    return json.dumps(found) if any(found.values()) else ""


# -- pools


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools_run_fail_and_retry_and_set_aside_what_has_a_limit(handler, start_worker, oracle, pool):
    item = Item(oracle)
    with start_worker("-Q", pool, "--pool", pool):
        good, bad = item.backgrounded(queue=pool).give(1), item.backgrounded(queue=pool, retry=2).fail()
        limited = item.backgrounded(queue=pool, timeout=5).give(1)
        late = item.backgrounded(queue=pool, delay=0.5).give(2)
        assert good.result(timeout=60) == 1
        with pytest.raises(JobFailed, match="no luck"):
            bad.result(timeout=60)
        with pytest.raises(NoResult, match="--pool prefork"):
            limited.result(timeout=60)
        assert late.result(timeout=60) == 2
    assert len(starts(oracle, bad.id)) == 3
    assert starts(oracle, limited.id) == []
    handler.forget(limited.id)


# -- time limits


def test_a_limit_is_not_swallowed_by_what_bears_failing_requests(handler, shop_worker, oracle):
    job = Item(oracle).backgrounded(timeout=1).swallow()
    with pytest.raises(JobFailed, match="stopped after its timeout of 1 seconds") as failed:
        job.result(timeout=60)
    assert failed.value.type_name == "TimeoutError"
    assert events(oracle, "cleaned up")


def test_a_method_that_no_signal_reaches_ends_with_its_process_and_the_worker_goes_on(handler, shop_worker, oracle):
    job = Item(oracle).backgrounded(timeout=0.5).hang(deaf=True)
    with pytest.raises(JobFailed, match="killed after 11 seconds"):
        job.result(timeout=60)
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


def test_a_limit_beyond_the_visibility_timeout_is_refused(handler):
    with pytest.raises(InvalidOption, match="visibility_timeout"):
        Item("x").backgrounded(timeout=3600).give(1)


# -- deaths


def test_a_job_that_kills_its_process_is_begun_three_times_and_then_kept(handler, shop_worker, oracle):
    survivor, poison = Item(oracle).backgrounded.die(2), Item(oracle).backgrounded.die(99)
    assert survivor.result(timeout=60) == "survived"
    with pytest.raises(NoResult, match="3 workers died"):
        poison.result(timeout=60)
    assert [len(starts(oracle, job.id)) for job in (survivor, poison)] == [3, 3]
    assert {event.attempt for event in starts(oracle, poison.id)} == {1}
    handler.forget(poison.id)


@pytest.mark.parametrize("word", ["acks_late", "reject_on_worker_lost"])
def test_an_app_whose_annotations_give_a_job_up_with_its_process_promises_nothing(shop_url, start_worker, oracle, word):
    given_up = {"backgrounded.perform": {word: False}}
    app = Celery(word, broker="amqp://127.0.0.1:1", backend=shop_url, set_as_current=False)
    assert CeleryHandler(app=app).guarantees.delivery == "at-least-once"
    for said in (given_up, [{"*": {word: False}}, given_up]):
        app.conf.task_annotations = said
        promised = CeleryHandler(app=app).guarantees
        assert promised.delivery == "none"
        assert f"{word}=False" in " ".join(promised.notes)
    assert not app.finalized, "a question makes no task"
    app = Celery(word, broker=shop_url, backend=shop_url, set_as_current=False)
    with (
        backgrounded.using("celery", app=app),
        start_worker("-Q", word, CELERYSHOP_ANNOTATIONS=json.dumps(given_up)),
    ):
        job = Item(oracle).backgrounded(queue=word).die(99)
        assert job.exception(timeout=60).type_name.endswith("WorkerLostError")
        assert Item(oracle).backgrounded(queue=word).give(1).result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


def test_deaths_are_no_failures_and_each_attempt_may_have_its_own(handler, shop_worker, oracle):
    job = Item(oracle).backgrounded(retry=2).die_once_in_every_attempt()
    with pytest.raises(JobFailed, match="no luck"):
        job.result(timeout=60)
    assert [event.attempt for event in starts(oracle, job.id)] == [1, 1, 2, 2, 3, 3]


def test_a_job_of_a_killed_worker_runs_again_after_the_visibility_timeout(shop_url, start_worker, oracle):
    app = Celery("quick", broker=shop_url, backend=shop_url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 4}
    with backgrounded.using("celery", app=app):
        job = Item(oracle).backgrounded(queue="killed").hang(deaf=False)
        with start_worker("-Q", "killed", "--pool", "solo", CELERYSHOP_VISIBILITY="4") as worker:
            eventually(lambda: starts(oracle, job.id))
            worker.process.kill()
            worker.process.wait()
        with start_worker("-Q", "killed", "--pool", "solo", CELERYSHOP_VISIBILITY="4") as worker:
            eventually(lambda: len(starts(oracle, job.id)) == 2, 60 if SWEEPS_OFTEN else 200)
            worker.process.kill()
            worker.process.wait()
        assert job.state == "running"


def test_a_long_delay_is_carried_in_hops_and_runs_once(shop_url, start_worker, oracle):
    """Redis would hand it over a second time after the visibility timeout, which is shorter than the delay."""
    app = Celery("quick", broker=shop_url, backend=shop_url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 8}
    quick = {"CELERYSHOP_VISIBILITY": "8"}
    with start_worker("-Q", "far", **quick), start_worker("-Q", "far", **quick), backgrounded.using("celery", app=app):
        called = time.time()
        job = Item(oracle).backgrounded(queue="far", delay=9, retry=Retry(1, wait=9)).fail()
        assert job.state == "scheduled"
        with pytest.raises(JobFailed):
            job.result(timeout=60)
        first, second = starts(oracle, job.id)
        eventually(lambda: time.time() > second.at + 5)
    assert 9 <= first.at - called < 20
    assert 9 <= second.at - first.at < 20
    assert [first.attempt, second.attempt] == [1, 2]
    assert len(starts(oracle, job.id)) == 2


def test_a_job_whose_record_cannot_be_reached_waits_and_then_runs_once(shop_url, start_worker, oracle):
    with server(appendonly="yes") as results:
        backend = f"{results.url}/0"
        app = Celery("away", broker=shop_url, backend=backend, set_as_current=False)
        with backgrounded.using("celery", app=app):
            job = Item(oracle).backgrounded(queue="away").give(1)
            results.kill()  # before the worker is there: it cannot be quicker
            with start_worker("-Q", "away", CELERYSHOP_RESULTS=backend) as worker:
                eventually(lambda: "its record cannot be reached" in worker.log)
                results.start()
                assert job.result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


def test_a_retry_on_a_redis_that_is_slow_to_answer_is_one(shop_url, start_worker, tmp_path):
    with server() as broker:
        url = f"{broker.url}/0"
        app = Celery(uuid.uuid4().hex, broker=url, backend=shop_url, set_as_current=False)
        with (
            backgrounded.using("celery", app=app) as handler,
            start_worker("-Q", "slow", CELERYSHOP_BROKER=url, BACKGROUNDED_APP="backgrounded.testing.probe"),
        ):
            assert attempts_on_a_slow(broker, "slow", tmp_path) == [1, 2, 3]
            handler.close()


def test_a_worker_that_is_asked_to_stop_finishes_its_job(handler, start_worker, oracle, tmp_path):
    gate = tmp_path / "gate"
    with start_worker("-Q", "stopping") as worker:
        job = Probe(oracle).backgrounded(queue="stopping").hold(str(gate))
        after = Item(oracle).backgrounded(queue="stopping").give(1)
        eventually(lambda: events(oracle, "holding"))
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log)
        gate.touch()
        assert worker.process.wait(60) == 0
    assert (job.state, after.state) == ("succeeded", "queued")
    assert after.cancel() is True


# -- words of Celery's own


@pytest.mark.parametrize("word", ["Ignore", "Reject", "Retry", "MemoryError"])
def test_a_method_that_raises_a_word_of_celery_has_failed(handler, shop_worker, oracle, word):
    job = Item(oracle).backgrounded.say_in_celery(word)
    with pytest.raises(JobFailed, match=word):
        job.result(timeout=60)
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


def test_what_celery_itself_revokes_reads_as_cancelled(handler, shop, shop_worker, oracle):
    running = Item(oracle).backgrounded.hang(deaf=False)
    eventually(lambda: starts(oracle, running.id))
    waiting = Item(oracle).backgrounded(unique="revoked").give(1)  # behind it: it cannot begin before it is revoked
    shop.control.revoke([waiting.id], reply=True, timeout=5)
    shop.control.revoke([running.id], terminate=True, signal="SIGKILL", reply=True, timeout=5)
    for job in (waiting, running):
        assert job.wait(timeout=60) == "cancelled"
    assert starts(oracle, waiting.id) == []
    assert Item(oracle).backgrounded(unique="revoked").give(2).result(timeout=60) == 2


def test_an_app_that_is_always_eager_runs_jobs_inside_of_the_call(oracle):
    app = Celery("eager", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.task_always_eager = True
    with backgrounded.using("celery", app=app) as handler:
        job = Item(oracle).backgrounded(queue="x", retry=2).fail()
        assert [event.attempt for event in starts(oracle, job.id)] == [1, 2, 3]
        with pytest.raises(backgrounded.UnsupportedOption):
            Item(oracle).backgrounded(delay=5).give(1)
        app.conf.task_eager_propagates = True
        with pytest.raises(ValueError, match="no luck"):
            Item(oracle).backgrounded.fail()
        assert "task_always_eager" in handler.guarantees.notes[0]


# -- the command


def test_the_command_passes_on_what_a_worker_needs(handler, shop_url, monkeypatch, caplog):
    monkeypatch.delenv("BACKGROUNDED_APP", raising=False)
    monkeypatch.setenv("BACKGROUNDED_ALLOW", "celeryshop")
    *command, option, node, queues, named = handler.worker_command(["a", "b"])
    assert command == [
        *["env", "BACKGROUNDED_ALLOW=celeryshop"],
        *["celery", "-A", "celeryshop.celery", "worker", "--pool", "prefork", "--prefetch-multiplier", "1"],
    ]
    assert (option, queues, named) == ("--hostname", "-Q", "a,b")
    assert node.endswith("@%h")
    assert node not in handler.worker_command(["a", "b"]), "two workers of one machine need two names"
    ours = CeleryHandler("redis://:hush@127.0.0.1:1/0").worker_command()
    assert "BACKGROUNDED_APP is not set" in caplog.text
    assert "BACKGROUNDED_URL=celery+redis://:hush@127.0.0.1:1/0" in ours
    assert "hush" not in " ".join(ours[ours.index("celery") :])
    assert ours[-2:] == ["-Q", "default"]
    nameless = CeleryHandler(app=Celery(uuid.uuid4().hex, broker=shop_url, set_as_current=False))
    with pytest.raises(backgrounded.ConfigurationError, match="by name"):
        nameless.worker_command()
