"""What the application has always had, and who may run in the background."""

from __future__ import annotations

import asyncio
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

    async def meet(self, all_of_them: int) -> str:
        """Wait until so many have begun."""
        self.note("meet")
        while sum(line.startswith("meet ") for line in Path(self.book).read_text().splitlines()) < all_of_them:
            await asyncio.sleep(0.01)
        return "met"

    def fail(self) -> None:
        self.note("try")
        raise LookupError("no such account")
