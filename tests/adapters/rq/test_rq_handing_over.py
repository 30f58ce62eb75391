"""What does a hand-over cost, and what is known when it fails?"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import zlib
from urllib.parse import urlsplit

import backgrounded
import pytest
from backgrounded import BatchError, ConfigurationError, Duplicate, EnqueueError, InvalidOption, Unique
from backgrounded_rq import RQHandler
from redis import Redis
from redis.connection import Connection
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue
from rq.job import Job as RQJob
from rqshop.jobs import Item, add

import servers
from cutting_proxy import cutting_proxy
from processes import forked, in_the_middle
from waiting import eventually


class Counting(Connection):
    """Counts the times that something is sent: one for a command, one for a whole pipeline."""

    trips = 0

    def send_packed_command(self, command, check_health=True):
        type(self).trips += 1
        return super().send_packed_command(command, check_health)


@pytest.fixture
def counted(url):
    connection = Redis.from_url(url, connection_class=Counting)
    connection.ping()
    yield connection
    connection.close()


@contextlib.contextmanager
def trips(times: int):
    before = Counting.trips
    yield
    assert Counting.trips - before == times


class Waiting(Connection):
    """Counts the times that an answer was awaited in vain, for the timeout of the connection."""

    in_vain = 0

    def read_response(self, *args, **words):
        try:
            return super().read_response(*args, **words)
        except RedisTimeoutError:
            type(self).in_vain += 1
            raise


@contextlib.contextmanager
def waits(times: int):
    """So many timeouts pass inside the block; how long they take on a machine that is busy says nothing."""
    before = Waiting.in_vain
    yield
    assert Waiting.in_vain - before == times


@pytest.fixture
def emptied(redis):
    yield redis
    redis.delete("rq:queue:nobody")


@pytest.fixture
def broken(base_url):
    """A database in which one command of each hand-over fails, and its URL."""
    url = f"{base_url}/9"
    with Redis.from_url(url) as redis:
        redis.set("rq:queues", "a string")
        yield redis, url
        redis.flushdb()


def send_five() -> None:
    with backgrounded.batch():
        for _ in range(5):
            Item("x").backgrounded(queue="cut").echo()


def send_with(jobs: list, queue: str, *natives: dict | None) -> None:
    """A batch with a call for each of these words of RQ's. Its jobs are in the list, whatever becomes of them."""
    with backgrounded.batch():
        for native in natives:
            jobs.append(Item("x").backgrounded(queue=queue, native=native).echo())


def test_a_thousand_calls_are_one_round_trip(counted, redis):
    with backgrounded.using("rq", connection=counted):
        backgrounded.later(add, queue="trips")(0, 0)
        with trips(1), backgrounded.batch():
            for number in range(1000):
                backgrounded.later(add, queue="trips")(number, 1)
        with trips(3):
            assert backgrounded.later(add, queue="trips").starmap((n, 1) for n in range(2500)).sent == 2500
        with trips(1):
            backgrounded.later(add, queue="trips", delay=100).starmap((number, 1) for number in range(1000))
    assert redis.llen("rq:queue:trips") == 3501
    assert redis.zcard("rq:scheduled:trips") == 1000
    redis.delete("rq:scheduled:trips", "rq:queue:trips")


def test_a_call_costs_no_more_round_trips_than_rqs_own(counted, emptied):
    queue = Queue("nobody", connection=counted)
    queue.enqueue("shop.add", 1, 2)
    with trips(2):
        queue.enqueue("shop.add", 1, 2)
    with backgrounded.using("rq", queue=queue):
        with trips(1):
            backgrounded.later(add)(1, 2)
        with trips(1):
            backgrounded.later(add, delay=100)(1, 2)
        with trips(2):
            backgrounded.later(add, unique=f"trips-{time.monotonic_ns()}")(1, 2)


def test_what_was_refused_a_connection_was_not_sent():
    with backgrounded.using("rq", url=f"redis://127.0.0.1:{servers.free_port()}/0"):
        with pytest.raises(EnqueueError) as failed:
            Item("x").backgrounded.echo()
        assert failed.value.uncertain is False
        assert failed.value.__cause__ is not None
        with pytest.raises(EnqueueError) as failed:
            Item("x").backgrounded(unique="x").echo()
        assert failed.value.uncertain is False
        with pytest.raises(BatchError) as batch:
            send_five()
        assert len(batch.value.unsent) == 5
        assert not batch.value.uncertain


