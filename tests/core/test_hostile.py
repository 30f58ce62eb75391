"""What can whoever writes to the broker reach? Nothing: every hostile wire ends in a PerformError, and runs nothing."""

import contextlib
import json
import pathlib
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from backgrounded.codec import Codec, Converter, Limits
from backgrounded.errors import DecodeError, PerformError, Refused, TargetNotFound, TargetUnavailable
from backgrounded.references import Names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import values as v
from test_codec import EXAMPLES, WIRES, Dollars

SECRET = "S3CRET"
"""Stands in hostile payloads; no error may repeat it."""


def make_codec() -> Codec:
    """A worker that allows the package `bakery`, which does not exist, and has loaded `values`, some of it opted in."""
    names = Names(frozenset({"bakery"}), {"mailer": v.Blank()}, {"shelf": v.Shelf()})
    converters = [Converter(Dollars, lambda value: value.cents, lambda tree: Dollars(*tree), "money")]
    return Codec(names, converters, Limits())


def perform_like(wire: Any, codec: Codec | None = None) -> Any:
    """What a worker does with a wire, up to the call itself."""
    codec = make_codec() if codec is None else codec
    envelope = codec.read(wire)
    target = codec.decode_target(envelope.target, envelope.method)
    owner = target if isinstance(target, (type, types.ModuleType)) else type(target)
    method = codec.names.admitted(owner, envelope.method)
    args, kwargs = codec.decode_arguments(envelope.args, envelope.kwargs)
    codec.decode_headers(envelope.headers)
    return method, target, args, kwargs


def tree(**fields: Any) -> dict[str, Any]:
    good = {"v": 1, "id": "a1", "target": {"built": ["values:Counter", [1], {"step": 2}]}, "method": "add", "args": []}
    return {name: item for name, item in {**good, **fields}.items() if item is not ...}


def wire(**fields: Any) -> bytes:
    return json.dumps(tree(**fields), separators=(",", ":")).encode()


def arg(value: Any) -> bytes:
    return wire(args=[value])


def raw(**texts: str) -> bytes:
    """A wire with fields given as JSON text, for what `json.dumps` would not write."""
    parts = [f'"{name}":{json.dumps(item)}' for name, item in tree().items() if name not in texts]
    return ("{" + ",".join([*parts, *(f'"{name}":{text}' for name, text in texts.items())]) + "}").encode()


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> Iterator[None]:
    """A canary among the names of pathlib; and what zoneinfo imports for its data on some systems, imported before."""
    vars(pathlib)["canary"] = v.touch
    for key in ("Europe/Berlin", "Nope/Nope", "Europe"):
        try:
            ZoneInfo(key)
        except (ZoneInfoNotFoundError, OSError):
            continue
    yield
    del vars(pathlib)["canary"]


@pytest.fixture(autouse=True)
def _fresh_canary() -> Iterator[None]:
    v.CANARY.clear()
    yield
    v.CANARY.clear()


# -- the corpus

GOOD = wire()

