"""Beside other plugins: none of them changes what a test starts from, or loses what it does itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_plugin import USUAL, Folder, Place

from harness.servers.port import ServerInfo

# Plugin module → what it is installed as; the suite's requirements name them.
ASYNC = ("pytest_asyncio.plugin", "anyio.pytest_plugin")
OTHERS = ("randomly", "pytest_rerunfailures", "pytest_timeout", "pytest_cov.plugin")


def need(*modules: str) -> tuple[str, ...]:
    """Plugins to load; skips where one is not installed."""
    for module in modules:
        # By its entry point's name: it looks for xdist by that name too.
        named = "pytest_randomly" if module == "randomly" else module.split(".")[0]
        if importlib.util.find_spec(named) is None:
            pytest.skip(f"{module} is not installed (tests/requirements-plugins.txt)")
    return (*USUAL, *modules)


def test_asynchronous(folder: Folder) -> None:
    plugins = need(*ASYNC, "psycopg")[:-1]
    folder.write(
        test_a="""
        import os, psycopg, pytest, pytest_asyncio

        async def write(name):
            async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
                await conn.execute("insert into users (name) values (%s)", (name,))

        async def names():
            async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as conn:
                return [n for (n,) in await (await conn.execute("select name from users order by id")).fetchall()]

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def in_module(): await write("module")

        @pytest.mark.asyncio
        @pytest.mark.parametrize("i", range(3))
        async def test_asyncio(i, in_module, pg):
            assert await names() == ["module"]
            await write("dirt")

        @pytest.fixture(scope="class")
        def anyio_backend(): return "asyncio"

        class TestAnyio:
            @pytest.fixture(scope="class")
            async def in_class(self, anyio_backend): await write("class")

            @pytest.mark.anyio
            @pytest.mark.parametrize("i", range(2))
            async def test_anyio(self, i, in_class):
                assert (await names())[-1:] == ["class"]
                await write("dirt")
        """
    )
    folder.pytest(plugins=plugins).ok(5)


def test_random_order_reruns_timeouts_coverage_subtests(folder: Folder) -> None:
    plugins = need(*OTHERS)
    folder.write(
        test_a="""
        import os, time, unittest, pytest, psycopg

        def dirty():
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
                conn.execute("insert into users (name) values ('x')")
                return conn.execute("select count(*) from users").fetchone()[0]

        @pytest.mark.parametrize("i", range(6))
        def test_order(i): assert dirty() == 1

        RUNS = []
        @pytest.mark.flaky(reruns=2)
        def test_flaky():
            assert dirty() == 1
            RUNS.append(1)
            assert len(RUNS) == 3

        @pytest.mark.serial_only
        @pytest.mark.parametrize("i", range(2))
        def test_serial(i): assert dirty() == 1

        class TestSub(unittest.TestCase):
            def test_subtests(self):
                for i in range(3):
                    with self.subTest(i=i): self.assertEqual(dirty(), i + 1)
        """,
        test_slow="""
        import time, pytest
        @pytest.mark.timeout(0.5)
        def test_slow(pg_conn):
            pg_conn.execute("insert into users (name) values ('slow')")
            time.sleep(20)
        @pytest.mark.timeout(10)
        def test_after(pg_conn): assert pg_conn.execute("select count(*) from users").fetchone() == (0,)
        """,
    )
    result = folder.pytest("--cov=.", "--cov-report=", "test_a.py", plugins=plugins)
    assert (result.code, result["passed"], result["rerun"]) == (0, 10, 2), result.text
    result = folder.pytest("-n", "2", "test_a.py", plugins=plugins)
    assert (result.code, result["passed"], result["rerun"]) == (0, 10, 2), result.text
    result = folder.pytest("-p", "no:randomly", "test_slow.py", "--timeout-method=signal", plugins=plugins)
    assert (result["passed"], result["failed"]) == (1, 1), result.text
    # The other method ends the whole process; what it leaves is swept by the next run.
    result = folder.pytest("-p", "no:randomly", "test_slow.py", "--timeout-method=thread", plugins=plugins)
    assert result.code == 1, result.text
    assert "Timeout" in result.text


def test_another_plugin_with_a_fixture_of_our_name(folder: Folder) -> None:
    plugins = need("pytest_pg")
    folder.write(test_a="def test_it(pg, pg_url): assert pg.url == pg_url\n")
    for order in (plugins, tuple(reversed(plugins))):
        folder.pytest(plugins=order).ok(1)


SETTINGS = """
    import os
    from urllib.parse import urlsplit
    url = urlsplit(os.environ.get("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing"))
    DATABASES = {
        "default": {"ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username,
                    "PASSWORD": url.password, "HOST": url.hostname, "PORT": url.port},
        # Hard-coded, as many projects have it.
        "analytics": {"ENGINE": "django.db.backends.postgresql", "NAME": "prod", "HOST": "192.0.2.1"},
        "replica": {"ENGINE": "django.db.backends.postgresql", "NAME": "prod", "HOST": "192.0.2.1",
                    "TEST": {"MIRROR": "default"}},
    }
    INSTALLED_APPS = ["shop"]
    USE_TZ = True
    SECRET_KEY = "x"
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""

