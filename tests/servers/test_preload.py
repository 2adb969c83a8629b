"""Libraries that a server loads at its start, and background workers of extensions: Debian's pg_cron, really."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import until
from fix_runs import environ_of_15
from fix_servers import binaries_of

from harness.config.load import load
from harness.config.project import Project
from harness.config.settings import Settings
from harness.databases import background, builder
from harness.errors import ConfigError, MigrationError, ServerStartError
from harness.postgres import databases, names
from harness.postgres.session import Session
from harness.runs.run import Run
from harness.servers import drift, inventory, preload

PG_CRON = Path("/usr/share/postgresql/15/extension/pg_cron.control")

needs_pg_cron = pytest.mark.skipif(
    binaries_of("15") is None or not PG_CRON.exists(), reason="pg_cron for PostgreSQL 15 is not installed"
)

# Until the scheduler has come into the database that is to become a template.
JOINED = """
do $$ begin
    for i in 1..500 loop
        exit when exists (select from pg_stat_activity where backend_type = 'pg_cron launcher' and datname = current_database());
        perform pg_sleep(0.02); perform pg_stat_clear_snapshot();
    end loop;
end $$;
create table joined as select count(*) from pg_stat_activity where backend_type = 'pg_cron launcher' and datname = current_database();
"""

MIGRATION = """
create extension pg_cron;
create table ticks (at timestamptz default clock_timestamp());
select cron.schedule('nightly', '0 3 * * *', 'insert into ticks default values');
"""

WORKERS = "select pid from pg_stat_activity where datname = %s and backend_type = %s"


@pytest.fixture
def new_project(
    folders: tuple[Path, Path], tmp_path: Path
) -> Iterator[Callable[..., tuple[Settings, dict[str, str]]]]:
    """Makes a project; its server is gone afterwards."""
    environ = environ_of_15(folders)
    made: list[Settings] = []

    def make(
        migration: str = "select 1", more: str = "", **overrides: object
    ) -> tuple[Settings, dict[str, str]]:
        (tmp_path / "db").mkdir()
        (tmp_path / "db" / "1.sql").write_text(migration)
        (tmp_path / "pg-harness.toml").write_text(
            f'migrations = ["sql:db"]\nmigrate_as = "admin"\npreload = ["pg_cron"]\n{more}'
        )
        made.append(load(environ, start=tmp_path, overrides=overrides))
        return made[-1], environ

    yield make
    for settings in made:
        inventory.stop(Project.of(settings, environ), purpose="run")


def of(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "pg-harness.toml").write_text(text)
    return load({}, start=tmp_path)


def test_what_the_user_preloads_himself_stays_and_his_database_too(tmp_path: Path) -> None:
    settings = of(
        tmp_path,
        'preload = ["pg_cron", "auto_explain"]\n[postgres]\nshared_preload_libraries = "auto_explain, x"\n',
    )
    found = preload.postgres(settings, "0123456789")
    assert found["shared_preload_libraries"] == "auto_explain,x,pg_cron"
    assert found["cron.database_name"] == names.scheduler("0123456789")
    assert names.parse(found["cron.database_name"]) is not None
    assert preload.scheduling(settings)
    his = of(tmp_path, 'preload = ["pg_cron"]\n[postgres]\n"cron.database_name" = "mine"\n')
    assert preload.postgres(his, "0123456789")["cron.database_name"] == "mine"
    assert not preload.scheduling(his)
    assert preload.postgres(of(tmp_path, ""), "0123456789") == {}


def test_a_library_with_a_folder_or_a_comma_is_refused(tmp_path: Path) -> None:
    for bad in ("/usr/lib/x", "a,b", "../x"):
        with pytest.raises(ConfigError, match="without a folder"):
            of(tmp_path, f'preload = ["{bad}"]')


def test_a_server_with_other_libraries_is_another_one(tmp_path: Path) -> None:
    plain, loaded = of(tmp_path, ""), of(tmp_path, 'preload = ["pg_cron"]')
    assert drift.mark(plain) != drift.mark(loaded)
    assert drift.of(loaded, "process")["preload"] == "pg_cron"
    assert "preload" not in drift.of(plain, "process")


@pytest.mark.server
@pytest.mark.skipif(binaries_of("15") is None, reason="PostgreSQL 15 is not installed")
@pytest.mark.parametrize(
    ("library", "told"),
    [
        (
            "timescale",
            "It is called 'timescaledb'. It comes with image = \"timescale/timescaledb:latest-pgN\"",
        ),
        ("no_such_thing", "Install the extension's package"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_where_to_get_it(
    new_project: Callable[..., tuple[Settings, dict[str, str]]], library: str, told: str
) -> None:
    settings, environ = new_project(preload=[library])
    with pytest.raises(ServerStartError) as caught:
        Run.open_with(settings, environ)
    text = str(caught.value)
    assert f"the server has no library {library!r}" in text
    assert "setting preload" in text
    assert told in text
    assert "could not access file" in text


@pytest.mark.docker
def test_in_a_container_likewise(new_project: Callable[..., tuple[Settings, dict[str, str]]]) -> None:
    settings, environ = new_project(
        preload=["pg_kron"], backend="docker", image="pgharness-test:15", binaries=None
    )
    environ = {k: v for k, v in environ.items() if k != "PGHARNESS_BINARIES"}
    with pytest.raises(ServerStartError, match="the server has no library 'pg_kron'"):
        Run.open_with(settings, environ)


@pytest.mark.server
@needs_pg_cron
def test_on_a_shared_server_jobs_are_rows_that_a_reset_puts_back(
    new_project: Callable[..., tuple[Settings, dict[str, str]]],
) -> None:
    settings, environ = new_project(MIGRATION + JOINED)
    with Run.open_with(settings, environ) as run:
        admin = run.link.session
        (template,) = (d for d in databases.list_ours(admin, run.project) if d.kind is names.Kind.TEMPLATE)
        assert not template.allows_connections
        # The scheduler was in it: it was ended, and what it serves is none of ours now.
        assert admin.column(WORKERS, (template.name, "pg_cron launcher")) == []
        run.shared.fill(2)
        leases = run.leases(2, watch=True)
        for lease in leases:
            with Session.connect(admin.dsn.with_database(lease.dsn.database)) as inside:
                assert inside.value("select count from joined") == 1
                assert inside.column("select jobname from cron.job") == ["nightly"]
                inside.value("select cron.schedule('mine', '* * * * *', 'insert into ticks default values')")
                inside.execute("delete from cron.job where jobname = 'nightly'")
                report = lease.reset()
                assert report.strategy != "clone"
                assert inside.column("select jobname from cron.job") == ["nightly"]
            assert lease.renew().strategy == "clone"
        # The next run's sweep leaves what jobs are noted for.
        run.sweep()
        assert databases.find(admin, names.scheduler(run.project)) is not None
        for lease in leases:
            lease.release()
    # Other migrations on the same server: they are made under the same name.
    (settings.root / "db" / "1.sql").write_text(MIGRATION)
    with Run.open_with(settings, environ) as run, run.lease() as lease:
        database = run.server.admin_dsn.with_database(lease.dsn.database)
        with Session.connect(database) as inside:
            assert inside.column("select jobname from cron.job") == ["nightly"]
            assert inside.value("select to_regclass('joined')") is None


@pytest.mark.server
@needs_pg_cron
def test_with_a_server_for_each_worker_its_jobs_run_and_a_reset_ends_them(
    new_project: Callable[..., tuple[Settings, dict[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    settings, environ = new_project(
        MIGRATION
        + "select cron.schedule('start', '@reboot', 'insert into ticks select now() from pg_sleep(60)');",
        isolation="server",
    )
    with Run.open_with(settings, environ) as run:
        lease = run.lease(watch=True)
        admin, name = run.link.session, lease.dsn.database
        assert background.scheduler_database(admin) == name
        until(
            lambda: admin.column(WORKERS, (name, "pg_cron")),
            seconds=20,
            what="the job that runs at the start",
        )
        with Session.connect(admin.dsn.with_database(name)) as inside:
            assert set(inside.column("select database from cron.job")) == {name}
            inside.execute("insert into ticks default values")
            (scheduler,) = admin.column(WORKERS, (name, "pg_cron launcher"))
            began = time.monotonic()
            report = lease.reset()
            assert time.monotonic() - began < settings.reset_timeout
            assert report.strategy != "clone"
            assert admin.column(WORKERS, (name, "pg_cron")) == []
            assert inside.value("select count(*) from ticks") == 0
            # It goes on: only its job was ended.
            assert admin.column(WORKERS, (name, "pg_cron launcher")) == [scheduler]
        assert lease.renew().strategy == "clone"
        assert "runs no jobs on this server any more" in caplog.text
        lease.release()


@pytest.mark.server
@needs_pg_cron
def test_no_job_runs_in_a_template_that_is_being_finished(
    new_project: Callable[..., tuple[Settings, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, environ = new_project(
        MIGRATION + "select cron.schedule('start', '@reboot', 'insert into ticks select now()');",
        isolation="server",
    )
    began: list[bool] = []

    def slowly(inside: Session) -> bool:
        """As it is, and then the scheduler has time for its first job."""
        settled = databases.settle_sequences(inside)
        deadline = time.monotonic() + 3
        while not inside.value("select is_called from cron.runid_seq") and time.monotonic() < deadline:
            time.sleep(0.02)
        began.append(inside.value("select is_called from cron.runid_seq"))
        return settled

    monkeypatch.setattr(builder, "settle_sequences", slowly)
    with Run.open_with(settings, environ) as run:
        assert began == [False]
        run.lease(watch=True).release()


@pytest.mark.server
@needs_pg_cron
def test_a_database_of_the_users_for_the_scheduler_is_told_to_be_in_the_way(
    new_project: Callable[..., tuple[Settings, dict[str, str]]],
) -> None:
    settings, environ = new_project(MIGRATION, more='[postgres]\n"cron.database_name" = "postgres"\n')
    with pytest.raises(MigrationError) as caught:
        Run.open_with(settings, environ)
    assert "can only create extension in database postgres" in caught.value.full_text
    assert "leave cron.database_name out" in caught.value.full_text
