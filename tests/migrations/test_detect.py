"""What ``init`` finds in a project, and what it makes of it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.config.extensions import resolved
from harness.errors import ConfigError
from harness.migrations.detect import detect, looked_for, propose
from harness.migrations.registry import KINDS, read

MANAGE = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("files", "tool", "text"),
    [
        ({"alembic.ini": "[alembic]\nscript_location = m\n"}, "Alembic", "alembic"),
        ({"api/alembic.ini": "[alembic]\nscript_location = m\n"}, "Alembic", "alembic:api/alembic.ini"),
        ({"pyproject.toml": "[tool.alembic]\nscript_location = 'm'\n"}, "Alembic", "alembic"),
        ({"manage.py": MANAGE}, "Django", "django"),
        ({"prisma/migrations/2024_a/migration.sql": "SELECT 1;"}, "Prisma", "sql:prisma/migrations"),
        ({"migrations/2024_a/up.sql": "", "migrations/2024_a/down.sql": ""}, "Diesel", "sql:migrations"),
        ({"src/main/resources/db/migration/V1__a.sql": ""}, "Flyway", "sql:src/main/resources/db/migration"),
        ({"db/1_a.up.sql": "", "db/1_a.down.sql": ""}, "golang-migrate", "sql:db"),
        ({"store/1_a.sql": "-- +goose Up\nSELECT 1;\n"}, "goose", "sql:store"),
        ({"db/migrations/1_a.sql": "-- migrate:up\n-- migrate:down\n"}, "dbmate", "sql:db/migrations"),
        (
            {"Cargo.toml": '[dependencies]\nsqlx = "0.8"\n', "migrations/1_a.sql": ""},
            "sqlx",
            "sql:migrations",
        ),
        ({"supabase/migrations/20240101_a.sql": ""}, "Supabase", "sql:supabase/migrations"),
        ({"migrations/a.sql": ""}, "plain SQL files", "sql:migrations"),
        ({"db/structure.sql": "--\n-- PostgreSQL database dump\n--\n"}, "a dump", "dump:db/structure.sql"),
    ],
)
def test_each_tool(files: dict[str, str], tool: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    best = detect(tmp_path)[0]
    assert (best.tool, best.text) == (tool, text)
    assert tomllib.loads(propose(tmp_path))["tool"]["pg-harness"] == {"migrations": [text]}
    assert tomllib.loads(propose(tmp_path, table="")) == {"migrations": [text]}


def test_what_is_not_the_projects_own_is_skipped(tmp_path: Path) -> None:
    sql = {"migrations/V1__a.sql": ""}
    for folder in ("node_modules/x", ".venv/x", "env", "tests/data", "vendor/y"):
        write(tmp_path / folder, sql)
    write(tmp_path, {"env/pyvenv.cfg": "", "queries/a.sql": "SELECT 1"})
    assert detect(tmp_path) == []
    assert all(f"#   {line}" in propose(tmp_path) for line in looked_for())


def test_what_cannot_be_looked_at_is_passed_over(tmp_path: Path) -> None:
    # As /proc/1/cwd is to most: asking what it leads to is refused.
    (tmp_path / "around").symlink_to("around")
    write(tmp_path, {"db/migrations/a.sql": ""})
    assert [finding.text for finding in detect(tmp_path)] == ["sql:db/migrations"]


def test_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"manage.py": MANAGE, "db/migrations/a.sql": ""})
    assert '# also found: "sql:db/migrations" (plain SQL files: 1 migration in db/migrations)' in propose(
        tmp_path
    )


def test_a_django_project_too_deep_for_its_source_is_not_proposed(tmp_path: Path) -> None:
    text = "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n"
    for folder, found in (("a/b/c", []), ("a/b", ["django"])):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "manage.py").write_text(text)
        assert [finding.text for finding in detect(tmp_path)] == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sq:db", "The nearest is 'sql': sql:db/migrations"),
        ("db/migrations", 'For SQL files write "sql:db/migrations"'),
        ("npx prisma migrate deploy", 'For a command write "command:npx prisma migrate deploy"'),
        ("sql:", "lacks what follows the colon"),
        ("python:app.db", "a callable is written python:app.db:migrate"),
        (7, "must be text"),
        ({"source": "command:x", "wach": []}, "did you mean 'watch'?"),
        ({"watch": []}, "needs source"),
        ({"source": "sql:db", "watch": ["a"]}, "takes no watch"),
        ({"source": "command:x", "watch": ["../a"]}, "stay inside it"),
    ],
)
def test_specs_that_are_wrong(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(value, "pyproject.toml")
    assert message in str(caught.value)
    assert (caught.value.key, caught.value.origin) == ("migrations", "pyproject.toml")


def test_reading_settings_imports_no_source_and_asks_no_package(tmp_path: Path) -> None:
    entries = ["sql:a", "alembic", "django:a.b", "dump:a.sql", "command:a b", "python:a.b:c"]
    code = (
        "import sys; from pathlib import Path\n"
        "from harness.config.load import load; from harness.migrations import registry\n"
        f"settings = load({{}}, start=Path({str(tmp_path)!r}), overrides={{'migrations': {entries}}})\n"
        "before = set(sys.modules); registry.check_settings(settings)\n"
        "print([spec.kind for spec in settings.default.migrations] == ['sql', 'alembic', 'django', 'dump', 'command', 'python'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('harness.migrations.')), sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n" + code],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True\n['harness.migrations.registry'] []\n"


def test_every_kind_of_ours_names_code_that_is_there() -> None:
    for word, kind in KINDS.items():
        assert callable(resolved(kind.source))
        assert (kind.detect is None) == (not kind.looks_for)
        if kind.detect is not None:
            assert callable(resolved(kind.detect))
        for form in kind.form.split(" or "):
            assert read(form, "a test").kind == word
