"""How is a value taken apart, and how is it built again?

A `Leaf` is a value that is one text or a flat list of scalars. A `Shape` is a class whose instances are their fields:
enums, NamedTuples, dataclasses, and the classes of attrs, pydantic and msgspec, none of which is imported here.
"""

from __future__ import annotations

import binascii
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum
from functools import cached_property, lru_cache
from types import MemberDescriptorType
from typing import Any, Final

from ._wire import INT_BOUND, INT_DIGITS

ARGS_METHOD: Final = "__backgrounded_args__"
"""The method that tells from which arguments an object is built again: it returns `(args, kwargs)`."""


def type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def holds(cls: type, name: str) -> bool:
    """Whether a class or a base of it holds a name, without evaluating anything."""
    return any(name in vars(base) for base in cls.__mro__)


# -- values that are one text or a flat list of scalars


class CannotTravel(Exception):
    """A value's own reason, which the encoder gives a path."""


@dataclass(frozen=True)
class Leaf:
    """How values of one type are written as a text or a flat list of scalars.

    `write` raises CannotTravel. `read` may raise anything; what it accepts must be what `write` gives, to the letter.
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
    raise CannotTravel(
        f"its tzinfo is a {type_name(type(zone))}, which cannot be named in a worker. Use zoneinfo.ZoneInfo(name) or "
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
    if value.bit_length() > 4 * INT_DIGITS:
        raise CannotTravel(f"the number has more than {INT_DIGITS} hexadecimal digits")
    return hex(value)


def _read_int(payload: Any) -> int:
    value = int(payload, 16)
    if -INT_BOUND <= value < INT_BOUND:
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
        raise CannotTravel("its text names another path")
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
INT: Final = Leaf("$int", _write_int, _read_int)
FLOAT: Final = Leaf("$float", _write_float, float)
_PATH: Final = Leaf("$path", _write_path, _read_path)
_LEAF_TYPES: Final[dict[type, Leaf]] = {
    bytes: Leaf("$bytes", _write_bytes, binascii.a2b_base64),
    bytearray: Leaf("$bytearray", _write_bytes, lambda payload: bytearray(binascii.a2b_base64(payload))),
    datetime: Leaf("$datetime", _write_moment, lambda payload: _read_moment(datetime, payload)),
    date: Leaf("$date", date.isoformat, date.fromisoformat),
    time: Leaf("$time", _write_moment, lambda payload: _read_moment(time, payload)),
    timedelta: Leaf("$timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda payload: timedelta(*payload)),
}
_LAZY_TYPES: Final[dict[tuple[str, str], Leaf]] = {
    ("decimal", "Decimal"): Leaf("$decimal", str, _read_decimal),
    ("uuid", "UUID"): Leaf("$uuid", str, _read_uuid),
    **{("pathlib", name): _PATH for name in _PATHS},
}
"""Types whose modules are imported only when a value of theirs is there: whoever sends a Decimal has imported it."""
LEAVES: Final = {leaf.tag: leaf for leaf in (INT, FLOAT, *_LEAF_TYPES.values(), *_LAZY_TYPES.values())}
STANDARD: Final = (str, bool, int, float, complex, list, dict, tuple, set, frozenset, range, slice, *_LEAF_TYPES)
"""Types whose subclasses would come home as something less, and are refused."""

# -- values that are a class and its fields


@dataclass(frozen=True)
class Shape:
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
        """The fields of an instance, and the names of those that nobody set. Raises CannotTravel."""
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
            raise CannotTravel(f"it holds more than its fields: {', '.join(map(str, extra))}")

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


class _ModelShape(Shape):
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
                raise CannotTravel(f"its private attribute {name} is set, and private attributes do not travel")


def _is_default(value: Any, name: str) -> bool:
    """Whether an unset field of a model would be the same in the worker if it stays out of the wire."""
    declared = _model_fields(type(value))[name]
    return declared.default_factory is None and _is_same(vars(value)[name], declared.default)


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


@lru_cache(maxsize=1024)
def plan_of(cls: Any) -> Leaf | Shape | None:
    """How instances of exactly this class travel, as far as the class alone decides; None: not by value."""
    leaf = _LEAF_TYPES.get(cls) or _lazy_leaf(cls)
    if leaf is not None:
        return leaf
    for tag, (is_of_kind, shape_of) in KINDS.items():
        if is_of_kind(cls):
            return _checked(cls, shape_of(tag, cls))
    return None


def _lazy_leaf(cls: type) -> Leaf | None:
    for (module, name), leaf in _LAZY_TYPES.items():
        if getattr(sys.modules.get(module), name, None) is cls:
            return leaf
    return None


def _checked(cls: type, shape: Shape) -> Shape:
    """The shape with its `problem`, if instances of the class are more than their fields."""
    others = tuple(slot for slot in _slots(cls) if slot.__name__ not in shape.parameters)
    if shape.problem or shape.tag == "$enum":
        return shape
    if shape.tag == "$pydantic":
        return replace(shape, others=tuple(slot for slot in others if not slot.__name__.startswith("__pydantic_")))
    standard = next((base for base in cls.__mro__[1:] if base in STANDARD), None)
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


def _enum_shape(tag: str, cls: Any) -> Shape:
    return Shape(tag)


def _namedtuple_shape(tag: str, cls: Any) -> Shape:
    maker = next(base for base in cls.__mro__ if "__new__" in vars(base))
    return Shape(tag, {name: name for name in cls._fields}, verify="_fields" not in vars(maker))


def _dataclass_shape(tag: str, cls: Any) -> Shape:
    names = {item.name: item.name for item in fields(cls)}
    closed = [item.name for item in fields(cls) if not item.init]
    problem = f"its field {closed[0]} is not taken by its constructor (init=False)" if closed else ""
    changes = holds(cls, "__post_init__") or holds(cls, "__pydantic_validator__")
    return Shape(tag, names, problem=problem, verify=changes)


def _attrs_shape(tag: str, cls: Any) -> Shape:
    attributes = cls.__attrs_attrs__
    names = {item.name: getattr(item, "alias", None) or item.name.lstrip("_") for item in attributes}
    closed = [item.name for item in attributes if not item.init]
    problem = f"its field {closed[0]} is not taken by its constructor (init=False)" if closed else ""
    changes = holds(cls, "__attrs_post_init__") or any(item.converter or item.validator for item in attributes)
    return Shape(tag, names, problem=problem, verify=changes)


def _struct_shape(tag: str, cls: Any) -> Shape:
    return Shape(tag, {name: name for name in cls.__struct_fields__}, verify=holds(cls, "__post_init__"))


def _model_shape(tag: str, cls: Any) -> Shape:
    if not cls.__pydantic_complete__:
        cls.model_rebuild(raise_errors=False)
    words = {name: _validation_word(cls, name, declared) for name, declared in _model_fields(cls).items()}
    bad = [name for name, word in words.items() if word is None]
    problem = f"its field {bad[0]} has no plain alias for validation (AliasPath)" if bad else ""
    return _ModelShape(tag, {name: word or name for name, word in words.items()}, problem=problem, verify=True)


def _model_fields(cls: Any) -> Any:
    return cls.__pydantic_fields__ if holds(cls, "__pydantic_fields__") else cls.model_fields


def _validation_word(cls: Any, name: str, declared: Any) -> str | None:
    alias = declared.validation_alias
    if alias is None or cls.model_config.get("validate_by_alias") is False:
        return name
    candidates = [alias, *getattr(alias, "choices", ())]
    return next((item for item in candidates if isinstance(item, str)), None)


def _is_namedtuple(cls: type) -> bool:
    return issubclass(cls, tuple) and holds(cls, "_fields") and holds(cls, "_make")


def _is_model(cls: type) -> bool:
    return holds(cls, "__pydantic_validator__") and holds(cls, "model_validate")


KINDS: Final[dict[str, tuple[Callable[[type], bool], Callable[[str, Any], Shape]]]] = {
    "$enum": (lambda cls: issubclass(cls, Enum), _enum_shape),
    "$namedtuple": (_is_namedtuple, _namedtuple_shape),
    "$dataclass": (lambda cls: holds(cls, "__dataclass_fields__"), _dataclass_shape),
    "$attrs": (lambda cls: holds(cls, "__attrs_attrs__"), _attrs_shape),
    "$pydantic": (_is_model, _model_shape),
    "$msgspec": (lambda cls: holds(type(cls), "__struct_fields__"), _struct_shape),
}
"""Kinds of classes whose instances are their fields, told by what their libraries, not imported here, leave on them."""


def is_blank(obj: Any) -> bool:
    """Whether nothing is lost of an object when its class is built again without arguments."""
    kind: Any = type(obj)
    return loses_nothing(kind) and not vars(obj)


@lru_cache(maxsize=1024)
def loses_nothing(cls: Any) -> bool:
    """Whether an instance with an empty `__dict__` is the same as a new one: it has no constructor and no slots."""
    plain = cls.__init__ is object.__init__ and cls.__new__ is object.__new__
    return bool(plain and holds(cls, "__dict__") and not _slots(cls))
