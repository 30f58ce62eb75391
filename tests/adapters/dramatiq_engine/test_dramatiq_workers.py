"""What do Dramatiq's workers do with our jobs: which queues, what they say, how jobs die, who finds what is left?"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import backgrounded
import pytest
import redis
from backgrounded import JobFailed, Retry
from backgrounded.testing.probe import Probe, events
from backgrounded_dramatiq import DramatiqHandler, _message
from dramatiqshop.jobs import Item
from dramatiqtools import send_wire, starts, wire

from cutting_proxy import cutting_proxy
from servers import redis as server
from slow_retry import attempts_on_a_slow
from waiting import eventually

pytestmark = pytest.mark.worker
CANARY = "canary-4711"
OURS = "dramatiq backgrounded_dramatiq.worker"


# -- an application that has a broker of its own


def test_a_plain_worker_consumes_the_listed_queues_and_runs_the_applications_actors(handler, shop_worker, oracle):
    """Its module configures before it sets its broker, and nothing is declared by hand."""
    from dramatiqshop.broker import greet

    greet.send(oracle + ".greeting")
    jobs = [Item(oracle).backgrounded(queue=queue).give([1, (2,)]) for queue in ("listed", None, "shop")]
    unheard = Item(oracle).backgrounded(queue="unlisted").give(1)
    assert [job.result(timeout=60) for job in jobs] == [[1, (2,)]] * 3
    assert [starts(oracle, job.id)[0].job["queue"] for job in jobs] == ["listed", "default", "shop"]
    eventually(Path(oracle + ".greeting").exists)
    assert unheard.state == "queued"
    assert unheard.cancel()


def test_a_worker_of_another_queue_is_told_on_its_command_line(handler, start_worker, oracle):
    with start_worker("-Q", "asked", "asked-too"):
        for queue in ("asked", "asked-too"):
            assert Item(oracle).backgrounded(queue=queue).give(1).result(timeout=60) == 1
        listed = Item(oracle).backgrounded(queue="unheard").give(1)
        assert Item(oracle).backgrounded(queue="asked", delay=0.2).give(2).result(timeout=60) == 2
    assert listed.state == "queued"
    assert listed.cancel()


def test_a_nested_call_goes_back_where_its_job_came_from(handler, start_worker, oracle):
    """This worker has configured nothing: our module is named on its command line, after the application's."""
    before = "dramatiq dramatiqshop.broker backgrounded_dramatiq.worker"
    with start_worker("-Q", "nested", before=before, BACKGROUNDED_APP="dramatiqshop.jobs"):
        job = Item(oracle).backgrounded(queue="nested").nest("nested")
        assert backgrounded.job(job.result(timeout=60)).result(timeout=60) == "nested"


def test_many_nested_calls_are_one_trip_over_the_worker_s_connections(handler, shop_url, start_worker, oracle):
    """This worker has configured nothing."""
    before = "dramatiq dramatiqshop.broker backgrounded_dramatiq.worker"
    with (
        start_worker("-Q", "nested", before=before, BACKGROUNDED_APP="dramatiqshop.jobs"),
        redis.Redis.from_url(shop_url) as store,
    ):
        trips = bulk_trips(store)
        jobs = [Item(oracle).backgrounded(queue="nested").nest_many("unheard-nested", 200) for _ in range(2)]
        assert max(job.result(timeout=60) for job in jobs) < 5
        assert bulk_trips(store) - trips == 2
        assert store.llen("shop:unheard-nested") == 400
        store.delete("shop:unheard-nested", "shop:unheard-nested.msgs")


