"""What a reset leaves alone: sessions, plans, files; and what it costs where nothing was written."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from fix_reset_case import Case
from fix_reset_servers import Server, dispose

from harness.errors import ServerLost
from harness.postgres.session import Session
from harness.reset.wal.reader import WalReader, WalWindow

SCHEMA = """
create type mood as enum ('sad', 'happy');
create type pair as (n integer, m mood);
create table people (id serial primary key, m mood, p pair, v text);
insert into people (m, p, v) select 'happy', (i, 'sad'::mood)::pair, 'row ' || i from generate_series(1, 30) i;
create table empty (id bigint generated always as identity primary key, v text);
create function counted() returns bigint language plpgsql as $$ begin return (select count(*) from people); end $$;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "kept", SCHEMA)
    yield case
    dispose(case.bench)


def test_prepared_statements_cached_plans_and_type_oids_go_on_working(case: Case) -> None:
    """One connection through ten resets, of every kind of restore, TRUNCATE with its new files included."""
    changes = (
        "insert into people (m) values ('sad')",
        "update people set m = 'sad', p = (9, 'happy') where id < 5",
        "delete from people where id > 20",
        "truncate people restart identity",
        "insert into empty (v) values ('x')",
    )
    with psycopg.connect(case.bench.server.dsn("kept", "app").url, autocommit=True) as connection:
        # prepare=True: a statement on the server; the OIDs of the enum and the composite are in it.
        mood = connection.execute("select 'mood'::regtype::oid::int8").fetchone()
        pid = connection.info.backend_pid
        for change in changes * 2:
            connection.execute(change.encode())
            assert case.reset().ended == ()
            # Plans of functions are generic after five calls.
            assert connection.execute("select counted()", prepare=True).fetchone() == (30,)
            found = connection.execute(
                "select count(*), max((p).m::text) from people where m = %s::mood and id < %s",
                ("happy", 99),
                prepare=True,
            ).fetchone()
            assert found == (30, "sad")
            connection.execute("insert into people (id, m) values (%s, %s::mood)", (77, "sad"), prepare=True)
        assert connection.execute("select 'mood'::regtype::oid::int8").fetchone() == mood
        assert connection.info.backend_pid == pid
        case.reset()
    case.assert_pristine()


def test_listen_goes_on_and_ends_on_request(case: Case) -> None:
    with (
        psycopg.connect(case.bench.server.dsn("kept", "app").url, autocommit=True) as listener,
        psycopg.connect(case.bench.server.dsn("kept", "app").url, autocommit=True) as writer,
    ):
        listener.execute("listen told")
        writer.execute("insert into empty (v) values ('x')")
        case.reset()
        writer.execute("notify told, 'hello'")
        assert [n.payload for n in listener.notifies(timeout=10, stop_after=1)] == ["hello"]
        case.reset(sessions="end")
        with pytest.raises(psycopg.OperationalError):
            listener.execute("select 1")


def test_every_session_of_a_pool_is_kept(case: Case) -> None:
    pool = [case.bench.app() for _ in range(8)]
    pids = [session.pid for session in pool]
    for number, session in enumerate(pool):
        session.execute(f"insert into people (v) values ('session {number}')")
        session.execute("begin")
        session.execute(f"insert into empty (v) values ('session {number}')")
        session.execute("commit" if number % 2 else "rollback")
    report = case.reset()
    assert (report.strategy, report.ended) == ("restore", ())
    assert [session.value("select pg_backend_pid()") for session in pool] == pids
    assert [session.value("select count(*) from people") for session in pool] == [30] * 8
    for session in pool:
        session.close()
    case.assert_pristine()


@pytest.mark.parametrize("lock", ["select pg_advisory_lock(1)", "select pg_advisory_lock_shared(1, 2)"])
def test_only_the_holder_of_an_advisory_lock_is_ended(case: Case, app: Session, lock: str) -> None:
    with case.bench.app() as holder:
        holder.execute(lock)
        app.execute("insert into empty (v) values ('x')")
        report = case.reset()
        assert len(report.ended) == 1
        assert f"pid {holder.pid}" in report.ended[0]
        with pytest.raises(ServerLost):
            holder.execute("select 1")
    assert app.value("select count(*) from empty") == 0
    # A lock of a transaction that has ended is none.
    app.execute("begin")
    app.execute("select pg_advisory_xact_lock(1)")
    app.execute("insert into empty (v) values ('x')")
    app.execute("commit")
    assert case.reset().ended == ()
    case.assert_pristine()


def test_the_usual_restore_makes_no_file(case: Case, app: Session) -> None:
    files = "select count(*), sum(oid::int8 # pg_relation_filenode(oid)::int8) from pg_class"
    listed = "select count(*) from pg_ls_dir('base/' || (select oid from pg_database where datname = 'kept'))"
    app.execute("insert into empty (v) values ('x')")
    case.reset()
    with case.bench.superuser() as session:
        before = session.row(files), session.value(listed)
        for change in (
            "insert into empty (v) select 'x' from generate_series(1, 20)",
            "update people set v = 'y' where id < 9",
            "delete from people where id > 25",
        ):
            app.execute(change)
            assert case.reset().strategy == "restore"
        # A free space map or a visibility map may have come; a table's own file may not.
        after = session.row(files), session.value(listed)
    assert after[0] == before[0]
    assert after[1] <= before[1] + 4


def test_where_nothing_was_written_no_log_is_read(
    case: Case, app: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[WalWindow] = []
    reader = type(case.bench.engine._connections.wal)
    real = reader.read

    def seen(self: WalReader, *arguments: object, **options: object) -> WalWindow:
        found = real(self, *arguments, **options)  # type: ignore[arg-type]
        looks.append(found)
        return found

    app.execute("insert into empty (v) values ('x')")
    case.reset()
    case.reset()
    monkeypatch.setattr(reader, "read", seen)
    moved = 0
    for _ in range(5):
        app.rows("select * from people order by v")
        app.execute("begin read only")
        app.rows("select counted()")
        app.execute("commit")
        looks.clear()
        report = case.reset()
        assert (report.strategy, report.tables, report.rows) == ("nothing", (), 0)
        assert len(looks) == 1
        moved += looks[0].moved
    # A checkpoint, or the background writer's note every 15 seconds, may move the position: then a few bytes are read, once.
    assert moved <= 2


@pytest.mark.parametrize(
    "statements",
    [
        ["begin", "lock table people in access exclusive mode", "commit"],
        ["begin", "select * from people for share", "commit"],
        ["vacuum people"],
        ["vacuum (freeze) people"],
        ["analyze people"],
        ["begin", "update people set v = 'x'", "rollback"],
        ["begin", "select nextval('people_id_seq') where false", "commit"],
        ["checkpoint"],
    ],
    ids=lambda statements: statements[-2] if len(statements) > 1 else statements[0],
)
def test_what_writes_no_row_puts_back_no_row(case: Case, app: Session, statements: list[str]) -> None:
    app.execute("insert into empty (v) values ('x')")
    case.reset()
    with case.bench.superuser() as session:
        for statement in statements:
            session.execute(statement)
    report = case.reset()
    assert report.ended == ()
    if "update" not in "".join(statements):
        assert report.tables == ()
    assert report.rows == 0
    case.assert_pristine()
