"""How does JSON become a value again, in the worker? What is looked up must be what the tag says, and be admitted."""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ._encoder import looks_tagged
from ._values import ARGS_METHOD, KINDS, LEAVES, Shape, holds, loses_nothing, plan_of
from ._wire import Place, check_keywords, render
from .errors import DecodeError, PerformError, TargetGone, TargetNotFound, TargetUnavailable

if TYPE_CHECKING:
    from .codec import Codec


class Decoder:
    """Decodes trees that `check_tree` has passed: their types are JSON's, their depth and sizes bounded."""

    def __init__(self, codec: Codec, method: str | None = None) -> None:
        self.codec = codec
        self.names = codec.names
        self.method = method

    def arguments(
        self, args: list[Any], kwargs: dict[str, Any], args_path: Place, kwargs_path: Place
    ) -> tuple[list[Any], dict[str, Any]]:
        return self._items(args, args_path), self.members(kwargs, kwargs_path)

    def decode(self, tree: Any, path: Place) -> Any:
        kind = type(tree)
        if kind is list:
            return self._items(tree, path)
        if kind is not dict:
            return tree
        return self._tagged(tree, path) if looks_tagged(tree) else self.members(tree, path)

    def target(self, tree: Any) -> Any:
        if type(tree) is not dict or len(tree) != 1:
            self._fail("target", "must be an object with exactly one key")
        ((kind, payload),) = tree.items()
        find = TARGETS.get(kind)
        if find is None:
            self._fail("target", "is of no kind that this release knows")
        return find(self, payload, "target")

    def _items(self, items: list[Any], path: Place) -> list[Any]:
        return [self.decode(item, (path, "[{}]", index)) for index, item in enumerate(items)]

    def members(self, items: dict[str, Any], path: Place) -> dict[str, Any]:
        return {key: self.decode(item, (path, "[key {}]", index)) for index, (key, item) in enumerate(items.items())}

    def _tagged(self, tree: dict[str, Any], path: Place) -> Any:
        ((tag, payload),) = tree.items()
        read = READERS.get(tag)
        if read is None:
            self._fail(path, "has a tag that this release does not know")
        return read(self, tag, payload, path)

    # -- readers, one per tag

    def _leaf(self, tag: str, payload: Any, path: Place) -> Any:
        leaf = LEAVES[tag]
        try:
            value = leaf.read(payload)
            if repr(leaf.write(value)) == repr(payload):
                return value
        except Exception as error:  # whatever a parser raises on hostile text; its message would quote the text
            self._fail(path, f"is not the text of a {tag[1:]} ({type(error).__name__})")
        self._fail(path, f"is not the text of a {tag[1:]}")

    def _tuple(self, tag: str, payload: Any, path: Place) -> tuple[Any, ...]:
        return tuple(self._items(self._list(payload, path), path))

    def _set(self, tag: str, payload: Any, path: Place) -> Any:
        items = self._items(self._list(payload, path), path)
        value = self._make(path, "a set of its elements", lambda: set(items) if tag == "$set" else frozenset(items))
        if len(value) != len(items):
            self._fail(path, "has an element twice")
        return value

    def _dict(self, tag: str, payload: Any, path: Place) -> dict[Any, Any]:
        pairs = [self._list(pair, path, 2) for pair in self._list(payload, path)]
        places: list[Place] = [(path, "[key {}]", index) for index in range(len(pairs))]
        items = [(self.decode(pair[0], at), self.decode(pair[1], at)) for pair, at in zip(pairs, places, strict=True)]
        value: dict[Any, Any] = self._make(path, "a dict of its keys", lambda: dict(items))
        if len(value) != len(items):
            self._fail(path, "has a key twice")
        return value

    def _range(self, tag: str, payload: Any, path: Place) -> range:
        parts = self._items(self._list(payload, path, 3), path)
        if any(type(part) is not int for part in parts) or parts[2] == 0:
            self._fail(path, "is not a range")
        return range(*parts)

    def _slice(self, tag: str, payload: Any, path: Place) -> slice:
        return slice(*self._items(self._list(payload, path, 3), path))

    def _complex(self, tag: str, payload: Any, path: Place) -> complex:
        parts = self._items(self._list(payload, path, 2), path)
        if any(type(part) is not float for part in parts):
            self._fail(path, "is not a complex number")
        return complex(*parts)

    def _custom(self, tag: str, payload: Any, path: Place) -> Any:
        name, tree = self._list(payload, path, 2)
        converter = self.codec._by_tag.get(name) if type(name) is str else None
        if converter is None:
            self._fail(path, "needs a converter that is not registered in this worker")
        value = self.decode(tree, path)
        return self._make(path, f"the converter {converter.tag!r}", lambda: converter.decode(value))

    def _enum(self, tag: str, payload: Any, path: Place) -> Any:
        name, tree = self._list(payload, path, 2)
        cls = self._shaped_class(tag, name, path)[0]
        member = self.decode(tree, path)
        if type(member) is str and member in cls.__members__:
            return cls.__members__[member]
        if type(member) is int and issubclass(cls, Flag):
            return self._make(path, "its enum", lambda: cls(member))
        self._fail(path, "names a member that its enum does not have")

    def _shape(self, tag: str, payload: Any, path: Place) -> Any:
        name, trees, unset = self._shape_parts(tag, payload, path)
        cls, shape = self._shaped_class(tag, name, path)
        if shape.problem or not shape.accepts(cls, trees) or not set(unset) <= trees.keys():
            self._fail(path, "does not have the fields of its class in this worker")
        taken = {key: self.decode(tree, (path, " (field {})", n)) for n, (key, tree) in enumerate(trees.items())}
        value = self._make(path, "the constructor of its class", lambda: shape.build(cls, taken, unset))
        if type(value) is not cls:
            self._fail(path, "was built as something else")
        return value

    def _shape_parts(self, tag: str, payload: Any, path: Place) -> tuple[Any, dict[str, Any], list[str]]:
        parts = self._list(payload, path)
        name, trees, unset = parts if tag == "$pydantic" and len(parts) == 3 else (*self._list(parts, path, 2), [])
        if type(trees) is not dict or any(type(item) is not str for item in self._list(unset, path)):
            self._fail(path, "is not a class and its fields")
        return name, trees, unset

    def _shaped_class(self, tag: str, name: Any, path: Place) -> tuple[Any, Shape]:
        cls = self.names.find_class(self._string(name, path))
        plan = self._make(path, "looking at its class", lambda: plan_of(cls))
        if not isinstance(plan, Shape) or plan.tag != tag:
            self._fail(path, f"names a class that is not of the kind {tag[1:]}")
        return cls, plan

    def _class(self, tag: str, payload: Any, path: Place) -> type:
        return self.names.find_admitted_class(self._string(payload, path))

    def _function(self, tag: str, payload: Any, path: Place) -> Any:
        return self.names.find_function(self._string(payload, path))

    def _admitted_built(self, tag: str, payload: Any, path: Place) -> Any:
        cls = self.names.find_admitted_class(self._string(self._list(payload, path, 3)[0], path))
        if not holds(cls, ARGS_METHOD):
            self._fail(path, f"names a class without {ARGS_METHOD}")
        return self._build(cls, payload, path)

    def _build(self, cls: Any, payload: list[Any], path: Place) -> Any:
        _, args, kwargs = payload
        if type(args) is not list or type(kwargs) is not dict:
            self._fail(path, "is not a class and its arguments")
        check_keywords(args, kwargs, self.codec.limits, render(path))
        args, kwargs = self.arguments(args, kwargs, (path, ".args{}", ""), (path, ".kwargs{}", ""))
        return self._make(path, "the constructor of its class", lambda: cls(*args, **kwargs))

    def _reference(self, tag: str, payload: Any, path: Place) -> Any:
        name, tree = self._list(payload, path, 2)
        locator = self.names.locators.get(name) if type(name) is str else None
        if locator is None:
            raise TargetNotFound("The wire needs a locator that is not registered in this worker: add_locator() first.")
        return _find(locator, self.decode(tree, path))

    def _service(self, tag: str, payload: Any, path: Place) -> Any:
        name = self._string(payload, path)
        if name not in self.names.services:
            raise TargetNotFound(
                "The wire needs a service that is not registered in this worker: register_service() first."
            )
        return self.names.services[name]

    # -- targets, one per kind

    def _target_class(self, payload: Any, path: Place) -> type:
        return self.names.find_class(self._string(payload, path))

    def _target_module(self, payload: Any, path: Place) -> ModuleType:
        return self.names.find_module(self._string(payload, path))

    def _target_service(self, payload: Any, path: Place) -> Any:
        return self._service("$service", payload, path)

    def _target_reference(self, payload: Any, path: Place) -> Any:
        return self._reference("$ref", payload, path)

    def _target_built(self, payload: Any, path: Place) -> Any:
        cls = self._buildable_class(self._string(self._list(payload, path, 3)[0], path))
        if not (holds(cls, ARGS_METHOD) or loses_nothing(cls)):
            self._fail(path, f"names a class without {ARGS_METHOD}")
        return self._build(cls, payload, path)

    def _buildable_class(self, name: str) -> Any:
        if self.method is None:
            return self.names.find_admitted_class(name)
        cls = self.names.find_class(name)
        self.names.admitted(cls, self.method)
        return cls

    def _target_value(self, payload: Any, path: Place) -> Any:
        if type(payload) is dict and not _VALUE_IS_REFERENCE.isdisjoint(payload):
            self._fail(path, "is a reference where a value belongs")
        return self.decode(payload, path)

    # -- what goes wrong

    def _fail(self, path: Place, message: str) -> NoReturn:
        raise DecodeError(message, path=render(path)) from None

    def _string(self, payload: Any, path: Place) -> str:
        if type(payload) is not str:
            self._fail(path, "must be a string")
        return payload

    def _list(self, payload: Any, path: Place, length: int | None = None) -> list[Any]:
        if type(payload) is not list or length not in (None, len(payload)):
            self._fail(path, "must be a list" + ("" if length is None else f" of {length}"))
        return payload

    def _make(self, path: Place, what: str, make: Callable[[], Any]) -> Any:
        """Call code that is not ours. The message of what it raises may quote values, and stays in the cause."""
        try:
            return make()
        except PerformError:
            raise
        except Exception as error:
            raise DecodeError(f"{what} raised {type(error).__name__}", path=render(path)) from error


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


READERS: Final[dict[str, Callable[[Decoder, str, Any, Place], Any]]] = {
    **dict.fromkeys(LEAVES, Decoder._leaf),
    "$tuple": Decoder._tuple,
    "$set": Decoder._set,
    "$frozenset": Decoder._set,
    "$dict": Decoder._dict,
    "$range": Decoder._range,
    "$slice": Decoder._slice,
    "$complex": Decoder._complex,
    **dict.fromkeys(KINDS, Decoder._shape),
    "$enum": Decoder._enum,
    "$type": Decoder._class,
    "$function": Decoder._function,
    "$built": Decoder._admitted_built,
    "$ref": Decoder._reference,
    "$service": Decoder._service,
    "$x": Decoder._custom,
}
TARGETS: Final[dict[str, Callable[[Decoder, Any, Place], Any]]] = {
    "class": Decoder._target_class,
    "module": Decoder._target_module,
    "service": Decoder._target_service,
    "ref": Decoder._target_reference,
    "built": Decoder._target_built,
    "value": Decoder._target_value,
}
_VALUE_IS_REFERENCE: Final = frozenset({"$type", "$function", "$built", "$ref", "$service"})
