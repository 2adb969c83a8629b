"""The whole chain on a real project: settings, server, templates, leases, environment, release."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from fix_runs import local_environ

from harness.config import environment
from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.postgres import databases, names, roles
from harness.runs.run import Run
from harness.servers import inventory, memory

pytestmark = pytest.mark.server

SQL = "create table users (id serial primary key, name text);\ninsert into users (name) values ('seed');\n"


@pytest.fixture
def environ(folders: tuple[Path, Path]) -> dict[str, str]:
    """The environment, with folders of the tests' own and a DATABASE_URL that must never be touched."""
    return local_environ(
        folders,
        DATABASE_URL="postgresql://production:secret@127.0.0.1:1/production",
        PGHOSTADDR="127.0.0.2",
        PGOPTIONS="-c default_transaction_read_only=on",
        PGSERVICE="nowhere",
    )


@pytest.fixture
def settings(tmp_path: Path, environ: dict[str, str]) -> Iterator[Settings]:
    """A project whose folder's name is awkward; its servers are gone afterwards."""
    root = tmp_path / 'it\'s a "shop" (ü)'
    (root / "db").mkdir(parents=True)
    (root / "db" / "001.sql").write_text(SQL)
    (root / "analytics").mkdir()
    (root / "analytics" / "1.sql").write_text("create table events (id int);")
    (root / "pg-harness.toml").write_text(
        'migrations = ["sql:db"]\n[env]\nSQLALCHEMY_URL = "{sqlalchemy}"\nBOTH = "{analytics.database}"\n'
        '[databases.analytics]\nmigrations = ["sql:analytics"]\nenv = { ANALYTICS_URL = "{url}" }\n'
    )
    found = load(environ, start=root)
    yield found
    for purpose in ("run", "up"):
        inventory.stop(Project.of(found, environ), purpose=purpose)


