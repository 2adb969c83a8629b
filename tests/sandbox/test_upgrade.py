"""Pending migrations of real tools, of several databases, and where every worker has a role; called from Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from harness.config.load import load
from harness.config.project import Project
from harness.errors import LeaseError, MigrationError
from harness.sandbox.sandbox import Sandbox
from harness.servers.port import ServerInfo

pytestmark = pytest.mark.server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server_url(server_of: Callable[[str], ServerInfo]) -> str:
    """Somebody else's server: each worker logs in as a role of its own there, and nothing has to be started."""
    return server_of("15").dsn.url


@pytest.fixture
def open_(tmp_path: Path, folders: tuple[Path, Path], server_url: str) -> Iterator[Callable[[], Sandbox]]:
    """Opens the sandbox of the project in the folder ``project``; what it has made is gone afterwards."""
    state, cache = folders
    environ = {
        **os.environ,
        "PGHARNESS_STATE_DIR": str(state),
        "PGHARNESS_CACHE_DIR": str(cache),
        "PGHARNESS_SERVER_URL": server_url,
        "PGHARNESS_ALLOW_FOREIGN": "true",
    }
    (tmp_path / "project").mkdir()
    ids: set[str] = set()

    def open_now() -> Sandbox:
        project = Project.of(load(environ, start=tmp_path / "project"), environ)
        ids.add(project.id)
        return Sandbox.open(project)

    yield open_now
    with psycopg.connect(server_url, autocommit=True) as admin:
        for project in ids:
            ours = f"pgh\\_{project}%"
            for (name,) in admin.execute(
                "select datname from pg_database where datname like %s", (ours,)
            ).fetchall():
                admin.execute(f'alter database "{name}" with is_template false'.encode())
                admin.execute(f'drop database "{name}" with (force)'.encode())
            for (name,) in admin.execute("select rolname from pg_roles where rolname like %s order by length(rolname) desc", (ours,)).fetchall():  # fmt: skip
                admin.execute(f'drop role "{name}"'.encode())


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


ALEMBIC = '''\
"""{text}"""
from alembic import op
import sqlalchemy as sa
revision = "{revision}"
down_revision = {down!r}
def upgrade():
    op.add_column("{table}", sa.Column("{column}", sa.Integer, server_default="7", nullable=False))
def downgrade():
    op.drop_column("{table}", "{column}")
'''


def test_alembic_upgrades_what_is_there(open_: Callable[[], Sandbox], tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "versions").mkdir(parents=True)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s\n")
    (root / "env.py").write_text(
        "from alembic import context\nfrom sqlalchemy import create_engine\nimport os\n"
        'engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))\n'
        "with engine.connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n"
    )
    (root / "versions" / "a.py").write_text(
        'from alembic import op\nrevision = "a"\ndown_revision = None\n'
        'def upgrade():\n    op.execute("create table users (name text)")\n'
    )
    (root / "pg-harness.toml").write_text('migrations = ["alembic"]\n')
    with open_() as sandbox:
        sandbox.ensure(["1"])
        place = sandbox.workers()["1"]
        execute(place.dsn().url, "insert into users values ('precious')")
    (root / "versions" / "b.py").write_text(
        ALEMBIC.format(text="b", revision="b", down="a", table="users", column="age")
    )
    with open_() as sandbox:
        place = sandbox.workers()["1"]
        assert sandbox.stale([place]) == [place]
        assert sandbox.pending(place)["default"].steps == ("alembic",)
        sandbox.prepare()
        sandbox.migrate(place)
        url = sandbox.workers()["1"].dsn().url
        assert url == place.dsn().url
        assert query(url, "select name, age from users") == [("precious", 7)]
        assert query(url, "select version_num from alembic_version") == [("b",)]
        assert sandbox.pending(sandbox.workers()["1"]) == {}
        # The worker's own role still may do all that it could.
        execute(url, "alter table users add mine int")


def test_django_migrates_what_is_there(open_: Callable[[], Sandbox], tmp_path: Path) -> None:
    pytest.importorskip("django")
    root = tmp_path / "project"
    shutil.rmtree(root)
    shutil.copytree(EXAMPLES / "django", root, ignore=shutil.ignore_patterns("__pycache__"))
    (app,) = {path.parent.parent for path in root.rglob("migrations/0001_*.py")}
    with open_() as sandbox:
        sandbox.ensure(["1"])
        url = sandbox.workers()["1"].dsn().url
        (before,) = query(url, "select count(*) from django_migrations")
        execute(url, "create table mine as select 1 as precious")
    last = max(path.stem for path in (app / "migrations").glob("0*.py"))
    (app / "migrations" / "0999_more.py").write_text(
        "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
        f"    dependencies = [({app.name!r}, {last!r})]\n"
        '    operations = [migrations.RunSQL("create table more (id int)")]\n'
    )
    with open_() as sandbox:
        sandbox.prepare()
        sandbox.migrate(sandbox.workers()["1"])
    assert query(url, "select precious from mine") == [(1,)]
    assert query(url, "select count(*) from more") == [(0,)]
    assert query(url, "select count(*) from django_migrations") == [(int(str(before[0])) + 1,)]


