"""Projects that have a ``harness`` of their own, and projects that are not configured."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fix_backends import INSTALLED
from fix_plugin import Folder

THEIRS = "def answer(): return 42\n"
USES = "import harness\ndef test_theirs(): assert harness.answer() == 42\n"


@pytest.mark.parametrize("layout", ["module", "script", "pythonpath", "tests"])
def test_a_project_with_a_harness_of_its_own(folder: Folder, layout: str) -> None:
    parent = folder.path / ("tests" if layout == "tests" else "")
    (parent / "harness").mkdir(parents=True)
    (parent / "harness" / "__init__.py").write_text(THEIRS)
    (parent / "test_a.py").write_text(USES)
    if layout == "pythonpath":
        (folder.path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    command = folder.command()
    if layout != "module":
        # What the `pytest` script does: the working directory is not in sys.path.
        command = [sys.executable, "-c", "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main())",
                   *command[3:]]  # fmt: skip
    result = subprocess.run(
        command, check=False, cwd=folder.path, env=folder.env(), text=True, capture_output=True, timeout=60
    )
    assert result.returncode == 4, result.stdout + result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    assert len(error) == 1
    assert "Run: pg-harness run -- pytest" in error[0]
    # Inside `pg-harness run` everything is exported already, and their package is theirs.
    inside = {**folder.env(), "PGHARNESS_WORKERS": "1"}
    result = subprocess.run(
        command, check=False, cwd=folder.path, env=inside, text=True, capture_output=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_unconfigured_imports_nothing(tmp_path: object) -> None:
    probe = (
        "import sys, pytest\n"
        "class Look:\n"
        "    def pytest_sessionfinish(self):\n"
        "        found = [m for m in sys.modules if m.split('.')[0] in ('harness', 'psycopg', 'docker', 'filelock')]\n"
        "        assert not found, found\n"
        "        import os; assert 'DATABASE_URL' not in os.environ\n"
        "code = pytest.main(['-q', '-p', 'pg_harness_pytest', '-p', 'no:cacheprovider', 'test_a.py'], plugins=[Look()])\n"
        "sys.exit(code)\n"
    )
    with open(f"{tmp_path}/test_a.py", "w") as file:
        file.write("def test_it(): pass\n")
    with open(f"{tmp_path}/pyproject.toml", "w") as file:
        file.write('[project]\nname = "x"\nversion = "1"\n[dependency-groups]\ndev = ["pg-harness"]\n')
    env = {"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(INSTALLED)}
    result = subprocess.run(
        [sys.executable, "-c", probe],
        check=False,
        cwd=str(tmp_path),
        env=env,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