def test_four_workers_with_two_databases_each(
    settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What bends libpq must not bend our own connections either, also those made in this process.
    for name in ("PGHOSTADDR", "PGOPTIONS", "PGSERVICE"):
        monkeypatch.setenv(name, environ[name])
    with Run.open_with(settings, environ) as harness:
        leases = harness.leases(4)
        assert len({lease.dsn.database for lease in leases}) == 4
        with leases[0].connect() as connection:
            connection.execute("insert into users (name) values ('only mine')")
        counts = []
        for lease in leases:
            with lease.connect() as connection:
                counts.append(connection.execute("select count(*) from users").fetchone())
            with lease["analytics"].connect() as connection:
                assert connection.execute("select count(*) from events").fetchone() == (0,)
        assert counts == [(2,), (1,), (1,), (1,)]
        values = harness.variables(leases[1])
        assert values["DATABASE_URL"] == leases[1].url
        assert values["SQLALCHEMY_URL"] == leases[1].dsn.sqlalchemy
        assert values["ANALYTICS_URL"] == leases[1]["analytics"].url
        assert values["BOTH"] == leases[1]["analytics"].dsn.database
        left = databases.list_ours(harness.link.session, harness.project)
        project = harness.project
    with Run.open_with(settings, environ) as again:
        assert not again.server.started
        assert all(not t.built for t in again.templates.values())
        now = {d.name for d in databases.list_ours(again.link.session, project)}
    leased = {d.name for d in left if d.parsed and d.parsed.kind is names.Kind.LEASE}
    assert len(leased) == 8
    assert not leased & now


def test_leases_without_a_name_are_different_databases(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ) as harness:
        with harness.lease() as one, harness.lease() as two:
            assert (one.worker, two.worker) == ("1", "2")
            assert one.url != two.url
        with harness.lease() as again:
            assert again.worker == "1"


def test_a_child_process_reaches_its_own_database_whatever_the_shell_says(
    settings: Settings, environ: dict[str, str]
) -> None:
    with Run.open_with(settings, environ) as harness, harness.lease() as lease:
        child = environment.child_environment(environ, harness.variables(lease))
        code = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('select current_database()').fetchone()[0])"
        for source in (code, code.replace("os.environ['DATABASE_URL']", "''")):
            done = subprocess.run(
                [sys.executable, "-c", source],
                env=child,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.stdout.strip() == lease.dsn.database, done.stderr


def test_what_a_dead_run_left_is_dropped_by_the_next(
    settings: Settings, environ: dict[str, str], told: list[str]
) -> None:
    first = Run.open_with(settings, environ)
    lease = first.lease("dead")
    with psycopg.connect(lease.url, autocommit=True) as connection:
        connection.execute("create database made_by_a_dead_run")
    name = lease.dsn.database
    # As after SIGKILL: the sign of life is gone, the databases are not.
    first.session.abandon()
    told.clear()
    from harness.databases import sweep

    grace, sweep.GRACE = sweep.GRACE, sweep.GRACE * 0
    try:
        with Run.open_with(settings, environ) as second:
            assert databases.find(second.link.session, name) is None
            assert databases.find(second.link.session, "made_by_a_dead_run") is None
    finally:
        sweep.GRACE = grace
    assert any(name in line for line in told)
    assert any("made_by_a_dead_run" in line for line in told)


def test_changed_migrations_make_a_new_template(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ) as before:
        old = before.templates["default"]
    (settings.root / "db" / "002.sql").write_text("alter table users add column email text;")
    with Run.open_with(settings, environ) as after, after.lease() as lease:
        assert after.templates["default"].built
        assert after.templates["default"].fingerprint != old.fingerprint
        assert not after.templates["analytics"].built
        with lease.connect() as connection:
            connection.execute("select email from users")


def test_data_that_outgrows_memory_moves_to_disk_and_stays_there(
    settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(memory, "allowed", lambda settings: memory.WRITES)
    with Run.open_with(settings, environ) as harness, harness.lease() as lease:
        if not any("memory" in line for line in told):
            pytest.skip("this machine has no room in memory to begin with")
        assert harness.server.info.storage == "disk"
        with lease.connect() as connection:
            assert connection.execute("select count(*) from users").fetchone() == (1,)
    assert any("moving to disk" in line for line in told)
    inventory.stop(Project.of(settings, environ))
    with Run.open_with(settings, environ) as again:
        assert again.server.info.storage == "disk"


def test_a_persons_databases_are_never_leased_nor_swept(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ, purpose="up") as mine:
        url = mine.lease("1", watch=False).url
    with Run.open_with(settings, environ) as tests:
        assert tests.server.info.server_id != mine.server.info.server_id
        tests.leases(2)
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)


def test_an_open_harness_shows_its_state_and_no_password(settings: Settings, environ: dict[str, str]) -> None:
    with Run.open_with(settings, environ) as harness:
        lease = harness.lease()
        assert "2 templates, 1 leases" in repr(harness)
        for secret in (harness.owner.password, harness.link.dsn.password):
            assert secret not in repr(harness) + repr(lease) + repr(harness.server) + repr(harness.settings)


def test_a_run_that_needed_a_clone_has_the_next_one_ready_and_gives_it_back(
    settings: Settings, environ: dict[str, str]
) -> None:
    def there(harness: Run) -> dict[names.Kind, int]:
        found = databases.list_ours(harness.link.session, harness.project)
        return Counter(d.parsed.kind for d in found if d.parsed)

    # By pages no table would need one.
    settings = replace(settings, engine="rows")
    with Run.open_with(settings, environ) as harness:
        before = there(harness)
        with harness.lease(watch=True) as lease:
            with lease.connect() as connection:
                connection.execute("insert into users (name) values ('mine')")
            assert lease.reset().strategy in ("restore", "rewind")
            # A run that never needed a clone has nobody in the background, and no spare.
            assert harness.session.filler is None
            assert there(harness)[names.Kind.SPARE] == 0
            with lease.connect() as connection:
                connection.execute("create table extra (id int)")
            assert lease.reset().strategy == "clone"
            assert harness.session.filler is not None
            assert harness.session.filler.idle(30)
            # Of the one database that needed it.
            assert there(harness)[names.Kind.SPARE] == 1
            assert there(harness)[names.Kind.RETIRED] == 0
            assert len(harness.clones.spares(harness.templates["default"])) == 1
            with lease.connect() as connection:
                connection.execute("create table extra (id int)")
            assert lease.reset().strategy == "clone"
    with Run.open_with(settings, environ) as after:
        left = there(after)
        # What the first reset made once for the template stays, as it always did.
        del left[names.Kind.BASELINE]
        assert left == before


def test_log_ins_of_our_servers_hash_once(settings: Settings, environ: dict[str, str]) -> None:
    """4096 rounds are 2 ms of each log-in, and guard nothing where the password is random."""
    rounds = "select split_part(split_part(rolpassword, ':', 1), '$', 2) from pg_authid where rolname = %s"
    with Run.open_with(settings, environ) as harness, harness.lease() as lease:
        session = harness.link.session
        for role in ("postgres", harness.owner.name, lease.dsn.user):
            assert session.value(rounds, (role,)) == "1"
        with lease.connect() as connection:
            assert connection.execute("select current_user").fetchone() == (lease.dsn.user,)
        # On another's server the role may have had a password that somebody thought up.
        session.execute("set harness.server_id = ''")
        roles.ensure(session, "guessed", password="secret", attributes=(), superuser=False)
        assert session.value(rounds, ("guessed",)) == "4096"
        session.execute("drop role guessed")
        session.execute("reset harness.server_id")
