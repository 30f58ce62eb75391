"""What is put into a Huey, what is refused before, and what happens when it cannot be put there?"""

from __future__ import annotations

import contextlib
import contextvars
import json
import pickle
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType

import backgrounded
import pytest
from backgrounded import (
    ConfigurationError,
    EnqueueError,
    InvalidOption,
    NoResult,
    Retry,
    State,
    UnsupportedOption,
    backgroundable,
)
from backgrounded.handler import Feature
from backgrounded.testing.probe import Probe, events, record
from backgrounded_huey import HueyHandler, _ledger, install
from huey import FileHuey, Huey, MemoryHuey, PriorityRedisExpireHuey, RedisHuey, SqliteHuey
from huey.exceptions import CancelExecution, RateLimitExceeded, RetryTask
from huey.storage import MemoryStorage
from hueytools import stored
from redis import ConnectionPool

from processes import forked, in_the_middle
from servers import free_port
from waiting import eventually

CANARY = "canary-argument"


@pytest.fixture
def module(monkeypatch):
    """A module of an application, `borrowedshop`, as far as it has been imported."""
    module = ModuleType("borrowedshop")
    monkeypatch.setitem(sys.modules, "borrowedshop", module)
    return module


# -- what is put there


def test_what_a_url_makes_holds_json_and_no_pickle(handler, probe):
    job = probe.backgrounded(queue="custom", delay=60, priority=8, timeout=5).note(CANARY)
    huey = handler.serve("custom")
    [data] = stored(huey)
    message = json.loads(data)
    assert message["id"] == job.id == job.engine_id
    assert message["words"]["wire"]["args"] == [CANARY]
    assert message["priority"] == 3
    assert 55 < message["due"] - time.time() <= 60
    assert isinstance(json.loads(huey.serializer.serialize([None, True])), list)


def test_a_borrowed_huey_is_handed_plain_values(probe):
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey):
        job = probe.backgrounded(retry=1).note({"a": (1, CANARY)})
    [data] = stored(huey)
    message = pickle.loads(data)
    assert message.id == job.id
    assert message.name == "backgrounded_huey.perform"
    assert message.kwargs == json.loads(json.dumps(message.kwargs))
    assert (message.args, message.retries, message.timeout, message.expires) == ((), 0, None, None)


def test_the_name_in_huey_is_the_methods_and_nothing_else(probe):
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey):
        job = probe.backgrounded.note(CANARY)
    [task] = huey.pending()
    assert repr(task) == f"backgrounded.testing.probe.Probe.note: {job.id}"
    assert (task.__module__, task.name) == ("backgrounded.testing.probe.Probe", "note")


def test_the_applications_tasks_and_our_jobs_without_a_priority_take_turns_and_others_do_not(probe):
    huey = MemoryHuey()
    own = huey.task(name="own")(lambda: None)
    with backgrounded.using("huey", huey=huey):
        own()
        for priority in (None, 0, 5, 9):
            probe.backgrounded(priority=priority).note()
        own()
    assert [task.priority for task in huey.pending()] == [4, None, None, 0, None, -5]


def test_queues_on_a_server_are_apart_whatever_their_names_hold(redis_url, probe):
    with backgrounded.using("huey", url=redis_url) as handler:
        probe.backgrounded(queue="a-1").note()
        assert [len(handler.serve(queue)) for queue in ("a-1", "a1", "a.1")] == [1, 0, 0]
        handler.close()


def test_a_retry_without_a_wait_is_put_back_at_once_and_one_with_a_wait_is_scheduled(probe, path):
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey):
        for wait, waiting in ((0, (1, 0)), (30, (0, 1))):
            job = probe.backgrounded(retry=Retry(1, wait=wait), priority=8).fail(None)
            huey.execute(huey.dequeue())
            assert (huey.pending_count(), huey.scheduled_count()) == waiting
            assert job.state is (State.SCHEDULED if wait else State.QUEUED)
            [again] = huey.pending() + huey.scheduled()
            assert (again.id, again.kwargs["attempt"], again.priority) == (job.id, 2, 3)
            huey.flush()