@pytest.mark.parametrize("url", ["redis://no-such-host.invalid:6379/0", "unix:///no/such/socket"])
def test_a_place_that_does_not_exist_is_certain_too(url):
    with backgrounded.using("rq", url=url), pytest.raises(EnqueueError) as failed:
        Item("x").backgrounded.echo()
    assert failed.value.uncertain is False


def test_a_server_that_says_no_is_certain(redis, tag):
    """It refuses one command before the EXEC, and with it all of them."""
    redis.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-rpush")
    url = _url_of(redis).replace("//", "//reader:secret@")
    with backgrounded.using("rq", url=url), pytest.raises(EnqueueError, match="NoPermission") as failed:
        Item("x").backgrounded(queue=tag, unique=tag).echo()
    assert failed.value.uncertain is False
    assert not redis.exists(f"backgrounded:unique:{tag}", f"rq:queue:{tag}")


def test_a_transaction_that_fails_in_its_middle_is_uncertain(broken, tag):
    """Redis takes back none of its commands: the job is in its queue, and runs."""
    redis, url = broken
    with backgrounded.using("rq", url=url), pytest.raises(EnqueueError, match="WRONGTYPE") as failed:
        Item("x").backgrounded(queue="nobody", unique=tag).echo()
    assert failed.value.uncertain is True
    [there] = redis.lrange("rq:queue:nobody", 0, -1)
    assert redis.get(f"backgrounded:unique:{tag}") == there


def test_a_batch_that_fails_in_its_middle_is_unknown(broken):
    redis, url = broken
    with backgrounded.using("rq", url=url), pytest.raises(BatchError) as failed:
        send_five()
    assert [id.decode() for id in redis.lrange("rq:queue:cut", 0, -1)] == list(failed.value.unknown)
    assert (failed.value.sent, failed.value.unsent) == ((), ())


@pytest.mark.parametrize("wrong", [{"repeat": "x"}, {"repeat": 3}, {"rate_limit": "x"}, {"depends_on": [None]}])
def test_a_word_that_rq_cannot_read_sends_nothing_of_its_batch(handler, redis, tag, wrong):
    parent = Item("x").backgrounded(queue="nobody").echo()
    jobs = []
    with pytest.raises(InvalidOption):
        send_with(jobs, tag, None, {"depends_on": parent.id}, wrong)
    assert [job.state for job in jobs] == ["dropped", "dropped"]
    assert not redis.exists(*(RQJob.key_for(job.id) for job in jobs))
    assert parent.cancel()


def test_a_batch_that_fails_on_its_way_says_what_became_of_each(handler, redis, tag):
    """Redis refuses one of them, when all but that and the last have gone."""
    redis.set(RQJob.key_for(f"{tag}-bad"), "no job")
    parent = Item("x").backgrounded(queue="nobody").echo()
    jobs = []
    after = {"depends_on": parent.id}
    with pytest.raises(BatchError) as failed:
        send_with(jobs, tag, None, after, {"depends_on": f"{tag}-bad"}, after, None)
    first, waiting, unknown, unsent, second = (job.id for job in jobs)
    assert failed.value.sent == (first, waiting, second)
    assert failed.value.unknown == (unknown,)
    assert failed.value.unsent == (unsent,)
    assert [job.state for job in jobs] == ["queued", "queued", "unknown", "unsent", "queued"]
    assert [id.decode() for id in redis.lrange(f"rq:queue:{tag}", 0, -1)] == [first, second]
    assert not redis.exists(RQJob.key_for(unsent)), "what is unsent does not run"
    for job in (parent, jobs[0], jobs[1], jobs[4]):
        assert job.cancel() is True


def test_a_batch_whose_transaction_was_lost_has_not_sent_what_follows_it(url, redis, tag):
    with cutting_proxy(urlsplit(url).port) as proxy, backgrounded.using("rq", url=f"redis://127.0.0.1:{proxy.port}/0"):
        parent = Item("x").backgrounded(queue=tag).echo()
        proxy.probability = 1.0
        jobs = []
        with pytest.raises(BatchError) as failed:
            send_with(jobs, tag, {"depends_on": parent.id}, None)
    assert (failed.value.unsent, failed.value.unknown) == ((jobs[0].id,), (jobs[1].id,))
    assert not redis.exists(RQJob.key_for(jobs[0].id))
    redis.delete(f"rq:queue:{tag}")


def test_a_dependency_may_stand_in_the_same_batch(handler, redis, tag):
    with backgrounded.batch():
        parent = Item("x").backgrounded(queue=tag).echo()
        child = Item("x").backgrounded(queue=tag, native={"depends_on": parent.id}).echo()
    assert redis.lrange(f"rq:queue:{tag}", 0, -1) == [parent.id.encode()]
    assert redis.zscore(f"rq:deferred:{tag}", child.id) is not None
    assert child.cancel()
    assert parent.cancel()


