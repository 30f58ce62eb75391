"""What does the caller hold after a call, or after thousands?"""

# ruff: noqa: PT012 - it is the exit of a batch that raises, not one statement

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded import (
    BackgroundedError,
    BatchError,
    Call,
    CallError,
    ConfigurationError,
    Duplicate,
    EnqueueError,
    JobFailed,
    NoResult,
    Options,
    ResultTimeout,
    Unique,
    background,
    batch,
    later,
)
from backgrounded.handler import Feature, State, failure_record, result_of, wait_for_end
from backgrounded.handlers.memory import MemoryHandler

import shop.jobs
from shop import diary
from shop.models import User


@pytest.fixture(autouse=True)
def blank_diary() -> None:
    diary.lines.clear()


class Engine:
    """A bulk handler whose trips can be made to fail; it knows nothing of what became of jobs."""

    protocol: ClassVar[int] = 1
    features = frozenset({Feature.QUEUES, Feature.BULK, Feature.UNIQUE})

    def __init__(self, fail: Callable[[int, Sequence[Call]], None] | None = None) -> None:
        self.trips: list[int] = []
        self._fail = fail

    def enqueue(self, call: Call) -> str | None:
        return self.enqueue_many([call])[0]

    def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
        self.trips.append(len(calls))
        if self._fail is not None:
            self._fail(len(self.trips), calls)
        return [f"engine-{call.args[0] if call.args else ''}" for call in calls]


def down_on(*trips: int, uncertain: bool = False) -> Callable[[int, Sequence[Call]], None]:
    def fail(trip: int, calls: Sequence[Call]) -> None:
        if trip in trips:
            raise EnqueueError("the broker is down", uncertain=uncertain) from ConnectionRefusedError()

    return fail


# -- one job


def test_a_job_has_our_id_its_name_and_the_engines_id() -> None:
    backgrounded.configure(Engine)
    job = User().backgrounded.do_stuff(7)
    assert len(job.id) == 32
    assert (job.name, job.engine_id) == ("shop.models.User.do_stuff", "engine-7")
    assert repr(job) == f"<Job shop.models.User.do_stuff {job.id}>"
    assert backgrounded.job(job.id).engine_id is None
    assert len({User().backgrounded.do_stuff().id for _ in range(100)}) == 100


def test_the_state_is_asked_for_each_time(memory: MemoryHandler) -> None:
    job = User().backgrounded.do_stuff()
    delayed = User().backgrounded(delay=60).do_stuff()
    failing = User().backgrounded.fail()
    assert [job.state, delayed.state] == ["queued", "scheduled"]
    with pytest.raises(ValueError, match="no"):
        memory.run()
    assert [job.state, delayed.state, failing.state] == ["succeeded", "scheduled", "failed"]
    assert backgrounded.job(job.id).state == "succeeded"
    assert backgrounded.job("nobody").state == "unknown"
    assert str(job.state) == f"{job.state}" == "succeeded"


def test_a_result_comes_home_equal_also_by_its_id(memory: MemoryHandler) -> None:  # K185, K186, K189
    job = background(shop.jobs).give((1, {2}))
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    assert job.exception() is None
    memory.run()
    assert job.result() == backgrounded.job(job.id).result() == (1, {2})
    assert job.exception() is None
    assert job.wait(timeout=1) == "succeeded"
    nothing = background(shop.jobs).take()
    memory.run()
    assert nothing.result() is None


def test_a_failure_is_text_and_never_the_original_class(memory: MemoryHandler) -> None:  # K187
    job = User().backgrounded.fail("so it is")
    with pytest.raises(ValueError, match="so it is"):
        memory.run()
    with pytest.raises(JobFailed) as caught:
        job.result()
    assert (caught.value.type_name, caught.value.message) == ("ValueError", "so it is")
    assert "raise ValueError(message)" in (caught.value.traceback or "")
    assert isinstance(job.exception(), JobFailed)
    assert job.wait() == "failed"


def test_a_job_that_will_have_no_result_says_so(memory: MemoryHandler) -> None:
    job = User().backgrounded.do_stuff()
    assert job.cancel() is True  # K192
    assert job.cancel() is False
    assert (job.state, job.wait(), job.exception()) == ("cancelled", "cancelled", None)
    with pytest.raises(NoResult, match="cancelled"):
        job.result()
    with pytest.raises(NoResult):
        backgrounded.job("nobody").result(timeout=0)
    assert memory.run() == 0