MODELS = """
    from django.db import models
    class Item(models.Model):
        name = models.CharField(max_length=50)
        class Meta: app_label = "shop"
"""

MIGRATION = """
    from django.db import migrations, models
    def seed(apps, editor): apps.get_model("shop", "Item").objects.using(editor.connection.alias).create(name="seed")
    class Migration(migrations.Migration):
        initial = True
        operations = [
            migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=50))]),
            migrations.RunPython(seed),
        ]
"""

TESTS = """
    import pytest
    from django.test import TestCase, TransactionTestCase
    from django.db import connections
    from shop.models import Item

    def names(): return list(Item.objects.order_by("id").values_list("name", flat=True))

    @pytest.mark.django_db
    @pytest.mark.parametrize("i", range(2))
    def test_db(i, pg):
        assert connections["default"].settings_dict["NAME"] == pg.dsn.database
        with connections["default"].cursor() as cursor:
            # What Django would have created.
            cursor.execute("select datname from pg_database where datname like 'test%'")
            assert cursor.fetchall() == []
        assert names() == ["seed", "from the set-up"]
        Item.objects.create(name="x")

    @pytest.mark.django_db(transaction=True, databases=["default", "analytics"])
    @pytest.mark.parametrize("i", range(3))
    def test_transactional(i, pg):
        assert names() == ["seed", "from the set-up"]
        assert Item.objects.using("analytics").count() == 1
        assert connections["analytics"].settings_dict["NAME"] == pg["analytics"].dsn.database
        Item.objects.create(name="x"); Item.objects.using("analytics").create(name="x")

    class TestData(TestCase):
        databases = {"default", "replica"}
        @classmethod
        def setUpTestData(cls): cls.item = Item.objects.create(name="of the class")
        def test_one(self):
            self.assertEqual(names(), ["seed", "from the set-up", "of the class"])
            self.assertEqual(Item.objects.using("replica").count(), 2)
            Item.objects.all().delete()
        def test_two(self): self.assertEqual(names(), ["seed", "from the set-up", "of the class"])

    class TestTransaction(TransactionTestCase):
        def test_one(self): Item.objects.all().delete()
        def test_two(self): self.assertEqual(names(), ["seed", "from the set-up"])
"""


