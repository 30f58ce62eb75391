"""Who imports whom? Imports go one way, adapters use public names, and `import backgrounded` stays light."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "src"

# A module imports from the rows above its own; `handlers` is a package, whose modules share one row.
ORDER = [
    {"errors"},
    {"calls"},
    {"references"},
    {"_wire"},
    {"_values"},
    {"_encoder"},
    {"_decoder"},
    {"codec"},
    {"handler", "_redis"},
    {"records"},
    {"hookspecs"},
    {"_configuration"},
    {"_runtime"},
    {"alarm"},
    {"jobs", "handlers"},
    {"_proxy"},
    {"__init__"},
    {"testing"},
    {"_demo", "_doctor", "_new_adapter"},
    {"__main__"},
]
ROWS = {module: row for row, modules in enumerate(ORDER) for module in modules}

PUBLIC_TO_ADAPTERS = {
    "backgrounded",
    "backgrounded.alarm",
    "backgrounded.errors",
    "backgrounded.handler",
    "backgrounded.records",
    "backgrounded.testing",
}
HEAVY = {
    *("celery", "dramatiq", "huey", "redis", "rq", "valkey"),
    *("asyncio", "importlib.metadata", "importlib_metadata", "pluggy", "pytest"),
}

MODULES = sorted(CORE.rglob("*.py"))
ADAPTER_MODULES = sorted(ROOT.glob("backgrounded-*/src/**/*.py"))


def name_of(path: Path) -> str:
    """The importable name of a source file: "backgrounded.handlers.memory"."""
    parts = path.parts[path.parts.index("src") + 1 :]
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def part_of(module: str) -> str:
    """The word in ORDER for a module of the core."""
    return [*module.split("."), "__init__"][1]


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """All (module, name) that a file imports, also in its functions, but not under TYPE_CHECKING.

    `import a.b` is ("a.b", None), and `from a import b` is ("a", "b"), or ("a.b", None) where b is a module of ours.
    """
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*ancestors, module]).rstrip(".")
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield (submodule, None) if is_module(submodule, path) else (module, alias.name)


def is_module(name: str, importer: Path) -> bool:
    sources = {CORE, Path(*importer.parts[: importer.parts.index("src") + 1])}
    bases = [source.joinpath(*name.split(".")) for source in sources]
    return any(base.is_dir() or base.with_suffix(".py").is_file() for base in bases)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


def public_names_of(module: str) -> set[str]:
    found = importlib.import_module(module)
    return set(getattr(found, "__all__", None) or [name for name in vars(found) if not name.startswith("_")])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_of_the_core_imports_only_what_stands_before_it(path: Path) -> None:
    own = part_of(name_of(path))
    assert own in ROWS, f"{own} has no place in ORDER yet"
    imported = {module for module, _ in imports_of(path) if module.split(".")[0] == "backgrounded"}
    late = {m for m in imported if part_of(m) != own and ROWS.get(part_of(m), len(ROWS)) >= ROWS[own]}
    assert not late, f"{own} comes before {sorted(late)}"


@pytest.mark.parametrize("path", ADAPTER_MODULES, ids=name_of)
def test_an_adapter_imports_only_public_names_of_the_core_and_no_other_adapter(path: Path) -> None:
    own = name_of(path).split(".")[0]
    for module, name in imports_of(path):
        top = module.split(".")[0]
        assert top == own or not top.startswith("backgrounded_"), f"{module} is another adapter"
        if top == "backgrounded":
            assert module in PUBLIC_TO_ADAPTERS, f"{module} is not public"
            assert name is None or name in public_names_of(module), f"{module}.{name} is not public"


def test_importing_the_core_loads_no_engine_and_nothing_heavy() -> None:
    # -S: no site-packages, so that nothing but the core and the standard library can be found at all.
    script = "import json, sys; sys.path.insert(0, sys.argv[1]); import backgrounded; print(json.dumps([*sys.modules]))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", script, CORE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert HEAVY.isdisjoint(json.loads(run.stdout))
