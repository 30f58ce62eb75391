"""Does the contract bite? Each handler that is broken on purpose must be caught, by the test that promises it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from backgrounded.testing import HandlerContract

import sabotages
from nested import run_tests
from sabotages import Sabotage

BROKEN = [cls for cls in vars(sabotages).values() if isinstance(cls, type) and getattr(cls, "caught_by", "")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What became of the sabotages' tests, and of the same tests where nothing is broken."""
    chosen = [f"{cls.__name__}::{cls.caught_by}" for cls in BROKEN]
    chosen += [f"TestUnbroken::{test}" for test in sorted({cls.caught_by for cls in BROKEN})]
    return run_tests(Path(sabotages.__file__), chosen, tmp_path_factory.mktemp("bites"))


def test_there_are_enough_sabotages_and_each_names_a_test_of_the_contract() -> None:
    assert len(BROKEN) >= 14
    for cls in BROKEN:
        assert callable(getattr(HandlerContract, cls.caught_by)), cls


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__.removeprefix("Test"))
def test_a_broken_handler_is_caught(broken: type[Sabotage], outcomes: dict[tuple[str, str], str]) -> None:
    assert outcomes[broken.__name__, broken.caught_by] == "failed"


def test_the_same_tests_pass_where_nothing_is_broken(outcomes: dict[tuple[str, str], str]) -> None:
    found = {test: outcome for (cls, test), outcome in outcomes.items() if cls == "TestUnbroken"}
    allowed = {"test_an_option_that_is_not_kept_is_refused_at_the_call": "skipped"}  # memory keeps them all
    assert found == {cls.caught_by: allowed.get(cls.caught_by, "passed") for cls in BROKEN}


# -- a promise cannot be overridden without a reason


def define(body: str, exempt: str = "") -> type:
    """A handler's test class with this body."""
    source = "class TestHandler(HandlerContract):\n" + textwrap.indent(f"{exempt or 'pass'}\n{body}", "    ")
    names: dict[str, type] = {"HandlerContract": HandlerContract}
    exec(source, names)
    return names["TestHandler"]


OVERRIDE = "def test_a_static_method_runs(self): pass"
NAME = "test_a_static_method_runs"


def test_overriding_a_promise_without_a_reason_is_an_error() -> None:
    with pytest.raises(TypeError, match=NAME):
        define(OVERRIDE)
    with pytest.raises(TypeError, match=NAME):
        define(f"{NAME} = None")
    with pytest.raises(TypeError, match="reason"):
        define(OVERRIDE, f"exempt = {{{NAME!r}: ' '}}")
    define(OVERRIDE, f"exempt = {{{NAME!r}: 'This engine has no static methods.'}}")


def test_overriding_a_promise_in_a_base_beside_the_contract_is_an_error_too() -> None:
    class Beside:
        def test_a_static_method_runs(self) -> None: ...

    with pytest.raises(TypeError, match=NAME):
        type("TestHandler", (Beside, HandlerContract), {})


def test_an_exemption_of_an_unknown_test_is_an_error() -> None:
    with pytest.raises(TypeError, match="test_a_statc_method_runs"):
        define("", "exempt = {'test_a_statc_method_runs': 'A typing error.'}")
