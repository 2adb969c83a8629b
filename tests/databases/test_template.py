"""Templates: built once per fingerprint, marked last, complete; nothing left behind by what fails."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_servers import OWNER

from harness.databases import builder, sweep, template
from harness.databases.clones import Claim, Clones
from harness.databases.spec import TemplateSpec
from harness.databases.template import Template
from harness.errors import MigrationError, TemplateBusy
from harness.migrations.port import MigrationContext
from harness.postgres import databases, names, roles
from harness.postgres.admin import Link
from harness.postgres.databases import read_attributes
from harness.postgres.session import Session, ident
from harness.servers.port import ServerInfo


@dataclass
class Script:
    """A source that runs statements, one by one, as whoever migrates."""

    statements: Sequence[str] = ()
    text: str = "sql:script"
    act: Callable[[MigrationContext], None] = field(default=lambda context: None)
    applied: int = 0

    def fingerprint(self) -> str:
        return names.digest(json.dumps(list(self.statements)), 32)

    def apply(self, context: MigrationContext) -> None:
        self.applied += 1
        self.act(context)
        with Session.connect(context.dsn, application_name="migration") as session:
            for statement in self.statements:
                try:
                    session.execute(statement)
                except Exception as error:
                    raise MigrationError(f"{self.text}: {error}", source=self.text, step=statement) from error


@pytest.fixture
def project(checkout: str) -> str:
    """An id of a checkout of its own; afterwards nothing of it may be left."""
    return checkout


def ensure(link: Link, project: str, *sources: Script, **options: object) -> Template:
    return template.ensure(link.session, project, TemplateSpec("default", sources, **options), OWNER)  # type: ignore[arg-type]


def kinds(link: Link, project: str) -> list[str]:
    return [d.parsed.kind.value for d in databases.list_ours(link.session, project) if d.parsed]


TABLES = Script(["create table t (id serial primary key, x text)", "insert into t (x) values ('seed')"])


def test_a_template_is_built_once_and_found_again(link: Link, project: str) -> None:
    source = Script(TABLES.statements)
    first = ensure(link, project, source)
    second = ensure(link, project, source)
    assert (first.built, second.built) == (True, False)
    assert first.name == second.name == names.template(project, first.fingerprint)
    assert source.applied == 1
    found = databases.find(link.session, first.name)
    assert found is not None
    assert (found.is_template, found.allows_connections, found.role) == (True, False, link.dsn.user)
    encoding, collate = link.session.row(
        "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = %s", (first.name,)
    ) or ("", "")
    assert encoding == "UTF8"
    assert collate in ("C", "C.utf8", "C.UTF-8")


@pytest.mark.parametrize(
    "change",
    [
        {"sources": [Script(["select 1"])]},
        {"extensions": ["hstore"]},
        {"migrate_as": "admin"},
        {"decisive": "timezone=Asia/Tokyo"},
        {"database": "analytics"},
        {"sources": [TABLES, Script(["select 1"])]},
        {"sources": [Script(TABLES.statements, text="sql:elsewhere")]},
    ],
)
def test_whatever_decides_the_outcome_changes_the_fingerprint(link: Link, change: dict[str, object]) -> None:
    base: dict[str, object] = {"database": "default", "sources": [TABLES]}
    one = TemplateSpec(**base).fingerprint(link.session)  # type: ignore[arg-type]
    other = TemplateSpec(**{**base, **change}).fingerprint(link.session)  # type: ignore[arg-type]
    assert one != other
    assert one == TemplateSpec(**base).fingerprint(link.session)  # type: ignore[arg-type]


def test_eight_at_once_migrate_once(link: Link, project: str, server: ServerInfo) -> None:
    """Eight processes that start at the same moment: one builds, seven wait and find."""
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from test_template import *\n"
        "from harness.dsn import Dsn\n"
        "link = Link(Dsn.parse(sys.argv[2]), sys.argv[3])\n"
        "source = Script(['create table t (id int)', 'select pg_sleep(0.3)'])\n"
        "sys.stdin.readline()\n"
        "made = ensure(link, sys.argv[4], source)\n"
        "print(json.dumps([made.name, made.built, source.applied]))\n"
    )
    arguments = [json.dumps(sys.path), server.dsn.url, server.server_id, project]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert len({name for name, _, _ in answers}) == 1
    assert sum(built for _, built, _ in answers) == 1
    assert sum(applied for _, _, applied in answers) == 1
    assert kinds(link, project) == ["t"]


def test_a_failed_migration_is_kept_for_inspection_and_the_next_run_does_not_trip_over_it(
    link: Link, project: str
) -> None:
    broken = Script(["create table t (id int)", "create role pgh_test_half nologin", "selec 1"])
    for _ in range(2):
        with pytest.raises(MigrationError) as caught:
            ensure(link, project, broken)
        kept = caught.value.database
        assert caught.value.step == "selec 1" or "permission denied" in str(caught.value)
        assert kept in caught.value.full_text
        assert "s3cret" not in caught.value.full_text
        assert names.parse(kept) is not None
        assert kinds(link, project) == ["k"], "only the newest is kept"
    with Session.connect(link.dsn.with_database(kept)) as inside:
        assert inside.value("select count(*) from pg_class where relname = 't'") == 1
    assert ensure(link, project, Script(["create table t (id int)"])).built


def test_a_role_of_a_failed_migration_is_gone_and_does_not_fail_the_next(link: Link, project: str) -> None:
    broken = Script(["create role pgh_test_half nologin", "selec 1"])
    for _ in range(2):
        with pytest.raises(MigrationError, match="syntax error"):
            ensure(link, project, broken, migrate_as="admin")
        assert "pgh_test_half" not in roles.all_roles(link.session)
    mended = Script(["create role pgh_test_half nologin"])
    made = ensure(link, project, mended, migrate_as="admin")
    assert "pgh_test_half" in roles.all_roles(link.session)
    found = databases.find(link.session, made.name)
    assert found is not None
    assert sweep.drop_template(link.session, project, found) == []
    assert "pgh_test_half" not in roles.all_roles(link.session)


def test_two_fingerprints_that_create_the_same_role(link: Link, project: str) -> None:
    """Roles are the server's: an idle older template makes room, one that is in use gives a clear error."""
    first = ensure(link, project, Script(["create role pgh_test_reader"]), migrate_as="admin")
    second = ensure(
        link, project, Script(["create role pgh_test_reader", "create table t (id int)"]), migrate_as="admin"
    )
    assert first.fingerprint != second.fingerprint
    assert databases.find(link.session, first.name) is None
    clones = Clones(link, project, OWNER, connections=5)
    lease = clones.claim(second, Claim(names.run_id(), "1"))
    with pytest.raises(MigrationError) as caught:
        ensure(link, project, Script(["create role pgh_test_reader", "select 3"]), migrate_as="admin")
    assert "pgh_test_reader" in str(caught.value)
    assert 'isolation = "server"' in caught.value.full_text
    assert databases.find(link.session, lease) is not None
    clones.release(lease)


