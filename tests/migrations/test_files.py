"""A file is read whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import MigrationError
from harness.migrations.hashing import files, watched


class Writer:
    """Appends to a file right after each of the first ``times`` reads of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        self.reads = 0
        real = Path.read_bytes

        def read_bytes(path: Path) -> bytes:
            self.reads += 1
            data = real(path)
            if self.left:
                self.left -= 1
                with path.open("a") as stream:
                    stream.write("SELECT 2;\n")
            return data

        monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_a_file_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.sql"
    path.write_text("SELECT 1;\n")
    writer = Writer(monkeypatch, 1)
    assert files.read_bytes(path, source="sql:x", shown="1.sql") == b"SELECT 1;\nSELECT 2;\n"
    assert writer.reads == 2


def test_a_file_that_never_rests_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.sql"
    path.write_text("SELECT 1;\n")
    Writer(monkeypatch, 99)
    with pytest.raises(MigrationError, match="changed each of the 3 times") as caught:
        files.read_bytes(path, source="sql:x", shown="1.sql")
    assert (caught.value.source, caught.value.step) == ("sql:x", "1.sql")


def test_parts_have_borders() -> None:
    assert files.digest(["ab", "c"]) != files.digest(["a", "bc"])
    assert files.digest(["ab", b"c"]) == files.digest([b"ab", "c"])


def test_files_above_the_root_are_named_from_it(tmp_path: Path) -> None:
    """Two checkouts of one repository, in folders of their own, must make the same fingerprint."""
    found = []
    for name in ("one", "another/deeper"):
        root = tmp_path / name / "project"
        root.mkdir(parents=True)
        beside = root.parent / "shared" / "models.py"
        beside.parent.mkdir()
        beside.write_text("x = 1")
        found.append(watched.hash_files([beside, root / "missing.py"], root, source="python:x:y"))
    assert found[0] == found[1]
    assert found[0][0] == "../shared/models.py"
