"""``--pg-harness-each-version``: each test once for each version, on that version and no other."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_backends import INSTALLED
from fix_plugin import MIGRATION, USUAL, Folder, Place, Result
from fix_servers import enterable_folder
from fix_version_folders import linked

from harness.config.load import load
from harness.config.project import Project
from harness.servers import inventory

EACH = "--pg-harness-each-version"

HELPERS = """
    import os, psycopg, pytest, unittest

    def wrote(connection):
        # What the test finds, and leaves.
        found = connection.execute("select count(*) from users").fetchone()[0]
        connection.execute("insert into users (name) values ('x')")
        return found

    def major(connection):
        return connection.info.server_version // 10000

    @pytest.fixture(scope="session")
    def engine():
        # Asks for no fixture of ours, as most do.
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            yield connection
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A root with two versions, and a server of each."""
    with enterable_folder("versions") as root:
        (root / "migrations").mkdir()
        (root / "migrations" / "001_begin.sql").write_text(MIGRATION)
        (root / "pg-harness.toml").write_text(
            f'backend = "process"\npg_version = ["15", "18"]\nbinaries = "{linked(root / "programs")}"\n'
            'migrations = ["sql:migrations"]\nttl = "5m"\n'
        )
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PG", "PYTEST", "COV_", "COVERAGE", "DATABASE_URL"))
        }
        environ |= {
            "PGHARNESS_STATE_DIR": str(root / ".state"),
            "PGHARNESS_CACHE_DIR": str(root / ".cache"),
            "PYTHONPATH": str(INSTALLED),
            "COLUMNS": "300",
        }
        yield Place(root, environ)
        project = Project.of(load(environ, start=root), environ)
        for info in inventory.servers(project):
            inventory.stop(project, purpose=info.purpose)


def outcomes(result: Result) -> dict[str, str]:
    """Version → what came of its tests, as the report tells."""
    return dict(re.findall(r"^pg(\d+): (.*)$", result.text, re.MULTILINE))


def names(result: Result) -> list[str]:
    """The tests in the order in which they ran, of ``-v``."""
    return re.findall(r"^\S*::(\S+) (?:PASSED|FAILED|ERROR|SKIPPED)", result.text, re.MULTILINE)


def write(folder: Folder, text: str, **more: str) -> Folder:
    return folder.write(test_a=textwrap.dedent(HELPERS) + textwrap.dedent(text), **more)


SUITE = """
    def test_plain(engine, pg_version, pg_conn, pg_url):
        assert major(engine) == major(pg_conn) == pg_version
        assert os.environ["DATABASE_URL"] == pg_url
        assert wrote(engine) == 0

    @pytest.mark.parametrize("x", ["a", "b"])
    def test_x(x, engine, pg_version, request):
        assert request.node.name == f"test_x[{x}-pg{pg_version}]"
        assert major(engine) == pg_version
        assert wrote(engine) == 0

    class TestUnit(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            cls.url = os.environ["DATABASE_URL"]

        def test_unit(self):
            assert self.url == os.environ["DATABASE_URL"]
            assert self.id().endswith("TestUnit.test_unit")
            with psycopg.connect(self.url, autocommit=True) as connection:
                assert wrote(connection) == 0

    @pytest.mark.serial_only
    def test_alone(engine, pg_version):
        assert major(engine) == pg_version

    @pytest.mark.pg(fresh="none")
    def test_not_fresh(engine, pg_version):
        assert major(engine) == pg_version
"""


def test_each_test_on_each_version(folder: Folder) -> None:
    result = write(folder, SUITE).pytest(EACH, "-v").ok(12)
    assert outcomes(result) == {"15": "6 passed", "18": "6 passed"}
    assert "pg-harness: each test on PostgreSQL 15, 18" in result.text
    order = names(result)
    # One version's together, and serial tests last, as ever.
    assert [name[-4:-1] for name in order] == ["g15"] * 5 + ["g18"] * 5 + ["g15", "g18"]
    assert order[-1] == "test_alone[pg18]"
    assert "test_unit[pg15]" in order


def test_workers_have_databases_on_each(folder: Folder) -> None:
    result = write(folder, SUITE).pytest(EACH, "-n", "2").ok(12)
    assert outcomes(result) == {"15": "6 passed", "18": "6 passed"}
    state = Path(folder.place.environ["PGHARNESS_STATE_DIR"])
    assert list((state / "runs").glob("*")) == []
    assert left_over(folder.place) == {"15": [], "18": []}


def left_over(place: Place) -> dict[str, list[str]]:
    """Version → databases that are leased there."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", "status", "--json"],
        cwd=place.root, env=place.environ, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    servers = json.loads(done.stdout)["servers"]
    return {s["version"].split(".")[0]: [w["what"] for w in s["workers"]] for s in servers}


