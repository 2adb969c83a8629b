"""Several versions in ``pg_version``, and settings that name something of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import load as load_
from harness.config import versions
from harness.config.settings import Settings
from harness.errors import ConfigError


def load(
    folder: Path, text: str = "", environ: dict[str, str] | None = None, **overrides: object
) -> Settings:
    (folder / "pg-harness.toml").write_text(text)
    return load_.load(environ or {}, start=folder, overrides=overrides)


@pytest.mark.parametrize(
    ("text", "environ", "found"),
    [
        ('pg_version = ["15", "17", "18"]', {}, ("15", "17", "18")),
        ("pg_version = [15, 17]", {}, ("15", "17")),
        ('pg_version = ["17.2"]', {}, ("17.2",)),
        ('pg_version = ["1", "17"]', {}, ("1", "17")),
        ('pg_version = ["15", "17"]', {"PGHARNESS_PG_VERSION": "18, 16"}, ("18", "16")),
        ('pg_version = ["15", "17"]', {"PGHARNESS_PG_VERSION": "17"}, ("17",)),
    ],
)
def test_the_first_is_the_one_that_is_used(
    tmp_path: Path, text: str, environ: dict[str, str], found: tuple[str, ...]
) -> None:
    settings = load(tmp_path, text, environ)
    assert settings.pg_versions == found
    assert settings.pg_version == found[0]
    assert settings.image == f"postgres:{found[0]}"
    assert versions.settings_at(settings, "18").image == "postgres:18"


def test_an_option_takes_the_place_of_the_list(tmp_path: Path) -> None:
    settings = load(tmp_path, 'pg_version = ["15", "17"]', pg_version="17")
    assert settings.pg_versions == ("17",)
    assert settings.image == "postgres:17"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('["15", "15"]', "names 15 twice"),
        ('["17", "17.2"]', "names 17 and 17.2, and one server is both"),
        ('["17.2", "17"]', "names 17.2 and 17, and one server is both"),
        ('["15", "newest"]', "'newest' is none"),
        ('["15", 17.1]', "17.1 is none"),
        ('["15", ["17"]]', "is none"),
        ('["15", true]', "True is none"),
        ('["15", ""]', "'' is none"),
        ("[]", "names no version at all"),
    ],
)
def test_what_a_list_may_not_hold(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path, f"pg_version = {value}")
    assert caught.value.key == "pg_version"
    assert str(tmp_path / "pg-harness.toml") in caught.value.message


def test_an_image_and_a_folder_of_each(tmp_path: Path) -> None:
    text = (
        'pg_version = ["15", "17"]\nimage = "ours/db:pg{pg_version}-2"\nbinaries = "opt/{pg_version}/bin"\n'
    )
    settings = load(tmp_path, text)
    assert settings.image == "ours/db:pg15-2"
    assert settings.binaries == tmp_path / "opt" / "15" / "bin"
    other = versions.settings_at(settings, "17")
    assert (other.pg_version, other.image) == ("17", "ours/db:pg17-2")
    assert other.binaries == tmp_path / "opt" / "17" / "bin"
    # What has no place for it is the same for all.
    fixed = load(tmp_path, 'pg_version = ["15", "17"]\nimage = "ours/db:1"')
    assert versions.settings_at(fixed, "17").image == "ours/db:1"


def test_a_place_for_the_version_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image holds \{pg_version\}, and no pg_version is set"):
        load(tmp_path, 'image = "ours/db:{pg_version}"')


def test_each_of_them_must_be_named_and_startable(tmp_path: Path) -> None:
    assert versions.each(load(tmp_path, 'pg_version = "17"'), "--each-version") == ("17",)
    with pytest.raises(ConfigError, match="--each-version needs to know which: pg_version = "):
        versions.each(load(tmp_path), "--each-version")
    text = 'pg_version = ["15", "17"]\nserver_url = "postgresql://me:secret@db/postgres"'
    with pytest.raises(ConfigError, match="names one server, which has one version") as caught:
        versions.each(load(tmp_path, text), "--each-version")
    assert "secret" not in str(caught.value)