def bulk_trips(store: redis.Redis) -> int:
    """How often several messages came together so far: the first of them brings Dramatiq's script."""
    return int(store.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"])


def test_several_jobs_run_at_once_in_one_process_and_share_nothing(handler, start_worker, oracle, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with start_worker("-Q", "together", "--threads", "4"):
        jobs = {
            name: Item(oracle).backgrounded(queue="together", timeout=timeout).meet(str(meeting), name, 4)
            for name, timeout in {"a": 60, "b": None, "c": 90, "d": None}.items()
        }
        told = {name: job.result(timeout=60) for name, job in jobs.items()}
    assert {name: found[:2] for name, found in told.items()} == {name: [name, job.id] for name, job in jobs.items()}
    assert len({found[2] for found in told.values()}) == 1
    assert len({found[3] for found in told.values()}) == 4
    assert [name for name, found in told.items() if found[4] is None] == ["b", "d"]
    assert told["c"][4] - told["a"][4] == pytest.approx(30, abs=5)


def test_a_coroutine_is_awaited_without_dramatiqs_middleware_for_it(handler, shop_worker, oracle):
    jobs = [Item(oracle).backgrounded.agive(number) for number in range(3)]
    assert [job.result(timeout=60) for job in jobs] == [0, 1, 2]


# -- what they say


def test_arguments_are_nowhere_but_in_the_message(handler, shop_worker, oracle, caplog):
    """The worker was started with --verbose."""
    caplog.set_level("DEBUG")
    item = Item(oracle)
    jobs = [
        item.backgrounded.give(CANARY, CANARY),
        item.backgrounded.fail("no luck", CANARY),
        item.backgrounded(retry=Retry(1, wait=0.2)).fail("no luck", CANARY),
        item.backgrounded(expires=0.000_001).give(1, CANARY),
        item.backgrounded(delay=1).give(2, CANARY),
    ]
    for job in jobs:
        job.wait(timeout=60)
    eventually(lambda: shop_worker.log.count("Retries exceeded") >= 2)
    log = shop_worker.log
    assert "Received message dramatiqshop.jobs.Item.give() with id" in log
    assert "Failed to process message dramatiqshop.jobs.Item.fail() with unhandled exception" in log
    assert "dramatiqshop.jobs.Item.fail is tried again in 0.2 s: ValueError" in log
    assert "ValueError: no luck" in log
    assert (
        '"actor_name": "dramatiqshop.jobs.Item.fail", "args": [], "kwargs": {}, "options": {"backgrounded": "{' in log
    )
    assert CANARY not in f"{log}{caplog.text}{jobs!r}{[job.exception() for job in jobs[1:3]]}"


# -- settings of the application's, which are for its own actors


def test_no_setting_of_the_broker_changes_how_often_or_how_long_our_jobs_run(shop, shop_url, start_worker, oracle):
    with redis.Redis.from_url(shop_url) as store:
        before = set(store.scan_iter())  # of other tests
    with (
        backgrounded.using("dramatiq", broker=shop),
        start_worker("-Q", "strict", DRAMATIQSHOP_STRICT="yes", DRAMATIQSHOP_RESULTS=shop_url) as worker,
    ):
        long = Item(oracle).backgrounded(queue="strict").spin(2.5)
        bad = Item(oracle).backgrounded(queue="strict", retry=1).fail()
        assert long.result(timeout=60) == "spun"
        with pytest.raises(JobFailed, match="no luck"):
            bad.result(timeout=60)
        assert Item(oracle).backgrounded(queue="strict").give(1).result(timeout=60) == 1
    assert "Retrying message" not in worker.log
    with redis.Redis.from_url(shop_url) as store:
        others = [key for key in {*store.scan_iter()} - before if not key.startswith((b"shop:", b"backgrounded:"))]
    assert others == [], "Dramatiq has stored a result of ours"
    assert [event.attempt for event in starts(oracle, bad.id)] == [1, 2]


@pytest.mark.parametrize("word", ["Retry", "SkipMessage", "Limit", "TimeLimitExceeded"])
def test_a_method_that_raises_a_word_of_dramatiqs_has_failed(handler, shop_worker, oracle, word):
    job = Item(oracle).backgrounded.say_in_dramatiq(word)
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=60)
    assert failed.value.type_name.startswith("dramatiq.")
    eventually(lambda: f"Retries exceeded for message '{job.id}'" in shop_worker.log)
    logged = shop_worker.log.rpartition(f"with id '{job.id}'")[2]
    assert "Failed to process message dramatiqshop.jobs.Item.say_in_dramatiq() with unhandled exception" in logged
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1
    assert len(starts(oracle, job.id)) == 1


# -- time limits


def test_a_limit_is_not_swallowed_by_what_bears_failing_requests(handler, shop_worker, oracle):
    job = Item(oracle).backgrounded(timeout=0.5).swallow()
    with pytest.raises(JobFailed, match=r"stopped after its timeout of 0\.5 seconds") as failed:
        job.result(timeout=60)
    assert failed.value.type_name == "TimeoutError"
    assert events(oracle, "cleaned up")
    assert Item(oracle).backgrounded.give(1).result(timeout=60) == 1


# -- delays


def test_a_long_delay_is_carried_in_hops_and_runs_once_and_on_time(handler, shop_worker, oracle, monkeypatch):
    """The first hop ends after a second: whoever takes the message then sends it on."""
    monkeypatch.setattr(_message, "LONGEST_HOP", 1.0)
    called = time.time()
    job = Item(oracle).backgrounded(delay=12).give(1)
    eventually(lambda: "Pushing message" in shop_worker.log and job.id in shop_worker.log)
    assert job.state == "scheduled"
    assert job.result(timeout=60) == 1
    (start,) = starts(oracle, job.id)
    assert 12 <= start.at - called < 25
    # Dramatiq's first process writes down what the others said, a moment later.
    received = f"Received message dramatiqshop.jobs.Item.give() with id '{job.id}'"
    eventually(lambda: shop_worker.log.count(received) == 2)


# -- deaths


def test_a_job_of_a_killed_worker_runs_again_on_a_broker_of_ours(shop_url, start_worker, oracle):
    url = f"{shop_url.rpartition('/')[0]}/1"
    handler = DramatiqHandler(url, heartbeat_timeout=3)
    with backgrounded.using(handler):
        job = Item(oracle).backgrounded(queue="killed").hang()
        for count in (1, 2):
            ours = {"BACKGROUNDED_URL": f"dramatiq+{handler.url}", "before": OURS}
            with start_worker("-Q", "killed", **ours) as worker:
                ready = time.time()
                eventually(lambda count=count: len(starts(oracle, job.id)) == count)
                worker.kill()
        assert job.state == "running"
        first, second = starts(oracle, job.id)
        assert second.at - max(ready, first.at) < handler.guarantees.recovery_s + 10
        assert second.attempt == 1
    handler.close()


def test_a_worker_that_lost_its_connection_for_a_moment_runs_all_that_it_had_taken(shop_url, start_worker, oracle):
    """Delayed jobs that it held, and what Redis had given it in answers that never came."""
    base, _, _ = shop_url.rpartition("/")
    direct = DramatiqHandler(f"{base}/4")
    with cutting_proxy(int(base.rpartition(":")[2]), mark=b"fetch") as between, backgrounded.using(direct):
        ours = {"BACKGROUNDED_URL": f"dramatiq+redis://127.0.0.1:{between.port}/4", "before": OURS}
        with start_worker("-Q", "cut", dramatiq_restart_delay="500", **ours) as worker:
            assert Item(oracle).backgrounded(queue="cut").give(0).result(timeout=60) == 0
            held = Item(oracle).backgrounded(queue="cut", delay=8).give(1)
            with redis.Redis.from_url(f"{base}/4") as store:
                eventually(lambda: store.llen("backgrounded:cut.DQ") == 0)
            between.probability = 1.0
            unheard = [Item(oracle).backgrounded(queue="cut").give(number) for number in (2, 3)]
            for queue in ("cut", "cut.DQ"):
                eventually(lambda queue=queue: f"of the queue '{queue}' are handed back" in worker.log)
            between.probability = 0.0
            assert [job.result(timeout=60) for job in (*unheard, held)] == [2, 3, 1]
    assert [len(starts(oracle, job.id)) for job in (*unheard, held)] == [1, 1, 1]
    direct.close()


def test_a_worker_that_is_asked_to_stop_finishes_its_job_and_hands_the_others_back(
    handler, start_worker, oracle, tmp_path
):
    gate = tmp_path / "gate"
    with start_worker("-Q", "stopping", DRAMATIQSHOP_STRICT="yes") as worker:  # which would interrupt actors
        job = Probe(oracle).backgrounded(queue="stopping").hold(str(gate))
        eventually(lambda: events(oracle, "holding"))
        after = [Item(oracle).backgrounded(queue="stopping").give(number) for number in range(3)]
        delayed = Item(oracle).backgrounded(queue="stopping", delay=1).give(3)
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Shutting down" in worker.log)
        time.sleep(1)  # it says so just before it tells its thread to take no more, and nothing afterwards
        gate.touch()
        assert worker.process.wait(60) == 0
    assert job.state == "succeeded"
    assert [other.state for other in after] == ["queued"] * 3
    with start_worker("-Q", "stopping"):
        assert sorted(other.result(timeout=20) for other in (*after, delayed)) == [0, 1, 2, 3]


def test_a_job_whose_record_cannot_be_reached_waits_and_then_runs_once(shop_url, start_worker, oracle):
    url = f"{shop_url.rpartition('/')[0]}/2"
    with server(appendonly="yes") as records:
        handler = DramatiqHandler(url, store=f"{records.url}/0")
        ours = {"BACKGROUNDED_URL": f"dramatiq+{handler.url}", "before": OURS}
        with backgrounded.using(handler):
            job = Item(oracle).backgrounded(queue="away").give(1)
            records.kill()  # before the worker is there: it cannot be quicker
            with start_worker("-Q", "away", **ours) as worker:
                eventually(lambda: "its record cannot be reached" in worker.log)
                records.start()
                assert job.result(timeout=60) == 1
        handler.close()
    assert len(starts(oracle, job.id)) == 1


def test_a_worker_that_cannot_reach_its_broker_says_the_rest_when_it_can(start_worker, oracle, tmp_path):
    """The broker is dead when a job has failed that has to be tried again."""
    gate = tmp_path / "gate"
    with server(appendonly="yes") as broker:
        handler = DramatiqHandler(f"{broker.url}/0")
        with backgrounded.using(handler), probe_worker(start_worker, handler) as worker:
            job = Probe(oracle).backgrounded(queue="away", retry=1).hold(str(gate), failures=9)
            eventually(lambda: events(oracle, "holding"))
            broker.kill()
            gate.touch()
            eventually(lambda: "the broker cannot be reached, and is tried again" in worker.log)
            broker.start()
            assert job.wait(timeout=60) == "failed"
        handler.close()
    assert {event.attempt for event in events(oracle, "holding")} == {1, 2}


def test_a_retry_on_a_redis_that_is_slow_to_answer_is_one(shop_url, start_worker, tmp_path):
    with server() as broker:
        handler = DramatiqHandler(f"{broker.url}/0", store=shop_url)
        with backgrounded.using(handler), probe_worker(start_worker, handler):
            assert attempts_on_a_slow(broker, "away", tmp_path) == [1, 2, 3]
        handler.close()


def probe_worker(start_worker: Any, handler: DramatiqHandler) -> Any:
    """A worker of the queue "away", on a broker of ours."""
    ours = {"BACKGROUNDED_URL": f"dramatiq+{handler.url}", "before": OURS}
    return start_worker("-Q", "away", **ours, BACKGROUNDED_APP="backgrounded.testing.probe")


# -- what was set aside


def test_a_replayed_job_that_is_kept_again_before_it_is_taken_out_stays_kept(handler, oracle):
    job = Item(oracle).backgrounded(queue="nobody").give(1)
    way, message = handler.broker.way, _message.Message(job.id, {}, "name", "nobody")
    way.keep(message, "the first time", "code")
    with way.take(job.id) as taken:
        way.keep(taken, "a worker was quicker", "code")
    assert [kept.reason for kept in handler.kept()] == ["a worker was quicker"]
    handler.forget(job.id)
    assert list(handler.kept()) == []


def test_what_is_kept_can_be_looked_at_replayed_and_forgotten(handler, shop_worker, oracle):
    kept: list[str] = []
    for _ in range(2):
        kept.append(send_wire(handler, wire(oracle, method="nope")))
        eventually(lambda: handler.state(kept[-1]) == "kept")
    assert [item.id for item in handler.kept()] == kept
    found = next(iter(handler.kept()))
    assert (found.name, found.wire["method"]) == ("dramatiqshop.jobs.Item.give", "nope")
    assert found.code
    assert "no public method" in found.reason
    for action in (handler.replay, handler.forget):
        with pytest.raises(backgrounded.ConfigurationError, match="No job 'nothing' is kept"):
            action("nothing")
    handler.forget(kept[0])
    assert [item.id for item in handler.kept()] == kept[1:]
    assert handler.state(kept[0]) == "unknown"
    handler.replay(kept[1])
    eventually(lambda: f"{kept[1]}" in shop_worker.log.rpartition("Received message")[2])
    eventually(lambda: handler.state(kept[1]) == "kept" and [item.id for item in handler.kept()] == kept[1:])
    handler.forget(kept[1])
    assert list(handler.kept()) == []
