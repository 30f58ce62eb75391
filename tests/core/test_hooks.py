"""What does a plugin see, what may it change, and what happens when it fails?"""

# ruff: noqa: PT012 - it is the exit of a batch that raises, not one statement

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import backgrounded
import pytest
from backgrounded import (
    BatchError,
    Call,
    ConfigurationError,
    EncodeError,
    EnqueueError,
    background,
    batch,
    current_job,
    hookimpl,
    later,
    perform,
    register_plugin,
)
from backgrounded.codec import Converter
from backgrounded.handler import Again, Delivery, Feature, Keep, Skip, State
from backgrounded.handlers.memory import MemoryHandler

from shop import diary
from shop.models import Point, User

WIRE = {"v": 1, "id": "1", "target": {"built": ["shop.models:User", [], {}]}, "method": "do_stuff"}

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(autouse=True)
def blank_diary() -> None:
    diary.lines.clear()


class Tenants:
    """Carries a context variable of the caller to the run, as tracing and locales do."""

    @hookimpl
    def backgrounded_headers(self, name: str) -> dict[str, Any]:
        return {"tenant": tenant.get(), "call": name}

    @hookimpl(wrapper=True)
    def backgrounded_perform(self, job: Any) -> Any:
        token = tenant.set(job.headers["tenant"])
        try:
            return (yield)
        finally:
            tenant.reset(token)


@contextmanager
def tenant_is(name: str) -> Iterator[None]:
    token = tenant.set(name)
    yield
    tenant.reset(token)


def test_headers_are_captured_at_the_call_and_restored_round_the_run(memory: MemoryHandler) -> None:  # K163
    register_plugin(Tenants())
    backgrounded.configure(memory, allow=["test_hooks"])
    with tenant_is("acme"):
        background(sys_module()).tell_tenant()
    assert memory.calls[0].headers == memory.calls[0].tree["headers"]
    with tenant_is("other"):
        memory.run()
        assert tenant.get() == "other", "the caller's own is unchanged afterwards"
    assert diary.lines == [("acme", {"tenant": "acme", "call": "test_hooks.tell_tenant"})]


def tell_tenant() -> None:
    job = current_job()
    assert job is not None
    diary.write((tenant.get(), dict(job.headers)))


def sys_module() -> Any:
    import test_hooks

    return test_hooks


def test_headers_of_several_plugins_are_merged_and_travel_like_arguments(memory: MemoryHandler) -> None:
    class First:
        @hookimpl
        def backgrounded_headers(self) -> Any:
            return {"a": 1, "both": 1, "$tuple": (1, 2)}

    class Second:
        @hookimpl
        def backgrounded_headers(self, options: Any) -> Any:
            return {"queue": options.queue, "both": 2}

    class Silent:
        @hookimpl
        def backgrounded_headers(self) -> Any:
            return None

    for plugin in (First(), Second(), Silent()):
        register_plugin(plugin)
    User().backgrounded(queue="q").see_myself()
    memory.run()
    assert diary.lines[0].headers == {"a": 1, "both": 2, "$tuple": (1, 2), "queue": "q"}


@pytest.mark.parametrize("headers", [{"$tuple": [1]}, {"$x": 1}, {"": 1}])
def test_a_header_that_looks_like_a_tag_survives(memory: MemoryHandler, headers: dict[str, Any]) -> None:
    class Plugin:
        @hookimpl
        def backgrounded_headers(self) -> Any:
            return headers

    register_plugin(Plugin())
    User().backgrounded.see_myself()
    memory.run()
    assert diary.lines[0].headers == headers


@pytest.mark.parametrize("headers", [{"trace": object()}, {3: 1}, {"a\0": 1}])
def test_a_header_that_cannot_travel_fails_at_the_call(memory: MemoryHandler, headers: dict[Any, Any]) -> None:
    class Plugin:
        @hookimpl
        def backgrounded_headers(self) -> Any:
            return headers

    register_plugin(Plugin())
    with pytest.raises(EncodeError, match="headers"):
        User().backgrounded.do_stuff()
    assert memory.calls == []


