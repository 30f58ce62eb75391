"""How does a value become JSON, and how does JSON from a stranger become a value?

Plain JSON stays plain. Everything else is an object with exactly one key, a tag that starts with "$":
`{"$tuple": [1, 2]}`. A user's dict that would look like one, or has keys that are no strings, is written as pairs,
`{"$dict": [[key, value], ...]}`. Strings are never interpreted. What comes home is equal in value and in type; what
could not is refused at the call.

A wire is data from a stranger: it is bounded and checked as a whole before anything in it is looked up, nothing in it
is evaluated, and whatever is wrong with it ends in a `PerformError` that quotes none of it.
"""

from __future__ import annotations

import binascii
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum, Flag
from functools import cached_property, lru_cache
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final, NoReturn, TypeAlias

from .calls import Retry, encode_json
from .errors import (
    CallError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    InvalidOption,
    NotAllowed,
    PerformError,
    TargetGone,
    TargetNotFound,
    TargetUnavailable,
)
from .references import Names, name_of

VERSION: Final = 1
"""The version of the envelope that this release writes, and the newest that it reads."""

ARGS_METHOD: Final = "__backgrounded_args__"
"""The method that tells from which arguments an object is built again: it returns `(args, kwargs)`."""

_DEEPEST: Final = 128
_LEAST_KEY: Final = 32  # the envelope's own keys must fit
_INT_DIGITS: Final = 4096
_INT_BOUND: Final = 2**63
_ENVELOPE_LEVEL: Final = 1
_FIELD_LEVEL: Final = 2
_VALUE_LEVEL: Final = 3

_INERT: Final = frozenset({type(None), bool})
_PLAIN: Final = frozenset({type(None), bool, int, float, str, list, dict})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TAG: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_Path: TypeAlias = str | tuple[Any, str, Any]
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
class Converter:
    """How values of exactly `type` travel: `encode` gives something that can, `decode` takes that and gives it back.

    `tag` names the converter in the wire, for ever: a worker decodes what it finds under it.
    """

    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    tag: str


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


class Codec:
    """Writes values and targets as JSON-safe trees, and reads them back.

    Its converters are its own; what may be named and found is up to `names`. Encoding raises EncodeError, or NotAllowed
    for a class or function that a worker would refuse; decoding raises PerformErrors and nothing else.
    """

    def __init__(self, names: Names, converters: Iterable[Converter] = (), limits: Limits = Limits()) -> None:
        self.names = names
        self.limits = limits
        self._by_type: dict[type, Converter] = {}
        self._by_tag: dict[str, Converter] = {}
        for converter in converters:
            self.add(converter)

    def add(self, converter: Converter) -> None:
        """Register a converter in place of one with the same tag. Raises ConfigurationError.

        A second tag for a type is written from now on, and the first one still read.
        """
        _check_converter(converter)
        old = self._by_tag.get(converter.tag)
        if old is not None and self._by_type.get(old.type) is old:
            del self._by_type[old.type]
        self._by_tag[converter.tag] = converter
        self._by_type[converter.type] = converter

    def copy(self, names: Names | None = None, limits: Limits | None = None) -> Codec:
        """The same codec, apart from this one from now on."""
        twin = Codec(self.names if names is None else names, limits=self.limits if limits is None else limits)
        twin._by_type.update(self._by_type)
        twin._by_tag.update(self._by_tag)
        return twin

    # -- at the call

    def encode_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call as trees. Raises EncodeError with a path such as "kwargs['items'][3]"."""
        args_tree, kwargs_tree, _ = self.encode_call(args, kwargs)
        return args_tree, kwargs_tree

    def encode_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], int]:
        """`encode_arguments`, and an upper bound of the bytes that the trees take in a wire, for `check_size`."""
        encoder = _Encoder(self)
        args_tree, kwargs_tree = encoder.arguments(args, kwargs, "args", "kwargs", _FIELD_LEVEL)
        return args_tree, kwargs_tree, encoder.size

    def encode(self, value: Any, path: str) -> Any:
        """A value (a header, a result) as a tree."""
        return _Encoder(self).encode(value, path, _VALUE_LEVEL)

    def encode_headers(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The headers of a call as trees, for `decode_headers`. Raises EncodeError."""
        if any(type(name) is not str for name in headers):
            raise EncodeError("headers", "the names of headers must be strings")
        return _Encoder(self)._members(headers, "headers", _FIELD_LEVEL)

    def encode_target(self, obj: Any, path: str = "target") -> dict[str, Any]:
        """The reference of a target, with one key: class, module, service, ref, built or value.

        Whether its methods may be called is not asked here. Raises EncodeError.
        """
        return _Encoder(self).target(obj, path)

    def check_size(self, call_name: str, tree: Mapping[str, Any], arguments: int | None = None) -> None:
        """Raise EncodeError if the wire is too big; log a warning if it is big.

        `arguments` is the bound from `encode_call`; with it, a small call is not measured at all.
        """
        least = min(self.limits.warn_bytes, self.limits.max_bytes)
        if arguments is not None and arguments + _bound_of_rest(tree) <= least:
            return
        size = len(encode_json(tree))
        if size > self.limits.max_bytes:
            raise EncodeError(
                "call",
                f"{call_name} takes {size} bytes, more than the {self.limits.max_bytes} that may travel. Store the "
                f"data and send its key.",
            )
        if size > self.limits.warn_bytes:
            _warn_of_size(call_name, size)

    # -- in the worker

    def read(self, wire: bytes | bytearray | memoryview | str | Mapping[str, Any]) -> Envelope:
        """The envelope of a wire, with every check that needs no look-up. Raises DecodeError."""
        tree = dict(wire) if isinstance(wire, Mapping) else _parse(_as_bytes(wire, self.limits), self.limits)
        return _read_envelope(tree, self.limits)

    def decode_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call from their trees. Raises PerformErrors."""
        _check_arguments(args, kwargs, self.limits)
        return _Decoder(self).arguments(args, kwargs, "args", "kwargs")

    def decode(self, tree: Any, path: str) -> Any:
        """A value from its tree. Raises PerformErrors."""
        _check_tree([(tree, _VALUE_LEVEL)], self.limits, path)
        return _Decoder(self).decode(tree, path)

    def decode_headers(self, headers: dict[str, Any]) -> dict[str, Any]:
        """The headers of an envelope from their trees. Raises PerformErrors."""
        _expect(type(headers) is dict, "headers", "an object")
        _check_tree([(headers, _FIELD_LEVEL)], self.limits, "headers")
        return _Decoder(self).members(headers, "headers")

    def decode_target(self, ref: Mapping[str, Any], method: str | None = None) -> Any:
        """The class, module or object behind a reference. Raises PerformErrors.

        Whether its methods may be called is left to `Names.admitted`, with one exception: no constructor runs for a
        `method` that may not be called, or, where none is given, for a class that has not opted in.
        """
        tree = dict(ref) if isinstance(ref, Mapping) else ref
        _check_tree([(tree, _FIELD_LEVEL)], self.limits, "target")
        return _Decoder(self, method).target(tree)


def _check_converter(converter: Converter) -> None:
    if not isinstance(converter.type, type) or converter.type in _PLAIN:
        raise ConfigurationError(
            "A converter needs a class; None, bool, int, float, str, list and dict are plain JSON."
        )
    if not isinstance(converter.tag, str) or not _TAG.fullmatch(converter.tag):
        raise ConfigurationError(f"A converter's tag must be a word such as 'money', not {converter.tag!r}.")
    if "$" + converter.tag in _READERS:
        raise ConfigurationError(f"The tag {converter.tag!r} is taken by a value type of our own: choose another.")
    if not callable(converter.encode) or not callable(converter.decode):
        raise ConfigurationError(f"The converter {converter.tag!r} needs two callables, encode and decode.")


def _warn_of_size(call_name: str, size: int) -> None:
    import logging

    logging.getLogger("backgrounded").warning(
        "%s takes %d bytes in the queue: store the data and send its key",
        call_name,
        size,
        extra={"job_name": call_name, "wire_bytes": size},
    )


def _bound_of_rest(tree: Mapping[str, Any]) -> int:
    return 64 + sum(_bound(key) + _bound(item) for key, item in tree.items() if key not in ("args", "kwargs"))


def _bound(tree: Any) -> int:
    """An upper bound of the bytes of a JSON-safe tree."""
    if isinstance(tree, str):
        return _NODE_BYTES + _CHARACTER_BYTES * len(tree)
    if isinstance(tree, dict):
        return _NODE_BYTES + sum(_bound(key) + _bound(item) for key, item in tree.items())
    if isinstance(tree, (list, tuple)):
        return _NODE_BYTES + sum(map(_bound, tree))
    return _NODE_BYTES


_NODE_BYTES: Final = 28  # the longest float has 24 characters; a comma, a colon, two quotes or brackets
_CHARACTER_BYTES: Final = 6  # "\u0001"


def _is_clean(text: str) -> bool:
    """Whether a string has neither NUL nor a lone surrogate: databases and UTF-8 refuse them (R2)."""
    return "\0" not in text and (text.isascii() or not _SURROGATE.search(text))


def _render(path: _Path) -> str:
    parts: list[str] = []
    while not isinstance(path, str):
        path, template, key = path
        parts.append(template.format(key if not isinstance(key, str) or len(key) <= 64 else key[:61] + "..."))
    return path + "".join(reversed(parts))


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _has(cls: type, name: str) -> bool:
    """Whether a class or a base of it holds a name, without evaluating anything."""
    return any(name in vars(base) for base in cls.__mro__)


# -- values that are one text or a flat list of scalars


class _CannotTravel(Exception):
    """A value's own reason, which the encoder gives a path."""


