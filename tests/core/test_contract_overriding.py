"""Can a promise be overridden? Not without a reason. That the contract bites is shown by its sabotages."""

from __future__ import annotations

import textwrap

import pytest
from backgrounded.testing import HandlerContract


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
