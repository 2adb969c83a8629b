"""Which lines of which files lead elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import dotenv


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("DATABASE_URL=postgres://dev", 1),
        ("# DATABASE_URL=x\nexport DATABASE_URL = 'postgres://dev'\n", 2),
        ("PORT=1\r\nDATABASE_URL=\r\n", 2),
        ("OWN=x\nDATABASE_URL=y", 1),
        ("NEXT_PUBLIC_DATABASE_URL=x", None),
        ("DATABASE_URL=${DATABASE_URL:-postgres://dev}", None),
        ("DATABASE_URL=$DATABASE_URL", None),
        ("just words", None),
        ("", None),
        ("PGHARNESS_CONTROL_URL=http://127.0.0.1:1\nDATABASE_URL=ours", None),
    ],
)
def test_a_line_that_sets_it_is_found(tmp_path: Path, text: str, line: int | None) -> None:
    (tmp_path / ".env").write_bytes(text.encode())
    found = dotenv.settings(tmp_path, {"DATABASE_URL", "OWN"})
    assert [setting.line for setting in found] == ([] if line is None else [line])


def test_every_loaders_file_is_looked_at_and_no_value_kept(tmp_path: Path) -> None:
    for name in dotenv.FILES:
        (tmp_path / name).write_text("DATABASE_URL=postgres://u:secret@h/d\n")
    (tmp_path / ".env.example").write_text("DATABASE_URL=x\n")
    found = dotenv.settings(tmp_path, {"DATABASE_URL"})
    assert [setting.file.name for setting in found] == list(dotenv.FILES)
    assert "secret" not in repr(found)
    assert str(found[0]) == ".env:1 sets DATABASE_URL"


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    (tmp_path / ".env.test").write_bytes(b"\xff\xfe\x00D\x00")
    assert dotenv.settings(tmp_path, {"DATABASE_URL"}) == []
