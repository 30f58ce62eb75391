"""Is everything that has a name listed where a reader would look for it?

    python tests/docs/test_listed.py --write

prints the table of features again, from what the handlers declare, into the pages that show it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import BackgroundedError, Limits, Options, State, errors, handler, hookspecs, records
from backgrounded.__main__ import main
from backgrounded.calls import OPTION_NAMES
from backgrounded.handler import Feature, Guarantees

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = sorted(ROOT.glob("*/src/**/*.py"))


def on_rabbitmq(**settings: Any) -> dict[str, Any]:
    """An application's own Celery app, with its results in Redis. Nothing is connected."""
    from celery import Celery

    app = Celery("shop", broker="amqp://localhost//", backend="redis://localhost", set_as_current=False)
    app.conf.update(settings)
    return {"app": app}


IN_THE_CORE = ("inline", "memory", "null", "thread")
COLUMNS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    **{name: (name, dict) for name in IN_THE_CORE},
    "sqlite": ("sqlite", dict),
    "rq": ("rq", dict),
    "celery, Redis": ("celery", dict),
    "celery, RabbitMQ": ("celery", on_rabbitmq),
    "dramatiq, Redis": ("dramatiq", lambda: {"url": "redis://localhost:6379/0"}),
    "dramatiq, RabbitMQ": ("dramatiq", lambda: {"url": "amqp://localhost", "store": "redis://localhost:6379/0"}),
    "huey": ("huey", dict),
    "procrastinate": ("procrastinate", lambda: {"url": "postgresql://localhost/shop"}),
}
"""Which handler a column shows, and how it is made."""
HANDLERS = sorted({handler for handler, _ in COLUMNS.values()})
WITH: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "rq": ("priorities=", lambda: {"priorities": {8: "high"}}),
    "celery, RabbitMQ": ("task_queue_max_priority", lambda: on_rabbitmq(task_queue_max_priority=10)),
}
"""What adds features to the handler of a column, and how it is made with it."""

SHOWN = {
    REFERENCE / "features.md": tuple(COLUMNS),
    ROOT / "README.md": tuple(name for name in COLUMNS if name not in IN_THE_CORE),
}
"""The pages that show the table of features, and which columns of it."""
BETWEEN = re.compile(r"(?<=<!-- features -->\n).*?(?=<!-- /features -->)", re.DOTALL)


# -- the table of features


def feature_table(names: Iterable[str]) -> str:
    """What each handler keeps and promises, as a table of Markdown: printed from what the handlers declare."""
    columns = {name: declared_in(name) for name in names}
    words = [str(feature) for feature in Feature] + ["delivery"]
    rows = [["feature", *columns], *([word, *(said[word] for said in columns.values())] for word in words)]
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    head, *body = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["-" * width for width in widths], *body))


def declared_in(column: str) -> dict[str, str]:
    """What one handler keeps, feature by feature: "yes", "no", or under which condition; and its delivery."""
    name, arguments = COLUMNS[column]
    factory = handler_class(name)
    handler = factory(**arguments())
    needs = getattr(handler, "needs", {})
    kept = dict.fromkeys(Feature, "no") | dict.fromkeys(handler.features, "yes")
    kept |= {feature: f"needs {command[command.index('--') :]}" for feature, command in needs.items()}
    if column in WITH:
        setting, arguments = WITH[column]
        kept |= dict.fromkeys(factory(**arguments()).features - handler.features, f"with {setting}")
    return {**{str(feature): said for feature, said in kept.items()}, "delivery": handler.guarantees.delivery}


def handler_class(name: str) -> Any:
    (entry,) = entry_points(group="backgrounded.handlers", name=name)
    return entry.load()


def write_tables() -> None:
    for page, columns in SHOWN.items():
        table = feature_table(columns)
        page.write_text(BETWEEN.sub(lambda _, table=table: table, page.read_text()))


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_the_table_of_features_is_the_one_that_the_handlers_declare(page: Path) -> None:
    shown = BETWEEN.search(page.read_text())
    assert shown is not None
    assert shown[0] == feature_table(SHOWN[page]), f"run: python {Path(__file__).relative_to(ROOT)} --write"


def test_the_table_of_features_has_a_column_for_every_handler_of_ours() -> None:
    declared = {name for file in ROOT.glob("*/pyproject.toml") for name in handlers_in(file.read_text())}
    assert declared == set(HANDLERS)


