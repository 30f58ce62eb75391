"""What travels comes home equal in value and in type; what could not is refused at the call."""

import collections
import dataclasses
import enum
import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
import types
import uuid
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from backgrounded._decoder import READERS, TARGETS
from backgrounded.calls import Retry, encode_json
from backgrounded.codec import ARGS_METHOD, Codec, Converter, Envelope, Limits
from backgrounded.errors import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    NotAllowed,
    Refused,
    TargetGone,
    TargetNotFound,
    TargetUnavailable,
)
from backgrounded.references import Names
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import values as v

EXAMPLES = int(os.environ.get("BACKGROUNDED_TREES", "1000"))
"""How many random values the property tests send: BACKGROUNDED_TREES=10000 for the long form."""

WIRES = Path(__file__).parents[1] / "wire" / "v1"
BERLIN = ZoneInfo("Europe/Berlin")


def make_codec(**limits: int) -> Codec:
    return Codec(Names(), limits=Limits(**limits))


CODEC = make_codec()
DEEP = make_codec(depth=128)


def through_json(tree: Any) -> Any:
    """What an engine does to a tree."""
    return json.loads(json.dumps(tree, allow_nan=False))


def sent(value: Any, codec: Codec = CODEC) -> Any:
    return codec.decode(through_json(codec.encode(value, "value")), "value")


# -- equality that is as strict as the promise


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in value and type, at any depth; NaN is the same as NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (enum.Enum, type, types.FunctionType)):
        return one is other
    parts = _parts(one)
    if parts is None:
        return bool(one == other)
    others = _parts(other)
    return len(parts) == len(others) and all(map(same, parts, others))


def _parts(value: Any) -> Any:
    """What a value consists of, as a list that `same` compares; None for what has no parts."""
    kind = type(value)
    for kinds, parts in _PARTS.items():
        if kind in kinds:
            return parts(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, item.name) for item in dataclasses.fields(value)]
    if attrs.has(kind):
        return [getattr(value, item.name) for item in attrs.fields(kind)]
    if isinstance(value, pydantic.BaseModel):
        return [vars(value), value.model_fields_set, value.__pydantic_extra__]
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    return list(value) if isinstance(value, tuple) else None


def _moment_parts(value: Any) -> Any:
    zone = value.tzinfo
    offset = zone.utcoffset(None) if isinstance(zone, timezone) else None
    named = zone.tzname(None) if isinstance(zone, timezone) else getattr(zone, "key", None)
    return [value.replace(tzinfo=None).isoformat(), value.fold, type(zone), offset, named]


_PARTS: dict[tuple[type, ...], Any] = {
    (list,): list,
    (dict,): lambda value: [item for pair in value.items() for item in pair],
    (set, frozenset): lambda value: sorted(value, key=lambda item: encode_json(DEEP.encode(item, "value"))),
    (float,): lambda value: [repr(value)],
    (complex,): lambda value: [value.real, value.imag],
    (Decimal,): lambda value: [str(value)],
    (range, slice): lambda value: [(value.start, value.stop, value.step)],
    (datetime, time): _moment_parts,
}


def test_the_strict_comparison_of_these_tests_tells_look_alikes_apart() -> None:
    pairs: list[tuple[Any, Any]] = [
        (1, True),
        (1, 1.0),
        ([1], (1,)),
        ([(1,)], [[1]]),
        ({1}, frozenset({1})),
        ({"a": 1}, {"a": True}),
        (0.0, -0.0),
        (range(0), range(5, 5)),
        (v.Point(1, 2), (1, 2)),
        (v.Point(1), v.Point(True)),
        (v.Level.LOW, 1),
        (Decimal("1.0"), Decimal("1.00")),
        (datetime(2001, 1, 1, tzinfo=ZoneInfo("UTC")), datetime(2001, 1, 1, tzinfo=timezone.utc)),
        (datetime(2001, 1, 1), datetime(2001, 1, 1, fold=1)),
        (v.Item(name=1), v.Item(name=1, howMany=1)),
        (v.Unequal(1), v.Unequal(2)),
        (bytearray(b"a"), b"a"),
    ]
    assert [pair for pair in pairs if same(*pair)] == []
    assert same(math.nan, float("nan"))
    assert same(v.Unequal([1]), v.Unequal([1]))


# -- every value type, alone and nested

