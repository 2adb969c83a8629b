"""Wrong resets that an audit found, each as small as it can be: rows, settings or subscriptions came back as something else."""

from __future__ import annotations

from collections.abc import Iterator

import fix_reset_servers
import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose, running

from harness.postgres.session import Session
from harness.reset import sessions
from harness.reset.changes import RecloneNeeded

SCHEMA = """
create table nulls (id integer primary key, v text, price money);
insert into nulls select i, case when i % 2 = 0 then null else 'x' end, i from generate_series(1, 6) i;
create table ordered (id integer, n integer not null); insert into ordered select i, 1000 - i from generate_series(1, 100) i;
create index ordered_n on ordered (n); alter table ordered cluster on ordered_n;
create table held (id integer, n integer not null); insert into held select i, 9000 - i from generate_series(1, 5000) i;
create index held_n on held (n); alter table held cluster on held_n;
create table marked (id integer, n integer not null); create index marked_n on marked (n); alter table marked cluster on marked_n;
create type address as (name text, host text);
create function address_of(text) returns address language sql immutable
  return row(split_part($1, '@', 1), split_part($1, '@', 2))::address;
create cast (text as address) with function address_of(text);
create table cast_by_hand (id integer, a address, list address[]);
insert into cast_by_hand values (1, row('tom', 'cats'), array[row('a', 'b')::address]), (2, row('rex', 'dogs'), null);
create function tenant() returns text immutable language sql return current_setting('app.tenant', true);
create table generated (id integer, v text, owner text generated always as (tenant()) stored);
set app.tenant = 'acme'; insert into generated (id, v) values (1, 'a'), (2, 'b');
create table audit (id serial, what text);
create function noted(text) returns boolean language plpgsql as
  $$ begin insert into public.audit (what) values ($1); return true; end $$;
create table checked (id integer, v text check (noted(v))); insert into checked values (1, 'a'); truncate audit restart identity;
create table plain (id serial primary key, v text);
create sequence cached cache 20;
"""
XML = """
do $$ begin
  create table document (id integer, d xml);
  insert into document values (1, '<?xml version="1.0" encoding="UTF-8"?><a/>'), (2, '<b/>');
exception when feature_not_supported then null; end $$;
"""
ALWAYS = """
create table ddl_log (id serial, tag text);
create function log_ddl() returns event_trigger security definer language plpgsql as
  $$ begin insert into public.ddl_log (tag) values (tg_tag); end $$;
create event trigger audit_ddl on ddl_command_end execute function log_ddl();
alter event trigger audit_ddl enable always;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "found", SCHEMA + XML)
    yield case
    dispose(case.bench)


@pytest.mark.parametrize(
    "statement",
    [
        "update cast_by_hand set a = row('x', 'y') where id = 1",
        "update generated set v = 'x' where id = 1",
        "update checked set v = 'x' where id = 1",
        "cluster ordered",
        "cluster held",
    ],
)
def test_it_is_as_it_was(case: Case, statement: str) -> None:
    with case.bench.app() as app:
        app.execute(statement)
        case.reset_or_clone()
    case.assert_pristine()


def test_rows_that_were_permuted_are_not_taken_for_others(case: Case, app: Session) -> None:
    app.execute("cluster held")
    case.reset()
    app.execute("delete from held where id between 1 and 3")
    case.reset()
    case.assert_pristine()


def test_rows_that_were_permuted_under_a_mark(case: Case, app: Session) -> None:
    app.execute("insert into marked select i, 9000 - i from generate_series(1, 5000) i")
    mark = case.bench.engine.mark()
    try:
        app.execute("cluster marked")
        case.reset()
        app.execute("delete from marked where id between 1 and 3")
        case.reset()
        assert app.row("select count(*), count(distinct id), sum(id) from marked") == (5000, 5000, 12502500)
    finally:
        mark.release()


def test_settings_of_the_database_do_not_change_how_rows_are_read(case: Case, app: Session) -> None:
    settings = {"array_nulls": "off", "idle_session_timeout": "'100ms'", "datestyle": "'SQL, DMY'"}
    try:
        for name, value in settings.items():
            case.bench.admin.execute(f"alter database found set {name} = {value}")
        case.bench.engine.rebase()
        app.execute("update nulls set v = 'changed', price = 0 where id = 1")
        # Longer than a session may be idle there: ours may.
        app.execute("select pg_sleep(0.2)")
        assert case.reset().strategy == "restore"
        assert app.value("select count(*) from nulls where v is null") == 3
    finally:
        for name in settings:
            case.bench.admin.execute(f"alter database found reset {name}")


def test_a_declaration_of_xml_stays(case: Case, app: Session) -> None:
    if not app.value("select to_regclass('document') is not null"):
        pytest.skip("this server was built without libxml")
    before = app.rows("select d::text from document order by id")
    app.execute("delete from document where id = 2")
    assert case.reset().strategy == "restore"
    assert app.rows("select d::text from document order by id") == before


def test_a_setting_that_another_database_commits_later(case: Case, app: Session) -> None:
    with case.bench.server.session() as other:
        other.execute("begin")
        other.execute("alter role app in database found set work_mem = '9MB'")
        app.execute("insert into plain (v) values ('x')")
        case.reset()
        case.reset()
        other.execute("commit")
        case.reset()
    case.assert_pristine()


def test_a_subscription_needs_a_clone(case: Case) -> None:
    with case.bench.superuser() as session:
        session.execute(
            "create subscription s connection 'dbname=nowhere' publication p with (connect = false, slot_name = none)"
        )
        try:
            with pytest.raises(RecloneNeeded, match="subscriptions of the database"):
                case.reset()
        finally:
            session.execute("drop subscription s")


def test_an_event_trigger_that_always_fires_is_noticed(reset_server: Server) -> None:
    case = Case(reset_server, "always", "create sequence cached cache 20", as_admin=ALWAYS)
    try:
        with case.bench.app() as app:
            app.execute("select nextval('cached')")
            case.reset_or_clone()
        case.assert_pristine()
    finally:
        dispose(case.bench)


@pytest.mark.server
@pytest.mark.parametrize("version", [15, 18], ids=lambda v: f"pg{v}")
def test_an_autovacuum_that_takes_long_is_no_hang(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a lock that ours waits for, never as long as would cancel it, and is no session to be ended."""
    monkeypatch.setitem(fix_reset_servers.SETTINGS, "autovacuum", "on")
    monkeypatch.setitem(fix_reset_servers.SETTINGS, "autovacuum_naptime", "1s")
    monkeypatch.setattr(sessions, "END_PATIENCE", 0.5)
    with running(version) as server:
        case = Case(
            server,
            "slow",
            "create table wide (id serial primary key, v text)"
            " with (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);"
            "insert into wide (v) select repeat('w', 150) from generate_series(1, 8000) i",
        )
        with case.bench.app() as app:
            app.execute("update wide set v = v || 'x'")
            # An idle session tells its counts only after ten seconds.
            app.execute("select pg_stat_force_next_flush()")
            with case.bench.superuser() as session:
                session.execute(
                    "do $$ begin for i in 1..2000 loop "
                    "exit when exists (select from pg_locks l join pg_stat_activity a using (pid) "
                    "where a.backend_type = 'autovacuum worker' and l.relation = 'wide'::regclass); "
                    "perform pg_sleep(0.01); perform pg_stat_clear_snapshot(); end loop; end $$"
                )
            case.reset_or_clone()
        case.assert_pristine()
        dispose(case.bench)