def test_what_is_chosen_by_name_marker_and_failure(folder: Folder, tmp_path: Path) -> None:
    write(
        folder,
        """
        @pytest.mark.parametrize("x", ["a"])
        def test_x(x, pg_version): assert pg_version == 15

        class TestUnit(unittest.TestCase):
            def test_unit(self): raise AssertionError("always")

        @pytest.mark.serial_only
        def test_alone(): pass
        """,
    )
    told = folder.pytest(EACH, "--collect-only", "-q")
    assert re.findall(r"^test_a\.py::(\S+)", told.text, re.MULTILINE) == [
        "test_x[a-pg15]", "test_alone[pg15]", "TestUnit::test_unit[pg15]",
        "test_x[a-pg18]", "test_alone[pg18]", "TestUnit::test_unit[pg18]",
    ]  # fmt: skip
    assert outcomes(folder.pytest(EACH, "-k", "pg15 and test_x")) == {"15": "1 passed", "18": "no tests"}
    assert outcomes(folder.pytest(EACH, "-k", "pg18 and unit")) == {"15": "no tests", "18": "1 failed"}
    assert outcomes(folder.pytest(EACH, "-m", "serial_only")) == {"15": "1 passed", "18": "1 passed"}
    named = folder.pytest(EACH, "test_a.py::test_x[a-pg18]", "test_a.py::TestUnit::test_unit[pg15]")
    assert outcomes(named) == {"15": "1 failed", "18": "1 failed"}
    # What failed, again: by the version it failed on.
    cached = ("-p", "cacheprovider", "-o", f"cache_dir={tmp_path}/cache")
    first = folder.pytest(EACH, *cached, f"--junitxml={tmp_path}/junit.xml")
    assert outcomes(first) == {"15": "2 passed, 1 failed", "18": "1 passed, 2 failed"}
    again = folder.pytest(EACH, *cached, "--lf")
    assert outcomes(again) == {"15": "1 failed", "18": "2 failed"}
    junit = (tmp_path / "junit.xml").read_text()
    assert 'name="test_x[a-pg18]"' in junit
    assert '<property name="pg_version" value="18" />' in junit


def test_a_version_that_is_not_here(folder: Folder) -> None:
    write(
        folder, "def test_it(engine, pg_version): assert major(engine) == pg_version\ndef test_other(): pass"
    )
    three = ("--pg-harness-pg-version", "3,15", EACH)
    result = folder.pytest(*three)
    why = "no binaries of PostgreSQL 3 were found"
    assert (result.code, result["passed"], result["error"]) == (1, 2, 2), result.text
    assert outcomes(result) == {"3": f"2 errors: {why}", "15": "2 passed"}
    assert f"pg-harness: PostgreSQL 3 is not to be had here: {why}" in result.text
    # What to do, once; in CI pytest repeats whole errors in its summary.
    assert result.text.partition("short test summary")[0].count("/programs/3 has no postgres") == 1
    skipped = folder.pytest(*three, "--pg-harness-skip-missing-versions", "-n", "2")
    assert (skipped.code, skipped["passed"], skipped["skipped"]) == (0, 2, 2), skipped.text
    assert outcomes(skipped) == {"3": f"2 skipped: {why}", "15": "2 passed"}
    none = folder.pytest("--pg-harness-pg-version", "3,4", EACH)
    assert none.code == 4
    assert "none of PostgreSQL 3, 4 is to be had here" in none.text
    assert "Traceback" not in none.text


