"""Processes that die, are interrupted, fork, or break their database: the next test is clean, or knows why."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from fix_plugin import Folder, Place


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.02)


def test_a_crashed_worker_is_replaced(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import os, signal, pytest, psycopg
        @pytest.mark.parametrize("i", range(40))
        def test_it(i, pg, pg_conn):
            with open(f"worker-{pg.worker}", "a") as f: f.write(pg.url)
            assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
            pg_conn.execute("insert into users (name) values ('dirt')"); pg_conn.commit()
            if i == 4: os._exit(7)
            if i == 7: os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    result = folder.pytest("-n", "2")
    assert result.code == 1, result.text
    assert (result["passed"], result["failed"]) == (38, 2), result.text
    workers = {path.name for path in folder.path.glob("worker-*")}
    # Two died, and two came under new ids, each with a database of its own.
    assert len(workers) >= 3
    assert workers - {"worker-gw0", "worker-gw1"}
    assert place.leases() == []


def test_interrupted_once_and_killed(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import time
        def test_bad(pg_conn):
            pg_conn.execute("insert into users (name) values ('evidence')"); pg_conn.commit()
            assert 0
        def test_slow():
            open("slow", "w").close()
            time.sleep(60)
        """
    )
    for arguments in ((), ("-n", "1")):
        (folder.path / "slow").unlink(missing_ok=True)
        before = set(place.kept())
        process = folder.start(*arguments)
        wait_for(folder.path / "slow")
        os.kill(process.pid, signal.SIGINT)
        result = folder.finish(process)
        assert result.code == 2, result.text
        assert place.leases() == []
        kept = set(place.kept()) - before
        assert len(kept) == 1, result.text
        with place.harness() as harness:
            from harness.postgres.session import Session

            with Session.connect(harness.link.dsn.with_database(kept.pop())) as inside:
                assert inside.rows("select name from users") == [("evidence",)]
    (folder.path / "slow").unlink()
    process = folder.start("-n", "1")
    wait_for(folder.path / "slow")
    os.killpg(process.pid, signal.SIGKILL)
    folder.finish(process)
    assert len(place.leases()) == 2
    # The next run puts it right.
    with place.harness() as harness:
        end = time.monotonic() + 40
        while harness.sweep() or place.leases():
            assert time.monotonic() < end
            time.sleep(0.2)


CRASHING = """
    import psycopg, pytest

    def state(pg):
        with psycopg.connect(pg.url) as conn:
            return conn.execute("select (select count(*) from users), (select count(*) from fast)").fetchone()

    def crash(pg_harness):
        dsn = pg_harness._run.link.dsn
        with psycopg.connect(dsn.url, autocommit=True) as admin:
            before = admin.execute("select stats_reset from pg_stat_archiver").fetchone()
            with pytest.raises(psycopg.OperationalError):
                admin.execute("copy (select 1) to program 'kill -9 $PPID'")
        while True:
            try:
                with psycopg.connect(dsn.url) as admin:
                    if admin.execute("select stats_reset from pg_stat_archiver").fetchone() != before: return
            except psycopg.OperationalError: pass

    def test_first(pg): assert state(pg) == (0, 5)

    def test_crashes(pg, pg_harness):
        with psycopg.connect(pg.url) as conn:
            conn.execute("insert into users (name) select 'x' from generate_series(1, 1000)")
        crash(pg_harness)

    def test_innocent(pg): assert state(pg) == (0, 5)

    def test_next(pg):
        assert state(pg) == (0, 5)
        with psycopg.connect(pg.url) as conn: conn.execute("delete from fast")

    def test_last(pg): assert state(pg) == (0, 5)
"""


@pytest.mark.parametrize("fresh", ["reset", "clone"])
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_the_test_after_a_crash_of_the_server_has_all_its_rows(
    place: Place, fresh: str, workers: tuple[str, ...]
) -> None:
    """In unlogged tables too, which the crash has emptied in the template: it is built again, and that is said."""
    added = place.root / "migrations" / "002_fast.sql"
    added.write_text("create unlogged table fast (id int); insert into fast select generate_series(1, 5);")
    try:
        folder = place.folder(f"crashes-{fresh}-{len(workers)}").write(test_a=CRASHING)
        result = folder.pytest("-v", *workers, env={"PGHARNESS_FRESH": fresh}).ok(5)
        if fresh == "reset":
            assert "after test_a.py::test_crashes a new clone was needed: the server crashed" in result.text
    finally:
        added.unlink()