def two_databases(root: Path) -> None:
    for name in ("app", "stats"):
        (root / name).mkdir()
        (root / name / "1.sql").write_text("create table users (name text);")
    (root / "pg-harness.toml").write_text(
        'migrations = ["sql:app"]\n[databases.stats]\nmigrations = ["sql:stats"]\n'
    )


def test_of_several_databases_all_are_migrated_or_none(open_: Callable[[], Sandbox], tmp_path: Path) -> None:
    root = tmp_path / "project"
    two_databases(root)
    with open_() as sandbox:
        sandbox.ensure(["1"])
        urls = {name: dsn.url for name, dsn in sandbox.workers()["1"].dsns().items()}
        for url in urls.values():
            execute(url, "insert into users values (null)")
    for name, change in (("app", "add age int"), ("stats", "alter name set not null")):
        (root / name / "2.sql").write_text(f"alter table users {change};")
    with open_() as sandbox:
        sandbox.prepare()
        with pytest.raises(MigrationError, match="contains null values") as caught:
            sandbox.migrate(sandbox.workers()["1"])
        assert "is as it was" in caught.value.full_text
        assert query(urls["default"], "select * from users") == [(None,)]
        assert query(urls["stats"], "select * from users") == [(None,)]
        execute(urls["stats"], "update users set name = 'x'")
        done, _ = sandbox.migrate(sandbox.workers()["1"])
        assert {name: what.steps for name, what in done.items()} == {
            "default": ("app/2.sql",),
            "stats": ("stats/2.sql",),
        }
        assert query(urls["default"], "select * from users") == [(None, None)]
        # A fork has both, and is nobody else's.
        fork, _ = sandbox.fork(sandbox.workers()["1"], "both")
        assert fork.databases.keys() == {"default", "stats"}
        execute(fork.dsn("stats").url, "insert into users values ('of the fork')")
        assert query(urls["stats"], "select * from users") == [("x",)]
        # Back to the migrations' state it is the role's of its own.
        sandbox.reset(fork)
        assert query(sandbox.forks()["both"].dsn("stats").url, "select * from users") == []
        sandbox.drop_fork(sandbox.forks()["both"])
        assert sandbox.forks() == {}
        roles = sandbox.server.session.column("select rolname from pg_roles where rolname like '%%both'")
        assert roles == []
        with pytest.raises(LeaseError, match="is no fork"):
            sandbox.drop_fork(sandbox.workers()["1"])


def test_what_a_copy_does_not_have_is_refused(open_: Callable[[], Sandbox], tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "db").mkdir()
    (root / "db" / "1.sql").write_text("create table users (name text);")
    (root / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    with open_() as sandbox:
        sandbox.ensure(["1"])
        place = sandbox.workers()["1"]
        admin = place.dsn(admin=True).url
        execute(
            admin,
            "create subscription mine connection 'host=127.0.0.1 port=1' publication p with (connect = false)",
        )
        (root / "db" / "2.sql").write_text("create table more (id int);")
        sandbox.prepare()
        with pytest.raises(LeaseError, match="has the subscription mine, which would be lost"):
            sandbox.migrate(place)
        assert query(admin, "select subname from pg_subscription") == [("mine",)]
        for statement in ("disable", "set (slot_name = none)"):
            execute(admin, f"alter subscription mine {statement}")
        execute(admin, "drop subscription mine")
        sandbox.migrate(place)
        assert query(admin, "select count(*) from more") == [(0,)]


def test_what_an_earlier_version_made_does_not_tell_its_files(
    open_: Callable[[], Sandbox], tmp_path: Path
) -> None:
    root = tmp_path / "project"
    (root / "db").mkdir()
    (root / "db" / "1.sql").write_text("create table users (name text);")
    (root / "pg-harness.toml").write_text('migrations = ["sql:db"]\n')
    with open_() as sandbox:
        sandbox.ensure(["1"])
        name = sandbox.workers()["1"].dsn().database
        session = sandbox.server.session
        comment = session.value(
            "select shobj_description(oid, 'pg_database') from pg_database where datname = %s", (name,)
        )
        assert '"applied":["step ' in comment
        older = comment.replace('"applied":', '"something":').replace("'", "''")
        session.execute(f"comment on database \"{name}\" is '{older}'")
        assert sandbox.pending(sandbox.workers()["1"]) == {}
        (root / "db" / "2.sql").write_text("create table more (id int);")
        with pytest.raises(MigrationError, match="an earlier version made it and noted nothing"):
            sandbox.pending(sandbox.workers()["1"])


def test_one_database_that_is_gone_under_the_lock(open_: Callable[[], Sandbox], tmp_path: Path) -> None:
    root = tmp_path / "project"
    two_databases(root)
    with open_() as sandbox:
        sandbox.ensure(["1", "2"])
        place = sandbox.workers()["2"]
        for database in place.databases.values():
            sandbox.server.session.execute(f'drop database "{database.name}"')
        with pytest.raises(LeaseError, match="somebody else has dropped it"):
            sandbox.fork(place, "late")
        with pytest.raises(LeaseError, match="somebody else has dropped it"):
            sandbox.migrate(place)
