"""Workers with a role of their own: what it owns and inherits, who else may enter, when it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from fix_leases import make_lease
from fix_servers import OWNER

from harness.databases import sweep, template
from harness.databases.clones import Clones
from harness.databases.lease import Lease
from harness.databases.spec import TemplateSpec
from harness.errors import ServerRefused
from harness.migrations.port import MigrationContext
from harness.postgres import databases, names, roles
from harness.postgres.admin import Link
from harness.postgres.session import Session, ident

EACH = replace(OWNER, each=True)


class Script:
    """A source of statements, as whoever migrates; ``{db}`` is the database."""

    text = "sql:script"

    def __init__(self, *statements: str, admin: bool = False) -> None:
        self.statements = statements
        self.admin = admin

    def fingerprint(self) -> str:
        return names.digest("".join(self.statements), 32)

    def apply(self, context: MigrationContext) -> None:
        with Session.connect(context.admin_dsn if self.admin else context.dsn) as session:
            for statement in self.statements:
                session.execute(statement.format(db=ident(context.dsn.database)))


Leasing = Callable[..., Lease]


@pytest.fixture
def leasing(link: Link, checkout: str) -> Leasing:
    """Leases a database of some migrations, for a worker of a run."""

    def lease(*sources: Script, run: str | None = None, worker: str = "1") -> Lease:
        made = template.ensure(link.session, checkout, TemplateSpec("default", sources), EACH)
        clones = Clones(link, checkout, EACH, connections=5)
        return make_lease(clones, made, run or names.run_id(), worker)

    return lease


def acl(link: Link, lease: Lease) -> set[str]:
    text = link.session.value(
        "select datacl::text from pg_database where datname = %s", (lease.dsn.database,)
    )
    return set(text.strip("{}").split(","))


def test_the_database_is_the_workers_and_nobody_else_enters(link: Link, leasing: Leasing) -> None:
    with leasing(Script("create table t (id int)")) as lease:
        me = lease.dsn.user
        assert names.run_of_role(me) == lease.run
        assert acl(link, lease) == {f"=T/{me}", f"{me}=CTc/{me}"}
        with Session.connect(lease.dsn) as session:
            assert session.row("select current_user, session_user") == (me, me)
            assert (
                session.value("select pg_get_userbyid(relowner) from pg_class where relname = 't'") == "app"
            )
            session.execute("alter table t add column x int")
        lease.renew()
        assert acl(link, lease) == {f"=T/{me}", f"{me}=CTc/{me}"}


def test_grants_and_settings_of_the_owner_are_the_workers(link: Link, leasing: Leasing) -> None:
    migrated = Script(
        "alter database {db} set work_mem = '5MB'",
        "alter role app in database {db} set statement_timeout = '90s'",
        "revoke temporary on database {db} from public",
        "revoke temporary on database {db} from app",
    )
    with leasing(migrated) as lease:
        assert acl(link, lease) == {f"{lease.dsn.user}=Cc/{lease.dsn.user}"}
        # A session of ours has limits of its own.
        with Session.connect(lease.dsn, limited=False) as session:
            shown = "select current_setting('work_mem'), current_setting('statement_timeout')"
            assert session.row(shown) == ("5MB", "90s")


def test_the_schema_of_the_role_that_migrates_is_searched(leasing: Leasing) -> None:
    with (
        leasing(
            Script("create schema app", "create table here (id int)", "create table public.there (id int)")
        ) as lease,
        Session.connect(lease.dsn) as session,
    ):
        assert session.value("show search_path") == "app, public"
        assert session.value("select count(*) from here, there") == 0
    with (
        leasing(
            Script("create schema app", "alter database {db} set search_path = 'public', 'app'")
        ) as lease,
        Session.connect(lease.dsn) as session,
    ):
        assert session.value("show search_path") == "public, app"


def test_a_role_that_the_migrations_made_may_log_in(link: Link, leasing: Leasing) -> None:
    secret = roles.verifier("pgh_test_reader", "secret", rounds=1)
    migrated = Script(
        f"create role pgh_test_reader login password '{secret}'",
        "create table t (id int)",
        "grant select on t to pgh_test_reader",
        admin=True,
    )
    with (
        leasing(migrated) as lease,
        Session.connect(lease.dsn.with_user("pgh_test_reader", "secret")) as reader,
    ):
        assert reader.value("select count(*) from t") == 0


def test_who_makes_roles_lets_them_in(link: Link, checkout: str) -> None:
    """Nothing would keep out who gives himself rights, and what he makes must be able to log in."""
    for changes in ({"superuser": True}, {"attributes": ("createrole",)}):
        owner = replace(EACH, **changes)  # type: ignore[arg-type]
        assert not owner.confined
        assert Clones(link, checkout, owner, connections=5).closing("x") == []


def test_the_same_worker_again_has_the_same_role(link: Link, leasing: Leasing) -> None:
    source, run = Script("create table t (id int)"), names.run_id()
    with leasing(source, run=run) as first:
        with Session.connect(first.dsn) as session:
            session.execute("alter role current_user password 'changed'")
        with pytest.raises(ServerRefused, match="password"), first.connect():
            pass
        again = leasing(source, run=run)
        assert again.dsn == first.dsn
        with again.connect():
            pass


def test_roles_of_dead_runs_go_with_what_they_created(
    link: Link, checkout: str, leasing: Leasing, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Script("create table t (id int)")
    lease, kept = leasing(source), leasing(source, worker="2")
    mine, theirs = lease.dsn.user, kept.dsn.user
    with Session.connect(lease.dsn) as session:
        session.execute("create database created_by_a_test")
    kept_as = kept.keep()["default"]
    # Soon after a crash nobody can be told from the dead.
    monkeypatch.setattr(sweep, "GRACE", timedelta(days=1))
    assert sweep.drop_logins(link.session, checkout) == []
    monkeypatch.setattr(sweep, "GRACE", timedelta(0))
    assert sweep.drop_logins(link.session, checkout) == ["created_by_a_test"]
    assert set(roles.of_workers(link.session, checkout)) == {mine, theirs}
    lease.release()
    sweep.drop_logins(link.session, checkout)
    assert roles.of_workers(link.session, checkout) == [theirs]
    databases.drop(link.session, kept_as, checkout)
    sweep.drop_logins(link.session, checkout)
    assert roles.of_workers(link.session, checkout) == []