def test_two_runs_at_once(folder: Folder) -> None:
    folder.write(
        test_a="""
        import pytest
        @pytest.mark.parametrize("i", range(30))
        def test_it(i, pg, pg_conn):
            pg_conn.execute("insert into users (name) values ('x')"); pg_conn.commit()
            assert pg_conn.execute("select count(*) from users").fetchone() == (1,)
        """
    )
    both = [folder.start("-n", "2"), folder.start()]
    for process in both:
        folder.finish(process).ok(30)


BREAKING = """
    import os, subprocess, sys, time, pytest, psycopg

    KEPT = []
    def connect(**kw): return psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, connect_timeout=5, **kw)

    @pytest.fixture(autouse=True)
    def pristine(request):
        began = time.monotonic()
        with connect() as conn:
            assert conn.execute("select count(*) from users").fetchone() == (0,)
            assert conn.execute("select count(*) from kinds").fetchone() == (2,)
        yield

    def test_drops_its_database(pg, pg_harness):
        other = psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True)
        try:
            other.execute(f"drop database {pg.dsn.database} with (force)")
        except psycopg.Error:
            # A session of ours is in it, which only somebody with more rights can end.
            with psycopg.connect(pg_harness._run.link.dsn.url, autocommit=True) as admin:
                admin.execute(f"drop database {pg.dsn.database} with (force)")
    def test_after_drop(): pass

    def test_kills_every_backend():
        with connect() as conn:
            conn.execute("insert into users (name) values ('dirt')")
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity "
                         "where usename = current_user and pid <> pg_backend_pid()")
    def test_after_kill(): pass

    def test_prepared():
        conn = connect()
        conn.execute("begin"); conn.execute("insert into users (name) values ('p')")
        conn.execute("prepare transaction 'left'")
        conn.close()
    def test_after_prepared(): pass

    def test_holds_exclusive():
        conn = psycopg.connect(os.environ["DATABASE_URL"], application_name="the culprit")
        conn.execute("lock table users in access exclusive mode")
        KEPT.append(conn)
    def test_after_exclusive(): pass

    def test_changes_the_password():
        with connect() as conn:
            conn.execute("insert into users (name) values ('dirt')")
            conn.execute("alter role current_user password 'changed'")
            conn.execute("alter role current_user set work_mem = '1MB'")
    def test_after_password():
        with connect() as conn:
            assert conn.execute("select setting from pg_settings where name = 'work_mem'").fetchone() != ("1024",)

    def test_forks():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with connect() as conn: conn.execute("insert into users (name) values ('dirt')")
    def test_after_fork(): pass

    def test_leaves_a_child():
        code = ("import psycopg, os, time; c = psycopg.connect(os.environ['DATABASE_URL'], application_name='the child');"
                "c.execute(\\"insert into users (name) values ('child')\\"); print(flush=True); time.sleep(20)")
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
    def test_after_child(): pass

    @pytest.fixture
    def let_go():
        yield
        KEPT.clear()

    def test_exhausts(let_go):
        for _ in range(30): KEPT.append(connect())
    def test_after_exhausted(): pass
"""


def test_whatever_a_test_breaks(folder: Folder) -> None:
    folder.write(test_a=BREAKING)
    began = time.monotonic()
    result = folder.pytest(env={"PGHARNESS_RESET_TIMEOUT": "1s", "PGHARNESS_KEEP_FAILED": "0"})
    assert result["failed"] == 1, result.text
    assert result["error"] == 0, result.text
    assert result["passed"] == 15, result.text
    assert "FAILED test_a.py::test_exhausts" in result.text
    assert "too many connections for database" in result.text
    # Who holds them is in the report, and who left what behind in the summary.
    assert "of 10):" in result.text
    assert "test_a.py::test_holds_exclusive left a session behind" in result.text
    assert "the culprit" in result.text
    assert "the child" in result.text
    assert time.monotonic() - began < 60


