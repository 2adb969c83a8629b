"""Imports point one way, and each vendor has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import harness

PACKAGE = Path(harness.__file__).parent

# Rooms, the lowest floor first. A room knows the floors below it; of its own floor it knows itself only.
FLOORS = [
    ["errors"],
    ["dsn"],
    ["postgres", "config"],
    ["servers", "migrations", "reset"],
    ["databases"],
    ["runs"],
    ["sandbox", "pytest_plugin", "bench"],
    ["cli"],
    ["__init__", "__main__"],
]
DOORS = {
    "psycopg": "postgres",
    "docker": "servers.docker",
    "testcontainers": "servers.docker",
    "filelock": "config.project",
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


def floor(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no floor: add it to FLOORS")


def test_imports_point_one_way() -> None:
    wrong = set()
    found = modules()
    for module, tree in found.items():
        room = module.partition(".")[0]
        for imported in imports(tree):
            if not imported.startswith("harness."):
                continue
            target = imported.removeprefix("harness.")
            while target and target not in found:
                target = target.rpartition(".")[0]
            other = target.partition(".")[0]
            if target and other != room and floor(other) >= floor(room):
                wrong.add((module, target))
    assert wrong == set()


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
    # docker.daemon undoes what testcontainers writes into it.
    edges = (
        "postgres.session",
        "cli",
        "pytest_plugin",
        "runs.harness",
        "bench",
        "__main__",
        "migrations.tools.child",
        "servers.docker.daemon",
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