def test_a_migration_that_leaves_a_session_open_is_named(
    link: Link, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "LINGER", 0.2)
    left: list[Session] = []

    def act(context: MigrationContext) -> None:
        left.append(Session.connect(context.dsn, application_name="leaky migration"))

    with pytest.raises(TemplateBusy) as caught:
        ensure(link, project, Script(["select 1"], act=act))
    assert any("leaky migration" in line for line in caught.value.sessions)
    assert kinds(link, project) == []
    left[0].close()


def test_what_was_cut_off_is_built_again(link: Link, project: str) -> None:
    """A process killed in the middle leaves an unmarked database: the next one drops it and builds."""
    source = Script(["create table t (id int)"])
    wanted = TemplateSpec("default", [source]).fingerprint(link.session)
    locale = databases.deterministic_locale(link.session)
    for name in (names.building(project, wanted), names.template(project, wanted)):
        databases.create_empty(link.session, name, owner="app", locale=locale)
    made = ensure(link, project, source)
    assert made.built
    assert kinds(link, project) == ["t"]


def test_ctrl_c_in_a_migration_leaves_nothing(link: Link, project: str) -> None:
    def act(context: MigrationContext) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(link, project, Script(act=act))
    assert kinds(link, project) == []


def test_an_extension_that_the_server_lacks(link: Link, project: str) -> None:
    with pytest.raises(MigrationError) as caught:
        ensure(link, project, TABLES, extensions=["no_such_extension"])
    assert "no_such_extension" in str(caught.value)
    assert "plpgsql" in str(caught.value)


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        (
            "pgvector",
            r"It is called 'vector'\. It comes with image = \"pgvector/pgvector:pg\d+\"; or Debian's package",
        ),
        ("hstor", r"Is 'hstore' meant\?"),
    ],
)
def test_an_extension_under_another_name_is_suggested(
    link: Link, project: str, extension: str, said: str
) -> None:
    if "vector" in link.session.column("select name from pg_available_extensions") and "vector" in extension:
        said = r"It is called 'vector'\."
    with pytest.raises(MigrationError, match=said):
        ensure(link, project, TABLES, extensions=[extension])


