"""What does a user get? Each distribution is built, looked into, and installed from its wheel, apart and together."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from needs import missing

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {
    "backgrounded": "core",
    "backgrounded-celery": "backgrounded-celery",
    "backgrounded-dramatiq": "backgrounded-dramatiq",
    "backgrounded-huey": "backgrounded-huey",
    "backgrounded-procrastinate": "backgrounded-procrastinate",
    "backgrounded-rq": "backgrounded-rq",
    "backgrounded-sqlite": "backgrounded-sqlite",
}
PYTHONS = ["3.10", "3.13"]
ENGINES = {"celery", "dramatiq", "huey", "procrastinate", "psycopg", "redis", "rq"}
URLS = {"procrastinate": "postgresql://localhost/shop"}
"""The engine that has no place of its own to begin with."""
LITTER = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")

each_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)
each_python = pytest.mark.parametrize("python", PYTHONS)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; its complaint, as a failed test, when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of every distribution, and the wheel built from that sdist."""
    for tool in ("build", "pip", "twine", "uv"):
        if importlib.util.find_spec(tool) is None:
            missing(f"{tool} builds and checks the distributions: it is in the dependency group wheels")
    folder = tmp_path_factory.mktemp("dist")
    sources = tmp_path_factory.mktemp("sources")
    shutil.copy(ROOT / ".gitignore", sources)  # hatchling looks for it above what it builds
    for place in DISTRIBUTIONS.values():
        shutil.copytree(ROOT / place, sources / place, ignore=LITTER)
        run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, sources / place)
    return folder


def wheel_of(dist: Path, name: str) -> Path:
    [wheel] = dist.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
    return wheel


def sdist_of(dist: Path, name: str) -> Path:
    [sdist] = dist.glob(f"{name.replace('-', '_')}-[0-9]*.tar.gz")
    return sdist


def metadata_of(dist: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel_of(dist, name)) as wheel:
        [path] = [path for path in wheel.namelist() if path.endswith(".dist-info/METADATA")]
        return message_from_bytes(wheel.read(path))


def sources_of(name: str) -> set[str]:
    """The files of a distribution's package, as paths below `src`."""
    source = ROOT / DISTRIBUTIONS[name] / "src"
    paths = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if not any(part.startswith((".", "__pycache__")) for part in path.parts)}


def test_twine_finds_nothing_to_complain_about(dist: Path) -> None:
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    assert checked.count("PASSED") == 2 * len(DISTRIBUTIONS)


@each_distribution
def test_a_wheel_holds_its_package_and_nothing_else(dist: Path, name: str) -> None:
    with zipfile.ZipFile(wheel_of(dist, name)) as wheel:
        paths = set(wheel.namelist())
    info = {path for path in paths if path.split("/")[0].endswith(".dist-info")}
    assert paths - info == sources_of(name)
    assert f"{name.replace('-', '_')}/py.typed" in paths
    assert {path.partition("/")[2] for path in info} <= {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert "licenses/LICENSE" in {path.partition("/")[2] for path in info}


@each_distribution
def test_an_sdist_holds_what_the_wheel_is_built_from_and_its_papers(dist: Path, name: str) -> None:
    with tarfile.open(sdist_of(dist, name)) as sdist:
        paths = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    papers = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    papers.add(".gitignore")  # hatchling's doing: what it left out of the sdist, it leaves out of the wheel too
    assert paths == papers | {f"src/{path}" for path in sources_of(name)}


@each_distribution
def test_a_distribution_depends_on_its_siblings_by_range(dist: Path, name: str) -> None:
    required = metadata_of(dist, name).get_all("Requires-Dist", [])
    siblings = [requirement for requirement in required if requirement.startswith("backgrounded")]
    assert siblings
    assert not [requirement for requirement in siblings if "==" in requirement.partition(";")[0]]


@each_distribution
def test_the_changelog_opens_with_the_version_that_is_built(dist: Path, name: str) -> None:
    changelog = (ROOT / DISTRIBUTIONS[name] / "CHANGELOG.md").read_text()
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest.split()[1] == metadata_of(dist, name)["Version"]


@each_distribution
def test_every_distribution_carries_the_licence_of_the_project(name: str) -> None:
    assert (ROOT / DISTRIBUTIONS[name] / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@functools.cache
def interpreter(version: str) -> Path | None:
    """A CPython of this version: on PATH, or where pyenv keeps its own."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = shutil.which(f"python{version}")
    candidates = [*([Path(found)] if found else []), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in candidates:  # asked, since what stands on PATH may be a shim for a Python that is not there
        script = "import sys; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([candidate, "-c", script], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:
            return candidate
    return None


class Environment:
    """A fresh virtual environment in which one requirement was installed: pip install REQUIREMENT --find-links DIST."""

    def __init__(self, python: str, requirement: str, dist: Path, folder: Path) -> None:
        found = interpreter(python)
        if found is None:
            missing(f"Python {python} is neither on PATH nor in pyenv")
        run(found, "-m", "venv", "--without-pip", folder)
        self.folder = folder
        self.python = folder / "bin" / "python"
        report = folder / "report.json"
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--report", report]
        run(*pip, requirement, "--find-links", dist)
        installed = json.loads(report.read_text())["install"]
        self.origins = {canonical(item["metadata"]["name"]): item["download_info"]["url"] for item in installed}

    def says(self, *arguments: str) -> str:
        """What this environment's Python prints, away from the checkout."""
        return run(self.python, "-I", *arguments, cwd=self.folder)


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


Installed = Callable[[str, str], Environment]


@pytest.fixture(scope="session")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The environment for a Python and a requirement, made once."""

    @functools.cache
    def install(python: str, requirement: str) -> Environment:
        return Environment(python, requirement, dist, tmp_path_factory.mktemp("venv"))

    return install


@each_python
def test_the_core_installs_alone(installed: Installed, python: str) -> None:
    environment = installed(python, "backgrounded")
    assert environment.origins.keys().isdisjoint(ENGINES | DISTRIBUTIONS.keys() - {"backgrounded"})
    environment.says("-c", "import backgrounded; backgrounded.background")


@each_python
def test_an_installed_core_has_its_command(installed: Installed, python: str) -> None:
    environment = installed(python, "backgrounded")
    assert "demo" in environment.says("-m", "backgrounded", "--help")
    assert "demo" in run(environment.python.with_name("backgrounded"), "--help")


@each_python
@pytest.mark.parametrize("adapter", [name for name in DISTRIBUTIONS if name != "backgrounded"])
@pytest.mark.parametrize("asked_for", ["extra", "adapter"])
def test_the_core_brings_the_adapter_and_the_adapter_the_core(
    installed: Installed, python: str, asked_for: str, adapter: str
) -> None:
    engine = adapter.removeprefix("backgrounded-")
    environment = installed(python, adapter if asked_for == "adapter" else f"backgrounded[{engine}]")
    ours = environment.origins.keys() & DISTRIBUTIONS.keys()
    assert ours == {"backgrounded", adapter}
    assert all(environment.origins[name].startswith("file:") for name in ours), "not what was built here"
    environment.says("-c", f"import backgrounded; backgrounded.configure({engine!r}, url={URLS.get(engine)!r})")