def test_a_lost_reply_is_uncertain_and_silent_duplicates_are_none(url, redis):
    queue = "cut"
    with cutting_proxy(urlsplit(url).port) as proxy, backgrounded.using("rq", url=f"redis://127.0.0.1:{proxy.port}/0"):
        Item("x").backgrounded(queue=queue).echo()
        redis.delete(f"rq:queue:{queue}")
        proxy.probability = 0.1
        sent, errors = set(), []
        for number in range(500):
            try:
                sent.add(Item("x").backgrounded(queue=queue).echo(number).id)
            except EnqueueError as error:
                errors.append(error)
        assert proxy.cuts >= 20, "the fault did not happen"
        assert len(errors) == proxy.cuts
        assert all(error.uncertain for error in errors)
    there = [id.decode() for id in redis.lrange(f"rq:queue:{queue}", 0, -1)]
    redis.delete(f"rq:queue:{queue}")
    assert len(there) == len(set(there))
    assert sent <= set(there)
    assert len(there) == 500, "each of those whose reply was lost had arrived"


def test_a_batch_whose_reply_was_lost_is_unknown(url, redis):
    with cutting_proxy(urlsplit(url).port) as proxy, backgrounded.using("rq", url=f"redis://127.0.0.1:{proxy.port}/0"):
        Item("x").backgrounded(queue="cut").echo()
        proxy.probability = 1.0
        with pytest.raises(BatchError) as failed:
            send_five()
        assert len(failed.value.unknown) == 5
        assert failed.value.uncertain
    redis.delete("rq:queue:cut")


def test_a_unique_key_is_not_given_back_when_the_reply_was_lost(url, redis, tag):
    with cutting_proxy(urlsplit(url).port) as proxy, backgrounded.using("rq", url=f"redis://127.0.0.1:{proxy.port}/0"):
        Item("x").backgrounded(queue="cut").echo()
        proxy.probability = 1.0
        with pytest.raises(EnqueueError):
            Item("x").backgrounded(queue="cut", unique=tag).echo()
        proxy.probability = 0.0
        with pytest.raises(Duplicate) as duplicate:
            Item("x").backgrounded(queue="cut", unique=tag).echo()
        assert duplicate.value.existing_id.encode() in redis.lrange("rq:queue:cut", 0, -1)
    redis.delete("rq:queue:cut")


def test_a_fork_in_the_middle_of_a_call_of_another_thread_does_not_hold_the_child_up(url, emptied):
    with backgrounded.using("rq", url=url) as handler:
        call = Item("x").backgrounded(queue="nobody").echo
        with in_the_middle(call, handler.connection.connection_pool):
            assert forked(call) == 0
    assert emptied.llen("rq:queue:nobody") == 2


def test_a_frozen_server_costs_the_timeout_and_no_more():
    with servers.redis() as server:
        with backgrounded.using("rq", url=f"{server.url}/0", enqueue_timeout=1) as handler:
            handler.connection.connection_pool.connection_class = Waiting
            Item("x").backgrounded.echo()
            server.freeze()
            try:
                for call in (Item("x").backgrounded.echo, Item("x").backgrounded(unique="frozen").echo, send_five):
                    with waits(1), pytest.raises(EnqueueError):
                        call()
            finally:
                server.thaw()
        with backgrounded.using("rq", url=f"{server.url}/0", enqueue_timeout=1) as handler:
            handler.connection.connection_pool.connection_class = Waiting
            server.freeze()
            try:
                with waits(1), pytest.raises(EnqueueError):  # also when it has to connect first
                    Item("x").backgrounded.echo()
            finally:
                server.thaw()


@pytest.fixture
def slow(url):
    """A proxy to the server, whose answers can be made to come late."""
    with cutting_proxy(urlsplit(url).port) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("pause", "options"),
    [(0.8, {}), (0.3, {"unique": "slow"}), (0.3, {"native": {"depends_on": "abc"}})],
)
def test_a_server_that_is_slow_with_each_answer_costs_the_timeout_and_no_more(slow, tag, pause, options):
    """Connecting alone takes several answers, and redis-py has a timeout for each."""
    with backgrounded.using("rq", url=f"redis://127.0.0.1:{slow.port}/1", enqueue_timeout=2):
        slow.pause = pause
        for _ in range(2):
            before = time.monotonic()
            with contextlib.suppress(EnqueueError, Duplicate):  # the faster one may make it
                Item("x").backgrounded(queue=tag, **options).echo()
            assert time.monotonic() - before < 3