def test_a_migration_that_lacks_an_extension_is_told_where_it_is(link: Link, project: str) -> None:
    with pytest.raises(MigrationError) as caught:
        ensure(link, project, Script(["create extension postgis"]))
    assert 'image = "postgis/postgis"' in caught.value.full_text


def test_extensions_are_made_by_the_admin(link: Link, project: str) -> None:
    made = ensure(link, project, Script(["create table t (h hstore)"]), extensions=["hstore"])
    assert made.built


def test_the_role_that_migrates_is_no_superuser(link: Link, project: str) -> None:
    with pytest.raises(MigrationError, match="permission denied"):
        ensure(link, project, Script(["create role pgh_test_nobody"]))


def test_a_clone_has_what_create_database_loses(link: Link, project: str) -> None:
    """Trap 12: owner, grants, comment and settings are not copied by CREATE DATABASE … TEMPLATE."""

    def act(context: MigrationContext) -> None:
        name = ident(context.dsn.database)
        with Session.connect(context.dsn) as session:
            session.execute(f"alter database {name} set work_mem = '5MB'")
            session.execute(f"alter database {name} set search_path = public, \"a b\", '$user'")
            session.execute(f"comment on database {name} is 'it''s mine\nsecond line'")
            session.execute(f"revoke connect on database {name} from public")
            session.execute(f"grant create on database {name} to pg_monitor with grant option")
            session.execute('create schema "a b"')
        with Session.connect(context.admin_dsn) as session:
            session.execute(f"alter database {name} set my.setting = 'it''s {{braced}}'")
            session.execute(f"alter role app in database {name} set statement_timeout = '90s'")

    made = ensure(link, project, Script(act=act))
    clones = Clones(link, project, OWNER, connections=5)
    lease = clones.claim(made, Claim(names.run_id(), "1"))
    look = "select pg_get_userbyid(datdba), datacl::text, datconnlimit from pg_database where datname = %s"
    before, after = link.session.row(look, (made.name,)), link.session.row(look, (lease,))
    assert before is not None
    assert after is not None
    # The template is the admin's, the lease the application's.
    grants = before[1].replace(link.dsn.user, "app")
    assert sorted(after[1].strip("{}").split(",")) == sorted(grants.strip("{}").split(","))
    assert (before[0], after[0], after[2]) == (link.dsn.user, "app", 8)
    assert read_attributes(link.session, lease) == made.attributes
    found = databases.find(link.session, lease)
    assert found is not None
    assert found.comment == "it's mine\nsecond line"
    with Session.connect(link.dsn.with_database(lease).with_user(OWNER.name, OWNER.password)) as inside:
        assert inside.row("select current_setting('work_mem'), current_setting('my.setting')") == (
            "5MB",
            "it's {braced}",
        )
        assert inside.value("show search_path") == 'public, "a b", "$user"'
        inside.execute("create table public.made_by_app (id int)")
    clones.release(lease)


def test_claims_race_and_everybody_wins_once(link: Link, project: str) -> None:
    """Claim by rename: 12 claimants, 6 spares; each gets a database of its own."""
    made = ensure(link, project, TABLES)
    run = names.run_id()
    Clones(link, project, OWNER, connections=5).fill(made, 6)
    barrier = threading.Barrier(12)

    def claim(number: int) -> str:
        own = link.another()
        clones = Clones(own, project, OWNER, connections=5)
        barrier.wait(timeout=30)
        name = clones.claim(made, Claim(run, f"gw{number}"))
        own.close()
        return name

    with ThreadPoolExecutor(12) as threads:
        claimed = list(threads.map(claim, range(12)))
    assert len(set(claimed)) == 12
    assert kinds(link, project).count("l") == 12
    for name in claimed:
        with Session.connect(link.dsn.with_database(name)) as inside:
            assert inside.rows("select x from t") == [("seed",)]


def test_sources_run_in_order_with_their_environment(link: Link, project: str, tmp_path: Path) -> None:
    seen: list[str] = []
    first = Script(["create table a (id int)"], text="sql:1", act=lambda c: seen.append(c.environment["X"]))
    second = Script(["insert into a values (1)"], text="sql:2", act=lambda c: seen.append(c.dsn.user))
    made = ensure(link, project, first, second, environment=lambda dsn: {"X": dsn.database})
    assert names.parse(seen[0]) is not None
    assert seen[1] == "app"
    assert made.built