VALUES: dict[str, Any] = {
    "None": None,  # K43
    "True": True,
    "False": False,
    "int": 42,
    "the greatest 64-bit int": 2**63 - 1,
    "the least 64-bit int": -(2**63),
    "an int beyond 64 bits": 2**63,
    "a negative int beyond 64 bits": -(2**63) - 1,
    "a huge int": 10**21,
    "float": 1.5,
    "an integral float": 1.0,
    "negative zero": -0.0,
    "the greatest float": sys.float_info.max,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "str": "text",
    "empty str": "",  # K69
    "unicode": 'żółć 漢字 🎉 \u2028 \x01 "quoted" \\',
    "list": [1, [2, []]],  # K44
    "one-element list": ["x"],  # K67
    "multi-dimensional list": [[[1, 2], [3]], [[]]],  # K68
    "dict": {"a": {"b": [1]}},
    "empty dict": {},
    "dict of int keys": {1: 2, 3: {4: 5}},  # K54
    "dict of tuple keys": {(1, "a"): [1], None: 2, v.Color.RED: 3, 1.5: 4, b"x": 5, "plain": 6},
    "dict with a look-alike key": {"$tuple": [1, 2]},  # K55
    "dict with the escape's own key": {"$dict": [["a", 1]]},
    "dict whose only key is a dollar": {"$": 1},
    "nested look-alikes": {"$dict": {"$dict": {"$x": ["money", 1]}}},
    "dict with two dollar keys": {"$a": 1, "$b": 2},
    "str like a reference": "shop.models:User",  # K56
    "str like a tag": '{"$type": "os:system"}',
    "tuple": (1, "a", (2,)),
    "empty tuple": (),
    "set": {1, "a", (2, 3)},
    "empty set": set(),
    "frozenset": frozenset({1, frozenset({2})}),
    "bytes": b"\x00\xff binary",
    "empty bytes": b"",
    "bytearray": bytearray(b"\x00\xff"),
    "date": date(2001, 2, 3),  # K45
    "datetime": datetime(2001, 2, 3, 4, 5, 6),  # K47
    "datetime with microseconds": datetime(2001, 2, 3, 4, 5, 6, 7),
    "datetime in UTC": datetime(2001, 2, 3, tzinfo=timezone.utc),  # K46
    "datetime with offset": datetime(2001, 2, 3, 4, 5, 6, 7, timezone(timedelta(hours=5, minutes=45))),
    "datetime with a strange offset": datetime(2001, 2, 3, tzinfo=timezone(-timedelta(seconds=3601, microseconds=5))),
    "datetime with a named offset": datetime(2001, 2, 3, tzinfo=timezone(timedelta(hours=2), "CEST")),
    "datetime with zone": datetime(2001, 7, 3, 4, 5, 6, 7, BERLIN),
    "datetime in the zone UTC": datetime(2001, 7, 3, tzinfo=ZoneInfo("UTC")),
    "datetime, the second of two": datetime(2001, 10, 28, 2, 30, tzinfo=BERLIN, fold=1),
    "naive datetime, the second of two": datetime(2001, 10, 28, 2, 30, fold=1),
    "the first datetime": datetime.min,
    "the last datetime": datetime.max,
    "time": time(1, 2, 3),
    "time with all": time(1, 2, 3, 4, timezone(timedelta(hours=-3)), fold=1),
    "time with zone": time(1, 2, tzinfo=BERLIN),
    "timedelta": timedelta(days=-1, seconds=5, microseconds=7),  # K48
    "the longest timedelta": timedelta.max,
    "decimal": Decimal("1.10"),  # K49
    "decimal exponents": [Decimal("1E+3"), Decimal("-0"), Decimal("0E-7")],
    "decimal specials": [Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity")],
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "posix path": PurePosixPath("/a/../b c"),
    "path": Path("relative/file.txt"),
    "windows path": PureWindowsPath(r"C:\a\b.txt"),
    "range": range(1, 10, 2),  # K51
    "empty range": range(5, 5),
    "wide range": range(-(2**70), 2**70, 2**65),
    "slice": slice(1, None, (2,)),
    "complex": complex(-0.0, math.inf),
    "enum": v.Color.GREEN,  # K52
    "enum alias": v.Color.ROUGE,
    "int enum": v.Level.HIGH,
    "str enum": v.Currency.EUR,
    "enum with constructor": v.Planet.MARS,
    "flag": v.Permission.READ,
    "flags": v.Permission.READ | v.Permission.RUN,
    "no flags": v.Permission(0),
    "int flags": v.Mode.A | v.Mode.B,
    "int flags beyond": v.Mode(8),
    "named tuple": v.Point(1, [2]),
    "collections.namedtuple": v.Pair((1,), None),
    "subclass of a named tuple": v.NamedPair(1, 2),
    "dataclass": v.Money(Decimal("1.1"), v.Currency.USD),
    "dataclass with a list": v.Cart([v.Money(1)], {"$a": 1}),
    "dataclass with slots": v.Line(item=v.Line(item=1), amount=2),
    "dataclass without eq": v.Unequal((1,)),
    "generic dataclass": v.Holder[int](1),
    "nested class": v.Outer(v.Outer.Inner(1)),
    "pydantic dataclass": v.Checked(number=1, tags=["a"]),
    "attrs": v.Box(1, secret=(2,), another=3),
    "attrs with converter": v.Size("xl"),
    "pydantic": v.Item(name=(1, 2), howMany=3, tags=[b"x"], spot=v.Point(1)),
    "pydantic, set and unset": v.Item(name="a", howMany=1),
    "pydantic nested": v.Basket(items=[v.Item(name=1)], payload={1: 2}),
    "pydantic extra": v.Open(known=2, other=(1,), **{"$tuple": 1}),
    "pydantic root": v.Labels(["a", "b"]),
    "pydantic with untouched private": v.Counted(number=1),
    "pydantic by name only": v.ByNameOnly(value=1),
    "pydantic made without validation": v.Counted.model_construct(number=2),
    "msgspec": v.Span(date(2001, 1, 1), ends_at=(1,)),
    "msgspec frozen": v.Frozen(value=v.Frozen(value=None)),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_comes_home_equal_in_value_and_type(value: Any) -> None:  # K43-K56, K62, K67-K69
    assert same(sent(value), value)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_comes_home_equal_from_any_depth(value: Any) -> None:  # K44, K53
    nested = {"list": [value, (value,)], "more": {1: v.Money(v.Box(v.Span(v.Item(name=value))))}}
    args, kwargs = DEEP.encode_arguments((nested, value), {"items": nested})
    home, named = DEEP.decode_arguments(through_json(args), through_json(kwargs))
    assert same(home, [nested, value])
    assert same(named, {"items": nested})


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_encoding_again_gives_the_same_bytes(value: Any) -> None:  # K63
    tree = CODEC.encode(value, "value")
    assert encode_json(CODEC.encode(CODEC.decode(tree, "value"), "value")) == encode_json(tree)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", [1, [None]], {"a": {"b": 1}}, {"$a": 1, "$b": 2}])
def test_plain_json_stays_plain(value: Any) -> None:  # K62
    assert CODEC.encode(value, "value") == value


def test_every_tag_is_an_object_with_one_key_that_begins_with_a_dollar() -> None:
    for name, value in VALUES.items():
        tree = CODEC.encode(value, "value")
        if type(value) not in (type(None), bool, int, float, str, list, dict):
            assert type(tree) is dict, name
            assert len(tree) == 1, name
            assert next(iter(tree)).startswith("$"), name


def test_the_bytes_of_a_set_do_not_depend_on_the_order_of_its_elements() -> None:  # K63
    words = [f"word {number}" for number in range(50)]
    backwards = set(words[25:])
    backwards.update(words)
    assert CODEC.encode(set(words), "value") == CODEC.encode(backwards, "value") == {"$set": sorted(words)}
    assert CODEC.encode({"b", 1, (2,)}, "value") == {"$set": ["b", 1, {"$tuple": [2]}]}


def test_the_arguments_are_copied_at_the_call() -> None:  # K61
    items, named = [1], {"a": [1]}
    args, kwargs = CODEC.encode_arguments((items,), {"named": named})
    items.append(2)
    named["a"].append(2)
    assert (args, kwargs) == ([[1]], {"named": {"a": [1]}})


def test_decoding_gives_containers_of_its_own() -> None:
    args: list[Any] = [[1]]
    home, _ = CODEC.decode_arguments(args, {})
    home[0].append(2)
    assert args == [[1]]


def test_a_naive_datetime_stays_naive() -> None:  # K47
    assert sent(datetime(2001, 2, 3)).tzinfo is None


def test_a_zone_keeps_its_name_and_its_rules() -> None:  # K46
    home = sent(datetime(2001, 3, 24, 12, tzinfo=BERLIN))
    assert home.tzinfo.key == "Europe/Berlin"
    assert (home + timedelta(days=1)).utcoffset() == timedelta(hours=2)


def test_enums_travel_by_the_name_of_the_member() -> None:
    assert CODEC.encode(v.Color.ROUGE, "value") == {"$enum": ["values:Color", "RED"]}
    assert CODEC.encode(v.Permission.READ | v.Permission.RUN, "value") == {"$enum": ["values:Permission", 5]}


def test_pydantic_remembers_what_was_set() -> None:
    home = sent(v.Item(name="a", howMany=1))
    assert home.model_fields_set == {"name", "amount"}
    assert sent(v.Item(name="a")).model_fields_set == {"name"}


def test_a_changed_default_of_a_model_travels_though_it_was_never_set() -> None:
    item = v.Item(name="a")
    item.tags.append("x")
    item.__dict__["amount"] = 7
    home = sent(item)
    assert (home.tags, home.amount, home.model_fields_set) == (["x"], 7, {"name"})


def test_a_model_that_pydantic_has_not_finished_yet_is_read_by_its_aliases() -> None:
    home = CODEC.decode({"$pydantic": ["values:Early", {"some_value": 5}]}, "value")
    assert same(home, v.Early(someValue=5))
    assert same(
        sent(v.Early(someValue=5, laterValue=v.Later(value=1))), v.Early(someValue=5, laterValue=v.Later(value=1))
    )


def test_a_cached_property_is_not_part_of_a_value() -> None:
    cart = v.Cart([1, 2])
    assert cart.count == 2
    assert "count" not in vars(sent(cart))


# -- random values of every type


def _texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def _is_stable(path: PureWindowsPath) -> bool:
    again = PureWindowsPath(str(path))
    return again == path and str(again) == str(path)


def _zones() -> st.SearchStrategy[tzinfo | None]:
    offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))
    return st.none() | st.builds(timezone, offsets) | st.builds(timezone, offsets, _texts()) | st.timezones()


