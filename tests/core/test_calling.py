"""How is a method called in the background? Every entrance, and what each refuses at the call."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import pydoc
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded import (
    Backgrounded,
    BadArguments,
    Call,
    CallError,
    ConfigurationError,
    EncodeError,
    Job,
    NotAllowed,
    Retry,
    UnknownMethod,
    UnsupportedOption,
    abackground,
    alater,
    background,
    backgroundable,
    batch,
    install,
    later,
)
from backgrounded.handler import Feature
from backgrounded.handlers.memory import MemoryHandler

import shop.jobs
from shop import diary
from shop.models import Awkward, Guest, Order, Point, Report, SpecialOrder, Stranger, User, WithMeta


@pytest.fixture(autouse=True)
def blank_diary() -> None:
    diary.lines.clear()


def the_call(memory: MemoryHandler) -> Call:
    (call,) = memory.calls
    return call


# -- the proxy


def test_an_object_and_a_class_offer_the_proxy_and_nothing_is_enqueued_yet(memory: MemoryHandler) -> None:  # K01, K02
    for proxy in (User().backgrounded, User.backgrounded, User().backgrounded(queue="q"), background(User())):
        assert callable(proxy.sync)
    assert memory.calls == []


def test_a_call_reaches_the_handler_once_with_target_method_arguments_and_options(memory: MemoryHandler) -> None:  # K03
    job = User().backgrounded(queue="custom").do_stuff(2)
    call = the_call(memory)
    assert (call.method, call.name, call.args, call.kwargs) == ("do_stuff", "shop.models.User.do_stuff", (2,), {})
    assert call.target == {"built": ["shop.models:User", [], {}]}
    assert (call.options.queue, call.options.given()) == ("custom", {"queue": "custom"})
    assert call.id == job.id
    assert memory.run() == 1
    assert diary.lines == [("do_stuff", 2)]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("foo", 1, "bar"), {}),  # K04
        ((), {}),  # K05
        (("Smith",), {"title": "Mr."}),  # K06
        (({"yo": "sup"},), {}),  # K07
        ((["x"],), {}),  # K67
        (((1, (2,)),), {"n": None, "b": True}),
        ((), {"queue": "b", "delay": 5, "self": 1, "obj": 2, "method": 3, "options": 4, "name": 5, "args": 6}),  # K09
    ],
)
def test_arguments_arrive_as_they_were_given(memory: MemoryHandler, args: Any, kwargs: Any) -> None:
    if "self" not in kwargs:  # Python's own rule for a method that is written with a `self`
        User().backgrounded(queue="a").take(*args, **kwargs)
    background(shop.jobs, queue="a").take(*args, **kwargs)
    later(shop.jobs.take, queue="a")(*args, **kwargs)
    assert all(
        (call.options.given(), call.args, call.kwargs) == ({"queue": "a"}, args, kwargs) for call in memory.calls
    )
    ran = memory.run()
    assert diary.lines == [(args, kwargs)] * ran


def test_options_are_apart_from_the_arguments(memory: MemoryHandler) -> None:  # K08, K09, K10
    Awkward().backgrounded(queue="a").queue(queue="b")
    call = the_call(memory)
    assert call.options.given() == {"queue": "a"}
    assert call.kwargs == {"queue": "b"}
    Awkward().backgrounded().exit()
    assert memory.calls[-1].options.given() == {}


@pytest.mark.parametrize("given", [None, {}, "custom"])
def test_options_are_keyword_only(given: Any) -> None:  # K11
    with pytest.raises(TypeError):
        User().backgrounded(given)
    with pytest.raises(TypeError):
        background(User(), given)  # type: ignore[misc]
    with pytest.raises(TypeError):
        later(User().do_stuff, given)  # type: ignore[misc]


def test_a_dict_of_options_is_not_changed(memory: MemoryHandler) -> None:  # K12
    options: dict[str, Any] = {"queue": "a", "delay": 5, "retry": Retry(1, wait=[1, 2])}
    before = copy.deepcopy(options)
    for _ in range(2):
        User().backgrounded(**options).do_stuff()
    assert options == before
    assert len(memory.calls) == 2


def test_options_of_one_call_never_reach_another(memory: MemoryHandler) -> None:  # K13, K96, K97
    one, two = User().backgrounded(queue="one"), User().backgrounded(queue="two", priority=9)

    def call(proxy: Any, n: int) -> None:
        for _ in range(50):
            proxy.do_stuff(n)
            User().backgrounded.do_stuff(0)

    threads = [threading.Thread(target=call, args=pair) for pair in ((one, 1), (two, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = {(c.args[0], c.options.queue, c.options.priority) for c in memory.calls}
    assert seen == {(0, None, None), (1, "one", None), (2, "two", 9)}
    assert len(memory.calls) == 200


def test_the_outcome_is_a_job_and_never_the_return_value(memory: MemoryHandler) -> None:  # K14, K70
    job = User().backgrounded.do_stuff(1)
    assert type(job) is Job
    assert job.id == the_call(memory).id
    assert User().do_stuff(1) == "x"  # K128: without the word it runs now


@pytest.mark.parametrize("name", ["nope", "_private", "__secret__", "_User__mangled"])
def test_an_unknown_or_private_name_is_an_attribute_error_at_the_call(
    memory: MemoryHandler, name: str
) -> None:  # K15, K17
    for proxy in (User().backgrounded, User.backgrounded, background(shop.jobs), User().abackgrounded):
        with pytest.raises(UnknownMethod):
            getattr(proxy, name)
        assert not hasattr(proxy, name)
    assert memory.calls == []


def test_a_method_that_its_class_got_later_is_callable(memory: MemoryHandler) -> None:  # K16
    class_: Any = type("Grown", (Backgrounded,), {"__module__": __name__, "__qualname__": "Grown"})
    globals()["Grown"] = class_
    with pytest.raises(UnknownMethod):
        class_().backgrounded.grown  # noqa: B018
    class_.grown = grown
    class_().backgrounded.grown()
    memory.run()
    assert diary.lines == ["Grown grown"]


def grown(self: Any) -> str:
    return diary.write(f"{type(self).__name__} grown")


@pytest.mark.parametrize("name", ["exit", "send", "method", "keys", "options", "delegate", "obj", "later", "map"])
def test_the_proxy_hides_no_name_of_its_object(memory: MemoryHandler, name: str) -> None:  # K18
    getattr(Awkward().backgrounded, name)()
    getattr(background(Awkward(), queue="q"), name)()
    assert memory.run() == 2
    assert diary.lines == [name, name]


def test_the_proxy_has_no_public_name_of_its_own() -> None:
    assert [name for name in dir(type(User().backgrounded)) if not name.startswith("_")] == []
    assert [name for name in dir(type(User().abackgrounded)) if not name.startswith("_")] == []


class Both(Backgrounded):
    """K19: two methods under names that differ only in whom they are for."""

    @classmethod
    def name(cls) -> str:
        return diary.write(f"class {cls.__name__}")


class Instance(Both):
    def name(self) -> str:  # type: ignore[override]
        return diary.write("instance")


def test_class_and_instance_method_of_one_name_do_not_meet(memory: MemoryHandler) -> None:  # K19
    Both.backgrounded.name()
    Instance().backgrounded.name()
    with pytest.raises(BadArguments, match="call it on an object"):
        Instance.backgrounded.name()
    memory.run()
    assert diary.lines == ["class Both", "instance"]


def test_functions_of_a_module_run(memory: MemoryHandler) -> None:  # K20
    background(shop.jobs, queue="slow").send_mail("a@b.c", subject="hello")
    memory.run()
    assert diary.lines == ["a@b.c hello"]


def test_class_static_and_inherited_methods_run_on_the_class_that_was_called(memory: MemoryHandler) -> None:  # K21, K22
    User.backgrounded.sync(1)
    Guest.backgrounded.sync(2)
    Guest().backgrounded.sync(3)
    User.backgrounded.ping("a")
    User().backgrounded.ping("b")
    Guest().backgrounded.do_stuff(4)
    Guest().backgrounded.rename("Ann")
    memory.run()
    assert diary.lines == [
        *[("User", "sync", 1), ("Guest", "sync", 2), ("Guest", "sync", 3)],
        *["a", "b", ("do_stuff", 4), "guest Ann"],
    ]
    memory.clear()


def test_calls_keep_their_order_and_a_proxy_can_be_used_again(memory: MemoryHandler) -> None:  # K23, K24
    proxy = User().backgrounded(queue="x")
    proxy.do_stuff(1)
    proxy.rename("b")
    proxy(priority="high").do_stuff(2)
    proxy.do_stuff(3)
    assert [call.options.queue for call in memory.calls] == ["x"] * 4
    assert [call.options.priority for call in memory.calls] == [None, None, 8, None]
    assert [call.method for call in memory.calls] == ["do_stuff", "rename", "do_stuff", "do_stuff"]


def test_a_method_may_call_in_the_background(memory: MemoryHandler) -> None:  # K25
    shop.jobs.nest.later()  # type: ignore[attr-defined]
    assert memory.run() == 1
    assert [call.method for call in memory.calls] == ["do_stuff"]


@pytest.mark.parametrize("name", ["do_stuff", "sync", "ping"])
def test_an_override_on_one_object_is_refused(memory: MemoryHandler, name: str) -> None:  # K26
    user = User()
    setattr(user, name, lambda n=1: "mine")
    with pytest.raises(CallError, match="overridden on this one object"):
        getattr(user.backgrounded, name)()
    assert memory.calls == []


def test_arguments_are_copied_at_the_call(memory: MemoryHandler) -> None:  # K61
    items, deep = [1], {"a": [1]}
    User().backgrounded.take(items, deep=deep)
    items.append(2)
    deep["a"].append(2)
    memory.run()
    assert diary.lines == [(([1],), {"deep": {"a": [1]}})]


def test_a_string_target_is_not_taken_for_a_name() -> None:  # K40
    backgrounded.configure("memory", allow=["builtins"])
    with pytest.raises(UnknownMethod, match="str has no method 'do_stuff'"):
        background("shop.models:User").do_stuff()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: User().backgrounded.do_stuff(1, 2),
            ["shop.models.User.do_stuff(n: 'int' = 1)", "too many positional"],
        ),
        (lambda: User().backgrounded.do_stuff(m=1), ["'m'"]),
        (User().backgrounded.rename, ["shop.models.User.rename(first", "'first'"]),
        (lambda: User.backgrounded.sync(1, 2), ["shop.models.User.sync(key"]),
        (lambda: User.backgrounded.ping(1, 2), ["shop.models.User.ping(text"]),
        (lambda: background(shop.jobs).send_mail(), ["shop.jobs.send_mail(to", "'to'"]),
        (lambda: later(shop.jobs.send_mail)("a", "b"), ["shop.jobs.send_mail(to"]),
        (lambda: Order().send_confirmation_backgrounded(1, 2, 3), ["send_confirmation(to"]),
        (User.backgrounded.do_stuff, ["shop.models.User.do_stuff", "call it on an object"]),
    ],
)
def test_arguments_that_do_not_fit_fail_at_the_call_with_the_signature(
    memory: MemoryHandler, call: Callable[[], Any], words: list[str]
) -> None:
    with pytest.raises(BadArguments) as caught:
        call()
    assert isinstance(caught.value, TypeError)
    assert all(word in str(caught.value) for word in words), caught.value
    assert memory.calls == []


def test_a_value_that_cannot_travel_fails_at_the_call_with_its_path(memory: MemoryHandler) -> None:  # K57
    with pytest.raises(EncodeError) as caught:
        User().backgrounded.take(items=[1, 2, 3, threading.Lock()])
    assert caught.value.path == "kwargs['items'][3]"
    assert memory.calls == []


def test_a_target_that_cannot_be_found_again_fails_at_the_call_with_the_ways_out(memory: MemoryHandler) -> None:  # K42
    class Stateful(Backgrounded):
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def work(self) -> None: ...

    with pytest.raises(EncodeError, match="__backgrounded_args__"):
        Stateful().backgrounded.work()
    assert memory.calls == []


def test_an_object_is_built_again_from_its_constructors_arguments(memory: MemoryHandler) -> None:  # K41
    Point(2, y=3).backgrounded.total(4)
    memory.run()
    assert diary.lines == [9]


def test_proxies_stand_probing(memory: MemoryHandler) -> None:
    point = Point(1)
    for proxy in (point.backgrounded(queue="q"), background(point, queue="q"), point.abackgrounded(queue="q")):
        assert repr(proxy) == "<backgrounded proxy of a shop.models.Point>"
        assert dir(proxy) == ["total"]
        twin = copy.copy(proxy)
        assert type(twin) is type(proxy)
        assert not hasattr(copy.deepcopy(proxy), "__wrapped__")
        assert not hasattr(proxy, "_ipython_canary_method_should_not_exist_")
        assert not hasattr(proxy, "_repr_html_")
        assert pydoc.render_doc(proxy)
    copy.copy(point.backgrounded(queue="q")).total()
    pickle.loads(pickle.dumps(User().backgrounded(queue="q"))).do_stuff()
    assert [call.options.queue for call in memory.calls] == ["q", "q"]
    assert repr(User.backgrounded) == "<backgrounded proxy of shop.models.User>"
    assert repr(background(shop.jobs)) == "<backgrounded proxy of shop.jobs>"
    assert {"do_stuff", "sync", "ping", "fetch"} <= set(dir(User().backgrounded))
    assert {"numbers", "balance", "Meta", "shout", "_private"}.isdisjoint(dir(User().backgrounded))
    assert "closed" not in dir(background(shop.jobs))
    with pytest.raises(AttributeError, match="cannot set"):
        User().backgrounded.do_stuff = 1


def test_a_proxys_repr_and_error_show_no_state() -> None:
    point = Point(4711)
    assert "4711" not in repr(background(point)) + repr(point.backgrounded.total)


# -- the mixin, install, the decorator on a class


def test_the_mixin_adds_two_names_and_no_dict() -> None:
    class Slotted(Backgrounded):
        __slots__ = ("x",)

    assert not hasattr(Slotted(), "__dict__")
    assert {name for name in vars(Backgrounded) if not name.startswith("__")} == {"backgrounded", "abackgrounded"}


class Foreign:
    def work(self, n: int = 0) -> str:
        return diary.write(f"foreign {n}")


class ForeignChild(Foreign):
    def more(self) -> str:
        return diary.write("more")


def test_install_puts_the_mixin_on_a_class_of_others(memory: MemoryHandler) -> None:
    assert install(Foreign) is Foreign
    assert install(Foreign) is Foreign  # twice is once
    Foreign().backgrounded(queue="q").work(1)  # type: ignore[attr-defined]
    ForeignChild().backgrounded.more()  # type: ignore[attr-defined]
    memory.run()
    assert diary.lines == ["foreign 1", "more"]


def test_install_refuses_what_it_cannot_or_should_not_change() -> None:
    class Taken:
        backgrounded = 1

    with pytest.raises(ConfigurationError, match="background"):
        install(Taken)
    with pytest.raises(ConfigurationError, match="background"):
        install(dict)
    with pytest.raises(ConfigurationError, match="a class"):
        install(User())  # type: ignore[type-var]


def test_the_decorator_on_a_class_opens_its_body(memory: MemoryHandler) -> None:
    background(Report()).build(2026)
    assert not hasattr(Report, "backgrounded")
    memory.run()
    assert diary.lines == ["built 2026"]


# -- @backgroundable on a method


def test_a_declared_method_runs_now_when_called() -> None:
    order = Order()
    assert order.send_confirmation("you") == "confirmed you"
    assert Order.send_confirmation(order, "you") == "confirmed you"
    assert Order.class_inside(1) == "Order class_inside 1"
    assert SpecialOrder.class_outside(2) == "SpecialOrder class_outside 2"
    assert order.static_inside(3) == Order.static_inside(3) == "static_inside 3"
    assert order.static_outside(4) == Order.static_outside(4) == "static_outside 4"
    assert SpecialOrder().plain() == "plain"


def test_a_declared_method_has_a_twin_that_completion_and_help_show(memory: MemoryHandler) -> None:
    assert "send_confirmation_backgrounded" in dir(Order())
    assert "send_confirmation_backgrounded" in dir(Order)
    twin = Order.send_confirmation_backgrounded
    assert inspect.isfunction(twin)
    assert str(inspect.signature(twin)).startswith("(self, to")
    assert "in the background" in pydoc.render_doc(Order)
    assert "Tell the customer." in (twin.__doc__ or "")
    job = Order().send_confirmation_backgrounded("you")
    call = the_call(memory)
    assert (call.method, call.args, call.id) == ("send_confirmation", ("you",), job.id)
    assert call.options.given() == {"queue": "mail", "retry": Retry(5)}


def test_a_declared_methods_later_is_the_same_call(memory: MemoryHandler) -> None:
    Order().send_confirmation.later("you")
    later(Order().send_confirmation, queue="other")("me")
    Order().backgrounded(priority=9).send_confirmation()
    assert [call.options.queue for call in memory.calls] == ["mail", "other", "mail"]
    assert {call.method for call in memory.calls} == {"send_confirmation"}
    assert all(call.options.retry == Retry(5) for call in memory.calls)


@pytest.mark.parametrize("name", ["class_inside", "class_outside", "static_inside", "static_outside"])
def test_declared_class_and_static_methods_in_either_order_of_the_decorators(memory: MemoryHandler, name: str) -> None:
    queue = "outside" if name.endswith("outside") else None
    kind = "Order " if name.startswith("class") else ""
    getattr(Order.backgrounded, name)(1)
    getattr(Order().backgrounded, name)(2)
    later(getattr(Order, name))(3)
    getattr(background(Order), name)(4)
    assert [call.options.queue for call in memory.calls] == [queue] * 4
    memory.run()
    assert diary.lines == [f"{kind}{name} {n}" for n in (1, 2, 3, 4)]


def test_a_declared_class_method_in_a_subclass_runs_on_the_subclass(memory: MemoryHandler) -> None:
    SpecialOrder.class_inside.later(1)
    SpecialOrder.class_inside_backgrounded(2)
    SpecialOrder().class_inside_backgrounded(3)
    later(SpecialOrder.class_outside)(4)
    SpecialOrder.static_inside_backgrounded(5)
    SpecialOrder.static_inside.later(6)
    Order.static_outside.later(7)
    memory.run()
    assert diary.lines == [
        *[f"SpecialOrder class_inside {n}" for n in (1, 2, 3)],
        *["SpecialOrder class_outside 4", "static_inside 5", "static_inside 6", "static_outside 7"],
    ]


def test_later_of_a_class_method_is_never_the_wrong_class(memory: MemoryHandler) -> None:
    """Below `@classmethod`, Python 3.13 does not ask the descriptor: it says what to do rather than guess."""
    if sys.version_info >= (3, 13):
        with pytest.raises(CallError, match="above @classmethod"):
            SpecialOrder.class_outside.later(1)  # type: ignore[attr-defined]
        return
    SpecialOrder.class_outside.later(1)  # type: ignore[attr-defined]
    memory.run()
    assert diary.lines == ["SpecialOrder class_outside 1"]


def test_a_twin_of_the_users_own_stays() -> None:
    class Own(Backgrounded):
        @backgroundable
        def go(self) -> None: ...

        def go_backgrounded(self) -> str:
            return "mine"

    assert Own().go_backgrounded() == "mine"


def test_a_declared_async_method_is_awaited(memory: MemoryHandler) -> None:
    assert asyncio.run(Order().fetch(3)) == 3
    Order().fetch.later(4)
    memory.run()
    assert diary.lines == [3, 4]


def test_defaults_of_a_declaration_are_checked_where_they_stand() -> None:
    with pytest.raises(UnsupportedOption, match="did you mean 'queue'"):
        backgroundable(quue="x")  # type: ignore[call-overload]
    with pytest.raises(CallError):
        backgroundable(retry=-1)
    with pytest.raises(ConfigurationError, match="one string"):
        backgroundable(inherit="save")
    with pytest.raises(ConfigurationError, match="belongs on a class"):
        backgroundable(inherit=["save"])(shop.jobs.closed)
    with pytest.raises(ConfigurationError, match="takes a class, method or function"):
        backgroundable(3)  # type: ignore[call-overload]


# -- @backgroundable on a function


def test_a_declared_function_stays_a_function(memory: MemoryHandler) -> None:
    assert inspect.isfunction(shop.jobs.send_mail)
    assert pickle.loads(pickle.dumps(shop.jobs.send_mail)) is shop.jobs.send_mail
    assert shop.jobs.send_mail("a") == "a"
    assert shop.jobs.send_mail.__doc__ == "Send a letter."
    assert list(inspect.signature(shop.jobs.send_mail).parameters) == ["to", "subject"]
    shop.jobs.rebuild.later(2026)  # type: ignore[attr-defined]
    assert the_call(memory).name == "shop.jobs.rebuild"
    assert the_call(memory).options.given() == {"queue": "slow", "priority": 2}
    later(shop.jobs.rebuild, priority=7)(2027)
    assert memory.calls[-1].options.given() == {"queue": "slow", "priority": 7}


# -- later


@pytest.mark.parametrize(
    ("callable_", "args", "name"),
    [
        (User().do_stuff, (2,), "shop.models.User.do_stuff"),
        (Guest().do_stuff, (2,), "shop.models.Guest.do_stuff"),
        (User.sync, (2,), "shop.models.User.sync"),
        (Guest.sync, (2,), "shop.models.Guest.sync"),
        (User().sync, (2,), "shop.models.User.sync"),
        (User.ping, ("x",), "shop.models.User.ping"),
        (User().ping, ("x",), "shop.models.User.ping"),
        (shop.jobs.send_mail, ("x",), "shop.jobs.send_mail"),
        (shop.jobs.fetch, ("x",), "shop.jobs.fetch"),
        (User().fetch, ("x",), "shop.models.User.fetch"),
    ],
)
def test_later_takes_methods_and_functions(memory: MemoryHandler, callable_: Any, args: Any, name: str) -> None:
    job = later(callable_, queue="custom")(*args)
    assert (the_call(memory).name, the_call(memory).options.queue, job.name) == (name, "custom", name)
    memory.run()
    assert len(diary.lines) == 1


@pytest.mark.parametrize(
    ("callable_", "error", "word"),
    [
        (User.do_stuff, CallError, "method of instances"),
        (User, CallError, "not type"),
        (len, CallError, "builtin"),
        ([].append, CallError, "builtin"),
        (shop.jobs.closed, NotAllowed, "opted in"),
        (shop.jobs.replaced, NotAllowed, "local"),
        (shop.jobs.nameless, NotAllowed, "lambda"),
        (Stranger().work, NotAllowed, "opted in"),
        (WithMeta.meta_method, UnknownMethod, "meta_method"),
        (User()._private, UnknownMethod, "private"),
        (User().numbers, CallError, "generator"),
        (User().anumbers, CallError, "generator"),
        ("do_stuff", CallError, "not str"),
        (pytest, CallError, "not module"),
    ],
)
def test_later_refuses_the_rest(memory: MemoryHandler, callable_: Any, error: type[CallError], word: str) -> None:
    with pytest.raises(error, match=word):
        later(callable_)()
    assert memory.calls == []


def test_later_checks_its_options_where_they_are_given() -> None:
    with pytest.raises(UnsupportedOption, match="quue"):
        later(User().do_stuff, quue="x")  # type: ignore[call-arg]


# -- async


def test_an_async_method_of_a_plain_call_is_run_by_the_worker(memory: MemoryHandler) -> None:  # K126
    User().backgrounded.fetch("u")
    memory.run()
    assert diary.lines == ["fetched u"]


def test_the_awaited_twins_give_jobs(memory: MemoryHandler) -> None:
    async def main() -> list[Job[Any]]:
        return [
            await User().abackgrounded(queue="q").do_stuff(1),
            await User.abackgrounded(queue="q").sync(2),
            await abackground(shop.jobs, queue="q").send_mail("x"),
            await alater(User().do_stuff, queue="q")(3),
            await alater(shop.jobs.fetch, queue="q")("u"),
        ]

    jobs = asyncio.run(main())
    assert [job.id for job in jobs] == [call.id for call in memory.calls]
    assert {call.options.queue for call in memory.calls} == {"q"}


class Slow:
    """A handler whose engine takes its time: `enqueue` returns when it is told to."""

    protocol: ClassVar[int] = 1
    features = frozenset({Feature.QUEUES})

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.calls: list[Call] = []
        self.threads: list[int] = []

    def enqueue(self, call: Call) -> str | None:
        assert self.go_on.wait(60), "nobody else came to run: the event loop was blocked"
        self.threads.append(threading.get_ident())
        self.calls.append(call)
        return None


@pytest.mark.parametrize("way", ["mixin", "abackground", "alater"])
def test_the_awaited_twins_do_not_block_the_event_loop(way: str) -> None:
    handler = Slow()
    backgrounded.configure(handler)
    user = User()
    items = [1]

    async def other() -> None:
        await asyncio.sleep(0.01)
        items.append(2)
        handler.go_on.set()

    async def main() -> None:
        call = {"mixin": user.abackgrounded.take, "abackground": abackground(user).take, "alater": alater(user.take)}
        await asyncio.gather(call[way](items), other())

    asyncio.run(main())
    assert handler.calls[0].tree["args"] == [[1]], "the arguments are copied at the call"
    assert handler.threads != [threading.get_ident()]


def test_the_awaited_twins_join_a_batch(memory: MemoryHandler) -> None:
    async def main() -> Job[Any]:
        with batch() as jobs:
            job = await User().abackgrounded.do_stuff(1)
            assert memory.calls == []
            assert job.state == "deferred"
        assert len(jobs) == 1
        return job

    job = asyncio.run(main())
    assert [call.id for call in memory.calls] == [job.id]


def test_an_awaited_call_fails_at_the_call_too(memory: MemoryHandler) -> None:
    async def main() -> None:
        with pytest.raises(BadArguments):
            await User().abackgrounded.do_stuff(1, 2)
        with pytest.raises(UnknownMethod):
            User().abackgrounded.nope  # noqa: B018

    asyncio.run(main())
    assert memory.calls == []


# -- without configuration


def test_unconfigured_the_method_has_run_on_this_thread_when_the_call_returns() -> None:  # K164, K165, K169
    job = background(shop.jobs).take((1, 2))
    assert diary.lines == [(((1, 2),), {})]
    assert job.state == "succeeded"
    background(shop.jobs).where()
    assert diary.lines[-1] == threading.get_ident()


def test_inline_raises_the_methods_own_exception_to_the_caller() -> None:  # K166
    with pytest.raises(ValueError, match="no") as caught:
        User().backgrounded.fail()
    assert type(caught.value) is ValueError
    with pytest.raises(KeyboardInterrupt):
        background(Interrupting()).go()


class Interrupting(Backgrounded):
    def go(self) -> None:
        raise KeyboardInterrupt


def test_null_runs_nothing_and_the_call_succeeds() -> None:  # K168
    backgrounded.configure("null")
    assert User().backgrounded.do_stuff().state == "discarded"
    assert diary.lines == []
    with pytest.raises(BadArguments):
        User().backgrounded.do_stuff(1, 2)
