"""Does every block of Python in the documentation run? One test for each, named by its page and line.

Pages speak of a Redis server at redis://localhost:6379; they get one of their own, at an address of its own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pages import REDIS, Block, blocks_of, run_page
from servers import redis_server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("docs/**/*.md"))]
BLOCKS = [
    pytest.param(page, block, id=f"{page.relative_to(ROOT)}:{block.line}")
    for page in PAGES
    for block in blocks_of(page.read_text())
]
RUNNER = Path(__file__).with_name("pages.py")

Outcomes = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def outcomes_of(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of the blocks of a page. A page runs once, in a process of its own."""

    @functools.cache
    def run(page: Path) -> dict[str, str]:
        with redis_server() if REDIS in page.read_text() else nullcontext(REDIS) as url:
            return run_in_process(page, url, tmp_path_factory.mktemp("page"))

    return run


def run_in_process(page: Path, url: str, folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKGROUNDED_")}
    environment["PAGE_REDIS_URL"] = url
    command = [sys.executable, RUNNER, page, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block_of_the_documentation_runs(page: Path, block: Block, outcomes_of: Outcomes) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    outcome = outcomes_of(page).get(str(block.line), "not reached: a block above it failed")
    assert not outcome, outcome


def test_blocks_share_a_page_write_its_files_and_stop_at_the_first_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="yard/models.py"\nclass Dog: ...\n```\n'
        "```python\nfrom yard.models import Dog\ndog = Dog()\n```\n"
        "```python\n# not run: it would bark\ndog.bark()\n```\n"
        "```sh\nbark\n```\n"
        "```python\n# yard/bark.py\nimport yard.models\n```\n"
        "```python\nassert isinstance(dog, Dog) and __name__ == 'page'\n```\n"
        "```python\ndog.bark()\n```\n"
        "```python\ndog\n```\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    outcomes = run_page(page)
    assert list(outcomes) == [2, 5, 9, 16, 20, 23]
    assert [line for line, outcome in outcomes.items() if outcome] == [23]
    assert "AttributeError" in outcomes[23]
    assert "page.md" in outcomes[23]