@backgroundable
def command_huey(path, kind):
    record(path, "command", kind)
    raise {
        "again": RetryTask(),
        "cancel": CancelExecution(retry=True),
        "limit": RateLimitExceeded("key", 0.0, retry=True),
    }[kind]


@pytest.mark.parametrize("kind", ["again", "cancel", "limit"])
@pytest.mark.parametrize("retry", [0, 1])
def test_what_a_method_raises_is_no_command_to_huey(path, kind, retry):
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey):
        job = backgrounded.later(command_huey, retry=retry)(path, kind)
        run_all(huey)
        assert job.state is State.FAILED
        assert job.exception().type_name.startswith("huey.exceptions.")
    assert huey.scheduled_count() == 0
    assert len(events(path)) == retry + 1


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"url": "sqlite:///a.db", "huey": MemoryHuey()}, "not both"),
        ({"url": "sqlite://"}, "sqlite:///jobs.db"),
        ({"url": "sqlite:///:memory:"}, "sqlite:///jobs.db"),
        ({"url": "sqlite:///a.db?mode=ro"}, "nothing beside it"),
        ({"url": "amqp://localhost"}, "amqp"),
        ({"url": "redis://localhost:port/0"}, "url"),
        ({"url": "jobs.db"}, "without a scheme"),
        ({"huey": 7}, "shop.jobs:huey"),
        ({"huey": "shop.jobs.huey"}, "shop.jobs:huey"),
        ({"queues": {"a": MemoryHuey()}}, "goes with huey="),
        ({"huey": MemoryHuey(), "queues": ["a"]}, "must be a dict"),
        ({"huey": MemoryHuey(), "queues": {"": MemoryHuey()}}, "must be a name"),
        ({"huey": MemoryHuey(), "queues": {"default": MemoryHuey()}}, "'default'"),
        ({"huey": MemoryHuey(), "queues": {"a": 1}}, r"queues\['a'\]"),
        ({"huey": MemoryHuey(), "enqueue_timeout": 1}, "its timeouts"),
        ({"url": "sqlite:///a.db", "enqueue_timeout": 0}, "above 0"),
        ({"url": "sqlite:///a.db", "workers": 0}, "at least 1"),
        ({"url": "sqlite:///a.db", "queue": ""}, "must be a name"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_configured(arguments, says):
    with pytest.raises(ConfigurationError, match=says):
        backgrounded.configure("huey", **arguments)


def test_a_queue_without_a_huey_is_refused_at_the_call_by_name(probe):
    main, mail = MemoryHuey("main"), MemoryHuey("mail")
    with backgrounded.using("huey", huey=main, queue="main", queues={"mail": mail}):
        with pytest.raises(InvalidOption, match=r"'other'.*mail, main"):
            probe.backgrounded(queue="other").note()
        probe.backgrounded(queue="mail").note()
        probe.backgrounded(queue="main").note()
        probe.backgrounded.note()
    assert (len(main), len(mail)) == (2, 1)
    with backgrounded.using("huey", huey=main), pytest.raises(UnsupportedOption, match="'queue'"):
        probe.backgrounded(queue="default").note()


@pytest.mark.parametrize("late", [False, True], ids=["an object", "a name that is found at the first call"])
def test_a_priority_is_refused_where_the_store_has_none(module, monkeypatch, tmp_path, probe, late):
    for huey in (RedisHuey(url=f"redis://127.0.0.1:{free_port()}"), FileHuey(path=str(tmp_path / "files"))):
        given = huey
        if late:
            monkeypatch.delattr(module, "huey", raising=False)
            given = "borrowedshop:huey"
        with backgrounded.using("huey", huey=given) as handler:
            module.huey = huey
            for priority in (0, 9):
                with pytest.raises(UnsupportedOption, match="'priority'"):
                    probe.backgrounded(priority=priority).note()
            assert Feature.PRIORITY not in handler.features
            assert Feature.DELAY in handler.features
    probe_with = MemoryHuey()
    with backgrounded.using("huey", huey=probe_with):
        probe.backgrounded(priority=9).note()


@pytest.mark.parametrize("late", [False, True], ids=["an object", "a name that is found at the first call"])
@pytest.mark.parametrize(
    ("options", "option"), [({"delay": 5}, "delay"), ({"retry": Retry(1, wait=5)}, "retry")], ids=["delay", "retry"]
)
def test_a_huey_in_local_time_takes_no_times(module, probe, late, options, option):
    huey = MemoryHuey(utc=False)
    with backgrounded.using("huey", huey="borrowedshop:huey" if late else huey):
        module.huey = huey
        with pytest.raises(UnsupportedOption) as refused:
            probe.backgrounded(**options).note()
        assert refused.value.option == option
        probe.backgrounded(retry=1).note()


def test_a_huey_in_immediate_mode_is_refused_at_the_call(probe):
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey):
        huey.immediate = True
        with pytest.raises(ConfigurationError, match='configure\\("memory"\\)'):
            probe.backgrounded.note()


