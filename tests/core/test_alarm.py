"""Is a method stopped in time by SIGALRM, and nothing else with it?"""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import pytest
from backgrounded import alarm
from backgrounded.alarm import Alarm, Expired


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    def other(*_: object) -> None:
        """The engine's own."""

    before = signal.signal(signal.SIGALRM, other)
    yield
    assert signal.signal(signal.SIGALRM, before) is other
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("method", [spin, time.sleep])
def test_what_takes_too_long_is_a_timeout_error_soon_after_the_limit(method):
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"stopped after its timeout of 0\.2 seconds"), Alarm(0.2):
        method(30)
    assert 0.2 <= time.monotonic() - started < 5


def test_what_the_method_sees_is_the_engines_word():
    class TooLong(Exception):
        pass

    def bearing() -> None:
        with suppress(OSError):
            spin(30)

    with pytest.raises(TimeoutError) as stopped, Alarm(0.1, TooLong):
        bearing()
    assert type(stopped.value.__cause__) is TooLong


def test_a_method_that_swallows_it_is_told_again(monkeypatch):
    def deaf() -> None:
        with suppress(Expired):
            spin(30)
        spin(30)

    monkeypatch.setattr(alarm, "INSIST", 0.1)
    with pytest.raises(TimeoutError), Alarm(0.1):
        deaf()


def test_a_method_that_swallows_it_and_returns_has_returned():
    with Alarm(0.1), suppress(Expired):
        spin(30)


@pytest.mark.parametrize("seconds", [60, 1e300])
def test_a_limit_that_is_kept_changes_nothing(seconds):
    with Alarm(seconds):
        pass
    with pytest.raises(ZeroDivisionError), Alarm(seconds):
        _ = 1 / 0


def test_an_exception_of_the_engines_that_no_alarm_has_raised_is_none_of_ours():
    with pytest.raises(Expired), Alarm(60):
        raise Expired


@pytest.fixture
def ring_where_it_is_set(monkeypatch):
    """Let the alarm ring once within the call that winds it up to so many seconds; 0 is the end of the stretch."""

    def ring(seconds: float) -> None:
        set_timer, rung = signal.setitimer, []

        def ring_at_once(which: int, first: float, again: float = 0.0) -> None:
            set_timer(which, first, again)
            if first == seconds and not rung:
                rung.append(first)
                signal.raise_signal(signal.SIGALRM)

        monkeypatch.setattr(signal, "setitimer", ring_at_once)

    return ring


def test_an_alarm_that_finds_the_stretch_at_its_beginning_rings_in_the_method(ring_where_it_is_set):
    """What it raised there would leave the `with`: nobody makes a TimeoutError of it yet."""
    ring_where_it_is_set(60)
    with pytest.raises(TimeoutError), Alarm(60):
        spin(30)


def test_an_alarm_that_finds_the_stretch_at_its_end_does_not_ring(ring_where_it_is_set):
    ring_where_it_is_set(0)
    with Alarm(60):
        pass
    spin(0.1)


def test_a_limit_that_is_over_at_the_last_moment_never_hits_what_comes_after():
    """Each stretch ends just when its alarm rings: it is a timeout or none, and either way that is all."""
    timeouts = 0
    for number in range(600):
        try:
            with Alarm(0.002):
                spin(0.0019 + number % 20 * 0.00001)
        except TimeoutError:
            timeouts += 1
        spin(0.0002)  # an exception that comes late would be raised here, and end the test
    assert 0 < timeouts < 600