def shop(folder: Folder, settings: str, tests: str) -> None:
    """A Django project with one app, and tests of it."""
    (folder.path / "shop" / "migrations").mkdir(parents=True)
    folder.write(
        settings=settings,
        test_shop=tests,
        **{
            "shop/__init__": "",
            "shop/models": MODELS,
            "shop/migrations/__init__": "",
            "shop/migrations/0001_initial": MIGRATION,
        },
    )
    (folder.path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n")


def end_servers(folder: Folder) -> None:
    from harness.config.load import load
    from harness.config.project import Project
    from harness.servers import inventory

    inventory.stop(Project.of(load(folder.place.environ, start=folder.path), folder.place.environ))


def test_django(folder: Folder) -> None:
    plugins = need("pytest_django.plugin", "django")[:-1]
    shop(folder, SETTINGS, TESTS)
    folder.write(
        conftest="""
        import pytest
        @pytest.fixture(scope="session")
        def django_db_setup(django_db_setup, django_db_blocker):
            from shop.models import Item
            with django_db_blocker.unblock():
                Item.objects.create(name="from the set-up")
        """
    )
    root = (folder.place.root / "pg-harness.toml").read_text()
    (folder.path / "pg-harness.toml").write_text(
        root.replace('migrations = ["sql:migrations"]', 'migrations = ["django:settings"]')
        + '[databases.analytics]\nmigrations = ["django:settings"]\n'
    )
    try:
        result = folder.pytest(plugins=plugins).ok(9)
        assert "put back" in result.text or "rewound" in result.text
        folder.pytest("--reuse-db", "-n", "2", plugins=tuple(reversed(plugins))).ok(9)
        folder.pytest("--create-db", plugins=plugins).ok(9)
    finally:
        end_servers(folder)


DATABASES = """
    import pytest
    from django.db import connections
    from shop.models import Item

    @pytest.mark.django_db(transaction=True, databases=["default", "analytics", "replica"])
    @pytest.mark.parametrize("i", range(3))
    def test_it(i, pg):
        assert [Item.objects.using(alias).count() for alias in connections] == [1, 1, 1]
        Item.objects.create(name="x"); Item.objects.using("analytics").create(name="x")
        names = [connections[alias].settings_dict["NAME"] for alias in ("default", "analytics", "replica")]
        assert names[0] == names[2] == pg.dsn.database
        open("names.txt", "w").write(names[1])
"""


def test_django_with_the_databases_that_init_finds(place: Place, tmp_path: Path) -> None:
    """`init` wrote the default one alone, and Django found a circle in what the further one depends on."""
    plugins = need("pytest_django.plugin", "django")[:-1]
    # Not below the others' settings.
    folder = Folder(place, tmp_path)
    shop(folder, SETTINGS, DATABASES)
    (folder.path / "manage.py").write_text("os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'settings')\n")
    (folder.path / "pyproject.toml").write_text('[project]\nname = "shop"\n')
    done = subprocess.run(
        [sys.executable, "-m", "harness", "init"], cwd=folder.path, env=folder.env(), capture_output=True, text=True, check=True
    )  # fmt: skip
    written = tomllib.loads((folder.path / "pyproject.toml").read_text())["tool"]["pg-harness"]
    assert written == {"migrations": ["django"], "databases": {"analytics": {"migrations": ["django"]}}}
    assert "[tool.pg-harness.databases.analytics]" in done.stdout
    try:
        folder.pytest(plugins=plugins, env={"PGHARNESS_BACKEND": "process"}).ok(3)
        assert (folder.path / "names.txt").read_text().startswith("pgh_")
    finally:
        end_servers(folder)


def test_django_makes_the_databases_that_are_not_ours(
    folder: Folder, server_of: Callable[[str], ServerInfo]
) -> None:
    plugins = need("pytest_django.plugin", "django")[:-1]
    theirs = server_of("15").dsn
    name = f"theirs_{folder.path.name}"
    entry = {
        "ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": theirs.host, "PORT": theirs.port,
        "USER": theirs.user, "PASSWORD": "".join(theirs.password),
    }  # fmt: skip
    hard = '{"ENGINE": "django.db.backends.postgresql", "NAME": "prod", "HOST": "192.0.2.1"},'
    # What migrations have inserted there, Django's own flush loses.
    tests = DATABASES.replace("] == [1, 1, 1]", "][::2] == [1, 1]")
    shop(folder, SETTINGS.replace(hard, f"{entry},"), tests)
    (folder.path / "pg-harness.toml").write_text('migrations = ["django:settings"]\n')
    try:
        result = folder.pytest(plugins=plugins, env={"PGHARNESS_BACKEND": "process"}).ok(3)
        assert "Django makes analytics itself" in result.text
        assert (folder.path / "names.txt").read_text() == f"test_{name}"
    finally:
        end_servers(folder)


ON_A_STANDBY = """
    import os
    DATABASES = {
        name: {"ENGINE": "django.db.backends.postgresql", "NAME": "prod", "HOST": "192.0.2.1"} for name in ("default", "replica")
    }
    DATABASE_ROUTERS = ["settings.Router"]
    INSTALLED_APPS = ["shop"]
    USE_TZ = True
    SECRET_KEY = "x"
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

    class Router:
        def db_for_read(self, model, **hints): return "replica"
        def db_for_write(self, model, **hints): return "default"
        def allow_relation(self, one, other, **hints): return True
        def allow_migrate(self, db, label, **hints): return db == "default"
"""

ON_A_STANDBY_TESTS = """
    import pytest
    from django.db import connections
    from shop.models import Item

    def names(): return list(Item.objects.order_by("id").values_list("name", flat=True))

    @pytest.mark.django_db(transaction=True, databases=["default", "replica"])
    @pytest.mark.parametrize("i", range(3))
    def test_it(i, pg):
        assert int(connections["replica"].settings_dict["PORT"]) == pg.replica.dsn.port != pg.dsn.port
        assert names() == ["seed"]
        Item.objects.create(name="x")
        pg.wait_for_replica()
        assert names() == ["seed", "x"]
"""


def test_an_alias_of_django_is_the_standby(folder: Folder) -> None:
    plugins = need("pytest_django.plugin", "django")[:-1]
    shop(folder, ON_A_STANDBY, ON_A_STANDBY_TESTS)
    root = (folder.place.root / "pg-harness.toml").read_text()
    root = root.replace('migrations = ["sql:migrations"]', 'migrations = ["django:settings"]\nreplicas = 1')
    (folder.path / "pg-harness.toml").write_text(root)
    try:
        folder.pytest(plugins=plugins).ok(3)
    finally:
        end_servers(folder)