FIXED = st.sampled_from(
    [*v.Color, *v.Level, *v.Currency, *v.Planet, *v.Permission, v.Permission(0), v.Permission(5), v.Mode(3), v.Mode(8)]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    _texts(),
    st.binary(max_size=20),
    st.dates(),
    st.datetimes(timezones=_zones()),
    st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(), st.sampled_from([0, 1])),
    st.times(timezones=_zones()),
    st.timedeltas(),
    st.decimals(allow_nan=True, allow_infinity=True).filter(lambda value: not value.is_snan()),
    st.uuids(),
    st.builds(PurePosixPath, _texts()),
    st.builds(Path, _texts()),
    st.builds(PureWindowsPath, st.text("aB:c\\/. ?*", max_size=8)).filter(_is_stable),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.complex_numbers(),
    FIXED,
)
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(v.Money, inner, inner),
        st.builds(v.Point, inner, inner),
    ),
    max_leaves=4,
)
KEYS = st.one_of(_texts(), st.sampled_from(["$", "$tuple", "$dict", "$x", "$type"]), HASHABLE)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=4)
    return st.one_of(
        few,
        few.map(tuple),
        st.dictionaries(_texts(), inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.binary(max_size=9).map(bytearray),
        st.builds(slice, inner, inner, inner),
        st.builds(v.Point, inner, inner),
        st.builds(v.Pair, inner, inner),
        st.builds(v.Money, inner, inner),
        st.builds(v.Cart, few, inner),
        st.builds(v.Line, item=inner, amount=inner),
        st.builds(v.Outer, st.builds(v.Outer.Inner, inner)),
        st.builds(v.Box, inner, inner, inner),
        st.builds(v.Size, st.just("XL"), inner),
        st.builds(v.Item, name=inner, howMany=st.integers(-99, 99), tags=few, spot=inner),
        st.builds(v.Item, name=inner),
        st.builds(v.Open, known=inner, more=inner),
        st.builds(v.Labels, st.lists(_texts(), max_size=3)),
        st.builds(v.Span, inner, inner),
        st.builds(v.Frozen, value=inner),
    )


ANYTHING = st.recursive(SCALARS, _grown, max_leaves=12)
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@MANY
@example({"$tuple": {"$tuple": ()}})
@given(ANYTHING)
def test_whatever_is_sent_comes_home_equal_and_encodes_to_the_same_bytes_again(value: Any) -> None:  # K43-K63
    tree = DEEP.encode(value, "value")
    home = DEEP.decode(through_json(tree), "value")
    assert same(home, value)
    assert encode_json(DEEP.encode(home, "value")) == encode_json(tree)


@MANY
@example(PureWindowsPath("//://"))
@given(st.builds(PureWindowsPath, st.text("a:\\/.", max_size=8)))
def test_a_path_whose_text_names_another_path_is_refused_and_others_come_home(path: PureWindowsPath) -> None:
    if _is_stable(path):
        assert same(sent(path), path)
    else:
        with pytest.raises(EncodeError, match="names another path"):
            CODEC.encode(path, "value")


@settings(max_examples=max(EXAMPLES // 10, 50), deadline=None, suppress_health_check=list(HealthCheck))
@example([{str(number): -sys.float_info.min for number in range(50)}, "\x01" * 50], {})
@given(st.lists(ANYTHING, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "größe"]), ANYTHING, max_size=2))
def test_the_bound_of_the_size_is_never_below_the_size(args: list[Any], kwargs: dict[str, Any]) -> None:  # K66
    args_tree, kwargs_tree, bound = DEEP.encode_call(tuple(args), kwargs)
    assert len(encode_json(args_tree)) + len(encode_json(kwargs_tree)) <= bound


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts() | st.just("$tuple"), inner, max_size=4),
    max_leaves=12,
)


@MANY
@given(JSON)
def test_json_comes_home_as_it_was_however_it_looks(value: Any) -> None:  # K43, K44, K55
    assert same(sent(value, DEEP), value)


# -- what is refused at the call, with the place


class Text(str):
    pass


class FakeZone(tzinfo):
    key = "UTC"

    def utcoffset(self, moment: Any) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: Any) -> str:
        return "secret-value"


UTC_FILE = b"TZif" + bytes(35) + b"\1" + bytes(3) + b"\4" + bytes(6) + b"UTC\0"
"""The smallest time zone file: one type of local time, four characters of abbreviations."""


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _with_attribute(value: Any, name: str = "extra") -> Any:
    vars(value)[name] = "secret-value"
    return value


def _with_slot() -> Any:
    value = v.SlottedData(1)
    value.cache = 2
    return value


def _with_private() -> Any:
    value = v.Counted(number=1)
    value._seen = 3
    return value