# -- a name that may still be importing


def test_doctor_says_which_huey_gives_up_on_its_server_too_soon(redis_url, handler):
    for timeout, says in (("5", "gives up on its server after 5 s"), ("60", None), ("none", None)):
        words = "" if timeout == "none" else f"socket_timeout={timeout}"
        pool = ConnectionPool.from_url(f"{redis_url}?{words}", **({} if words else {"socket_timeout": None}))
        found = list(HueyHandler(huey=RedisHuey("impatient", connection_pool=pool)).examine())
        assert [says in finding.what for finding in found] == [True] * bool(says), timeout
        assert not any(finding.gap for finding in found), "at most once is all that is promised"
    assert not list(HueyHandler(huey=MemoryHuey()).examine())
    assert not list(HueyHandler(redis_url).examine())
    assert not list(handler.examine())


def test_a_name_is_found_at_the_first_call_and_the_missing_line_is_said(module, probe, caplog):
    with backgrounded.using("huey", huey="borrowedshop:huey"):
        module.huey = huey = MemoryHuey()
        assert not caplog.records
        probe.backgrounded.note()
    assert len(huey) == 1
    assert "Add backgrounded_huey.install(huey) to borrowedshop" in caplog.text


def test_a_name_that_is_there_knows_our_task_as_soon_as_it_is_configured(module, caplog):
    module.huey = huey = MemoryHuey()
    with backgrounded.using("huey", huey="borrowedshop:huey"):
        assert "backgrounded_huey.perform" in huey._registry._registry
    assert not caplog.records


def test_nothing_is_missing_where_the_module_installs_it_itself(module, probe, caplog):
    with backgrounded.using("huey", huey="borrowedshop:huey"):
        module.huey = MemoryHuey()
        install(module.huey)
        install(module.huey)
        probe.backgrounded.note()
    assert not caplog.records


@pytest.mark.parametrize("name", ["borrowedshop:nothing", "nosuchshop:huey", "os:sep"])
def test_a_name_that_leads_nowhere_is_said_at_the_call(module, probe, name):
    with backgrounded.using("huey", huey=name), pytest.raises(ConfigurationError, match=name):
        probe.backgrounded.note()


# -- when it cannot be put there


def test_a_locked_file_is_an_enqueue_error_in_time(file_url, tmp_path, probe):
    with backgrounded.using("huey", url=file_url, enqueue_timeout=0.3) as handler:
        probe.backgrounded.note()
        locker = sqlite3.connect(tmp_path / "jobs.db")
        locker.execute("begin exclusive")
        started = time.monotonic()
        with pytest.raises(EnqueueError, match="locked") as failed:
            probe.backgrounded.note()
        assert 0.3 <= time.monotonic() - started < 30
        assert handler.serve("default").storage.sql("pragma busy_timeout", results=True) == [(300,)]
        assert failed.value.uncertain is False
        locker.close()
        probe.backgrounded.note()
        assert len(handler.serve("default")) == 2
        handler.close()


def test_a_transaction_that_ctrl_c_ends_is_rolled_back_and_holds_nobody_up(handler, tmp_path, probe):
    def press_ctrl_c(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), handler.serve("default").storage.db(commit=True) as cursor:
        press_ctrl_c(cursor.execute("delete from task"))
    probe.backgrounded.note()
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", timeout=0)) as other:
        other.execute("begin exclusive")
    assert len(handler.serve("default")) == 1


