"""Files for dotenv in a project that set what a run sets: a loader that overrides leads the tests to another database.

Most loaders leave alone what is set (dotenv, Node's ``--env-file``, docker compose); ``source .env``, ``override: true`` and some frameworks do not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from harness.config.drivers import SCHEME
from harness.config.run_variables import URL

FILES = (".env", ".env.local", ".env.test", ".env.test.local", ".env.development", ".env.development.local")
"""What loaders look for, in the order of their documentations."""

EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "example.env", "sample.env")
"""What a project shows of them, without secrets."""

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


@dataclass(frozen=True)
class Setting:
    """One line that sets a variable.

    Attributes:
        line: from 1.
    """

    file: Path
    line: int
    variable: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line} sets {self.variable}"


def settings(root: Path, variables: Collection[str]) -> list[Setting]:
    """Lines of a project's files that set one of the variables; of each file the first. Values are not kept: they may be secret."""
    found = []
    for name in FILES:
        try:
            lines = (root / name).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        if any(line.startswith(f"{URL}=") for line in lines):
            # `pg-harness serve --env-file` wrote it.
            continue
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            # What only repeats the variable leads nowhere else.
            if (
                match
                and match[1] in variables
                and f"${{{match[1]}" not in match[2]
                and f"${match[1]}" not in match[2]
            ):
                found.append(Setting(root / name, number, match[1]))
                break
    return found


def drivers(folder: Path) -> list[tuple[Setting, str]]:
    """Lines of a folder's files, and of its examples for them, that hold a URL of PostgreSQL, each with SQLAlchemy's name of
    its driver; empty: it names none. Values are not kept.
    """
    found = []
    for name in (*FILES, *EXAMPLES):
        try:
            lines = (folder / name).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            match = _LINE.fullmatch(line)
            if match and (url := re.match(r"[\"']?" + SCHEME, match[2])):
                found.append((Setting(folder / name, number, match[1]), url[1] or ""))
    return found
