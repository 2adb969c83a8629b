"""What a test's role may do on a server that other workers use: each line of the table in docs/threat-model.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from fix_servers import binaries_of

from harness.config.load import load
from harness.config.project import Project
from harness.databases.kept import keep_copies
from harness.databases.lease import Lease
from harness.databases.resetting import ensure_baseline
from harness.dsn import Dsn
from harness.errors import ServerRefused
from harness.postgres import databases, names
from harness.postgres.session import Session, ident
from harness.runs.run import Run
from harness.servers import inventory

pytestmark = pytest.mark.server

TABLE = Path(__file__).parents[2] / "docs" / "threat-model.md"

NEW = "made_by_a_test"

REFUSALS = ("42501", "28P01", "55000", "P0001")
"""No right; a wrong password; a database that takes no connections; what a statement here raises itself."""


@dataclass(frozen=True)
class Place:
    """Two workers of one run; the first one's test tries things."""

    harness: Run
    mine: Lease
    other: Lease

    def run(self, *statements: str, on: Dsn | None = None) -> None:
        """As the first worker's role, one after the other.

        Raises:
            ServerRefused: one is refused.
        """
        with Session.connect(on or self.mine.dsn) as session:
            for statement in statements:
                session.execute(statement)

    def may(self, *statements: str, on: Dsn | None = None) -> bool:
        """Whether any of them is let through; each is tried. None: whether it can log in."""
        let = 0
        for statement in statements or ("select 1",):
            try:
                self.run(statement, on=on)
            except ServerRefused as error:
                if error.sqlstate not in REFUSALS:
                    raise
            else:
                let += 1
        # What the table says in one line has one answer.
        assert let in (0, len(statements or "1")), (let, statements)
        return let > 0

    def at(self, database: str) -> Dsn:
        """A database, as the first worker's role."""
        return self.mine.dsn.with_database(database)

    def spoil(self, name: str) -> bool:
        """Whether it may do with a database what its owner may."""
        return self.may(
            f"alter database {ident(name)} with allow_connections true",
            f"alter database {ident(name)} set work_mem = '5MB'",
            f"alter database {ident(name)} rename to {ident(NEW)}",
            f"alter database {ident(name)} owner to current_user",
            f"do $$ begin grant connect on database {ident(name)} to current_user; "
            f"if not exists (select from pg_database, aclexplode(datacl) where datname = '{name}' "
            "and grantee = current_user::regrole) then raise 'not granted'; end if; end $$",
            f"drop database {ident(name)} with (force)",
        )

    def unclaimed(self) -> list[str]:
        """A template, a baseline and a spare of it."""
        clones, template = self.harness.clones, self.harness.templates["default"]
        clones.fill(template, 1)
        return [template.name, ensure_baseline(clones, template), clones.spares(template)[0]]

    def kept(self) -> str:
        """A copy of the other worker's database, kept."""
        session = self.harness.session
        return keep_copies(session, self.other, "a test", schema_changed=False)[0].name


def one(answers: list[bool]) -> bool:
    assert len(set(answers)) == 1, answers
    return answers[0]


def of_new(place: Place, act: Callable[[], bool]) -> bool:
    """What may be done with a database that the other worker has created."""
    place.run(f"create database {NEW}", on=place.other.dsn)
    try:
        place.run("create table theirs (id int)", on=place.other.dsn.with_database(NEW))
        return act()
    finally:
        place.run(f"drop database {NEW} with (force)", on=place.other.dsn)


def _my_new(place: Place) -> bool:
    place.run(f"create database {NEW}")
    place.run("create table t (id int)", on=place.at(NEW))
    return place.may(f"drop database {NEW}")


def _building(place: Place) -> bool:
    session, owner = place.harness.link.session, place.harness.owner
    name = names.building(place.harness.project, "0" * 64)
    databases.create_empty(session, name, owner=owner.name, locale=databases.deterministic_locale(session))
    return place.may(on=place.at(name)) and place.may(f"drop database {ident(name)} with (force)")


