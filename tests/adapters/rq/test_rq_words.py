"""What do our options and RQ's own words do there: names, limits, queues, priorities, native?"""

from __future__ import annotations

import datetime
import time

import backgrounded
import pytest
from backgrounded import InvalidOption, JobFailed, NoResult, Retry, Unique, UnsupportedOption
from backgrounded_rq import RQHandler
from backgrounded_rq._settings import KEEPS_FOREIGN_META, LONGEST_TIMEOUT, LONGEST_TTL, NATIVE, VERSION
from redis import Redis
from rq import Queue
from rq.job import Dependency
from rq.job import Job as RQJob
from rq.scheduler import RQScheduler
from rqshop.jobs import Item, add

from waiting import eventually

# -- names


def test_the_name_in_rq_is_the_methods_and_nothing_else(handler, redis, tag):
    job = Item(tag).backgrounded(queue="nobody", delay=100, retry=3).echo("canary-argument")
    native = RQJob.fetch(job.id, connection=redis)
    assert native.func_name == "backgrounded_rq.run.rqshop.jobs.Item.echo"
    assert native.description == "rqshop.jobs.Item.echo"
    assert native.id == job.id
    assert job.cancel()


# -- limits


@pytest.mark.parametrize(("given", "stored"), [(None, -1), (3, 3), (0.2, 1), (1.5, 2)])
def test_a_time_limit_is_none_by_default_and_whole_seconds_up(handler, redis, given, stored):
    options = {} if given is None else {"timeout": given}
    for more in ({}, {"delay": 100}):
        job = Item("x").backgrounded(queue="nobody", **options, **more).echo()
        assert RQJob.fetch(job.id, connection=redis).timeout == stored
        assert job.cancel()


@pytest.mark.worker
def test_a_job_over_its_limit_fails_and_says_so(handler, kind, tag, starts):
    job = Item(tag).backgrounded(queue=kind, timeout=5).sleep(50)
    with pytest.raises(JobFailed, match="timeout of 5 seconds") as failed:
        job.result(timeout=60)
    assert failed.value.type_name == "TimeoutError"
    assert job.state == "failed"
    assert len(starts(tag)) == 1


@pytest.mark.worker
def test_a_job_over_its_limit_is_retried_as_its_policy_says(handler, kind, tag, starts):
    job = Item(tag).backgrounded(queue=kind, timeout=5, retry=Retry(1, on=[TimeoutError])).sleep(50)
    job.wait(timeout=60)
    assert [attempt for attempt, _ in starts(tag)] == [1, 2]


CENTURY = datetime.timedelta(days=36_500)


@pytest.mark.parametrize("timeout", [LONGEST_TIMEOUT + 0.5, CENTURY])
def test_a_time_limit_that_no_alarm_counts_is_refused_at_the_call(handler, timeout):
    with pytest.raises(InvalidOption, match="timeout: RQ counts at most 2147483647 seconds"):
        Item("x").backgrounded(queue="nobody", timeout=timeout).echo()


@pytest.mark.worker
@pytest.mark.parametrize(
    "options",
    [
        {"timeout": LONGEST_TIMEOUT},
        {"result_ttl": CENTURY},
        {"expires": CENTURY},
        {"native": {"failure_ttl": LONGEST_TTL}},
        {"timeout": LONGEST_TIMEOUT, "result_ttl": CENTURY, "retry": Retry(1, wait=CENTURY.total_seconds())},
    ],
)
def test_the_longest_of_each_limit_runs_once(handler, kind, redis, tag, starts, options):
    job = Item(tag).backgrounded(queue=kind, unique=Unique(tag, ttl=CENTURY), **options).echo(7)
    assert job.result(timeout=60) == 7
    assert redis.ttl(RQJob.key_for(job.id)) > 0
    assert len(starts(tag)) == 1


@pytest.mark.worker
def test_a_failure_is_there_for_a_century(handler, kind, redis, tag, starts):
    job = Item(tag).backgrounded(queue=kind, native={"failure_ttl": LONGEST_TTL}).fail()
    assert job.wait(timeout=60) == "failed"
    assert LONGEST_TTL - 60 < redis.ttl(RQJob.key_for(job.id)) <= LONGEST_TTL
    assert len(starts(tag)) == 1


def test_a_century_is_waited_for(handler, redis, tag):
    job = Item(tag).backgrounded(queue="nobody", delay=CENTURY, unique=Unique(tag, ttl=CENTURY)).echo()
    assert job.state == "scheduled"
    assert redis.pttl(f"backgrounded:unique:{tag}") > CENTURY.total_seconds() * 1000 - 60_000
    assert job.cancel()