@dataclass(frozen=True)
class _Leaf:
    """How values of one type are written as a text or a flat list of scalars.

    `write` raises _CannotTravel. `read` may raise anything; what it accepts must be what `write` gives, to the letter.
    """

    tag: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _write_bytes(value: bytes | bytearray) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _zone_of(zone: tzinfo | None) -> list[Any]:
    if zone is None:
        return []
    if type(zone) is timezone:
        return _offset_of(zone)
    key = getattr(zone, "key", None)
    if type(zone) is getattr(sys.modules.get("zoneinfo"), "ZoneInfo", None) and isinstance(key, str):
        return ["zone", key]
    raise _CannotTravel(
        f"its tzinfo is a {_type_name(type(zone))}, which cannot be named in a worker. Use zoneinfo.ZoneInfo(name) or "
        f"datetime.timezone."
    )


def _offset_of(zone: timezone) -> list[Any]:
    offset = zone.utcoffset(None)
    seconds = offset.total_seconds()
    name = zone.tzname(None)
    whole = int(seconds) if seconds == int(seconds) else seconds
    return ["offset", whole] if name == timezone(offset).tzname(None) else ["offset", whole, name]


def _read_zone(parts: list[Any]) -> tzinfo | None:
    if not parts:
        return None
    kind, key, *name = parts
    if kind == "offset":
        return timezone(timedelta(seconds=key), *name)
    if kind != "zone" or not _ZONE.fullmatch(key):
        raise ValueError
    from zoneinfo import ZoneInfo

    return ZoneInfo(key)


_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]{1,64}(/[A-Za-z0-9_+-]{1,64}){0,3}")


def _write_moment(value: datetime | time) -> Any:
    text, zone = value.replace(tzinfo=None).isoformat(), _zone_of(value.tzinfo)
    return [text, value.fold, *zone] if zone or value.fold else text


def _read_moment(cls: Any, payload: Any) -> Any:
    if isinstance(payload, str):
        return cls.fromisoformat(payload)
    text, fold, *zone = payload
    return cls.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _write_int(value: int) -> str:
    if value.bit_length() > 4 * _INT_DIGITS:
        raise _CannotTravel(f"the number has more than {_INT_DIGITS} hexadecimal digits")
    return hex(value)


def _read_int(payload: Any) -> int:
    value = int(payload, 16)
    if -_INT_BOUND <= value < _INT_BOUND:
        raise ValueError
    return value