def _postgres(place: Place, *, createdb: bool) -> bool:
    settings = place.harness.settings
    attributes = ("CREATEDB",) if createdb else ()
    project = Project.of(replace(settings, role_attributes=attributes), place.harness.environ)
    with Run.open_with(project.settings, place.harness.environ) as again, again.lease() as lease:
        try:
            Session.connect(lease.dsn.with_database("postgres")).close()
        except ServerRefused as error:
            if error.sqlstate not in REFUSALS:
                raise
            return False
        return True


def _sessions(place: Place) -> bool:
    with psycopg.connect(place.other.url, autocommit=True) as theirs:
        theirs.execute("select 'a secret'")
        pid = theirs.info.backend_pid
        return place.may(
            f"select pg_terminate_backend({pid})",
            f"select pg_cancel_backend({pid})",
            f"do $$ begin if not exists (select from pg_stat_activity where pid = {pid} and query like '%secret%') "
            "then raise 'not seen'; end if; end $$",
        )


MIGRATES = "app"

LINES: dict[tuple[str, str], Callable[[Place], bool]] = {
    ("its own database", "read, write, create, drop what the migrations made"): lambda place: place.may(
        "select * from seeded",
        "insert into users (name) values ('x')",
        "create table t (id int)",
        "create schema s",
        "create function public.f() returns int language sql as 'select 1'",
        "alter table users add column more int",
        "create or replace view seen as select name from users where true",
        "create extension hstore",
        "drop table users cascade",
    ),
    ("its own database", "`drop schema public cascade`, `create schema public`"): lambda place: place.may(
        "drop schema public cascade", "create schema public", "create table public.t (id int)"
    ),
    ("its own database", "`ALTER DATABASE … SET`, `COMMENT ON DATABASE`"): lambda place: place.may(
        f"alter database {ident(place.mine.dsn.database)} set work_mem = '5MB'",
        f"comment on database {ident(place.mine.dsn.database)} is 'mine'",
    ),
    ("a database that it created", "enter, write, drop"): _my_new,
    ("another worker's database", "enter"): lambda place: place.may(on=place.at(place.other.dsn.database)),
    (
        "another worker's database",
        "alter, rename, drop, give itself the right to enter",
    ): lambda place: place.spoil(place.other.dsn.database),
    ("a database that another worker's test created", "alter, drop"): lambda place: of_new(
        place, lambda: place.may(f"alter database {NEW} set work_mem = '5MB'", f"drop database {NEW}")
    ),
    ("a database that another worker's test created", "enter"): lambda place: of_new(
        place, lambda: place.may(on=place.at(NEW))
    ),
    ("a database that another worker's test created", "read its tables"): lambda place: of_new(
        place, lambda: place.may("select * from theirs", on=place.at(NEW))
    ),
    ("a template, a baseline, a spare", "enter"): lambda place: one(
        [place.may(on=place.at(name)) for name in place.unclaimed()]
    ),
    (
        "a template, a baseline, a spare",
        "alter, rename, drop, give itself the right to enter",
    ): lambda place: one([place.spoil(name) for name in place.unclaimed()]),
    ("a template", "clone"): lambda place: place.may(
        f"create database {NEW} template {ident(place.harness.templates['default'].name)}"
    ),
    ("a template that is being built", "enter, alter, drop"): _building,
    ("a database that is kept for people", "enter, alter, drop"): lambda place: (
        place.may(on=place.at(kept := place.kept())) or place.spoil(kept)
    ),
    ("`template1`", "enter"): lambda place: place.may(on=place.at("template1")),
    ("`postgres`", "enter, with `CREATEDB`"): lambda place: _postgres(place, createdb=True),
    ("`postgres`", "enter, without `CREATEDB`"): lambda place: _postgres(place, createdb=False),
    (
        "`postgres`",
        "create tables, temporary tables and large objects, take advisory locks",
    ): lambda place: place.may(
        "create table t (id int)",
        "create temporary table t (id int)",
        "create schema s",
        "select lo_create(0)",
        "select lo_from_bytea(0, '')",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared(1)",
        "select pg_advisory_xact_lock(1, 2)",
        on=place.at("postgres"),
    ),
    ("its own role", "change its password and settings"): lambda place: place.may(
        f"alter role current_user password '{place.mine.dsn.password}'",
        "alter role current_user set work_mem = '5MB'",
    ),
    ("its own role", "get other attributes, leave its group"): lambda place: place.may(
        "alter role current_user superuser",
        "alter role current_user createrole",
        "alter role current_user noinherit",
        f"do $$ begin revoke {MIGRATES} from current_user; "
        f"if pg_has_role('{MIGRATES}', 'member') then raise 'stays'; end if; end $$",
    ),
    ("the role that migrates", "become it (`SET ROLE`)"): lambda place: place.may(f"set role {MIGRATES}"),
    ("the role that migrates", "log in as it, change its password"): lambda place: (
        place.may(on=place.mine.dsn.with_user(MIGRATES, place.harness.owner.password))
        or place.may(f"alter role {MIGRATES} password 'known'")
    ),
    ("another worker's role", "become it, change its password, drop it"): lambda place: place.may(
        f"set role {place.other.dsn.user}",
        f"alter role {place.other.dsn.user} password 'known'",
        f"grant {place.other.dsn.user} to current_user",
        f"drop role {place.other.dsn.user}",
    ),
    ("another worker's sessions", "end them, cancel them, see what they run"): _sessions,
    ("the server", "change its settings, read files, run programs"): lambda place: place.may(
        "alter system set work_mem = '5MB'",
        "select pg_reload_conf()",
        "select pg_read_file('pg_hba.conf')",
        "copy (select 1) to program 'true'",
        "select pg_ls_dir('.')",
    ),
}