def test_a_handler_without_results_or_cancelling_says_so() -> None:
    backgrounded.configure(Engine)
    job = User().backgrounded.do_stuff()
    assert job.state == "unknown"
    for ask in (job.result, job.wait, job.exception):
        with pytest.raises(NoResult, match="'Engine' keeps no results"):
            ask()
    with pytest.raises(BackgroundedError, match="cannot cancel"):
        job.cancel()
    with pytest.raises(ConfigurationError):
        backgrounded.job("x", handler="nothing")


def test_inline_jobs_remember_how_they_ended() -> None:
    backgrounded.configure("inline")
    assert User().backgrounded.do_stuff(2).result() == "xx"
    with pytest.raises(ValueError, match="no"), batch() as jobs:
        User().backgrounded.do_stuff(1)
        User().backgrounded.fail()
        User().backgrounded.do_stuff(3)
    assert [job.state for job in jobs] == ["succeeded", "failed", "unsent"]
    assert jobs[1].exception().type_name == "ValueError"


@pytest.mark.parametrize("size", [10**6, 10])
def test_a_stored_failure_is_bounded_text(size: int) -> None:
    record = failure_record(ValueError("x" * size))
    assert len(record["message"]) <= 16_384
    assert len(record["traceback"]) <= 16_384

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert failure_record(Mute())["type"].endswith("Mute")  # K124
    assert failure_record(ValueError())["message"] == ""


@pytest.mark.parametrize("outcome", [None, {"reason": "a result may look like this"}, [1]])
def test_the_result_of_a_job_that_succeeded_is_its_outcome(outcome: Any) -> None:
    assert result_of("i", State.SUCCEEDED, outcome) is outcome


@pytest.mark.parametrize(
    ("state", "outcome", "error", "said"),
    [
        (State.FAILED, {"type": "ValueError", "message": "no"}, JobFailed, "ValueError: no"),
        (State.FAILED, None, JobFailed, ""),
        (State.FAILED, ["what anybody wrote"], NoResult, "What is written down about the end of job i cannot be read."),
        (State.UNKNOWN, None, NoResult, "Nothing is known (any more) of job i."),
        (State.KEPT, {"reason": "It was\na test."}, NoResult, "Job i has no result: it is kept: It was?a test."),
        (State.KEPT, "what anybody wrote", NoResult, "Job i has no result: it is kept."),
        (State.EXPIRED, {"reason": "late"}, NoResult, "Job i has no result: it is expired."),
        (State.RUNNING, None, ResultTimeout, "Job i has not ended: it is running."),
    ],
)
def test_what_a_job_without_a_result_raises(state: State, outcome: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(said)}"):
        result_of("i", state, outcome)


@pytest.mark.parametrize("last", [State.SUCCEEDED, State.CANCELLED, State.UNKNOWN])
def test_a_job_is_waited_for_until_it_has_ended(last: State) -> None:
    found = iter([(State.QUEUED, None), (State.RUNNING, None), (last, 1), (State.RUNNING, 2)])
    assert wait_for_end(lambda: next(found), None) == (last, 1)


def test_a_job_is_waited_for_until_the_time_is_over_and_looked_at_once_at_least() -> None:
    looks = []
    began = time.monotonic()
    for timeout in (0, 0.05):
        assert wait_for_end(lambda: looks.append(1) or (State.RUNNING, None), timeout) == (State.RUNNING, None)  # type: ignore[func-returns-value]
    assert time.monotonic() - began >= 0.05
    assert 1 + 1 <= len(looks) <= 1 + 6, "a store is not asked all the time"


def test_a_hand_over_that_failed_reaches_the_caller_with_its_cause() -> None:  # K73, K74, K75
    backgrounded.configure(Engine(down_on(1)))
    with pytest.raises(EnqueueError, match="down") as caught:
        User().backgrounded.do_stuff()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert not isinstance(caught.value, CallError)
    assert User().backgrounded.do_stuff().engine_id is not None


# -- unique


def test_a_duplicate_raises_with_the_id_of_the_first(memory: MemoryHandler) -> None:  # K77, K78
    first = User().backgrounded(unique="k").do_stuff()
    with pytest.raises(Duplicate) as caught:
        User().backgrounded(unique="k").do_stuff()
    assert (caught.value.existing_id, caught.value.key) == (first.id, "k")
    assert isinstance(caught.value, CallError)
    same = User().backgrounded(unique=Unique("k", on_conflict="return")).do_stuff()
    assert (same.id, same.state) == (first.id, "queued")
    assert len(memory.calls) == 1
    memory.run()
    assert same.result() == "x"
    assert User().backgrounded(unique="k").do_stuff().id != first.id


