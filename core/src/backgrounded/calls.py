"""What is a call, once the caller has let go of it?

`Call` is one call on its way: frozen, with an id made here, before any engine is asked. `Options` are what the caller
said about it, checked at the call, the same words on every engine. Nothing in this module knows an engine, an object
or a wire format.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypedDict

from .errors import InvalidOption, UnsupportedOption, type_name

PRIORITIES: Final[Mapping[str, int]] = {"low": 2, "normal": 5, "high": 8}
DEFAULT_PRIORITY: Final = 5
LONGEST_WAIT: Final = 7 * 86400.0
"""No wait between two runs is longer than this, in seconds: exponential backoff ends somewhere."""

LONGEST: Final = 36_525 * 86400.0
"""No number of seconds in an option is greater: what is meant to be "for ever" overflows somewhere on each engine."""

_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

Seconds: TypeAlias = int | float | timedelta

Keeper: TypeAlias = tuple[str, Sequence[str]]
"""What a handler is called, and the options that it keeps."""


def new_id() -> str:
    """A job id: 32 hexadecimal digits, random, valid as an id on every engine. Safe after a fork."""
    return os.urandom(16).hex()


def _seconds(option: str, value: object, *, least: float, exclusive: bool = False, most: float = LONGEST) -> float:
    """`value` as finite seconds, or InvalidOption. A bool is a mistake, not a number."""
    number = value.total_seconds() if isinstance(value, timedelta) else _number(value)
    if number is None:
        raise InvalidOption(option, f"must be seconds (a number) or a timedelta, not {type(value).__name__}")
    if not math.isfinite(number) or number < least or (exclusive and number == least):
        bound = f"{'more than' if exclusive else 'at least'} {least:g}"
        raise InvalidOption(option, f"must be {bound} seconds, got {value!r}")
    if number > most:
        raise InvalidOption(option, f"must be at most {most:,.0f} seconds, a hundred years, got {value!r}")
    return number


def _factor(option: str, value: object, *, least: float) -> float:
    number = _number(value)
    if number is None or not math.isfinite(number) or number < least:
        raise InvalidOption(option, f"must be a number of at least {least:g}, got {value!r}")
    return number


def _number(value: object) -> float | None:
    """`value` as a float, infinite when it is too big for one; None when it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _text(option: str, value: str) -> str:
    """A text that can travel, as a plain string: not empty, without NUL and lone surrogates."""
    if not value:
        raise InvalidOption(option, "must not be empty; leave it out (or None) to say nothing")
    if _UNCLEAN.search(value):
        raise InvalidOption(option, "holds a NUL character or a lone surrogate, which databases and UTF-8 refuse")
    return str.__str__(value)


_UNCLEAN: Final = re.compile("[\0\ud800-\udfff]")


def _timestamp(option: str, value: datetime) -> float:
    if value.utcoffset() is None:
        raise InvalidOption(option, "must be an aware datetime (with a tzinfo): a naive one is another time elsewhere")
    return value.timestamp()


