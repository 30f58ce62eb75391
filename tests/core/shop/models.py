"""Things one can own: classes that have opted in, in every way there is."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from backgrounded import Backgrounded, Retry, backgroundable, current_job

from . import diary
from .tools import plain_decorator, wrapping_decorator


class User(Backgrounded):
    """Built again from nothing: it has no state."""

    def do_stuff(self, n: int = 1) -> str:
        diary.write(("do_stuff", n))
        return "x" * n

    def take(self, *args: Any, **kwargs: Any) -> None:
        diary.write((args, kwargs))

    def rename(self, first: str, *, title: str = "") -> str:
        return diary.write(f"{title} {first}".strip())

    @classmethod
    def sync(cls, key: int = 0) -> str:
        diary.write((cls.__name__, "sync", key))
        return cls.__name__

    @staticmethod
    def ping(text: str = "pong") -> str:
        return diary.write(text)

    async def fetch(self, url: str) -> str:
        return diary.write(f"fetched {url}")

    def see_myself(self) -> None:
        diary.write(current_job())

    def return_a_live_object(self) -> object:
        return diary.write(object())

    def numbers(self) -> Iterator[int]:
        yield 1

    async def anumbers(self) -> Any:
        yield 1

    def fail(self, message: str = "no") -> None:
        raise ValueError(message)

    def _private(self) -> None: ...

    @property
    def balance(self) -> int:
        raise AssertionError("a property ran")

    class Meta:
        def inner(self) -> None: ...

    alias = do_stuff
    shout = lambda self: None  # noqa: E731  # what a lambda is: refused


class Guest(User):
    """Inherits everything and overrides a little."""

    def rename(self, first: str, *, title: str = "") -> str:
        return diary.write(f"guest {first}")


class Point(Backgrounded):
    """Built again from its constructor's arguments."""

    def __init__(self, x: int, y: int = 0) -> None:
        self.x, self.y = x, y

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.x,), {"y": self.y}

    def total(self, more: int = 0) -> int:
        return diary.write(self.x + self.y + more)


class Awkward(Backgrounded):
    """Its methods have names that a careless proxy would have, too."""

    def exit(self) -> str:
        return diary.write("exit")

    def send(self) -> str:
        return diary.write("send")

    def method(self) -> str:
        return diary.write("method")

    def keys(self) -> str:
        return diary.write("keys")

    def options(self) -> str:
        return diary.write("options")

    def delegate(self) -> str:
        return diary.write("delegate")

    def obj(self) -> str:
        return diary.write("obj")

    def later(self) -> str:
        return diary.write("later")

    def map(self) -> str:
        return diary.write("map")

    def queue(self, queue: str = "") -> str:
        return diary.write(queue)


class Order(Backgrounded):
    """Declares its methods."""

    @backgroundable(queue="mail", retry=Retry(5))
    def send_confirmation(self, to: str = "me") -> str:
        """Tell the customer."""
        return diary.write(f"confirmed {to}")

    @backgroundable
    def plain(self) -> str:
        return diary.write("plain")

    @backgroundable
    @classmethod
    def class_inside(cls, n: int = 0) -> str:
        return diary.write(f"{cls.__name__} class_inside {n}")

    @classmethod
    @backgroundable(queue="outside")
    def class_outside(cls, n: int = 0) -> str:
        return diary.write(f"{cls.__name__} class_outside {n}")

    @backgroundable
    @staticmethod
    def static_inside(n: int = 0) -> str:
        return diary.write(f"static_inside {n}")

    @staticmethod
    @backgroundable(queue="outside")
    def static_outside(n: int = 0) -> str:
        return diary.write(f"static_outside {n}")

    @backgroundable
    async def fetch(self, n: int = 0) -> int:
        return diary.write(n)


class SpecialOrder(Order):
    pass


@backgroundable
class Report:
    """Opted in by the decorator: only what stands in its body."""

    def build(self, year: int = 0) -> str:
        return diary.write(f"built {year}")


class Subreport(Report):
    def extra(self) -> None: ...


class Declaring:
    """Has not opted in as a whole; one method has."""

    @backgroundable
    def opened(self) -> str:
        return diary.write("opened")

    def closed(self) -> None: ...


class Stranger:
    """Has not opted in at all."""

    def work(self) -> str:
        return diary.write("worked")

    @classmethod
    def work_as_class(cls) -> str:
        return diary.write("worked as class")


class Decorated(Backgrounded):
    @wrapping_decorator
    def wrapped(self) -> str:
        return diary.write("wrapped")

    @plain_decorator
    def replaced(self) -> str:
        return diary.write("replaced")

    cached = functools.lru_cache(maxsize=1)(lambda self: 1)
    partial = functools.partialmethod(wrapped)
    length = len


class Meta(type):
    def meta_method(cls) -> None: ...


class WithMeta(Backgrounded, metaclass=Meta):
    def own(self) -> str:
        return diary.write("own")


class Trap(Backgrounded):
    """Whoever evaluates an attribute of it springs it."""

    @property
    def sprung(self) -> Any:
        raise AssertionError("a property ran")

    @property
    def __class__(self) -> Any:
        raise AssertionError("__class__ was asked")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"__getattr__({name!r}) ran")

    def fine(self) -> str:
        return diary.write("fine")


class Builds(Backgrounded):
    """Says when its constructor runs."""

    def __init__(self) -> None:
        diary.write("constructed")

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {}

    def run(self) -> str:
        return "ran"


class ClosedBuilds:
    """The same, and nobody has opted it in."""

    def __init__(self) -> None:
        diary.write("constructed")

    def __backgrounded_args__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {}

    def run(self) -> str:
        return "ran"


@dataclass
class Money:
    amount: int

    def doubled(self) -> int:
        return diary.write(self.amount * 2)
