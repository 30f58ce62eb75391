"""What runs in the worker when a handler is tested, and how do its effects get out?

`Probe` is an ordinary application object. Whatever runs writes one line with one `os.write` to a file that only the
test knows, the oracle: what ran, with what, in which process, when, and what it saw of its job. The oracle stands
outside of the system under test, so that a handler cannot be its own witness.

Nothing here needs pytest: a worker imports this module (BACKGROUNDED_APP=backgrounded.testing.probe).
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as clock_time
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, NoReturn

from backgrounded import Backgrounded, TargetGone, backgroundable, current_job

LONGEST_HOLD: Final = 120.0
"""Seconds after which a run that waits for a file gives up, so that a broken test leaves no worker behind."""


# -- the oracle


@dataclass(frozen=True)
class Event:
    """One line of the oracle: `what` ran, with what (as `describe` writes it), where and when, as which job."""

    what: str
    given: str
    pid: int
    at: float
    job: dict[str, Any] | None

    @property
    def job_id(self) -> str | None:
        return None if self.job is None else self.job["id"]

    @property
    def attempt(self) -> int | None:
        return None if self.job is None else self.job["attempt"]


def record(path: str, what: str, *args: Any, **kwargs: Any) -> None:
    """Append one event to the oracle, in one write."""
    line = {"what": what, "given": given(*args, **kwargs), "pid": os.getpid(), "at": time.time(), "job": _job()}
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(target, json.dumps(line).encode() + b"\n")
    finally:
        os.close(target)


def _job() -> dict[str, Any] | None:
    job = current_job()
    if job is None:
        return None
    return {key: getattr(job, key) for key in ("id", "name", "queue", "attempt", "deadline", "handler")}


def events(path: str, what: str | None = None) -> list[Event]:
    """What the oracle has seen so far, oldest first; only the events called `what`, if it is given."""
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    seen = [Event(**json.loads(line)) for line in lines]
    return [event for event in seen if what in (None, event.what)]


def given(*args: Any, **kwargs: Any) -> str:
    """Arguments as text: equal exactly if they are equal in value and in type."""
    return f"{describe(list(args))} {describe(kwargs)}"


def describe(value: Any) -> str:
    """A value as text: the same for two values exactly if they are equal in value and in type, at any depth."""
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    if isinstance(value, Probe):
        return f"{name}({value.path})"
    if isinstance(value, Enum):
        return f"{name}.{value.name}={value.value!r}"
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return f"{name}({', '.join(describe(getattr(value, item.name)) for item in fields(value))})"
    if isinstance(value, dict):
        return f"{name}({', '.join(f'{describe(key)}: {describe(item)}' for key, item in value.items())})"
    if isinstance(value, (set, frozenset)):
        return f"{name}({', '.join(sorted(map(describe, value)))})"
    if isinstance(value, (list, tuple)):
        return f"{name}({', '.join(map(describe, value))})"
    if isinstance(value, (datetime, clock_time)):
        return f"{name}({value!r}, fold={value.fold})"
    return f"{name}({value!r})"


# -- values of every type that travels by itself


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Rights(Flag):
    READ = 1
    WRITE = 2


class Queue(str, Enum):
    """Names of queues as an application would keep them."""

    MAIL = "mail"
    SLOW = "slow"


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass(frozen=True)
class Order:
    number: int
    total: Money
    tags: frozenset[str] = frozenset()
    lines: list[Money] = field(default_factory=list)


def values() -> dict[str, Any]:
    """A sample of every type of value that travels, by a readable name."""
    samples: dict[str, Any] = {
        "none": None,
        "true": True,
        "int": -7,
        "int beyond 64 bits": 10**21,
        "float": 0.1,
        "float of a whole number": 2.0,
        "negative zero": -0.0,
        "infinity": float("inf"),
        "complex": complex(1.5, -2),
        "string": "Grüße, \U0001f600 \n\t\"quoted\" \\ and 'so'",
        "empty string": "",
        "string that looks like a reference": "backgrounded.testing.probe:Probe",
        "bytes": bytes(range(256)),
        "bytearray": bytearray(b"\x00\xff"),
        "list": [1, [2, [3, []]]],
        "list of one": ["x"],
        "tuple": (1, ("a", ()), [2]),
        "set": {1, "a", None},
        "frozenset": frozenset({(1, 2), b"x"}),
        "dict": {"a": {"b": [{}]}, "": 0},
        "dict with keys that are no strings": {1: "a", (2, 3): "b", None: "c", Colour.RED: "d"},
        "dict that looks like a tag": {"$tuple": [1, 2]},
        "dict that looks like a pair": {"$dict": [["a", 1]]},
        "range": range(3, 30, 4),
        "slice": slice(1, None, 2),
        "naive datetime": datetime(2001, 2, 3, 4, 5, 6, 789),
        "datetime in UTC": datetime(2001, 2, 3, 4, 5, 6, 7, tzinfo=timezone.utc),
        "datetime with an offset": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        "folded datetime": datetime(2024, 10, 27, 2, 30, fold=1),
        "date": date(2001, 2, 3),
        "time": clock_time(23, 59, 59, 999_999),
        "timedelta": timedelta(days=-1, microseconds=1),
        "decimal": Decimal("1.10"),
        "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "path": Path("/tmp") / "ä b",
        "pure path": PurePosixPath("a/../b"),
        "enum": Colour.BLUE,
        "int enum": Level.HIGH,
        "flags": Rights.READ | Rights.WRITE,
        "string enum": Queue.SLOW,
        "named tuple": Point(1, 2),
        "dataclass": Money(Decimal("9.90")),
        "nested dataclass": Order(1, Money(Decimal(0)), frozenset({"a", "b"}), [Money(Decimal("0.01"), "CHF")]),
        "object rebuilt from its arguments": [Probe("/nowhere")],
        "class": Probe,
        "function": note,
        "everything nested": {"k": [(Point(1), {Colour.RED: {Decimal(1)}}), {"t": [timedelta(1)]}]},
    }
    zone = _zone("Europe/Berlin")
    if zone is not None:
        samples["datetime in a zone"] = datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=1)
        samples["time in a zone"] = clock_time(2, 30, tzinfo=zone)
    return samples


def _zone(key: str) -> Any:
    """The time zone, where the machine knows it."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(key)
    except ZoneInfoNotFoundError:
        return None