BYTES: dict[str, Any] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a string": b'"a"',
    "text": b"hello",
    "only a brace": b"{",
    "an empty object": b"{}",
    "cut off": GOOD[:-1],
    "cut in the middle": GOOD[: len(GOOD) // 2],
    "one bracket too many": GOOD + b"}",
    "two objects": GOOD + GOOD,
    "garbage behind": GOOD + b"garbage",
    "NUL behind": GOOD + b"\0",
    "a space before": b" " + GOOD,
    "a newline before": b"\n" + GOOD,
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16-LE": GOOD.decode().encode("utf-16-le"),
    "UTF-16-BE": GOOD.decode().encode("utf-16-be"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "UTF-32-LE": GOOD.decode().encode("utf-32-le"),
    "UTF-7": b"+AHs-",
    "pickle": b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    "text pickle": b"cos\nsystem\n(S'id'\ntR.",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "zlib": b"x\x9c\xab\xae\x05\x00\x01u\x00\xf9",
    "YAML": b"!!python/object/apply:os.system ['id']",
    "XML": b"<a/>",
    "msgpack": b"\x81\xa1v\x01",
    "invalid UTF-8": b'{"v":"\xff"}',
    "overlong UTF-8": b'{"v":"\xc0\x80"}',
    "UTF-8 of a surrogate": b'{"v":"\xed\xa0\x80"}',
    "a raw NUL": raw(args='["\0"]'),
    "a raw control character": raw(args='["\x1f"]'),
    "an escaped NUL": raw(args=r'["\u0000"]'),
    "an escaped NUL in a key": raw(kwargs=r'{"a\u0000":1}'),
    "an escaped NUL in the id": raw(id=r'"a\u0000"'),
    "a lone high surrogate": raw(args=r'["\ud800"]'),
    "a lone low surrogate": raw(args=r'["\udfff"]'),
    "surrogates in the wrong order": raw(args=r'["\udc00\ud800"]'),
    "a lone surrogate in a key": raw(headers=r'{"\ud800":1}'),
    "a lone surrogate in an unknown field": raw(more=r'"\ud800"'),
    "a wrong escape": raw(args=r'["\x41"]'),
    "single quotes": b"{'v':1}",
    "a comment": b'{"v":1/**/}',
    "a trailing comma": b'{"v":1,}',
    "an unquoted key": b"{v:1}",
    "a key twice": GOOD[:-1] + b',"v":1}',
    "the method twice": GOOD[:-1] + b',"method":"static"}',
    "a key twice, escaped": GOOD[:-1] + rb',"\u0076":1}',
    "a key twice in an argument": raw(args='[{"a":1,"a":2}]'),
    "a key twice in a tag": raw(args='[{"$tuple":[],"$tuple":[1]}]'),
    "NaN": raw(args="[NaN]"),
    "Infinity": raw(args="[Infinity]"),
    "-Infinity": raw(at="-Infinity"),
    "1e999": raw(args="[1e999]"),
    "-1e999": raw(kwargs='{"a":-1e999}'),
    "1e999 in the headers": raw(headers='{"a":1e999}'),
    "an int beyond 64 bits": raw(args="[9223372036854775808]"),
    "a negative int beyond 64 bits": raw(args="[-9223372036854775809]"),
    "an int of a million digits": raw(args="[" + "9" * 1_000_000 + "]"),
    "an int of 5000 digits": raw(at="1" * 5000),
    "a leading zero": raw(at="01"),
    "a plus": raw(at="+1"),
    "hexadecimal": raw(at="0x10"),
    "lists 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "an argument 100,000 deep": raw(args="[" * 100_000 + "]" * 100_000),
    "objects 100,000 deep": raw(args='[{"a":' * 50_000 + "1" + "}]" * 50_000),
    "open brackets": b"{" * 100_000,
    "open lists behind a key": b'{"a":' + b"[" * 100_000,
    "depth behind a string with brackets": raw(args=r'["\\", "\"]]]]", ' + "[" * 200 + "]" * 200 + "]"),
    "depth behind an open string": b'{"a":' + b"[" * 90_000 + b'"' + b"]" * 90_000,
    "a quarter of a million escaped quotes": b'{"' + rb"\"" * 250_000,
    "half a million backslashes": b'{"' + b"\\" * 500_000,
    "half a million quotes": b'{"a":' + b'"' * 500_000,
    "one level too deep": raw(args="[" * 32 + "]" * 32),
    "depth in an unknown field": raw(more="[" * 33 + "]" * 33),
    "too long": wire(args=["x" * 1_048_576]),
    "too long as text": wire(args=["x" * 1_048_576]).decode(),
    "too many values": raw(args="[" + "1," * 100_000 + "1]"),
    "too many lists": raw(args="[" + "[]," * 100_000 + "[]]"),
    "too many values elsewhere": raw(headers="[" + "1," * 100_000 + "1]"),
    "a key that is too long": wire(headers={"k" * 1025: 1}),
    "a keyword that is too long": wire(kwargs={"k" * 1025: 1}),
    "too many arguments": wire(args=[0] * 256),
    "too many arguments in all": wire(args=[0] * 200, kwargs={f"k{n}": n for n in range(56)}),
    "text with a surrogate": '{"v":1,"a":"\ud800"}',
    "no wire at all": None,
    "an int for a wire": 1,
    "a list for a wire": [tree()],
    "an object for a wire": object(),
}

FIELDS: dict[str, Any] = {
    "v is missing": wire(v=...),
    "v is true": wire(v=True),
    "v is a float": wire(v=1.0),
    "v is a string": wire(v="1"),
    "v is null": wire(v=None),
    "v is 0": wire(v=0),
    "v is negative": wire(v=-1),
    "v is newer": wire(v=2),
    "v is far newer": wire(v=2**62),
    "v is a list": wire(v=[1]),
    "id is missing": wire(id=...),
    "id is empty": wire(id=""),
    "id is a number": wire(id=1),
    "id is null": wire(id=None),
    "id has a newline": wire(id="a\n"),
    "id has a space": wire(id="a b"),
    "id has a slash": wire(id="../../etc/passwd"),
    "id has a colon": wire(id="rq:job:1"),
    "id is too long": wire(id="a" * 129),
    "id is unicode": wire(id="ä"),
    "id has other digits": wire(id="١٢"),
    "target is missing": wire(target=...),
    "target is null": wire(target=None),
    "target is a string": wire(target="values:Counter"),
    "target is a list": wire(target=["class", "values:Counter"]),
    "target is empty": wire(target={}),
    "target has two keys": wire(target={"class": "values:Counter", "module": "values"}),
    "target of an unknown kind": wire(target={"eval": "1"}),
    "target is a tag": wire(target={"$type": "values:Counter"}),
    "method is missing": wire(method=...),
    "method is null": wire(method=None),
    "method is a list": wire(method=["add"]),
    "method is empty": wire(method=""),
    "method has a dot": wire(method="add.__globals__"),
    "method has a space": wire(method="add "),
    "method has a newline": wire(method="add\n"),
    "method is a call": wire(method="add()"),
    "args is an object": wire(args={}),
    "args is a string": wire(args="ab"),
    "args is null": wire(args=None),
    "kwargs is a list": wire(kwargs=[]),
    "kwargs is null": wire(kwargs=None),
    "kwargs is a string": wire(kwargs="ab"),
    "a keyword is empty": wire(kwargs={"": 1}),
    "a keyword has a dash": wire(kwargs={"a-b": 1}),
    "a keyword is a tag": wire(kwargs={"$tuple": []}),
    "a keyword has a space": wire(kwargs={"a b": 1}),
    "headers is a list": wire(headers=[]),
    "headers is a string": wire(headers="a"),
    "headers is null": wire(headers=None),
    "a header has an unknown tag": wire(headers={"a": {"$nope": 1}}),
    "at is a string": wire(at="now"),
    "at is true": wire(at=True),
    "at is a list": wire(at=[1]),
    "name is a number": wire(name=1),
    "name has a newline": wire(name="ok\nERROR forged line in the log"),
    "name has an escape sequence": wire(name="\x1b[2J"),
    "name is too long": wire(name="a" * 2000),
    "options is a list": wire(options=[]),
    "options is null": wire(options=None),
    "queue is a number": wire(options={"queue": 1}),
    "queue is empty": wire(options={"queue": ""}),
    "queue is null": wire(options={"queue": None}),
    "timeout is a string": wire(options={"timeout": "1"}),
    "timeout is true": wire(options={"timeout": True}),
    "timeout is 0": wire(options={"timeout": 0}),
    "timeout is negative": wire(options={"timeout": -1}),
    "expires is a string": wire(options={"expires": "2001-01-01"}),
    "result_ttl is negative": wire(options={"result_ttl": -1}),
    "result_ttl is null": wire(options={"result_ttl": None}),
    "unique is a string": wire(options={"unique": "key"}),
    "unique has no key": wire(options={"unique": {}}),
    "unique until never": wire(options={"unique": {"key": "k", "until": "never"}}),
    "unique until a list": wire(options={"unique": {"key": "k", "until": []}}),
    "retry is a number": wire(options={"retry": 3}),
    "retry is empty": wire(options={"retry": {}}),
    "retry.max is negative": wire(options={"retry": {"max": -1}}),
    "retry.max is true": wire(options={"retry": {"max": True}}),
    "retry.max is a float": wire(options={"retry": {"max": 1.5}}),
    "retry.wait is a number": wire(options={"retry": {"max": 1, "wait": 5}}),
    "retry.wait is empty": wire(options={"retry": {"max": 1, "wait": []}}),
    "retry.wait is negative": wire(options={"retry": {"max": 1, "wait": [-1]}}),
    "retry.wait has true": wire(options={"retry": {"max": 1, "wait": [True]}}),
    "retry.wait has a string": wire(options={"retry": {"max": 1, "wait": ["1"]}}),
    "retry.backoff is below 1": wire(options={"retry": {"max": 1, "backoff": 0.5}}),
    "retry.backoff is null": wire(options={"retry": {"max": 1, "backoff": None}}),
    "retry.jitter is negative": wire(options={"retry": {"max": 1, "jitter": -1}}),
    "retry.on is a string": wire(options={"retry": {"max": 1, "on": "ValueError"}}),
    "retry.on has a number": wire(options={"retry": {"max": 1, "on": [1]}}),
    "retry.on is no name": wire(options={"retry": {"max": 1, "on": ["os.system('id')"]}}),
    "retry.give_up_on has a dict": wire(options={"retry": {"max": 1, "give_up_on": [{}]}}),
}

FOUND_LATER = {"target of an unknown kind", "target is a tag", "a header has an unknown tag"}

CLASS_NAMES = [
    "os:system",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:exec",
    "builtins:object",
    "builtins:type",
    "pickle:Unpickler",
    "importlib:import_module",
    "types:FunctionType",
    "code:InteractiveInterpreter",
    "this:d",
    "antigravity:webbrowser",
    "__main__:main",
    "bakery.models:User.__init__",
    "bakery.models:User",
    "bakery:User",
    "bakeryx:Cart",
    "bakery.:User",
    ".bakery:User",
    "bakery..models:User",
    "bakery/models:User",
    "bakery.models",
    "bakery.models:",
    ":User",
    ":",
    "",
    " ",
    "values:Counter.add",
    "values:Counter.__init__",
    "values:Counter.__class__",
    "values:Counter.__subclasses__",
    "values:Counter.add.__globals__",
    "values:Counter.danger",
    "values:Counter:add",
    "values.Counter:add",
    "values:Counter ",
    " values:Counter",
    "values:Counter\n",
    "values:Counter\x01",
    "values: Counter",
    "values:Cou\u200bnter",
    "values:\uff23ounter",
    "values:\u0421ounter",
    "VALUES:Counter",
    "values:counter",
    "values:touch",
    "values:CANARY",
    "values:an_object",
    "values:missing",
    "values:collections.OrderedDict",
    "values:pydantic.BaseModel",
    "values:enum.Enum",
    "values:opted_in",
    "values:__builtins__",
    "values:<lambda>",
    "values:f.<locals>.Inner",
    "values:Counter[int]",
    "values:WithMeta.anything",
    "sys.modules:values",
    "/etc/passwd",
    "http://example.com/a",
    "values:" + "A." * 10_000 + "A",
    "a." * 10_000 + "a:B",
    SECRET,
]

METHODS = [
    "__init__",
    "__class__",
    "__reduce__",
    "__backgrounded_args__",
    "__dict__",
    "_private",
    "__getattribute__",
    "danger",
    "Nested",
    "start",
    "mro",
    "missing",
    "ADD",
    "adD",
    "ad\u0501",
    "\uff41dd",
    "lambda",
    "ﬁnd",
]

TARGETS: dict[str, Any] = {
    **{f"class {name[:60]!r}": wire(target={"class": name}) for name in CLASS_NAMES},
    **{f"built {name[:60]!r}": wire(target={"built": [name, [], {}]}) for name in CLASS_NAMES},
    **{f"method {name!r}": wire(method=name) for name in METHODS},
    **{f"method {name!r} of the class": wire(target={"class": "values:Counter"}, method=name) for name in METHODS},
    "class is a list": wire(target={"class": ["values:Counter"]}),
    "class is a tag": wire(target={"class": {"$type": "values:Counter"}}),
    "class is null": wire(target={"class": None}),
    "class is a number": wire(target={"class": 1}),
    "a class that has not opted in": wire(target={"class": "values:Unopted"}, method="go"),
    "a nested class of one that has": wire(target={"class": "values:Counter.Nested"}, method="go"),
    "a metaclass's method": wire(target={"class": "values:WithMeta"}, method="meta_method"),
    "a metaclass's attribute": wire(target={"class": "values:WithMeta"}, method="anything"),
    "a class of the standard library": wire(target={"class": "json.decoder:JSONDecoder"}, method="decode"),
    "a method of pydantic's": wire(target={"class": "values:Item"}, method="parse_raw"),
    "module os": wire(target={"module": "os"}, method="system"),
    "module subprocess": wire(target={"module": "subprocess"}, method="run"),
    "module builtins": wire(target={"module": "builtins"}, method="eval"),
    "module that is not loaded": wire(target={"module": "this"}, method="d"),
    "module antigravity": wire(target={"module": "antigravity"}, method="fly"),
    "module __main__": wire(target={"module": "__main__"}, method="main"),
    "module with a look-alike prefix": wire(target={"module": "bakeryx"}, method="buy"),
    "module in the allowed package that does not exist": wire(target={"module": "bakery.missing"}, method="go"),
    "module with a path": wire(target={"module": "bakery/../os"}, method="system"),
    "module with a colon": wire(target={"module": "values:Counter"}, method="add"),
    "module with spaces": wire(target={"module": " values"}, method="send"),
    "module is a list": wire(target={"module": ["values"]}, method="send"),
    "module is empty": wire(target={"module": ""}, method="send"),
    "a function that has not opted in": wire(target={"module": "values"}, method="touch"),
    "another name of a function": wire(target={"module": "values"}, method="alias_of_send"),
    "another name of one that has not": wire(target={"module": "values"}, method="unopted_function"),
    "a class as a function": wire(target={"module": "values"}, method="Unopted"),
    "a generator": wire(target={"module": "values"}, method="generator"),
    "a module's __getattr__": wire(target={"module": "values"}, method="__getattr__"),
    "what a module's __getattr__ would give": wire(target={"module": "values"}, method="anything"),
    "an imported function": wire(target={"module": "values"}, method="dataclass"),
    "built without opt-in": wire(target={"built": ["values:Unopted", [], {}]}, method="missing"),
    "built without __backgrounded_args__": wire(target={"built": ["values:Held", [1], {}]}),
    "built, blank, with arguments": wire(target={"built": ["values:Blank", [1], {}]}, method="go"),
    "built with too few parts": wire(target={"built": ["values:Counter", []]}),
    "built with too many parts": wire(target={"built": ["values:Counter", [], {}, []]}),
    "built is a string": wire(target={"built": "values:Counter"}),
    "built is an object": wire(target={"built": {"class": "values:Counter"}}),
    "built with kwargs for args": wire(target={"built": ["values:Counter", {}, []]}),
    "built with a wrong keyword": wire(target={"built": ["values:Counter", [], {SECRET: 1}]}),
    "built with a keyword that is none": wire(target={"built": ["values:Counter", [], {"a b": 1}]}),
    "built with a keyword that is none, taken all the same": wire(target={"built": ["values:Greedy", [], {"a b": 1}]}),
    "built with too many arguments, taken all the same": wire(target={"built": ["values:Greedy", [0] * 256, {}]}),
    "built with self": wire(target={"built": ["values:Counter", [], {"self": 1}]}),
    "built with too many arguments": wire(target={"built": ["values:Counter", [1] * 300, {}]}),
    "built with a hostile argument": wire(target={"built": ["values:Counter", [{"$type": "values:Unopted"}], {}]}),
    "a service that does not exist": wire(target={"service": SECRET}),
    "a service that is a list": wire(target={"service": ["mailer"]}),
    "a service's private method": wire(target={"service": "mailer"}, method="__init__"),
    "a locator that does not exist": wire(target={"ref": [SECRET, 1]}),
    "a locator that is a list": wire(target={"ref": [["shelf"], 1]}),
    "a locator without a key": wire(target={"ref": ["shelf"]}),
    "a key that is a filter": wire(target={"ref": ["shelf", {"password__startswith": "a"}]}),
    "a key that is a class": wire(target={"ref": ["shelf", {"$type": "values:Unopted"}]}),
    "a key that does not exist": wire(target={"ref": ["shelf", SECRET]}),
    "a ref that is a string": wire(target={"ref": "shelf:1"}),
    "a value that is a class": wire(target={"value": {"$type": "values:Counter"}}, method="static"),
    "a value that is a function": wire(target={"value": {"$function": "values:send"}}, method="__call__"),
    "a value that is built": wire(target={"value": {"$built": ["values:Counter", [], {}]}}),
    "a value that is found": wire(target={"value": {"$ref": ["shelf", 1]}}, method="go"),
    "a value that is a service": wire(target={"value": {"$service": "mailer"}}, method="go"),
    "a method of a string": wire(target={"value": "{0.__class__}"}, method="format"),
    "a method of a list": wire(target={"value": []}, method="append"),
    "a method of null": wire(target={"value": None}, method="go"),
    "a value with an unknown tag": wire(target={"value": {"$nope": 1}}),
}

NAMED_TAGS = ["$enum", "$namedtuple", "$dataclass", "$attrs", "$pydantic", "$msgspec"]
VALUES: dict[str, Any] = {
    **{f"{tag} of {name[:60]!r}": arg({tag: [name, {}]}) for tag in NAMED_TAGS[:3] for name in CLASS_NAMES[:12]},
    **{f"{tag} of a class that is none": arg({tag: ["values:Unopted", {}]}) for tag in NAMED_TAGS},
    **{f"{tag} of a function": arg({tag: ["values:touch", {}]}) for tag in NAMED_TAGS},
    **{f"{tag} without fields": arg({tag: ["values:Money"]}) for tag in NAMED_TAGS},
    **{f"{tag} with fields in a list": arg({tag: ["values:Money", []]}) for tag in NAMED_TAGS},
    **{f"{tag} of a number": arg({tag: 1}) for tag in NAMED_TAGS},
    **{f"{tag} of a class by a number": arg({tag: [1, {}]}) for tag in NAMED_TAGS},
    **{f"$type of {name[:60]!r}": arg({"$type": name}) for name in CLASS_NAMES},
    **{f"$function of {name[:60]!r}": arg({"$function": name}) for name in CLASS_NAMES},
    **{f"$built of {name[:60]!r}": arg({"$built": [name, [], {}]}) for name in CLASS_NAMES[:14]},
    "an unknown tag": arg({"$nope": 1}),
    "an empty tag": arg({"$": 1}),
    "a tag of another library": arg({"$type$": "os.system"}),
    "a tag in the wrong case": arg({"$TUPLE": []}),
    "a tag with a space": arg({"$tuple ": []}),
    "an unknown tag, deep": wire(kwargs={"a": [[{"b": {"$nope": SECRET}}]]}),
    "$tuple of an object": arg({"$tuple": {}}),
    "$tuple of a string": arg({"$tuple": "ab"}),
    "$set of a number": arg({"$set": 1}),
    "$set of lists": arg({"$set": [[1]]}),
    "$set of dicts": arg({"$set": [{"a": 1}]}),
    "$set with an element twice": arg({"$set": [1, 1]}),
    "$set with equal elements": arg({"$frozenset": [1, 1.0, True]}),
    "$frozenset of null": arg({"$frozenset": None}),
    "$dict of an object": arg({"$dict": {"a": 1}}),
    "$dict of half a pair": arg({"$dict": [[1]]}),
    "$dict of a triple": arg({"$dict": [[1, 2, 3]]}),
    "$dict of strings": arg({"$dict": ["ab"]}),
    "$dict with a key twice": arg({"$dict": [["a", 1], ["a", 2]]}),
    "$dict with equal keys": arg({"$dict": [[1, 1], [True, 2]]}),
    "$dict with a list for a key": arg({"$dict": [[[], 1]]}),
    "$bytes of no base64": arg({"$bytes": SECRET + "!"}),
    "$bytes with junk between": arg({"$bytes": "YW I="}),
    "$bytes without padding": arg({"$bytes": "YWI"}),
    "$bytes of another alphabet": arg({"$bytes": "-_-_"}),
    "$bytes with loose bits": arg({"$bytes": "YWJ="}),
    "$bytes of a number": arg({"$bytes": 10**9}),
    "$bytearray of a number": arg({"$bytearray": 10**9}),
    "$bytearray of a list": arg({"$bytearray": [1, 2]}),
    "$date of nonsense": arg({"$date": SECRET}),
    "$date of another form": arg({"$date": "20010203"}),
    "$date of a week": arg({"$date": "2001-W05-6"}),
    "$date of a month of 31": arg({"$date": "2001-02-31"}),
    "$date of a datetime": arg({"$date": "2001-02-03T00:00:00"}),
    "$date of a number": arg({"$date": 1}),
    "$date of year 0": arg({"$date": "0000-01-01"}),
    "$datetime of a date": arg({"$datetime": "2001-02-03"}),
    "$datetime with Z": arg({"$datetime": "2001-02-03T04:05:06Z"}),
    "$datetime with an offset": arg({"$datetime": "2001-02-03T04:05:06+02:00"}),
    "$datetime of a list": arg({"$datetime": []}),
    "$datetime of one": arg({"$datetime": ["2001-02-03T04:05:06"]}),
    "$datetime of an unknown zone": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", "Nope/Nope"]}),
    "$datetime of a zone that is a path": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", "../../etc/passwd"]}),
    "$datetime of an absolute zone": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", "/etc/passwd"]}),
    "$datetime of a zone that is a directory": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", "Europe"]}),
    "$datetime of a zone that is a module": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", "os.path"]}),
    "$datetime of a zone that is a list": arg({"$datetime": ["2001-02-03T04:05:06", 0, "zone", ["UTC"]]}),
    "$datetime of an unknown kind of zone": arg({"$datetime": ["2001-02-03T04:05:06", 0, "pytz", "UTC"]}),
    "$datetime of a great offset": arg({"$datetime": ["2001-02-03T04:05:06", 0, "offset", 86400]}),
    "$datetime of an endless offset": arg({"$datetime": ["2001-02-03T04:05:06", 0, "offset", 2**62]}),
    "$datetime of an offset with two names": arg({"$datetime": ["2001-02-03T04:05:06", 0, "offset", 0, "a", "b"]}),
    "$datetime of an offset that is true": arg({"$datetime": ["2001-02-03T04:05:06", 0, "offset", True]}),
    "$datetime with fold 2": arg({"$datetime": ["2001-02-03T04:05:06", 2]}),
    "$datetime with fold true": arg({"$datetime": ["2001-02-03T04:05:06", True]}),
    "$time of nonsense": arg({"$time": "25:00:00"}),
    "$time of a number": arg({"$time": 3600}),
    "$time with an offset": arg({"$time": "01:00:00+02:00"}),
    "$timedelta of one": arg({"$timedelta": [1]}),
    "$timedelta of a million days a day": arg({"$timedelta": [2**62, 0, 0]}),
    "$timedelta of floats": arg({"$timedelta": [0.5, 0, 0]}),
    "$timedelta of true": arg({"$timedelta": [True, 0, 0]}),
    "$timedelta that is not normal": arg({"$timedelta": [0, 86400, 0]}),
    "$timedelta of strings": arg({"$timedelta": ["1", "2", "3"]}),
    "$decimal of nonsense": arg({"$decimal": SECRET}),
    "$decimal of a number": arg({"$decimal": 1.5}),
    "$decimal with underscores": arg({"$decimal": "1_000"}),
    "$decimal with spaces": arg({"$decimal": " 1 "}),
    "$decimal of other digits": arg({"$decimal": "\u0661"}),
    "$decimal of a list": arg({"$decimal": [0, [1], 0]}),
    "$decimal beyond all": arg({"$decimal": "1E+9999999999999999999"}),
    "$uuid of nonsense": arg({"$uuid": SECRET}),
    "$uuid with braces": arg({"$uuid": "{12345678-1234-5678-1234-567812345678}"}),
    "$uuid without dashes": arg({"$uuid": "12345678123456781234567812345678"}),
    "$uuid of a number": arg({"$uuid": 1}),
    "$path of a string": arg({"$path": "/etc/passwd"}),
    "$path of another class": arg({"$path": ["Path", "a"]}),
    "$path of a module": arg({"$path": ["os", "a"]}),
    "$path of a function": arg({"$path": ["canary", "a"]}),
    "$path of a list": arg({"$path": ["PurePosixPath", ["a"]]}),
    "$path that is not normal": arg({"$path": ["PurePosixPath", "a//b"]}),
    "$path of another system": arg({"$path": ["WindowsPath" if sys.platform != "win32" else "PosixPath", "a"]}),
    "$range of two": arg({"$range": [1, 2]}),
    "$range with step 0": arg({"$range": [1, 2, 0]}),
    "$range of floats": arg({"$range": [1.0, 2.0, 1.0]}),
    "$range of true": arg({"$range": [True, 2, 1]}),
    "$range of null": arg({"$range": [None, None, None]}),
    "$slice of two": arg({"$slice": [1, 2]}),
    "$slice of a string": arg({"$slice": "abc"}),
    "$complex of one": arg({"$complex": [1.0]}),
    "$complex of ints": arg({"$complex": [1, 2]}),
    "$complex of strings": arg({"$complex": ["1", "2"]}),
    "$float of a number": arg({"$float": 1.5}),
    "$float of another spelling": arg({"$float": "infinity"}),
    "$float of a finite one": arg({"$float": "1.5"}),
    "$float beyond": arg({"$float": "1e999"}),
    "$float of a list": arg({"$float": []}),
    "$int of nonsense": arg({"$int": SECRET}),
    "$int that is small": arg({"$int": "0x1"}),
    "$int in decimals": arg({"$int": "18446744073709551616"}),
    "$int without 0x": arg({"$int": "10000000000000000000"}),
    "$int with underscores": arg({"$int": "0x1_0000_0000_0000_0000_0000"}),
    "$int in capitals": arg({"$int": "0XFFFFFFFFFFFFFFFFFFFFFF"}),
    "$int of too many digits": arg({"$int": "0x1" + "0" * 4097}),
    "$int of half a million digits": arg({"$int": "0x1" + "0" * 500_000}),
    "$int of a number": arg({"$int": 5}),
    "$int of a list": arg({"$int": ["0"] * 30}),
    "$enum without a member": arg({"$enum": ["values:Color", "BLACK"]}),
    "$enum by value": arg({"$enum": ["values:Color", 1]}),
    "$enum by an attribute": arg({"$enum": ["values:Color", "__class__"]}),
    "$enum by a method": arg({"$enum": ["values:Color", "mro"]}),
    "$enum by true": arg({"$enum": ["values:Permission", True]}),
    "$enum by a list": arg({"$enum": ["values:Color", ["RED"]]}),
    "$enum by null": arg({"$enum": ["values:Color", None]}),
    "$enum of flags beyond": arg({"$enum": ["values:Permission", 1024]}),
    "$enum of one": arg({"$enum": ["values:Color"]}),
    "$enum of Enum itself": arg({"$enum": ["enum:Enum", "RED"]}),
    "$enum of a dataclass": arg({"$enum": ["values:Money", "amount"]}),
    "$dataclass of an enum": arg({"$dataclass": ["values:Color", {}]}),
    "$dataclass of attrs": arg({"$dataclass": ["values:Box", {"width": 1}]}),
    "$dataclass of a model": arg({"$dataclass": ["values:Item", {"name": 1}]}),
    "$attrs of a dataclass": arg({"$attrs": ["values:Money", {"amount": 1}]}),
    "$msgspec of a model": arg({"$msgspec": ["values:Item", {"name": 1}]}),
    "$pydantic of a struct": arg({"$pydantic": ["values:Span", {"starts_at": 1}]}),
    "$namedtuple of a tuple": arg({"$namedtuple": ["builtins:tuple", {}]}),
    "$dataclass with another field": arg({"$dataclass": ["values:Money", {"amount": 1, SECRET: 2}]}),
    "$dataclass with a field missing": arg({"$dataclass": ["values:Money", {}]}),
    "$dataclass with self": arg({"$dataclass": ["values:Money", {"self": 1}]}),
    "$dataclass with __class__": arg({"$dataclass": ["values:Money", {"amount": 1, "__class__": 2}]}),
    "$dataclass with init=False": arg({"$dataclass": ["values:WithInitFalse", {"value": 1, "total": 9}]}),
    "$dataclass with InitVar": arg({"$dataclass": ["values:WithInitVar", {"value": 1}]}),
    "$dataclass with unset fields": arg({"$dataclass": ["values:Money", {"amount": 1}, ["amount"]]}),
    "$dataclass whose constructor raises": arg({"$dataclass": ["values:Explosive", {"value": "boom"}]}),
    "$namedtuple with another field": arg({"$namedtuple": ["values:Point", {"x": 1, "z": 2}]}),
    "$attrs by the constructor's word": arg({"$attrs": ["values:Box", {"width": 1, "secret": 2}]}),
    "$attrs with init=False": arg({"$attrs": ["values:AttrsInitFalse", {"value": 1, "total": 9}]}),
    "$pydantic that is not valid": arg({"$pydantic": ["values:Checked", {"number": SECRET}]}),
    "$pydantic of a wrong type": arg({"$pydantic": ["values:Counted", {"number": SECRET}]}),
    "$pydantic with a private attribute": arg({"$pydantic": ["values:Counted", {"number": 1, "_seen": 9}]}),
    "$pydantic by alias": arg({"$pydantic": ["values:Item", {"name": 1, "howMany": 2}]}),
    "$pydantic with a field too many": arg({"$pydantic": ["values:Item", {"name": 1, "more": 2}]}),
    "$pydantic with unset strangers": arg({"$pydantic": ["values:Item", {"name": 1}, ["model_config"]]}),
    "$pydantic with unset numbers": arg({"$pydantic": ["values:Item", {"name": 1}, [1]]}),
    "$pydantic with unset in a string": arg({"$pydantic": ["values:Item", {"name": 1}, "name"]}),
    "$pydantic that becomes something else": arg({"$pydantic": ["values:Sly", {"number": 1}]}),
    "$pydantic of four": arg({"$pydantic": ["values:Item", {"name": 1}, [], []]}),
    "$pydantic of BaseModel": arg({"$pydantic": ["pydantic.main:BaseModel", {}]}),
    "$msgspec with another field": arg({"$msgspec": ["values:Span", {"starts_at": 1, "startsAt": 2}]}),
    "$type of one that has not opted in": arg({"$type": "values:Unopted"}),
    "$type of an enum that has not": arg({"$type": "values:Color"}),
    "$type of a number": arg({"$type": 1}),
    "$type of a list": arg({"$type": ["values:Counter"]}),
    "$function that has not opted in": arg({"$function": "values:touch"}),
    "$function by another name": arg({"$function": "values:alias_of_send"}),
    "$function that is a class": arg({"$function": "values:Counter"}),
    "$function that is a method": arg({"$function": "values:Counter.add"}),
    "$function that is private": arg({"$function": "values:_private"}),
    "$function of null": arg({"$function": None}),
    "$built of one that has not opted in": arg({"$built": ["values:Unopted", [], {}]}),
    "$built without __backgrounded_args__": arg({"$built": ["values:Blank", [], {}]}),
    "$built of two": arg({"$built": ["values:Counter", []]}),
    "$built of a string": arg({"$built": "values:Counter"}),
    "$built with wrong arguments": arg({"$built": ["values:Counter", [1, 2, 3], {}]}),
    "$built with wrong parts": arg({"$built": ["values:Counter", "ab", "cd"]}),
    "$ref of nobody": arg({"$ref": [SECRET, 1]}),
    "$ref of one": arg({"$ref": ["shelf"]}),
    "$ref of a string": arg({"$ref": "shelf"}),
    "$ref by a number": arg({"$ref": [1, 1]}),
    "$ref that is gone": arg({"$ref": ["shelf", SECRET]}),
    "$ref that is down": arg({"$ref": ["shelf", "down"]}),
    "$ref by a list": arg({"$ref": ["shelf", [1]]}),
    "$service of nobody": arg({"$service": SECRET}),
    "$service of a list": arg({"$service": ["mailer"]}),
    "$service of null": arg({"$service": None}),
    "$x of nobody": arg({"$x": [SECRET, 1]}),
    "$x of one": arg({"$x": ["money"]}),
    "$x of a string": arg({"$x": "money"}),
    "$x by a list": arg({"$x": [["money"], 1]}),
    "$x by a built-in tag": arg({"$x": ["tuple", []]}),
    "$x that its converter refuses": arg({"$x": ["money", SECRET]}),
}


class Text(str):
    pass


class Sub(dict):  # type: ignore[type-arg]
    pass


def _loop() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def _laughs() -> Any:
    level: list[Any] = ["ha"] * 10
    for _ in range(20):
        level = [level] * 10
    return level


TREES: dict[str, Any] = {
    "tree: a tuple": tree(args=(1,)),
    "tree: a tuple inside": tree(args=[(1,)]),
    "tree: a set": tree(args=[{1}]),
    "tree: bytes": tree(args=[b"a"]),
    "tree: a str subclass": tree(args=[Text("a")]),
    "tree: a dict subclass": tree(args=[Sub()]),
    "tree: a str subclass for the method": tree(method=Text("add")),
    "tree: an int for a key": tree(kwargs={1: 2}),
    "tree: bytes for a key": tree(headers={b"a": 1}),
    "tree: a str subclass for a key": tree(kwargs={Text("a"): 1}),
    "tree: bytes for a field": {**tree(), b"v": 1},
    "tree: null for a field": {**tree(), None: 1},
    "tree: an object": tree(args=[object()]),
    "tree: a class": tree(args=[v.Unopted]),
    "tree: a class for the target": tree(target={"class": v.Unopted}),
    "tree: nan": tree(args=[float("nan")]),
    "tree: inf": tree(at=float("inf")),
    "tree: a huge int": tree(args=[2**63]),
    "tree: a huge int in the headers": tree(headers={"a": -(2**64)}),
    "tree: NUL": tree(args=["\0"]),
    "tree: a surrogate": tree(kwargs={"a": ["\ud800"]}),
    "tree: a surrogate in a key": tree(headers={"\ud800": 1}),
    "tree: a cycle": tree(args=_loop()),
    "tree: a cycle in the headers": tree(headers={"a": _loop()}),
    "tree: a billion laughs": tree(args=_laughs()),
    "tree: too deep": tree(args=[json.loads("[" * 31 + "]" * 31)]),
    "tree: too many": tree(args=[[0] * 100_001]),
    "tree: too long": tree(args=["x" * 1_048_577]),
    "tree: too long in all": tree(args=[["x" * 1_000_000] * 2]),
    "tree: empty": {},
    "tree: v is true": tree(v=True),
}

CORPUS = {**BYTES, **FIELDS, **TARGETS, **VALUES, **TREES}


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CORPUS) == sum(map(len, (BYTES, FIELDS, TARGETS, VALUES, TREES)))
    assert len(CORPUS) >= 150


