"""Does `backgrounded new-adapter` write a distribution that works as it stands?"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import backgrounded
import pytest
from backgrounded.__main__ import main

from needs import missing

LONG = "a0-really-long-name0"
"""A name of the most letters that one may have: no line becomes too long with it."""


@pytest.fixture(scope="module", params=["river", LONG])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command has written for a name."""
    folder = tmp_path_factory.mktemp("new-adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["new-adapter", request.param]) == 0
    return folder / f"backgrounded-{request.param}"


def run(project: Path, *command: str, **environment: str) -> str:
    """What a tool prints about the project; its complaint, as a failed test, when it fails."""
    if importlib.util.find_spec(command[0]) is None:
        missing(f"{command[0]} looks at what was written: it is in the dependency groups")
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_nothing_is_left_to_fill_in_but_what_says_so(project: Path) -> None:
    files = {path.relative_to(project).as_posix(): path.read_text() for path in project.rglob("*") if path.is_file()}
    package = project.name.replace("-", "_")
    papers = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"}
    modules = {f"src/{package}/{name}" for name in ("__init__.py", "_handler.py", "run.py", "worker.py", "py.typed")}
    assert papers | modules | {"tests/test_contract.py"} <= files.keys()
    assert {name for name, text in files.items() if re.search(r"\$|PACKAGE", text)} == set()
    core = re.search(r'"backgrounded(.+?)"', files["pyproject.toml"].partition("dependencies")[2])
    minor = int(backgrounded.__version__.split(".")[1])
    assert core is not None
    assert core[1] == f">=0.{minor},<0.{minor + 1}"


@pytest.mark.slow
def test_it_is_clean(project: Path) -> None:
    run(project, "ruff", "check", "--no-cache")
    run(project, "ruff", "format", "--diff", "--no-cache")


@pytest.mark.slow
def test_its_types_are_strict(project: Path) -> None:
    core = Path(backgrounded.__file__).parents[1]
    run(project, "mypy", MYPYPATH=str(core))


@pytest.mark.slow
@pytest.mark.worker
def test_its_wheel_passes_its_tests_with_real_workers(project: Path, tmp_path: Path) -> None:
    """The contract, for what it declares, and its own tests, which break it on purpose."""
    here = importlib.util.find_spec("hatchling") is not None
    run(
        project, "build", "--wheel", "--outdir", str(tmp_path), *(["--no-isolation"] if here else ["--installer", "uv"])
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    # From the wheel, not from src: what has not been packed is missing here.
    path = os.pathsep.join([str(tmp_path / "installed"), os.environ.get("PYTHONPATH", "")])
    name = project.name.partition("-")[2]
    chosen = ["tests/test_workers.py"] if name == LONG else []  # once all of it is enough
    told = run(project, "pytest", "-q", "-p", "no:cacheprovider", "-r", "s", *chosen, PYTHONPATH=path)
    assert re.search(r"^3 passed" if chosen else r"^7\d passed, 1\d skipped", told, re.MULTILINE), told
    assert "Ada did 3 things" in run(project, "backgrounded", "demo", "--handler", name, PYTHONPATH=path)
    skipped = set(re.findall(r"does not declare: (\w+)", told))
    assert chosen or skipped == {"priority", "result_ttl", "timeout", "unique"}


# -- what cannot be


@pytest.mark.parametrize("name", ["", "River", "1st", "a_b", "a--b", "a-", "../a", "ä", "a" * 21])
def test_a_name_that_cannot_be_one_is_refused_and_says_what_may(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-adapter", name]) == 1
    assert "at most 20 lower-case letters, digits and single hyphens" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-adapter", "thread"]) == 1
    assert "named 'thread' already" in capsys.readouterr().err


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "backgrounded-river" / "mine"
    mine.parent.mkdir()
    mine.touch()
    assert main(["new-adapter", "river"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    from backgrounded._new_adapter import new_adapter

    (tmp_path / "file").touch()
    with pytest.raises(backgrounded.ConfigurationError, match="cannot be made: Not a directory"):
        new_adapter("river", "0.1.0", tmp_path / "file")


@pytest.mark.parametrize(
    ("version", "wanted"), [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("2.3.4", ">=2.3,<3")]
)
def test_the_range_of_the_core_ends_where_its_promises_may_change(version: str, wanted: str, tmp_path: Path) -> None:
    from backgrounded._new_adapter import new_adapter

    assert f'"backgrounded{wanted}"' in (new_adapter("river", version, tmp_path) / "pyproject.toml").read_text()
