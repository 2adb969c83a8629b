"""The version of PostgreSQL that is asked for: it is the one that is used, whatever runs the server, or an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

from harness.config import load as load_
from harness.config.load import RenamedSetting
from harness.config.settings import Settings
from harness.errors import ConfigError
from harness.servers.port import ServerInfo

ASK = (
    "import os, psycopg\n"
    "with psycopg.connect(os.environ['DATABASE_URL']) as connection:\n"
    "    print(connection.info.server_version // 10000)\n"
)
RUN = ("run", "--", sys.executable, "-c", ASK)
NO_DAEMON = {"PGHARNESS_BACKEND": "auto", "DOCKER_HOST": "tcp://127.0.0.1:1"}


def load(
    folder: Path, text: str = "", environ: dict[str, str] | None = None, **overrides: object
) -> Settings:
    (folder / "pg-harness.toml").write_text(text)
    return load_.load(environ or {}, start=folder, overrides=overrides)


@pytest.mark.parametrize(
    ("text", "environ", "overrides"),
    [
        ('version = "16"', {}, {}), ("", {"PGHARNESS_VERSION": "16"}, {}), ("", {}, {"version": "16"}),
        ('pg_version = "16"\nversion = "15"', {}, {}), ('version = "15"\npg_version = "16"', {}, {}),
        ("", {"PGHARNESS_PG_VERSION": "16", "PGHARNESS_VERSION": "15"}, {}),
        ('pg_version = "15"', {"PGHARNESS_VERSION": "16"}, {}),
    ],
)  # fmt: skip
def test_the_old_word_is_read_with_a_warning(
    tmp_path: Path, text: str, environ: dict[str, str], overrides: dict[str, str]
) -> None:
    with pytest.warns(RenamedSetting, match="version is called pg_version now"):
        assert load(tmp_path, text, environ, **overrides).pg_version == "16"


@pytest.mark.parametrize("value", ["17", '"17"', '"17 "', '"17.2"', '"19beta1"'])
def test_what_a_version_may_be(tmp_path: Path, value: str) -> None:
    settings = load(tmp_path, f"pg_version = {value}")
    assert settings.pg_version == value.strip('" ')
    assert settings.image == f"postgres:{settings.pg_version}"
    assert settings.origin("image") == "default"
    named = load(tmp_path, f'pg_version = {value}\nimage = "mine:1"')
    assert named.image == "mine:1"


@pytest.mark.parametrize("value", ["17.10", "true", '"latest"', '">=15"', '"-1"'])
def test_what_it_may_not_be(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="pg_version"):
        load(tmp_path, f"pg_version = {value}")


def test_a_persons_server_is_never_ended_for_its_version(new_project: Callable[..., Project]) -> None:
    mine = new_project("persons")
    mine.ok("up", "--pg-version", "15")
    mine.ok("psql", "--", "-qc", "insert into users (name) values ('precious')")
    # Stopped and started again, it stays too: test_drift.py.
    done = mine.run("up", "--pg-version", "18")
    assert done.returncode == 0, done.stderr
    assert "pg_version 15 → 18) and is used as it is, because its data would be lost" in done.stderr
    assert "precious" in mine.ok("psql", "--", "-Atc", "select name from users")


# --- with servers -----------------------------------------------------------------------------------------


@pytest.fixture
def mine(new_project: Callable[..., Project]) -> Project:
    return new_project("versions")


def test_local_programs(mine: Project) -> None:
    for version in ("18", "15"):
        assert mine.ok("run", "--pg-version", version, *RUN[1:], PGHARNESS_PG_VERSION="9") == f"{version}\n"
    assert "no binaries of PostgreSQL 9" in mine.fails(121, *RUN, PGHARNESS_PG_VERSION="9")
    done = mine.run(*RUN, PGHARNESS_VERSION="18")
    assert done.stdout == "18\n"
    assert "the variable PGHARNESS_VERSION: version is called pg_version now" in done.stderr


def test_a_server_of_somebody_else(mine: Project, server_of: Callable[[str], ServerInfo]) -> None:
    url = server_of("15").dsn.url
    assert mine.ok(*RUN, PGHARNESS_SERVER_URL=url, PGHARNESS_PG_VERSION="15") == "15\n"
    said = mine.fails(120, *RUN, PGHARNESS_SERVER_URL=url, PGHARNESS_PG_VERSION="18")
    assert "PGHARNESS_PG_VERSION: pg_version = 18, but" in said
    assert "has version 15." in said
    assert "let server_url (the variable PGHARNESS_SERVER_URL) name one of that version" in said
    assert server_of("15").dsn.password not in said


@pytest.fixture
def contained(mine: Project) -> Project:
    """On Docker, whose registry is not there: an image that is wanted is named by what is said of its absence."""
    mine.environ |= {"PGHARNESS_BACKEND": "docker", "TESTCONTAINERS_RYUK_DISABLED": "true"}
    return mine


@pytest.mark.docker
def test_without_an_image_it_names_one(contained: Project) -> None:
    said = contained.fails(
        121, *RUN, PGHARNESS_PG_VERSION="16.1", TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX="127.0.0.1:1/"
    )
    assert "postgres:16.1 is not on this Docker daemon" in said


@pytest.mark.docker
@pytest.mark.parametrize("isolation", ["database", "server"])
def test_an_image_of_another_version(contained: Project, isolation: str) -> None:
    words = (*RUN[:1], "--isolation", isolation, "--image", "pgharness-test:15", *RUN[1:])
    said = contained.fails(120, *words, PGHARNESS_PG_VERSION="18")
    assert "pg_version = 18, but" in said
    assert "let image (the command line (image)) name one of that version" in said
    # Nothing of it is left: it was started to be asked.
    folder = json.loads(contained.ok("status", "--json"))
    assert not folder.get("servers"), folder
    names = subprocess.run(
        ["docker", "ps", "-a", "--format", "{{.Names}} {{.Labels}}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(contained.root) not in names
    assert contained.ok(*words, PGHARNESS_PG_VERSION="15") == "15\n"


@pytest.mark.parametrize("isolation", ["database", "server"])
def test_a_named_image_is_not_replaced_by_local_programs(mine: Project, isolation: str) -> None:
    words = (*RUN[:1], "--isolation", isolation, *RUN[1:])
    assert mine.run(*words, **NO_DAEMON).returncode == 0
    said = mine.fails(121, *words, PGHARNESS_IMAGE="pgvector/pgvector:pg17", **NO_DAEMON)
    assert (
        "the variable PGHARNESS_IMAGE names an image, pgvector/pgvector:pg17, and no Docker daemon answers"
        in said
    )
    assert "leave image out, or name a backend" in said
    # A backend that is named counts more than an image.
    process = {**NO_DAEMON, "PGHARNESS_BACKEND": "process", "PGHARNESS_IMAGE": "pgvector/pgvector:pg17"}
    assert mine.run(*words, **process).returncode == 0


def test_a_version_is_met_by_local_programs_or_not_at_all(mine: Project) -> None:
    assert mine.ok(*RUN, PGHARNESS_PG_VERSION="18", **NO_DAEMON) == "18\n"
    said = mine.fails(121, *RUN, PGHARNESS_PG_VERSION="9.6", **NO_DAEMON)
    assert "9.6" in said
