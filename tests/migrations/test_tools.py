"""Sources that run in a child process: a command, Alembic, Django, a callable."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank

from harness.config.sources import parse_spec
from harness.errors import MigrationError
from harness.migrations.registry import load
from harness.migrations.tools.alembic import AlembicSource

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def project(tmp_path: Path) -> Callable[[str], Path]:
    """Copies an example, beside a package ``harness`` of the project's own that must not be imported."""

    def copy(name: str) -> Path:
        root = tmp_path / "a 'project" / name
        shutil.copytree(EXAMPLES / name, root, ignore=shutil.ignore_patterns("__pycache__"))
        write(root, {"harness/__init__.py": "raise RuntimeError('the wrong harness')\n"})
        return root

    return copy


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def failure(blank: Blank, root: Path, spec: object, timeout: float = 60) -> MigrationError:
    with pytest.raises(MigrationError) as caught:
        blank.migrate(root, spec, timeout=timeout)
    text = str(caught.value)
    assert len(text.splitlines()) < 40
    assert "children/run_" not in text, "a traceback of ours"
    assert "s3cret" not in text
    assert blank.sessions() == 0
    return caught.value


def fingerprint(root: Path, spec: object, cache: Path | None = None) -> str:
    return load(parse_spec(spec, "a test"), root, cache=cache, environment=dict(os.environ)).fingerprint()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


# --- command -------------------------------------------------------------------------------------------


def test_command_gets_the_address(blank: Blank, tmp_path: Path) -> None:
    psql = (blank.binaries or Path("/usr/bin")) / "psql"
    write(tmp_path, {"my migrations/1.sql": "CREATE TABLE t (a int);"})
    blank.migrate(tmp_path, f"command:{psql} -X -q -f 'my migrations/1.sql'")
    blank.migrate(tmp_path, f'command:{psql} -X -q "$DATABASE_URL" -c "CREATE TABLE u ()" | cat')
    assert blank.tables() == {"t", "u"}
    assert blank.value("SELECT tableowner FROM pg_tables WHERE tablename = 't'") == "migrator"


def test_command_that_fails_shows_its_output(blank: Blank, tmp_path: Path) -> None:
    error = failure(blank, tmp_path, "command:echo applying 007; echo broken >&2; exit 3")
    assert "failed with exit code 3" in str(error)
    assert str(error).endswith("  applying 007\n  broken")
    assert blank.progress[-2:] == ["applying 007", "broken"]


def test_command_that_does_not_exist(blank: Blank, tmp_path: Path) -> None:
    assert "there is no program 'nosuch' on PATH" in str(failure(blank, tmp_path, "command:nosuch up"))
    assert "there is no program 'bin/x' below" in str(failure(blank, tmp_path, "command:bin/x up"))
    assert "No closing quotation" in str(failure(blank, tmp_path, "command:psql 'x"))


