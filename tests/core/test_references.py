"""What may be called? The same answer at the call and in the worker, for each kind of thing that has a name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import (
    Backgrounded,
    BackgroundedError,
    CallError,
    ConfigurationError,
    EncodeError,
    NotAllowed,
    Refused,
    TargetNotFound,
    UnknownMethod,
    background,
    backgroundable,
    perform,
)
from backgrounded.handler import Keep
from backgrounded.handlers.memory import MemoryHandler

import shop.jobs
import shop.models
from shop import diary
from shop.models import (
    Awkward,
    ClosedBuilds,
    Declaring,
    Decorated,
    Guest,
    Report,
    SpecialOrder,
    Stranger,
    Subreport,
    User,
    WithMeta,
)
from stable import stable_id


class Framework:
    """Somebody else's base class, in a package that nobody has allowed."""

    def save(self) -> str:
        return "saved"

    def delete(self) -> str:
        return "deleted"


class Model(Framework, Backgrounded):
    def publish(self) -> str:
        return self.save()


@backgroundable(inherit=["save"])
class Article(Framework):
    def print(self) -> str:
        return "printed"


class Child(Article):
    pass


def wire_of(target: dict[str, Any], method: str, *args: Any) -> dict[str, Any]:
    return {"v": 1, "id": "0" * 32, "target": target, "method": method, "args": list(args)}


def reference_of(owner: Any) -> dict[str, Any]:
    """What a stranger would write to reach it, whatever we think of that."""
    if isinstance(owner, type):
        return {"class": f"{owner.__module__}:{owner.__qualname__}"}
    if type(owner).__name__ == "module":
        return {"module": owner.__name__}
    return {"built": [f"{type(owner).__module__}:{type(owner).__qualname__}", [], {}]}


def admitted_at_the_call(owner: Any, method: str) -> bool:
    try:
        getattr(background(owner), method)()
    except CallError:
        return False
    return True


def admitted_in_the_worker(owner: Any, method: str) -> bool:
    try:
        perform(wire_of(reference_of(owner), method))
    except Keep as keep:
        if isinstance(keep.__cause__, (Refused, TargetNotFound)):
            return False
        raise
    return True


MATRIX = [
    # opted in
    (User(), "do_stuff", True),
    (User(), "alias", True),
    (User, "sync", True),
    (User(), "sync", True),
    (User, "ping", True),
    (Guest(), "do_stuff", True),
    (Guest, "sync", True),
    (Report(), "build", True),
    (Subreport(), "build", True),
    (Subreport(), "extra", False),  # the decorator opens the body of its class, not those of subclasses
    (Declaring(), "opened", True),
    (Declaring(), "closed", False),
    (Stranger(), "work", False),
    (Stranger, "work_as_class", False),
    (SpecialOrder(), "plain", True),
    (SpecialOrder, "class_inside", True),
    (SpecialOrder, "class_outside", True),
    (SpecialOrder, "static_inside", True),
    (SpecialOrder, "static_outside", True),
    (Awkward(), "exit", True),
    # inherited from a class of others
    (Model(), "publish", True),
    (Model(), "save", False),
    (Article(), "print", True),
    (Article(), "save", True),
    (Article(), "delete", False),
    (Child(), "save", True),
    (Child(), "delete", False),
    # not methods, or not by accident
    (User(), "balance", False),
    (User, "Meta", False),
    (User, "mro", False),
    (User(), "shout", False),
    (User(), "_private", False),
    (User(), "__init__", False),
    (User, "__new__", False),
    (User(), "__class__", False),
    (User, "__subclasses__", False),
    (User(), "backgrounded", False),
    (User(), "nothing", False),
    (User(), "do_stuff.__call__", False),
    (User(), "numbers", False),
    (User(), "anumbers", False),
    (Decorated(), "wrapped", True),
    (Decorated(), "replaced", False),
    (Decorated(), "cached", False),
    (Decorated(), "partial", False),
    (Decorated(), "length", False),
    (WithMeta(), "own", True),
    (WithMeta, "meta_method", False),
    # functions
    (shop.jobs, "rebuild", True),
    (shop.jobs, "fetch", False),  # fits, but for its missing argument: see below
    (shop.jobs, "wrapped_declared", True),
    (shop.jobs, "closed", False),
    (shop.jobs, "renamed", False),
    (shop.jobs, "nameless", False),
    (shop.jobs, "_private", False),
    (shop.jobs, "User", False),
    (shop.jobs, "sqrt", False),
    (shop.jobs, "join", False),
    (shop.jobs, "later", False),
    (shop.jobs, "diary", False),
    (shop.jobs, "nothing", False),
    (sys.modules["subprocess"], "run", False),
    (sys.modules["os"], "system", False),
    (int, "from_bytes", False),
    (type, "mro", False),
]
MATRIX = [row for row in MATRIX if row[1:] != ("fetch", False)]