@pytest.mark.parametrize("hostile", CORPUS.values(), ids=[name.encode("ascii", "replace").decode() for name in CORPUS])
def test_a_hostile_wire_is_refused_imports_nothing_and_runs_nothing(hostile: Any) -> None:  # K58, R1-R8, R16-R21
    loaded = set(sys.modules)
    start = time.perf_counter()
    with pytest.raises(PerformError) as caught:
        perform_like(hostile)
    assert time.perf_counter() - start < 30  # not a figure: it ends, and is not quadratic
    assert set(sys.modules) == loaded
    assert v.CANARY == []
    assert SECRET not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - FOUND_LATER))
def test_a_wrong_field_is_found_before_anything_is_looked_up(name: str) -> None:
    with pytest.raises(DecodeError):
        make_codec().read(FIELDS[name])


@pytest.mark.parametrize(
    ("hostile", "hint"),
    [
        (b'{"a":' + b"[" * 100_000, "nests deeper"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"oops}", "nests deeper"),
        (b"{" + b"," * 200_001, "holds more than 100000 values"),
        (b'{"a":' + b"9" * 5000 + b"}", "beyond 64 bits"),
        (b'{"a":{"b":1,"b":2},oops}', "a key twice"),
        (b"{" + b" " * 1_048_576, "longer than 1048576 bytes"),
    ],
)
def test_bounds_are_checked_before_or_while_parsing_not_after(hostile: bytes, hint: str) -> None:  # R3
    with pytest.raises(DecodeError, match=hint):
        make_codec().read(hostile)


