"""pytest with a pooler in front of the server."""

from __future__ import annotations

from fix_plugin import Folder
from fix_pooler import NEEDS, POOLED

pytestmark = NEEDS


def test_pytest_and_its_workers_go_through_it(folder: Folder) -> None:
    folder.write(
        test_pooled="""
        import os, psycopg, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(number, pg):
            assert os.environ["DATABASE_URL"] == pg.url != pg.direct.url == os.environ["DATABASE_DIRECT_URL"]
            assert os.environ["PGPORT"] == str(pg.dsn.port) != str(pg.direct.dsn.port)
            with psycopg.connect(os.environ["DATABASE_URL"], prepare_threshold=None) as connection:
                assert connection.execute("select count(*) from users where name = 'x'").fetchone() == (0,)
                assert connection.execute("show search_path").fetchone()[0] != "nowhere"
                connection.execute("insert into users (name) values ('x')")
                connection.execute("set search_path to nowhere")
        """
    )
    folder.pytest("-n", "2", env=POOLED).ok(4)
    folder.pytest(env={**POOLED, "PGHARNESS_FRESH": "clone"}).ok(4)
