"""Does every link between the project's own pages lead somewhere?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/*.md")), *sorted(ROOT.glob("docs/*/**/*.md"))]
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def local_links(page: Path) -> list[str]:
    targets = [match["target"] for match in LINK.finditer(CODE.sub("", page.read_text()))]
    return [target for target in targets if "://" not in target and not target.startswith("mailto:")]


def anchors_of(page: Path) -> set[str]:
    """The names under which a page's headings can be linked: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_page_of_ours_resolves(page: Path) -> None:
    for link in local_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors_of(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", sorted(ROOT.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_a_page_that_is_shown_by_the_package_index_links_to_no_file_of_the_checkout(page: Path) -> None:
    assert local_links(page) == []


@pytest.mark.parametrize("heading", ["## Try it", "## Run the tests"])
def test_each_of_the_two_commands_is_one_line_directly_under_its_heading(heading: str) -> None:
    assert re.search(rf"^{heading}\n\n```sh\n[^\n]+\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
