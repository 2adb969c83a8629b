from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from harness.config import load as loading
from harness.config.load import UnknownVariable
from harness.config.settings import Settings
from harness.errors import ConfigError
from harness.migrations import registry as sources
from harness.servers import registry as backends

PYPROJECT = """
[project]
name = "shop"
[tool.pg-harness]
migrations = ["sql:db/migrations"]
connections_per_worker = 7
ttl = "2m"
memory_limit = "1.5GB"
extensions = ["pg_trgm"]
binaries = "pg/bin"
[tool.pg-harness.env]
SQLALCHEMY_DATABASE_URI = "{sqlalchemy}"
[tool.pg-harness.postgres]
jit = false
work_mem = "8MB"
[tool.pg-harness.databases.analytics]
migrations = ["sql:analytics"]
env = { ANALYTICS_URL = "{url}" }
"""


def project(folder: Path, text: str = PYPROJECT, name: str = "pyproject.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def load(start: Path, environ: dict[str, str] | None = None, **overrides: Any) -> Settings:
    return loading.load(environ or {}, start=start, overrides=overrides)


def test_a_section_is_read_whole(tmp_path: Path) -> None:
    settings = load(project(tmp_path / "my 'shop'"))
    assert settings.root == tmp_path / "my 'shop'"
    assert [d.name for d in settings.databases] == ["default", "analytics"]
    default, analytics = settings.databases
    assert default.migrations is not None
    assert [(s.kind, s.argument) for s in default.migrations] == [("sql", "db/migrations")]
    assert default.extensions == ("pg_trgm",)
    assert default.env == {"SQLALCHEMY_DATABASE_URI": "{sqlalchemy}"}
    assert analytics.env == {"ANALYTICS_URL": "{url}"}
    assert (settings.connections_per_worker, settings.ttl, settings.memory_limit) == (
        7,
        120.0,
        int(1.5 * 1024**3),
    )
    assert settings.postgres == {"jit": "off", "work_mem": "8MB"}
    assert settings.binaries == settings.root / "pg/bin"
    assert settings.origin("ttl").endswith("pyproject.toml [tool.pg-harness]")
    assert settings.origin("image") == "default"


def test_variables_win_over_the_file_and_arguments_over_both(tmp_path: Path) -> None:
    root = project(tmp_path)
    environ = {"PGHARNESS_CONNECTIONS_PER_WORKER": "9", "PGHARNESS_MIGRATIONS": "alembic"}
    settings = load(root, environ)
    assert settings.connections_per_worker == 9
    assert settings.origin("connections_per_worker") == "the variable PGHARNESS_CONNECTIONS_PER_WORKER"
    assert settings.default.migrations is not None
    assert settings.default.migrations[0].kind == "alembic"
    assert load(root, environ, connections_per_worker=11).connections_per_worker == 11
    assert load(root, environ, connections_per_worker=None).connections_per_worker == 9


def test_the_root_is_the_nearest_ancestor_that_is_configured(tmp_path: Path) -> None:
    project(tmp_path)
    inner = tmp_path / "services" / "api" / "tests"
    inner.mkdir(parents=True)
    (tmp_path / "services" / "pyproject.toml").write_text("[project]\nname = 'not ours'\n")
    assert load(inner).root == tmp_path
    project(tmp_path / "services" / "api", 'image = "postgres:16"', "pg-harness.toml")
    found = load(inner)
    assert (found.root, found.image) == (tmp_path / "services" / "api", "postgres:16")
    assert found.root_origin == "has pg-harness.toml"


def test_without_settings_the_checkout_is_the_root(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    found = load(tmp_path / "a" / "b")
    assert (found.root, found.file) == (tmp_path, None)
    assert found.default.migrations is None


def test_a_symbolic_link_names_the_same_project(tmp_path: Path) -> None:
    root = project(tmp_path / "real")
    (tmp_path / "link").symlink_to(root)
    assert load(tmp_path / "link").root == root


def test_a_named_file(tmp_path: Path) -> None:
    project(tmp_path / "x", 'image = "i"', "pg-harness.toml")
    elsewhere = tmp_path / "y"
    elsewhere.mkdir()
    named = tmp_path / "x" / "pg-harness.toml"
    assert load(elsewhere, {"PGHARNESS_CONFIG": str(named)}).image == "i"
    with pytest.raises(ConfigError, match=r"nothing\.toml does not exist"):
        loading.load({}, start=elsewhere, explicit=tmp_path / "nothing.toml")


def test_a_section_copied_with_its_header_is_taken_as_meant(tmp_path: Path) -> None:
    project(tmp_path, '[tool.pg-harness]\nimage = "i"\n', "pg-harness.toml")
    assert load(tmp_path).image == "i"


def checked(root: Path) -> None:
    """As every command and the pytest plugin do."""
    settings = load(root)
    sources.check_settings(settings)
    backends.check_settings(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("migratons = []", ["migratons", "did you mean 'migrations'", "pyproject.toml"]),
        ("zzz = 1", ["zzz", "the keys are", "connections_per_worker"]),
        ('isolation = "schema"', ["isolation", "'database', 'server'", "'schema'"]),
        ("ttl = true", ["ttl", "duration"]),
        ('ttl = "soon"', ["ttl", '"15m"', "'soon'"]),
        ('ttl = "0s"', ["ttl", "longer than nothing"]),
        ("connections_per_worker = 0", ["connections_per_worker", "1 at least"]),
        ('connections_per_worker = "7"', ["connections_per_worker", "whole number"]),
        ("connections_per_worker = 600", ["connections_per_worker = 600", "max_connections = 500"]),
        ('migrations = ["sqll:x"]', ["sqll", "sql"]),
        ("migrations = 3", ["migrations", "list"]),
        ('extensions = "x"\nenv = 3', ["env", "table"]),
        ('role = "pg_x"', ["role", "keeps for itself"]),
        (f'role = "{"ü" * 32}"', ["role", "63 bytes"]),
        ('backend = "external"', ["pyproject.toml", "server_url", "DATABASE_URL is never taken"]),
        ('backend = "nothing"', ["pyproject.toml", "backend", ", ".join(map(repr, backends.Words())), "'nothing'"]),
        ("backend = 3", ["backend", "must be one of", "3"]),
        ('server_url = "mysql://u:topsecret@h/d"', ["server_url", "postgresql://"]),
        ('[tool.pg-harness.databases.default]\nenv = {}', ["default", "top level"]),
        ('[tool.pg-harness.databases."a b"]\nenv = {}', ["a b", "letters"]),
        ('[tool.pg-harness.databases.x]\nimage = "i"', ["databases.x", "image"]),
        ('[tool.pg-harness.postgres]\nport = 1', ["postgres", "port", "decides"]),
        ('role_attributes = ["LOGINN"]', ["LOGINN", "CREATEDB"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, words: list[str]) -> None:
    project(tmp_path, f"[tool.pg-harness]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "topsecret" not in message
    assert len(message.splitlines()) < 20


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    project(tmp_path, "[tool.pg-harness\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml is not valid TOML.*line 1"):
        load(tmp_path)
    (tmp_path / "pyproject.toml").write_bytes(b"[tool.pg-harness]\n# \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path)


def test_a_watch_at_the_top_level_is_told_where_it_belongs(tmp_path: Path) -> None:
    project(tmp_path, 'watch = ["db/**"]\n', "pg-harness.toml")
    with pytest.raises(
        ConfigError, match=r'migrations = \[\{ source = "command:…", watch = \["db/\*\*"\] \}\]'
    ):
        load(tmp_path)


def test_somebody_elses_broken_pyproject_is_not_our_business(tmp_path: Path) -> None:
    project(tmp_path, "[project\n")
    assert load(tmp_path).file is None


def test_two_files_that_both_configure_us(tmp_path: Path) -> None:
    project(tmp_path)
    project(tmp_path, "", "pg-harness.toml")
    with pytest.raises(ConfigError, match="keep one"):
        load(tmp_path)


def test_a_variable_that_nearly_matches_warns_and_others_are_left_alone(tmp_path: Path) -> None:
    with pytest.warns(
        UnknownVariable, match="PGHARNESS_MIGRATION does nothing; did you mean PGHARNESS_MIGRATIONS"
    ):
        load(tmp_path, {"PGHARNESS_MIGRATION": "alembic"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(
            tmp_path,
            {"PGHARNESS_SOMETHING_ELSE_ENTIRELY": "1", "PGHARNESS_RUN_FILE": "x", "HARNESS_API": "1"},
        )


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    settings = load(tmp_path, server_url="postgresql://u:topsecret@h/d")
    assert settings.server_url is not None
    assert "topsecret" not in repr(settings)


def test_seeds_come_last(tmp_path: Path) -> None:
    project(tmp_path, '[tool.pg-harness]\nmigrations = ["sql:m"]\nseeds = ["sql:s"]\n')
    found = load(tmp_path).default.migrations
    assert found is not None
    assert [s.argument for s in found] == ["m", "s"]


def test_a_template_of_a_variable_is_checked_before_anything_starts(tmp_path: Path) -> None:
    project(tmp_path, '[tool.pg-harness.env]\nX = "{sqlalchem}"\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(tmp_path / "pyproject.toml") in str(caught.value)
    assert "env.X = '{sqlalchem}': there is no placeholder 'sqlalchem'. There are {url}" in str(caught.value)


def test_a_wrong_server_url_is_told_with_its_origin_and_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"PGHARNESS_SERVER_URL": "mysql://u:topsecret@h/d"})
    assert "the variable PGHARNESS_SERVER_URL" in str(caught.value)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("table", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}, {"A\0": "x"}])
def test_variables_that_no_process_can_have(tmp_path: Path, table: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no variable can have"):
        load(tmp_path, env=table)


REPOSITORIES = [
    "registry.example/pg-harness",
    "127.0.0.1:5000/a",
    "localhost/x/y",
    "ghcr.io/shop",
    "[::1]:5000/a_b/c--d",
]


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_a_host_and_a_name(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, {"PGHARNESS_BAKED_REPOSITORY": name}).baked_repository == name


@pytest.mark.parametrize(
    "name",
    [
        "https://ci:topsecret@registry.example/x", "ci:topsecret@registry.example/x", "registry.example", "registry.example/",
        "registry.example/x:1", "registry.example/X", "registry.example/x@sha256:00", "registry.example//x", "x/y",
        "registry.example/../x", "registry.example/x y", "registry.example/x?a=b", "-r.example/x", "registry.example/" + "x" * 200,
    ],
)  # fmt: skip
def test_what_is_no_repository_is_not_repeated(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="baked_repository must be a host and a name") as caught:
        load(tmp_path, {"PGHARNESS_BAKED_REPOSITORY": name})
    assert "topsecret" not in repr(caught.value) + str(caught.value.__dict__)
