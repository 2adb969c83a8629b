"""Which form of a URL an application wants: read from its `.env` files, its settings modules and alembic.ini, for ``init``.

Nothing of the project is imported, and no value is kept: it may be secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.config import dotenv
from harness.config.drivers import SCHEME, template
from harness.migrations.detect import Tree

MOST = 1_000
"""Python files that are looked into, those nearest to the root."""


@dataclass(frozen=True)
class Wanted:
    """A variable, and what it has to be.

    Attributes:
        variable: that the application reads.
        template: for ``[tool.pg-harness.env]``, for instance ``"{asyncpg}"``.
        evidence: where the form was seen, for people: ``".env:2 has postgresql+asyncpg://"``.
    """

    variable: str
    template: str
    evidence: str


# A default of what is read from the environment: os.getenv("X", "postgresql+asyncpg://…"), config("X", default="…").
_DEFAULT = re.compile(r"""\(\s*["'](\w+)["']\s*,\s*(?:default\s*=\s*)?f?["']""" + SCHEME)
# A field of a class of pydantic's settings.
_FIELD = re.compile(
    r"""^[ \t]+(\w+)\s*(?::[^=\n]+)?=\s*(?:Field\(\s*)?(?:default\s*=\s*)?f?["']""" + SCHEME, re.M
)
_PREFIX = re.compile(r"""env_prefix\s*=\s*["'](\w*)["']""")
# It makes the form that it wants by itself: url.replace("postgresql://", …), make_url(…).set(drivername=…).
# Or it needs the plain one: psycopg.connect(url).
_CONVERTS = re.compile(
    r"""(?:replace|removeprefix|startswith|sub)\(\s*r?["']\^?postgres|drivername\s*=|"""
    r"""(?:psycopg2?|asyncpg)\.(?:connect|create_pool)\(|\b(?:Async)?ConnectionPool\("""
)
_INI = re.compile(r"^\s*sqlalchemy\.url\s*=\s*" + SCHEME, re.M)


def wanted(tree: Tree, *below: Path) -> list[Wanted]:
    """What the application's variables have to be, where the plain ``DATABASE_URL`` is not it; the first evidence of each holds.

    Args:
        below: folders besides the root that may have `.env` files.
    """
    found: dict[str, tuple[str, str]] = {}
    for folder in dict.fromkeys((tree.root, *below)):
        for setting, driver in dotenv.drivers(folder):
            shown = f"{tree.shown(setting.file)}:{setting.line}"
            found.setdefault(setting.variable, (driver, shown))
    reads, converts = False, False
    for path in [path for path in tree.files if path.suffix == ".py" and not _is_test(tree, path)][:MOST]:
        text = tree.head(path)
        for variable, driver in _defaults(text):
            found.setdefault(variable, (driver, tree.shown(path)))
        reads = reads or _reads(text)
        converts = converts or _CONVERTS.search(text) is not None
    if "DATABASE_URL" not in found and reads and not converts:
        # Alembic's own file says which driver there is, not which variable: it is DATABASE_URL where somebody reads it.
        for path in tree.files:
            if path.name == "alembic.ini" and (match := _INI.search(tree.head(path))):
                found.setdefault("DATABASE_URL", (match[1] or "", tree.shown(path)))
    return [
        Wanted(variable, template(driver), f"{shown} has postgresql{'+' + driver if driver else ''}://")
        for variable, (driver, shown) in found.items()
        # A plain URL of another name may be any database's: nobody but the user knows.
        if driver and (variable, template(driver)) != ("DATABASE_URL", "{url}")
    ]


def _defaults(text: str) -> Iterator[tuple[str, str]]:
    for match in _DEFAULT.finditer(text):
        yield match[1], match[2] or ""
    if "BaseSettings" in text:
        prefix = found[1] if (found := _PREFIX.search(text)) else ""
        for match in _FIELD.finditer(text):
            yield f"{prefix}{match[1]}".upper(), match[2] or ""


def _reads(text: str) -> bool:
    return bool(re.search(r"""["']DATABASE_URL["']""", text)) or (
        "BaseSettings" in text and re.search(r"^[ \t]+database_url\b", text, re.M | re.I) is not None
    )


def _is_test(tree: Tree, path: Path) -> bool:
    names = path.relative_to(tree.root).parts
    return any(name in ("tests", "test") for name in names[:-1]) or names[-1].startswith(
        ("test_", "conftest")
    )
