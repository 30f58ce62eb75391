"""Functions of a module: some have opted in, some have not, some only visit."""

from __future__ import annotations

import threading
from math import sqrt
from os.path import join
from typing import Any

from backgrounded import background, backgroundable, current_job, later

from . import diary
from .models import User
from .tools import plain_decorator, wrapping_decorator


@backgroundable
def send_mail(to: str, *, subject: str = "") -> str:
    """Send a letter."""
    return diary.write(f"{to} {subject}".strip())


@backgroundable(queue="slow", priority="low")
def rebuild(year: int = 0) -> list[str]:
    return diary.write([str(year)])


@backgroundable
async def fetch(url: str) -> str:
    return diary.write(url)


@backgroundable
def take(*args: Any, **kwargs: Any) -> None:
    diary.write((args, kwargs))


@backgroundable
def give(value: Any) -> Any:
    return value


@backgroundable
def fail(message: str = "no") -> None:
    raise ValueError(message)


@backgroundable
def nest() -> str:
    job = current_job()
    assert job is not None
    diary.write(job)
    return background(User()).do_stuff(7).id


@backgroundable
def where() -> None:
    diary.write(threading.get_ident())


@wrapping_decorator
@backgroundable
def wrapped_declared() -> str:
    return diary.write("wrapped_declared")


def closed() -> str:
    return diary.write("closed")


@wrapping_decorator
def wrapped() -> str:
    return diary.write("wrapped")


@plain_decorator
def replaced() -> str:
    return diary.write("replaced")


def _private() -> None: ...


nameless = lambda: None  # noqa: E731  # what a lambda is: refused
renamed = closed
VISITORS = (sqrt, join, later)
