"""What may a wire look like, before anything in it is looked up?

A wire is data from a stranger: it is bounded and checked as a whole, nothing in it is evaluated, and whatever is wrong
with it ends in a DecodeError that quotes none of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeAlias

from .calls import Retry
from .errors import ConfigurationError, DecodeError, InvalidOption

VERSION: Final = 1
"""The version of the envelope that this release writes, and the newest that it reads."""
_DEEPEST: Final = 128
_LEAST_KEY: Final = 32  # the envelope's own keys must fit
INT_DIGITS: Final = 4096
INT_BOUND: Final = 2**63
_ENVELOPE_LEVEL: Final = 1
FIELD_LEVEL: Final = 2
VALUE_LEVEL: Final = 3
PLAIN: Final = frozenset({type(None), bool, int, float, str, list, dict})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
Place: TypeAlias = str | tuple[Any, str, Any]
"""Where a value stands: a text, or (where its container stands, a template, its key there). Text only when it fails."""


@dataclass(frozen=True)
class Limits:
    """Bounds of what travels, the same at the call and in the worker.

    `max_bytes` and `warn_bytes` are sizes of the whole wire, in bytes. `depth` counts levels of JSON, the envelope
    being the first and an argument that is a list the third. `nodes` bounds the JSON values in the arguments, and
    again in the rest of the envelope. `string` and `key` are in characters, `arguments` counts both kinds together.
    """

    max_bytes: int = 1_048_576
    warn_bytes: int = 65_536
    depth: int = 32
    nodes: int = 100_000
    string: int = 1_048_576
    key: int = 1024
    arguments: int = 255

    def __post_init__(self) -> None:
        for item in fields(self):
            number = getattr(self, item.name)
            least = _LEAST_KEY if item.name == "key" else 1
            if type(number) is not int or number < least:
                raise ConfigurationError(f"limits: {item.name} must be a whole number of at least {least}.")
        if self.depth > _DEEPEST:
            raise ConfigurationError(f"limits: depth must be at most {_DEEPEST}, or Python's own stack would overflow.")


@dataclass(frozen=True)
class Envelope:
    """A wire that has been checked and not yet looked up: `target`, `args`, `kwargs` and `headers` are still trees."""

    v: int
    id: str
    target: Mapping[str, Any] = field(repr=False)
    method: str
    args: list[Any] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    headers: dict[str, Any] = field(repr=False)
    created: float | None
    options: Mapping[str, Any]
    name: str | None = None
    """The readable whole, where the target does not tell it: for people only, nothing is looked up under it."""


def is_clean(text: str) -> bool:
    """Whether a string has neither NUL nor a lone surrogate: databases and UTF-8 refuse them (R2)."""
    return "\0" not in text and (text.isascii() or not _SURROGATE.search(text))


def render(path: Place) -> str:
    parts: list[str] = []
    while not isinstance(path, str):
        path, template, key = path
        parts.append(template.format(key if not isinstance(key, str) or len(key) <= 64 else key[:61] + "..."))
    return path + "".join(reversed(parts))


# -- the way home: bytes


def as_bytes(wire: Any, limits: Limits) -> bytes:
    if isinstance(wire, str):
        try:
            wire = wire.encode("utf-8")
        except UnicodeEncodeError:
            raise DecodeError("is not text that UTF-8 can carry") from None
    if not isinstance(wire, (bytes, bytearray, memoryview)):
        raise DecodeError(f"must be bytes, text or a mapping, not {type(wire).__name__}")
    _check_length(wire.nbytes if isinstance(wire, memoryview) else len(wire), limits)
    return bytes(wire)


def _check_length(length: int, limits: Limits) -> None:
    if length > limits.max_bytes:
        raise DecodeError(f"is longer than {limits.max_bytes} bytes")


def parse(wire: bytes, limits: Limits) -> Any:
    """The JSON of a wire, strictly: one UTF-8 object, no key twice, no NaN, nothing deeper than allowed."""
    if not wire.startswith(b"{"):
        raise DecodeError("does not begin with { and so is not one of ours")
    _check_shape(wire, limits)
    try:
        return _JSON.decode(wire.decode("utf-8"))
    except DecodeError:
        raise
    except (ValueError, RecursionError):
        raise DecodeError("is not valid UTF-8 JSON") from None


def _check_shape(wire: bytes, limits: Limits) -> None:
    """Raise DecodeError if there are too many values, or brackets nest too deep: a parser would overflow the stack.

    Escapes go first, so that strings are what stands between quotes: every second part. Each round takes away the
    innermost pairs of brackets, so that `depth` rounds must leave nothing.
    """
    bare = b"".join(wire.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if bare.count(b",") > 2 * limits.nodes:
        raise DecodeError(f"holds more than {limits.nodes} values")
    brackets = bare.translate(_TO_BRACKETS, _NO_BRACKETS)
    for _ in range(limits.depth):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise DecodeError(f"nests deeper than {limits.depth} levels, or its brackets do not match")


_TO_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise DecodeError("has a key twice in one object")
    return tree


def _parse_int(digits: str) -> int:
    if len(digits) > 20:
        raise DecodeError("has a number beyond 64 bits")
    return int(digits)


_JSON: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_parse_int)

# -- the way home: the schema


def check_tree(roots: list[tuple[Any, int]], limits: Limits, path: str) -> None:
    """Raise DecodeError unless these trees, each at its level, are JSON of exactly the JSON types, within bounds."""
    nodes = size = 0
    while roots:
        tree, level = roots.pop()
        kind = type(tree)
        if kind is not list and kind is not dict:
            size += _check_scalar(tree, limits, path)
            continue
        nodes += len(tree)
        if level > limits.depth:
            raise DecodeError(f"nests deeper than {limits.depth} levels", path=path)
        if nodes > limits.nodes:
            raise DecodeError(f"holds more than {limits.nodes} values", path=path)
        if kind is dict:
            size += sum(_check_key(key, limits, path) for key in tree)
            tree = tree.values()
        roots.extend((item, level + 1) for item in tree)
    if size > limits.max_bytes:
        raise DecodeError(f"holds more than {limits.max_bytes} bytes", path=path)


def _check_scalar(tree: Any, limits: Limits, path: str) -> int:
    kind = type(tree)
    if kind is str:
        return _check_text(tree, limits.string, path)
    if kind is float and not math.isfinite(tree):
        raise DecodeError("has a number that is not finite", path=path)
    if kind is int and not -INT_BOUND <= tree < INT_BOUND:
        raise DecodeError("has a number beyond 64 bits", path=path)
    if kind not in PLAIN:
        raise DecodeError("has a value of a type that is not of JSON", path=path)
    return 1


def _check_key(key: Any, limits: Limits, path: str) -> int:
    if type(key) is not str:
        raise DecodeError("has a key that is not a string", path=path)
    return _check_text(key, limits.key, path)


def _check_text(text: str, longest: int, path: str) -> int:
    if len(text) > longest:
        raise DecodeError(f"has a string or key longer than {longest} characters", path=path)
    if not is_clean(text):
        raise DecodeError("has a string with a NUL character or a lone surrogate", path=path)
    return len(text)


def check_arguments(args: Any, kwargs: Any, limits: Limits) -> None:
    expect(type(args) is list, "args", "a list")
    expect(type(kwargs) is dict, "kwargs", "an object")
    check_tree([(args, FIELD_LEVEL), (kwargs, FIELD_LEVEL)], limits, "args and kwargs")
    check_keywords(args, kwargs, limits, "kwargs")


def check_keywords(args: list[Any], kwargs: dict[str, Any], limits: Limits, path: str) -> None:
    expect(all(name.isidentifier() for name in kwargs), path, "an object whose keys are identifiers")
    expect(len(args) + len(kwargs) <= limits.arguments, path, f"at most {limits.arguments} arguments in all")


def expect(holds: bool, path: str, what: str) -> None:
    if not holds:
        raise DecodeError(f"must be {what}", path=path)


def read_envelope(tree: dict[Any, Any], limits: Limits) -> Envelope:
    rest = {key: item for key, item in tree.items() if key not in ("args", "kwargs")}
    check_tree([(rest, _ENVELOPE_LEVEL)], limits, "wire")
    _check_version(tree.get("v"))
    args, kwargs = tree.get("args", []), tree.get("kwargs", {})
    check_arguments(args, kwargs, limits)
    known: dict[str, Any] = {"headers": {}, "options": {}}
    for name, (check, what) in _FIELDS.items():
        known[name] = tree.get(name, known.get(name))
        expect(check(known[name]), name, what)
    known["options"] = _read_options(known["options"])
    created = known.pop("at")
    return Envelope(v=tree["v"], args=args, kwargs=kwargs, created=None if created is None else float(created), **known)


def _check_version(version: Any) -> None:
    expect(type(version) is int and version >= 1, "v", "a whole number, 1 or more")
    if version > VERSION:
        raise DecodeError(
            f"a newer producer made it: it has a version above {VERSION}. Deploy workers before producers.", path="v"
        )


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and value >= least


def _is_positive(value: Any) -> bool:
    return _is_number(value) and bool(value > 0)


def _is_text(value: Any) -> bool:
    return type(value) is str and value != ""


_FIELDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (lambda v: type(v) is str and _JOB_ID.fullmatch(v) is not None, "1 to 128 of A-Z a-z 0-9 _ -"),
    "target": (lambda v: type(v) is dict and len(v) == 1, "an object with exactly one key"),
    "method": (lambda v: type(v) is str and v.isidentifier(), "an identifier"),
    "headers": (lambda v: type(v) is dict, "an object"),
    "at": (lambda v: v is None or _is_number(v), "a number of seconds or null"),
    "options": (lambda v: type(v) is dict, "an object"),
    "name": (lambda v: v is None or (type(v) is str and len(v) <= 1024 and v.isprintable()), "a printable name"),
}
"""The fields of an envelope beside its version and arguments: check, and what the check wants."""


def _read_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that this release knows, checked; what a newer producer adds stays out."""
    known = {name: options[name] for name in _OPTIONS if name in options}
    for name, value in known.items():
        check, what = _OPTIONS[name]
        expect(check(value), f"options.{name}", what)
    if "retry" in known:
        known["retry"] = {name: item for name, item in known["retry"].items() if name in _RETRY}
    return known


