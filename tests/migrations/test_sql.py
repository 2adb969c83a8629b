"""SQL files of every layout, on real servers; and what a person sees when one of them is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank

from harness.errors import MigrationError

TRIGGER = """
CREATE TABLE items (id serial PRIMARY KEY, name text NOT NULL, changed int NOT NULL DEFAULT 0);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.changed := OLD.changed + 1; -- a semicolon; and a 'quote
    RETURN NEW;
END;
$body$;
CREATE TRIGGER items_touch BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION touch();
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT n; SELECT CASE WHEN true THEN 2 * n END; END;
INSERT INTO items (name) VALUES ('semi;colon'), (E'it\\'s'), ('ü');
UPDATE items SET name = name;
"""
INDEX = "CREATE INDEX CONCURRENTLY items_name ON items (name);"
LATER = (
    "ALTER TABLE items ADD COLUMN note text DEFAULT 'n';\nCREATE VIEW shown AS SELECT id, note FROM items;\n"
)

LAYOUTS: dict[str, dict[str, str]] = {
    "plain": {"1.sql": TRIGGER, "2.sql": INDEX + "\n" + LATER.split("\n")[0], "10.sql": LATER.split("\n")[1]},
    "flyway": {
        "V1__items.sql": TRIGGER,
        "V1.10__later.sql": LATER.split("\n")[0],
        "V1.9__index.sql": INDEX,
        "R__shown.sql": LATER.split("\n")[1],
        "U1__undo.sql": "DROP TABLE items;",
    },
    "golang-migrate": {
        "1_items.up.sql": TRIGGER,
        "1_items.down.sql": "DROP TABLE items;",
        "2_index.up.sql": INDEX,
        "10_later.up.sql": LATER,
    },
    "goose": {
        "00001_items.sql": f"-- +goose Up\n-- +goose StatementBegin{TRIGGER}-- +goose StatementEnd\n-- +goose Down\nDROP TABLE items;\n",
        "00002_index.sql": f"-- +goose NO TRANSACTION\n-- +goose Up\n{INDEX}\n-- +goose Down\nDROP INDEX items_name;\n",
        "00010_later.sql": f"-- +goose Up\n{LATER}-- +goose Down\nDROP VIEW shown;\n",
    },
    "dbmate": {
        "20240101000000_items.sql": f"-- migrate:up\n{TRIGGER}\n-- migrate:down\nDROP TABLE items;\n",
        "20240102000000_index.sql": f"-- migrate:up transaction:false\n{INDEX}\n-- migrate:down\n",
        "20240103000000_later.sql": f"-- migrate:up\n{LATER}\n-- migrate:down\nDROP VIEW shown;\n",
    },
    "diesel": {
        "2024-01-01-000000_items/up.sql": TRIGGER,
        "2024-01-01-000000_items/down.sql": "DROP TABLE items;",
        "2024-01-02-000000_index/up.sql": INDEX,
        "2024-01-02-000000_index/metadata.toml": "run_in_transaction = false\n",
        "2024-01-03-000000_later/up.sql": LATER,
    },
    "sqlx": {
        "../Cargo.toml": '[dependencies]\nsqlx = "0.8"\n',
        "1_items.up.sql": TRIGGER,
        "1_items.down.sql": "DROP TABLE items;",
        "2_index.up.sql": "-- no-transaction\n" + INDEX,
        "10_later.up.sql": LATER,
    },
    "prisma": {
        "20240101000000_items/migration.sql": TRIGGER,
        "20240102000000_index/migration.sql": INDEX,
        "20240103000000_later/migration.sql": LATER,
        "migration_lock.toml": 'provider = "postgresql"\n',
    },
}


def write(folder: Path, files: dict[str, str], *, encoding: str = "utf-8", newline: str = "\n") -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", newline).encode(encoding))


def check_items(blank: Blank) -> None:
    assert blank.rows("SELECT name, changed, note FROM items ORDER BY id") == [
        ("semi;colon", 1, "n"), ("it's", 1, "n"), ("ü", 1, "n"),
    ]  # fmt: skip
    assert blank.value("SELECT twice(21)") == 42
    assert blank.value("SELECT count(*) FROM shown") == 3
    assert blank.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_name'::regclass") is True
    assert blank.value("SELECT tableowner FROM pg_tables WHERE tablename = 'items'") == "migrator"


@pytest.mark.parametrize("version", ["15", "18"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, version: str, blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    blank = blank_on(version)
    write(tmp_path / "db", LAYOUTS[layout])
    blank.migrate(tmp_path, "sql:db")
    check_items(blank)
    assert blank.tables() == {"items"}
    assert blank.sessions() == 0


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-8-sig", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r\n")]
)
@pytest.mark.parametrize("layout", ["plain", "goose", "dbmate"])
def test_byte_order_marks_and_line_ends(
    layout: str, encoding: str, newline: str, blank: Blank, tmp_path: Path
) -> None:
    write(tmp_path / "db", LAYOUTS[layout], encoding=encoding, newline=newline)
    blank.migrate(tmp_path, "sql:db")
    check_items(blank)


def test_one_file_and_seeds_in_order(blank: Blank, tmp_path: Path) -> None:
    write(
        tmp_path, {"schema.sql": "CREATE TABLE t (a int);", "seeds/1.sql": "INSERT INTO t VALUES (1), (2);"}
    )
    blank.migrate(tmp_path, "sql:schema.sql", "sql:seeds")
    assert blank.rows("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_settings_of_one_plain_file_do_not_reach_the_next(blank: Blank, tmp_path: Path) -> None:
    """pg_dump's set_config('search_path', '') in the first file would hide every table from the second."""
    first = "CREATE TABLE t (a int);\nSELECT pg_catalog.set_config('search_path', '', false);\nSET ROLE NONE;"
    write(tmp_path / "db", {"1.sql": first, "2.sql": "INSERT INTO t VALUES (1);"})
    blank.migrate(tmp_path, "sql:db")
    assert blank.value("SELECT a FROM t") == 1


def failure(blank: Blank, root: Path, spec: str = "sql:db", timeout: float = 60) -> MigrationError:
    with pytest.raises(MigrationError) as caught:
        blank.migrate(root, spec, timeout=timeout)
    assert caught.value.source == spec
    assert len(str(caught.value).splitlines()) < 24  # one screen
    assert "Traceback" not in str(caught.value)
    assert blank.sessions() == 0
    return caught.value


def test_syntax_error_has_file_line_and_caret(blank: Blank, tmp_path: Path) -> None:
    write(
        tmp_path / "db",
        {"1_ok.sql": "SELECT 1;", "2_bad.sql": "SELECT 1;\n\nCREATE TABLE t (\n  a intt\n);\n"},
    )
    error = failure(blank, tmp_path)
    assert error.step == "db/2_bad.sql"
    assert str(error).splitlines() == [
        "sql:db: db/2_bad.sql, line 4:",
        '  ERROR: type "intt" does not exist [42704]',
        "  4 |   a intt",
        "    |     ^",
    ]


def test_position_counts_characters_behind_a_byte_order_mark(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "-- ü\nSELECT 'äöü', nope;\n"}, encoding="utf-8-sig", newline="\r\n")
    lines = str(failure(blank, tmp_path)).splitlines()
    assert lines[0] == "sql:db: db/1.sql, line 2:"
    assert lines[3].index("^") == lines[2].index("nope")