def test_a_file_that_is_almost_always_locked_takes_the_calls_in_its_short_pauses(handler, tmp_path, probe):
    """As under a consumer that writes all the time to a slow disk."""
    probe.backgrounded.note()
    is_held, is_over = threading.Event(), threading.Event()

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as locker:
            while not is_over.wait(0.003):
                locker.execute("begin exclusive")
                is_held.set()
                is_over.wait(0.2)
                locker.execute("rollback")

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(lock)
        try:
            for _ in range(4):
                is_held.clear()
                assert is_held.wait(60)
                probe.backgrounded.note()
        finally:
            is_over.set()
        holding.result(60)
    assert len(handler.serve("default")) == 5


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not opened yet"])
def test_on_a_locked_file_no_thread_waits_for_the_others_beyond_its_time(file_url, tmp_path, probe, is_open):
    def call(_: int) -> float:
        started = time.monotonic()
        with pytest.raises(EnqueueError, match="locked") as failed:
            probe.backgrounded.note()
        assert failed.value.uncertain is False
        return time.monotonic() - started

    with (
        backgrounded.using("huey", url=file_url, enqueue_timeout=1) as handler,
        contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as locker,
        ThreadPoolExecutor(10) as threads,
    ):
        if is_open:
            probe.backgrounded.note()
        locker.execute("begin exclusive")
        calls = [threads.submit(contextvars.copy_context().run, call, number) for number in range(10)]
        assert max(done.result(60) for done in calls) < 1.6
        locker.rollback()
        probe.backgrounded.note()
        assert len(handler.serve("default")) == 1 + is_open
        handler.close()


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not opened yet"])
def test_a_fork_in_the_turn_of_another_thread_does_not_hold_the_child_up(handler, probe, is_open):
    if is_open:
        probe.backgrounded.note()
    with handler._line("default").ledger._store.lock:
        assert forked(probe.backgrounded.note) == 0
    probe.backgrounded.note()
    assert len(handler.serve("default")) == 2 + is_open


def test_a_consumer_of_a_file_that_cannot_be_opened_does_not_start(tmp_path):
    with (
        backgrounded.using("huey", url=f"sqlite:///{tmp_path}/nowhere/jobs.db") as handler,
        pytest.raises(sqlite3.OperationalError, match="unable to open"),
    ):
        handler.serve("default")


def test_a_job_that_was_not_taken_leaves_nothing_behind(handler, tmp_path, probe):
    probe.backgrounded.note()
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("create trigger full before insert on task begin select raise(abort, 'no more'); end")
    other.close()
    before = handler.serve("default").storage.sql("select count(*) from kv", results=True)
    with pytest.raises(EnqueueError, match="no more") as failed:
        probe.backgrounded.note()
    assert failed.value.uncertain is False
    assert handler.serve("default").storage.sql("select count(*) from kv", results=True) == before


def test_a_fork_in_the_middle_of_a_call_of_another_thread_does_not_hold_the_child_up(redis_url, probe):
    with backgrounded.using("huey", url=redis_url) as handler:
        call = probe.backgrounded(queue="forked").note
        with in_the_middle(call, handler.serve("forked").storage.pool):
            assert forked(call) == 0
        assert len(handler.serve("forked")) == 2


def test_a_server_that_does_not_answer_is_an_enqueue_error_in_time(probe):
    """It takes the connection, and never says a word."""
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        with backgrounded.using("huey", url=url, enqueue_timeout=0.3):
            started = time.monotonic()
            with pytest.raises(EnqueueError) as failed:
                probe.backgrounded.note()
            assert time.monotonic() - started < 30
            assert failed.value.uncertain is False


class BrokenStorage(MemoryStorage):
    """A store that may have taken a job, and does not say so."""

    def enqueue(self, data, priority=None):
        super().enqueue(data, priority)
        raise ConnectionError("the reply was lost")