def _is_retry(tree: Any) -> bool:
    """Whether a policy is one that `Retry` takes, in exactly the types that `Retry.to_tree` gives."""
    if type(tree) is not dict or "max" not in tree:
        return False
    policy = {name: item for name, item in tree.items() if name in _RETRY}
    if not all(_RETRY[name](item) for name, item in policy.items()):
        return False
    try:
        Retry(**policy)
    except InvalidOption:
        return False
    return True


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(check, value))


def _is_unique(tree: Any) -> bool:
    return type(tree) is dict and _is_text(tree.get("key")) and tree.get("until", "done") in ("start", "done")


_RETRY: Final[dict[str, Callable[[Any], bool]]] = {
    "max": lambda value: value is None or type(value) is int,
    "wait": _is_list_of(_is_number),
    "backoff": _is_number,
    "jitter": _is_number,
    "on": _is_list_of(_is_text),
    "give_up_on": _is_list_of(_is_text),
}
_OPTIONS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "queue": (_is_text, "a name"),
    "retry": (_is_retry, "a policy: max, wait, backoff, jitter, on, give_up_on"),
    "timeout": (_is_positive, "a number above 0"),
    "expires": (_is_number, "a number"),
    "result_ttl": (lambda value: _is_number(value, 0), "a number, 0 or more"),
    "unique": (_is_unique, "an object with a key and, perhaps, until"),
}
"""The options that a worker knows: check, and what the check wants. Others are a newer producer's, and ignored."""