def test_command_finds_the_tools_beside_the_interpreter(
    blank: Blank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.venv/bin/pg-harness up` without `activate`: there was no program 'alembic' on PATH, or another one."""
    for name in ("venv", "system"):
        write(
            tmp_path / name,
            {"tool": f'#!/bin/sh\nprintf "%s" "create table {name}_$1 ()" | psql "$DATABASE_URL"\n'},
        )
        (tmp_path / name / "tool").chmod(0o755)
    psql = blank.binaries
    assert psql is not None
    monkeypatch.setenv("PATH", f"{tmp_path / 'system'}:{psql}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    blank.migrate(tmp_path, "command:tool a")
    blank.migrate(tmp_path, "command:true && tool b")
    assert blank.tables() == {"venv_a", "venv_b"}
    # Another interpreter's folder, as /usr/bin, hides nothing of the user's.
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    blank.migrate(tmp_path, "command:tool c")
    assert blank.tables() == {"venv_a", "venv_b", "system_c"}


def test_command_that_hangs_is_ended_with_its_children(blank: Blank, tmp_path: Path) -> None:
    begin = time.monotonic()
    stubborn = "trap '' TERM; (trap '' TERM; echo $$ $BASHPID; exec sleep 600) & echo $! > child; echo $$ > self; wait"
    error = failure(blank, tmp_path, f"command:{stubborn}", timeout=1)
    assert time.monotonic() - begin < 15
    assert "still running after 1 s (migration_timeout)" in str(error)
    pids = [int((tmp_path / name).read_text()) for name in ("child", "self")]
    assert [pid for pid in pids if alive(pid)] == []


def test_command_leaves_nothing_in_the_background(blank: Blank, tmp_path: Path) -> None:
    blank.migrate(tmp_path, "command:sleep 600 & echo $! > pid")
    assert not alive(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_the_command(blank: Blank, tmp_path: Path) -> None:
    """The command is in a group of its own, so the terminal's Ctrl-C reaches only us."""

    def interrupt(done: int, total: int | None, what: str) -> None:
        if what == "ready":
            os.kill(os.getpid(), signal.SIGINT)

    source = load(parse_spec("command:echo $$ > pid; echo ready; exec sleep 600", "a test"), tmp_path)
    context = blank.context()
    object.__setattr__(context, "progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        source.apply(context)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_command_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, {"prisma/schema.prisma": "a", "src/x.ts": "a", "package-lock.json": "{}", "bin/up": "a"})
    write(tmp_path, {"prisma/node_modules/x.js": "a"})
    plain = "command:npx prisma migrate deploy"
    watched = {"source": plain, "watch": ["prisma/**", "src/*.ts"]}
    first = {name: fingerprint(tmp_path, spec) for name, spec in (("plain", plain), ("watched", watched))}
    write(tmp_path, {"src/x.ts": "b", "prisma/node_modules/x.js": "b"})
    assert fingerprint(tmp_path, plain) == first["plain"]
    assert fingerprint(tmp_path, watched) != first["watched"]
    write(tmp_path, {"prisma/schema.prisma": "b"})
    assert fingerprint(tmp_path, plain) != first["plain"]
    named = fingerprint(tmp_path, "command:bin/up --now")
    write(tmp_path, {"bin/up": "b"})
    assert fingerprint(tmp_path, "command:bin/up --now") != named
    first["plain"] = fingerprint(tmp_path, plain)
    write(tmp_path, {"package-lock.json": '{"a": 1}'})
    assert fingerprint(tmp_path, plain) != first["plain"]


def test_watch_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"watch names 'prsima/\*\*', which matches no file"):
        fingerprint(tmp_path, {"source": "command:true", "watch": ["prsima/**"]})


# --- callable ------------------------------------------------------------------------------------------


def test_callables(blank: Blank, tmp_path: Path) -> None:
    code = """
import os
from .sql import run
def with_url(url): run(url, "CREATE TABLE a ()")
def without(): run(os.environ["DATABASE_URL"], "CREATE TABLE b ()")
def named(*, database_url=None): run(database_url, "CREATE TABLE c ()")
class Maker:
    @staticmethod
    async def later(url: str): run(url, "CREATE TABLE d ()")
def leaves(): raise SystemExit(4)
"""
    helper = "import psycopg\ndef run(url, text):\n    with psycopg.connect(url) as c: c.execute(text)\n"
    write(
        tmp_path,
        {"src/app/__init__.py": "", "src/app/db.py": code, "src/app/sql.py": helper, "src/other.py": ""},
    )
    names = ("with_url", "without", "named", "Maker.later")
    blank.migrate(tmp_path, *(f"python:app.db:{name}" for name in names))
    assert blank.tables() == {"a", "b", "c", "d"}
    assert "app.db:leaves failed" in str(failure(blank, tmp_path, "python:app.db:leaves"))
    assert "has no attribute 'nope'" in str(failure(blank, tmp_path, "python:app.db:nope"))
    assert "No module named 'app.nope'" in str(failure(blank, tmp_path, "python:app.nope:x"))
    before = fingerprint(tmp_path, "python:app.db:with_url")
    write(tmp_path, {"src/other.py": "x = 1"})
    assert fingerprint(tmp_path, "python:app.db:with_url") == before
    write(tmp_path, {"src/app/sql.py": helper + "# changed\n"})
    assert fingerprint(tmp_path, "python:app.db:with_url") != before


# --- Alembic -------------------------------------------------------------------------------------------


def test_alembic_example(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("alembic")
    root = project("alembic")
    blank.migrate(root, "alembic")
    assert blank.tables() == {"alembic_version", "authors", "books"}
    assert blank.rows("SELECT name FROM authors") == [("Christine de Pizan",)]
    assert blank.value("SELECT version_num FROM alembic_version") == "0002"
    assert blank.value("SELECT tableowner FROM pg_tables WHERE tablename = 'books'") == "migrator"
    assert blank.sessions() == 0


ENV_FROM_INI = """
from alembic import context
from sqlalchemy import engine_from_config, pool
config = context.config
engine = engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.", poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
ENV_ASYNC = """
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config
config = context.config
def work(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
async def main():
    engine = async_engine_from_config(config.get_section(config.config_ini_section), prefix="sqlalchemy.", poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(work)
    await engine.dispose()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("env", "url"),
    [
        (ENV_FROM_INI, "driver://user:pass@localhost/dbname"),
        (ENV_FROM_INI, "postgresql+psycopg2://me@db.example/prod"),
        (ENV_FROM_INI, "postgresql+psycopg://me@db.example/prod"),
        (ENV_ASYNC, "postgresql+asyncpg://me@db.example/prod"),
        (ENV_ASYNC, ""),
    ],
)
def test_alembic_env_files(env: str, url: str, blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("alembic")
    root = project("alembic")
    ini = f"[alembic]\nscript_location = migrations\nsqlalchemy.url = {url}\n"
    write(root, {"migrations/env.py": env, "alembic.ini": ini})
    blank.migrate(root, "alembic:alembic.ini")
    assert blank.tables() == {"alembic_version", "authors", "books"}


@pytest.mark.parametrize("location", ["%(here)s/migrations", "src/app/migrations", "migrations"])
def test_alembic_below_the_root_hides_no_module_of_pythons(
    location: str, blank: Blank, project: Callable[[str], Path]
) -> None:
    """The folder of the ini file came first on the path: "cannot import name 'Logger' from partially initialized module 'logging'"."""
    pytest.importorskip("alembic")
    root = project("alembic")
    app = root / "src" / "app"
    app.mkdir(parents=True)
    (root / "migrations").rename(app / "migrations")
    (root / "alembic.ini").unlink()
    env = (app / "migrations" / "env.py").read_text()
    write(
        app,
        {
            "alembic.ini": f"[alembic]\nscript_location = {location}\n",
            "__init__.py": "",
            "logging.py": "from app.settings import LEVEL\n",
            "settings.py": "LEVEL = 1\n",
            # As the project has it, which is not installed.
            "migrations/env.py": f"import logging, app.logging\nassert logging.getLogger and app.logging.LEVEL == 1\n{env}",
        },
    )
    (source,) = blank.migrate(root, "alembic:src/app/alembic.ini")
    assert blank.tables() == {"alembic_version", "authors", "books"}
    before = source.fingerprint()
    write(
        app,
        {
            "migrations/versions/0003_more.py": "revision = '0003'\ndown_revision = '0002'\ndef upgrade(): pass\n"
        },
    )
    assert fingerprint(root, "alembic:src/app/alembic.ini") != before


def test_alembic_never_migrates_another_database(
    blank: Blank, blank_on: Callable[[str], Blank], project: Callable[[str], Path]
) -> None:
    """An env.py with a fixed URL would else migrate the developer's own database."""
    pytest.importorskip("alembic")
    other = blank_on("15")
    root = project("alembic")
    url = other.dsn.sqlalchemy.replace("%", "%%")
    env = ENV_FROM_INI.replace("engine =", f"config.set_main_option('sqlalchemy.url', {url!r})\nengine =")
    write(root, {"migrations/env.py": env})
    text = str(failure(blank, root, "alembic"))
    assert f"env.py connects to the database '{other.dsn.database}'" in text
    assert "nothing was done there" in text
    assert other.tables() == set()


def test_alembic_with_two_heads(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("alembic")
    root = project("alembic")
    second = (root / "migrations/versions/0002_books.py").read_text().replace('"0002"', '"0002b"')
    write(root, {"migrations/versions/0002b_books.py": second})
    text = str(failure(blank, root, "alembic"))
    assert "there are 2 heads" in text
    assert "0002_books.py" in text
    assert "0002b_books.py" in text
    assert "alembic merge heads" in text
    assert "Traceback" not in text
    assert blank.tables() == set()


def test_alembic_heads_are_told_before_it_is_run(project: Callable[[str], Path]) -> None:
    root = project("alembic")
    read = load(parse_spec("alembic", "a test"), root)
    assert isinstance(read, AlembicSource)
    assert (read.heads(), read.lacking()) == (["0002"], "")
    write(
        root,
        {"migrations/versions/0003_other.py": "revision: str = '0003'\ndown_revision: str | None = '0001'\n"},
    )
    assert "it has 2 heads, 0002, 0003: `alembic merge heads` joins them" in read.lacking()
    write(
        root, {"migrations/versions/0004_merge.py": "revision = '0004'\ndown_revision = ('0002', '0003')\n"}
    )
    assert (read.heads(), read.lacking()) == (["0004"], "")


def test_alembic_errors(blank: Blank, project: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("alembic")
    root = project("alembic")
    assert "the file nope.ini does not exist" in str(failure(blank, root, "alembic:nope.ini"))
    write(root, {"migrations/versions/0003_bad.py": "revision = '0003'\ndown_revision = '0002'\nfrom alembic import op\ndef upgrade():\n    op.execute('SELECT nope')\n"})  # fmt: skip
    text = str(failure(blank, root, "alembic"))
    assert 'column "nope" does not exist' in text
    write(tmp_path, {"alembic.ini": "[alembic]\nscript_location = gone\n"})
    with pytest.raises(MigrationError, match="the script folder gone does not exist"):
        fingerprint(tmp_path, "alembic")


def test_alembic_with_a_url_of_another_form(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("alembic")
    pytest.importorskip("asyncpg")
    root = project("alembic")
    engine = "from sqlalchemy.ext.asyncio import create_async_engine\ncreate_async_engine('postgresql+psycopg2://x')"
    write(root, {"migrations/env.py": engine})
    text = str(failure(blank, root, "alembic"))
    assert "requires an async driver" in text
    assert text.endswith('What gives the right form: DATABASE_URL = "{asyncpg}" in [tool.pg-harness.env]')


def test_alembic_fingerprint(project: Callable[[str], Path]) -> None:
    root = project("alembic")
    before = fingerprint(root, "alembic")
    write(root, {"shop/models.py": "# what autogenerate compares with; upgrade does not read it\n"})
    assert fingerprint(root, "alembic") == before
    write(root, {"shop/words.py": "WORDS = 1\n"})
    revision = root / "migrations/versions/0002_books.py"
    revision.write_text(revision.read_text() + "\nfrom shop.words import WORDS\n")
    imported = fingerprint(root, "alembic")
    assert imported != before
    write(root, {"shop/words.py": "WORDS = 2\n"})
    assert fingerprint(root, "alembic") != imported


# --- Django --------------------------------------------------------------------------------------------


def test_django_example(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("django")
    root = project("django")
    (source,) = blank.migrate(root, "django")
    before = source.fingerprint()
    assert {"shop_product", "shop_review", "auth_user", "django_migrations"} <= blank.tables()
    assert blank.value("SELECT count(*) FROM django_migrations WHERE app = 'shop'") == 1
    assert blank.value("SELECT count(*) FROM auth_permission WHERE codename = 'add_product'") == 1
    # Of the three apps, the project's own one: its files decide.
    write(root, {"shop/migrations/0099_more.py": ""})
    assert source.fingerprint() != before


FIXED = """
from config.settings import *  # noqa: F403
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "dev.sqlite3"},
    "replica": {"ENGINE": "django.db.backends.postgresql", "HOST": "db.example", "NAME": "prod",
                "OPTIONS": {"service": "prod", "sslmode": "require"}, "CONN_MAX_AGE": 600},
}
"""


def test_django_settings_that_name_another_database(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("django")
    root = project("django")
    write(root, {"config/fixed.py": FIXED})
    blank.migrate(root, "django:config.fixed")
    assert "shop_product" in blank.tables()
    assert not (root / "dev.sqlite3").exists()


def test_django_below_the_root(blank: Blank, project: Callable[[str], Path]) -> None:
    pytest.importorskip("django")
    root = project("django")
    blank.migrate(root.parent, "django")
    assert "shop_product" in blank.tables()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nosuch_library\n", "No module named 'nosuch_library'"),
        ("SECRET_KEY = 'x'\nINSTALLED_APPS = ['gone_app']\n", "No module named 'gone_app'"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_django_settings_that_cannot_be_imported(
    code: str, message: str, blank: Blank, project: Callable[[str], Path]
) -> None:
    pytest.importorskip("django")
    root = project("django")
    write(root, {"config/bad.py": code})
    with pytest.raises(MigrationError) as caught:
        fingerprint(root, "django:config.bad")
    assert message in str(caught.value)
    assert "children/run_" not in str(caught.value)
    assert message in str(failure(blank, root, "django:config.bad"))


def test_django_without_settings(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no settings module was found"):
        fingerprint(tmp_path, "django")


def test_django_fingerprint_and_its_cache(
    project: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("django")
    root, cache = project("django"), tmp_path / "cache"
    first = fingerprint(root, "django", cache)

    from harness.migrations.tools import child

    started: list[object] = []
    real = child.run
    monkeypatch.setattr(child, "run", lambda *a, **k: started.append(a) or real(*a, **k))
    assert fingerprint(root, "django", cache) == first
    assert started == [], "a warm fingerprint imports nothing of the application"

    write(root, {"shop/migrations/0002_more.py": "from django.db import migrations\nclass Migration(migrations.Migration):\n    dependencies = [('shop', '0001_initial')]\n"})  # fmt: skip
    second = fingerprint(root, "django", cache)
    assert second != first
    assert started == []

    settings = root / "config/settings.py"
    settings.write_text(
        settings.read_text().replace('    "shop",\n', '    "shop",\n    "django.contrib.sessions",\n')
    )
    assert fingerprint(root, "django", cache) not in (first, second)
    assert len(started) == 1

    from harness.migrations.hashing import imports

    versions = imports.installed_versions()
    third = fingerprint(root, "django", cache)
    monkeypatch.setattr(imports, "installed_versions", lambda only=(): [*versions, "Django-99"])
    assert fingerprint(root, "django", cache) != third
    assert len(started) == 2, "after an upgrade, the apps are asked for again"
    for file in cache.iterdir():
        file.write_text("{ corrupt")
    assert len(fingerprint(root, "django", cache)) == 64
    assert len(started) == 3