REFUSED: dict[str, tuple[Any, str]] = {
    "an object without a converter": (object(), "converter"),  # K57
    "an open file": (sys.stdout, "converter"),
    "a lock": (threading.Lock(), "converter"),
    "a generator": ((n for n in ()), "converter"),
    "a bound method": ([].append, "converter"),
    "a memoryview": (memoryview(b""), "converter"),
    "an exception": (ValueError("secret-value"), "converter"),
    "a str subclass": (Text("secret-value"), "plain str"),  # K52
    "an OrderedDict": (collections.OrderedDict(a=1), "plain dict"),
    "a defaultdict": (collections.defaultdict(int), "plain dict"),
    "a datetime subclass": (type("Stamp", (datetime,), {})(2001, 1, 1), "plain datetime"),
    "a structseq": (os.times(), "plain tuple"),
    "an unknown time zone": (datetime(2001, 1, 1, tzinfo=FakeZone()), "zoneinfo"),
    "a time in an unknown zone": (time(1, tzinfo=FakeZone()), "zoneinfo"),
    "a zone without a key": (datetime(2001, 1, 1, tzinfo=ZoneInfo.from_file(io.BytesIO(UTC_FILE))), "zoneinfo"),
    "NUL": ("a\0b", "NUL"),
    "a lone surrogate": ("a\ud800b", "surrogate"),
    "NUL in a key": ({"a\0": 1}, "NUL"),
    "a surrogate in a key": ({"\udfff": 1}, "surrogate"),
    "NUL in a key that is escaped": ({"$\0": 1}, "NUL"),
    "NUL in a path": (PurePosixPath("a\0"), "NUL"),
    "an undecodable path": (Path(os.fsdecode(b"\xff")), "surrogate"),
    "a zone name with NUL": (datetime(2001, 1, 1, tzinfo=timezone(timedelta(0), "a\0")), "NUL"),
    "a number without end": (16**4096, "4096"),
    "a cycle": (_cycle(), "contains itself"),
    "a local class": (type("Local", (), {})(), "converter"),
    "a local dataclass": (dataclasses.make_dataclass("Made", ["value"])(1), "names something else"),
    "a lambda": (lambda: None, "local or a lambda"),  # K38
    "a function that stands nowhere": (types.FunctionType(_cycle.__code__, {}, "other"), "names something else"),
    "a method of a class": (v.Counter.add, "not a function of a module"),
    "a dataclass with init=False": (v.WithInitFalse(1), "init=False"),
    "a dataclass with InitVar": (v.WithInitVar(1), "InitVar"),
    "a dataclass with its own __init__": (v.OwnInit(1), "constructor"),
    "a dataclass that changes its fields": (v.Doubling(1), "changes its fields"),
    "a dataclass that is a dict": (v.DictData(1), "dict too"),
    "a dataclass with more attributes": (_with_attribute(v.Cart()), "more than its fields: extra"),
    "a dataclass with a set slot": (_with_slot(), "more than its fields: cache"),
    "a named tuple with attributes": (_with_attribute(v.NamedPair(1, 2)), "more than its fields: extra"),
    "a named tuple that changes its fields": (v.DoublingPoint(1), "changes its fields"),
    "attrs with init=False": (v.AttrsInitFalse(1), "init=False"),
    "attrs that changes its fields": (v.Shouting("a"), "changes its fields"),
    "a model with more attributes": (_with_attribute(v.Counted(number=1)), "more than its fields: extra"),
    "a model with a set private attribute": (_with_private(), "_seen"),
    "a model that changes its fields": (v.Hashing(password="secret-value"), "changes its fields"),
    "a model with an AliasPath": (v.Deep(a={"b": 1}), "AliasPath"),
    "a model that is not valid": (v.Counted.model_construct(number="secret-value"), "ValidationError"),
    "__backgrounded_args__ without a pair": (v.NoReturn(), "must return (args, kwargs)"),
    "__backgrounded_args__ that raises": (v.Raising(), "raised RuntimeError"),
}


@pytest.mark.parametrize(("value", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_not_come_home_equal_is_refused_at_the_call(value: Any, hint: str) -> None:  # K38, K52, K57
    with pytest.raises(EncodeError) as caught:
        CODEC.encode_arguments(("fine", [1, value]), {})
    assert caught.value.path.startswith("args[1][1]")
    assert hint in str(caught.value)
    assert "secret-value" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((object(),), {}, "args[0]"),
        ((1, [object()]), {}, "args[1][0]"),
        ((), {"items": [1, 2, 3, object()]}, "kwargs['items'][3]"),
        ((), {"a": {"b": {"c d": object()}}}, "kwargs['a']['b']['c d']"),
        (((1, (object(),)),), {}, "args[0][1][0]"),
        (({1: object()},), {}, "args[0][<int>]"),
        (({object(): 1},), {}, "args[0] (a key, object)"),
        (({"$a": object()},), {}, "args[0]['$a']"),
        (({object()},), {}, "args[0] (an element, object)"),
        ((v.Money(object()),), {}, "args[0].amount"),
        (([v.Box(v.Span(object()))],), {}, "args[0][0].width.starts_at"),
        ((v.Basket(items=[], payload=[object()]),), {}, "args[0].payload[0]"),
        ((v.Counter(object()),), {}, "args[0].args[0]"),  # type: ignore[arg-type]
        ((v.Counter(step=object()),), {}, "args[0].kwargs['step']"),  # type: ignore[arg-type]
        (({"k" * 200: object()},), {}, "args[0]['" + "k" * 61 + "...']"),
    ],
)
def test_an_error_says_where_the_value_stands(args: Any, kwargs: Any, path: str) -> None:  # K57
    with pytest.raises(EncodeError) as caught:
        CODEC.encode_arguments(args, kwargs)
    assert caught.value.path == path
    assert str(caught.value).startswith(path + ": ")


def test_the_names_of_keyword_arguments_must_be_identifiers() -> None:
    for name in ("a-b", "", "a b", 1):
        with pytest.raises(EncodeError) as caught:
            CODEC.encode_arguments((), {name: 1})  # type: ignore[dict-item]
        assert caught.value.path == "kwargs"
    assert CODEC.encode_arguments((), {"größe": 1, "class": 2}) == ([], {"größe": 1, "class": 2})


def test_a_generic_model_with_parameters_is_refused_because_no_worker_could_look_it_up() -> None:
    with pytest.raises(EncodeError, match="look up"):
        CODEC.encode(GenericModel[int](value=1), "value")


G = TypeVar("G")


class GenericModel(pydantic.BaseModel, Generic[G]):
    value: G


SPECIAL = GenericModel[int]


def test_a_constructor_that_is_tried_at_the_call_cannot_change_the_caller_s_list() -> None:
    value = v.Doubling.__new__(v.Doubling)
    value.value, value.log = 0, []
    with pytest.raises(EncodeError, match="changes its fields"):
        CODEC.encode(value, "value")
    assert value.log == []


# -- limits, the same at the call and in the worker


def _nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def _tuples(levels: int) -> Any:
    return (_tuples(levels - 2),) if levels > 3 else ([],) if levels == 3 else ()


def _around_a_timedelta(levels: int) -> Any:
    value: Any = timedelta(1)
    for _ in range(levels - 2):
        value = [value]
    return value


def wire_of(args: Any, kwargs: Any = None) -> bytes:
    envelope = {"v": 1, "id": "a", "target": {"class": "values:Counter"}, "method": "add"}
    return encode_json({**envelope, "args": args, "kwargs": {} if kwargs is None else kwargs})


@pytest.mark.parametrize(
    "make",
    [
        _nested,
        lambda levels: {"a": _nested(levels - 1)},
        _tuples,
        lambda levels: {1: _nested(levels - 3)},
        lambda levels: {"$": _nested(levels - 3)},
        lambda levels: v.Money(_nested(levels - 3)),
        lambda levels: slice(_nested(levels - 2)),
        lambda levels: v.Counter(_nested(levels - 3)),
        _around_a_timedelta,
    ],
)
def test_the_depth_is_the_same_at_the_call_and_in_the_worker(make: Any) -> None:
    codec = make_codec(depth=12)
    args, _ = codec.encode_arguments((make(10),), {})
    codec.read(wire_of(args))
    codec.decode_arguments(args, {})
    with pytest.raises(EncodeError, match="deeper than 12"):
        codec.encode_arguments((make(11),), {})
    too_deep, _ = make_codec(depth=13).encode_arguments((make(11),), {})
    for read in (lambda: codec.read(wire_of(too_deep)), lambda: codec.decode_arguments(too_deep, {})):
        with pytest.raises(DecodeError, match="deeper than 12"):
            read()


def test_very_deep_values_are_an_error_of_ours_never_a_recursion_error() -> None:
    with pytest.raises(EncodeError, match="deeper"):
        CODEC.encode_arguments((_nested(100_000),), {})
    value: Any = 1
    for _ in range(50_000):
        value = {"a": (value,)}
    with pytest.raises(EncodeError, match="deeper"):
        CODEC.encode_arguments((), {"value": value})
    value = None
    for _ in range(500):
        value = v.Money(value)
    with pytest.raises(EncodeError, match="deeper"):
        CODEC.encode_arguments((value,), {})


