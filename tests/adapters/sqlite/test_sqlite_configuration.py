"""Which file is meant, and what is said when it, or another setting, cannot be?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import backgrounded
import pytest
from backgrounded import ConfigurationError
from backgrounded.testing.probe import Probe
from backgrounded_sqlite import SQLiteHandler
from sqlite_contract import query
from sqlitetools import elsewhere

# -- which file


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///jobs.db", "{here}/jobs.db"),
        ("sqlite:///sub/jobs.db", "{here}/sub/jobs.db"),
        ("sqlite:///../jobs.db", "{here}/../jobs.db"),
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db"),
        ("sqlite:////var/a b/jöbs.db", "/var/a b/jöbs.db"),
        (None, "{here}/jobs.db"),
    ],
    ids=["relative", "in-a-directory", "above", "absolute", "spaces-and-umlauts", "none"],
)
def test_a_url_names_a_file_relative_to_this_directory_or_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    handler = SQLiteHandler(url)
    assert handler.path == Path(expected.format(here=tmp_path))
    assert handler.path.is_absolute()


def test_the_name_alone_is_a_configuration_and_the_file_stays_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backgrounded.configure("sqlite")
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    job = Probe("/nowhere").backgrounded.note()
    assert query(tmp_path / "jobs.db", "SELECT id FROM jobs") == [(job.id,)]
    assert not list(other.iterdir())


@pytest.mark.parametrize(
    ("url", "file", "queue"),
    [
        ("sqlite:///jobs.db", "jobs.db", "default"),
        ("sqlite:///sub.db?queue=mail", "sub.db", "mail"),
        ("sqlite:///{here}/abs.db?queue=a%20b", "abs.db", "a b"),
    ],
    ids=["relative", "queue", "absolute-and-escaped"],
)
def test_the_environment_says_where_and_which_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str, queue: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKGROUNDED_URL", url.format(here=tmp_path))
    Probe("/nowhere").backgrounded.note()
    assert query(tmp_path / file, "SELECT queue FROM jobs") == [(queue,)]


def test_the_environment_is_enough_in_another_process(tmp_path: Path) -> None:
    script = """
    from backgrounded.testing.probe import Probe
    import backgrounded
    print(Probe("/nowhere").backgrounded.note().id, repr(backgrounded.get_handler()))
    """
    id, shown = elsewhere(script, cwd=tmp_path, BACKGROUNDED_URL="sqlite:///here.db").split(maxsplit=1)
    assert query(tmp_path / "here.db", "SELECT id FROM jobs") == [(id,)]
    assert str(tmp_path / "here.db") in shown


def test_two_names_may_be_two_files(tmp_path: Path) -> None:
    for name in ("default", "mail"):
        backgrounded.configure("sqlite", name=name, url=f"sqlite:///{tmp_path}/{name}.db", queue=f"of {name}")
    Probe("/nowhere").backgrounded.note()
    Probe("/nowhere").backgrounded(handler="mail").note()
    assert query(tmp_path / "default.db", "SELECT alias, queue FROM jobs") == [("default", "of default")]
    assert query(tmp_path / "mail.db", "SELECT alias, queue FROM jobs") == [("mail", "of mail")]


@pytest.mark.parametrize(
    ("written", "name"),
    [("100%25.db", "100%.db"), ("what%3F.db", "what?.db"), ("C%23.db", "C#.db"), ("a%2525.db", "a%25.db")],
)
def test_a_url_is_decoded_once_and_the_handler_s_own_names_the_same_file(
    tmp_path: Path, written: str, name: str
) -> None:
    handler = SQLiteHandler(f"sqlite:///{tmp_path}/{written}")
    assert handler.path == tmp_path / name
    assert SQLiteHandler(handler.url).path == handler.path


# -- what cannot be


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///", "name of a file is missing"),
        ("sqlite://", "is not like sqlite:///jobs.db"),
        ("sqlite:///dir/", "name of a file is missing"),
        ("sqlite:///:memory:", 'configure("memory")'),
        ("sqlite://:memory:", "is not like sqlite:///jobs.db"),
        ("sqlite://jobs.db", "is not like sqlite:///jobs.db"),
        ("sqlite://host/jobs.db", "is not like sqlite:///jobs.db"),
        ("sqlite:///jobs.db?mode=ro", "is not like sqlite:///jobs.db"),
        ("sqlite:///jobs.db#part", "is not like sqlite:///jobs.db"),
        ("postgres:///jobs.db", "is not like sqlite:///jobs.db"),
        ("SQLITE:///jobs.db", "is not like sqlite:///jobs.db"),
        ("jobs.db", "is not like sqlite:///jobs.db"),
        ("", "is not like sqlite:///jobs.db"),
        ("sqlite:///jobs\0.db", "name of a file is missing"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value)),
)
def test_a_url_that_names_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as refusal:
        backgrounded.configure("sqlite", url=url)
    assert str(refusal.value).startswith("sqlite: ")
    assert not list(tmp_path.iterdir())


def test_an_unknown_word_in_the_environment_s_url_is_refused_at_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKGROUNDED_URL", "sqlite:///jobs.db?timeout=3")
    with pytest.raises(ConfigurationError, match="timeout=3"):
        Probe("/nowhere").backgrounded.note()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("queue", value) for value in ("", 7, b"q", ["q"])),
        *(("processes", value) for value in (0, -1, 1.0, True, "2")),
        *(("enqueue_timeout", value) for value in (0, -1, "2", True, None, float("inf"), float("nan"))),
    ],
    ids=repr,
)
def test_a_setting_that_cannot_be_is_refused_with_its_name_and_the_value(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^sqlite: {setting}: must be .*{re.escape(repr(value))}"):
        backgrounded.configure("sqlite", **{setting: value})


def test_an_unknown_setting_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"proceses.*It takes.*processes"):
        backgrounded.configure("sqlite", proceses=2)


# -- the handler


def test_the_file_is_not_made_before_the_first_call(tmp_path: Path, probe: Probe) -> None:
    handler = backgrounded.configure("sqlite", url=f"sqlite:///{tmp_path}/jobs.db")
    assert isinstance(handler, SQLiteHandler)
    repr(handler)
    handler.worker_command(["a"])
    assert not list(tmp_path.iterdir())
    assert handler.state("0" * 32) == "unknown"
    assert not list(tmp_path.iterdir())
    probe.backgrounded.note()
    assert handler.path.exists()


def test_a_handler_shows_its_file() -> None:
    assert repr(SQLiteHandler("sqlite:////var/lib/jobs.db")) == "<SQLiteHandler of '/var/lib/jobs.db'>"


def test_a_worker_has_by_default_as_many_processes_as_there_are_cores_and_at_most_four() -> None:
    assert SQLiteHandler().processes == min(4, os.cpu_count() or 1)
    assert SQLiteHandler(processes=7).processes == 7


def test_the_demo_s_file_is_removed_afterwards() -> None:
    with SQLiteHandler.demo() as url:
        handler = SQLiteHandler(url)
        handler._store.file.make()
        assert handler.path.exists()
    assert not handler.path.parent.exists()
