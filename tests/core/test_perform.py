"""What does a worker do with a wire? The result as a tree, or a verdict: again, keep, skip; all else is *fail*."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import (
    BadArguments,
    ConfigurationError,
    DecodeError,
    EncodeError,
    PerformError,
    Refused,
    SignatureChanged,
    TargetGone,
    TargetNotFound,
    TargetUnavailable,
    background,
    backgroundable,
    current_job,
    hookimpl,
    perform,
)
from backgrounded.handler import Again, Delivery, Keep, Skip, State
from backgrounded.handlers.memory import MemoryHandler
from backgrounded.testing.probe import Probe

from shop import diary
from shop.models import User

ID = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def null() -> None:
    backgrounded.configure("null")
    diary.lines.clear()


def wire(method: str = "do_stuff", *args: Any, target: Any = None, **fields: Any) -> dict[str, Any]:
    """A job of the shop, as it travels."""
    target = {"built": ["shop.models:User", [], {}]} if target is None else target
    return {"v": 1, "id": ID, "target": target, "method": method, "args": list(args), **fields}


def job(method: str, *args: Any, **fields: Any) -> dict[str, Any]:
    return wire(method, *args, target={"module": "shop.jobs"}, **fields)


# -- results


def test_the_result_comes_back_as_a_tree_ready_for_any_serializer() -> None:
    assert perform(wire("do_stuff", 3)) == "xxx"
    assert perform(job("give", {"$tuple": [1, {"$set": []}]})) == {"$tuple": [1, {"$set": []}]}
    assert perform(wire("take")) is None


def test_a_wire_comes_as_a_tree_as_bytes_or_as_text() -> None:
    tree = wire("do_stuff", 2)
    text = json.dumps(tree)
    assert [perform(some) for some in (tree, text, text.encode())] == ["xx"] * 3


def test_class_static_and_inherited_methods_run_on_the_class_that_was_named() -> None:
    assert perform(wire("sync", target={"class": "shop.models:Guest"})) == "Guest"
    assert perform(wire("ping", "hello", target={"class": "shop.models:User"})) == "hello"
    assert perform(wire("total", 1, target={"built": ["shop.models:Point", [2], {"y": 3}]})) == 6


def test_an_async_method_is_awaited() -> None:
    assert perform(wire("fetch", "u")) == "fetched u"


def test_an_async_method_is_awaited_where_a_loop_is_running_already() -> None:
    async def main() -> Any:
        return perform(wire("fetch", "u"))

    assert asyncio.run(main()) == "fetched u"


def test_an_async_method_sees_its_job_in_either_case() -> None:
    backgrounded.configure("null", allow=["test_perform"])

    async def main() -> Any:
        return perform(wire("awaited_id", target={"module": __name__}))

    assert asyncio.run(main()) == ID
    assert perform(wire("awaited_id", target={"module": __name__})) == ID


async def awaited_id() -> str:
    await asyncio.sleep(0)
    found = current_job()
    assert found is not None
    return found.id


def test_a_result_that_cannot_travel_is_a_failure_and_is_not_tried_again() -> None:
    with pytest.raises(EncodeError, match="result"):
        perform(wire("return_a_live_object", options={"retry": {"max": 5}}), Delivery())
    assert len(diary.lines) == 1


def test_a_result_that_is_too_big_is_a_failure() -> None:
    backgrounded.configure("null", limits=backgrounded.Limits(max_bytes=2000))
    with pytest.raises(EncodeError, match="may travel"):
        perform(wire("do_stuff", 3000))


# -- what could not be performed


GONE = {"ref": ["gone", 1]}


class Store:
    """A locator whose store has lost the record, or cannot be asked."""

    def __init__(self, name: str, answer: Callable[[], Any]) -> None:
        self.name = name
        self._answer = answer

    def refer(self, obj: Any) -> Any:
        return None

    def find(self, key: Any) -> Any:
        return self._answer()


def gone() -> Any:
    raise TargetGone("User 1 does not exist any more.")


def unreachable() -> Any:
    raise ConnectionError("db.example: connection refused")


@pytest.fixture
def stores() -> None:
    backgrounded.add_locator(Store("gone", gone))
    backgrounded.add_locator(Store("down", unreachable))
    backgrounded.add_locator(Store("user", User))
    backgrounded.add_locator(Store("empty", lambda: None))


KEPT: list[tuple[str, Any, type[PerformError], str]] = [
    ("no JSON", b"\x80\x04pickle", DecodeError, "bad-wire"),
    ("no object", b"[]", DecodeError, "bad-wire"),
    ("empty", b"", DecodeError, "bad-wire"),
    ("nothing in it", {}, DecodeError, "bad-wire"),
    ("too deep", b'{"v":' + b"[" * 10_000, DecodeError, "bad-wire"),
    ("newer", {**wire(), "v": 2}, DecodeError, "bad-wire"),
    ("bad headers", wire(headers={"trace": {"$nothing": 1}}), DecodeError, "bad-wire"),
    ("bad header's type", wire(headers={"who": {"$type": "os:system"}}), TargetNotFound, "target-not-found"),
    ("bad argument", wire("do_stuff", {"$nothing": 1}), DecodeError, "bad-wire"),
    ("bad kind of target", wire(target={"pickle": "..."}), DecodeError, "bad-wire"),
    ("module not loaded", wire(target={"module": "shop.nothing"}), TargetNotFound, "target-not-found"),
    ("class not there", wire(target={"class": "shop.models:Nobody"}), TargetNotFound, "target-not-found"),
    ("class by another module", wire("sync", target={"class": "shop.jobs:User"}), TargetNotFound, "target-not-found"),
    (
        "object by another module",
        wire(target={"built": ["shop.jobs:User", [], {}]}),
        TargetNotFound,
        "target-not-found",
    ),
    ("nested class by a walk", wire(target={"class": "shop.models:User.Meta.x"}), TargetNotFound, "target-not-found"),
    ("module by a walk", wire("system", target={"module": "shop.jobs.os"}), TargetNotFound, "target-not-found"),
    ("class by a walk", wire(target={"class": "shop.jobs:diary.Any"}), TargetNotFound, "target-not-found"),
    ("method not there", wire("nothing"), TargetNotFound, "target-not-found"),
    ("private", wire("_private"), TargetNotFound, "target-not-found"),
    ("service not there", wire(target={"service": "mailer"}), TargetNotFound, "target-not-found"),
    ("locator not there", wire(target={"ref": ["nobody", 1]}), TargetNotFound, "target-not-found"),
    ("not opted in", wire("work", target={"class": "shop.models:Stranger"}), Refused, "refused"),
    ("not opted in, function", job("closed"), Refused, "refused"),
    ("standard library", wire("run", target={"module": "subprocess"}), Refused, "refused"),
    ("instance method of a class", wire("do_stuff", target={"class": "shop.models:User"}), Refused, "refused"),
    ("too many arguments", wire("do_stuff", 1, 2), SignatureChanged, "signature-changed"),
    ("unknown keyword", wire("do_stuff", kwargs={"m": 1}), SignatureChanged, "signature-changed"),
    ("missing argument", wire("fetch"), SignatureChanged, "signature-changed"),
    ("record gone", wire(target=GONE), TargetGone, "target-gone"),
    ("record gone, argument", wire("take", {"$ref": ["gone", 1]}), TargetGone, "target-gone"),
    ("record gone, deep", wire("take", [[{"$ref": ["gone", 1]}]]), TargetGone, "target-gone"),
    ("record not found", wire(target={"ref": ["empty", 1]}), TargetGone, "target-gone"),
    ("store down", wire(target={"ref": ["down", 1]}), TargetUnavailable, "target-unavailable"),
]


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize(("what", "bad", "error", "code"), KEPT, ids=[row[0] for row in KEPT])
def test_what_cannot_be_performed_is_kept_with_the_reason_and_runs_nothing(
    what: str, bad: Any, error: type[PerformError], code: str
) -> None:
    with pytest.raises(Keep) as caught:
        perform(bad, Delivery())
    assert type(caught.value.__cause__) is error
    assert caught.value.code == code == error.code
    assert caught.value.reason == str(caught.value.__cause__) != ""
    assert diary.lines == []
    assert current_job() is None


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize(("what", "bad"), [row[:2] for row in KEPT[6:-1]], ids=[row[0] for row in KEPT[6:-1]])
def test_our_own_errors_are_never_retried(what: str, bad: dict[str, Any]) -> None:
    with pytest.raises(Keep):
        perform({**bad, "options": {"retry": {"max": 5}}}, Delivery())


@pytest.mark.usefixtures("stores")
def test_a_store_that_cannot_be_reached_is_tried_again_by_the_policy_whatever_its_filters_say() -> None:
    bad = wire(target={"ref": ["down", 1]}, options={"retry": {"max": 2, "wait": [7.0], "on": ["ValueError"]}})
    for attempt in (1, 2):
        with pytest.raises(Again) as caught:
            perform(bad, Delivery(attempt=attempt))
        assert caught.value.seconds == 7
        assert isinstance(caught.value.__cause__, TargetUnavailable)
        assert isinstance(caught.value.__cause__.__cause__, ConnectionError)
    with pytest.raises(Keep) as kept:
        perform(bad, Delivery(attempt=3))
    assert kept.value.code == "target-unavailable"


def test_a_job_that_is_expired_is_skipped_by_the_clock_of_its_handler() -> None:
    with pytest.raises(Skip) as caught:
        perform(wire(options={"expires": time.time() - 1}))
    assert caught.value.state is State.EXPIRED
    soon = wire("do_stuff", 1, options={"expires": time.time() + 60})
    assert perform(soon) == "x"
    with pytest.raises(Skip):
        perform(soon, moment=time.time() + 61)
    assert diary.lines == [("do_stuff", 1)]


def test_a_job_that_killed_three_workers_is_kept_and_does_not_run() -> None:
    assert perform(wire(), Delivery(deaths=2)) == "x"
    for deaths in (3, 4):
        with pytest.raises(Keep, match="workers died") as caught:
            perform(wire(), Delivery(deaths=deaths))
        assert caught.value.code == "deaths"
    assert len(diary.lines) == 1
    assert perform(wire(), Delivery(deaths=None)) == "x"


# -- failures of the method


def test_without_a_policy_the_methods_own_exception_comes_out_unwrapped() -> None:
    with pytest.raises(ValueError, match=r"^no$") as caught:
        perform(wire("fail"), Delivery())
    assert type(caught.value) is ValueError
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("retries", [0, 1, 3, 8])
def test_n_retries_make_n_plus_one_runs(retries: int) -> None:
    failing = wire("fail", options={"retry": {"max": retries, "wait": [2.0], "backoff": 3.0}})
    for attempt in range(1, retries + 1):
        with pytest.raises(Again) as caught:
            perform(failing, Delivery(attempt=attempt))
        assert caught.value.seconds == 2 * 3 ** (attempt - 1)
        assert type(caught.value.__cause__) is ValueError
    with pytest.raises(ValueError, match="no"):
        perform(failing, Delivery(attempt=retries + 1))


def test_a_policy_without_end_is_tried_again_for_ever() -> None:
    for attempt in (1, 9, 1_000):
        with pytest.raises(Again):
            perform(wire("fail", options={"retry": {"max": None}}), Delivery(attempt=attempt))


def test_filters_compare_names_with_the_exceptions_ancestors() -> None:
    def verdict(**policy: Any) -> type[Exception]:
        try:
            perform(wire("fail", options={"retry": {"max": 3, **policy}}), Delivery())
        except Exception as error:
            return type(error)
        raise AssertionError("it ran")

    assert verdict(on=["ValueError"]) is Again
    assert verdict(on=["Exception"]) is Again
    assert verdict(on=["KeyError"]) is ValueError
    assert verdict(on=["shop.nothing.Busy", "ValueError"]) is Again
    assert verdict(give_up_on=["ValueError"]) is ValueError
    assert verdict(on=["ValueError"], give_up_on=["Exception"]) is ValueError
    assert verdict(give_up_on=["KeyError"]) is Again


def test_without_a_delivery_nothing_is_retried() -> None:
    with pytest.raises(ValueError, match="no"):
        perform(wire("fail", options={"retry": {"max": 5}}))


@backgroundable
def leave(how: str) -> None:
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt()}[how]


@pytest.mark.parametrize(("how", "error"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt)])
def test_what_ends_the_process_passes_through_and_is_never_retried(how: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        perform(wire("leave", how, target={"module": __name__}, options={"retry": {"max": 5}}), Delivery())
    assert current_job() is None


@backgroundable
def meets_a_perform_error() -> None:
    diary.write("met")
    raise TargetNotFound("of something that the method itself has looked for")


def test_a_perform_error_of_the_methods_own_is_its_failure_and_not_a_reason_to_keep_it() -> None:
    met = wire("meets_a_perform_error", target={"module": __name__})
    with pytest.raises(TargetNotFound):
        perform(met, Delivery())
    with pytest.raises(Again):
        perform({**met, "options": {"retry": {"max": 1}}}, Delivery())
    assert diary.lines == ["met", "met"]


# -- what a run can see


def test_a_run_can_see_itself() -> None:
    assert current_job() is None
    perform(
        wire("see_myself", options={"queue": "custom"}, headers={"tenant": "acme"}),
        Delivery(handler="other", queue="elsewhere", attempt=4, deadline=12.5),
    )
    (seen,) = diary.lines
    assert (seen.id, seen.name, seen.queue) == (ID, "shop.models.User.see_myself", "custom")
    assert (seen.attempt, seen.deadline, seen.handler, seen.headers) == (4, 12.5, "other", {"tenant": "acme"})
    assert current_job() is None


def test_the_queue_is_the_deliverys_where_the_call_named_none() -> None:
    perform(wire("see_myself"), Delivery(queue="default"))
    assert diary.lines[0].queue == "default"


@pytest.mark.parametrize("kind", ["value", "ref", "service", "class", "built"])
def test_the_name_of_a_job_never_quotes_what_it_carries(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    for payload in ("canary\nforged line", ["canary\nforged line", [], {}], {"$bytes": "canary"}, {"secret": "canary"}):
        with pytest.raises(Keep):
            perform(wire(target={kind: payload}))
    assert "canary" not in caplog.text


def test_a_wire_cannot_run_one_method_under_the_name_of_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "backgrounded")
    perform(wire("do_stuff", name="shop.models.User.harmless"))
    assert "harmless" not in caplog.text


def test_a_nested_call_goes_back_through_the_handler_that_the_job_came_by() -> None:
    other = backgrounded.configure("memory", name="other")
    default = backgrounded.configure("memory")
    perform(job("nest"), Delivery(handler="other"))
    assert isinstance(other, MemoryHandler)
    assert isinstance(default, MemoryHandler)
    assert [call.name for call in other.calls] == ["shop.models.User.do_stuff"]
    assert other.calls[0].handler == "other"
    assert default.calls == []


def test_a_nested_call_may_name_another_handler() -> None:
    other: Any = backgrounded.configure("memory", name="other")
    default: Any = backgrounded.configure("memory")
    perform(wire("nest_elsewhere", target={"module": __name__}), Delivery(handler="other"))
    assert (len(other.calls), len(default.calls)) == (0, 1)


@backgroundable
def nest_elsewhere() -> None:
    background(User(), handler="default").do_stuff()


def test_where_nothing_is_configured_a_nested_call_takes_the_adapters_fallback() -> None:
    backgrounded.reset()
    fallback = MemoryHandler()
    perform(job("nest"), Delivery(handler="default"), fallback=lambda: fallback)
    assert len(fallback.calls) == 1


def test_a_fallback_is_made_once_for_all_calls_of_a_job() -> None:
    """So that those of a batch go together, and connections are not opened for each."""
    backgrounded.reset()
    made: list[MemoryHandler] = []

    def make() -> MemoryHandler:
        made.append(MemoryHandler())
        return made[-1]

    perform(wire("nest_many", target={"module": __name__}), Delivery(handler="default"), fallback=make)
    assert [len(handler.calls) for handler in made] == [4]


@backgroundable
def nest_many() -> None:
    with backgrounded.batch():
        for _ in range(3):
            background(User()).do_stuff()
    background(User()).do_stuff()


def test_the_fallback_does_not_stand_in_for_another_alias() -> None:
    backgrounded.reset()
    with pytest.raises(ConfigurationError, match="'typo_of_default'"):
        perform(wire("nest_under_a_typo", target={"module": __name__}), Delivery(handler="x"), fallback=MemoryHandler)


@backgroundable
def nest_under_a_typo() -> None:
    background(User(), handler="typo_of_default").do_stuff()


def test_a_hostile_alias_gains_nothing() -> None:
    backgrounded.configure("null", name="trusted", allow=["shop.models.Stranger"])
    closed = wire("work", target={"built": ["shop.models:Stranger", [], {}]})
    assert [perform(closed, Delivery(handler=alias)) for alias in ("default", "trusted")] == ["worked"] * 2
    for alias in ("default", "trusted", "../etc", "", "inline"):
        with pytest.raises(Keep):
            perform(job("closed"), Delivery(handler=alias))
    with pytest.raises(ConfigurationError, match="No handler is configured under the name 'inline'"):
        perform(job("nest"), Delivery(handler="inline"))


def test_a_nested_call_in_a_run_inside_a_batch_does_not_join_that_batch() -> None:
    memory: Any = backgrounded.configure("memory")
    with backgrounded.batch():
        perform(job("nest"))
        assert len(memory.calls) == 1


# -- before the first job


def test_the_modules_of_the_app_are_imported_before_the_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_app.py").write_text(
        "import backgrounded\n@backgrounded.backgroundable\ndef go(): return 'went'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    late = wire("go", target={"module": "late_app"})
    with pytest.raises(Keep, match="BACKGROUNDED_APP"):
        perform(late)
    monkeypatch.setenv("BACKGROUNDED_APP", " shop.jobs , late_app ")
    assert perform(late) == "went"


@pytest.mark.parametrize("body", ["raise RuntimeError('canary')", "raise SystemExit(1)", "import nothing_like_it"])
def test_an_app_that_cannot_be_imported_keeps_every_job_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    name = f"broken_app_{len(body)}"
    app = tmp_path / f"{name}.py"
    app.write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BACKGROUNDED_APP", name)
    for _ in range(2):
        with pytest.raises(Keep, match="BACKGROUNDED_APP=broken_app") as caught:
            perform(wire())
        assert isinstance(caught.value.__cause__, TargetNotFound)
        assert caught.value.__cause__.__cause__ is not None, "the error of the import is the cause"
        assert "canary" not in str(caught.value)
    app.write_text("mended = True  # and longer than before\n")
    importlib.invalidate_caches()
    assert perform(wire()) == "x"


@pytest.mark.parametrize("variable", ["BACKGROUNDED_SECRET_KEYS", "BACKGROUNDED_ALLOW"])
def test_a_worker_whose_settings_make_no_sense_keeps_its_jobs(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    backgrounded.reset()
    monkeypatch.setenv(variable, "*")
    with pytest.raises(Keep) as caught:
        perform(wire())
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_a_worker_whose_plugin_is_broken_keeps_its_jobs() -> None:
    class Broken:
        @hookimpl
        def backgrounded_perfrom(self) -> None: ...

    backgrounded.register_plugin(Broken())
    with pytest.raises(Keep, match="plugin"):
        perform(wire())


def test_two_runs_at_once_do_not_see_each_other() -> None:
    backgrounded.configure("null", allow=["test_perform"])
    both = threading.Barrier(2, timeout=60)
    seen: dict[str, str] = {}

    def run(id_: str) -> None:
        seen[id_] = perform({**wire("wait_and_tell", target={"module": __name__}), "id": id_})

    global meeting  # noqa: PLW0603  # a function of a module is found by name, and needs the barrier
    meeting = both
    threads = [threading.Thread(target=run, args=(id_,)) for id_ in ("a" * 32, "b" * 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert seen == {"a" * 32: "a" * 32, "b" * 32: "b" * 32}


meeting: Any = None


def wait_and_tell() -> str:
    meeting.wait()
    found = current_job()
    assert found is not None
    return found.id


def test_a_limit_that_strikes_before_the_run_begins_is_a_failure_that_the_policy_covers(
    memory: MemoryHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_slowly() -> None:
        raise TimeoutError("stopped after its timeout of 1 seconds")

    monkeypatch.setattr("backgrounded._runtime.load_app", import_slowly)
    User().backgrounded(retry=1).do_stuff()
    (call,) = memory.calls
    with pytest.raises(Again):
        perform(call.tree, Delivery(attempt=1))
    with pytest.raises(TimeoutError):
        perform(call.tree, Delivery(attempt=2))


def test_a_keyword_with_the_word_for_the_object_itself_collides_at_the_call_and_in_the_worker(
    memory: MemoryHandler,
) -> None:
    with pytest.raises(BadArguments, match="self"):
        User().backgrounded.take(self=1)
    User().backgrounded.take(n=1)
    (call,) = memory.calls
    with pytest.raises(Keep) as kept:
        perform({**call.tree, "kwargs": {"self": 1}}, Delivery())
    assert isinstance(kept.value.__cause__, SignatureChanged)


TORN = """
import contextlib, sys
import backgrounded, backgrounded.testing.probe

class Alarm:
    def find_spec(self, name, *_):
        if name.startswith("importlib_metadata"):
            raise BaseException("too long")

@contextlib.contextmanager
def limit():
    sys.meta_path.insert(0, alarm := Alarm())
    try:
        yield
    finally:
        sys.meta_path.remove(alarm)

assert "importlib_metadata" not in sys.modules
print(backgrounded.perform(sys.argv[1], limit=limit))
"""


def test_no_time_limit_strikes_while_it_is_read_what_is_installed(tmp_path: Path) -> None:
    """Torn in the middle, `importlib_metadata` stays half imported, and each later job of the process fails."""
    (tmp_path / "torn_app.py").write_text('import backgrounded\nbackgrounded.configure("memory", name="another")\n')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "BACKGROUNDED_APP": "torn_app"}
    with backgrounded.using(MemoryHandler) as handler:
        Probe(str(tmp_path / "oracle")).backgrounded.give(1)
    command = [sys.executable, "-c", TORN, handler.calls[0].wire]  # type: ignore[attr-defined]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("1\n", 0), run.stderr