def test_bytes_and_trees_are_refused_alike() -> None:  # R1
    assert {type(text) for text in (*FIELDS.values(), *VALUES.values())} == {bytes}
    for name, text in {**FIELDS, **TARGETS, **VALUES}.items():
        with pytest.raises(PerformError):
            perform_like(json.loads(text))
        assert v.CANARY == [], name


# -- controls: the helper lets through what it should, and the traps would spring


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        bytearray(GOOD),
        memoryview(GOOD),
        GOOD.decode(),
        tree(),
        wire(target={"class": "values:Counter"}, method="static"),
        wire(target={"class": "values:Counter"}, method="make"),
        wire(target={"module": "values"}, method="send"),
        wire(target={"built": ["values:Blank", [], {}]}, method="go"),
        wire(target={"service": "mailer"}, method="go"),
        wire(args=["{0.__class__}", "values:Unopted", "os:system", '{"$type": "a"}'], kwargs={"a": {"b": "$type"}}),
        raw(args="[" * 31 + "]" * 31),
        raw(args=r'["\\", "' + "[" * 40 + r'", "\"' + "[" * 40 + '"]'),
        raw(args=r'["\ud83d\ude00", "\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]'),
        arg({"$float": "nan"}),
        arg({"$int": "-0x" + "f" * 4096}),
        arg({"$built": ["values:Counter", [], {}]}),
        arg({"$type": "values:Counter"}),
        arg({"$function": "values:send"}),
        arg({"$dataclass": ["values:Money", {"amount": 1}]}),
        arg({"$x": ["money", {"$tuple": [1]}]}),
    ],
)
def test_a_good_wire_passes(good: Any) -> None:
    method, _, _, _ = perform_like(good)
    assert callable(method.function)


