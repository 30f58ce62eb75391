"""What is broken on purpose, on which side, and which promise of the contract has to notice?

Each engine has a table of its own, in `<engine>_sabotages.py`:

    TABLE = Sabotages()

    @TABLE.caller("test_a_job_that_was_cancelled_never_runs")
    def cancel_lies(patch: Patch) -> None:
        patch.setattr(RQHandler, "cancel", lambda self, id: self.state(id) is State.QUEUED)

`bites.py` makes tests of it. A broken worker is an honest one whose application breaks it: this module is in its
BACKGROUNDED_APP, and SABOTAGE names the function. Nothing here needs pytest, nor may a table.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Protocol, TypeAlias

from backgrounded import Call, NoResult
from backgrounded.testing.probe import Probe

SABOTAGE = "SABOTAGE"


class Patch(Protocol):
    """What a sabotage breaks with: pytest's MonkeyPatch in the caller's process, where it is mended after the test."""

    def setattr(self, target: Any, name: str, value: Any) -> None: ...


class ForGood:
    """The same in a worker, where nobody mends it."""

    def setattr(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)


@dataclass(frozen=True)
class Sabotage:
    """One mistake of an adapter. Each of the promises `found_by` has to fail over it.

    Of one with parameters a form may be named: "test_n_retries_make_n_plus_1_runs[3]".
    They fail at once, unless `within` is given: the seconds for which they may wait for what never comes.
    """

    name: str
    breaks: Callable[[Patch], None]
    found_by: tuple[str, ...]
    in_worker: bool
    within: float | None = None


Named: TypeAlias = Callable[[Callable[[Patch], None]], None]


class Sabotages(dict[str, Sabotage]):
    """A table of them, by name."""

    def caller(self, *promises: str, within: float | None = None) -> Named:
        """A mistake on the caller's side: it is made in the process of the tests, and the workers are honest."""
        return lambda breaks: self._add(Sabotage(breaks.__name__, breaks, promises, in_worker=False, within=within))

    def worker(self, *promises: str, within: float | None = None) -> Named:
        """A mistake on the worker's side: it is made in all processes of the workers, and the caller is honest."""
        return lambda breaks: self._add(Sabotage(breaks.__name__, breaks, promises, in_worker=True, within=within))

    def _add(self, sabotage: Sabotage) -> None:
        assert sabotage.name not in self, f"two sabotages are called {sabotage.name}"
        self[sabotage.name] = sabotage


# -- what tables share


def spoil_calls(patch: Patch, handler: type, spoil: Callable[[Call], Call]) -> None:
    """Spoil each call before a handler hands it over."""
    honest = handler.enqueue_many  # type: ignore[attr-defined]

    def enqueue_many(self: Any, calls: Sequence[Call]) -> Any:
        return honest(self, [spoil(call) for call in calls])

    patch.setattr(handler, "enqueue_many", enqueue_many)


def without(*options: str) -> Callable[[Call], Call]:
    """Calls lose these options."""
    return lambda call: with_options(call, **dict.fromkeys(options))


def with_options(call: Call, **options: Any) -> Call:
    return replace(call, options=replace(call.options, **options))


def lose_none(patch: Patch, owner: type) -> None:
    """Take a result that is None for none at all."""
    honest = owner.result  # type: ignore[attr-defined]

    def result(self: Any, id: str, timeout: float | None) -> Any:
        found = honest(self, id, timeout)
        if found is None:
            raise NoResult("nothing came back")
        return found

    patch.setattr(owner, "result", result)


def spoil_deliveries(patch: Patch, module: Any, spoil: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Spoil what the core is told of a run, where this module of a worker tells it."""
    honest = module.Delivery
    patch.setattr(module, "Delivery", lambda **words: honest(**{**words, **spoil(words)}))


def spoil_retries(patch: Patch, module: Any, **changes: Any) -> None:
    """Let the message of the next try have other things in it, where `module._again` sends it."""
    honest = module._again
    patch.setattr(module, "_again", lambda broker, message, again: honest(broker, replace(message, **changes), again))


def without_timeout(call: Call) -> Call:
    """A call loses its timeout. What spends 20 seconds, so that it is stopped in time, spends 4: nobody stops it."""
    short = {"args": [4]} if call.method == "spend" else {}
    return replace(with_options(call, timeout=None), tree={**call.tree, **short})


def spend_less(patch: Patch) -> None:
    """The same in a worker that stops nobody: it need not be waited for."""
    honest = Probe.spend

    @wraps(honest)
    def spend(self: Probe, seconds: float) -> None:
        honest(self, min(seconds, 4))

    patch.setattr(Probe, "spend", spend)


if os.environ.get(SABOTAGE):  # in a worker that is to be broken
    _table, _, _name = os.environ[SABOTAGE].partition(":")
    importlib.import_module(_table).TABLE[_name].breaks(ForGood())