def test_who_asks_has_the_whole_time_for_each_hand_over(slow, redis, tag):
    """The time of one is not that of the next, nor that of a question."""
    with backgrounded.using("rq", url=f"redis://127.0.0.1:{slow.port}/0", enqueue_timeout=2):
        Item("x").backgrounded(queue=tag).echo()
        slow.pause = 0.6
        jobs = [Item("x").backgrounded(queue=tag).echo() for _ in range(4)]
        assert jobs[0].state == "queued"
    redis.delete(f"rq:queue:{tag}")


def test_an_answer_that_came_too_late_is_not_taken_for_the_next(slow, redis, tag):
    with backgrounded.using("rq", url=f"redis://127.0.0.1:{slow.port}/0", enqueue_timeout=0.5) as handler:
        Item("x").backgrounded(queue=tag).echo()
        slow.pause = 0.6
        with pytest.raises(EnqueueError) as failed:
            Item("x").backgrounded(queue=tag).echo()
        assert failed.value.uncertain
        slow.pause = 0.0
        time.sleep(0.7)
        assert Item("x").backgrounded(queue=tag).echo().state == "queued"
        assert handler.connection.echo("hello") == b"hello"
    assert redis.llen(f"rq:queue:{tag}") == 3
    redis.delete(f"rq:queue:{tag}")


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_each_kind_of_connection_shares_the_time_of_its_hand_over(scheme, tmp_path):
    with _silence(f"{scheme}://{tmp_path}/redis") as url, backgrounded.using("rq", url=url, enqueue_timeout=1):
        before = time.monotonic()
        with pytest.raises(EnqueueError):
            Item("x").backgrounded.echo()
        assert 0.9 < time.monotonic() - before < 2.5, "reading a machine's certificates takes its time, too"


@contextlib.contextmanager
def _silence(url: str):
    """Who listens there takes connections, and says nothing."""
    place = urlsplit(url)
    is_unix = place.scheme == "unix"
    with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as listener:
        listener.bind(place.path if is_unix else ("127.0.0.1", 0))
        listener.listen()
        yield url if is_unix else f"{place.scheme}://127.0.0.1:{listener.getsockname()[1]}/0"


# -- unique


@pytest.fixture
def key(tag) -> str:
    return f"backgrounded:unique:{tag}"


