"""What do the ways to the different brokers share: how a hand-over fails, and what a kept job is made of?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from ._message import Message


class NotSent(Exception):
    """A hand-over failed, with the engine's error as its `cause`.

    `sent` are the ids of the messages that the broker has all the same, `unknown` of those it may have; the others it
    certainly has not.
    """

    def __init__(self, cause: BaseException, sent: Sequence[str] = (), unknown: Sequence[str] = ()) -> None:
        self.cause = cause
        self.sent = list(sent)
        self.unknown = list(unknown)
        super().__init__(f"{type(cause).__name__}: {cause}")


_FIELDS: Final = tuple(field.name for field in fields(Message))


def message_of(body: Mapping[str, Any]) -> Message:
    """The job in what `keep` wrote. Raises TypeError for what is none."""
    return Message(**{name: body[name] for name in _FIELDS if name in body})
