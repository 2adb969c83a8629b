"""Bad input: after each of these the database is pristine, or there was a clear error and a new clone is."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest
from fix_reset_case import Case, at
from fix_reset_servers import Server, dispose

from harness.errors import ServerLost, ServerRefused
from harness.postgres import sqlstate
from harness.postgres.session import Session
from harness.reset.baseline import BaselineStore
from harness.reset.changes import RecloneNeeded
from harness.reset.engine import ResetEngine
from harness.reset.sql import catalogs

AS_ADMIN = """
create table foreign_to_app (id serial primary key, v text);
insert into foreign_to_app (v) select 'theirs ' || i from generate_series(1, 20) i;
grant all on foreign_to_app to app; grant usage on sequence foreign_to_app_id_seq to app;
alter table foreign_to_app enable row level security; alter table foreign_to_app force row level security;
create policy mine on foreign_to_app to app using (true);
"""
SCHEMA = """
create table plain (id serial primary key, v text);
create table seeded (id serial primary key, v text);
insert into seeded (v) select 'row ' || i from generate_series(1, 100) i;
create table held (id serial primary key, v text);
insert into held (v) select repeat('h', 900) || i from generate_series(1, 200) i;
create table child (id serial primary key, seeded_id integer references seeded on delete cascade);
insert into child (seeded_id) select i from generate_series(1, 30) i;
"""


@pytest.fixture(scope="module")
def shared(reset_server: Server) -> Iterator[Case]:
    case = Case(reset_server, "bad", SCHEMA, as_admin=AS_ADMIN)
    yield case
    dispose(case.bench)


# --- a table owned by another role -------------------------------------------------------------------


def test_a_table_of_another_role_comes_back(case: Case, app: Session) -> None:
    for _ in range(2):
        app.execute("insert into foreign_to_app (v) values ('x')")
        app.execute("update foreign_to_app set v = 'y' where id < 4")
        app.execute("delete from foreign_to_app where id = 9")
        report = case.reset()
        assert (report.strategy, report.ended) == ("restore", ())
        case.assert_pristine()


# --- a full disk -------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_during_a_restore_means_a_clone(case: Case, app: Session) -> None:
    """The restorer cannot make a file longer, as on a full disk; a limit of its process, so that nothing else fails."""
    if case.bench.server.data is None or shutil.which("prlimit") is None:
        pytest.skip("the server is not a process of this machine, or util-linux is not here")
    # A new file: rows that go back to their places need none to be longer.
    app.execute("truncate held")
    app.execute("insert into plain (v) values ('x')")
    pid = case.bench.engine.ours[1]
    at(case, "locked", lambda: _no_longer_files(pid))
    with pytest.raises(RecloneNeeded, match="cannot be put back"):
        case.reset()
    # What was half put back is never called pristine.
    assert app.value("select count(*) from held") == 0
    with pytest.raises(RecloneNeeded, match="not known"):
        case.reset()
    case.bench.reclone()
    case.assert_pristine()


def _no_longer_files(pid: int) -> None:
    """As the server's own user: another one may not."""
    subprocess.run(
        ["prlimit", "--pid", str(pid), f"--fsize={8 * 8192}"],
        user="postgres" if os.geteuid() == 0 else None, check=True, timeout=10, cwd="/",
    )  # fmt: skip


# --- the admin's sessions ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["reader", "restorer"])
def test_a_session_of_ours_that_died_between_two_resets(case: Case, app: Session, which: int) -> None:
    app.execute("insert into plain (v) values ('x')")
    case.reset()
    case.bench.admin.rows("select pg_terminate_backend(%s, 5000)", (case.bench.engine.ours[which],))
    app.execute("insert into plain (v) values ('y')")
    with pytest.raises(RecloneNeeded, match="may have restarted"):
        case.reset()
    case.bench.reclone()
    case.assert_pristine()