@pytest.mark.parametrize(("owner", "method", "allowed"), MATRIX, ids=stable_id)
def test_the_call_and_the_worker_agree_on_what_may_be_called(
    memory: MemoryHandler, owner: Any, method: str, allowed: bool
) -> None:
    if not method.startswith("__"):  # such names of a proxy are its own
        assert admitted_at_the_call(owner, method) is allowed
    assert len(memory.calls) == allowed
    if "." not in method:
        assert admitted_in_the_worker(owner, method) is allowed


ALLOWED = [
    (["shop"], Stranger(), "work", True),
    (["shop"], Stranger, "work_as_class", True),
    (["shop"], Declaring(), "closed", True),
    (["shop"], Subreport(), "extra", True),
    (["shop"], shop.jobs, "closed", True),
    (["shop"], shop.jobs, "wrapped", True),
    (["shop"], shop.jobs, "replaced", False),  # it says it was defined as shop.tools.plain_decorator.<locals>.wrapper
    (["shop"], shop.jobs, "renamed", False),
    (["shop"], shop.jobs, "nameless", False),
    (["shop"], shop.jobs, "_private", False),
    (["shop"], shop.jobs, "sqrt", False),
    (["shop"], shop.jobs, "join", False),
    (["shop"], shop.jobs, "User", False),
    (["shop"], User(), "balance", False),
    (["shop"], User(), "shout", False),
    (["shop"], Decorated(), "replaced", True),  # its function was defined in an allowed package
    (["shop"], WithMeta, "meta_method", False),
    (["shop.models"], Stranger(), "work", True),
    (["shop.models"], shop.jobs, "closed", False),
    (["shop.model"], Stranger(), "work", False),
    (["sho"], Stranger(), "work", False),
    (["shop.models.Stranger"], Stranger(), "work", True),
    (["shop.models.Stranger.work"], Stranger(), "work", True),
    (["shop.models.Stranger.work"], Stranger, "work_as_class", False),
    (["shop.jobs.closed"], shop.jobs, "closed", True),
    (["test_references.Framework"], Model(), "save", True),
    (["test_references.Framework.save"], Model(), "save", True),
    (["test_references.Framework.save"], Model(), "delete", False),
    (["test_references.Model.save"], Model(), "save", True),
    (["test_references.Model.save"], Article(), "delete", False),
]


@pytest.mark.parametrize(("allow", "owner", "method", "allowed"), ALLOWED, ids=stable_id)
def test_an_allowed_package_is_matched_on_the_dotted_boundary_and_means_what_is_defined_there(
    allow: list[str], owner: Any, method: str, allowed: bool
) -> None:
    backgrounded.configure("memory", allow=allow)
    assert admitted_at_the_call(owner, method) is allowed
    assert admitted_in_the_worker(owner, method) is allowed