@pytest.mark.worker
def test_an_expired_job_does_not_run(handler, kind, redis, tag, starts):
    job = Item(tag).backgrounded(queue="nobody", expires=0.1).echo()
    time.sleep(0.15)
    redis.rpoplpush("rq:queue:nobody", f"rq:queue:{kind}")
    assert job.wait(timeout=60) == "expired"
    assert not starts(tag)


@pytest.mark.worker
def test_a_job_that_expires_while_it_is_scheduled_does_not_run(handler, kind, redis, tag, starts):
    job = Item(tag).backgrounded(queue="nobody", delay=1, expires=1.2).echo()
    assert job.state == "scheduled"
    time.sleep(1.3)
    redis.zrem("rq:scheduled:nobody", job.id)
    redis.rpush(f"rq:queue:{kind}", job.id)
    assert job.wait(timeout=60) == "expired"
    assert not starts(tag)


@pytest.mark.worker
def test_a_job_that_is_cancelled_while_rq_puts_it_into_its_queue_does_not_run(
    handler, kind, redis, tag, starts, monkeypatch
):
    """RQ's scheduler reads what is due, and enqueues it whatever has become of it."""
    job = Item(tag).backgrounded(queue=tag, delay=600).echo()
    redis.zadd(f"rq:scheduled:{tag}", {job.id: 1})
    cancelled, fetch = [], RQJob.fetch_many

    def fetch_and_cancel(ids, **words):
        found = fetch(ids, **words)
        cancelled.append(job.cancel())
        return found

    monkeypatch.setattr(RQJob, "fetch_many", fetch_and_cancel)
    scheduler = RQScheduler([tag], connection=redis)
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    scheduler.release_locks()
    assert cancelled == [True]
    assert job.state == "cancelled"
    assert redis.rpoplpush(f"rq:queue:{tag}", f"rq:queue:{kind}") == job.id.encode()
    assert Item(f"{tag}-after").backgrounded(queue=kind).echo(1).result(timeout=60) == 1
    assert job.state == "cancelled"
    assert not starts(tag)


@pytest.mark.worker
def test_a_delayed_job_is_not_early(handler, kind, tag, starts):
    before = time.time()
    job = Item(tag).backgrounded(queue=kind, delay=0.7).echo(1)
    assert job.result(timeout=60) == 1
    assert starts(tag)[0][1] >= before + 0.7


@pytest.mark.worker
@pytest.mark.parametrize(("given", "stored"), [(None, 86_400), (599.5, 600), (600, 600)])
def test_a_result_is_there_for_so_long(handler, kind, redis, given, stored):
    options = {} if given is None else {"result_ttl": given}
    job = Item("x").backgrounded(queue=kind, **options).echo(7)
    assert job.result(timeout=60) == 7
    for key in (RQJob.key_for(job.id), f"rq:results:{job.id}"):
        assert stored - 60 <= redis.ttl(key) <= stored


@pytest.mark.worker
def test_without_a_result_ttl_nothing_is_left(handler, kind, tag, starts):
    job = Item(tag).backgrounded(queue=kind, result_ttl=0).echo(7)
    eventually(lambda: job.state == "unknown")
    assert len(starts(tag)) == 1
    with pytest.raises(NoResult):
        job.result(timeout=1)


@pytest.mark.parametrize(("given", "stored"), [(None, 86_400), (30, 30), (CENTURY, 36_500 * 86_400)])
@pytest.mark.parametrize("more", [{}, {"delay": 100}, {"native": {"depends_on": "parent"}}, {"unique": "cancelled"}])
def test_a_cancelled_job_is_remembered_for_as_long_as_a_result(handler, redis, tag, given, stored, more):
    redis.hset(RQJob.key_for("parent"), mapping={"status": "started", "data": b""})
    job = Item(tag).backgrounded(queue=tag, result_ttl=given, **more).echo()
    assert job.cancel() is True
    assert job.state == "cancelled"
    assert stored - 3 <= redis.ttl(RQJob.key_for(job.id)) <= stored
    assert job.cancel() is False
    assert not redis.exists(f"rq:canceled:{tag}")


@pytest.mark.skipif("rate_limit" not in NATIVE, reason="this RQ has no rate limits")
def test_a_cancelled_job_with_a_rate_limit_is_forgotten_too(handler, redis, tag):
    from rq import RateLimit

    for _ in range(2):  # the second one waits for the first
        job = Item(tag).backgrounded(queue=tag, native={"rate_limit": RateLimit(key=tag[:20], concurrency=1)}).echo()
    assert job.cancel() is True
    assert job.state == "cancelled"
    assert 0 < redis.ttl(RQJob.key_for(job.id)) <= 86_400


