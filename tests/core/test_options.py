"""What may a caller say about a call? Each option: its forms, what is refused, who wins, who keeps it."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

import backgrounded
import pytest
from backgrounded import (
    Backgrounded,
    CallError,
    InvalidOption,
    Options,
    Retry,
    Unique,
    UnsupportedOption,
    background,
    backgroundable,
)
from backgrounded.handlers.memory import MemoryHandler

from shop.models import Order, User
from stable import stable_id


class Queue(Enum):
    MAIL = "mail"
    NUMBER = 3


class TextQueue(str, Enum):
    MAIL = "mail"


class Text(str):
    pass


SOON = datetime.now(timezone.utc) + timedelta(hours=1)
DISTANT = SOON + timedelta(days=1)

ACCEPTED: list[tuple[str, Any, Any]] = [
    ("queue", "custom", "custom"),
    ("queue", Queue.MAIL, "mail"),  # K100
    ("queue", TextQueue.MAIL, "mail"),
    ("queue", Text("custom"), "custom"),
    ("queue", None, None),  # K101
    ("delay", 0, 0),
    ("delay", 1.5, 1.5),
    ("delay", timedelta(minutes=1), timedelta(minutes=1)),
    ("at", SOON, SOON),
    ("at", datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2020, 1, 1, tzinfo=timezone.utc)),  # K106
    ("priority", 0, 0),
    ("priority", 9, 9),
    ("priority", "low", 2),
    ("priority", "normal", 5),
    ("priority", "high", 8),
    ("retry", 0, Retry(0)),
    ("retry", 3, Retry(3)),
    ("retry", Retry(3, wait=5), Retry(3, wait=[5])),
    ("timeout", 5, 5.0),
    ("timeout", timedelta(seconds=5), 5.0),
    ("expires", 5, 5),
    ("expires", timedelta(hours=1), timedelta(hours=1)),
    ("expires", SOON, SOON),
    ("unique", "key", Unique("key")),
    ("unique", Unique("key", ttl=timedelta(hours=2)), Unique("key", ttl=7200)),
    ("result_ttl", 0, 0.0),
    ("result_ttl", timedelta(days=1), 86400.0),
    ("after_commit", "auto", "auto"),
    ("after_commit", True, True),
    ("after_commit", False, False),
    ("handler", "default", "default"),
]


@pytest.mark.parametrize(("option", "value", "means"), ACCEPTED, ids=stable_id)
def test_the_forms_of_an_option(memory: MemoryHandler, option: str, value: Any, means: Any) -> None:
    User().backgrounded(**{option: value}).do_stuff()
    found = getattr(memory.calls[0].options, option)
    assert found == means
    assert type(found) is type(means)
    assert memory.calls[0].options.given() == ({} if means is None else {option: means})


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(Options)])
def test_none_is_the_same_as_not_given(memory: MemoryHandler, option: str) -> None:
    User().backgrounded(queue="a")(**{option: None}).do_stuff()
    assert memory.calls[0].options == Options(queue="a")


NAIVE = datetime(2030, 1, 1)
REFUSED: list[tuple[str, Any]] = [
    *[("queue", value) for value in ("", b"mail", 3, True, Queue.NUMBER, ["mail"], "a\0b", "a\ud800")],
    *[("delay", value) for value in (-1, -0.1, True, "5", float("nan"), float("inf"), 10**400, timedelta(-1), [5])],
    *[("at", value) for value in (NAIVE, 5, "2030-01-01", True, SOON.date())],
    *[("priority", value) for value in (-1, 10, True, 5.0, "urgent", "5", [5])],
    *[("retry", value) for value in (-1, True, 1.0, "3", [1, 2])],
    *[("timeout", value) for value in (0, -1, True, False, "5", timedelta(0), float("nan"))],
    *[("expires", value) for value in (0, -1, True, "5", timedelta(0), NAIVE, float("inf"))],
    *[("unique", value) for value in ("", 3, True, ("a", "b"), "a\0b")],
    *[("result_ttl", value) for value in (-1, True, "5", float("inf"))],
    *[(name, timedelta(days=36_526)) for name in ("delay", "timeout", "expires", "result_ttl")],
    *[("after_commit", value) for value in ("yes", 1, 0, "")],
    *[("handler", value) for value in ("", 3, True)],
    *[("native", value) for value in (3, [1], {1: 2}, "x")],
]


@pytest.mark.parametrize(("option", "value"), REFUSED, ids=stable_id)
def test_a_value_that_makes_no_sense_is_refused_at_the_call(memory: MemoryHandler, option: str, value: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        User().backgrounded(**{option: value})
    assert isinstance(caught.value, (CallError, ValueError))
    assert caught.value.option.split(".")[0] == option
    assert str(caught.value).startswith(option)
    assert memory.calls == []


REFUSED_POLICIES: list[dict[str, Any]] = [
    *[{"max": value} for value in (-1, True, 1.0, "3")],
    *[{"max": 1, "wait": value} for value in (-1, True, "5", [], [1, -1], [True], None, lambda n: n, float("nan"))],
    *[{"max": 1, "backoff": value} for value in (0.5, True, "2", None, timedelta(seconds=2), float("inf"))],
    *[{"max": 1, "jitter": value} for value in (-0.1, True, False, "1", timedelta(seconds=1))],
    *[{"max": 1, "on": value} for value in (int, "a b", "", 3, [3], [""], "a..b", ValueError())],
    *[{"max": 1, "give_up_on": value} for value in (object, ["1a"], [None])],
]


@pytest.mark.parametrize("policy", REFUSED_POLICIES, ids=stable_id)
def test_a_policy_that_makes_no_sense_is_refused_where_it_is_made(policy: dict[str, Any]) -> None:  # K141
    with pytest.raises(InvalidOption, match=r"^retry\."):
        Retry(**policy)


@pytest.mark.parametrize(
    "words",
    [{"key": ""}, {"key": 3}, {"key": "a\ud800"}, {"key": "k", "on_conflict": "wait"}, {"key": "k", "until": "end"}]
    + [{"key": "k", "ttl": value} for value in (0, -1, True, "5", None)],
    ids=stable_id,
)
def test_a_unique_that_makes_no_sense_is_refused_where_it_is_made(words: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=r"^unique\."):
        Unique(**words)


def test_delay_and_at_together_are_refused(memory: MemoryHandler) -> None:  # K109
    with pytest.raises(InvalidOption, match="delay and at"):
        User().backgrounded(delay=5, at=SOON)
    User().backgrounded(delay=5)(at=SOON).do_stuff()
    assert memory.calls[0].options.given() == {"at": SOON}, "the later word counts"


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"expires": 60, "delay": 59}, True),
        ({"expires": 60, "delay": 60}, False),
        ({"expires": 60, "delay": timedelta(minutes=2)}, False),
        ({"expires": DISTANT, "at": SOON}, True),
        ({"expires": SOON, "at": SOON}, False),
        ({"expires": SOON, "at": DISTANT}, False),
        ({"expires": datetime(2020, 1, 1, tzinfo=timezone.utc)}, False),
        ({"expires": 60, "at": datetime(2020, 1, 1, tzinfo=timezone.utc)}, True),
    ],
    ids=stable_id,
)
def test_a_job_expires_later_than_it_is_due(memory: MemoryHandler, options: dict[str, Any], fits: bool) -> None:
    if fits:
        User().backgrounded(**options).do_stuff()
        call = memory.calls[0]
        assert call.expires_at == call.tree["options"]["expires"]
        assert call.expires_at is not None
        assert call.expires_at > (call.due or call.created)
        return
    with pytest.raises(InvalidOption, match="expires"):
        User().backgrounded(**options).do_stuff()
    assert memory.calls == []


def test_times_travel_absolute_and_only_what_a_worker_needs_travels(memory: MemoryHandler) -> None:
    before = time.time()
    User().backgrounded(
        queue="q",
        delay=5,
        priority=7,
        retry=Retry(2),
        timeout=9,
        expires=timedelta(minutes=1),
        unique="k",
        result_ttl=3,
    ).do_stuff()
    call = memory.calls[0]
    assert before <= call.created <= time.time()
    assert call.tree["options"] == {
        "queue": "q",
        "retry": {"max": 2},
        "timeout": 9.0,
        "expires": call.created + 60,
        "result_ttl": 3.0,
        "unique": {"key": "k", "until": "done"},
    }
    assert call.due == call.created + 5


# -- unknown and unsupported


@pytest.mark.parametrize(("kind", "kept"), [("memory", "delay"), ("null", "result_ttl"), ("inline", "retry")])
def test_an_unknown_option_is_named_with_the_handler_and_the_nearest_word(kind: str, kept: str) -> None:  # K114
    backgrounded.configure(kind)
    with pytest.raises(UnsupportedOption) as caught:
        User().backgrounded(quue="x")  # type: ignore[call-arg]
    error = caught.value
    assert (error.option, error.handler) == ("quue", kind)
    assert kept in error.kept
    assert ("timeout" in error.kept) is (kind == "memory")
    assert "'quue'" in str(error)
    assert "did you mean 'queue'?" in str(error)
    assert repr(kind) in str(error)


def test_an_unknown_option_names_the_handler_that_the_call_would_go_to(memory: MemoryHandler) -> None:
    backgrounded.configure("null", name="other")
    with pytest.raises(UnsupportedOption, match="Handler 'null'"):
        background(User(), handler="other", ttl=3)  # type: ignore[call-arg]
    assert memory.calls == []


NOT_KEPT = {
    "inline": [{"delay": 1}, {"at": SOON}, {"expires": 5}, {"timeout": 5}, {"retry": Retry(1, wait=5)}, {"native": {}}],
    "null": [{"delay": 1}, {"at": SOON}, {"expires": 5}, {"timeout": 5}, {"native": {}}],
    "thread": [{"timeout": 5}, {"native": {}}],
}
KEPT: dict[str, list[dict[str, Any]]] = {
    "inline": [
        {"queue": "q"},
        {"priority": 9},
        {"unique": "k"},
        {"result_ttl": 5},
        {"retry": 3},
        {"retry": Retry(2, 0)},
    ],
    "null": [{"queue": "q"}, {"priority": 9}, {"unique": "k"}, {"result_ttl": 5}, {"retry": Retry(1, wait=5)}],
    "thread": [{"queue": "q"}, {"delay": 0}, {"priority": 1}, {"retry": Retry(1, wait=1)}, {"expires": 50}],
    "memory": [{"timeout": 5}, {"delay": 5}, {"at": SOON}, {"expires": 5}, {"unique": "k"}, {"result_ttl": 5}],
}


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, item) for kind, items in NOT_KEPT.items() for item in items], ids=stable_id
)
def test_an_option_that_the_handler_does_not_keep_is_refused_and_can_be_ignored_once(
    kind: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:  # K108, K167
    (option,) = options
    backgrounded.configure(kind)
    with pytest.raises(UnsupportedOption) as caught:
        User().backgrounded(**options).do_stuff()
    assert (caught.value.option, caught.value.handler) == (option, kind)
    assert "queue" in caught.value.kept
    assert repr(option) in str(caught.value)
    assert repr(kind) in str(caught.value)
    assert "queue" in str(caught.value)
    backgrounded.configure(kind, ignore={option})
    for _ in range(3):
        User().backgrounded(**options).do_stuff()
    assert [record.getMessage() for record in caplog.records].count(
        f"Handler {kind!r} ignores the option {option!r}, as it was told to."
    ) == 1


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, item) for kind, items in KEPT.items() for item in items], ids=stable_id
)
def test_an_option_that_the_handler_keeps_is_accepted(kind: str, options: dict[str, Any]) -> None:
    backgrounded.configure(kind)
    User().backgrounded(**options).do_stuff()


class Bare:
    """A handler that keeps nothing at all."""

    protocol = 1
    features: frozenset[Any] = frozenset()

    def enqueue(self, call: Any) -> None:
        return None


@pytest.mark.parametrize(
    "options", [{"priority": 5}, {"priority": "normal"}, {"retry": 0}, {"retry": Retry(0, wait=9)}]
)
def test_what_says_nothing_is_never_refused(options: dict[str, Any]) -> None:  # K112
    backgrounded.configure(Bare)  # type: ignore[arg-type]
    User().backgrounded(**options).do_stuff()


@pytest.mark.parametrize("options", [{"priority": 4}, {"retry": 1}, {"queue": "q"}, {"unique": "k"}, {"result_ttl": 0}])
def test_a_handler_without_features_refuses_the_rest(options: dict[str, Any]) -> None:
    backgrounded.configure(Bare)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedOption, match="It keeps: no options"):
        User().backgrounded(**options).do_stuff()


def test_ignoring_names_an_option() -> None:
    with pytest.raises(backgrounded.ConfigurationError, match="'dely' is not an option"):
        backgrounded.configure("null", ignore={"dely"})


# -- who wins


@backgroundable(queue="class", priority=1, retry=Retry(1))
class Base(Backgrounded):
    def plain(self) -> None: ...

    @backgroundable(queue="method", retry=Retry(2))
    def declared(self) -> None: ...

    @backgroundable(delay=60)
    def delayed(self) -> None: ...


@backgroundable(priority=2)
class Derived(Base):
    pass


def test_the_call_wins_over_the_method_over_the_class_over_its_base(memory: MemoryHandler) -> None:
    Base().backgrounded.plain()
    Base().backgrounded.declared()
    Base().backgrounded(queue="call").declared()
    Derived().backgrounded.declared()
    Derived().backgrounded(retry=0).plain()
    Base().backgrounded(at=SOON).delayed()
    found = [(call.options.queue, call.options.priority, call.options.retry) for call in memory.calls]
    assert found == [
        ("class", 1, Retry(1)),
        ("method", 1, Retry(2)),
        ("call", 1, Retry(2)),
        ("method", 2, Retry(2)),
        ("class", 2, Retry(0)),
        ("class", 1, Retry(1)),
    ]
    assert (memory.calls[-1].options.delay, memory.calls[-1].options.at) == (None, SOON)


def test_a_default_that_the_handler_does_not_keep_is_refused_at_the_call_too() -> None:
    backgrounded.configure("inline")
    with pytest.raises(UnsupportedOption, match="delay"):
        Base().backgrounded.delayed()


# -- values are frozen


def test_options_retry_and_unique_are_frozen(memory: MemoryHandler) -> None:
    words = {"a": 1}
    options = Options.of({"queue": "q", "retry": Retry(3), "unique": "k", "native": words})
    for value, name in ((options, "queue"), (options.retry, "max"), (options.unique, "key")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 5)
    words["b"] = 2
    assert options.native == {"a": 1}
    assert isinstance(options.native, Mapping)
    with pytest.raises(TypeError):
        options.native["c"] = 3  # type: ignore[index]
    Order().backgrounded.send_confirmation()
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.calls[0].id = "x"  # type: ignore[misc]


# -- waits


def waits(policy: Retry, failures: int, error: BaseException | None = None) -> list[float | None]:
    return [policy.next_wait(error or ValueError(), attempt) for attempt in range(1, failures + 1)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Retry(0), [None, None]),
        (Retry(3), [0, 0, 0, None]),  # K134, K135
        (Retry(3, wait=0), [0, 0, 0, None]),
        (Retry(2, wait=1.5), [1.5, 1.5, None]),
        (Retry(2, wait=timedelta(minutes=1)), [60, 60, None]),
        (Retry(4, wait=[1, 5]), [1, 5, 5, 5, None]),
        (Retry(3, wait=(timedelta(seconds=2), 0)), [2, 0, 0, None]),
        (Retry(4, wait=3, backoff=2), [3, 6, 12, 24, None]),
        (Retry(3, wait=0, backoff=2), [0, 0, 0, None]),
        (Retry(None, wait=2), [2] * 9),  # K142
        (Retry(None, wait=86400, backoff=2), [86400, 172800, 345600, 604800, 604800]),
        (Retry(None, wait=1e300, backoff=1e300), [604800] * 3),
        (Retry(1, wait=10**12), [604800, None]),
    ],
    ids=stable_id,
)
def test_the_wait_after_each_failure_is_exact(policy: Retry, expected: list[float | None]) -> None:  # K138, K140
    assert waits(policy, len(expected)) == expected


def test_a_very_late_attempt_overflows_nothing() -> None:
    assert Retry(None, wait=1, backoff=1.0001).next_wait(ValueError(), 10**9) == 604800
    assert Retry(None, wait=1, backoff=10).next_wait(ValueError(), 10**9) == 604800


def test_jitter_adds_up_to_its_fraction_and_never_makes_a_wait_shorter(monkeypatch: pytest.MonkeyPatch) -> None:  # K140
    policy = Retry(None, wait=10, backoff=2, jitter=0.5)
    for chance, expected in ((0.0, 10), (0.5, 12.5), (1.0, 15)):
        monkeypatch.setattr(random, "random", lambda chance=chance: chance)
        assert policy.wait_before(1) == expected
        assert policy.wait_before(2) == 2 * expected
    monkeypatch.undo()
    found = {policy.wait_before(1) for _ in range(200)}
    assert all(10 <= wait <= 15 for wait in found)
    assert len(found) > 100
    assert Retry(1, wait=LONGEST, jitter=1).wait_before(1) == LONGEST
    assert Retry(1, wait=0, jitter=1).wait_before(1) == 0


LONGEST = 7 * 86400


class Busy(ConnectionError):
    pass


@pytest.mark.parametrize(
    ("policy", "tried_again"),
    [
        (Retry(1), True),
        (Retry(1, on=ConnectionError), True),
        (Retry(1, on=OSError), True),
        (Retry(1, on=[KeyError, Busy]), True),
        (Retry(1, on="test_options.Busy"), True),
        (Retry(1, on="OSError"), True),
        (Retry(1, on="builtins.OSError"), True),
        (Retry(1, on="Busy"), False),
        (Retry(1, on="other.Busy"), False),
        (Retry(1, on="nothing.that.could.be.imported"), False),
        (Retry(1, on=KeyError), False),
        (Retry(1, give_up_on=OSError), False),
        (Retry(1, give_up_on="test_options.Busy"), False),
        (Retry(1, give_up_on=KeyError), True),
        (Retry(1, on=OSError, give_up_on=Busy), False),
    ],
    ids=stable_id,
)
def test_filters_are_names_compared_with_the_exceptions_ancestors(policy: Retry, tried_again: bool) -> None:
    assert (policy.next_wait(Busy(), 1) is not None) is tried_again


def test_only_exceptions_are_tried_again() -> None:
    for error in (SystemExit(), KeyboardInterrupt(), GeneratorExit()):
        assert Retry(5, on=BaseException).next_wait(error, 1) is None


def test_a_policy_travels_as_plain_words_without_its_defaults() -> None:
    assert Retry(3).to_tree() == {"max": 3}
    assert Retry(None, wait=[1, 2], backoff=2, jitter=0.1, on=[OSError], give_up_on="a.B").to_tree() == {
        "max": None,
        "wait": [1.0, 2.0],
        "backoff": 2.0,
        "jitter": 0.1,
        "on": ["OSError"],
        "give_up_on": ["a.B"],
    }
    tree = Retry(2, wait=5, on=[Busy]).to_tree()
    assert Retry(**tree) == Retry(2, wait=5, on=[Busy])
