"""The pages that are generated from the code say what the code says, and what they show is right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from fix_reference import DOCS, PAGES, attribute_docstrings, filled, options_of, settings_keys

from harness.config.load import KEYS, load
from harness.config.settings import DatabaseSettings, Settings


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_what_the_code_says(page: str) -> None:
    text = (DOCS / page).read_text()
    assert filled(text) == text, f"docs/{page} is stale: scripts/reference"
    # A part that nobody fills would never be stale.
    assert (
        filled(re.sub(r"(<!-- generated: \w+ -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL))
        == text
    )


def test_every_setting_is_there() -> None:
    assert set(settings_keys()) == {*KEYS, "databases"}
    told = {**attribute_docstrings(Settings), **attribute_docstrings(DatabaseSettings)}
    assert [key for key in settings_keys() if not told.get(key)] == []


def test_options_are_found() -> None:
    assert options_of("pg_version") == ["--pg-version", "pytest's --pg-harness-pg-version"]
    assert options_of("keep_failed") == ["pytest's --pg-harness-keep-failed"]
    assert options_of("ttl") == []


def test_the_examples_of_settings_are_read(tmp_path: Path) -> None:
    text = (DOCS / "settings.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == len(settings_keys()) + 1
    for block in blocks:
        read = tomllib.loads(block)
        table = read.get("tool", {}).get("pg-harness", read)
        settings = load({}, start=tmp_path, overrides={k: v for k, v in table.items() if k != "databases"})
        assert set(settings.origins) == set(table) - {"databases"}
        if "databases" in table:
            (tmp_path / "pyproject.toml").write_text(block)
            assert [d.name for d in load({}, start=tmp_path).databases] == ["default", "analytics"]
            (tmp_path / "pyproject.toml").unlink()
