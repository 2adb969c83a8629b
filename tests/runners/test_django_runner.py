"""``manage.py test`` with ``TEST_RUNNER = "harness.django.Runner"``: clones of the template, for each process and each alias."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from fix_cli import Project
from fix_snippets import commands, files

pytest.importorskip("django")

SETTINGS = """
SECRET_KEY = "x"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "shop"]
POSTGRES = {
    "ENGINE": "django.db.backends.postgresql", "HOST": "192.0.2.1", "USER": "nobody", "OPTIONS": {"sslmode": "require"},
}
DATABASES = {
    "default": {**POSTGRES, "NAME": "prod"},
    "analytics": {**POSTGRES, "NAME": "figures"},
    "replica": {**POSTGRES, "NAME": "prod", "HOST": "192.0.2.2", "TEST": {"MIRROR": "default"}},
}
"""

MANAGE = """
import multiprocessing, os, sys
if __name__ == "__main__":
    if "START" in os.environ:
        multiprocessing.set_start_method(os.environ["START"])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""

MODELS = """
from django.db import models

class Item(models.Model):
    name = models.CharField(max_length=20)
"""

SEED = """
from django.db import migrations

def seed(apps, editor):
    apps.get_model("shop", "Item").objects.using(editor.connection.alias).create(name="seeded")

class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(seed)]
"""

TESTS = """
import os
from django.db import connections
from django.test import TestCase, TransactionTestCase
import harness
from shop.models import Item

def names(alias="default"):
    with open("seen", "a") as seen:
        print(connections[alias].settings_dict["NAME"], file=seen)
    return sorted(item.name for item in Item.objects.using(alias).all())

class Committed:
    databases = {"default", "analytics", "replica"}
    def test_one(self):
        assert names() == names("analytics") == names("replica") == ["seeded"], names()
        assert Item.objects.create(name="own").pk == 2
        Item.objects.using("analytics").create(name="own")
        assert names() == names("analytics") == names("replica") == ["own", "seeded"]
        assert connections["default"].settings_dict["NAME"] in harness.current().url
    test_two = test_one

class FirstTest(Committed, TransactionTestCase): pass
class SecondTest(Committed, TransactionTestCase): pass

class RolledBackTest(TestCase):
    @classmethod
    def setUpTestData(cls):
        Item.objects.create(name="of the class")
    def test_it(self):
        assert names() == ["of the class", "seeded"]
        Item.objects.create(name="own")
    test_again = test_it
"""

LITE = """
from django.db import connections
from django.test import TransactionTestCase
from shop.models import Item

class LiteTest(TransactionTestCase):
    databases = {"default", "cache"}
    def test_one(self):
        # Django flushes what it has made, and also ours; the seed is there all the same.
        assert Item.objects.get().name == "seeded"
        Item.objects.using("cache").create(name="own")
        assert connections["cache"].vendor == "sqlite"
        Item.objects.create(name="own")
    test_two = test_one
"""


@pytest.fixture(scope="module")
def shop(new_project: Callable[..., Project]) -> Project:
    project = new_project("shop", migrations=False)
    app = project.root / "shop"
    (app / "migrations").mkdir(parents=True)
    for file, text in {
        "settings.py": SETTINGS + files("recipes.md", "Django without pytest")["settings.py"],
        "manage.py": MANAGE,
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "shop/tests.py": TESTS,
        "shop/migrations/__init__.py": "",
    }.items():
        (project.root / file).write_text(text)
    made = subprocess.run(
        [sys.executable, "manage.py", "makemigrations", "shop"], cwd=project.root, env=project.environ, check=False,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (app / "migrations" / "0001_initial.py").is_file(), made.stderr
    (app / "migrations" / "0002_seed.py").write_text(SEED)
    project.ok("init")
    assert "databases.analytics" in (project.root / "pg-harness.toml").read_text()
    return project


def manage(project: Project, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (project.root / "seen").unlink(missing_ok=True)
    return subprocess.run(
        [sys.executable, "manage.py", "test", *words], cwd=project.root, env={**project.environ, **environ},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def seen(project: Project) -> set[str]:
    return set((project.root / "seen").read_text().split())


def test_one_process(shop: Project) -> None:
    done = manage(shop)
    assert done.returncode == 0, done.stderr
    assert "Ran 6 tests" in done.stderr
    assert "OK" in done.stderr
    assert re.search(r"^pg-harness: PostgreSQL .*, template (built in|found)", done.stdout, re.MULTILINE)
    # `default` with its mirror, and `analytics`.
    assert len(seen(shop)) == 2
    assert not {"prod", "figures", "test_prod"} & seen(shop)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_each_parallel_process_has_its_own(shop: Project, start: str) -> None:
    done = manage(shop, "--parallel", "2", START=start)
    assert done.returncode == 0, done.stderr
    assert "Ran 6 tests" in done.stderr
    assert len(seen(shop)) == 4
    assert all(name.startswith("pgh_") for name in seen(shop))
    # All of them were given back.
    assert "nothing" in shop.run("gc", "--now").stderr


def test_inside_of_a_run(shop: Project) -> None:
    (shop.root / "seen").unlink(missing_ok=True)
    words = (sys.executable, "manage.py", "test")
    done = shop.run("run", "-q", "--", *words)
    assert done.returncode == 0, done.stderr
    assert "nobody entered" not in done.stderr
    assert len(seen(shop)) == 2
    done = shop.run("run", "-q", "-n", "2", "--", *words, "--parallel", "2")
    assert done.returncode == 0, done.stderr
    assert len(seen(shop)) == 6
    done = shop.run("run", "-q", "--", *words, "--parallel", "2")
    assert done.returncode == 1
    assert (
        "CommandError: pg-harness: manage.py test --parallel 2 needs 2 databases, and this run has 1"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_an_alias_without_a_database_is_djangos(shop: Project) -> None:
    """It is made where its settings say, by Django: SQLite here."""
    own = (shop.root / "shop" / "test_lite.py").write_text(LITE)
    assert own
    (shop.root / "lite.py").write_text(
        "from settings import *\n"
        'DATABASES["cache"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}\n'
    )
    done = manage(shop, "shop.test_lite", DJANGO_SETTINGS_MODULE="lite")
    (shop.root / "shop" / "test_lite.py").unlink()
    assert done.returncode == 0, done.stderr
    assert "pg-harness: Django makes cache itself" in done.stdout
    assert "Ran 2 tests" in done.stderr


def test_the_commands_of_the_page(shop: Project) -> None:
    one, parallel = commands("recipes.md", "Django without pytest")
    assert one == ["python", "manage.py", "test"]
    # As test_each_parallel_process_has_its_own calls it.
    assert parallel == [*one, "--parallel", "2"]


def test_settings_that_are_not_right(shop: Project) -> None:
    done = manage(shop, PGHARNESS_FRESH="newest")
    assert done.returncode == 1
    assert "CommandError: pg-harness: " in done.stderr
    assert "Traceback" not in done.stderr
