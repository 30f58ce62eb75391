"""What the application has always had, and who may run in the background."""

from __future__ import annotations

import os
from pathlib import Path

from backgrounded import Backgrounded


class Account(Backgrounded):
    def __init__(self, name: str, book: str) -> None:
        self.name = name
        self.book = book

    def __backgrounded_args__(self) -> tuple[tuple[str, str], dict[str, object]]:
        return (self.name, self.book), {}

    def note(self, what: str) -> str:
        with Path(self.book).open("a") as book:
            book.write(f"{what} {os.getpid()}\n")
        return f"{self.name}: {what}"

    def fail(self) -> None:
        self.note("try")
        raise LookupError("no such account")