def test_a_reset_that_is_interrupted_is_never_called_pristine(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")

    def interrupt() -> None:
        raise KeyboardInterrupt

    for stage in ("looked", "locked", "before-commit", "committed"):
        # Rows that were there before: they have to be looked at, and not all is sent at once.
        with case.bench.app() as session:
            session.execute("update held set v = v || 'changed' where id = 1")
        at(case, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            case.reset()
        with pytest.raises(RecloneNeeded, match="not known"):
            case.reset()
        case.bench.reclone()
        case.assert_pristine()
        with case.bench.app() as session:
            session.execute("insert into plain (v) values ('again')")


def test_a_statement_of_ours_that_is_cancelled_means_a_clone(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")
    holder = case.bench.app()
    holder.execute("begin")
    holder.execute("lock table plain in share mode")
    restorer = case.bench.engine.ours[1]
    cancelled = threading.Thread(target=_cancel_when_waiting, args=(case, restorer))
    at(case, "before-lock", cancelled.start)
    outcome = case.reset_or_clone()
    cancelled.join(30)
    holder.close()
    # The lock's holder may have been waited for before the cancel arrived: then it is an ordinary reset.
    assert outcome == "restore" or "cancel" in outcome
    case.assert_pristine()


def _cancel_when_waiting(case: Case, pid: int) -> None:
    with case.bench.server.session() as session:
        for _ in range(2000):
            waiting = session.value(
                "select coalesce((select wait_event_type = 'Lock' from pg_stat_activity where pid = %s), true)",
                (pid,),
            )
            if waiting:
                session.rows("select pg_cancel_backend(%s)", (pid,))
                return


# --- two at once -------------------------------------------------------------------------------------


def test_a_clone_by_somebody_else_is_noticed(case: Case, app: Session) -> None:
    """`pg-harness reset gw2` while its run goes on: the database is another one under the same name."""
    app.execute("insert into plain (v) values ('x')")
    from fix_reset_servers import clone, drop

    drop(case.bench.admin, case.bench.name)
    clone(case.bench.admin, f"{case.bench.name}_t", case.bench.name)
    with pytest.raises(RecloneNeeded, match=r"lost|limits of the database changed"):
        case.reset()
    case.bench.reclone()
    case.assert_pristine()


def test_two_engines_on_one_database_do_not_deadlock(case: Case, app: Session) -> None:
    """Two processes that believe the lease to be theirs: each reset ends, and the database is pristine."""
    server, name = case.bench.server, case.bench.name
    other = ResetEngine(
        reader=server.session,
        restorer=lambda settings: server.session(name, settings),
        baseline=lambda settings: server.session(f"{name}_z", settings),
        role="app",
        reset_timeout=0.4,
    )
    other.rebase()
    problems: list[BaseException] = []

    def reset(engine: ResetEngine) -> None:
        try:
            for _ in range(5):
                engine.reset()
        except RecloneNeeded:
            return  # each takes the other's session for one of the application
        except BaseException as error:  # noqa: BLE001 — told to the test
            problems.append(error)

    app.execute("insert into plain (v) values ('x')")
    app.execute("update seeded set v = 'y'")
    threads = [threading.Thread(target=reset, args=(engine,)) for engine in (case.bench.engine, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    other.close()
    assert problems == []
    case.reset_or_clone()
    case.assert_pristine()


# --- locks of the application ------------------------------------------------------------------------


def test_locks_in_the_other_order_do_not_deadlock(case: Case, app: Session) -> None:
    """The application locks late tables first; the reset locks in OID order, and gives way."""
    stop = threading.Event()
    refused: list[ServerRefused] = []

    def backwards() -> None:
        session = case.bench.app()
        while not stop.is_set():
            try:
                session.execute("begin")
                session.execute("delete from child where id = 3")
                session.execute("update seeded set v = 'b' where id = 5")
                session.execute("insert into plain (v) values ('b')")
                session.execute("commit")
            except ServerLost:
                session.close()
                session = case.bench.app()
            except ServerRefused as error:
                refused.append(error)
                session.execute("rollback")
        session.close()

    thread = threading.Thread(target=backwards)
    thread.start()
    try:
        outcomes = [case.reset_or_clone() for _ in range(5)]
    finally:
        stop.set()
        thread.join(30)
    assert set(outcomes) <= {"restore", "nothing"}, outcomes
    assert not [error for error in refused if error.sqlstate == sqlstate.DEADLOCK_DETECTED]
    case.reset()
    case.assert_pristine()


def test_a_session_in_the_middle_of_a_query_is_waited_for_then_ended(case: Case, app: Session) -> None:
    app.execute("insert into plain (v) values ('x')")
    lost: list[BaseException] = []

    def long_query() -> None:
        try:
            with case.bench.app() as session:
                session.execute("insert into seeded (v) select 'late' from pg_sleep(60)")
        except ServerLost as error:
            lost.append(error)

    thread = threading.Thread(target=long_query)
    thread.start()
    while not case.bench.admin.value(
        "select exists (select from pg_stat_activity where wait_event = 'PgSleep' and datname = %s)",
        (case.bench.name,),
    ):
        pass
    report = case.reset()
    # It held a snapshot of the state before.
    assert "pg_sleep" in "".join(report.ended)
    thread.join(30)
    assert len(lost) == 1
    case.assert_pristine()


# --- rights ------------------------------------------------------------------------------------------


def plain_role(case: Case) -> None:
    case.bench.admin.execute(
        "do $$ begin if not exists (select from pg_roles where rolname = 'nobody') then "
        "create role nobody login; end if; end $$"
    )


def test_a_baseline_that_cannot_be_read_leaves_no_session(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []

    def connect() -> Session:
        opened.append(case.bench.server.session(f"{case.bench.name}_z"))
        return opened[-1]

    # The third of its questions.
    monkeypatch.setattr(catalogs, "_WITH_INDEX", "select 1 / 0")
    with pytest.raises(ServerRefused, match="division by zero"):
        BaselineStore(connect)
    assert [session.closed for session in opened] == [True]


def test_without_the_right_to_read_the_log_it_says_so_with_the_remedy(case: Case) -> None:
    plain_role(case)
    server, name = case.bench.server, case.bench.name
    engine = ResetEngine(
        reader=lambda: Session.connect(server.dsn("postgres", "nobody")),
        restorer=lambda settings: server.session(name, settings),
        baseline=lambda settings: server.session(f"{name}_z", settings),
        role="app",
    )
    with pytest.raises(RecloneNeeded) as caught:
        engine.rebase()
    engine.close()
    assert caught.value.lasting
    assert "pg_read_server_files" in caught.value.remedy


def test_without_the_right_to_silence_triggers_it_says_so_with_the_remedy(case: Case) -> None:
    plain_role(case)
    server, name = case.bench.server, case.bench.name
    engine = ResetEngine(
        reader=server.session,
        restorer=lambda settings: Session.connect(server.dsn(name, "nobody"), settings=settings),
        baseline=lambda settings: server.session(f"{name}_z", settings),
        role="app",
    )
    with pytest.raises(RecloneNeeded) as caught:
        engine.rebase()
    engine.close()
    assert caught.value.lasting
    assert "session_replication_role" in caught.value.remedy


def test_an_old_server_is_told_with_the_remedy(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """No PostgreSQL 14 is here: a session that says it is one."""
    server, name = case.bench.server, case.bench.name
    monkeypatch.setattr(Session, "server_version", property(lambda self: 140012))
    engine = ResetEngine(
        reader=server.session,
        restorer=lambda settings: server.session(name, settings),
        baseline=lambda settings: server.session(f"{name}_z", settings),
        role="app",
    )
    with pytest.raises(RecloneNeeded, match="PostgreSQL 14") as caught:
        engine.rebase()
    engine.close()
    assert caught.value.lasting
    assert "15 or later" in caught.value.remedy
