"""The codes have the names of appendix A, and no other file of the product spells one out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from psycopg import errors

from harness import postgres
from harness.postgres import sqlstate

CODES = {name: value for name, value in vars(sqlstate).items() if name.isupper() and isinstance(value, str)}
CLASSES = ("CONNECTION_EXCEPTION", "INTEGRITY_CONSTRAINT_VIOLATION")


@pytest.mark.parametrize("name", sorted(set(CODES) - set(CLASSES)))
def test_named_as_in_the_manual(name: str) -> None:
    expected = errors.lookup(CODES[name]).__name__.removesuffix("_").lower()
    assert name.replace("_", "").lower() == expected


@pytest.mark.parametrize("name", CLASSES)
def test_named_as_the_class(name: str) -> None:
    expected = errors.lookup(CODES[name] + "000").__name__.lower()
    assert name.replace("_", "").lower() == expected


@pytest.mark.parametrize(
    ("code", "lost"), [("08006", True), ("57P01", True), ("57P02", True), ("57P03", False), ("", False)]
)
def test_lost(code: str, lost: bool) -> None:
    assert sqlstate.is_lost(code) is lost


def test_no_literals_elsewhere() -> None:
    root = Path(postgres.__path__[0]).parent
    pattern = re.compile(
        r"[\"'](?:" + "|".join(code for code in CODES.values() if len(code) == 5) + r")[\"']"
    )
    found = {
        f"{path.relative_to(root)}: {match}"
        for path in root.rglob("*.py")
        # errors.py cites one for its readers.
        if path.name not in ("sqlstate.py", "errors.py")
        for match in pattern.findall(path.read_text("utf-8"))
    }
    assert not found