def _count(option: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidOption(option, f"must be a whole number, not {type(value).__name__}")
    if value < least:
        raise InvalidOption(option, f"must be at least {least}, got {value}")
    return value


def _names(option: str, value: object) -> tuple[str, ...]:
    """Exception classes or their dotted names, as names: they travel, and nothing is imported for them."""
    if isinstance(value, (str, type)) or not isinstance(value, Iterable):
        value = (value,)
    return tuple(_exception_name(option, item) for item in value)


def _exception_name(option: str, item: object) -> str:
    if isinstance(item, type) and issubclass(item, BaseException):
        return type_name(item)
    if isinstance(item, str) and _DOTTED.fullmatch(item):
        return item.removeprefix("builtins.")
    raise InvalidOption(option, f"takes exception classes or their dotted names, not {item!r}")


@dataclass(frozen=True)
class Retry:
    """How often a method that raised is run again, and how long after.

    `max` counts the runs after the first one (None: without end). `wait` is in seconds (or a timedelta), or a list of
    waits, the last of which repeats. Each further wait is `backoff` times the one before; `jitter` adds at random up to
    that fraction of the wait, so that a wait is never shorter than asked. No wait exceeds seven days.

    `on` and `give_up_on` are exception classes or dotted names, compared with the names in the raised exception's MRO:
    only what matches `on` (by default every Exception) and does not match `give_up_on` is tried again.

    >>> Retry(3, wait=[1, 5, 30]).max
    3
    """

    max: int | None
    wait: Any = 0
    backoff: float = 1.0
    jitter: float = 0.0
    on: Any = ()
    give_up_on: Any = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.max is not None:
            _count("retry.max", self.max, 0)
        waits = self.wait if isinstance(self.wait, (list, tuple)) else [self.wait]
        if not waits:
            raise InvalidOption("retry.wait", "an empty list of waits says nothing; use wait=0 for at once")
        put(self, "wait", tuple(_seconds("retry.wait", item, least=0, most=math.inf) for item in waits))
        put(self, "backoff", _factor("retry.backoff", self.backoff, least=1))
        put(self, "jitter", _factor("retry.jitter", 0 if self.jitter is None else self.jitter, least=0))
        put(self, "on", _names("retry.on", self.on))
        put(self, "give_up_on", _names("retry.give_up_on", self.give_up_on))

    @property
    def waits(self) -> bool:
        """Whether any retry of this policy comes later than at once."""
        return any(self.wait)

    def next_wait(self, error: BaseException, attempt: int) -> float | None:
        """Seconds until the next run after failure number `attempt` (from 1), or None: there is no next run."""
        if not isinstance(error, Exception) or (self.max is not None and attempt > self.max):
            return None
        return self.wait_before(attempt) if self.covers(error) else None

    def covers(self, error: BaseException) -> bool:
        """Whether the filters let this exception be tried again."""
        if not self.on and not self.give_up_on:
            return True
        names = {type_name(cls) for cls in type(error).__mro__}
        return (not self.on or not names.isdisjoint(self.on)) and names.isdisjoint(self.give_up_on)

    def wait_before(self, attempt: int) -> float:
        """Seconds between failure number `attempt` (from 1) and the run after it."""
        base = self.wait[min(attempt, len(self.wait)) - 1]
        if base == 0:
            return 0.0
        steps = min(attempt - 1, 64 / math.log2(self.backoff)) if self.backoff > 1 else 0
        wait = base * self.backoff**steps
        return min(float(wait * (1 + self.jitter * random.random())), LONGEST_WAIT)

    def to_tree(self) -> dict[str, Any]:
        """The policy as it travels: what is default stays out."""
        tree: dict[str, Any] = {"max": self.max}
        for name, default in _RETRY_DEFAULTS:
            value = getattr(self, name)
            if value != default:
                tree[name] = list(value) if isinstance(value, tuple) else value
        return tree


_RETRY_DEFAULTS: Final[tuple[tuple[str, Any], ...]] = (
    ("wait", (0.0,)),
    ("backoff", 1.0),
    ("jitter", 0.0),
    ("on", ()),
    ("give_up_on", ()),
)


@dataclass(frozen=True)
class Unique:
    """At most one job with this `key` is on its way.

    A second call raises `Duplicate` with the id of the first, or with `on_conflict="return"` gives the first one's
    `Job`. The key is held until the job starts or is done (ended, whatever way), and at most `ttl` seconds.
    """

    key: str
    on_conflict: Literal["raise", "return"] = "raise"
    until: Literal["start", "done"] = "done"
    ttl: float = 3600

    def __post_init__(self) -> None:
        if not isinstance(self.key, str):
            raise InvalidOption("unique.key", f"must be a string, not {type(self.key).__name__}")
        object.__setattr__(self, "key", _text("unique.key", self.key))
        if self.on_conflict not in ("raise", "return"):
            raise InvalidOption("unique.on_conflict", f'must be "raise" or "return", got {self.on_conflict!r}')
        if self.until not in ("start", "done"):
            raise InvalidOption("unique.until", f'must be "start" or "done", got {self.until!r}')
        object.__setattr__(self, "ttl", _seconds("unique.ttl", self.ttl, least=0, exclusive=True))


def _check_queue(value: object) -> str:
    name = value.value if isinstance(value, Enum) else value
    if not isinstance(name, str):
        raise InvalidOption("queue", f"must be a name or an enum of names, not {type(value).__name__}")
    return _text("queue", name)


def _check_priority(value: object) -> int:
    if isinstance(value, str):
        if value not in PRIORITIES:
            raise InvalidOption("priority", f"must be 0 to 9 or one of {', '.join(PRIORITIES)}, got {value!r}")
        return PRIORITIES[value]
    number = _count("priority", value, 0)
    if number > 9:
        raise InvalidOption("priority", f"must be 0 to 9 (higher first), got {number}")
    return number


def _check_delay(value: Any) -> Any:
    _seconds("delay", value, least=0)
    return value


def _check_at(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidOption("at", f"must be an aware datetime, not {type(value).__name__}")
    _timestamp("at", value)
    return value


def _check_expires(value: Any) -> Any:
    if isinstance(value, datetime):
        _timestamp("expires", value)
    else:
        _seconds("expires", value, least=0, exclusive=True)
    return value


def _check_retry(value: object) -> Retry:
    return value if isinstance(value, Retry) else Retry(_count("retry", value, 0))


def _check_unique(value: object) -> Unique:
    if isinstance(value, Unique):
        return value
    if isinstance(value, str):
        return Unique(value)
    raise InvalidOption("unique", f"must be a key (a string) or Unique(...), not {type(value).__name__}")


def _check_after_commit(value: object) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise InvalidOption("after_commit", f'must be "auto", True or False, got {value!r}')


def _check_handler(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise InvalidOption("handler", f"must be the name of a configured handler, not {value!r}")


def _check_native(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidOption("native", "must be a dict of the engine's own words")
    return MappingProxyType(dict(value))


class OptionWords(TypedDict, total=False):
    """The options as keywords of a call, for type checkers and editors."""

    queue: str | Enum | None
    delay: Seconds | None
    at: datetime | None
    priority: int | Literal["low", "normal", "high"] | None
    retry: int | Retry | None
    timeout: Seconds | None
    expires: Seconds | datetime | None
    unique: str | Unique | None
    result_ttl: Seconds | None
    after_commit: Literal["auto"] | bool | None
    handler: str | None
    native: Mapping[str, Any] | None


@dataclass(frozen=True, repr=False)
class Options:
    """What the caller said about one call. None means: not said.

    `queue` (a name), `delay` (seconds or timedelta), `at` (aware datetime), `priority` (0 to 9, higher first),
    `retry` (Retry), `timeout` (seconds), `expires` (seconds or timedelta after the call, or an aware datetime),
    `unique` (Unique), `result_ttl` (seconds), `after_commit` ("auto", True or False), `handler` (a configured alias),
    `native` (words of one engine alone). Make them with `Options.of`, which checks.
    """

    queue: str | None = None
    delay: Any = None
    at: datetime | None = None
    priority: int | None = None
    retry: Retry | None = None
    timeout: float | None = None
    expires: Any = None
    unique: Unique | None = None
    result_ttl: float | None = None
    after_commit: Any = None
    handler: str | None = None
    native: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, given: Mapping[str, Any], *, base: Options | None = None, keeper: Callable[[], Keeper] | None = None
    ) -> Options:
        """Options from keywords, checked, over `base`. None counts as not given.

        Raises UnsupportedOption for an unknown name, with what `keeper` tells of the handler, and InvalidOption for a
        value that makes no sense.
        """
        if not given.keys() <= _CHECKS.keys():
            raise _unknown(given, ("default", OPTION_NAMES) if keeper is None else keeper())
        checked = {name: _CHECKS[name](value) for name, value in given.items() if value is not None}
        if "delay" in checked and "at" in checked:
            raise InvalidOption("delay", "delay and at are two answers to one question: give one of them")
        if base is None or base is NO_OPTIONS:
            return cls(**checked) if checked else NO_OPTIONS
        if "at" in checked:
            base = replace(base, delay=None)
        elif "delay" in checked:
            base = replace(base, at=None)
        return replace(base, **checked) if checked else base

    def over(self, base: Options) -> Options:
        """These options where they say something, `base` elsewhere."""
        if base is NO_OPTIONS:
            return self
        return base if self is NO_OPTIONS else Options.of(self.given(), base=base)

    def given(self) -> dict[str, Any]:
        """The options that say something, by name."""
        return {name: value for name in OPTION_NAMES if (value := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        return f"Options({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    def without(self, names: Iterable[str]) -> Options:
        """A copy in which these options say nothing."""
        return replace(self, **dict.fromkeys(names))


NO_OPTIONS: Final = Options()
OPTION_NAMES: Final = tuple(item.name for item in fields(Options))

_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "queue": _check_queue,
    "delay": _check_delay,
    "at": _check_at,
    "priority": _check_priority,
    "retry": _check_retry,
    "timeout": lambda value: _seconds("timeout", value, least=0, exclusive=True),
    "expires": _check_expires,
    "unique": _check_unique,
    "result_ttl": lambda value: _seconds("result_ttl", value, least=0),
    "after_commit": _check_after_commit,
    "handler": _check_handler,
    "native": _check_native,
}


def _unknown(given: Mapping[str, Any], keeper: Keeper) -> UnsupportedOption:
    name = next(name for name in given if name not in _CHECKS)
    near = difflib.get_close_matches(name, OPTION_NAMES, n=1)
    handler, kept = keeper
    return UnsupportedOption(name, handler, kept, f"did you mean {near[0]!r}?" if near else "there is no such option")


@dataclass(frozen=True)
class Call:
    """One call on its way to a handler.

    `target` is the reference of the class, module or object, as it travels; `method` the method's name; `name` the
    readable whole, "shop.models.User.do_stuff". `args` and `kwargs` are what the caller gave, `tree` what travels: a
    JSON-safe dict, copied at the call, and `wire` the same as bytes. `options` are as given, `created` is the time of
    the call in seconds since the epoch, `handler` the configured alias that it goes by.
    """

    id: str
    target: Mapping[str, Any] = field(repr=False)
    method: str
    name: str
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    options: Options
    headers: Mapping[str, Any] = field(repr=False)
    tree: Mapping[str, Any] = field(repr=False)
    created: float
    handler: str = "default"

    @property
    def wire(self) -> bytes:
        """The tree as exact bytes: compact UTF-8 JSON, the same for the same call."""
        return encode_json(self.tree)

    @property
    def due(self) -> float | None:
        """When it may run at the earliest, in seconds since the epoch; None: at once."""
        return due_time(self.options, self.created)

    @property
    def expires_at(self) -> float | None:
        """When it must not start any more, in seconds since the epoch; None: never."""
        return expiry_time(self.options, self.created)


def encode_json(tree: object) -> bytes:
    """A JSON-safe tree as compact UTF-8 bytes."""
    return _to_json(tree).encode("utf-8")


def due_time(options: Options, created: float) -> float | None:
    """When a call of these options, made at `created`, may run at the earliest; None: at once."""
    if options.at is not None:
        return options.at.timestamp()
    if options.delay:
        return created + _seconds("delay", options.delay, least=0)
    return None


def expiry_time(options: Options, created: float) -> float | None:
    """When a call of these options, made at `created`, must not start any more; None: never.

    Raises InvalidOption when that is not later than the due time: such a job could never run.
    """
    if options.expires is None:
        return None
    expires: Any = options.expires
    moment = expires.timestamp() if isinstance(expires, datetime) else created + _seconds("expires", expires, least=0)
    due = due_time(options, created)
    if moment <= (created if due is None else max(due, created)):
        raise InvalidOption("expires", "must be later than the time at which the job is due, or it could never run")
    return float(moment)


def worker_options(options: Options, created: float) -> dict[str, Any]:
    """The options that a worker needs, as they travel: the queue, the policy, the limits; times are absolute."""
    tree: dict[str, Any] = {}
    if options.queue is not None:
        tree["queue"] = options.queue
    if options.retry is not None and options.retry.max != 0:
        tree["retry"] = options.retry.to_tree()
    if options.timeout is not None:
        tree["timeout"] = options.timeout
    if options.expires is not None:
        tree["expires"] = expiry_time(options, created)
    if options.result_ttl is not None:
        tree["result_ttl"] = options.result_ttl
    if options.unique is not None:
        tree["unique"] = {"key": options.unique.key, "until": options.unique.until}
    return tree


def now() -> float:
    """The time, in seconds since the epoch."""
    return time.time()
