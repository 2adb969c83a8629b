from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pg_harness_pytest
from harness.config.load import load
from harness.databases import freshness
from harness.errors import ConfigError


def test_the_words_are_those_of_the_strategies() -> None:
    assert list(freshness.STRATEGIES)[:3] == ["reset", "clone", "none"]
    for word, strategy in freshness.STRATEGIES.items():
        assert isinstance(strategy, freshness.Freshness)
        assert freshness.find(word) is strategy
    assert freshness.find("often") is None


@pytest.mark.parametrize("value", ["often", "", "RESET", 7, True])
def test_another_word_is_told_with_its_place_and_all_words(value: Any, tmp_path: Path) -> None:
    shown = {True: "true", 7: "7"}.get(value, f'"{value}"')
    (tmp_path / "pg-harness.toml").write_text(f"fresh = {shown}\n")
    with pytest.raises(ConfigError) as caught:
        freshness.check_settings(load({}, start=tmp_path))
    assert (caught.value.key, caught.value.value) == ("fresh", str(value))
    assert str(tmp_path / "pg-harness.toml") in caught.value.message
    if value in ("often", "RESET"):
        words = ", ".join(map(repr, freshness.STRATEGIES))
        assert f"fresh must be one of {words} (it is {value!r})" in caught.value.message


def test_options_and_markers_name_every_word_of_ours() -> None:
    """Their texts are there in unconfigured runs too, which import nothing of the harness."""
    options: dict[str, str] = {}
    lines: list[str] = []

    class Parser:
        def getgroup(self, *_: str) -> Parser:
            return self

        def addoption(self, name: str, **given: Any) -> None:
            options[name] = given["help"]

    class Config:
        def addinivalue_line(self, _: str, line: str) -> None:
            lines.append(line)

    pg_harness_pytest.pytest_addoption(Parser())  # type: ignore[arg-type]
    pg_harness_pytest.pytest_configure(Config())  # type: ignore[arg-type]
    for word in freshness.STRATEGIES:
        assert f"({word})" in options["--pg-harness-fresh"]
        assert f"'{word}'" in lines[0]


def test_a_word_of_ours_is_checked_without_databases_and_packages(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from harness.config.load import load; from harness.databases import freshness\n"
        f"freshness.check_settings(load({{}}, start=Path({str(tmp_path)!r}), overrides={{'fresh': 'clone'}}))\n"
        "found = [m for m in sys.modules if m.startswith(('harness.databases.', 'harness.reset', 'harness.postgres', 'psycopg'))]\n"
        "print(found, 'importlib.metadata' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + code],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "['harness.databases.freshness'] False"