def test_the_greatest_depth_fits_pythons_stack() -> None:
    codec = make_codec(depth=128)
    value = _nested(126)
    assert codec.decode_arguments(*codec.encode_arguments((value,), {})) == ([value], {})
    deep: Any = None
    for _ in range(41):
        deep = v.Item(name=deep)
    assert same(codec.decode(codec.encode(deep, "value"), "value"), deep)


def test_the_number_of_values_is_bounded_the_same_way_on_both_sides() -> None:
    codec = make_codec(nodes=10)
    most: list[Any] = [[1] * 9, dict.fromkeys("abcdefghi"), tuple(range(8)), {1: 1, 2: 2}, [date.min] * 4]
    too_many: list[Any] = [[1] * 10, dict.fromkeys("abcdefghij"), tuple(range(9)), {1: 1, 2: 2, 3: 3}, [date.min] * 5]
    for fits in most:
        args, _ = codec.encode_arguments((fits,), {})
        codec.read(wire_of(args))
    for more in too_many:
        with pytest.raises(EncodeError, match="more than 10 values"):
            codec.encode_arguments((more,), {})
        args, _ = CODEC.encode_arguments((more,), {})
        with pytest.raises(DecodeError, match="more than 10 values"):
            codec.read(wire_of(args))


def test_strings_keys_and_arguments_are_bounded_the_same_way_on_both_sides() -> None:
    codec = make_codec(string=20, key=32, arguments=3)
    fits = codec.encode_arguments(("x" * 20, {"k" * 32: 1}), {"k" * 32: 1})
    codec.read(envelope(args=fits[0], kwargs=fits[1]))
    beyond: list[tuple[Any, Any, str]] = [
        (("x" * 21,), {}, "20 characters"),
        ((b"x" * 16,), {}, "20 characters"),
        (({"k" * 33: 1},), {}, "32 characters"),
        ((), {"k" * 33: 1}, "32 characters"),
        ((1, 2), {"a": 1, "b": 2}, "3 arguments"),
    ]
    for args, kwargs, hint in beyond:
        with pytest.raises(EncodeError, match=hint):
            codec.encode_arguments(args, kwargs)
        tree, named = CODEC.encode_arguments(args, kwargs)
        with pytest.raises(DecodeError, match=hint):
            codec.decode_arguments(tree, named)
        with pytest.raises(DecodeError, match=hint):
            codec.read(envelope(args=tree, kwargs=named))


@pytest.mark.parametrize(
    "bad", [{"depth": 0}, {"depth": 129}, {"nodes": -1}, {"string": True}, {"max_bytes": 1.5}, {"key": 31}]
)
def test_limits_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Limits(**bad)


# -- the size of a call


def call_of(codec: Codec, *args: Any) -> tuple[dict[str, Any], int]:
    tree, kwargs, bound = codec.encode_call(args, {})
    return {"v": 1, "id": "a", "target": {"class": "shop:User"}, "args": tree, "kwargs": kwargs}, bound


def test_a_big_call_is_logged_with_its_name_and_size(caplog: pytest.LogCaptureFixture) -> None:  # K66
    tree, bound = call_of(CODEC, "secret-value" * 10_000)
    with caplog.at_level(logging.WARNING, "backgrounded"):
        CODEC.check_size("shop.User.go", tree, bound)
    (record,) = caplog.records
    assert (vars(record)["job_name"], vars(record)["wire_bytes"]) == ("shop.User.go", len(encode_json(tree)))
    assert "shop.User.go" in record.getMessage()
    assert "secret-value" not in record.getMessage()


def test_a_small_call_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("", "x" * 60_000):
        CODEC.check_size("shop.User.go", *call_of(CODEC, text))
        CODEC.check_size("shop.User.go", call_of(CODEC, text)[0])
    assert caplog.records == []


def test_a_call_that_is_too_big_is_refused_naming_it_and_its_size() -> None:  # K66
    codec = make_codec(max_bytes=1000)
    tree, bound = call_of(codec, "x" * 1000)
    for given_bound in (bound, None):
        with pytest.raises(EncodeError) as caught:
            codec.check_size("shop.User.go", tree, given_bound)
        assert caught.value.path == "call"
        assert f"shop.User.go takes {len(encode_json(tree))} bytes" in str(caught.value)


def test_the_size_counts_what_stands_beside_the_arguments() -> None:
    tree, bound = call_of(CODEC, 1)
    with pytest.raises(EncodeError, match=r"shop\.User\.go"):
        CODEC.check_size("shop.User.go", {**tree, "headers": {"trace": "x" * 1_100_000}}, bound)


# -- converters


class Dollars:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.cents == self.cents  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.cents)


class Euros(Dollars):
    pass


DOLLARS = Converter(Dollars, lambda value: (value.cents,), lambda tree: Dollars(tree[0]), "money")


def test_a_registered_type_comes_home() -> None:  # K59
    codec = Codec(Names(), [DOLLARS])
    assert codec.encode(Dollars(5), "value") == {"$x": ["money", {"$tuple": [5]}]}
    nested = {"a": [Dollars(1), {Dollars(2)}], "$money": 1}
    assert sent(nested, codec) == nested


def test_a_converter_is_for_exactly_its_type() -> None:
    with pytest.raises(EncodeError, match="converter"):
        Codec(Names(), [DOLLARS]).encode(Euros(5), "value")


def test_a_converter_goes_before_what_is_built_in() -> None:
    codec = Codec(Names(), [Converter(date, lambda day: day.toordinal(), date.fromordinal, "day")])
    assert codec.encode(date(1, 1, 2), "value") == {"$x": ["day", 2]}
    assert sent(date(2001, 2, 3), codec) == date(2001, 2, 3)
    assert codec.decode({"$date": "2001-02-03"}, "value") == date(2001, 2, 3)


def test_a_converter_can_be_replaced() -> None:  # K60
    codec = Codec(Names(), [DOLLARS])
    codec.add(Converter(Dollars, lambda value: value.cents, Dollars, "money"))
    assert codec.encode(Dollars(5), "value") == {"$x": ["money", 5]}
    codec.add(Converter(Euros, lambda value: value.cents, Euros, "money"))
    assert type(sent(Euros(1), codec)) is Euros
    with pytest.raises(EncodeError):
        codec.encode(Dollars(1), "value")


def test_a_second_tag_is_written_and_the_first_one_still_read() -> None:  # K60
    codec = Codec(Names(), [DOLLARS])
    old = codec.encode(Dollars(5), "value")
    codec.add(Converter(Dollars, lambda value: value.cents, Dollars, "dollars"))
    assert codec.encode(Dollars(5), "value") == {"$x": ["dollars", 5]}
    assert codec.decode(old, "value") == Dollars(5)


