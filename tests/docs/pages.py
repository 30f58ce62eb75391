"""Run as a script: does the Python on one page of the documentation work, block after block?

    python pages.py PAGE FOLDER

The blocks of a page share one module, in the order of the page. A block that names a file, by `title="shop/models.py"`
after the word python or by a first line `# shop/models.py`, is written to that file in FOLDER and imported. A block
whose first line is `# not run: REASON` is left out. At the end, what became of each block is printed as a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REDIS = "redis://localhost:6379"
FENCED = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
FILE_COMMENT = re.compile(r"# ([\w./-]+\.py)$")
NOT_RUN = re.compile(r"# not run: (.+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block of Python: its first line in the page, what it holds, and the file it names, if any."""

    line: int
    code: str
    file: str | None
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    """The Python blocks of a page of Markdown."""
    return [
        block_of(match["info"], match["code"], page.count("\n", 0, match.start("code")) + 1)
        for match in FENCED.finditer(page)
        if match["info"].split()[:1] == ["python"]
    ]


def block_of(info: str, code: str, line: int) -> Block:
    first = code.partition("\n")[0]
    title = TITLE.search(info) or FILE_COMMENT.match(first)
    not_run = NOT_RUN.match(first)
    return Block(line, code, title and title[1], not_run and not_run[1])


def run_page(page: Path) -> dict[int, str]:
    """What became of each block, by its line: "" or a traceback. The first that fails is the last that runs."""
    outcomes: dict[int, str] = {}
    shared = ModuleType("page")
    sys.modules["page"] = shared  # a name under which a worker in this process finds what the page defines
    for block in blocks_of(page.read_text()):
        try:
            run_block(block, page, shared)
        except BaseException:
            outcomes[block.line] = traceback.format_exc()
            break
        outcomes[block.line] = ""
    return outcomes


def run_block(block: Block, page: Path, shared: ModuleType) -> None:
    if block.not_run:
        return
    code = with_real_addresses(block.code)
    if block.file:
        write_and_import(block.file, code)
    else:
        exec(compile("\n" * (block.line - 1) + code, str(page), "exec", dont_inherit=True), vars(shared))


def with_real_addresses(code: str) -> str:
    """The code, with the address that pages use for a Redis server replaced by that of the server of the tests."""
    return code.replace(REDIS, os.environ.get("PAGE_REDIS_URL", REDIS))


def write_and_import(file: str, code: str) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(code)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    importlib.invalidate_caches()
    sys.modules.pop(module, None)  # a page may show a file twice, the second time with more in it
    importlib.import_module(module)


def main(page: str, folder: str) -> None:
    absolute = Path(page).resolve()
    os.chdir(folder)
    sys.path[0] = folder
    print(json.dumps(run_page(absolute)))


if __name__ == "__main__":
    main(*sys.argv[1:])