def test_a_fork_that_goes_on_ends_itself(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import os, pytest, sys
        def test_forks():
            global CHILD
            CHILD = os.fork()
        def test_next(pg_conn):
            if CHILD: os.waitpid(CHILD, 0)
            assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
        """
    )
    result = folder.pytest()
    assert "a fork of pytest that went on after test_a.py::test_forks" in result.text
    assert result.code == 0, result.text
    assert place.leases() == []


def test_a_serial_test_that_is_killed_lets_the_others_go_on(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, signal, time, pytest
        @pytest.mark.parametrize("i", range(10))
        def test_it(i): time.sleep(0.02)
        @pytest.mark.serial_only
        @pytest.mark.parametrize("i", range(4))
        def test_alone(i, pg_conn):
            if i == 1: os.kill(os.getpid(), signal.SIGKILL)
            assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
        """
    )
    began = time.monotonic()
    result = folder.pytest("-n", "2")
    assert (result["passed"], result["failed"]) == (13, 1), result.text
    assert time.monotonic() - began < 60


def test_a_test_changes_the_password_and_fails(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, psycopg
        def test_culprit():
            conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
            conn.execute("alter role current_user password 'changed'")
            psycopg.connect(os.environ["DATABASE_URL"])
        def test_after(pg_conn): assert pg_conn.execute("select 1").fetchone() == (1,)
        """
    )
    result = folder.pytest()
    assert (result["passed"], result["failed"]) == (1, 1), result.text
    assert re.search(r"the role \S+ cannot log in: ", result.text), result.text
    assert re.search(r"altered by pid \d+, in a test of worker \w+", result.text), result.text
    assert "it was put right" in result.text


def test_another_worker_changes_the_password(folder: Folder) -> None:
    """Each worker has a role of its own: the other's tests log in as before."""
    folder.write(
        waiting="""
        import os, time
        def wait_for(name):
            end = time.time() + 30
            while not os.path.exists(name):
                assert time.time() < end
                time.sleep(0.02)
        """,
        test_a="""
        import os, psycopg
        from waiting import wait_for
        def test_culprit():
            conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
            wait_for("ready")
            conn.execute("alter role current_user password 'changed'")
            open("changed", "w").close()
            wait_for("logged_in")
        def test_after(pg_conn): assert pg_conn.execute("select 1").fetchone() == (1,)
        """,
        test_b="""
        import os, psycopg
        from waiting import wait_for
        def test_victim():
            open("ready", "w").close()
            wait_for("changed")
            psycopg.connect(os.environ["DATABASE_URL"])
            open("logged_in", "w").close()
        def test_after(pg_conn): assert pg_conn.execute("select 1").fetchone() == (1,)
        """,
    )
    folder.pytest("-n", "2", "--dist", "loadfile").ok(4)


def test_a_session_left_in_a_transaction_is_named(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, psycopg, pytest
        HELD = []

        @pytest.fixture(scope="module")
        def of_the_module():
            conn = psycopg.connect(os.environ["DATABASE_URL"], application_name="the module")
            conn.execute("select 1")
            yield

        def test_leaves(of_the_module, pg_conn):
            HELD.append(psycopg.connect(os.environ["DATABASE_URL"], application_name="the careless"))
            HELD[0].execute("select count(*) from kinds")
            pg_conn.execute("insert into users (name) values ('x')"); pg_conn.commit()
        def test_two(pg_conn):
            pg_conn.execute("insert into users (name) values ('x')"); pg_conn.commit()
        def test_three(pg_conn):
            assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
            # It was named, and left alone: it is in nobody's way.
            HELD[0].execute("select 1")
        """
    )
    result = folder.pytest().ok(3)
    assert result.text.count("left a session idle in transaction") == 1, result.text
    assert re.search(
        r"test_a.py::test_leaves left a session idle in transaction: pid \d+, the careless, "
        r"last query: select count\(\*\) from kinds", result.text,
    ), result.text  # fmt: skip


def test_children_that_outlive_the_run(folder: Folder, place: Place) -> None:
    folder.write(
        test_a="""
        import os, subprocess, sys
        CODE = '''import psycopg, os, time
        c = psycopg.connect(os.environ["DATABASE_URL"]); print(flush=True)
        end = time.time() + 60
        while time.time() < end:
            try: c.execute("insert into users (name) values (1)"); c.commit()
            except psycopg.Error: break
        open("child ended", "w").close()'''.replace("\\n        ", "\\n")
        def test_spawns():
            child = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, start_new_session=True)
            child.stdout.readline()
        """
    )
    for arguments in ((), ("-n", "1")):
        began = time.monotonic()
        folder.pytest(*arguments).ok(1)
        assert time.monotonic() - began < 60
        assert place.leases() == []
        wait_for(folder.path / "child ended")
        (folder.path / "child ended").unlink()