def test_a_copy_is_apart_from_the_original() -> None:  # K60
    original = Codec(Names(), limits=Limits(depth=5))
    names = Names()
    copy = original.copy(names, Limits(depth=9))
    copy.add(DOLLARS)
    with pytest.raises(EncodeError):
        original.encode(Dollars(1), "value")
    assert sent(Dollars(1), copy.copy()) == Dollars(1)
    assert (copy.names, copy.limits.depth) == (names, 9)
    assert (original.copy().names, original.copy().limits.depth) == (original.names, 5)


@pytest.mark.parametrize("kind", [str, int, float, bool, type(None), list, dict, "Money", 5])
def test_plain_json_takes_no_converter(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="class"):
        CODEC.copy().add(Converter(kind, str, str, "tag"))


@pytest.mark.parametrize(
    "tag", ["tuple", "date", "dict", "x", "type", "ref", "pydantic", "", "$a", "a b", "1a", 5, None]
)
def test_a_tag_must_be_a_word_that_is_not_taken(tag: Any) -> None:
    with pytest.raises(ConfigurationError, match="tag"):
        CODEC.copy().add(Converter(Dollars, str, str, tag))


def test_a_converter_needs_two_callables() -> None:
    with pytest.raises(ConfigurationError, match="callables"):
        CODEC.copy().add(Converter(Dollars, str, None, "money"))  # type: ignore[arg-type]


def _raising(value: Any) -> Any:
    raise RuntimeError("secret-value")


def test_a_converter_that_raises_is_an_error_with_the_cause_and_without_its_text() -> None:
    codec = Codec(Names(), [Converter(Dollars, _raising, _raising, "money")])
    with pytest.raises(EncodeError, match="'money' raised RuntimeError") as caught:
        codec.encode([Dollars(1)], "value")
    assert caught.value.path == "value[0]"
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(DecodeError, match="'money' raised RuntimeError") as decoded:
        codec.decode([{"$x": ["money", 1]}], "value")
    assert decoded.value.path == "value[0]"
    assert isinstance(decoded.value.__cause__, RuntimeError)
    assert "secret-value" not in f"{caught.value} {decoded.value}"


def test_a_converter_that_gives_its_own_type_again_ends_in_an_error() -> None:
    codec = Codec(Names(), [Converter(Dollars, lambda value: value, Dollars, "money")])
    with pytest.raises(EncodeError, match="deeper"):
        codec.encode(Dollars(1), "value")


def test_a_converters_errors_of_ours_pass_as_they_are() -> None:
    def refuse(value: Any) -> Any:
        raise NotAllowed("money", "not today")

    def gone(tree: Any) -> Any:
        raise TargetGone("gone")

    codec = Codec(Names(), [Converter(Dollars, refuse, gone, "money")])
    with pytest.raises(NotAllowed, match="not today"):
        codec.encode(Dollars(1), "value")
    with pytest.raises(TargetGone, match="gone"):
        codec.decode({"$x": ["money", 1]}, "value")


# -- classes, functions and objects as values


def test_a_class_that_has_opted_in_travels_by_name() -> None:  # K50
    assert CODEC.encode(v.Counter, "value") == {"$type": "values:Counter"}
    assert sent([v.Counter, v.send]) == [v.Counter, v.send]


def test_a_class_in_an_allowed_package_travels_by_name() -> None:  # K50
    codec = Codec(Names(frozenset({"values"})))
    assert sent({"a": (v.Unopted, v.touch, v.Color)}, codec) == {"a": (v.Unopted, v.touch, v.Color)}


@pytest.mark.parametrize("value", [v.Unopted, v.touch, int, dict, print.__class__, json.dumps])
def test_a_class_or_function_that_may_not_be_called_may_not_be_sent_either(value: Any) -> None:
    with pytest.raises((NotAllowed, EncodeError)):
        CODEC.encode([value], "value")


def test_a_class_that_has_not_opted_in_is_named_with_its_place() -> None:
    with pytest.raises(NotAllowed, match=r"values\.Unopted: at kwargs\['kind'\]"):
        CODEC.encode_arguments((), {"kind": v.Unopted})


@pytest.mark.parametrize(
    "tree",
    [{"$type": "values:Unopted"}, {"$function": "values:touch"}, {"$built": ["values:Unopted", [], {}]}],
)
def test_the_worker_refuses_the_same_names(tree: Any) -> None:
    with pytest.raises(Refused):
        CODEC.decode([tree], "value")
    assert v.CANARY == []


def test_an_object_with_backgrounded_args_travels_as_a_value_too() -> None:  # K41
    assert sent([v.Counter(3, step=2)]) == [v.Counter(3, step=2)]
    assert CODEC.encode(v.Counter(3), "value") == {"$built": ["values:Counter", [3], {"step": 1}]}


def test_an_object_with_backgrounded_args_must_have_opted_in() -> None:
    value = v.Unopted.__new__(v.Unopted)
    with pytest.raises(NotAllowed, match="Unopted"):
        CODEC.encode(value, "value")


def test_a_class_without_backgrounded_args_is_not_built_in_the_worker() -> None:
    with pytest.raises(DecodeError, match=ARGS_METHOD):
        CODEC.decode({"$built": ["values:Held", [1], {}]}, "value")


# -- services and locators


def store() -> tuple[Codec, v.Shelf]:
    shelf = v.Shelf()
    names = Names(services={"mailer": v.an_object}, locators={"shelf": shelf})
    return Codec(names), shelf


def test_a_service_is_sent_by_its_name() -> None:
    codec, _ = store()
    tree = codec.encode([v.an_object], "value")
    assert tree == [{"$service": "mailer"}]
    assert codec.decode(tree, "value")[0] is v.an_object
    with pytest.raises(EncodeError):
        codec.encode(v.Held(1), "value")


def test_a_record_is_sent_by_its_key_and_found_again() -> None:  # K34, K53
    codec, shelf = store()
    for key in (1, "text", uuid.UUID(int=5), (1, "composite"), date(2001, 1, 1)):
        record = shelf.put(v.Record(key))
        args, kwargs = codec.encode_arguments(([record],), {"user": record})
        home, named = codec.decode_arguments(through_json(args), through_json(kwargs))
        assert home[0][0] is record
        assert named["user"] is record


def test_a_record_that_is_a_dataclass_is_still_sent_by_its_key() -> None:
    codec, shelf = store()
    record = shelf.put(v.DataRecord(1))
    assert codec.encode(record, "value") == {"$ref": ["shelf", 1]}
    assert sent(record, codec) is record


def test_the_first_locator_that_knows_an_object_names_it() -> None:
    class Other(v.Shelf):
        name = "other"

    names = Names(locators={"other": Other(), "shelf": v.Shelf()})
    assert Codec(names).encode(v.Record(1), "value") == {"$ref": ["other", 1]}


def test_a_locator_that_cannot_name_an_object_stops_the_call() -> None:  # K30
    codec, _ = store()
    with pytest.raises(EncodeError, match="'shelf' raised ValueError") as caught:
        codec.encode([v.Record("unsaved")], "value")
    assert (caught.value.path, type(caught.value.__cause__)) == ("value[0]", ValueError)


def test_a_key_that_cannot_travel_stops_the_call() -> None:
    codec, _ = store()
    with pytest.raises(EncodeError, match="converter") as caught:
        codec.encode_arguments((v.Record(object()),), {})
    assert caught.value.path == "args[0] (its key)"