def handlers_in(project: str) -> list[str]:
    section = re.search(r'^\[project\.entry-points\."backgrounded\.handlers"\]\n(.*?)(?=^\[|\Z)', project, re.M | re.S)
    return [] if section is None else re.findall(r"^(\w+) = ", section[1], re.M)


# -- the lists


def names_of_commands() -> list[str]:
    parts = [line.split()[0] for line in help_of_commands() if re.match(r" {4}\w", line)]
    return sorted(set(parts))


def help_of_commands() -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(["--help"])
    return printed.getvalue().splitlines()


def found_in_sources(pattern: str, *files: str) -> set[str]:
    """What a pattern finds in the sources; in these files alone, where some are named."""
    return {
        name
        for source in SOURCES
        if not files or source.name in files
        for name in re.findall(pattern, source.read_text())
    }


def arguments_of(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "rest")]


def names_of(module: Any) -> list[str]:
    """The public classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def public_members(cls: type) -> list[str]:
    annotated = getattr(cls, "__annotations__", {})
    slots = [name for name in getattr(cls, "__slots__", ()) if name not in annotated]
    return sorted({name for name in (*vars(cls), *annotated, *slots) if not name.startswith("_")})


def error_classes() -> Iterator[type[BackgroundedError]]:
    yield BackgroundedError
    yield from (getattr(errors, name) for name in errors.__all__ if name != "BackgroundedError")


def code_of(page: str) -> str:
    """All that is set as code on a page of Markdown: blocks and spans."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", fenced.sub("", page))
    return "\n".join([*fenced.findall(page), *spans])


LISTS: dict[str, tuple[str, Iterable[str]]] = {
    "public names": ("names.md", backgrounded.__all__),
    "names of handler": ("names.md", names_of(handler)),
    "names of records": ("names.md", names_of(records)),
    "members of Job": ("names.md", public_members(backgrounded.Job)),
    "members of CurrentJob": ("names.md", public_members(backgrounded.CurrentJob)),
    "members of Call": ("names.md", public_members(backgrounded.Call)),
    "states": ("names.md", [str(state) for state in State]),
    "options": ("options.md", OPTION_NAMES),
    "words of Retry": ("options.md", arguments_of(backgrounded.Retry)),
    "words of Unique": ("options.md", arguments_of(backgrounded.Unique)),
    "features": ("features.md", [str(feature) for feature in Feature]),
    "errors": ("errors.md", [error.__name__ for error in error_classes()]),
    "codes of errors": ("errors.md", [error.code for error in error_classes()]),
    "hooks": ("hooks.md", [name for name in vars(hookspecs) if name.startswith("backgrounded_")]),
    "commands": ("command-line.md", names_of_commands()),
    "handlers": ("handlers.md", [entry.name for entry in entry_points(group="backgrounded.handlers")]),
    "guarantees": ("handlers.md", arguments_of(Guarantees)),
    **{
        f"arguments of {name}": ("handlers.md", arguments_of(handler_class(name)))
        for name in HANDLERS
        if arguments_of(handler_class(name))
    },
    "variables of the environment": ("configuration.md", found_in_sources(r"\bBACKGROUNDED_[A-Z_]+\b")),
    "arguments of configure": ("configuration.md", arguments_of(backgrounded.configure)),
    "arguments of using": ("configuration.md", arguments_of(backgrounded.using)),
    "limits": ("wire.md", arguments_of(Limits)),
    "tags": ("wire.md", found_in_sources(r'"(\$[a-z]+)"', "codec.py")),
    "extra keys of log records": (
        "logging.md",
        found_in_sources(r'"(job_\w+|wire_bytes)": ', "_runtime.py", "codec.py"),
    ),
}


@pytest.mark.parametrize("what", LISTS)
def test_everything_with_a_name_is_on_its_page_of_the_reference(what: str) -> None:
    page, names = LISTS[what]
    code = code_of((REFERENCE / page).read_text())
    missing = sorted(name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code))
    assert list(names), f"found no {what}: this test looks in the wrong place"
    assert not missing, f"docs/reference/{page} does not list these {what}: {', '.join(missing)}"


def test_the_page_of_promises_has_a_row_for_each_and_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "what-we-promise.md").read_text()
    assert re.findall(r"^\| (P\d+) ", page, re.MULTILINE) == [f"P{number}" for number in range(1, 21)]
    missing = [path for path in re.findall(r"`(tests/[\w./]+)`", page) if not (ROOT / path).exists()]
    assert not missing


def test_every_option_can_be_given() -> None:
    assert set(OPTION_NAMES) == set(arguments_of(Options))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    write_tables()