def test_of_twenty_threads_one_gets_the_key(handler, redis, tag):
    outcomes: list[object] = []
    barrier = threading.Barrier(20)

    def race() -> None:
        with backgrounded.using("rq", url=_url_of(redis)):
            barrier.wait()
            try:
                outcomes.append(Item(tag).backgrounded(queue=tag, unique=tag).echo().id)
            except Duplicate as duplicate:
                outcomes.append(duplicate)

    threads = [threading.Thread(target=race) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert redis.lrange(f"rq:queue:{tag}", 0, -1) == [winner.encode()]
    assert {outcome.existing_id for outcome in outcomes if isinstance(outcome, Duplicate)} == {winner}
    assert len(outcomes) == 20


def test_the_key_lives_as_long_as_it_was_asked_for(handler, redis, tag, key):
    Item(tag).backgrounded(queue=tag, unique=Unique(tag, ttl=100)).echo()
    assert 40_000 < redis.pttl(key) <= 100_000
    Item(tag).backgrounded(queue=tag, unique=Unique(f"{tag}-2", ttl=0.2)).echo()
    assert redis.pttl(f"{key}-2") <= 200
    eventually(lambda: redis.get(f"{key}-2") is None)
    Item(tag).backgrounded(queue=tag, unique=f"{tag}-2").echo()


def test_the_first_job_is_returned_when_that_was_asked_for(handler, tag):
    first = Item(tag).backgrounded(queue=tag, unique=tag).echo()
    assert Item(tag).backgrounded(queue=tag, unique=Unique(tag, on_conflict="return")).echo().id == first.id


@pytest.mark.worker
@pytest.mark.parametrize(("method", "arguments"), [("echo", ()), ("fail", ()), ("die", (3,))])
def test_the_key_is_free_when_the_job_has_ended(handler, kind, redis, tag, key, method, arguments):
    job = getattr(Item(tag).backgrounded(queue=kind, unique=tag), method)(*arguments)
    job.wait(timeout=60)
    assert Item(tag).backgrounded(queue="nobody", unique=tag).echo().id != job.id
    redis.delete("rq:queue:nobody")


@pytest.mark.worker
def test_the_key_is_free_when_the_job_is_kept_or_expired(handler, kind, redis, tag, key):
    kept = Item(tag).backgrounded(queue="nobody", unique=tag).echo()
    _change(redis, kept.id, "rqshop.jobs:Item", "rqshop.jobs:Gone")
    redis.rpoplpush("rq:queue:nobody", f"rq:queue:{kind}")
    assert kept.wait(timeout=60) == "kept"
    assert redis.get(key) is None
    expired = Item(tag).backgrounded(queue="nobody", unique=tag, expires=0.1).echo()
    time.sleep(0.15)
    redis.rpoplpush("rq:queue:nobody", f"rq:queue:{kind}")
    assert expired.wait(timeout=60) == "expired"
    assert redis.get(key) is None


@pytest.mark.worker
def test_the_key_can_be_free_from_the_start_on(handler, kind, redis, tag, key, starts):
    job = Item(tag).backgrounded(queue=kind, unique=Unique(tag, until="start")).sleep(1.0)
    eventually(lambda: starts(tag))
    other = Item(tag).backgrounded(queue="nobody", unique=tag).echo()
    assert job.result(timeout=60) == "slept"
    assert redis.get(key) == other.id.encode(), "the end of one job does not give back the key of another"
    other.cancel()


def test_the_key_is_free_after_a_cancellation(handler, redis, tag, key):
    for options in ({}, {"delay": 100}):
        job = Item(tag).backgrounded(queue=tag, unique=tag, **options).echo()
        assert job.cancel() is True
        assert job.state == "cancelled"
        assert redis.get(key) is None
        assert job.cancel() is False


def test_a_key_whose_job_is_gone_is_free(handler, redis, tag, key):
    """Removed by RQ's own commands, such as `rq empty`."""
    Item(tag).backgrounded(queue=tag, unique=tag).echo()
    Queue(tag, connection=redis).empty()
    Item(tag).backgrounded(queue=tag, unique=tag).echo()


def test_a_key_that_was_just_taken_is_not(handler, redis, tag, key):
    """Between the claim and the hand-over the job is not there yet."""
    redis.set(key, "f" * 32, px=9_000)
    with pytest.raises(Duplicate):
        Item(tag).backgrounded(queue=tag, unique=tag).echo()


def test_a_hand_over_that_rq_refuses_gives_the_key_back(handler, redis, tag, key):
    with pytest.raises(InvalidOption):
        Item(tag).backgrounded(queue=tag, unique=tag, native={"depends_on": 5}).echo()
    assert redis.get(key) is None


def _url_of(redis: Redis) -> str:
    settings = redis.connection_pool.connection_kwargs
    return f"redis://{settings['host']}:{settings['port']}/{settings['db']}"


def _change(redis: Redis, id: str, old: str, new: str) -> None:
    data = zlib.decompress(redis.hget(f"rq:job:{id}", "data"))
    assert len(old) == len(new)
    redis.hset(f"rq:job:{id}", "data", zlib.compress(data.replace(old.encode(), new.encode())))


# -- what is configured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://localhost"}, "redis://localhost"),
        ({"url": "redis://localhost", "enqueue_timeout": 0}, "enqueue_timeout"),
        ({"url": "redis://localhost", "enqueue_timeout": True}, "enqueue_timeout"),
        ({"url": "redis://localhost", "queue": ""}, "queue"),
        ({"url": "redis://localhost", "queue": 3}, "queue"),
        ({"url": "redis://localhost", "serializer": "no.such.Serializer"}, "serializer"),
        ({"url": "redis://localhost", "serializer": object()}, "serializer"),
        ({"url": "redis://localhost", "priorities": {5: "x"}}, "not 5"),
        ({"url": "redis://localhost", "priorities": {10: "x"}}, "0 to 9"),
        ({"url": "redis://localhost", "priorities": {True: "x"}}, "0 to 9"),
        ({"url": "redis://localhost", "priorities": {8: ""}}, "name"),
        ({"url": "redis://localhost", "priorities": {8: "x", 2: "x"}}, "same name"),
        ({"url": "redis://localhost", "connection": Redis()}, "one of"),
        ({"connection": Redis(decode_responses=True)}, "decode_responses"),
        ({"connection": Redis(), "enqueue_timeout": 3}, "enqueue_timeout"),
        ({"connection": "redis://localhost"}, "redis.Redis"),
        ({"queue": Queue(connection=Redis(), is_async=False)}, "is_async"),
        ({"queue": Queue(connection=Redis()), "serializer": "json"}, "serializer"),
    ],
)
def test_what_cannot_work_is_refused_at_configure(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        RQHandler(**arguments)


def test_an_unknown_word_is_refused_at_configure():
    with pytest.raises(ConfigurationError, match="colour"), backgrounded.using("rq", colour="red"):
        pass