def test_duplicates_in_a_batch(memory: MemoryHandler) -> None:
    with batch() as jobs:
        User().backgrounded(unique=Unique("k", on_conflict="return")).do_stuff()
        User().backgrounded(unique=Unique("k", on_conflict="return")).do_stuff()
    assert jobs[0].id == jobs[1].id == memory.calls[0].id
    with pytest.raises(Duplicate), batch() as jobs:
        User().backgrounded(unique="k").do_stuff()
        User().backgrounded.do_stuff()
    assert [job.state for job in jobs] == ["unsent", "unsent"]


# -- batch


def test_a_batch_sends_at_its_exit_a_thousand_a_trip() -> None:  # K115
    engine: Any = backgrounded.configure(Engine())
    with batch() as jobs:
        mine = [User().backgrounded.do_stuff(n) for n in range(2_500)]
        assert (engine.trips, {job.state for job in mine}) == ([], {"deferred"})
        assert len({job.id for job in mine}) == 2_500
    assert engine.trips == [1000, 1000, 500]
    assert [job.id for job in jobs] == [job.id for job in mine]
    assert [job.engine_id for job in mine] == [f"engine-{n}" for n in range(2_500)]


def test_an_empty_batch_sends_nothing() -> None:  # K119
    engine: Any = backgrounded.configure(Engine())
    with batch() as jobs:
        pass
    assert (jobs, engine.trips) == ([], [])


def test_a_handler_without_bulk_gets_them_one_by_one(memory: MemoryHandler) -> None:  # K117
    class Single(Engine):
        features = frozenset({Feature.QUEUES})

    engine: Any = backgrounded.configure(Single)
    with batch():
        for n in range(3):
            User().backgrounded.do_stuff(n)
    assert engine.trips == [1, 1, 1]
    assert memory.calls == []


def test_a_batch_mixes_handlers_methods_and_options(memory: MemoryHandler) -> None:  # K116
    other: Any = backgrounded.configure(Engine(), name="other")
    with batch() as jobs:
        User().backgrounded(delay=60).do_stuff(1)
        User().backgrounded(handler="other").do_stuff(2)
        User().backgrounded(queue="q").rename("x")
    assert [call.method for call in memory.calls] == ["do_stuff", "rename"]
    assert other.trips == [1]
    assert [job.state for job in jobs] == ["scheduled", "unknown", "queued"]


def test_an_exception_inside_sends_nothing(memory: MemoryHandler) -> None:
    with pytest.raises(RuntimeError), batch() as jobs:
        User().backgrounded.do_stuff()
        raise RuntimeError
    assert memory.calls == []
    assert [job.state for job in jobs] == ["dropped"]
    assert jobs[0].exception() is None
    assert jobs[0].wait() == "dropped"
    with pytest.raises(NoResult, match="dropped"):
        jobs[0].result()
    User().backgrounded.do_stuff()
    assert len(memory.calls) == 1, "the batch is over"


def test_an_inner_batch_joins_the_outer(memory: MemoryHandler) -> None:
    with batch() as outer:
        User().backgrounded.do_stuff(1)
        with batch() as inner:
            User().backgrounded.do_stuff(2)
        assert memory.calls == []
        assert [job.state for job in inner] == ["deferred"]
        with pytest.raises(RuntimeError), batch() as failed:
            User().backgrounded.do_stuff(3)
            raise RuntimeError
        User().backgrounded.do_stuff(4)
    assert [call.args for call in memory.calls] == [(1,), (2,), (4,)]
    assert (len(outer), len(inner), [job.state for job in failed]) == (3, 1, ["dropped"])


