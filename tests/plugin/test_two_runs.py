"""Two pytest runs at once in one checkout: neither sees a row of the other's."""

from __future__ import annotations

from fix_plugin import TIMEOUT, Folder, Result


def test_two_runs_at_once(folder: Folder) -> None:
    folder.write(
        test_a="""
        import os, psycopg, pytest
        @pytest.mark.parametrize("i", range(20))
        def test_it(i):
            name = f"{os.getpid()} {i}"
            with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
                conn.execute("insert into users (name) values (%s)", (name,))
                conn.commit()
                assert conn.execute("select array_agg(name) from users").fetchone() == ([name],)
        """
    )
    runs = [folder.start("-n", "2"), folder.start("-n", "2"), folder.start()]
    for run in runs:
        text, _ = run.communicate(timeout=TIMEOUT)
        Result(run.returncode, text).ok(20)
    assert folder.place.leases() == []