def test_nothing_is_left_of_two_hundred_cancelled_jobs(handler, redis, tag):
    jobs = [Item(tag).backgrounded(queue=tag, result_ttl=1).echo() for _ in range(200)]
    assert all(job.cancel() for job in jobs)
    eventually(lambda: not redis.exists(*(RQJob.key_for(job.id) for job in jobs)))
    assert not list(redis.scan_iter(f"rq:*{tag}*", count=1000))
    assert {job.state for job in jobs} == {"unknown"}
    ended = Item(tag).backgrounded(queue=tag, result_ttl=0).echo()
    assert ended.cancel() is True
    assert ended.state == "unknown", "nothing is remembered of it"


@pytest.mark.worker
def test_what_depends_on_a_cancelled_job_does_not_run_when_that_would_be_forgotten(handler, kind, redis, tag, starts):
    """RQ takes a dependency that is gone for one that was met."""
    first = Item(f"{tag}-1").backgrounded(queue="nobody", result_ttl=1).echo()
    second = Item(f"{tag}-2").backgrounded(queue="nobody").echo()
    third = Item(f"{tag}-3").backgrounded(queue=kind, native={"depends_on": [first.id, second.id]}).echo()
    assert first.cancel() is True
    time.sleep(1.5)
    redis.lrem("rq:queue:nobody", 0, second.id)
    redis.rpush(f"rq:queue:{kind}", second.id)
    second.wait(timeout=60)
    assert Item(f"{tag}-4").backgrounded(queue=kind).echo(4).result(timeout=60) == 4
    assert (first.state, third.state) == ("cancelled", "queued")
    assert not starts(f"{tag}-3")
    assert third.cancel()


@pytest.mark.worker
@pytest.mark.parametrize(
    ("native", "stored"), [({}, 365 * 86_400), ({"failure_ttl": 600}, 600), ({"failure_ttl": -1}, -1)]
)
def test_a_failed_job_is_there_for_so_long_and_a_kept_one_for_ever(handler, kind, redis, tag, native, stored):
    failed = Item(tag).backgrounded(queue=kind, native=native).fail()
    assert failed.wait(timeout=60) == "failed"
    ttl = redis.ttl(RQJob.key_for(failed.id))
    assert ttl == -1 if stored == -1 else stored - 60 <= ttl <= stored
    kept = Item(tag).backgrounded(queue=kind, native=native).die(9)
    assert kept.wait(timeout=60) == "kept"
    assert redis.ttl(RQJob.key_for(kept.id)) == redis.ttl(f"rq:results:{kept.id}") == -1
    assert redis.zscore(f"rq:failed:{kind}", kept.id) == -1


# -- queues and priorities


def test_priorities_are_refused_without_queues_for_them(handler):
    with pytest.raises(UnsupportedOption, match="priority"):
        Item("x").backgrounded(priority=8).echo()
    Item("x").backgrounded(queue="nobody", priority=5).echo()


@pytest.mark.parametrize(
    ("priority", "queue"),
    [
        *[(9, "q.top"), (8, "q.high"), (7, "q.high"), (6, "q"), (5, "q"), (None, "q"), (4, "q"), (3, "q.low")],
        *[(2, "q.low"), (1, "q.last"), (0, "q.last"), ("high", "q.high"), ("low", "q.low")],
    ],
)
def test_a_priority_is_a_queue_beside_its_own(url, redis, priority, queue):
    levels = {9: "top", 7: "high", 3: "low", 1: "last"}
    with backgrounded.using("rq", url=url, priorities=levels) as handler:
        job = Item("x").backgrounded(queue="q", priority=priority).echo()
        assert RQJob.fetch(job.id, connection=redis).origin == queue
        assert handler.priority_levels == 5
        assert handler.worker_command(["q", "r"])[-10:] == [
            f"{name}{level}" for name in "qr" for level in (".top", ".high", "", ".low", ".last")
        ]
        job.cancel()


# -- RQ's own words


def test_the_words_that_are_taken_are_those_of_the_installed_rq():
    assert {"depends_on", "at_front", "meta", "failure_ttl"} <= NATIVE
    assert {"depends_on", "at_front", "meta", "failure_ttl", "repeat", "rate_limit"} >= NATIVE, "a new word: decide"


NAMES_ARE_CHECKED = pytest.mark.skipif(VERSION < (3, 0), reason="this RQ takes any name")