def test_a_batch_is_bounded_and_names_map(memory: MemoryHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backgrounded._runtime.BATCH_LIMIT == 10_000
    monkeypatch.setattr("backgrounded._runtime.BATCH_LIMIT", 3)
    with batch():
        for _ in range(3):
            User().backgrounded.do_stuff()
        with pytest.raises(CallError, match=r"later\(f\)\.map"):
            User().backgrounded.do_stuff()
    assert len(memory.calls) == 3


def test_a_call_error_inside_a_batch_shows_at_the_call(memory: MemoryHandler) -> None:
    with batch():
        User().backgrounded.do_stuff()
        with pytest.raises(CallError):
            User().backgrounded.do_stuff(1, 2)
    assert len(memory.calls) == 1


@pytest.mark.parametrize("uncertain", [False, True])
def test_a_trip_that_fails_tells_what_became_of_each(uncertain: bool) -> None:  # K118
    engine: Any = backgrounded.configure(Engine(down_on(2, uncertain=uncertain)))
    with pytest.raises(BatchError) as caught, batch() as jobs:
        for n in range(2_500):
            User().backgrounded.do_stuff(n)
    ids = [job.id for job in jobs]
    error = caught.value
    assert engine.trips == [1000, 1000]
    assert error.sent == tuple(ids[:1000])
    assert (error.unknown, error.unsent) == (
        (tuple(ids[1000:2000]), tuple(ids[2000:])) if uncertain else ((), tuple(ids[1000:]))
    )
    assert error.uncertain is uncertain
    assert isinstance(error.__cause__, EnqueueError)
    states = [job.state for job in jobs]
    assert states == ["unknown"] * 1000 + (["unknown"] * 1000 + ["unsent"] * 500 if uncertain else ["unsent"] * 1500)


def test_a_trip_that_went_in_part_tells_so() -> None:
    def partly(trip: int, calls: Sequence[Call]) -> None:
        ids = [call.id for call in calls]
        raise BatchError(ids[:1], ids[1:2], ids[2:])

    backgrounded.configure(Engine(partly))
    with pytest.raises(BatchError) as caught, batch() as jobs:
        for n in range(3):
            User().backgrounded.do_stuff(n)
    ids = [job.id for job in jobs]
    assert (caught.value.sent, caught.value.unsent, caught.value.unknown) == ((ids[0],), (ids[1],), (ids[2],))


def test_an_uncertain_job_asks_the_engine_which_may_know() -> None:
    class Remembers(MemoryHandler):
        def enqueue(self, call: Call) -> str | None:
            super().enqueue(call)
            raise EnqueueError("the reply was lost", uncertain=True)

        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            return [self.enqueue(call) for call in calls]

    handler: Any = backgrounded.configure(Remembers)
    with pytest.raises(BatchError), batch() as jobs:
        User().backgrounded.do_stuff()
    assert jobs[0].state == "queued"
    handler.run()
    assert jobs[0].result() == "x"


def test_a_deferred_job_waits_and_can_be_taken_back(memory: MemoryHandler) -> None:
    with batch() as jobs:
        first, second = User().backgrounded.do_stuff(1), User().backgrounded.do_stuff(2)
        for ask in (first.result, first.wait):
            with pytest.raises(ResultTimeout, match="deferred"):
                ask(timeout=0)
        assert first.exception() is None
        assert first.cancel() is True
    assert [call.id for call in memory.calls] == [second.id]
    assert [job.state for job in jobs] == ["cancelled", "queued"]


def test_a_batch_holds_for_awaited_tasks_and_not_for_other_threads(memory: MemoryHandler) -> None:
    async def call(n: int) -> None:
        await asyncio.sleep(0)
        User().backgrounded.do_stuff(n)

    async def main() -> None:
        with batch() as jobs:
            await call(1)
            await asyncio.gather(call(2), asyncio.create_task(call(3)))
            assert memory.calls == []
            await asyncio.to_thread(User().backgrounded.do_stuff, 4)
            assert [c.args for c in memory.calls] == [(4,)]
            thread = threading.Thread(target=User().backgrounded.do_stuff, args=(5,))
            thread.start()
            thread.join()
            assert [c.args for c in memory.calls] == [(4,), (5,)]
        assert sorted(c.args for c in memory.calls) == [(1,), (2,), (3,), (4,), (5,)]
        assert len(jobs) == 3

    asyncio.run(main())


def test_a_task_that_outlives_its_batch_loses_no_call(memory: MemoryHandler) -> None:
    async def late(go: asyncio.Event) -> None:
        await go.wait()
        User().backgrounded.do_stuff(2)

    async def main() -> None:
        go = asyncio.Event()
        with batch():
            task = asyncio.create_task(late(go))
            await asyncio.sleep(0)
        go.set()
        await task

    asyncio.run(main())
    assert [call.args for call in memory.calls] == [(2,)]


def test_two_tasks_have_two_batches(memory: MemoryHandler) -> None:
    async def send(n: int) -> list[Any]:
        with batch() as jobs:
            User().backgrounded.do_stuff(n)
            await asyncio.sleep(0.01)
            User().backgrounded.do_stuff(n)
        return [n, len(jobs)]

    async def main() -> Any:
        return await asyncio.gather(send(1), send(2))

    assert asyncio.run(main()) == [[1, 2], [2, 2]]
    assert len(memory.calls) == 4


# -- map


def test_map_sends_before_it_returns_in_trips_of_a_thousand() -> None:
    engine: Any = backgrounded.configure(Engine())
    result = later(User().do_stuff).map(range(2_500))
    assert (result.sent, result.failed, result.errors) == (2_500, 0, ())
    assert engine.trips == [1000, 1000, 500]
    assert later(User().do_stuff).map([]).sent == 0


def test_map_and_its_kin_call_what_they_say(memory: MemoryHandler) -> None:
    later(User().do_stuff, queue="q").map([1, 2])
    later(User().take).starmap([(1, 2), [3], ()])
    jobs = list(later(User.sync).imap([5]))
    shop.jobs.take.later.map([(1, 2)])  # type: ignore[attr-defined]
    assert [call.args for call in memory.calls] == [(1,), (2,), (1, 2), (3,), (), (5,), ((1, 2),)]
    assert [call.options.queue for call in memory.calls[:3]] == ["q", "q", None]
    assert [job.id for job in jobs] == [memory.calls[5].id]


class Item:
    pass


@pytest.mark.parametrize("way", ["map", "starmap", "imap"])
def test_a_stream_of_any_length_takes_constant_memory(way: str) -> None:
    """Never more than a trip ahead, and what was sent is let go."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    ahead: list[int] = []
    taken = sent = 0

    class Counting(Engine):
        def enqueue_many(self, calls: Sequence[Call]) -> list[str | None]:
            nonlocal sent
            sent += len(calls)
            ahead.append(len(alive))
            return [None] * len(calls)

    backgrounded.configure(Counting())
    backgrounded.add_converter(Item, lambda item: 0, lambda tree: Item(), tag="item")

    def items() -> Iterator[Any]:
        nonlocal taken
        for _ in range(5_000):
            taken += 1
            assert taken - sent <= 1_001
            item = Item()
            alive.add(item)
            yield (item,) if way == "starmap" else item

    stream = getattr(later(User().take), way)(items())
    if way == "imap":
        assert taken == 0
        assert sum(1 for _ in stream) == 5_000
    else:
        assert stream.sent == 5_000
    gc.collect()
    assert max(ahead) <= 2_001
    assert len(ahead) == 5


def test_imap_yields_as_it_sends() -> None:
    engine: Any = backgrounded.configure(Engine())
    stream = later(User().do_stuff).imap(range(1_500))
    assert engine.trips == []
    assert next(stream).engine_id == "engine-0"
    assert engine.trips == [1000]
    assert len(list(stream)) == 1_499
    assert engine.trips == [1000, 500]


def test_trips_of_a_map_that_went_stay_sent_and_failed_ones_are_counted() -> None:
    backgrounded.configure(Engine(down_on(2)))
    result = later(User().do_stuff).map(range(2_500))
    assert (result.sent, result.failed) == (1_500, 1_000)
    assert all(isinstance(error, BatchError) for error in result.errors)
    assert len(result.errors) == 1


def test_a_map_whose_first_trip_fails_raises() -> None:
    engine: Any = backgrounded.configure(Engine(down_on(1)))
    with pytest.raises(EnqueueError):
        later(User().do_stuff).map(range(2_500))
    assert engine.trips == [1000]


def test_an_item_that_cannot_be_called_with_raises_at_once() -> None:
    engine: Any = backgrounded.configure(Engine())
    with pytest.raises(CallError, match="object"):
        later(User().take).map([*range(1_500), object()])
    assert engine.trips == [1000]


def test_map_inside_a_batch_sends_by_itself() -> None:
    engine: Any = backgrounded.configure(Engine())
    with batch():
        later(User().do_stuff).map([1])
        assert engine.trips == [1]


def test_options_as_given_are_on_the_call(memory: MemoryHandler) -> None:
    with batch():
        User().backgrounded(queue="q", delay=5).do_stuff()
    assert memory.calls[0].options == Options(queue="q", delay=5)
