"""How does a value become JSON, and how does JSON from a stranger become a value?

Plain JSON stays plain. Everything else is an object with exactly one key, a tag that starts with "$":
`{"$tuple": [1, 2]}`. A user's dict that would look like one, or has keys that are no strings, is written as pairs,
`{"$dict": [[key, value], ...]}`. Strings are never interpreted. What comes home is equal in value and in type; what
could not is refused at the call.

A wire is data from a stranger: it is bounded and checked as a whole before anything in it is looked up, nothing in it
is evaluated, and whatever is wrong with it ends in a `PerformError` that quotes none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._decoder import READERS, Decoder
from ._encoder import Encoder, bound_of
from ._values import ARGS_METHOD
from ._wire import (
    FIELD_LEVEL,
    PLAIN,
    VALUE_LEVEL,
    VERSION,
    Envelope,
    Limits,
    as_bytes,
    check_arguments,
    check_tree,
    expect,
    parse,
    read_envelope,
)
from .calls import encode_json
from .errors import ConfigurationError, EncodeError
from .references import Names

_TAG: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Converter:
    """How values of exactly `type` travel: `encode` gives something that can, `decode` takes that and gives it back.

    `tag` names the converter in the wire, for ever: a worker decodes what it finds under it.
    """

    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    tag: str


class Codec:
    """Writes values and targets as JSON-safe trees, and reads them back.

    Its converters are its own; what may be named and found is up to `names`. Encoding raises EncodeError, or NotAllowed
    for a class or function that a worker would refuse; decoding raises PerformErrors and nothing else.
    """

    def __init__(self, names: Names, converters: Iterable[Converter] = (), limits: Limits | None = None) -> None:
        self.names = names
        self.limits = limits or Limits()
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
        encoder = Encoder(self)
        args_tree, kwargs_tree = encoder.arguments(args, kwargs, "args", "kwargs", FIELD_LEVEL)
        return args_tree, kwargs_tree, encoder.size

    def encode(self, value: Any, path: str) -> Any:
        """A value (a header, a result) as a tree."""
        return Encoder(self).encode(value, path, VALUE_LEVEL)

    def encode_headers(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """The headers of a call as trees, for `decode_headers`. Raises EncodeError."""
        if any(type(name) is not str for name in headers):
            raise EncodeError("headers", "the names of headers must be strings")
        return Encoder(self)._members(headers, "headers", FIELD_LEVEL)

    def encode_target(self, obj: Any, path: str = "target") -> dict[str, Any]:
        """The reference of a target, with one key: class, module, service, ref, built or value.

        Whether its methods may be called is not asked here. Raises EncodeError.
        """
        return Encoder(self).target(obj, path)

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
        tree = dict(wire) if isinstance(wire, Mapping) else parse(as_bytes(wire, self.limits), self.limits)
        return read_envelope(tree, self.limits)

    def decode_arguments(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call from their trees. Raises PerformErrors."""
        check_arguments(args, kwargs, self.limits)
        return Decoder(self).arguments(args, kwargs, "args", "kwargs")

    def decode(self, tree: Any, path: str) -> Any:
        """A value from its tree. Raises PerformErrors."""
        check_tree([(tree, VALUE_LEVEL)], self.limits, path)
        return Decoder(self).decode(tree, path)

    def decode_headers(self, headers: dict[str, Any]) -> dict[str, Any]:
        """The headers of an envelope from their trees. Raises PerformErrors."""
        expect(type(headers) is dict, "headers", "an object")
        check_tree([(headers, FIELD_LEVEL)], self.limits, "headers")
        return Decoder(self).members(headers, "headers")

    def decode_target(self, ref: Mapping[str, Any], method: str | None = None) -> Any:
        """The class, module or object behind a reference. Raises PerformErrors.

        Whether its methods may be called is left to `Names.admitted`, with one exception: no constructor runs for a
        `method` that may not be called, or, where none is given, for a class that has not opted in.
        """
        tree = dict(ref) if isinstance(ref, Mapping) else ref
        check_tree([(tree, FIELD_LEVEL)], self.limits, "target")
        return Decoder(self, method).target(tree)


def _check_converter(converter: Converter) -> None:
    if not isinstance(converter.type, type) or converter.type in PLAIN:
        raise ConfigurationError(
            "A converter needs a class; None, bool, int, float, str, list and dict are plain JSON."
        )
    if not isinstance(converter.tag, str) or not _TAG.fullmatch(converter.tag):
        raise ConfigurationError(f"A converter's tag must be a word such as 'money', not {converter.tag!r}.")
    if "$" + converter.tag in READERS:
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
    return 64 + sum(bound_of(key) + bound_of(item) for key, item in tree.items() if key not in ("args", "kwargs"))


__all__ = ["ARGS_METHOD", "VERSION", "Codec", "Converter", "Envelope", "Limits"]