@pytest.mark.parametrize(
    ("native", "words"),
    [
        ({"ttl": 5}, "use expires"),
        ({"on_success": print}, "our function only"),
        ({"on_failure": print}, "our function only"),
        ({"on_stopped": print}, "our function only"),
        ({"webhooks": []}, "our function only"),
        ({"job_id": "x"}, "takes: at_front, depends_on, failure_ttl, meta"),
        ({"group": "x"}, "takes: at_front, depends_on"),
        ({"timeout": 5}, "takes: at_front, depends_on"),
        ({"at_front": 1}, "True or False"),
        ({"failure_ttl": "a day"}, "whole seconds"),
        ({"failure_ttl": 0}, "whole seconds"),
        ({"failure_ttl": 10**18}, "up to 3155760000 .100 years."),
        ({"meta": [1]}, "plain values"),
        ({"meta": {"a": object()}}, "plain values"),
        ({"depends_on": 5}, "ids, jobs or Dependency"),
        ({"depends_on": ["abc", None]}, "ids, jobs or Dependency"),
        ({"depends_on": Dependency(["abc", ""])}, "ids, jobs or Dependency"),
        pytest.param({"depends_on": "a b"}, "letters, numbers", marks=NAMES_ARE_CHECKED),
        ({"repeat": "x"}, "must be an rq.Repeat|takes: at_front, depends_on"),
        ({"repeat": 3}, "must be an rq.Repeat|takes: at_front, depends_on"),
        ({"rate_limit": "x"}, "must be an rq.RateLimit|takes: at_front, depends_on"),
    ],
)
def test_words_that_rq_does_not_have_or_that_break_a_promise_are_refused(handler, native, words):
    with pytest.raises(InvalidOption, match=words):
        Item("x").backgrounded(queue="nobody", native=native).echo()


def test_a_dependency_and_a_delay_are_not_both_possible(handler):
    with pytest.raises(InvalidOption, match="depends_on"):
        Item("x").backgrounded(native={"depends_on": "abc"}, delay=5).echo()


@pytest.mark.worker
def test_a_dependency_is_waited_for(handler, kind, redis, tag, starts):
    first = Item(f"{tag}-1").backgrounded(queue="nobody").echo(1)
    second = Item(f"{tag}-2").backgrounded(queue=kind, native={"depends_on": first.id}).echo(2)
    third = Item(f"{tag}-3").backgrounded(queue=kind).echo(3)
    assert third.result(timeout=60) == 3
    assert second.state == "queued"
    redis.lrem("rq:queue:nobody", 0, first.id)
    redis.rpush(f"rq:queue:{kind}", first.id)
    assert second.result(timeout=60) == 2
    assert starts(f"{tag}-1")[0][1] < starts(f"{tag}-2")[0][1]


def test_a_deferred_job_can_be_cancelled(handler, redis):
    first = Item("x").backgrounded(queue="nobody").echo()
    second = (
        Item("x").backgrounded(queue="nobody", native={"depends_on": RQJob.fetch(first.id, connection=redis)}).echo()
    )
    assert second.cancel()
    assert second.state == "cancelled"


def test_at_front_comes_first(handler, redis, tag):
    Item("x").backgrounded(queue=tag).echo()
    job = Item("x").backgrounded(queue=tag, native={"at_front": True}).echo()
    assert redis.lindex(f"rq:queue:{tag}", 0) == job.id.encode()


@pytest.mark.worker
@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_meta_is_kept_also_when_a_job_is_retried(url, redis, safe_worker, tag, serializer):
    with backgrounded.using("rq", url=url, serializer=serializer):
        native = {"meta": {"owner": "me", "n": [1, 2]}}
        job = Item(tag).backgrounded(queue="safe", native=native, retry=1).fail()
        assert job.wait(timeout=60) == "failed"
        assert RQJob.fetch(job.id, connection=redis, serializer=serializer_of(serializer)).meta == native["meta"]


@pytest.mark.worker
@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_meta_survives_a_wait(url, redis, safe_worker, tag, serializer):
    with backgrounded.using("rq", url=url, serializer=serializer):
        proxy = Item(tag).backgrounded(queue="safe", native={"meta": {"owner": "me"}}, delay=1)
        if serializer == "pickle" and not KEEPS_FOREIGN_META:
            with pytest.raises(InvalidOption, match="json"):
                proxy.echo()
            return
        job = proxy.echo(5)
        assert job.result(timeout=60) == 5
        native = RQJob.fetch(job.id, connection=redis, serializer=serializer_of(serializer))
        assert native.meta == {"owner": "me"}


