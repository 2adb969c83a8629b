"""Imports point one way, and each vendor has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import harness

PACKAGE = Path(harness.__file__).parent

# Lower lists know nothing of the higher ones. migrations.spec only parses text into a value of settings.
LAYERS = [
    ["errors", "dsn", "names", "settings", "project", "lock", "migrations.spec", "memory", "telling"],
    ["catalog", "backends"],
    ["server", "starting", "running", "orphans", "hint", "answering", "joining", "made_with"],
    ["migrations", "recipe", "half_built", "building", "template", "eviction", "bake"],
    ["reset", "clones", "lease_reset", "lease", "keep", "keep_dump", "saved", "pristine", "persons"],
    [
        "pool",
        "outgrown",
        "reaper",
        "budget",
        "env",
        "life",
        "config",
        "config_files",
        "config_values",
        "owner",
    ],
    ["recipes", "rooms", "runs", "one_server", "core", "runfile", "attach", "member", "fleet"],
    ["cli", "pytest_plugin", "bench", "__main__", "__init__"],
]
DOORS = {
    "psycopg": "catalog",
    "docker": "backends.docker",
    "testcontainers": "backends.docker",
    "filelock": "lock",
    "pytest": "pytest_plugin",
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> int:
    best = (-1, 0)
    for number, names in enumerate(LAYERS):
        for name in names:
            if (module == name or module.startswith(name + ".")) and len(name) > best[1]:
                best = (number, len(name))
    assert best[0] >= 0, f"{module} has no layer: add it to LAYERS"
    return best[0]


def test_imports_point_one_way() -> None:
    wrong = []
    found = modules()
    for module, tree in found.items():
        for imported in imports(tree):
            if not imported.startswith("harness."):
                continue
            target = imported.removeprefix("harness.")
            while target and target not in found:
                target = target.rpartition(".")[0]
            if target and layer(target) > layer(module):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_each_vendor_has_one_door() -> None:
    wrong = []
    for module, tree in modules().items():
        for imported in imports(tree):
            door = DOORS.get(imported.split(".")[0])
            if door is not None and not module.startswith(door):
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_importing_the_package_is_free() -> None:
    """In a fresh interpreter: no vendor is imported and no file outside the package's own is read."""
    code = (
        "import sys, harness\n"
        "heavy = {'docker','testcontainers','psycopg','pytest','filelock','rich','importlib.metadata','tomllib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "harness.Harness, harness.Lease, harness.Dsn, harness.Settings\n"
        "print(sorted({'docker','testcontainers','pytest'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + code],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_the_environment_is_read_at_the_edges_only() -> None:
    # docker_daemon undoes what testcontainers writes into it.
    edges = (
        "catalog.session",
        "cli",
        "pytest_plugin",
        "runs",
        "bench",
        "__main__",
        "migrations.child",
        "backends.docker_daemon",
    )
    wrong = [
        module
        for module, tree in modules().items()
        if not module.startswith(edges)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name) and node.value.id == "os"
    ]  # fmt: skip
    assert wrong == []