def test_the_address_of_another_version_leads_nowhere(folder: Folder) -> None:
    """Made at import: such a test fails on all but the first version, and never passes on the wrong one."""
    write(
        folder,
        """
        URL = os.environ["DATABASE_URL"]
        KEPT = psycopg.connect(URL, autocommit=True)

        def test_url():
            psycopg.connect(URL).close()

        def test_kept():
            KEPT.execute("select 1")
        """,
    )
    result = folder.pytest(EACH)
    assert outcomes(result) == {"15": "2 passed", "18": "2 failed"}, result.text
    assert "an engine, or a URL, that was made when a module was imported outlives the change" in result.text
    assert "pg-harness run --each-version -- pytest" in result.text


def test_a_variable_that_a_conftest_has_bent(folder: Folder) -> None:
    write(
        folder,
        "def test_it(): pass",
        conftest="""
        import os
        os.environ["DATABASE_URL"] = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:")
        """,
    )
    result = folder.pytest(EACH)
    assert result.code == 4, result.text
    assert "DATABASE_URL was changed by a conftest or a plugin when it was loaded" in result.text
    assert "run --each-version -- pytest" in result.text
    # One version of them: nothing is exchanged.
    assert outcomes(folder.pytest(EACH, "-k", "pg15")) == {"15": "1 passed", "18": "no tests"}


def test_rows_of_wider_fixtures_on_each(folder: Folder) -> None:
    write(
        folder,
        """
        @pytest.fixture(scope="module")
        def seeded(engine):
            engine.execute("insert into users (name) values ('module')")

        @pytest.mark.parametrize("i", range(2))
        def test_one(i, engine, seeded):
            assert wrote(engine) == 1

        def teardown_module():
            with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
                print(f"torn down on {major(connection)}")
        """,
    )
    result = folder.pytest(EACH, "-s").ok(4)
    assert re.findall(r"torn down on (\d+)", result.text) == ["15", "18"]


def test_what_cannot_be_asked_for(folder: Folder) -> None:
    write(folder, "def test_it(pg_version): assert pg_version == 18")
    server = folder.pytest(EACH, "--pg-harness-server-url", "postgresql://me:secret@127.0.0.1:1/postgres")
    assert server.code == 4
    assert "names one server, which has one version" in server.text
    assert "secret" not in server.text
    # With one version nothing is multiplied; the first is what everything else takes.
    folder.pytest("--pg-harness-pg-version", "18").ok(1)
    plain = folder.pytest()
    assert (plain.code, plain["failed"]) == (1, 1)
    assert "PostgreSQL 15 of 15, 18 (" in plain.text


def test_without_versions(tmp_path: Path, place: Place) -> None:
    (tmp_path / "pg-harness.toml").write_text('migrations = []\nbackend = "process"\n')
    (tmp_path / "test_a.py").write_text("def test_it(): pass\n")
    result = Folder(Place(tmp_path, place.environ), tmp_path).pytest(EACH)
    assert result.code == 4
    assert "--pg-harness-each-version needs to know which: pg_version = " in result.text


def test_what_ran_or_was_written_on_the_first_only_is_told(folder: Folder) -> None:
    write(
        folder,
        """
        def test_it(engine):
            '''
            >>> 1 + 1
            2
            '''
        """,
        conftest="""
        import os, psycopg
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            connection.execute("insert into users (name) values ('early')")
        """,
    )
    result = folder.pytest(EACH, "--doctest-modules").ok(3)
    assert "1 items that are no Python tests (DoctestItem) ran on PostgreSQL 15 only" in result.text
    assert outcomes(result) == {"15": "2 passed", "18": "1 passed"}
    assert (
        "a conftest (or a plugin) wrote into the database of PostgreSQL 15 when it was loaded" in result.text
    )
    assert "on the other versions that is missing" in result.text