def test_a_job_that_may_have_arrived_is_said_to_be_uncertain_and_is_not_forgotten(probe):
    huey = Huey(storage_class=BrokenStorage)
    with backgrounded.using("huey", huey=huey) as handler:
        with pytest.raises(EnqueueError, match="the reply was lost") as failed:
            probe.backgrounded.give(1)
        assert failed.value.uncertain is True
        task = huey.dequeue()
        assert handler.state(task.id) is State.QUEUED
        huey.execute(task)
        assert handler.result(task.id, 0) == 1


def test_a_consumer_has_more_patience_with_its_store_than_a_caller(handler, file_url, probe):
    """To give up may lose a job there."""

    def patience(handler):
        [(milliseconds,)] = handler.serve("q").storage.sql("pragma busy_timeout", results=True)
        return milliseconds

    assert 29_000 < patience(handler) <= 30_000
    with backgrounded.using("huey", url=file_url) as caller:
        probe.backgrounded(queue="q").note()
        assert 1_000 < patience(caller) <= 2_000
        caller.close()


# -- what is remembered


STORES = {
    "sqlite": lambda name, url, folder: SqliteHuey(name, filename=str(folder / "own.db")),
    "redis": lambda name, url, folder: RedisHuey(name, url=url),
    "redis that expires": lambda name, url, folder: PriorityRedisExpireHuey(name, url=url),
    "files": lambda name, url, folder: FileHuey(name, path=str(folder / "files")),
    "memory": lambda name, url, folder: MemoryHuey(name),
}


@pytest.fixture(params=STORES)
def huey(request, name, redis_url, tmp_path):
    """A Huey of an application, on each kind of store."""
    huey = STORES[request.param](name, redis_url, tmp_path)
    yield huey
    huey.storage.close()
    if "redis" in request.param:
        huey.storage.pool.disconnect()


def run_all(huey):
    while (task := huey.dequeue()) is not None:
        huey.execute(task)


def test_a_job_is_followed_from_call_to_end_in_every_kind_of_store(huey, probe, path):
    huey.storage.blocking = False
    with backgrounded.using("huey", huey=huey) as handler:
        given, failing, cancelled = (
            probe.backgrounded.give(None),
            probe.backgrounded.fail(None),
            probe.backgrounded.note(),
        )
        expired = probe.backgrounded(expires=0.01).note()
        kept = probe.backgrounded.note("of age")
        handler.enqueue(with_method(kept, "nope", path))
        called = time.time()
        assert [job.state for job in (given, failing, cancelled)] == [State.QUEUED] * 3
        assert (cancelled.cancel(), cancelled.cancel()) == (True, False)
        eventually(lambda: time.time() > called + 0.01)
        run_all(huey)
        assert [job.state for job in (given, failing, cancelled)] == [State.SUCCEEDED, State.FAILED, State.CANCELLED]
        assert (expired.state, kept.state) == (State.EXPIRED, State.KEPT)
        assert (given.result(0), given.result(0)) == (None, None)
        assert given.cancel() is False
        [item] = handler.kept()
        assert (item.id, item.code, item.name) == (kept.id, "target-not-found", kept.name)
        handler.forget(kept.id)
        assert kept.state is State.UNKNOWN
        assert list(handler.kept()) == []
        with pytest.raises(ConfigurationError, match="is kept here"):
            handler.replay(kept.id)


def with_method(job, method, path):
    """The call of a job again, with another method."""
    with backgrounded.using("memory") as recorder:
        Probe(path).backgrounded.note()
    [call] = recorder.calls
    return replace(call, id=job.id, name=job.name, tree={**call.tree, "id": job.id, "method": method})


def test_a_kept_job_goes_back_to_its_own_queue_with_its_payload_and_its_options(handler, probe, path):
    job = probe.backgrounded(queue="custom", priority=8, timeout=60).note("again")
    custom = handler.serve("custom")
    task = custom.dequeue()
    custom.execute(task)  # in this process nothing could stop it, so it is kept
    [kept] = handler.kept()
    assert (kept.id, kept.wire, kept.name) == (job.id, task.kwargs["wire"], job.name)
    handler.replay(job.id)
    assert job.state is State.QUEUED
    assert (len(custom), len(handler.serve("default"))) == (1, 0)
    again = custom.dequeue()
    assert again.kwargs == {**task.kwargs, "attempt": 1}
    assert again.priority == task.priority