def test_shop_does_not_allow_shopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shopping.py").write_text("loaded = True\ndef spend(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    backgrounded.configure("null", allow=["shop"])
    with pytest.raises(Keep, match="BACKGROUNDED_APP=shopping") as caught:
        perform(wire_of({"module": "shopping"}, "spend"))
    assert isinstance(caught.value.__cause__, TargetNotFound)
    assert "shopping" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package `depot`, not imported yet; what it imported at its end."""
    folder = tmp_path / "depot"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "stock.py").write_text(
        "from backgrounded import Backgrounded, backgroundable\n"
        "class Shelf(Backgrounded):\n    def count(self): return 3\n"
        "class Quiet:\n    def count(self): return 4\n"
        "@backgroundable\ndef weigh(): return 5\n"
    )
    (folder / "__main__.py").write_text("from shop import diary\ndiary.write('the program ran')\n")
    (folder / "leaves.py").write_text("raise SystemExit(3)\n")
    (folder / "breaks.py").write_text("raise RuntimeError('secret')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "depot"
    for name in [name for name in sys.modules if name.split(".")[0] == "depot"]:
        del sys.modules[name]


def test_a_message_imports_only_inside_an_allowed_package(package: str) -> None:
    wire = wire_of({"built": ["depot.stock:Shelf", [], {}]}, "count")
    backgrounded.configure("null")
    with pytest.raises(Keep) as caught:
        perform(wire)
    assert isinstance(caught.value.__cause__, TargetNotFound)
    assert "depot" not in sys.modules
    backgrounded.configure("null", allow=["depot"])
    assert perform(wire) == 3


def test_an_opted_in_class_elsewhere_is_found_once_the_application_has_loaded_its_module(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKGROUNDED_APP", "depot.stock")
    backgrounded.configure("null")
    assert perform(wire_of({"built": ["depot.stock:Shelf", [], {}]}, "count")) == 3
    assert perform(wire_of({"module": "depot.stock"}, "weigh")) == 5
    with pytest.raises(Keep, match="not-allowed"):
        perform(wire_of({"built": ["depot.stock:Quiet", [], {}]}, "count"))


def test_an_entry_that_names_a_method_lets_the_worker_import_its_module(package: str) -> None:
    backgrounded.configure("null", allow=["depot.stock.Quiet.count"])
    assert perform(wire_of({"built": ["depot.stock:Quiet", [], {}]}, "count")) == 4


@pytest.mark.parametrize("module", ["depot.__main__", "depot.leaves", "depot.breaks", "depot.nothing", "depot..stock"])
def test_a_module_that_cannot_be_imported_keeps_the_job_and_spares_the_worker(package: str, module: str) -> None:
    backgrounded.configure("null", allow=["depot"])
    diary.lines.clear()
    with pytest.raises(Keep) as caught:
        perform(wire_of({"module": module}, "run"))
    assert diary.lines == []
    assert isinstance(caught.value.__cause__, TargetNotFound)
    assert "secret" not in str(caught.value)


def test_no_constructor_runs_for_a_method_that_may_not_be_called() -> None:
    backgrounded.configure("null")
    diary.lines.clear()
    for owner, method in [(ClosedBuilds, "run"), (shop.models.Builds, "nothing"), (shop.models.Builds, "_private")]:
        with pytest.raises(Keep):
            perform(wire_of({"built": [f"shop.models:{owner.__name__}", [], {}]}, method))
    assert diary.lines == []
    perform(wire_of({"built": ["shop.models:Builds", [], {}]}, "run"))
    assert diary.lines == ["constructed"]


def test_looking_a_method_up_evaluates_nothing(memory: MemoryHandler) -> None:
    trap = shop.models.Trap()
    assert repr(background(trap)) == "<backgrounded proxy of a shop.models.Trap>"
    assert not hasattr(trap.backgrounded, "sprung")
    assert not hasattr(trap.backgrounded, "nothing")
    trap.backgrounded.fine()
    memory.run()
    assert diary.lines[-1] == "fine"


def test_a_class_of_others_is_opened_by_install() -> None:
    class Foreign:
        def work(self) -> None: ...

    backgrounded.configure("memory")
    with pytest.raises(NotAllowed):
        background(Foreign()).work  # noqa: B018  # the look-up is the test
    backgrounded.install(Foreign)
    assert hasattr(Foreign().backgrounded, "work")  # type: ignore[attr-defined]


REFUSALS = [
    (Stranger(), "work", NotAllowed, ["has not opted in", "Backgrounded mixin", "@backgroundable", "allow="]),
    (shop.jobs, "closed", NotAllowed, ["has not opted in", "@backgroundable", "allow=['shop.jobs']"]),
    (Model(), "save", NotAllowed, ["test_references.Framework has not opted in", "inherit=['save']"]),
    (Decorated(), "replaced", NotAllowed, ["defined in shop.tools", "functools.wraps"]),
    (shop.jobs, "renamed", NotAllowed, ["shop.jobs.closed", "call it by that name"]),
    (shop.jobs, "nameless", NotAllowed, ["lambda"]),
    (User(), "shout", NotAllowed, ["lambda"]),
    (User(), "do_stuf", UnknownMethod, ["shop.models.User has no method 'do_stuf'", "Did you mean 'do_stuff'?"]),
    (shop.jobs, "sendmail", UnknownMethod, ["Did you mean 'send_mail'?"]),
    (User(), "balance", UnknownMethod, ["property", "not a method"]),
    (User(), "numbers", CallError, ["generator"]),
    (User(), "anumbers", CallError, ["generator"]),
]


@pytest.mark.parametrize(("owner", "method", "error", "words"), REFUSALS, ids=stable_id)
def test_a_refusal_at_the_call_says_what_where_and_the_way_out(
    memory: MemoryHandler, owner: Any, method: str, error: type[CallError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        getattr(background(owner), method)()
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_worker_tells_a_stranger_neither_the_allowed_names_nor_near_misses() -> None:
    backgrounded.configure("null")
    with pytest.raises(Keep) as caught:
        perform(wire_of({"built": ["shop.models:User", [], {}]}, "do_stuf"))
    assert "do_stuff" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__context__ is None or caught.value.__cause__.__suppress_context__


@pytest.mark.parametrize("allow", ["*", ["*"], ["shop", "*"], "shop", ["shop."], [""], ["a b"], [3]])
def test_an_allow_list_that_is_none_is_refused(allow: Any) -> None:
    with pytest.raises(ConfigurationError, match="allow"):
        backgrounded.configure("null", allow=allow)


def test_local_things_are_refused_at_the_call(memory: MemoryHandler) -> None:
    class Local(Backgrounded):
        def work(self) -> None: ...

        @classmethod
        def own(cls) -> None: ...

    def local() -> None: ...

    with pytest.raises(EncodeError, match="local or a lambda"):
        Local().backgrounded.work()
    with pytest.raises(EncodeError, match="local or a lambda"):
        background(Local).own()
    for function in (local, lambda: None):
        with pytest.raises(NotAllowed, match="local or a lambda"):
            backgrounded.later(function)
    assert memory.calls == []


def test_what_stands_in_the_program_itself_is_refused_at_the_call(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import backgrounded, sys
        class User(backgrounded.Backgrounded):
            def go(self): print("ran")
        @backgrounded.backgroundable
        def work(): print("ran")
        backgrounded.configure("inline")
        for call in (lambda: User().backgrounded.go(), lambda: User.backgrounded.go, lambda: backgrounded.later(work)(),
                     lambda: work.later(), lambda: backgrounded.background(sys.modules["__main__"]).work()):
            try:
                print("no error", call())
            except backgrounded.CallError as error:
                print("refused" if "program itself" in str(error) else error)
        """)
    )
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines().count("refused") == 4, run.stdout + run.stderr
    assert "ran" not in run.stdout


def test_every_refusal_is_one_of_our_errors() -> None:
    assert issubclass(NotAllowed, CallError)
    assert issubclass(UnknownMethod, AttributeError)
    assert issubclass(Refused, BackgroundedError)


def test_an_allowed_method_may_be_named_by_a_module_that_passes_its_class_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # DESIGN 3: allow=["django.db.models.Model.save"], where the class is defined in django.db.models.base
    monkeypatch.setattr(shop, "PassedOn", Framework, raising=False)
    with backgrounded.using("inline", allow=["shop.PassedOn.save"]):
        assert background(Model()).save().result() == "saved"
        with pytest.raises(NotAllowed):
            background(Model()).delete()