@pytest.mark.parametrize(
    "words",
    [("--dist", "loadfile", "-n", "2"), ("-p", "randomly", "-p", "pytest_rerunfailures")],
    ids=["by file", "in random order"],
)
def test_in_other_ways(folder: Folder, words: tuple[str, ...]) -> None:
    other = "def test_other(pg_conn, pg_version): assert pg_conn.info.server_version // 10000 == pg_version"
    result = write(folder, SUITE, test_b=other).pytest(EACH, *words).ok(14)
    assert outcomes(result) == {"15": "7 passed", "18": "7 passed"}


def test_clones(folder: Folder) -> None:
    write(
        folder,
        """
        @pytest.mark.parametrize("i", range(3))
        def test_it(i, pg_conn, pg_version):
            assert major(pg_conn) == pg_version
            assert wrote(pg_conn) == 0
            pg_conn.commit()
        """,
    )
    result = folder.pytest(EACH, "--pg-harness-fresh", "clone").ok(6)
    assert "4 new clones" in result.text
    assert "cannot be marked" not in result.text


def test_a_server_for_each_worker(folder: Folder) -> None:
    write(folder, SUITE)
    result = folder.pytest(EACH, "-n", "2", "-k", "plain or unit", env={"PGHARNESS_ISOLATION": "server"}).ok(
        4
    )
    assert outcomes(result) == {"15": "2 passed", "18": "2 passed"}
    assert set(left_over(folder.place)) <= {"15", "18"}


DJANGO = """
    import os, pytest
    from django.contrib.contenttypes.models import ContentType
    from django.db import connection
    from django.test import TestCase, TransactionTestCase

    def kinds(): return ContentType.objects.filter(model="mine").count()

    def check():
        # Django knows a connection's version by heart.
        assert connection.pg_version // 10000 == int(os.environ["PGHARNESS_TEST_MAJORS"].split(",")[0 if at_home() else 1])
        assert kinds() == 0
        ContentType.objects.create(app_label="x", model="mine")

    def at_home():
        with connection.cursor() as cursor:
            cursor.execute("show server_version_num")
            assert str(connection.settings_dict["PORT"]) == os.environ["PGPORT"]
            return int(cursor.fetchone()[0]) // 10000 == 15

    @pytest.mark.django_db
    def test_db(pg_version):
        assert connection.pg_version // 10000 == pg_version
        check()

    @pytest.mark.django_db(transaction=True)
    def test_transactional(pg_version):
        assert connection.pg_version // 10000 == pg_version
        check()

    class TestData(TestCase):
        @classmethod
        def setUpTestData(cls): ContentType.objects.create(app_label="x", model="of the class")
        def test_one(self):
            check()
            assert ContentType.objects.filter(model="of the class").count() == 1

    class TestTransaction(TransactionTestCase):
        def test_it(self): check()
"""


def test_django(folder: Folder) -> None:
    if importlib.util.find_spec("pytest_django") is None:
        pytest.skip("pytest-django is not installed (tests/requirements-plugins.txt)")
    (folder.path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = config\npythonpath = .\n")
    (folder.path / "pg-harness.toml").write_text(
        (folder.place.root / "pg-harness.toml").read_text().replace("sql:migrations", "django")
    )
    folder.write(
        config="""
        import os
        from urllib.parse import urlsplit
        url = urlsplit(os.environ.get("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing"))
        DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username,
                                 "PASSWORD": url.password, "HOST": url.hostname, "PORT": url.port}}
        INSTALLED_APPS = ["django.contrib.contenttypes"]
        SECRET_KEY = "x"
        """,
        manage="""
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "config"
        execute_from_command_line(sys.argv)
        """,
        test_a=DJANGO,
    )
    result = folder.pytest(
        EACH, plugins=(*USUAL, "pytest_django.plugin"), env={"PGHARNESS_TEST_MAJORS": "15,18"}
    )
    assert outcomes(result.ok(8)) == {"15": "4 passed", "18": "4 passed"}
    project = Project.of(load(folder.place.environ, start=folder.path), folder.place.environ)
    for info in inventory.servers(project):
        inventory.stop(project, purpose=info.purpose)