def test_gone_for_good_and_cannot_be_reached_are_different_errors() -> None:  # K31, K32, K33
    codec, _ = store()
    for key in (404, "nothing"):
        with pytest.raises(TargetGone):
            codec.decode([[{"$ref": ["shelf", key]}]], "value")
    with pytest.raises(TargetUnavailable) as caught:
        codec.decode([[{"$ref": ["shelf", "down"]}]], "value")
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert caught.value.__cause__.__cause__ is None
    assert "secret-host" not in str(caught.value)


def test_a_locator_or_service_that_the_worker_lacks_is_not_found() -> None:  # K39
    for tree in ({"$ref": ["shelf", 1]}, {"$service": "mailer"}):
        with pytest.raises(TargetNotFound, match="not registered in this worker"):
            CODEC.decode([tree], "value")


# -- targets


def target_tree(codec: Codec, obj: Any) -> Any:
    return through_json(codec.encode_target(obj))


def test_each_kind_of_target_has_its_reference() -> None:
    codec, shelf = store()
    record = shelf.put(v.Record(7))
    for obj, tree in [
        (v.Counter, {"class": "values:Counter"}),
        (v.Outer.Inner, {"class": "values:Outer.Inner"}),
        (v, {"module": "values"}),
        (v.an_object, {"service": "mailer"}),
        (record, {"ref": ["shelf", 7]}),
        (v.Counter(1, step=2), {"built": ["values:Counter", [1], {"step": 2}]}),
        (v.Money(5), {"value": {"$dataclass": ["values:Money", {"amount": 5, "currency": "EUR"}]}}),
        (v.Color.RED, {"value": {"$enum": ["values:Color", "RED"]}}),
        (Decimal("1.5"), {"value": {"$decimal": "1.5"}}),
    ]:
        assert target_tree(codec, obj) == tree
        home = codec.decode_target(tree)
        assert same(home, obj) or home is obj or home == obj


def test_a_string_as_a_target_is_a_string() -> None:  # K40
    for text in ("values:Counter", "values", '{"class": "values:Counter"}'):
        assert CODEC.encode_target(text) == {"value": text}
        assert CODEC.decode_target({"value": text}) == text


def test_an_object_of_which_nothing_can_be_lost_is_built_again() -> None:
    tree = CODEC.encode_target(v.Blank())
    assert tree == {"built": ["values:Blank", [], {}]}
    assert type(CODEC.decode_target(tree)) is v.Blank


@pytest.mark.parametrize(
    "obj",
    [
        v.Held(1),
        _with_attribute(v.Blank()),
        v.Slotted(),
        object(),
        sys.stdout,
        threading.Lock(),
        v.send,
        json.dumps,
        lambda: None,
        type("Local", (), {})(),
        Text("a"),
        ValueError(),
    ],
)
def test_an_unsupported_target_is_refused_naming_its_type_and_the_way_out(obj: Any) -> None:  # K42
    with pytest.raises(EncodeError) as caught:
        CODEC.encode_target(obj)
    assert caught.value.path == "target"
    if "Local" not in str(caught.value):
        assert type(obj).__name__ in str(caught.value)
        for way in ("__backgrounded_args__", "register_service", "add_locator", "add_converter"):
            assert way in str(caught.value)