def test_error_without_a_position_shows_the_statement(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "CREATE TABLE t (a int UNIQUE);\nINSERT INTO t VALUES (7);\nINSERT INTO t VALUES (7);\n"})  # fmt: skip
    text = str(failure(blank, tmp_path))
    assert "db/1.sql, line 3:" in text
    assert "DETAIL: Key (a)=(7) already exists." in text


def test_error_inside_a_function_shows_its_statement(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "DO $$ BEGIN RAISE NOTICE 'hello'; EXECUTE 'SELEC 1'; END $$;"})
    text = str(failure(blank, tmp_path))
    assert "inside, in this statement:\n  1 | SELEC 1\n    | ^" in text
    assert "CONTEXT: PL/pgSQL function" in text
    assert "before it: NOTICE: hello" in text


def test_a_hanging_migration_is_ended(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "SELECT 1;", "2.sql": "SELECT 1;\nSELECT pg_sleep(600);"})
    begin = time.monotonic()
    error = failure(blank, tmp_path, timeout=1)
    assert time.monotonic() - begin < 10
    assert "db/2.sql, line 2:" in str(error)
    assert "the 1 s that migrations may take were over (migration_timeout)" in str(error)


def test_a_file_in_a_transaction_leaves_nothing_when_it_fails(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1_a.sql": "-- +goose Up\nCREATE TABLE t ();\nSELECT nope;\n-- +goose Down\n"})
    failure(blank, tmp_path)
    assert blank.tables() == set()


def test_a_plain_file_runs_as_psql_runs_it(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "CREATE TABLE t ();\nSELECT nope;\n"})
    failure(blank, tmp_path)
    assert blank.tables() == {"t"}


def test_a_tool_that_needs_an_opt_out_says_which(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1_a.sql": "-- +goose Up\nCREATE TABLE t (a int);\nCREATE INDEX CONCURRENTLY i ON t (a);\n"})  # fmt: skip
    text = str(failure(blank, tmp_path))
    assert "CREATE INDEX CONCURRENTLY cannot run inside a transaction block [25001]" in text
    assert "goose runs this file without a transaction if it says: -- +goose NO TRANSACTION" in text


def test_an_open_transaction_is_named(blank: Blank, tmp_path: Path) -> None:
    write(tmp_path / "db", {"1.sql": "BEGIN;\nCREATE TABLE t ();\n"})
    assert "BEGIN without COMMIT" in str(failure(blank, tmp_path))
    assert blank.tables() == set()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.sql": b"SELECT 1;\n\\copy t from 'x.csv'\n"}, r"db/1.sql, line 2, column 1: \copy is a command of psql"),
        ({"1.sql": b"COPY t FROM stdin;\n1\n\\.\n"}, "is a command of psql"),
        ({"1.sql": b"COPY t FROM stdin;\n"}, 'db/1.sql, line 1: COPY … FROM stdin needs a client'),
        ({"1.sql": "SELECT 'ü';".encode("utf-16")}, "db/1.sql is encoded in UTF-16; save it as UTF-8"),
        ({"1.sql": b"-- a\nSELECT '" + "ü".encode("latin-1") + b"';"}, "db/1.sql, line 2: the byte 0xfc is not UTF-8"),
        ({"1.sql": b"SELECT 1;\x00"}, "db/1.sql, line 1: holds a zero byte"),
        ({}, "no migrations in db. It is empty."),
        ({"readme.txt": b""}, "no migrations in db. It holds: readme.txt."),
    ],
)  # fmt: skip
def test_files_that_cannot_run(files: dict[str, bytes], message: str, blank: Blank, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    for name, data in files.items():
        (tmp_path / "db" / name).write_bytes(data)
    assert message in str(failure(blank, tmp_path))


def test_a_missing_folder_shows_what_is_there(blank: Blank, tmp_path: Path) -> None:
    (tmp_path / "db" / "migrate").mkdir(parents=True)
    text = str(failure(blank, tmp_path, "sql:db/migrations"))
    assert "the folder or file db/migrations does not exist" in text
    assert "In db there is: migrate/." in text