def _write_float(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _read_decimal(payload: Any) -> Any:
    from decimal import Decimal

    return Decimal(_exactly(str, payload))


def _read_uuid(payload: Any) -> Any:
    from uuid import UUID

    return UUID(_exactly(str, payload))


def _write_path(value: Any) -> list[str]:
    text = str(value)
    again = type(value)(text)
    if again != value or str(again) != text:  # some Windows paths: PureWindowsPath("//://")
        raise _CannotTravel("its text names another path")
    return [type(value).__name__, text]


def _read_path(payload: Any) -> Any:
    import pathlib

    name, text = payload
    if name not in _PATHS:
        raise ValueError
    return getattr(pathlib, name)(_exactly(str, text))


def _exactly(cls: type, value: Any) -> Any:
    if type(value) is not cls:
        raise ValueError
    return value


_PATHS: Final = ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_INT: Final = _Leaf("$int", _write_int, _read_int)
_FLOAT: Final = _Leaf("$float", _write_float, float)
_PATH: Final = _Leaf("$path", _write_path, _read_path)

_LEAF_TYPES: Final[dict[type, _Leaf]] = {
    bytes: _Leaf("$bytes", _write_bytes, binascii.a2b_base64),
    bytearray: _Leaf("$bytearray", _write_bytes, lambda payload: bytearray(binascii.a2b_base64(payload))),
    datetime: _Leaf("$datetime", _write_moment, lambda payload: _read_moment(datetime, payload)),
    date: _Leaf("$date", date.isoformat, date.fromisoformat),
    time: _Leaf("$time", _write_moment, lambda payload: _read_moment(time, payload)),
    timedelta: _Leaf("$timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda payload: timedelta(*payload)),
}

_LAZY_TYPES: Final[dict[tuple[str, str], _Leaf]] = {
    ("decimal", "Decimal"): _Leaf("$decimal", str, _read_decimal),
    ("uuid", "UUID"): _Leaf("$uuid", str, _read_uuid),
    **{("pathlib", name): _PATH for name in _PATHS},
}
"""Types whose modules are imported only when a value of theirs is there: whoever sends a Decimal has imported it."""

_LEAVES: Final = {leaf.tag: leaf for leaf in (_INT, _FLOAT, *_LEAF_TYPES.values(), *_LAZY_TYPES.values())}

_STANDARD: Final = (str, bool, int, float, complex, list, dict, tuple, set, frozenset, range, slice, *_LEAF_TYPES)
"""Types whose subclasses would come home as something less, and are refused."""


# -- values that are a class and its fields


@dataclass(frozen=True)
class _Shape:
    """How instances of one class are taken apart into fields and built again through its constructor.

    `parameters` maps a field to the constructor's word for it. `others` are slots that are no fields. `problem` says
    why no instance can travel. `verify`: code of the class runs at its construction and might change the fields, so
    that the call tries it.
    """

    tag: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    others: tuple[Any, ...] = ()
    problem: str = ""
    verify: bool = False

    def take(self, value: Any) -> tuple[dict[str, Any], list[str]]:
        """The fields of an instance, and the names of those that nobody set. Raises _CannotTravel."""
        self._check_extra(value)
        return {name: getattr(value, name) for name in self.parameters}, []

    def build(self, cls: Any, taken: Mapping[str, Any], unset: list[str]) -> Any:
        """An instance of `cls` from its fields."""
        return cls(**self._keywords(taken))

    def accepts(self, cls: Any, names: Iterable[str]) -> bool:
        """Whether instances of `cls` have fields of these names."""
        return set(names) <= self.parameters.keys()

    def _keywords(self, taken: Mapping[str, Any]) -> dict[str, Any]:
        return {self.parameters.get(name, name): item for name, item in taken.items()}

    def _check_extra(self, value: Any) -> None:
        extra = [name for name in getattr(value, "__dict__", ()) if not self._is_expected(type(value), name)]
        extra += [slot.__name__ for slot in self.others if _is_set(slot, value)]
        if extra:
            raise _CannotTravel(f"it holds more than its fields: {', '.join(map(str, extra))}")

    def _is_expected(self, cls: type, name: str) -> bool:
        if name in self.parameters or name in _NO_STATE:
            return True
        return any(isinstance(vars(base).get(name), cached_property) for base in cls.__mro__)


_NO_STATE: Final = ("__orig_class__", "_attrs_cached_hash")


def _is_set(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value, type(value))
    except AttributeError:
        return False
    return True


class _ModelShape(_Shape):
    """A pydantic model: validated again in the worker, with what was set and what was not."""

    def take(self, value: Any) -> tuple[dict[str, Any], list[str]]:
        self._check_extra(value)
        self._check_private(value)
        given, held = value.model_fields_set, vars(value)
        unset = [name for name in self.parameters if name not in given and not _is_default(value, name)]
        taken = {name: held[name] for name in self.parameters if name in given or name in unset}
        return {**taken, **(value.__pydantic_extra__ or {})}, unset

    def build(self, cls: Any, taken: Mapping[str, Any], unset: list[str]) -> Any:
        if getattr(cls, "__pydantic_root_model__", False):
            value = cls.model_validate(taken["root"]) if taken else cls()
        else:
            value = cls.model_validate(self._keywords(taken))
        value.model_fields_set.difference_update(unset)
        return value

    def accepts(self, cls: Any, names: Iterable[str]) -> bool:
        return cls.model_config.get("extra") == "allow" or super().accepts(cls, names)

    def _check_private(self, value: Any) -> None:
        for name, held in (value.__pydantic_private__ or {}).items():
            declared = type(value).__private_attributes__.get(name)
            if declared is None or not _is_same(held, declared.get_default()):
                raise _CannotTravel(f"its private attribute {name} is set, and private attributes do not travel")


def _is_default(value: Any, name: str) -> bool:
    """Whether an unset field of a model would be the same in the worker if it stays out of the wire."""
    declared = _model_fields(type(value))[name]
    return declared.default_factory is None and _is_same(vars(value)[name], declared.default)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


@lru_cache(maxsize=1024)
def _plan(cls: Any) -> _Leaf | _Shape | None:
    """How instances of exactly this class travel, as far as the class alone decides; None: not by value."""
    leaf = _LEAF_TYPES.get(cls) or _lazy_leaf(cls)
    if leaf is not None:
        return leaf
    for tag, (is_of_kind, shape_of) in _KINDS.items():
        if is_of_kind(cls):
            return _checked(cls, shape_of(tag, cls))
    return None


def _lazy_leaf(cls: type) -> _Leaf | None:
    for (module, name), leaf in _LAZY_TYPES.items():
        if getattr(sys.modules.get(module), name, None) is cls:
            return leaf
    return None


def _checked(cls: type, shape: _Shape) -> _Shape:
    """The shape with its `problem`, if instances of the class are more than their fields."""
    others = tuple(slot for slot in _slots(cls) if slot.__name__ not in shape.parameters)
    if shape.problem or shape.tag == "$enum":
        return shape
    if shape.tag == "$pydantic":
        return replace(shape, others=tuple(slot for slot in others if not slot.__name__.startswith("__pydantic_")))
    standard = next((base for base in cls.__mro__[1:] if base in _STANDARD), None)
    if standard is not None and shape.tag != "$namedtuple":
        return replace(shape, problem=f"it is a {standard.__name__} too, and would lose what it holds as one")
    if _constructor_words(cls) != set(shape.parameters.values()):
        return replace(
            shape, problem="its constructor does not take exactly its fields (an InitVar, or one of its own)"
        )
    return replace(shape, others=others)


def _slots(cls: type) -> list[Any]:
    return [raw for base in cls.__mro__ for raw in vars(base).values() if isinstance(raw, MemberDescriptorType)]


def _constructor_words(cls: type) -> set[str]:
    try:
        return set(inspect.signature(cls).parameters)
    except (TypeError, ValueError):
        return set()


def _enum_shape(tag: str, cls: Any) -> _Shape:
    return _Shape(tag)


def _namedtuple_shape(tag: str, cls: Any) -> _Shape:
    maker = next(base for base in cls.__mro__ if "__new__" in vars(base))
    return _Shape(tag, {name: name for name in cls._fields}, verify="_fields" not in vars(maker))


def _dataclass_shape(tag: str, cls: Any) -> _Shape:
    names = {item.name: item.name for item in fields(cls)}
    closed = [item.name for item in fields(cls) if not item.init]
    problem = f"its field {closed[0]} is not taken by its constructor (init=False)" if closed else ""
    changes = _has(cls, "__post_init__") or _has(cls, "__pydantic_validator__")
    return _Shape(tag, names, problem=problem, verify=changes)


def _attrs_shape(tag: str, cls: Any) -> _Shape:
    attributes = cls.__attrs_attrs__
    names = {item.name: getattr(item, "alias", None) or item.name.lstrip("_") for item in attributes}
    closed = [item.name for item in attributes if not item.init]
    problem = f"its field {closed[0]} is not taken by its constructor (init=False)" if closed else ""
    changes = _has(cls, "__attrs_post_init__") or any(item.converter or item.validator for item in attributes)
    return _Shape(tag, names, problem=problem, verify=changes)


def _struct_shape(tag: str, cls: Any) -> _Shape:
    return _Shape(tag, {name: name for name in cls.__struct_fields__}, verify=_has(cls, "__post_init__"))


def _model_shape(tag: str, cls: Any) -> _Shape:
    if not cls.__pydantic_complete__:
        cls.model_rebuild(raise_errors=False)
    words = {name: _validation_word(cls, name, declared) for name, declared in _model_fields(cls).items()}
    bad = [name for name, word in words.items() if word is None]
    problem = f"its field {bad[0]} has no plain alias for validation (AliasPath)" if bad else ""
    return _ModelShape(tag, {name: word or name for name, word in words.items()}, problem=problem, verify=True)


def _model_fields(cls: Any) -> Any:
    return cls.__pydantic_fields__ if _has(cls, "__pydantic_fields__") else cls.model_fields


def _validation_word(cls: Any, name: str, declared: Any) -> str | None:
    alias = declared.validation_alias
    if alias is None or cls.model_config.get("validate_by_alias") is False:
        return name
    candidates = [alias, *getattr(alias, "choices", ())]
    return next((item for item in candidates if isinstance(item, str)), None)


def _is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and _has(cls, "_fields") and _has(cls, "_make")


def _is_model(cls: type) -> bool:
    return _has(cls, "__pydantic_validator__") and _has(cls, "model_validate")


_KINDS: Final[dict[str, tuple[Callable[[type], bool], Callable[[str, Any], _Shape]]]] = {
    "$enum": (lambda cls: issubclass(cls, Enum), _enum_shape),
    "$namedtuple": (_is_namedtuple, _namedtuple_shape),
    "$dataclass": (lambda cls: _has(cls, "__dataclass_fields__"), _dataclass_shape),
    "$attrs": (lambda cls: _has(cls, "__attrs_attrs__"), _attrs_shape),
    "$pydantic": (_is_model, _model_shape),
    "$msgspec": (lambda cls: _has(type(cls), "__struct_fields__"), _struct_shape),
}
"""Kinds of classes whose instances are their fields, told by what their libraries, not imported here, leave on them."""


def _is_blank(obj: Any) -> bool:
    """Whether nothing is lost of an object when its class is built again without arguments."""
    kind: Any = type(obj)
    return _loses_nothing(kind) and not vars(obj)


@lru_cache(maxsize=1024)
def _loses_nothing(cls: Any) -> bool:
    """Whether an instance with an empty `__dict__` is the same as a new one: it has no constructor and no slots."""
    plain = cls.__init__ is object.__init__ and cls.__new__ is object.__new__
    return bool(plain and _has(cls, "__dict__") and not _slots(cls))


# -- the way out


class _Encoder:
    """Encodes one call. `size` bounds from above the bytes that its trees take, `nodes` counts their JSON values."""

    def __init__(self, codec: Codec, verify: bool = True) -> None:
        self.codec = codec
        self.names = codec.names
        self.limits = codec.limits
        self.verify = verify
        self.size = 0
        self.nodes = 0

    def arguments(
        self, args: Iterable[Any], kwargs: Mapping[str, Any], args_path: _Path, kwargs_path: _Path, depth: int
    ) -> tuple[list[Any], dict[str, Any]]:
        """Trees of a call's arguments, standing at level `depth`."""
        args = tuple(args)
        if len(args) + len(kwargs) > self.limits.arguments:
            self._fail(args_path, f"more than {self.limits.arguments} arguments")
        for name in kwargs:
            if type(name) is not str or not name.isidentifier():
                self._fail(kwargs_path, "the names of keyword arguments must be identifiers")
        return self._items(args, args_path, depth), self._members(kwargs, kwargs_path, depth)

    def encode(self, value: Any, path: _Path, depth: int) -> Any:
        """The tree of a value whose JSON begins at level `depth`."""
        kind = type(value)
        if kind in _INERT:
            return value
        if kind is str:
            return self._text(value, path)
        if kind is int:
            return value if -_INT_BOUND <= value < _INT_BOUND else self._leaf(_INT, value, path, depth)
        if kind is float:
            return value if math.isfinite(value) else self._leaf(_FLOAT, value, path, depth)
        if kind is list:
            return self._items(value, path, depth)
        if kind is dict:
            return self._mapping(value, path, depth)
        return self._other(value, path, depth)

    def target(self, obj: Any, path: str) -> dict[str, Any]:
        """The reference of a target."""
        if issubclass(type(obj), type):
            return {"class": self._name(obj, path)}
        if issubclass(type(obj), ModuleType):
            return {"module": self._module(obj, path)}
        if (service := self._service(obj)) is not None:
            return {"service": self._text(service, path)}
        if (reference := self._reference(obj, path, _VALUE_LEVEL)) is not None:
            return {"ref": reference}
        if _has(type(obj), ARGS_METHOD):
            return {"built": self._built(obj, path, _VALUE_LEVEL)}
        if _is_blank(obj):
            return {"built": [self._name(type(obj), path), [], {}]}
        return {"value": self._target_value(obj, path)}

    def _target_value(self, obj: Any, path: _Path) -> Any:
        kind: Any = type(obj)
        by_value = kind in _PLAIN or kind in self.codec._by_type or kind in _CONTAINERS or _plan(kind) is not None
        if by_value:
            return self.encode(obj, path, _VALUE_LEVEL)
        name = _type_name(kind)
        self._fail(
            path,
            f"a {name} cannot be found or built again in a worker. Define {ARGS_METHOD}(self) on its class, which "
            f"returns the (args, kwargs) to build it from; or register_service(name, obj) for one long-lived object; "
            f"or add_locator(...) for objects that a store knows by key; or add_converter({kind.__name__}, ...).",
        )

    def _other(self, value: Any, path: _Path, depth: int) -> Any:
        """Everything that is not plain JSON, the most explicit first."""
        kind: Any = type(value)
        converter = self.codec._by_type.get(kind)
        if converter is not None:
            return self._custom(converter, value, path, depth)
        write = _CONTAINERS.get(kind)
        if write is not None:
            return write(self, value, path, depth)
        plan = _plan(kind)
        if isinstance(plan, _Leaf):
            return self._leaf(plan, value, path, depth)
        return self._object(plan, value, path, depth)

    def _object(self, shape: _Shape | None, value: Any, path: _Path, depth: int) -> Any:
        if (service := self._service(value)) is not None:
            return self._tagged("$service", self._text(service, path), path, depth)
        if (reference := self._reference(value, path, depth + 1)) is not None:
            return self._tagged("$ref", reference, path, depth)
        if _has(type(value), ARGS_METHOD):
            return self._admitted_built(value, path, depth)
        if shape is not None:
            return self._shaped(shape, value, path, depth)
        if issubclass(type(value), type):
            return self._class(value, path, depth)
        if type(value) is FunctionType:
            return self._function(value, path, depth)
        self._refuse(type(value), path)

    # -- plain JSON

    def _text(self, text: str, path: _Path) -> str:
        if len(text) > self.limits.string:
            self._fail(path, f"the string is longer than {self.limits.string} characters")
        if not _is_clean(text):
            self._fail(path, "the string holds a NUL character or a lone surrogate, which databases and UTF-8 refuse")
        self.size += _CHARACTER_BYTES * len(text)
        return text

    def _key(self, key: str, path: _Path) -> str:
        if len(key) > self.limits.key:
            self._fail(path, f"a key is longer than {self.limits.key} characters")
        if not _is_clean(key):
            self._fail(path, "a key holds a NUL character or a lone surrogate, which databases and UTF-8 refuse")
        self.size += _CHARACTER_BYTES * len(key)
        return key

    def _enter(self, count: int, path: _Path, depth: int) -> None:
        """Begin a JSON array or object of `count` members at level `depth`."""
        if depth > self.limits.depth:
            self._fail(path, f"nested deeper than {self.limits.depth} levels of JSON, or it contains itself")
        self.nodes += count
        self.size += _NODE_BYTES * (count + 1)
        if self.nodes > self.limits.nodes:
            self._fail(path, f"with this, it holds more than {self.limits.nodes} values in all")

    def _items(self, items: Any, path: _Path, depth: int) -> list[Any]:
        self._enter(len(items), path, depth)
        return [
            item if type(item) in _INERT else self.encode(item, (path, "[{!r}]", index), depth + 1)
            for index, item in enumerate(items)
        ]

    def _members(self, items: Mapping[str, Any], path: _Path, depth: int, template: str = "[{!r}]") -> dict[str, Any]:
        self._enter(len(items), path, depth)
        return {
            self._key(key, path): self.encode(item, (path, template, key), depth + 1) for key, item in items.items()
        }

    def _mapping(self, value: dict[Any, Any], path: _Path, depth: int) -> dict[str, Any]:
        if all(type(key) is str for key in value) and not _looks_tagged(value):
            return self._members(value, path, depth)
        self._enter(1 + len(value), path, depth + 1)
        pairs = [self._pair(key, item, path, depth + 2) for key, item in value.items()]
        return self._tagged("$dict", pairs, path, depth)

    def _pair(self, key: Any, item: Any, path: _Path, depth: int) -> list[Any]:
        self._enter(2, path, depth)
        place = key if type(key) is str else _type_name(type(key))
        return [
            self.encode(key, (path, " (a key, {})", _type_name(type(key))), depth + 1),
            self.encode(item, (path, "[{!r}]" if type(key) is str else "[<{}>]", place), depth + 1),
        ]

    # -- values with a tag

    def _tagged(self, tag: str, payload: Any, path: _Path, depth: int) -> dict[str, Any]:
        self._enter(1, path, depth)
        return {tag: payload}

    def _leaf(self, leaf: _Leaf, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        payload = self._try(path, leaf.write, value)
        parts = payload if type(payload) is list else [payload]
        if parts is payload:
            self._enter(len(parts), path, depth + 1)
        for part in parts:
            if type(part) is str:
                self._text(part, path)
        return self._tagged(leaf.tag, payload, path, depth)

    def _tuple(self, value: tuple[Any, ...], path: _Path, depth: int) -> dict[str, Any]:
        return self._tagged("$tuple", self._items(value, path, depth + 1), path, depth)

    def _set(self, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        self._enter(len(value), path, depth + 1)
        trees = [self.encode(item, (path, " (an element, {})", _type_name(type(item))), depth + 2) for item in value]
        return self._tagged("$" + type(value).__name__, sorted(trees, key=encode_json), path, depth)

    def _range(self, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        parts = [value.start, value.stop, value.step]
        return self._tagged("$" + type(value).__name__, self._items(parts, path, depth + 1), path, depth)

    def _complex(self, value: complex, path: _Path, depth: int) -> dict[str, Any]:
        return self._tagged("$complex", self._items([value.real, value.imag], path, depth + 1), path, depth)

    def _custom(self, converter: Converter, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        converted = self._ask(path, f"the converter {converter.tag!r}", converter.encode, value)
        self._enter(2, path, depth + 1)
        return self._tagged("$x", [converter.tag, self.encode(converted, path, depth + 2)], path, depth)

    def _shaped(self, shape: _Shape, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        cls = type(value)
        if shape.problem:
            self._fail(path, f"a {_type_name(cls)} would not come home equal: {shape.problem}. {_WAYS_OUT}")
        name = self._name(cls, path)
        self._enter(3, path, depth + 1)
        if shape.tag == "$enum":
            return self._tagged(shape.tag, [name, self._member(value, path, depth + 2)], path, depth)
        taken, unset = self._try(path, shape.take, value)
        trees = self._members(taken, path, depth + 2, ".{}")
        payload = [name, trees, self._items(unset, path, depth + 2)] if unset else [name, trees]
        if shape.verify and self.verify:
            self._verify(shape, value, taken, unset, payload, path, depth)
        return self._tagged(shape.tag, payload, path, depth)

    def _member(self, value: Any, path: _Path, depth: int) -> Any:
        if type(value).__members__.get(value._name_) is value:
            return self._text(value._name_, path)
        if isinstance(value, Flag) and type(value._value_) is int:
            return self.encode(value._value_, path, depth)
        self._fail(path, f"it is not a member of {_type_name(type(value))} by name")

    def _verify(
        self, shape: _Shape, value: Any, taken: Any, unset: list[str], payload: Any, path: _Path, depth: int
    ) -> None:
        """Build the value as a worker will, and compare: its class has code that might change it."""
        cls = type(value)
        copies = {name: _copied(item) for name, item in taken.items()}
        twin = self._ask(path, f"building a {_type_name(cls)} again from its fields", shape.build, cls, copies, unset)
        again = _Encoder(self.codec, verify=False)._shaped(shape, twin, path, depth)
        if type(twin) is not cls or encode_json(again[shape.tag]) != encode_json(payload):
            self._fail(
                path, f"a {_type_name(cls)} would not come home equal: its class changes its fields. {_WAYS_OUT}"
            )

    # -- values by name

    def _name(self, cls: Any, path: _Path) -> str:
        name = name_of(cls, _render(path))
        if not all(part.isidentifier() for part in name.replace(":", ".").split(".")):
            self._fail(path, f"{name} is not a name that a worker can look up (a generic's parameters, perhaps)")
        return self._text(name, path)

    def _module(self, module: ModuleType, path: _Path) -> str:
        name = module.__name__
        if name == "__main__":
            self._fail(path, "the program itself is no module that a worker can import. Move the function to a module.")
        if sys.modules.get(name) is not module or not all(part.isidentifier() for part in name.split(".")):
            self._fail(path, f"the module {name} is not loaded under its own name: no worker could find it")
        return self._text(name, path)

    def _class(self, cls: type, path: _Path, depth: int) -> dict[str, Any]:
        name = self._name(cls, path)
        self._admit(cls, path)
        return self._tagged("$type", name, path, depth)

    def _admit(self, cls: type, path: _Path) -> None:
        if not self.names.admits(cls):
            raise NotAllowed(
                _type_name(cls),
                f"at {_render(path)}: the class has not opted in. Give it the Backgrounded mixin or @backgroundable, "
                f"or configure(..., allow=[{cls.__module__!r}]).",
            )

    def _function(self, function: FunctionType, path: _Path, depth: int) -> dict[str, Any]:
        name = self._name(function, path)
        if "." in function.__qualname__:
            self._fail(path, f"{name} is not a function of a module: only those, and classes, travel by name")
        self.names.method(sys.modules[function.__module__], function.__name__)
        return self._tagged("$function", name, path, depth)

    def _service(self, obj: Any) -> str | None:
        return next((name for name, service in self.names.services.items() if service is obj), None)

    def _reference(self, obj: Any, path: _Path, depth: int) -> list[Any] | None:
        for name, locator in self.names.locators.items():
            key = self._ask(path, f"the locator {name!r}", locator.refer, obj)
            if key is not None:
                self._enter(2, path, depth)
                return [self._text(name, path), self.encode(key, (path, " (its key){}", ""), depth + 1)]
        return None

    def _admitted_built(self, value: Any, path: _Path, depth: int) -> dict[str, Any]:
        payload = self._built(value, path, depth + 1)
        self._admit(type(value), path)
        return self._tagged("$built", payload, path, depth)

    def _built(self, value: Any, path: _Path, depth: int) -> list[Any]:
        name = self._name(type(value), path)
        given = self._ask(path, f"{_type_name(type(value))}.{ARGS_METHOD}", getattr(type(value), ARGS_METHOD), value)
        if not _is_arguments(given):
            self._fail(path, f"{_type_name(type(value))}.{ARGS_METHOD} must return (args, kwargs): a tuple and a dict")
        self._enter(3, path, depth)
        args, kwargs = given
        return [name, *self.arguments(args, kwargs, (path, ".args{}", ""), (path, ".kwargs{}", ""), depth + 1)]

    # -- what goes wrong

    def _fail(self, path: _Path, message: str) -> NoReturn:
        raise EncodeError(_render(path), message)

    def _refuse(self, kind: type, path: _Path) -> NoReturn:
        name = _type_name(kind)
        standard = next((base for base in kind.__mro__[1:] if base in _STANDARD), None)
        if standard is not None:
            self._fail(
                path,
                f"a {name} would come home as a plain {standard.__name__}, so it is refused rather than flattened. "
                f"Convert it with {standard.__name__}(...), or add_converter({kind.__name__}, ...).",
            )
        self._fail(path, f"a {name} cannot travel: it has no converter. {_WAYS_OUT}")

    def _ask(self, path: _Path, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call code that is not ours."""
        try:
            return function(*args)
        except CallError:
            raise
        except Exception as error:
            raise EncodeError(_render(path), f"{what} raised {type(error).__name__}") from error

    def _try(self, path: _Path, function: Callable[[Any], Any], value: Any) -> Any:
        try:
            return function(value)
        except _CannotTravel as reason:
            raise EncodeError(_render(path), f"a {_type_name(type(value))} cannot travel: {reason}") from None
        except Exception as error:
            raise EncodeError(
                _render(path), f"taking a {_type_name(type(value))} apart raised {type(error).__name__}"
            ) from error


_WAYS_OUT: Final = (
    "Send plain values or a key in its place; or add_converter(type, encode, decode, tag=...), add_locator(...) for "
    f"what a store knows by key, or define {ARGS_METHOD}(self) on its class."
)

_CONTAINERS: Final[dict[type, Callable[[_Encoder, Any, _Path, int], Any]]] = {
    tuple: _Encoder._tuple,
    set: _Encoder._set,
    frozenset: _Encoder._set,
    range: _Encoder._range,
    slice: _Encoder._range,
    complex: _Encoder._complex,
}


def _looks_tagged(tree: Mapping[Any, Any]) -> bool:
    return len(tree) == 1 and next(iter(tree)).startswith("$") is True


def _copied(value: Any) -> Any:
    """A value whose plain containers are copies, for a constructor that might change them."""
    kind = type(value)
    if kind is dict:
        return {key: _copied(item) for key, item in value.items()}
    if kind in (list, tuple):
        return kind(map(_copied, value))
    return kind(value) if kind in (set, bytearray) else value


def _is_arguments(given: Any) -> bool:
    pair = isinstance(given, tuple) and len(given) == 2
    return pair and isinstance(given[0], (tuple, list)) and isinstance(given[1], Mapping)


# -- the way home: bytes


def _as_bytes(wire: Any, limits: Limits) -> bytes:
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


def _parse(wire: bytes, limits: Limits) -> Any:
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


def _check_tree(roots: list[tuple[Any, int]], limits: Limits, path: str) -> None:
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
    if kind is int and not -_INT_BOUND <= tree < _INT_BOUND:
        raise DecodeError("has a number beyond 64 bits", path=path)
    if kind not in _PLAIN:
        raise DecodeError("has a value of a type that is not of JSON", path=path)
    return 1


def _check_key(key: Any, limits: Limits, path: str) -> int:
    if type(key) is not str:
        raise DecodeError("has a key that is not a string", path=path)
    return _check_text(key, limits.key, path)


def _check_text(text: str, longest: int, path: str) -> int:
    if len(text) > longest:
        raise DecodeError(f"has a string or key longer than {longest} characters", path=path)
    if not _is_clean(text):
        raise DecodeError("has a string with a NUL character or a lone surrogate", path=path)
    return len(text)


def _check_arguments(args: Any, kwargs: Any, limits: Limits) -> None:
    _expect(type(args) is list, "args", "a list")
    _expect(type(kwargs) is dict, "kwargs", "an object")
    _check_tree([(args, _FIELD_LEVEL), (kwargs, _FIELD_LEVEL)], limits, "args and kwargs")
    _check_keywords(args, kwargs, limits, "kwargs")


def _check_keywords(args: list[Any], kwargs: dict[str, Any], limits: Limits, path: str) -> None:
    _expect(all(name.isidentifier() for name in kwargs), path, "an object whose keys are identifiers")
    _expect(len(args) + len(kwargs) <= limits.arguments, path, f"at most {limits.arguments} arguments in all")


def _expect(holds: bool, path: str, what: str) -> None:
    if not holds:
        raise DecodeError(f"must be {what}", path=path)


def _read_envelope(tree: dict[Any, Any], limits: Limits) -> Envelope:
    rest = {key: item for key, item in tree.items() if key not in ("args", "kwargs")}
    _check_tree([(rest, _ENVELOPE_LEVEL)], limits, "wire")
    _check_version(tree.get("v"))
    args, kwargs = tree.get("args", []), tree.get("kwargs", {})
    _check_arguments(args, kwargs, limits)
    known: dict[str, Any] = {"headers": {}, "options": {}}
    for name, (check, what) in _FIELDS.items():
        known[name] = tree.get(name, known.get(name))
        _expect(check(known[name]), name, what)
    known["options"] = _read_options(known["options"])
    created = known.pop("at")
    return Envelope(v=tree["v"], args=args, kwargs=kwargs, created=None if created is None else float(created), **known)


def _check_version(version: Any) -> None:
    _expect(type(version) is int and version >= 1, "v", "a whole number, 1 or more")
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
        _expect(check(value), f"options.{name}", what)
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


# -- the way home: values


class _Decoder:
    """Decodes trees that `_check_tree` has passed: their types are JSON's, their depth and sizes bounded."""

    def __init__(self, codec: Codec, method: str | None = None) -> None:
        self.codec = codec
        self.names = codec.names
        self.method = method

    def arguments(
        self, args: list[Any], kwargs: dict[str, Any], args_path: _Path, kwargs_path: _Path
    ) -> tuple[list[Any], dict[str, Any]]:
        return self._items(args, args_path), self.members(kwargs, kwargs_path)

    def decode(self, tree: Any, path: _Path) -> Any:
        kind = type(tree)
        if kind is list:
            return self._items(tree, path)
        if kind is not dict:
            return tree
        return self._tagged(tree, path) if _looks_tagged(tree) else self.members(tree, path)

    def target(self, tree: Any) -> Any:
        if type(tree) is not dict or len(tree) != 1:
            self._fail("target", "must be an object with exactly one key")
        ((kind, payload),) = tree.items()
        find = _TARGETS.get(kind)
        if find is None:
            self._fail("target", "is of no kind that this release knows")
        return find(self, payload, "target")

    def _items(self, items: list[Any], path: _Path) -> list[Any]:
        return [self.decode(item, (path, "[{}]", index)) for index, item in enumerate(items)]

    def members(self, items: dict[str, Any], path: _Path) -> dict[str, Any]:
        return {key: self.decode(item, (path, "[key {}]", index)) for index, (key, item) in enumerate(items.items())}

    def _tagged(self, tree: dict[str, Any], path: _Path) -> Any:
        ((tag, payload),) = tree.items()
        read = _READERS.get(tag)
        if read is None:
            self._fail(path, "has a tag that this release does not know")
        return read(self, tag, payload, path)

    # -- readers, one per tag

    def _leaf(self, tag: str, payload: Any, path: _Path) -> Any:
        leaf = _LEAVES[tag]
        try:
            value = leaf.read(payload)
            if repr(leaf.write(value)) == repr(payload):
                return value
        except Exception as error:  # whatever a parser raises on hostile text; its message would quote the text
            self._fail(path, f"is not the text of a {tag[1:]} ({type(error).__name__})")
        self._fail(path, f"is not the text of a {tag[1:]}")

    def _tuple(self, tag: str, payload: Any, path: _Path) -> tuple[Any, ...]:
        return tuple(self._items(self._list(payload, path), path))

    def _set(self, tag: str, payload: Any, path: _Path) -> Any:
        items = self._items(self._list(payload, path), path)
        value = self._make(path, "a set of its elements", lambda: set(items) if tag == "$set" else frozenset(items))
        if len(value) != len(items):
            self._fail(path, "has an element twice")
        return value

    def _dict(self, tag: str, payload: Any, path: _Path) -> dict[Any, Any]:
        pairs = [self._list(pair, path, 2) for pair in self._list(payload, path)]
        places: list[_Path] = [(path, "[key {}]", index) for index in range(len(pairs))]
        items = [(self.decode(pair[0], at), self.decode(pair[1], at)) for pair, at in zip(pairs, places, strict=True)]
        value: dict[Any, Any] = self._make(path, "a dict of its keys", lambda: dict(items))
        if len(value) != len(items):
            self._fail(path, "has a key twice")
        return value

    def _range(self, tag: str, payload: Any, path: _Path) -> range:
        parts = self._items(self._list(payload, path, 3), path)
        if any(type(part) is not int for part in parts) or parts[2] == 0:
            self._fail(path, "is not a range")
        return range(*parts)

    def _slice(self, tag: str, payload: Any, path: _Path) -> slice:
        return slice(*self._items(self._list(payload, path, 3), path))

    def _complex(self, tag: str, payload: Any, path: _Path) -> complex:
        parts = self._items(self._list(payload, path, 2), path)
        if any(type(part) is not float for part in parts):
            self._fail(path, "is not a complex number")
        return complex(*parts)

    def _custom(self, tag: str, payload: Any, path: _Path) -> Any:
        name, tree = self._list(payload, path, 2)
        converter = self.codec._by_tag.get(name) if type(name) is str else None
        if converter is None:
            self._fail(path, "needs a converter that is not registered in this worker")
        value = self.decode(tree, path)
        return self._make(path, f"the converter {converter.tag!r}", lambda: converter.decode(value))

    def _enum(self, tag: str, payload: Any, path: _Path) -> Any:
        name, tree = self._list(payload, path, 2)
        cls = self._shaped_class(tag, name, path)[0]
        member = self.decode(tree, path)
        if type(member) is str and member in cls.__members__:
            return cls.__members__[member]
        if type(member) is int and issubclass(cls, Flag):
            return self._make(path, "its enum", lambda: cls(member))
        self._fail(path, "names a member that its enum does not have")

    def _shape(self, tag: str, payload: Any, path: _Path) -> Any:
        name, trees, unset = self._shape_parts(tag, payload, path)
        cls, shape = self._shaped_class(tag, name, path)
        if shape.problem or not shape.accepts(cls, trees) or not set(unset) <= trees.keys():
            self._fail(path, "does not have the fields of its class in this worker")
        taken = {key: self.decode(tree, (path, " (field {})", n)) for n, (key, tree) in enumerate(trees.items())}
        value = self._make(path, "the constructor of its class", lambda: shape.build(cls, taken, unset))
        if type(value) is not cls:
            self._fail(path, "was built as something else")
        return value

    def _shape_parts(self, tag: str, payload: Any, path: _Path) -> tuple[Any, dict[str, Any], list[str]]:
        parts = self._list(payload, path)
        name, trees, unset = parts if tag == "$pydantic" and len(parts) == 3 else (*self._list(parts, path, 2), [])
        if type(trees) is not dict or any(type(item) is not str for item in self._list(unset, path)):
            self._fail(path, "is not a class and its fields")
        return name, trees, unset

    def _shaped_class(self, tag: str, name: Any, path: _Path) -> tuple[Any, _Shape]:
        cls = self.names.find_class(self._string(name, path))
        plan = self._make(path, "looking at its class", lambda: _plan(cls))
        if not isinstance(plan, _Shape) or plan.tag != tag:
            self._fail(path, f"names a class that is not of the kind {tag[1:]}")
        return cls, plan

    def _class(self, tag: str, payload: Any, path: _Path) -> type:
        return self.names.find_admitted_class(self._string(payload, path))

    def _function(self, tag: str, payload: Any, path: _Path) -> Any:
        return self.names.find_function(self._string(payload, path))

    def _admitted_built(self, tag: str, payload: Any, path: _Path) -> Any:
        cls = self.names.find_admitted_class(self._string(self._list(payload, path, 3)[0], path))
        if not _has(cls, ARGS_METHOD):
            self._fail(path, f"names a class without {ARGS_METHOD}")
        return self._build(cls, payload, path)

    def _build(self, cls: Any, payload: list[Any], path: _Path) -> Any:
        _, args, kwargs = payload
        if type(args) is not list or type(kwargs) is not dict:
            self._fail(path, "is not a class and its arguments")
        _check_keywords(args, kwargs, self.codec.limits, _render(path))
        args, kwargs = self.arguments(args, kwargs, (path, ".args{}", ""), (path, ".kwargs{}", ""))
        return self._make(path, "the constructor of its class", lambda: cls(*args, **kwargs))

    def _reference(self, tag: str, payload: Any, path: _Path) -> Any:
        name, tree = self._list(payload, path, 2)
        locator = self.names.locators.get(name) if type(name) is str else None
        if locator is None:
            raise TargetNotFound("The wire needs a locator that is not registered in this worker: add_locator() first.")
        return _find(locator, self.decode(tree, path))

    def _service(self, tag: str, payload: Any, path: _Path) -> Any:
        name = self._string(payload, path)
        if name not in self.names.services:
            raise TargetNotFound(
                "The wire needs a service that is not registered in this worker: register_service() first."
            )
        return self.names.services[name]

    # -- targets, one per kind

    def _target_class(self, payload: Any, path: _Path) -> type:
        return self.names.find_class(self._string(payload, path))

    def _target_module(self, payload: Any, path: _Path) -> ModuleType:
        return self.names.find_module(self._string(payload, path))

    def _target_service(self, payload: Any, path: _Path) -> Any:
        return self._service("$service", payload, path)

    def _target_reference(self, payload: Any, path: _Path) -> Any:
        return self._reference("$ref", payload, path)

    def _target_built(self, payload: Any, path: _Path) -> Any:
        cls = self._buildable_class(self._string(self._list(payload, path, 3)[0], path))
        if not (_has(cls, ARGS_METHOD) or _loses_nothing(cls)):
            self._fail(path, f"names a class without {ARGS_METHOD}")
        return self._build(cls, payload, path)

    def _buildable_class(self, name: str) -> Any:
        if self.method is None:
            return self.names.find_admitted_class(name)
        cls = self.names.find_class(name)
        self.names.admitted(cls, self.method)
        return cls

    def _target_value(self, payload: Any, path: _Path) -> Any:
        if type(payload) is dict and not _VALUE_IS_REFERENCE.isdisjoint(payload):
            self._fail(path, "is a reference where a value belongs")
        return self.decode(payload, path)

    # -- what goes wrong

    def _fail(self, path: _Path, message: str) -> NoReturn:
        raise DecodeError(message, path=_render(path)) from None

    def _string(self, payload: Any, path: _Path) -> str:
        if type(payload) is not str:
            self._fail(path, "must be a string")
        return payload

    def _list(self, payload: Any, path: _Path, length: int | None = None) -> list[Any]:
        if type(payload) is not list or length not in (None, len(payload)):
            self._fail(path, "must be a list" + ("" if length is None else f" of {length}"))
        return payload

    def _make(self, path: _Path, what: str, make: Callable[[], Any]) -> Any:
        """Call code that is not ours. The message of what it raises may quote values, and stays in the cause."""
        try:
            return make()
        except PerformError:
            raise
        except Exception as error:
            raise DecodeError(f"{what} raised {type(error).__name__}", path=_render(path)) from error


def _find(locator: Any, key: Any) -> Any:
    try:
        found = locator.find(key)
    except PerformError:
        raise
    except Exception as error:
        raise TargetUnavailable(f"The locator {locator.name!r} raised {type(error).__name__}.") from error
    if found is None:
        raise TargetGone(f"The locator {locator.name!r} found nothing under the key in the wire.")
    return found


_READERS: Final[dict[str, Callable[[_Decoder, str, Any, _Path], Any]]] = {
    **dict.fromkeys(_LEAVES, _Decoder._leaf),
    "$tuple": _Decoder._tuple,
    "$set": _Decoder._set,
    "$frozenset": _Decoder._set,
    "$dict": _Decoder._dict,
    "$range": _Decoder._range,
    "$slice": _Decoder._slice,
    "$complex": _Decoder._complex,
    **dict.fromkeys(_KINDS, _Decoder._shape),
    "$enum": _Decoder._enum,
    "$type": _Decoder._class,
    "$function": _Decoder._function,
    "$built": _Decoder._admitted_built,
    "$ref": _Decoder._reference,
    "$service": _Decoder._service,
    "$x": _Decoder._custom,
}

_TARGETS: Final[dict[str, Callable[[_Decoder, Any, _Path], Any]]] = {
    "class": _Decoder._target_class,
    "module": _Decoder._target_module,
    "service": _Decoder._target_service,
    "ref": _Decoder._target_reference,
    "built": _Decoder._target_built,
    "value": _Decoder._target_value,
}

_VALUE_IS_REFERENCE: Final = frozenset({"$type", "$function", "$built", "$ref", "$service"})

__all__ = ["ARGS_METHOD", "VERSION", "Codec", "Converter", "Envelope", "Limits"]
