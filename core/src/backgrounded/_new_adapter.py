"""How does somebody begin an adapter for another engine? `backgrounded new-adapter NAME` writes one that works.

What it writes are the files in `_template`, with the name in the place of the dollars: a whole distribution, on an
engine of its own, a folder of files, that passes the contract as it stands. Lines that say REPLACE are to be the real
engine's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Final

from ._configuration import HANDLERS, entry_points
from .errors import ConfigurationError

TEMPLATES: Final = Path(__file__).with_name("_template")
LONGEST: Final = 20
"""Letters of a name. With more, the lines that hold it would have to be broken."""
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_adapter(name: str, version: str, folder: Path) -> Path:
    """Write the distribution `backgrounded-NAME` into a new folder below `folder`, and return where it is.

    `version` is that of the core it is written for. Raises ConfigurationError for a name that cannot be one, and where
    something of that name is there already: nothing is overwritten.
    """
    words = _words(name, version)
    place = folder / f"backgrounded-{name}"
    try:
        place.mkdir()
    except FileExistsError:
        raise ConfigurationError(f"{place} is there already, and nothing is overwritten. Name another one.") from None
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be made: {error.strerror}.") from error
    for path, template in _templates():
        target = place / path.replace("PACKAGE", words["package"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(template).substitute(words))
    return place


def _words(name: str, version: str) -> dict[str, str]:
    """What stands for the dollars."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigurationError(
            f"{name!r} cannot be the name of an adapter: take at most {LONGEST} lower-case letters, digits and single "
            "hyphens, and a letter first, such as river or google-tasks."
        )
    if name in {entry.name for entry in entry_points(HANDLERS)}:
        raise ConfigurationError(f"A handler is named {name!r} already, and is installed here. Name another one.")
    return {
        "name": name,
        "package": f"backgrounded_{name.replace('-', '_')}",
        "class": "".join(part.capitalize() for part in name.split("-")) + "Handler",
        "range": _range_of(version),
    }


def _range_of(version: str) -> str:
    """The releases in which what an adapter stands on stays: up to the next minor one, after 1.0 the next major one."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor}," + (f"<{major + 1}" if major else f"<0.{minor + 1}")


def _templates() -> Iterator[tuple[str, str]]:
    """The files to write, as paths below the new folder, and what is in them."""
    for file in sorted(TEMPLATES.rglob("*.txt")):
        path = file.relative_to(TEMPLATES).as_posix().removesuffix(".txt")
        yield {"gitignore": ".gitignore"}.get(path, path), file.read_text()
