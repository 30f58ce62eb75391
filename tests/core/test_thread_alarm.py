"""Is a method stopped in time, and nothing else with it?"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import backgrounded
import pytest
from backgrounded import Backgrounded
from backgrounded._runtime import last_moment
from backgrounded.alarm import Expired, ThreadAlarm, _watch
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.testing.probe import Probe

from processes import forked


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Busy(Backgrounded):
    def __backgrounded_args__(self) -> tuple[tuple[()], dict[str, object]]:
        return (), {}

    def spin(self, seconds: float) -> None:
        spin(seconds)


def test_what_takes_too_long_is_a_timeout_error_soon_after_the_limit():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"timeout of 0\.2 seconds"), ThreadAlarm(0.2):
        spin(30)
    assert 0.2 <= time.monotonic() - started < 5


def test_what_is_raised_inside_is_no_os_error():
    def bearing() -> None:
        with suppress(OSError):
            spin(30)

    with pytest.raises(TimeoutError) as stopped, ThreadAlarm(0.1):
        bearing()
    assert type(stopped.value.__cause__) is Expired


def test_a_limit_that_is_kept_leaves_nothing_behind():
    with ThreadAlarm(60):
        pass
    with pytest.raises(ZeroDivisionError), ThreadAlarm(60):
        _ = 1 / 0
    assert not _watch._due


@pytest.fixture
def prompt():
    """Threads that take turns fifty times as often as they would: a stretch may end in any moment of the ring's."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("prompt")
def test_a_limit_that_is_over_at_the_last_moment_never_hits_what_comes_after():
    """Each stretch ends just when its alarm rings: it is a timeout or none, and either way that is all."""
    timeouts = 0
    for number in range(400):
        try:
            with ThreadAlarm(0.002), last_moment:
                spin(0.0018 + number % 80 * 0.00001)
        except TimeoutError:
            timeouts += 1
        spin(0.0005)  # an exception that comes late would be raised here, and end the test
    assert 0 < timeouts < 400


def test_an_alarm_that_finds_the_stretch_at_its_end_does_not_ring():
    """What it raised there would be raised outside of the stretch, where nobody makes a TimeoutError of it."""
    arrived, may_go, ended = threading.Event(), threading.Event(), threading.Event()

    class Gate:
        def __enter__(self) -> None:
            if threading.current_thread() is thread:
                arrived.set()
                may_go.wait(60)

        def __exit__(self, *error: object) -> None:
            """As a lock does."""

    def work() -> None:
        stretch = ThreadAlarm(60)
        stretch._lock = Gate()  # type: ignore[assignment] # to stop it at the end of the stretch
        stretches.append(stretch)
        with stretch:
            pass
        ended.set()

    stretches: list[ThreadAlarm] = []
    thread = threading.Thread(target=work)
    thread.start()
    assert arrived.wait(60)
    [stretch] = stretches
    assert stretch.ring() is False
    may_go.set()
    assert ended.wait(60)
    thread.join()
    assert stretch.ring() is True


def test_each_thread_has_its_own_limit():
    ended: dict[int, str] = {}

    def work(number: int, seconds: float) -> None:
        try:
            with ThreadAlarm(seconds):
                spin(30 if number % 2 else 1)
            ended[number] = "in time"
        except TimeoutError as error:
            ended[number] = str(error)

    threads = [threading.Thread(target=work, args=(number, 0.1 if number % 2 else 60)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = "stopped after its timeout of 0.1 seconds"
    assert ended == {number: late if number % 2 else "in time" for number in range(6)}
    gc.collect()
    assert not _watch._due


def test_a_job_has_its_last_moment_between_its_method_and_the_end_of_the_stretch(monkeypatch):
    """Since CPython 3.13 what is raised in a thread may arrive there only, and nobody minds it behind that."""
    order = []

    class Stretch(ThreadAlarm):
        def __exit__(self, *_: object) -> None:
            order.append("end")

    monkeypatch.setattr("backgrounded.handlers._local.ThreadAlarm", Stretch)
    monkeypatch.setattr(type(last_moment), "__exit__", lambda *_: order.append("last moment"))
    handler = MemoryHandler()
    with backgrounded.using(handler):
        Busy().backgrounded(timeout=60).spin(0)
        handler.run()
    assert order == ["last moment", "end"] * 2, "of the import of the application, and of the method"
    _watch._due.clear()


# -- what remains


def traced() -> None:
    """Call a function under a tracer, as coverage and debuggers are. CPython 3.11 hangs there while it looks for an
    exception that has been set in some thread and never came."""
    sys.settrace(lambda *_: None)
    spin(0)
    sys.settrace(None)


def kept() -> None:
    with ThreadAlarm(60):
        pass


def rung() -> None:
    """Most of them find the end of the stretch at hand, and some have to be taken back."""
    for number in range(200):
        with suppress(TimeoutError), ThreadAlarm(0.002), last_moment:
            spin(0.0018 + number % 40 * 0.00001)


def swallowed() -> None:
    with ThreadAlarm(0.01), suppress(Expired):
        spin(30)


def in_a_job() -> None:
    handler = MemoryHandler()
    with backgrounded.using(handler):
        job = Probe("/nowhere").backgrounded(timeout=60).who()
        handler.run()
        assert job.state == "succeeded"


@pytest.mark.usefixtures("prompt")
@pytest.mark.parametrize("stretch", [kept, rung, swallowed, in_a_job])
def test_nothing_is_looked_for_afterwards(stretch: Callable[[], None]) -> None:
    def work() -> None:
        stretch()
        traced()

    assert forked(work) == 0


def test_a_child_that_is_forked_has_limits_of_its_own() -> None:
    def work() -> None:
        with pytest.raises(TimeoutError), ThreadAlarm(0.05):
            spin(30)

    with ThreadAlarm(60):
        assert forked(work) == 0
