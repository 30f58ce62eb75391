"""How often does a job run: when its method fails, when its worker dies, and when both happen?"""

from __future__ import annotations

import pytest
from backgrounded import JobFailed, NoResult, Retry
from redis import Redis
from rq import Queue
from rq.job import Job as RQJob
from rqshop.jobs import Item

from waiting import eventually

pytestmark = pytest.mark.worker


@pytest.mark.parametrize("retries", [0, 1, 3, 8])
def test_so_many_retries_make_one_run_more(handler, kind, tag, starts, retries):
    job = Item(tag).backgrounded(queue=kind, retry=retries).fail()
    with pytest.raises(JobFailed, match="no luck"):
        job.result(timeout=60)
    assert [attempt for attempt, _ in starts(tag)] == list(range(1, retries + 2))


def test_waits_are_not_early_and_not_more_than_asked_for(handler, kind, tag, starts):
    waits = [1, 0.4, 0]
    job = Item(tag).backgrounded(queue=kind, retry=Retry(3, wait=waits)).fail()
    with pytest.raises(JobFailed):
        job.result(timeout=60)
    moments = [moment for _, moment in starts(tag)]
    assert [attempt for attempt, _ in starts(tag)] == [1, 2, 3, 4]
    assert all(later - sooner >= wait for sooner, later, wait in zip(moments, moments[1:], waits, strict=False))


def test_retries_go_on_across_a_restart_of_the_worker(handler, url, start_worker, tag, starts):
    queue = f"restart-{tag}"
    job = Item(tag).backgrounded(queue=queue, retry=Retry(3, wait=1)).fail()
    command = handler.worker_command([queue])
    first = start_worker(command)
    eventually(lambda: len(starts(tag)) >= 2)
    first.stop()
    start_worker(command)
    with pytest.raises(JobFailed):
        job.result(timeout=60)
    assert [attempt for attempt, _ in starts(tag)] == [1, 2, 3, 4]


def test_a_job_whose_process_dies_runs_again(handler, kind, tag, starts):
    assert Item(tag).backgrounded(queue=kind).die(2).result(timeout=60) == "survived"
    assert [attempt for attempt, _ in starts(tag)] == [1, 1, 1]


@pytest.mark.parametrize(("wait", "deaths"), [(0, 0), (1, 0), (0, 2)])
def test_a_process_that_dies_when_it_has_said_what_comes_next_makes_no_attempt_twice(
    handler, start_worker, tag, starts, wait, deaths
):
    worker = start_worker([*handler.worker_command([tag]), "--verbose"], BACKGROUNDED_APP="rqshop.mortal")
    item = Item(tag).backgrounded(queue=tag, retry=Retry(2, wait=wait))
    with pytest.raises(JobFailed):
        item.fail_but_die_on(*range(1, deaths + 1)).result(timeout=60)
    assert item.echo(1).result(timeout=60) == 1
    assert worker.log.count("terminated unexpectedly") == deaths + 2
    assert [attempt for attempt, _ in starts(tag)] == [*[1] * deaths, 1, 2, 3, 1]


def test_a_job_that_kills_three_processes_is_kept_and_can_be_replayed(handler, kind, tag, starts, redis):
    job = Item(tag).backgrounded(queue=kind).die(3)
    with pytest.raises(NoResult, match="kept"):
        job.result(timeout=60)
    assert job.state == "kept"
    assert len(starts(tag)) == 3
    assert job.id in [kept.id for kept in handler.kept()]
    registry = Queue(kind, connection=redis).failed_job_registry
    assert redis.zscore(registry.key, job.id) == -1, "it must never leave the registry by itself"
    assert redis.ttl(RQJob.key_for(job.id)) == -1, "it must never expire"
    handler.replay(job.id)
    assert job.result(timeout=60) == "survived"
    assert len(starts(tag)) == 4


def test_others_go_on_beside_a_job_that_kills_its_process(handler, kind, tag):
    bad = Item(tag).backgrounded(queue=kind).die(3)
    good = [Item(f"{tag}-good").backgrounded(queue=kind).echo(number) for number in range(8)]
    assert [job.result(timeout=60) for job in good] == list(range(8))
    assert bad.wait(timeout=60) == "kept"


@pytest.mark.parametrize("dies_on", [1, 2, 3])
def test_deaths_are_counted_apart_from_failures(handler, kind, tag, starts, dies_on):
    job = Item(tag).backgrounded(queue=kind, retry=2).fail_but_die_on(dies_on)
    with pytest.raises(JobFailed):
        job.result(timeout=60)
    attempts = [attempt for attempt, _ in starts(tag)]
    assert len(attempts) == 4, "three runs that failed, one that died"
    assert sorted(set(attempts)) == [1, 2, 3]
    assert attempts[dies_on - 1] == attempts[dies_on], "the one that died does not count"


def test_the_mark_of_a_failure_does_not_outlive_it(handler, kind, tag, redis: Redis):
    """RQ's own `rq requeue` runs a failed job again: then what counts is how that run ended."""
    job = Item(tag).backgrounded(queue=kind).die(0)
    assert job.result(timeout=60) == "survived"
    failing = Item(tag).backgrounded(queue=kind).fail()
    assert failing.wait(timeout=60) == "failed"
    redis.hset(RQJob.key_for(failing.id), "data", redis.hget(RQJob.key_for(job.id), "data"))
    RQJob.fetch(failing.id, connection=redis).requeue()
    assert failing.result(timeout=60) == "survived"
    assert failing.state == "succeeded"


def test_leaving_the_process_is_a_failure_of_the_method(handler, kind, tag, starts):
    job = Item(tag).backgrounded(queue=kind).leave()
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=60)
    assert failed.value.type_name == "SystemExit"
    assert len(starts(tag)) == 1