# -- what can go wrong


class ProbeError(Exception):
    """An error of the application."""


class WorseError(ProbeError):
    """Another one, of a class that has a base of its own."""


class AwkwardError(Exception):
    """One that can only be built with arguments, is not built from its `args`, and says nothing."""

    def __init__(self, code: int, *, reason: Callable[[], None]) -> None:
        self.code = code
        self.reason = reason
        super().__init__()


def raise_error(kind: str, message: str) -> NoReturn:
    """Raise an exception of one of the classes that a test may ask for."""
    if kind == "AwkwardError":
        raise AwkwardError(1, reason=lambda: None)
    if kind == "cause":
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise ProbeError(message) from error
    known = {"ProbeError": ProbeError, "WorseError": WorseError, "ValueError": ValueError, "OSError": OSError}
    raise known[kind](message) if message else known[kind]()


# -- what runs


class Probe(Backgrounded):
    """An object that is built again from the path of an oracle, and whose methods tell the oracle that they ran."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.path,), {}

    def note(self, *args: Any, **kwargs: Any) -> None:
        """Tell the oracle the arguments."""
        record(self.path, "note", *args, **kwargs)

    def options(self, queue: str, *, delay: int = 0) -> None:
        """A name that a proxy might own, and parameters with names of options."""
        record(self.path, "options", queue, delay=delay)

    def give(self, value: Any) -> Any:
        """Tell the oracle the value, and return it."""
        record(self.path, "give", value)
        return value

    def hold(self, gate: str, failures: int = 0) -> None:
        """Keep the worker busy until the file `gate` exists. On the first so many runs, raise then."""
        record(self.path, "holding", gate)
        _await(gate)
        record(self.path, "released", gate)
        if failures:
            self.fail(failures, gate)

    def fail(self, times: int | None, key: str = "", kind: str = "ProbeError", message: str = "") -> int:
        """Raise on the first `times` runs (None: on all) with this key, then return the count; the oracle counts."""
        record(self.path, "fail", key)
        count = sum(event.given == given(key) for event in events(self.path, "fail"))
        if times is None or count <= times:
            raise_error(kind, message)
        record(self.path, "recovered", key)
        return count

    def fail_silently_with(self, secret: str) -> None:
        """Raise without mentioning the argument."""
        record(self.path, "failed silently")
        raise ProbeError("This message does not quote the argument.")

    def leave(self) -> None:
        """Raise SystemExit, as a method does that was written for the command line."""
        record(self.path, "leave")
        sys.exit(3)

    def spend(self, seconds: float) -> None:
        """Use up time, in small steps, so that every kind of time limit can stop it."""
        record(self.path, "spending")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        record(self.path, "spent")

    def unsendable(self) -> Any:
        """Return what cannot travel."""
        record(self.path, "unsendable")
        return [lambda: None]

    def nest(self, queue: str | None) -> str:
        """Call another method in the background, and return that job's id."""
        record(self.path, "outer begins")
        inner = self.backgrounded(queue=queue).note("inner")
        record(self.path, "outer ends")
        return str(inner.id)

    async def anote(self, *args: Any) -> str:
        """A coroutine."""
        import asyncio

        await asyncio.sleep(0)
        record(self.path, "anote", *args)
        return "awaited"

    @classmethod
    def of_class(cls, path: str, value: int) -> str:
        record(path, "of_class", cls.__qualname__, value)
        return cls.__qualname__

    @staticmethod
    def of_static(path: str, value: int) -> None:
        record(path, "of_static", value)

    def who(self) -> str:
        """The class of the object that runs."""
        record(self.path, "who", type(self).__qualname__)
        return type(self).__qualname__

    def numbers(self) -> Any:
        """A generator, which makes no sense in the background."""
        yield 1

    def _private(self) -> None:
        record(self.path, "private")


class Heir(Probe):
    """Inherits what it has."""


class Record(Backgrounded):
    """Stands for a record in a store: it can be found only while the file `row` exists."""

    def __init__(self, path: str, row: str) -> None:
        self.path = path
        self.row = row
        if not Path(row).exists():
            record(path, "gone")
            raise TargetGone("The record of the test is gone.")

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.path, self.row), {}

    def find(self, value: int) -> int:
        record(self.path, "found", value)
        return value


class Stranger:
    """Has not opted in."""

    def run(self, path: str) -> None:
        record(path, "stranger ran")


class Declared(Backgrounded):
    """Declares its options itself."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.path,), {}

    @backgroundable(retry=2)
    def stubborn(self) -> None:
        record(self.path, "stubborn")
        raise ProbeError("as ever")


@backgroundable
def note(path: str, *args: Any, **kwargs: Any) -> None:
    """A plain function."""
    record(path, "function", *args, **kwargs)


@backgroundable
def settled(path: str) -> None:
    """Tells the oracle that what was called before has had its turn."""
    record(path, "settled")


def unmarked(path: str) -> None:
    """A function that has not opted in."""
    record(path, "unmarked")


def _await(gate: str) -> None:
    end = time.monotonic() + LONGEST_HOLD
    while not Path(gate).exists():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {LONGEST_HOLD:g} seconds for {gate}")
        time.sleep(0.005)