def documented() -> dict[tuple[str, str], str]:
    """Object and act → the table's answer."""
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (can|cannot) \|$", TABLE.read_text(), re.MULTILINE)
    return {(what, act): answer for what, act, answer in lines}


@pytest.fixture(scope="module", params=["15", "18"])
def harness(
    request: pytest.FixtureRequest, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """A run on a server of its own."""
    root = tmp_path_factory.mktemp("powers")
    binaries = binaries_of(request.param)
    if binaries is None:
        pytest.skip(f"PostgreSQL {request.param} is not installed on this machine")
    (root / "db").mkdir()
    (root / "db" / "1.sql").write_text(
        "create table users (name text); create table seeded (id int); insert into seeded values (1);"
        "create view seen as select name from users;"
    )
    (root / "pg-harness.toml").write_text(f'migrations = ["sql:db"]\nbinaries = "{binaries}"\n')
    environ = {
        **os.environ,
        "PGHARNESS_STATE_DIR": str(folders[0]),
        "PGHARNESS_CACHE_DIR": str(folders[1]),
        "PGHARNESS_BACKEND": "process",
    }
    settings = load(environ, start=root)
    try:
        with Run.open_with(settings, environ) as harness:
            yield harness
    finally:
        inventory.stop(Project.of(settings, environ), purpose="run")


@pytest.fixture
def place(harness: Run) -> Iterator[Place]:
    with harness.lease("1") as mine, harness.lease("2") as other:
        yield Place(harness, mine, other)


@pytest.mark.parametrize("line", LINES, ids=": ".join)
def test_the_table_is_true(place: Place, line: tuple[str, str]) -> None:
    assert ("can" if LINES[line](place) else "cannot") == documented()[line]


def test_each_line_of_the_table_is_tried() -> None:
    assert documented().keys() == LINES.keys()


def test_the_run_leaves_no_role_and_no_database(harness: Run) -> None:
    with Run.open_with(harness.settings, harness.environ) as run:
        with run.lease() as lease, Session.connect(lease.dsn) as session:
            role = session.value("select current_user")
            session.execute("create database left_by_a_test")
        roles = "select rolname from pg_roles where rolname like %s"
        assert run.link.session.column(roles, (f"%{run.run}%",)) == [role]
    session = harness.link.session
    assert session.column(roles, (f"%{run.run}%",)) == []
    assert databases.find(session, "left_by_a_test") is None