# -- around the hand-over


class Watcher:
    """Writes down every hand-over and every run."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @hookimpl(wrapper=True)
    def backgrounded_enqueue(self, calls: Any) -> Any:
        self.events.append(("enqueue", len(calls)))
        try:
            return (yield)
        finally:
            self.events.append(("enqueued", len(calls)))

    @hookimpl
    def backgrounded_not_sent(self, calls: Any, error: BaseException) -> None:
        self.events.append(("not sent", [call.method for call in calls], type(error).__name__))

    @hookimpl(wrapper=True)
    def backgrounded_perform(self, job: Any) -> Any:
        self.events.append(("perform", job.name))
        value = yield
        self.events.append(("performed", value))
        return value

    @hookimpl
    def backgrounded_ended(self, job: Any, state: State, error: BaseException | None, seconds: float) -> None:
        assert seconds >= 0
        self.events.append(("ended", str(state), type(error).__name__))


@pytest.fixture
def watcher() -> Watcher:
    plugin = Watcher()
    register_plugin(plugin)
    register_plugin(plugin)  # twice is once
    return plugin


def test_one_event_for_each_hand_over_and_one_for_each_trip(memory: MemoryHandler, watcher: Watcher) -> None:  # K154
    User().backgrounded.do_stuff()
    assert watcher.events == [("enqueue", 1), ("enqueued", 1)]
    watcher.events.clear()
    with batch():
        for _ in range(3):
            User().backgrounded.do_stuff()
        assert watcher.events == []
    assert watcher.events == [("enqueue", 3), ("enqueued", 3)]
    watcher.events.clear()
    later(User().do_stuff).map(range(2_001))
    assert [count for event, count in watcher.events if event == "enqueue"] == [1000, 1000, 1]


def test_the_hooks_come_in_order_and_the_wrapper_sees_the_return_value(watcher: Watcher) -> None:  # K150, K152, K155
    assert perform(WIRE) == "x"
    name = "shop.models.User.do_stuff"
    assert watcher.events == [("perform", name), ("performed", "x"), ("ended", "succeeded", "NoneType")]


def test_a_method_that_returns_none_runs_once(watcher: Watcher) -> None:
    assert perform({**WIRE, "method": "take"}) is None
    assert diary.lines == [((), {})]
    assert ("performed", None) in watcher.events


def test_the_error_path(watcher: Watcher) -> None:  # K151
    with pytest.raises(ValueError, match="no"):
        perform({**WIRE, "method": "fail"})
    assert watcher.events == [("perform", "shop.models.User.fail"), ("ended", "failed", "ValueError")]


def test_how_a_run_ended_is_told_with_its_state(watcher: Watcher) -> None:
    def ended(wire: Any, delivery: Delivery | None = None) -> Any:
        watcher.events.clear()
        with pytest.raises((Again, Keep, Skip, ValueError)):
            perform(wire, delivery)
        return watcher.events[-1][1:]

    assert ended({**WIRE, "method": "nothing"}) == ("kept", "TargetNotFound")
    assert ended({**WIRE, "method": "fail", "options": {"retry": {"max": 1}}}, Delivery()) == (
        "scheduled",
        "ValueError",
    )
    assert ended({**WIRE, "options": {"expires": 1}}) == ("expired", "NoneType")
    assert ended(WIRE, Delivery(deaths=3)) == ("kept", "NoneType")


@pytest.mark.parametrize("state", ["aborted", "discarded"])
def test_a_hook_may_end_a_call_before_it_is_sent(memory: MemoryHandler, state: str) -> None:  # K76
    later_hooks: list[str] = []

    class Inner:
        @hookimpl(wrapper=True, trylast=True)
        def backgrounded_enqueue(self, calls: Any) -> Any:
            later_hooks.append("ran")
            return (yield)

    class Gate:
        @hookimpl(wrapper=True, tryfirst=True)
        def backgrounded_enqueue(self, calls: Any) -> Any:
            raise Skip(state)
            yield

    register_plugin(Inner())
    register_plugin(Gate())
    job = User().backgrounded.do_stuff()
    assert job.state == state
    assert (memory.calls, later_hooks) == ([], [])
    with batch() as jobs:
        User().backgrounded.do_stuff()
    assert [item.state for item in jobs] == [state]


@pytest.mark.parametrize("state", ["aborted", "discarded"])
def test_a_hook_may_end_a_job_before_it_runs(watcher: Watcher, state: str) -> None:  # K153
    class Gate:
        @hookimpl(wrapper=True, tryfirst=True)
        def backgrounded_perform(self, job: Any) -> Any:
            raise Skip(state)
            yield

    register_plugin(Gate())
    with pytest.raises(Skip) as caught:
        perform(WIRE)
    assert caught.value.state == state
    assert diary.lines == []
    assert watcher.events == [("ended", state, "NoneType")]


@pytest.mark.parametrize("state", ["succeeded", "failed", "running", "kept"])
def test_a_skip_is_one_of_the_four_kinds(state: str) -> None:
    with pytest.raises(ValueError, match="not run"):
        Skip(state)


def test_any_other_error_of_an_enqueue_hook_reaches_the_caller_and_nothing_is_sent(memory: MemoryHandler) -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def backgrounded_enqueue(self, calls: Any) -> Any:
            raise RuntimeError("mine")
            yield

    register_plugin(Broken())
    with pytest.raises(RuntimeError, match="mine"):
        User().backgrounded.do_stuff()
    assert memory.calls == []


def test_a_hook_that_forgets_to_return_loses_nothing(memory: MemoryHandler) -> None:
    class Forgetful:
        @hookimpl(wrapper=True)
        def backgrounded_enqueue(self, calls: Any) -> Any:
            yield

    register_plugin(Forgetful())
    assert User().backgrounded.do_stuff().id == memory.calls[0].id


def test_a_call_whose_hook_failed_afterwards_is_queued_all_the_same(memory: MemoryHandler) -> None:
    class Late:
        @hookimpl(wrapper=True)
        def backgrounded_enqueue(self, calls: Any) -> Any:
            yield
            raise RuntimeError("too late")

    register_plugin(Late())
    with pytest.raises(RuntimeError, match="too late"), batch() as jobs:
        User().backgrounded.do_stuff()
    assert [job.state for job in jobs] == ["queued"]
    assert len(memory.calls) == 1


class Down:
    """A handler whose engine cannot be reached."""

    protocol = 1
    features = frozenset({Feature.QUEUES})

    def enqueue(self, call: Call) -> str | None:
        raise EnqueueError("the broker is down")


def test_a_failed_hand_over_is_told_with_its_error(watcher: Watcher) -> None:  # K156
    backgrounded.configure(Down)
    with pytest.raises(EnqueueError):
        User().backgrounded.do_stuff()
    assert watcher.events[-1] == ("not sent", ["do_stuff"], "EnqueueError")
    watcher.events.clear()
    with pytest.raises(BatchError), batch():
        User().backgrounded.do_stuff()
        User().backgrounded.rename("x")
    assert watcher.events[-1] == ("not sent", ["do_stuff"], "EnqueueError")


def test_a_failing_not_sent_hook_does_not_hide_the_error(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @hookimpl
        def backgrounded_not_sent(self, calls: Any) -> None:
            raise RuntimeError("mine")

    register_plugin(Broken())
    backgrounded.configure(Down)
    with pytest.raises(EnqueueError, match="the broker is down"):
        User().backgrounded.do_stuff()
    assert "backgrounded_not_sent hook failed" in caplog.text


def test_a_failing_ended_hook_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:  # K147, K157
    class Broken:
        @hookimpl
        def backgrounded_ended(self) -> None:
            raise RuntimeError("mine")

    register_plugin(Broken())
    assert perform(WIRE) == "x"
    with pytest.raises(ValueError, match="no"):
        perform({**WIRE, "method": "fail"})
    with pytest.raises(Keep):
        perform({**WIRE, "method": "nothing"})
    errors = [record for record in caplog.records if "backgrounded_ended hook failed" in record.getMessage()]
    assert len(errors) == 3
    assert all(record.levelno == logging.ERROR and record.exc_info for record in errors)
    assert current_job() is None


def test_a_failing_perform_hook_fails_the_run() -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def backgrounded_perform(self, job: Any) -> Any:
            raise RuntimeError("mine")
            yield

    register_plugin(Broken())
    with pytest.raises(RuntimeError, match="mine"):
        perform(WIRE)
    with pytest.raises(Again):
        perform({**WIRE, "options": {"retry": {"max": 1}}}, Delivery())
    assert diary.lines == []


def test_an_error_handler_of_a_hook_still_sees_the_job() -> None:  # K163
    seen: list[Any] = []

    class Reporter:
        @hookimpl
        def backgrounded_ended(self, job: Any) -> None:
            seen.append(current_job() is job)

    register_plugin(Reporter())
    with pytest.raises(ValueError, match="no"):
        perform({**WIRE, "method": "fail"})
    assert seen == [True]


# -- values and names from plugins


def test_converters_and_locators_come_from_plugins(memory: MemoryHandler) -> None:
    class Points:
        name = "point"

        def refer(self, obj: Any) -> Any:
            return obj.x if isinstance(obj, Point) else None

        def find(self, key: Any) -> Any:
            return Point(key, 100)

    class Plugin:
        @hookimpl
        def backgrounded_locators(self) -> Any:
            return [Points()]

        @hookimpl
        def backgrounded_converters(self) -> Any:
            return [Converter(Token, lambda token: token.text, Token, "token")]

    register_plugin(Plugin())
    Point(1).backgrounded.total(5)
    User().backgrounded.take(Token("t"))
    assert memory.calls[0].target == {"ref": ["point", 1]}
    memory.run()
    assert diary.lines[0] == 106
    assert diary.lines[1][0][0].text == "t"


class Token:
    def __init__(self, text: str) -> None:
        self.text = text


def test_a_worker_knows_the_plugins_converters_at_once() -> None:
    class Plugin:
        @hookimpl
        def backgrounded_converters(self) -> Any:
            return [Converter(Token, lambda token: token.text, Token, "token")]

    register_plugin(Plugin())
    wire = {**WIRE, "method": "see_myself", "headers": {"token": {"$x": ["token", "t"]}}}
    perform(wire)
    assert diary.lines[0].headers["token"].text == "t"


def test_a_reader_of_results_knows_the_plugins_converters_at_once() -> None:
    class Plugin:
        @hookimpl
        def backgrounded_converters(self) -> Any:
            return [Converter(Token, lambda token: token.text, Token, "token")]

    register_plugin(Plugin())

    class Engine(Down):
        features = frozenset({Feature.RESULTS})

        def result(self, id: str, timeout: float | None) -> Any:
            return {"$x": ["token", "r"]}

    backgrounded.configure(Engine)
    assert backgrounded.job("1").result().text == "r"


# -- plugins that do not fit


class Misspelt:
    @hookimpl
    def backgrounded_heders(self) -> None: ...


class WrongArguments:
    @hookimpl
    def backgrounded_headers(self, colour: str) -> None: ...


class RivalOfTheRun:
    @hookimpl
    def backgrounded_perform(self, job: Any) -> Any:
        return "instead"


class RivalOfTheHandOver:
    @hookimpl
    def backgrounded_enqueue(self, calls: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("plugin", "word"),
    [
        (Misspelt, "backgrounded_heders"),
        (WrongArguments, "colour"),
        (RivalOfTheRun, "backgrounded_perform must be @hookimpl.wrapper=True"),
        (RivalOfTheHandOver, "backgrounded_enqueue must be @hookimpl.wrapper=True"),
    ],
)
def test_a_plugin_that_does_not_fit_is_a_configuration_error(memory: MemoryHandler, plugin: Any, word: str) -> None:
    register_plugin(plugin())
    with pytest.raises(ConfigurationError, match=word):
        User().backgrounded.do_stuff()
    assert memory.calls == []
