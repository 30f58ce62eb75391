"""Where do calls go? Handlers by name, by object, by class, by environment; and how all of it is put back."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, ClassVar

import backgrounded
import pytest
from backgrounded import (
    Backgrounded,
    ConfigurationError,
    EncodeError,
    HandlerNotFound,
    Limits,
    NotAllowed,
    _runtime,
    background,
    backgroundable,
    configure,
    get_handler,
    perform,
    reset,
    using,
    worker_handler,
)
from backgrounded._configuration import parse_url
from backgrounded.handler import Feature, check_seconds, put_into_url, take_from_url
from backgrounded.handlers.inline import InlineHandler
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.handlers.thread import ThreadHandler

from shop import diary
from shop.models import Stranger, User
from stable import stable_id


class Recorder:
    """The smallest handler: it remembers what it got."""

    protocol: ClassVar[int] = 1
    features = frozenset({Feature.QUEUES})

    def __init__(self, url: str | None = None, *, queue: str = "default") -> None:
        self.url, self.queue = url, queue
        self.calls: list[Any] = []

    def enqueue(self, call: Any) -> str | None:
        self.calls.append(call)
        return "engine-1"


# -- by name, object, class


def test_a_handler_by_its_entry_point_name() -> None:
    assert isinstance(configure("memory"), MemoryHandler)
    assert isinstance(get_handler(), MemoryHandler)
    assert isinstance(configure("thread", workers=2), ThreadHandler)


def test_a_handler_by_class_gets_url_and_the_rest() -> None:
    handler: Any = configure(Recorder, url="x://y", queue="custom")  # type: ignore[arg-type]
    assert (handler.url, handler.queue) == ("x://y", "custom")


def test_a_handler_by_object() -> None:
    recorder = Recorder()
    assert configure(recorder) is recorder
    job = User().backgrounded.do_stuff()
    assert [call.id for call in recorder.calls] == [job.id]
    assert job.engine_id == "engine-1"  # K71
    with pytest.raises(ConfigurationError, match="url would have no effect"):
        configure(recorder, url="x://y")


def test_several_named_handlers() -> None:
    main, mail = Recorder(), Recorder()
    configure(main)
    configure(mail, name="mail")
    User().backgrounded.do_stuff()
    User().backgrounded(handler="mail").do_stuff()
    assert ([call.handler for call in main.calls], [call.handler for call in mail.calls]) == (["default"], ["mail"])
    assert (get_handler(), get_handler("mail")) == (main, mail)
    with pytest.raises(ConfigurationError, match=r"under the name 'post'\. Configured: default, mail"):
        User().backgrounded(handler="post").do_stuff()


@backgroundable(handler="mail")
class Letter(Backgrounded):
    def send(self) -> None: ...


class Parent(Backgrounded):
    def send(self) -> None: ...


@backgroundable(handler="mail")
class Child(Parent):
    pass


class Sibling(Parent):
    pass


class Grandchild(Child):
    pass


def test_a_class_may_have_its_own_handler_and_its_parent_and_siblings_do_not_notice() -> None:  # K174
    main, mail = Recorder(), Recorder()
    configure(main)
    configure(mail, name="mail")
    for cls in (Letter, Parent, Child, Sibling, Grandchild):
        cls().backgrounded.send()
    Letter().backgrounded(handler="default").send()
    assert [call.name.split(".")[-2] for call in mail.calls] == ["Letter", "Child", "Grandchild"]
    assert [call.name.split(".")[-2] for call in main.calls] == ["Parent", "Sibling", "Letter"]


def test_configuring_again_replaces_the_named_configuration_whole() -> None:
    configure("memory", allow=["shop"], ignore={"native"}, limits=Limits(max_bytes=1000))
    background(Stranger()).work()
    with pytest.raises(EncodeError, match="may travel"):
        User().backgrounded.take("x" * 2000)
    configure("memory")
    with pytest.raises(NotAllowed):
        background(Stranger()).work  # noqa: B018
    User().backgrounded.take("x" * 2000)


def test_what_another_handler_was_told_to_allow_still_holds() -> None:
    configure("memory", name="other", allow=["shop"], limits=Limits(max_bytes=1000))
    configure("memory")
    background(Stranger()).work()
    with pytest.raises(EncodeError):
        User().backgrounded.take("x" * 2000)


# -- using


def test_using_puts_the_old_state_back_also_on_an_error() -> None:  # K171
    outer = configure("memory")
    with using("memory") as inner:
        assert get_handler() is inner
        with using("null", name="other"), using("null") as innermost:
            assert get_handler() is innermost
        assert get_handler() is inner
        with pytest.raises(ConfigurationError):
            get_handler("other")
        with pytest.raises(RuntimeError), using("null"):
            raise RuntimeError
        assert get_handler() is inner
    assert get_handler() is outer
    with pytest.raises(ConfigurationError), using("memory", nonsense=1):
        pass
    assert get_handler() is outer


def test_what_is_registered_inside_is_gone_afterwards() -> None:
    with using("memory", allow=["shop"]):
        backgrounded.register_service("box", User())
        backgrounded.add_converter(Recorder, lambda value: 1, lambda tree: Recorder(), tag="recorder")
        configure("null", name="inner")
        background(Stranger()).work()
        User().backgrounded.take(Recorder())
    configure("memory")
    with pytest.raises(EncodeError):
        User().backgrounded.take(Recorder())
    with pytest.raises(NotAllowed):
        background(Stranger()).work  # noqa: B018
    with pytest.raises(ConfigurationError):
        get_handler("inner")


def test_what_was_registered_outside_holds_inside() -> None:
    configure("null")
    backgrounded.add_converter(Recorder, lambda value: value.queue, lambda tree: Recorder(queue=tree), tag="recorder")
    with using("memory") as handler:
        User().backgrounded.take(Recorder(queue="q"))
        handler.run()  # type: ignore[attr-defined]
    assert diary.lines[-1][0][0].queue == "q"


def test_using_is_not_seen_by_other_threads() -> None:
    outer = configure("memory")
    seen: list[Any] = []
    with using("null"):
        thread = threading.Thread(target=lambda: seen.append(get_handler()))
        thread.start()
        thread.join()
    assert seen == [outer]


def test_using_belongs_to_its_task_and_what_that_awaits() -> None:
    outer = configure("memory")

    async def scoped(handler: Any) -> bool:
        with using(handler):
            await asyncio.sleep(0.01)
            inner = asyncio.create_task(read())
            return (await read(), await inner, await asyncio.to_thread(get_handler)) == (handler,) * 3

    async def read() -> Any:
        await asyncio.sleep(0)
        return get_handler()

    async def main() -> Any:
        return await asyncio.gather(scoped(Recorder()), scoped(Recorder()), read())

    assert asyncio.run(main()) == [True, True, outer]


def test_reset_leaves_nothing() -> None:
    configure("memory", allow=["shop"])
    backgrounded.register_service("box", User())
    reset()
    with pytest.raises(NotAllowed):
        background(Stranger()).work  # noqa: B018
    assert isinstance(get_handler(), InlineHandler)


# -- from the environment


@pytest.mark.parametrize(
    ("url", "kind", "arguments"),
    [
        ("rq+redis://host:6379/0?queue=custom", "rq", {"url": "redis://host:6379/0", "queue": "custom"}),
        (
            "rq+rediss://u:p%40w@h/0?ssl_cert_reqs=none&queue=q",
            "rq",
            {"url": "rediss://u:p%40w@h/0?ssl_cert_reqs=none", "queue": "q"},
        ),
        ("huey+sqlite:///jobs.db", "huey", {"url": "sqlite:///jobs.db"}),
        ("sqlite:///jobs.db", "sqlite", {"url": "sqlite:///jobs.db"}),
        ("sqlite:////var/jobs.db?queue=mail", "sqlite", {"url": "sqlite:////var/jobs.db", "queue": "mail"}),
        ("celery://shop.celery:app", "celery", {"url": "shop.celery:app"}),
        ("inline://", "inline", {}),
        ("memory://", "memory", {}),
        ("rq+unix:///run/redis.sock?db=1", "rq", {"url": "unix:///run/redis.sock?db=1"}),
    ],
)
def test_the_forms_of_a_url(url: str, kind: str, arguments: dict[str, Any]) -> None:
    assert parse_url(url) == (kind, arguments)


@pytest.mark.parametrize("url", ["redis://h/0", "redis://h/0?db=1&ssl_ca_certs=a&ssl_ca_certs=b%26c&empty="])
@pytest.mark.parametrize("words", [{}, {"queue": "a&b=c?"}, {"queue": "mail", "store": "redis://h/1?db=2"}])
def test_an_adapter_has_words_of_its_own_in_a_url(url: str, words: dict[str, str]) -> None:
    assert take_from_url(put_into_url(url, words.items()), ("queue", "store")) == (url, words)


@pytest.mark.parametrize(("given", "found"), [(5, 5), ("5", 5), ("0.5", 0.5), ("0", None), ("x", None), ("inf", None)])
def test_a_time_may_come_out_of_a_url(given: Any, found: float | None) -> None:
    if found is None:
        with pytest.raises(ConfigurationError, match="engine: wait: must be seconds above 0, got"):
            check_seconds("engine", "wait", given)
    else:
        assert check_seconds("engine", "wait", given) == found


def test_the_url_of_the_environment_configures_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKGROUNDED_URL", "memory://")
    User().backgrounded.do_stuff()
    handler: Any = get_handler()
    assert isinstance(handler, MemoryHandler)
    assert len(handler.calls) == 1
    assert isinstance(configure("null"), type(get_handler())), "what the program says wins"


@pytest.mark.parametrize("url", ["redis", "s3cret@host", "://x", "river://x", "memory://?queue=x", "inline+x://y"])
def test_a_url_that_makes_no_sense_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BACKGROUNDED_URL", url)
    with pytest.raises(ConfigurationError) as caught:
        User().backgrounded.do_stuff()
    assert "s3cret" not in str(caught.value)


def test_the_first_calls_of_many_threads_and_scopes_make_one_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKGROUNDED_URL", "memory://")
    handlers: list[Any] = []
    start = threading.Barrier(8)

    def ask() -> None:
        with using("null", name="scoped"):
            start.wait()
            handlers.append(get_handler())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(handler) for handler in [*handlers, get_handler()]}) == 1


def test_allowed_packages_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKGROUNDED_ALLOW", " nothing , shop.models ")
    configure("memory", allow=["test_configuration"])
    background(Stranger()).work()
    closed = {"v": 1, "id": "1", "target": {"built": ["shop.models:Stranger", [], {}]}, "method": "work"}
    assert perform(closed) == "worked"


@pytest.mark.parametrize(
    ("name", "value"),
    [("BACKGROUNDED_SECRET_KEYS", "k" * 32), ("BACKGROUNDED_ALLOW", "*"), ("BACKGROUNDED_ALLOW", "a b")],
)
def test_an_environment_that_makes_no_sense_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"allow|SECRET_KEYS"):
        configure("memory")
    with pytest.raises(ConfigurationError):
        User().backgrounded.do_stuff()


@pytest.mark.parametrize("keys", [["k" * 32], [b"k" * 32], "k" * 32])
def test_keys_are_refused_until_signing_exists(keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="does not sign messages yet") as caught:
        configure("memory", secret_keys=keys)
    assert "kkk" not in str(caught.value)


@pytest.mark.parametrize("allow", ["*", ["*"]])
def test_allowing_everything_is_refused_until_signing_exists(allow: Any) -> None:
    with pytest.raises(ConfigurationError, match="signed messages"):
        configure("memory", allow=allow)


def test_unconfigured_is_inline_with_one_notice(caplog: pytest.LogCaptureFixture) -> None:  # K164
    diary.lines.clear()
    for _ in range(3):
        User().backgrounded.do_stuff()
        with using("null", name="other"):
            User().backgrounded.do_stuff()
    assert len(diary.lines) == 6
    notices = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(notices) == 1
    assert "not configured" in notices[0].getMessage()
    assert "BACKGROUNDED_URL" in notices[0].getMessage()


def test_inline_on_purpose_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    configure("inline")
    User().backgrounded.do_stuff()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- what is no handler


def test_an_unknown_handler_lists_the_installed_ones_and_the_command() -> None:  # K173
    with pytest.raises(HandlerNotFound) as caught:
        configure("river")
    text = str(caught.value)
    assert "No handler is named 'river'" in text
    assert {"inline", "memory", "null", "thread"} <= set(caught.value.installed)
    assert "Installed: " in text
    assert "inline, memory, null" in text
    assert "pip install backgrounded-river" in text


def handler_class(**body: Any) -> Any:
    return type("Odd", (Recorder,), body)


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        3,
        object(),
        int,
        dict,
        object,
        [],
        Recorder.enqueue,
        sys,
        handler_class(enqueue=None),
        handler_class(enqueue=3)(),
    ],
    ids=stable_id,
)
def test_nonsense_is_refused_when_it_is_configured(nonsense: Any) -> None:  # K172
    with pytest.raises(ConfigurationError, match="not a handler"):
        configure(nonsense)


@pytest.mark.parametrize("protocol", [None, 0, 2, "1", True, 1.5])
def test_another_protocol_is_refused_when_it_is_configured(protocol: Any) -> None:  # K176
    with pytest.raises(ConfigurationError, match="speaks protocol") as caught:
        configure(handler_class(protocol=protocol))
    assert ("upgrade the core" in str(caught.value)) is (protocol == 2)


@pytest.mark.parametrize("features", [None, "queues", ["queues"], {"queues"}, frozenset({"delay"}), frozenset({3})])
def test_features_are_checked_when_they_are_configured(features: Any) -> None:
    with pytest.raises(ConfigurationError, match="features must be"):
        configure(handler_class(features=features))


@pytest.mark.parametrize(
    ("feature", "method"),
    [
        ("bulk", "enqueue_many"),
        ("state", "state"),
        ("results", "result"),
        ("cancel", "cancel"),
        ("kept", "kept"),
        ("kept", "replay"),
        ("kept", "forget"),
        ("worker", "worker_command"),
    ],
)
def test_a_promised_method_must_be_there(feature: str, method: str) -> None:
    with pytest.raises(ConfigurationError, match=f"has no .*{method}"):
        configure(handler_class(features=frozenset({Feature(feature)})))


def test_an_argument_that_the_handler_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'memory'.*colour") as caught:
        configure("memory", colour="red")
    assert "It takes" in str(caught.value)


@pytest.mark.parametrize("thing", [3, object(), "locator"])
def test_a_locator_must_be_one(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="Locator"):
        backgrounded.add_locator(thing)


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_service_needs_a_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        backgrounded.register_service(name, User())


# -- entry points


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions."""
    folder = tmp_path / "site"
    (folder / "fake-1.0.dist-info").mkdir(parents=True)
    (folder / "fake-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def install_points(site: Path, text: str) -> None:
    (site / "fake-1.0.dist-info" / "entry_points.txt").write_text(textwrap.dedent(text))
    reset()


def test_an_installed_but_unused_engine_is_never_imported(site: Path) -> None:
    (site / "fake_broken.py").write_text("raise RuntimeError('imported')\n")
    (site / "fake_good.py").write_text(
        "from test_configuration import Recorder\nclass Good(Recorder):\n    protocol = 1\n"
    )
    install_points(
        site, "[backgrounded.handlers]\nbroken = fake_broken:Handler\ngood = fake_good:Good\nodd = fake_good:Nothing\n"
    )
    handler = configure("good", queue="q")
    User().backgrounded.do_stuff()
    assert type(handler).__name__ == "Good"
    assert "fake_broken" not in sys.modules
    with pytest.raises(ConfigurationError, match="'broken' is installed but cannot be imported: RuntimeError"):
        configure("broken")
    with pytest.raises(ConfigurationError, match="'odd' is installed but cannot be imported: AttributeError"):
        configure("odd")
    with pytest.raises(HandlerNotFound, match=r"Installed: broken, .*\bgood, "):
        configure("river")
    assert get_handler() is handler


def test_plugins_are_found_by_their_entry_points_at_the_first_call(site: Path) -> None:
    (site / "fake_plugin.py").write_text(
        "import backgrounded\n@backgrounded.hookimpl\ndef backgrounded_headers(name, options):\n"
        "    return {'plugin': name}\n"
    )
    install_points(site, "[backgrounded.plugins]\nfake = fake_plugin\n")
    handler: Any = configure("memory")
    assert "fake_plugin" not in sys.modules
    User().backgrounded.do_stuff()
    assert handler.calls[0].headers == {"plugin": "shop.models.User.do_stuff"}
    backgrounded.register_plugin(sys.modules["fake_plugin"])
    User().backgrounded.do_stuff()  # found twice is heard once


def test_a_plugin_that_cannot_be_imported_is_named(site: Path) -> None:
    (site / "fake_bad_plugin.py").write_text("raise RuntimeError('boom')\n")
    install_points(site, "[backgrounded.plugins]\nbad = fake_bad_plugin\n")
    configure("memory")
    with pytest.raises(
        ConfigurationError, match="Plugin 'bad' is installed but cannot be imported: RuntimeError: boom"
    ):
        User().backgrounded.do_stuff()


# -- in a worker


@pytest.mark.parametrize("says", [None, "memory", "thread"])
@pytest.mark.parametrize("url", [None, "memory://", "thread://"])
def test_a_worker_has_the_handler_of_its_url_or_else_the_default_of_the_application(
    url: str | None, says: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"worker_app_{says}_{(url or 'none').partition(':')[0]}"
    (tmp_path / f"{name}.py").write_text(f"import backgrounded\nbackgrounded.configure({says!r})\n" if says else "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BACKGROUNDED_APP", name)
    if url is not None:
        monkeypatch.setenv("BACKGROUNDED_URL", url)
    reset()
    found = worker_handler(MemoryHandler)
    assert name in sys.modules
    if "memory" not in (says, (url or "").partition(":")[0]):
        assert found is None
    else:
        assert isinstance(found, MemoryHandler)
        assert (found is get_handler()) == (says is None or url != "memory://"), "the URL's goes first"
    if url is None and says is None:
        assert not _runtime.configured("default"), "it configures nothing by itself"


def test_a_call_without_plugins_imports_no_pluggy_and_the_hook_marker_is_found_lazily() -> None:
    script = """
        import sys, backgrounded
        from backgrounded import background
        import shop.models
        assert not {"pluggy", "importlib_metadata", "asyncio"} & set(sys.modules)
        backgrounded.configure("memory")
        job = shop.models.User().backgrounded.do_stuff()
        backgrounded.get_handler().run()
        assert job.result() == "x"
        print(sorted({"pluggy", "asyncio", "rq", "pytest"} & set(sys.modules)))
        backgrounded.hookimpl
        print("pluggy" in sys.modules)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.splitlines() == ["[]", "True"], run.stdout + run.stderr


def test_a_missing_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        backgrounded.nothing  # noqa: B018
    assert callable(backgrounded.hookimpl)
