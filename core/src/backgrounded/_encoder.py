"""How does a value become JSON, at the call? What could not come home equal is refused, with its path."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Flag
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ._values import ARGS_METHOD, FLOAT, INT, STANDARD, CannotTravel, Leaf, Shape, holds, is_blank, plan_of, type_name
from ._wire import INT_BOUND, PLAIN, VALUE_LEVEL, Place, is_clean, render
from .calls import encode_json
from .errors import CallError, EncodeError, NotAllowed
from .references import name_of

if TYPE_CHECKING:
    from .codec import Codec, Converter

_INERT: Final = frozenset({type(None), bool})


def bound_of(tree: Any) -> int:
    """An upper bound of the bytes of a JSON-safe tree."""
    if isinstance(tree, str):
        return _NODE_BYTES + _CHARACTER_BYTES * len(tree)
    if isinstance(tree, dict):
        return _NODE_BYTES + sum(bound_of(key) + bound_of(item) for key, item in tree.items())
    if isinstance(tree, (list, tuple)):
        return _NODE_BYTES + sum(map(bound_of, tree))
    return _NODE_BYTES


_NODE_BYTES: Final = 28  # the longest float has 24 characters; a comma, a colon, two quotes or brackets
_CHARACTER_BYTES: Final = 6  # "\u0001"


class Encoder:
    """Encodes one call. `size` bounds from above the bytes that its trees take, `nodes` counts their JSON values."""

    def __init__(self, codec: Codec, verify: bool = True) -> None:
        self.codec = codec
        self.names = codec.names
        self.limits = codec.limits
        self.verify = verify
        self.size = 0
        self.nodes = 0

    def arguments(
        self, args: Iterable[Any], kwargs: Mapping[str, Any], args_path: Place, kwargs_path: Place, depth: int
    ) -> tuple[list[Any], dict[str, Any]]:
        """Trees of a call's arguments, standing at level `depth`."""
        args = tuple(args)
        if len(args) + len(kwargs) > self.limits.arguments:
            self._fail(args_path, f"more than {self.limits.arguments} arguments")
        for name in kwargs:
            if type(name) is not str or not name.isidentifier():
                self._fail(kwargs_path, "the names of keyword arguments must be identifiers")
        return self._items(args, args_path, depth), self._members(kwargs, kwargs_path, depth)

    def encode(self, value: Any, path: Place, depth: int) -> Any:
        """The tree of a value whose JSON begins at level `depth`."""
        kind = type(value)
        if kind in _INERT:
            return value
        if kind is str:
            return self._text(value, path)
        if kind is int:
            return value if -INT_BOUND <= value < INT_BOUND else self._leaf(INT, value, path, depth)
        if kind is float:
            return value if math.isfinite(value) else self._leaf(FLOAT, value, path, depth)
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
        if (reference := self._reference(obj, path, VALUE_LEVEL)) is not None:
            return {"ref": reference}
        if holds(type(obj), ARGS_METHOD):
            return {"built": self._built(obj, path, VALUE_LEVEL)}
        if is_blank(obj):
            return {"built": [self._name(type(obj), path), [], {}]}
        return {"value": self._target_value(obj, path)}

    def _target_value(self, obj: Any, path: Place) -> Any:
        kind: Any = type(obj)
        by_value = kind in PLAIN or kind in self.codec._by_type or kind in _CONTAINERS or plan_of(kind) is not None
        if by_value:
            return self.encode(obj, path, VALUE_LEVEL)
        name = type_name(kind)
        self._fail(
            path,
            f"a {name} cannot be found or built again in a worker. Define {ARGS_METHOD}(self) on its class, which "
            f"returns the (args, kwargs) to build it from; or register_service(name, obj) for one long-lived object; "
            f"or add_locator(...) for objects that a store knows by key; or add_converter({kind.__name__}, ...).",
        )

    def _other(self, value: Any, path: Place, depth: int) -> Any:
        """Everything that is not plain JSON, the most explicit first."""
        kind: Any = type(value)
        converter = self.codec._by_type.get(kind)
        if converter is not None:
            return self._custom(converter, value, path, depth)
        write = _CONTAINERS.get(kind)
        if write is not None:
            return write(self, value, path, depth)
        plan = plan_of(kind)
        if isinstance(plan, Leaf):
            return self._leaf(plan, value, path, depth)
        return self._object(plan, value, path, depth)

    def _object(self, shape: Shape | None, value: Any, path: Place, depth: int) -> Any:
        if (service := self._service(value)) is not None:
            return self._tagged("$service", self._text(service, path), path, depth)
        if (reference := self._reference(value, path, depth + 1)) is not None:
            return self._tagged("$ref", reference, path, depth)
        if holds(type(value), ARGS_METHOD):
            return self._admitted_built(value, path, depth)
        if shape is not None:
            return self._shaped(shape, value, path, depth)
        if issubclass(type(value), type):
            return self._class(value, path, depth)
        if type(value) is FunctionType:
            return self._function(value, path, depth)
        self._refuse(type(value), path)

    # -- plain JSON

    def _text(self, text: str, path: Place) -> str:
        if len(text) > self.limits.string:
            self._fail(path, f"the string is longer than {self.limits.string} characters")
        if not is_clean(text):
            self._fail(path, "the string holds a NUL character or a lone surrogate, which databases and UTF-8 refuse")
        self.size += _CHARACTER_BYTES * len(text)
        return text

    def _key(self, key: str, path: Place) -> str:
        if len(key) > self.limits.key:
            self._fail(path, f"a key is longer than {self.limits.key} characters")
        if not is_clean(key):
            self._fail(path, "a key holds a NUL character or a lone surrogate, which databases and UTF-8 refuse")
        self.size += _CHARACTER_BYTES * len(key)
        return key

    def _enter(self, count: int, path: Place, depth: int) -> None:
        """Begin a JSON array or object of `count` members at level `depth`."""
        if depth > self.limits.depth:
            self._fail(path, f"nested deeper than {self.limits.depth} levels of JSON, or it contains itself")
        self.nodes += count
        self.size += _NODE_BYTES * (count + 1)
        if self.nodes > self.limits.nodes:
            self._fail(path, f"with this, it holds more than {self.limits.nodes} values in all")

    def _items(self, items: Any, path: Place, depth: int) -> list[Any]:
        self._enter(len(items), path, depth)
        return [
            item if type(item) in _INERT else self.encode(item, (path, "[{!r}]", index), depth + 1)
            for index, item in enumerate(items)
        ]

    def _members(self, items: Mapping[str, Any], path: Place, depth: int, template: str = "[{!r}]") -> dict[str, Any]:
        self._enter(len(items), path, depth)
        return {
            self._key(key, path): self.encode(item, (path, template, key), depth + 1) for key, item in items.items()
        }

    def _mapping(self, value: dict[Any, Any], path: Place, depth: int) -> dict[str, Any]:
        if all(type(key) is str for key in value) and not looks_tagged(value):
            return self._members(value, path, depth)
        self._enter(1 + len(value), path, depth + 1)
        pairs = [self._pair(key, item, path, depth + 2) for key, item in value.items()]
        return self._tagged("$dict", pairs, path, depth)

    def _pair(self, key: Any, item: Any, path: Place, depth: int) -> list[Any]:
        self._enter(2, path, depth)
        place = key if type(key) is str else type_name(type(key))
        return [
            self.encode(key, (path, " (a key, {})", type_name(type(key))), depth + 1),
            self.encode(item, (path, "[{!r}]" if type(key) is str else "[<{}>]", place), depth + 1),
        ]

    # -- values with a tag

    def _tagged(self, tag: str, payload: Any, path: Place, depth: int) -> dict[str, Any]:
        self._enter(1, path, depth)
        return {tag: payload}

    def _leaf(self, leaf: Leaf, value: Any, path: Place, depth: int) -> dict[str, Any]:
        payload = self._try(path, leaf.write, value)
        parts = payload if type(payload) is list else [payload]
        if parts is payload:
            self._enter(len(parts), path, depth + 1)
        for part in parts:
            if type(part) is str:
                self._text(part, path)
        return self._tagged(leaf.tag, payload, path, depth)

    def _tuple(self, value: tuple[Any, ...], path: Place, depth: int) -> dict[str, Any]:
        return self._tagged("$tuple", self._items(value, path, depth + 1), path, depth)

    def _set(self, value: Any, path: Place, depth: int) -> dict[str, Any]:
        self._enter(len(value), path, depth + 1)
        trees = [self.encode(item, (path, " (an element, {})", type_name(type(item))), depth + 2) for item in value]
        return self._tagged("$" + type(value).__name__, sorted(trees, key=encode_json), path, depth)

    def _range(self, value: Any, path: Place, depth: int) -> dict[str, Any]:
        parts = [value.start, value.stop, value.step]
        return self._tagged("$" + type(value).__name__, self._items(parts, path, depth + 1), path, depth)

    def _complex(self, value: complex, path: Place, depth: int) -> dict[str, Any]:
        return self._tagged("$complex", self._items([value.real, value.imag], path, depth + 1), path, depth)

    def _custom(self, converter: Converter, value: Any, path: Place, depth: int) -> dict[str, Any]:
        converted = self._ask(path, f"the converter {converter.tag!r}", converter.encode, value)
        self._enter(2, path, depth + 1)
        return self._tagged("$x", [converter.tag, self.encode(converted, path, depth + 2)], path, depth)

    def _shaped(self, shape: Shape, value: Any, path: Place, depth: int) -> dict[str, Any]:
        cls = type(value)
        if shape.problem:
            self._fail(path, f"a {type_name(cls)} would not come home equal: {shape.problem}. {_WAYS_OUT}")
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

    def _member(self, value: Any, path: Place, depth: int) -> Any:
        if type(value).__members__.get(value._name_) is value:
            return self._text(value._name_, path)
        if isinstance(value, Flag) and type(value._value_) is int:
            return self.encode(value._value_, path, depth)
        self._fail(path, f"it is not a member of {type_name(type(value))} by name")

    def _verify(
        self, shape: Shape, value: Any, taken: Any, unset: list[str], payload: Any, path: Place, depth: int
    ) -> None:
        """Build the value as a worker will, and compare: its class has code that might change it."""
        cls = type(value)
        copies = {name: _copied(item) for name, item in taken.items()}
        twin = self._ask(path, f"building a {type_name(cls)} again from its fields", shape.build, cls, copies, unset)
        again = Encoder(self.codec, verify=False)._shaped(shape, twin, path, depth)
        if type(twin) is not cls or encode_json(again[shape.tag]) != encode_json(payload):
            self._fail(path, f"a {type_name(cls)} would not come home equal: its class changes its fields. {_WAYS_OUT}")

    # -- values by name

    def _name(self, cls: Any, path: Place) -> str:
        name = name_of(cls, render(path))
        if not all(part.isidentifier() for part in name.replace(":", ".").split(".")):
            self._fail(path, f"{name} is not a name that a worker can look up (a generic's parameters, perhaps)")
        return self._text(name, path)

    def _module(self, module: ModuleType, path: Place) -> str:
        name = module.__name__
        if name == "__main__":
            self._fail(path, "the program itself is no module that a worker can import. Move the function to a module.")
        if sys.modules.get(name) is not module or not all(part.isidentifier() for part in name.split(".")):
            self._fail(path, f"the module {name} is not loaded under its own name: no worker could find it")
        return self._text(name, path)

    def _class(self, cls: type, path: Place, depth: int) -> dict[str, Any]:
        name = self._name(cls, path)
        self._admit(cls, path)
        return self._tagged("$type", name, path, depth)

    def _admit(self, cls: type, path: Place) -> None:
        if not self.names.admits(cls):
            raise NotAllowed(
                type_name(cls),
                f"at {render(path)}: the class has not opted in. Give it the Backgrounded mixin or @backgroundable, "
                f"or configure(..., allow=[{cls.__module__!r}]).",
            )

    def _function(self, function: FunctionType, path: Place, depth: int) -> dict[str, Any]:
        name = self._name(function, path)
        if "." in function.__qualname__:
            self._fail(path, f"{name} is not a function of a module: only those, and classes, travel by name")
        self.names.method(sys.modules[function.__module__], function.__name__)
        return self._tagged("$function", name, path, depth)

    def _service(self, obj: Any) -> str | None:
        return next((name for name, service in self.names.services.items() if service is obj), None)

    def _reference(self, obj: Any, path: Place, depth: int) -> list[Any] | None:
        for name, locator in self.names.locators.items():
            key = self._ask(path, f"the locator {name!r}", locator.refer, obj)
            if key is not None:
                self._enter(2, path, depth)
                return [self._text(name, path), self.encode(key, (path, " (its key){}", ""), depth + 1)]
        return None

    def _admitted_built(self, value: Any, path: Place, depth: int) -> dict[str, Any]:
        payload = self._built(value, path, depth + 1)
        self._admit(type(value), path)
        return self._tagged("$built", payload, path, depth)

    def _built(self, value: Any, path: Place, depth: int) -> list[Any]:
        name = self._name(type(value), path)
        given = self._ask(path, f"{type_name(type(value))}.{ARGS_METHOD}", getattr(type(value), ARGS_METHOD), value)
        if not _is_arguments(given):
            self._fail(path, f"{type_name(type(value))}.{ARGS_METHOD} must return (args, kwargs): a tuple and a dict")
        self._enter(3, path, depth)
        args, kwargs = given
        return [name, *self.arguments(args, kwargs, (path, ".args{}", ""), (path, ".kwargs{}", ""), depth + 1)]

    # -- what goes wrong

    def _fail(self, path: Place, message: str) -> NoReturn:
        raise EncodeError(render(path), message)

    def _refuse(self, kind: type, path: Place) -> NoReturn:
        name = type_name(kind)
        standard = next((base for base in kind.__mro__[1:] if base in STANDARD), None)
        if standard is not None:
            self._fail(
                path,
                f"a {name} would come home as a plain {standard.__name__}, so it is refused rather than flattened. "
                f"Convert it with {standard.__name__}(...), or add_converter({kind.__name__}, ...).",
            )
        self._fail(path, f"the type {name} cannot travel: it has no converter. {_WAYS_OUT}")

    def _ask(self, path: Place, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call code that is not ours."""
        try:
            return function(*args)
        except CallError:
            raise
        except Exception as error:
            raise EncodeError(render(path), f"{what} raised {type(error).__name__}") from error

    def _try(self, path: Place, function: Callable[[Any], Any], value: Any) -> Any:
        try:
            return function(value)
        except CannotTravel as reason:
            raise EncodeError(render(path), f"the type {type_name(type(value))} cannot travel: {reason}") from None
        except Exception as error:
            raise EncodeError(
                render(path), f"taking a {type_name(type(value))} apart raised {type(error).__name__}"
            ) from error


_WAYS_OUT: Final = (
    "Send plain values or a key in its place; or add_converter(type, encode, decode, tag=...), add_locator(...) for "
    f"what a store knows by key, or define {ARGS_METHOD}(self) on its class."
)
_CONTAINERS: Final[dict[type, Callable[[Encoder, Any, Place, int], Any]]] = {
    tuple: Encoder._tuple,
    set: Encoder._set,
    frozenset: Encoder._set,
    range: Encoder._range,
    slice: Encoder._range,
    complex: Encoder._complex,
}


def looks_tagged(tree: Mapping[Any, Any]) -> bool:
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
