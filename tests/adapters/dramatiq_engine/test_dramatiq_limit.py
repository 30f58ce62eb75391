"""Is a method stopped in time, and nothing else with it?"""

from __future__ import annotations

import gc
import sys
import threading
import time
from contextlib import suppress

import pytest
from backgrounded_dramatiq._limit import _Limit, _watch, limit
from dramatiq.middleware import TimeLimitExceeded


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_what_takes_too_long_is_a_timeout_error_soon_after_the_limit():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"timeout of 0\.2 seconds"), limit(0.2):
        spin(30)
    assert 0.2 <= time.monotonic() - started < 5


def test_what_is_raised_inside_is_no_os_error():
    def bearing() -> None:
        with suppress(OSError):
            spin(30)

    with pytest.raises(TimeoutError) as stopped, limit(0.1):
        bearing()
    assert type(stopped.value.__cause__) is TimeLimitExceeded


def test_no_limit_and_one_that_is_kept_leave_nothing_behind():
    with limit(None):
        pass
    with limit(60):
        pass
    with pytest.raises(ZeroDivisionError), limit(60):
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
            with limit(0.002):
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
        with stretch:
            pass
        ended.set()

    thread = threading.Thread(target=work)
    stretch = _Limit(60)
    stretch._lock = Gate()  # type: ignore[assignment] # to stop it at the end of the stretch
    thread.start()
    stretch.thread = thread.ident or 0
    assert arrived.wait(60)
    assert stretch.ring() is False
    may_go.set()
    assert ended.wait(60)
    thread.join()
    assert stretch.ring() is True


def test_each_thread_has_its_own_limit():
    ended: dict[int, str] = {}

    def work(number: int, seconds: float) -> None:
        try:
            with limit(seconds):
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
