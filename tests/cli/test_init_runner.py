"""``init RUNNER``: one file beside the runner's settings, never over another without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_cli import Project

from harness.cli.runner_files import RUNNERS


@pytest.mark.parametrize("word", RUNNERS)
def test_it_writes_the_files_and_says_where_the_lines_go(
    new_project: Callable[..., Project], word: str
) -> None:
    mine = new_project()
    out = mine.ok("init", word)
    assert RUNNERS[word].lines in out
    assert out.strip().endswith(RUNNERS[word].command)
    for name, make in RUNNERS[word].files.items():
        assert (mine.root / name).read_text() == make()
    # No settings are written by the way.
    assert not (mine.root / "pg-harness.toml").exists()


def test_what_was_changed_is_not_overwritten(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    path = mine.root / "pg-harness.vitest.mjs"
    mine.ok("init", "vitest", "--dry-run")
    assert not path.exists()
    mine.ok("init", "vitest")
    written = path.read_text()
    mine.ok("init", "vitest")
    path.write_text("mine")
    assert "pg-harness.vitest.mjs" in mine.fails(120, "init", "vitest")
    assert path.read_text() == "mine"
    mine.ok("init", "vitest", "--yes")
    assert path.read_text() == written


def test_a_file_that_cannot_be_written(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    (mine.root / "pg-harness.vitest.mjs").mkdir()
    assert "cannot read" in mine.fails(120, "init", "vitest")
    assert "'mocha' is not one of 'vitest'" in mine.fails(120, "init", "mocha")
