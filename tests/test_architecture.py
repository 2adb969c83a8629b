"""What importing costs, and who reads the environment. Who imports whom is checked by `lint-imports`, see pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import harness

PACKAGE = Path(harness.__file__).parent


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def test_importing_the_package_is_free() -> None:
    """In a fresh interpreter: no vendor is imported and no file outside the package's own is read."""
    code = (
        "import sys, harness\n"
        "heavy = {'docker','testcontainers','psycopg','pytest','filelock','rich','importlib.metadata','tomllib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        # A program inside a run that only asks for resets.
        "harness.current, harness.LeaseChanges, harness.ResetReport\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "harness.Harness, harness.Lease, harness.Dsn, harness.Settings\n"
        "print(sorted({'docker','testcontainers','pytest'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + code],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["[]", "[]", "[]"]


def test_the_environment_is_read_at_the_edges_only() -> None:
    # docker.daemon undoes what testcontainers writes into it.
    edges = (
        "postgres.session",
        "cli",
        "pytest_plugin",
        "control.current",
        "django",
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
