"""Each tool's layout is recognised, its files come in its order, and only their up parts run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.config.sources import parse_spec
from harness.errors import MigrationError
from harness.migrations.sql.layouts import flyway_version
from harness.migrations.sql.source import SqlSource
from harness.migrations.sql.split import split

TABLE = Path(__file__).parents[1] / "data" / "migrations" / "order.toml"
CASES: list[dict[str, Any]] = tomllib.loads(TABLE.read_text("utf-8"))["case"]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def source(root: Path, folder: str = "db") -> SqlSource:
    return SqlSource(parse_spec(f"sql:{folder}", "a test"), root)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tool']}: {case['why']}"[:60])
def test_order(case: dict[str, Any], tmp_path: Path) -> None:
    folder = case.get("folder", "db")
    write(tmp_path, case.get("beside", {}))
    write(tmp_path / folder, {name: case.get("content", "SELECT 1;\n") for name in case["files"]})
    found = source(tmp_path, folder)
    tool, steps = found.plan
    assert tool.name == case["tool"]
    assert [step.shown for step in steps] == [f"{folder}/{name}" for name in case["order"]]


@pytest.mark.parametrize(
    ("text", "ran"),
    [
        ("-- +goose Up\nSELECT 1;\nSELECT 2;\n-- +goose Down\nSELECT 3;\n", ["SELECT 1", "SELECT 2"]),
        ("-- +goose Up\r\n-- +goose StatementBegin\r\nSELECT 1;\r\n-- +goose StatementEnd\r\n", ["SELECT 1"]),
        ("-- migrate:up transaction:false\nSELECT 1;\n\n-- migrate:down\nSELECT 3;\n", ["SELECT 1"]),
        ("--migrate:up\nSELECT 1\n--migrate:down\nSELECT 3", ["SELECT 1"]),
        ("-- +migrate Up notransaction\nSELECT 1;\n-- +migrate Down\nSELECT 3;\n", ["SELECT 1"]),
    ],
)
def test_only_the_up_part_runs(text: str, ran: list[str], tmp_path: Path) -> None:
    write(tmp_path, {"db/1_a.sql": text})
    _, (step,) = source(tmp_path).plan
    statements = [s.text for start, end in step.parts for s in split(step.text, start, end)]
    assert statements == ran


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({"1_a.sql": "-- +goose NO TRANSACTION\n-- +goose Up\nSELECT 1;\n"}, "each"),
        ({"1_a.sql": "-- +goose Up\nSELECT 1;\n"}, "whole"),
        ({"1_a.sql": "-- migrate:up transaction:false\nSELECT 1;\n-- migrate:down\n"}, "each"),
        ({"1_a.sql": "-- migrate:up\nSELECT 1;\n-- migrate:down transaction:false\n"}, "whole"),
        ({"1/up.sql": "SELECT 1;", "1/metadata.toml": "run_in_transaction = false\n"}, "each"),
        ({"1/up.sql": "SELECT 1;"}, "whole"),
        ({"V1__a.sql": "SELECT 1;", "V1__a.sql.conf": "executeInTransaction=false\n"}, "each"),
        ({"V1__a.sql": "SELECT 1;"}, "auto"),
        ({"1/migration.sql": "SELECT 1;"}, "auto"),
        ({"1_a.up.sql": "SELECT 1;"}, "auto"),
        ({"1_a.sql": "SELECT 1;"}, "each"),
    ],
)
def test_transactions_follow_the_tool(files: dict[str, str], mode: str, tmp_path: Path) -> None:
    write(tmp_path / "db", files)
    _, (step,) = source(tmp_path).plan
    assert step.mode.value == mode


def test_flyway_versions() -> None:
    assert flyway_version("1.10") > flyway_version("1.9") > flyway_version("1")
    assert flyway_version("1.0.0") == flyway_version("1") == flyway_version("01")
    assert flyway_version("2_1") == (2, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1_a.up.sql": "", "01_b.up.sql": ""}, "same version 1; golang-migrate refuses"),
        (
            {"V1__a.sql": "", "V1.0__b.sql": ""},
            "V1.0__b.sql and V1__a.sql have the same version V1; Flyway refuses",
        ),
        (
            {"1_a.sql": "-- +goose Up\n", "2_b.sql": "SELECT 1;"},
            "2_b.sql has no line that begins its up part",
        ),
        ({"1_a.sql": "-- +goose Up\n", "00002_b.go": "package x"}, "00002_b.go is a goose migration in Go"),
        ({"V1__a.sql": "GRANT ALL ON t TO ${user};"}, r"line 1: ${user} is a Flyway placeholder"),
        ({"V1__a.sql": "", "beforeEachMigrate.sql": ""}, "beforeEachMigrate.sql is a Flyway callback"),
        (
            {"V1__a.sql": "", "later/afterMigrate__x.sql": ""},
            "-locations=filesystem:db migrate",
        ),
        (
            {"1_a.sql": "SELECT 1;", "2_b.sql": "SELECT 1;\n---- create above / drop below ----\n"},
            '2_b.sql is a migration of tern, which sql: does not run. Let the tool itself run: in place of "sql:db" write "command:tern migrate --migrations db"',
        ),
        ({"1_a.sql": "-- Up Migration\n"}, 'write "command:npx node-pg-migrate up --migrations-dir db"'),
    ],
)
def test_what_only_the_tool_can_do_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    write(tmp_path / "db", files)
    with pytest.raises(MigrationError) as caught:
        source(tmp_path).fingerprint()
    assert message in str(caught.value)
    assert caught.value.source == "sql:db"


def test_fingerprint_follows_what_runs(tmp_path: Path) -> None:
    write(tmp_path / "db", {"1_a.up.sql": "SELECT 1;", "1_a.down.sql": "SELECT 2;"})
    before = source(tmp_path).fingerprint()
    write(tmp_path / "db", {"1_a.down.sql": "SELECT 3;", "notes.txt": "x"})
    assert source(tmp_path).fingerprint() == before
    write(tmp_path / "db", {"1_a.up.sql": "SELECT 1 ;"})
    after = source(tmp_path).fingerprint()
    assert after != before
    (tmp_path / "db" / "1_a.up.sql").rename(tmp_path / "db" / "2_a.up.sql")
    assert source(tmp_path).fingerprint() != after


def test_fingerprint_is_the_same_in_another_checkout(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "db", {"1_a.sql": "SELECT 1;"})
    assert source(tmp_path / "one").fingerprint() == source(tmp_path / "two").fingerprint()


def test_what_was_hashed_is_what_runs(tmp_path: Path) -> None:
    """A file that is saved between fingerprint() and apply() would be cached under the wrong key."""
    write(tmp_path / "db", {"1_a.sql": "SELECT 1;"})
    found = source(tmp_path)
    found.fingerprint()
    write(tmp_path / "db", {"1_a.sql": "SELECT 2;"})
    assert found.plan[1][0].text == "SELECT 1;"


GOOSE = "-- +goose Up\nSELECT {};\n-- +goose Down\nSELECT {};\n"


def test_pending_is_what_was_not_applied(tmp_path: Path) -> None:
    write(tmp_path / "db", {"1_a.sql": GOOSE.format(1, 1), "2_b.sql": GOOSE.format(2, 2)})
    applied = source(tmp_path).steps()
    assert source(tmp_path).pending(applied) == []
    assert source(tmp_path).pending({}) == ["db/1_a.sql", "db/2_b.sql"]
    # By number, as goose; and what is never run on the way up may change.
    write(tmp_path / "db", {"10_c.sql": GOOSE.format(3, 3), "1_a.sql": GOOSE.format(1, "'back'")})
    assert source(tmp_path).pending(applied) == ["db/10_c.sql"]
    write(tmp_path / "db", {"1_a.sql": GOOSE.format(9, 9)})
    with pytest.raises(MigrationError, match=r"db/1_a.sql was changed since the database has it") as caught:
        source(tmp_path).pending(applied)
    assert caught.value.step == "db/1_a.sql"
    with pytest.raises(MigrationError, match="was changed"):
        source(tmp_path).pending(applied, out_of_order=True)


def test_what_comes_before_applied_files_is_said_to(tmp_path: Path) -> None:
    write(tmp_path / "db", {"V1__a.sql": "SELECT 1;", "V3__c.sql": "SELECT 3;", "R__r.sql": "SELECT 'r';"})
    applied = source(tmp_path).steps()
    write(tmp_path / "db", {"V2__b.sql": "SELECT 2;", "V4__d.sql": "SELECT 4;"})
    with pytest.raises(MigrationError, match=r"db/V2__b.sql would come before db/V3__c.sql") as caught:
        source(tmp_path).pending(applied)
    assert "--out-of-order" in str(caught.value)
    assert source(tmp_path).pending(applied, out_of_order=True) == ["db/V2__b.sql", "db/V4__d.sql"]
    # The repeatable ones come last, and stand in nobody's way.
    (tmp_path / "db" / "V2__b.sql").unlink()
    write(tmp_path / "db", {"R__r.sql": "SELECT 'changed';", "R__new.sql": "SELECT 'new';"})
    assert source(tmp_path).pending(applied) == ["db/V4__d.sql", "db/R__new.sql", "db/R__r.sql"]