def test_a_target_that_no_worker_can_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:  # K38
    class Local:
        pass

    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    for obj in (Local, type("Made", (), {}), main, types.ModuleType("nowhere"), types.ModuleType("values")):
        with pytest.raises(EncodeError) as caught:
            CODEC.encode_target(obj)
        assert caught.value.path == "target"


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        ({}, DecodeError),
        ({"class": "values:Counter", "module": "values"}, DecodeError),
        ({"nope": 1}, DecodeError),
        ({"class": 5}, DecodeError),
        ({"class": ["values:Counter"]}, DecodeError),
        ({"class": "values:Missing"}, TargetNotFound),  # K39
        ({"class": "missing:Class"}, TargetNotFound),
        ({"module": "missing"}, TargetNotFound),
        ({"service": "missing"}, TargetNotFound),
        ({"ref": ["missing", 1]}, TargetNotFound),
        ({"ref": "shelf"}, DecodeError),
        ({"ref": ["shelf"]}, DecodeError),
        ({"built": ["values:Counter", []]}, DecodeError),
        ({"built": ["values:Counter", {}, []]}, DecodeError),
        ({"built": ["values:Counter", [], {"a b": 1}]}, DecodeError),
        ({"built": ["values:Counter", [1, 2, 3], {}]}, DecodeError),
        ({"built": ["values:Held", [1], {}]}, DecodeError),
        ({"built": ["values:Held", [], {}]}, DecodeError),
        ({"built": ["values:Blank", [1], {}]}, DecodeError),
        ({"value": {"$type": "values:Counter"}}, DecodeError),
        ({"value": {"$function": "values:send"}}, DecodeError),
        ({"value": {"$ref": ["shelf", 1]}}, DecodeError),
        ({"value": {"$nope": 1}}, DecodeError),
        ([], DecodeError),
        ("values:Counter", DecodeError),
        (None, DecodeError),
    ],
)
def test_a_reference_that_is_wrong_is_an_error_of_ours(tree: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        CODEC.decode_target(tree)
    assert type(caught.value) is error


def test_no_constructor_runs_for_a_method_that_may_not_be_called() -> None:  # R17
    tree = {"built": ["values:OneMethod", [], {}]}
    for method in ("stay", "missing", "__init__", None):
        with pytest.raises((Refused, TargetNotFound)):
            CODEC.decode_target(tree, method)
    assert v.CANARY == []
    assert type(CODEC.decode_target(tree, "go")) is v.OneMethod
    assert v.CANARY.pop() == "OneMethod()"


# -- reading a wire


def envelope(**fields: Any) -> dict[str, Any]:
    base = {"v": 1, "id": "job-1", "target": {"class": "values:Counter"}, "method": "add"}
    return {name: item for name, item in {**base, **fields}.items() if item is not ...}


def test_what_is_missing_takes_its_default() -> None:  # K64
    read = CODEC.read(encode_json(envelope()))
    assert read == Envelope(1, "job-1", {"class": "values:Counter"}, "add", [], {}, {}, None, {})


def test_everything_that_is_there_is_read() -> None:
    policy = Retry(3, wait=[1, 5.5], backoff=2, jitter=0.1, on=ValueError, give_up_on=["shop.Fatal"]).to_tree()
    options = {"queue": "q", "retry": policy, "timeout": 5, "expires": 1.5, "result_ttl": 0}
    tree = envelope(
        args=[1],
        kwargs={"a": 2},
        headers={"t": "x"},
        at=17,
        options={**options, "unique": {"key": "k", "until": "start"}},
    )
    for wire in (
        encode_json(tree),
        bytearray(encode_json(tree)),
        memoryview(encode_json(tree)),
        tree,
        json.dumps(tree),
    ):
        read = CODEC.read(wire)
        assert (read.args, read.kwargs, read.headers, read.created) == ([1], {"a": 2}, {"t": "x"}, 17.0)
        assert read.options == tree["options"]
    assert CODEC.read(types.MappingProxyType(tree)) == read
    assert Retry(**read.options["retry"]) == Retry(3, [1, 5.5], 2, 0.1, ValueError, "shop.Fatal")


def test_what_a_newer_release_adds_is_ignored() -> None:  # K65
    tree = envelope(
        aud="shop", sig="k.abc", new={"deep": [1]}, options={"lane": "x", "retry": {"max": None, "curve": 1}}
    )
    assert CODEC.read(encode_json(tree)).options == {"retry": {"max": None}}


@pytest.mark.parametrize("field", ["v", "id", "target", "method"])
def test_what_cannot_be_left_out_is_named(field: str) -> None:
    with pytest.raises(DecodeError) as caught:
        CODEC.read(encode_json(envelope(**{field: ...})))
    assert caught.value.path == field


def test_a_newer_version_says_that_a_newer_producer_made_it() -> None:
    with pytest.raises(DecodeError, match="a newer producer made it") as caught:
        CODEC.read(encode_json(envelope(v=2)))
    assert caught.value.path == "v"


def test_an_envelope_does_not_show_its_arguments() -> None:
    read = CODEC.read(
        encode_json(envelope(args=["secret-value"], kwargs={"a": "secret-value"}, headers={"h": "secret-value"}))
    )
    assert "secret-value" not in repr(read)


def test_headers_stay_a_dict_however_they_look() -> None:
    trees = {"$trace": CODEC.encode((1,), "headers")}
    assert CODEC.decode_headers(trees) == {"$trace": (1,)}
    with pytest.raises(DecodeError):
        CODEC.decode_headers([])  # type: ignore[arg-type]


# -- golden wires: whatever release wrote them, every later one reads them

RECORD = v.Record(7)

GOLDEN: dict[str, Any] = {
    "tuple": (1, "a", (2,)),
    "set": {1, "a"},
    "frozenset": frozenset({1, 2}),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"\x00\xff"),
    "datetime": datetime(2001, 2, 3, 4, 5, 6, 7),
    "datetime-fold": datetime(2001, 10, 28, 2, 30, fold=1),
    "datetime-offset": datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
    "datetime-offset-name": datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2), "CEST")),
    "datetime-utc": datetime(2001, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    "datetime-zone": datetime(2001, 7, 3, 4, 5, 6, tzinfo=BERLIN),
    "date": date(2001, 2, 3),
    "time": time(1, 2, 3, 4),
    "time-offset": time(1, 2, 3, tzinfo=timezone(timedelta(hours=-3))),
    "timedelta": timedelta(days=-1, seconds=5, microseconds=7),
    "decimal": Decimal("1.10"),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "path": [PurePosixPath("/a/b"), PureWindowsPath(r"C:\a"), Path("a") if os.name == "posix" else None],
    "range": range(1, 10, 2),
    "slice": slice(1, None, 2),
    "complex": complex(1.5, -2),
    "float": [math.inf, -math.inf],
    "int": [2**64, -(2**64)],
    "dict": {1: 2, "a": {"$tuple": [1]}},
    "enum": [v.Color.GREEN, v.Level.HIGH, v.Permission.READ | v.Permission.RUN],
    "namedtuple": v.Point(1, 2),
    "dataclass": v.Money(5, "EUR"),
    "attrs": v.Box(1, 2, 3),
    "pydantic": v.Item(name="a", howMany=2),
    "pydantic-unset": v.Item(name="a"),
    "pydantic-root": v.Labels(["a"]),
    "msgspec": v.Span(1, 2),
    "type": v.Counter,
    "function": v.send,
    "built": v.Counter(1, step=2),
    "ref": RECORD,
    "service": v.an_object,
    "x": Dollars(5),
    "plain": [None, True, 1, 1.5, "żółć", [], {"a": {}, "$a": 1, "$b": 2}],
}
GOLDEN_TARGETS: dict[str, Any] = {
    "target-class": v.Counter,
    "target-module": v,
    "target-service": v.an_object,
    "target-ref": RECORD,
    "target-built": v.Counter(1, step=2),
    "target-value": v.Money(5, "EUR"),
}


def golden_codec() -> Codec:
    shelf = v.Shelf()
    shelf.put(RECORD)
    return Codec(Names(services={"mailer": v.an_object}, locators={"shelf": shelf}), [DOLLARS])


def golden_wire(name: str) -> bytes:
    """The wire of a golden value as this release writes it: how the files of `tests/wire/v1` were made."""
    codec = golden_codec()
    target = codec.encode_target(GOLDEN_TARGETS.get(name, v.Counter))
    args, kwargs = codec.encode_arguments((GOLDEN[name],), {"named": GOLDEN[name]}) if name in GOLDEN else ([], {})
    tree = {"v": 1, "id": f"golden-{name}", "target": target, "method": "add", "args": args, "kwargs": kwargs}
    return encode_json({**tree, "headers": {}, "at": 1700000000.5, "options": {"queue": "custom", "retry": {"max": 3}}})


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_golden_wire_is_read_for_ever(name: str) -> None:  # K64
    codec = golden_codec()
    read = codec.read((WIRES / f"{name}.json").read_bytes().rstrip(b"\n"))
    args, kwargs = codec.decode_arguments(read.args, read.kwargs)
    for home in (args[0], kwargs["named"]):
        assert home is GOLDEN[name] or same(home, GOLDEN[name])
    assert (read.id, read.method, read.created) == (f"golden-{name}", "add", 1700000000.5)
    assert codec.decode_target(read.target) is v.Counter


@pytest.mark.parametrize("name", sorted(GOLDEN_TARGETS))
def test_a_golden_target_is_found_for_ever(name: str) -> None:  # K64
    codec = golden_codec()
    home = codec.decode_target(codec.read((WIRES / f"{name}.json").read_bytes()).target)
    assert home is GOLDEN_TARGETS[name] or same(home, GOLDEN_TARGETS[name])


def test_every_golden_wire_is_read_and_every_tag_has_one() -> None:
    files = {path.stem for path in WIRES.glob("*.json")}
    assert files == GOLDEN.keys() | GOLDEN_TARGETS.keys() | {"minimal"}
    assert {tag[1:] for tag in READERS} <= files
    assert {f"target-{kind}" for kind in TARGETS} <= files


def test_the_shortest_wire_of_the_first_release_is_read_for_ever() -> None:  # K64
    read = CODEC.read((WIRES / "minimal.json").read_bytes())
    assert (read.v, read.id, read.args, read.kwargs, read.options) == (1, "golden-minimal", [], {}, {})


# -- dependencies


def test_the_codec_imports_no_library_of_values_and_little_else() -> None:
    package = str(Path(sys.modules["backgrounded.codec"].__file__ or "").parent)
    run = subprocess.run([sys.executable, "-c", IMPORT_ALONE, package], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


IMPORT_ALONE = """
import sys, types
package = types.ModuleType("backgrounded")
package.__path__ = sys.argv[1:]
sys.modules["backgrounded"] = package
import backgrounded.codec
heavy = {"attr", "attrs", "pydantic", "msgspec", "zoneinfo", "decimal", "uuid", "pathlib", "logging", "asyncio"}
print(*heavy & set(sys.modules))
"""