def test_the_canary_is_alive() -> None:
    v.Unopted()
    v.Counter().danger  # noqa: B018 - the property is what is tried
    with pytest.raises(AttributeError):
        v.anything  # noqa: B018
    assert v.CANARY == ["Unopted()", "Counter.danger", "values.anything"]


@pytest.fixture
def packages(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two importable packages, `bakery`, which is allowed, and `bakeryx`, which is not."""
    body = "import values\n\n@values.opted_in\nclass Cart:\n    @staticmethod\n    def go(): pass\n"
    for name in ("bakery", "bakeryx"):
        (tmp_path / f"{name}.py").write_text(f"{body}\nvalues.touch('import {name}')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("bakery", "bakeryx"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("packages")
def test_a_wire_imports_inside_an_allowed_package_and_nowhere_else() -> None:  # R16
    for hostile in (
        wire(target={"class": "bakeryx:Cart"}, method="go"),
        wire(target={"module": "bakeryx"}, method="go"),
        arg({"$type": "bakeryx:Cart"}),
        arg({"$dataclass": ["bakeryx:Cart", {}]}),
    ):
        with pytest.raises(TargetNotFound):
            perform_like(hostile)
    assert v.CANARY == []
    perform_like(wire(target={"class": "bakery:Cart"}, method="go"))
    assert v.CANARY == ["import bakery"]


def test_the_kind_of_refusal_says_what_to_do() -> None:
    for hostile, error in [
        (VALUES["$ref that is down"], TargetUnavailable),
        (TARGETS["a class that has not opted in"], Refused),
        (TARGETS["a service that does not exist"], TargetNotFound),
        (FIELDS["v is newer"], DecodeError),
    ]:
        with pytest.raises(PerformError) as caught:
            perform_like(hostile)
        assert type(caught.value) is error


def test_what_a_parser_says_of_a_secret_is_not_repeated_as_the_cause() -> None:  # R26
    for name in ("$date of nonsense", "$decimal of nonsense", "$uuid of nonsense", "$int of nonsense"):
        with pytest.raises(DecodeError) as caught:
            perform_like(VALUES[name])
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


# -- fuzz: whatever arrives, only errors of ours come out

GOLDEN_WIRES = [path.read_bytes() for path in sorted(WIRES.glob("*.json"))]
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def survive(hostile: Any) -> None:
    """Perform, and let nothing but a PerformError out."""
    with contextlib.suppress(PerformError):
        perform_like(hostile)
    assert v.CANARY == []


@FUZZ
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"{" + tail) | st.text(max_size=100))
def test_random_bytes_end_in_errors_of_ours(hostile: Any) -> None:  # R8
    survive(hostile)


@FUZZ
@given(st.sampled_from(GOLDEN_WIRES), st.randoms(use_true_random=False), st.integers(1, 5))
def test_good_wires_with_changed_bytes_end_in_errors_of_ours(good: bytes, rng: random.Random, changes: int) -> None:
    hostile = bytearray(good)
    for _ in range(changes):
        place = rng.randrange(len(hostile))
        hostile[place : place + rng.choice([0, 1, 1, 1, 9])] = rng.choice(PIECES)
    survive(bytes(hostile))


PIECES = [b"", b"0", b"-", b'"', b"[", b"]", b"{", b"}", b"\\", b"null", b"true", b"$", b"[]", b'{"$type":"os:system"}']
PIECES += [b"\xff", b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"9" * 30, b'"$int"', b'"a":1,', b":", b".", b"__class__"]

LEAF_TAGS = ["$bytes", "$datetime", "$date", "$time", "$timedelta", "$decimal", "$uuid", "$path", "$float", "$int"]
OTHER_TAGS = ["$tuple", "$set", "$frozenset", "$dict", "$range", "$slice", "$complex", "$x"]
NAMING_TAGS = ["$type", "$function", "$built", "$ref", "$service"]
TAGS = st.sampled_from([*LEAF_TAGS, *OTHER_TAGS, *NAMING_TAGS, *NAMED_TAGS])
GOOD_NAMES = [f"values:{name}" for name in ("Money", "Item", "Color", "Point", "Box", "Span", "Open", "Labels")]
FIELD_NAMES = ["amount", "name", "x", "width", "starts_at", "root", "tags"]

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([*CLASS_NAMES[:60], *METHODS, *GOOD_NAMES, "shelf", "money", "mailer", "down", "0x1"]),
)


def _hostile(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from(FIELD_NAMES), inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5) | TAGS, inner, max_size=3),
        st.builds(lambda tag, item: {tag: item}, TAGS, inner),
        st.builds(lambda tag, name, item: {tag: [name, item]}, TAGS, st.sampled_from(CLASS_NAMES), inner),
        st.builds(lambda tag, name, item: {tag: [name, item]}, TAGS, st.sampled_from(GOOD_NAMES), fields),
    )


HOSTILE_TREES = st.recursive(ATOMS, _hostile, max_leaves=10)
KINDS = ["class", "module", "built", "ref", "service", "value", "eval"]
ALL_FIELDS = ["v", "id", "target", "method", "args", "kwargs", "headers", "at", "options", "name"]


@FUZZ
@given(HOSTILE_TREES)
def test_random_arguments_end_in_values_or_errors_of_ours(hostile: Any) -> None:  # R8
    survive(tree(args=[hostile]))


@FUZZ
@given(st.sampled_from(KINDS), HOSTILE_TREES, st.sampled_from(METHODS))
def test_random_targets_end_in_errors_of_ours(kind: str, hostile: Any, method: str) -> None:  # R8
    survive(tree(target={kind: hostile}, method=method))


@FUZZ
@given(st.dictionaries(st.sampled_from(ALL_FIELDS), HOSTILE_TREES, max_size=3))
def test_random_fields_end_in_errors_of_ours(hostile: dict[str, Any]) -> None:  # R8
    survive(tree(**hostile))
    survive(tree(options=hostile))


@FUZZ
@given(HOSTILE_TREES)
def test_random_trees_end_in_errors_of_ours_wherever_they_are_decoded(hostile: Any) -> None:  # R8
    codec = make_codec()
    reads: list[Callable[[Any], Any]] = [codec.read, codec.decode_target, codec.decode_headers]
    for read in (*reads, lambda tree: codec.decode(tree, "result")):
        with contextlib.suppress(PerformError):
            read(hostile)
    assert v.CANARY == []


UNCHECKED = [_loop(), [float("nan")], [2**64], ["\0"], [(1,)], [object()], {1: 2}, json.loads("[" * 40 + "]" * 40)]


@pytest.mark.parametrize("hostile", UNCHECKED)
def test_what_did_not_come_through_read_is_checked_all_the_same(hostile: Any) -> None:
    codec = make_codec()
    for read in (
        lambda: codec.decode(hostile, "result"),
        lambda: codec.decode_arguments([hostile], {}),
        lambda: codec.decode_headers({"a": hostile}),
        lambda: codec.decode_target({"value": hostile}),
    ):
        with pytest.raises(DecodeError):
            read()