@pytest.mark.worker
@pytest.mark.skipif("repeat" not in NATIVE, reason="this RQ has no repeat")
def test_each_repetition_has_its_own_retries(handler, kind, tag, starts):
    from rq import Repeat

    job = Item(tag).backgrounded(queue=kind, retry=1, native={"repeat": Repeat(times=2)}).fail_but_second()
    eventually(lambda: len(starts(tag)) == 6)
    assert [attempt for attempt, _ in starts(tag)] == [1, 2] * 3
    assert job.wait(timeout=60) == "succeeded"


@pytest.mark.worker
@pytest.mark.skipif("rate_limit" not in NATIVE, reason="this RQ has no rate limits")
def test_a_rate_limit_is_rqs_own(handler, kind, redis, tag):
    from rq import RateLimit

    limit = {"rate_limit": RateLimit(key=f"limit-{time.monotonic_ns()}", concurrency=1)}
    running = Item(tag).backgrounded(queue="nobody", native=limit).echo(1)
    waiting = Item(tag).backgrounded(queue="nobody", native=limit).echo(2)
    assert (running.state, waiting.state) == ("queued", "queued")
    assert redis.llen("rq:queue:nobody") >= 1
    assert waiting.id.encode() not in redis.lrange("rq:queue:nobody", 0, -1)
    assert waiting.cancel()
    assert waiting.state == "cancelled"
    redis.lrem("rq:queue:nobody", 0, running.id)
    redis.rpush(f"rq:queue:{kind}", running.id)
    assert running.result(timeout=60) == 1


# -- the application's own RQ


class Priority(Queue):
    """A queue of the application's."""

    DEFAULT_TIMEOUT = 77


def serializer_of(name: str):
    from rq import serializers

    return {"pickle": serializers.DefaultSerializer, "json": serializers.JSONSerializer}[name]


@pytest.mark.worker
@pytest.mark.parametrize("name", ["pickle", "json"])
def test_the_applications_queue_is_reused_with_all_it_brings(redis, safe_worker, name):
    queue = Priority("safe", connection=redis, serializer=serializer_of(name))
    with backgrounded.using("rq", queue=queue) as handler:
        job = backgrounded.later(add)(1, 2)
        assert handler.default_queue == "safe"
        assert isinstance(handler._queue("other"), Priority)
        assert job.result(timeout=60) == 3
        native = RQJob.fetch(job.id, connection=redis, serializer=serializer_of(name))
        assert native.return_value() == 3, "an application that reads RQ directly"
        assert any("application's" in note for note in handler.guarantees.notes)


@pytest.mark.worker
def test_rqs_own_reader_of_results_works_under_a_plain_worker(handler, redis, plain_worker):
    job = Item("x").backgrounded(queue="plain").echo({"a": 1})
    job.wait(timeout=60)
    assert RQJob.fetch(job.id, connection=redis).return_value() == {"a": 1}


@pytest.mark.worker
@pytest.mark.parametrize("serializer", ["rqshop.serializer.Reversed"])
def test_a_serializer_of_the_applications_own_is_used_throughout(url, start_worker, tag, starts, serializer):
    with backgrounded.using("rq", url=url, serializer=serializer) as handler:
        queue = "reversed"
        waiting = Item(tag).backgrounded(queue="nobody").echo()
        assert waiting.cancel()
        start_worker(handler.worker_command([queue]))
        assert Item(tag).backgrounded(queue=queue).echo([1, (2,)]).result(timeout=60) == [1, (2,)]
        nested = Item(tag).backgrounded(queue=queue).call_another(f"{tag}-nested", queue).result(timeout=60)
        assert backgrounded.job(nested).result(timeout=60) == f"from {tag}"
        kept = Item(tag).backgrounded(queue=queue).die(9)
        assert kept.wait(timeout=60) == "kept"
        [found] = [one for one in handler.kept() if one.id == kept.id]
        assert found.wire["method"] == "die"
        handler.forget(kept.id)
        assert kept.state == "unknown"


def test_a_serializer_that_no_worker_could_find_has_no_command(url):
    class Local:
        def dumps(self, obj): ...
        def loads(self, data): ...

    with pytest.raises(backgrounded.ConfigurationError, match="by name"):
        RQHandler(url, serializer=Local()).worker_command()


def test_a_connection_is_given_back_as_it_was(url):
    connection = Redis.from_url(url, socket_timeout=7)
    assert RQHandler(connection=connection).connection is connection
    assert connection.connection_pool.connection_kwargs["socket_timeout"] == 7