def test_a_kept_job_that_cannot_be_put_back_is_still_kept(handler, probe, tmp_path):
    """Its record is the only thing that has its payload, and says already that it waits when the queue refuses it."""
    job = probe.backgrounded(timeout=60).note("again")
    queue = handler.serve("default")
    queue.execute(queue.dequeue())  # in this process nothing could stop it, so it is kept
    before = [(kept.id, kept.wire, kept.reason) for kept in handler.kept()]
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        other.execute("create trigger full before insert on task begin select raise(abort, 'no more'); end")
        with pytest.raises(EnqueueError, match="no more") as failed:
            handler.replay(job.id)
        assert failed.value.uncertain is False
        assert [(kept.id, kept.wire, kept.reason) for kept in handler.kept()] == before
        other.execute("drop trigger full")
        handler.replay(job.id)
        assert list(handler.kept()) == []
        assert len(queue) == 1


def test_a_replay_that_fails_after_the_job_is_in_its_queue_says_that_it_may_be(handler, probe, tmp_path):
    job = probe.backgrounded(timeout=60).note("again")
    queue = handler.serve("default")
    queue.execute(queue.dequeue())
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        other.execute("create trigger full before delete on kv begin select raise(abort, 'no more'); end")
        with pytest.raises(EnqueueError, match="no more") as failed:
            handler.replay(job.id)
    assert failed.value.uncertain is True
    assert len(queue) == 1


def test_a_kept_job_is_not_taken_back_by_a_cancellation_that_died_before_it_was_replayed(
    huey, probe, path, monkeypatch
):
    class Death(BaseException): ...

    def run_and_die(*words):
        monkeypatch.undo()
        run_all(huey)
        assert huey.storage.put_if_empty(*words)
        raise Death

    huey.storage.blocking = False
    with backgrounded.using("huey", huey=huey) as handler:
        kept = probe.backgrounded.note()
        huey.dequeue()
        handler.enqueue(with_method(kept, "nope", path))
        monkeypatch.setattr(huey.storage, "put_if_empty", run_and_die)
        with pytest.raises(Death):  # it had seen the job wait
            kept.cancel()
        assert kept.state is State.KEPT
        handler.replay(kept.id)
        run_all(huey)
        assert kept.state is State.KEPT  # it ran, and there is still no such method


def test_only_so_many_ended_jobs_are_remembered_in_every_kind_of_store(huey, probe, path, monkeypatch):
    """With them goes what Huey itself keeps of a failure that nobody asks for."""
    monkeypatch.setattr(_ledger, "REMEMBERED", 3)
    huey.storage.blocking = False
    with backgrounded.using("huey", huey=huey) as handler:
        kept = probe.backgrounded.note()
        huey.dequeue()
        handler.enqueue(with_method(kept, "nope", path))
        sizes = []
        for _ in range(3):
            jobs = [probe.backgrounded.fail(None, message="no luck") for _ in range(4)]
            run_all(huey)
            sizes.append(huey.result_count())
        assert [job.state for job in jobs] == [State.UNKNOWN, *[State.FAILED] * 3]
        assert sizes[0] == sizes[1] == sizes[2] <= 11
        assert kept.state is State.KEPT
        with pytest.raises(NoResult):
            jobs[0].result(0)


def test_a_job_never_seems_to_go_back(probe):
    """A state is read in two steps, and the job goes on in between."""
    huey = MemoryHuey()
    with backgrounded.using("huey", huey=huey) as handler:
        jobs = [probe.backgrounded.give(None) for _ in range(200)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            worker = threading.Thread(target=run_all, args=(huey,))
            worker.start()
            for job in jobs:
                seen = []
                while not seen or not seen[-1].ended:
                    seen.append(handler.state(job.id))
                first_running = seen.index(State.RUNNING) if State.RUNNING in seen else len(seen)
                assert State.QUEUED not in seen[first_running:]
            worker.join()
        finally:
            sys.setswitchinterval(interval)
