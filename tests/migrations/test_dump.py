"""Dumps of every format, with owners, comments on extensions, rows and large objects of their old server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_migrations import ROLE, Blank

from harness.config.sources import parse_spec
from harness.errors import MigrationError
from harness.migrations.registry import load
from harness.postgres.session import Session

SCHEMA = r"""
CREATE EXTENSION pg_trgm;
COMMENT ON EXTENSION pg_trgm IS 'similarity';
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE notes (id serial PRIMARY KEY, body text, mood mood, raw bytea, n positive);
INSERT INTO notes (body, mood, raw, n) VALUES (E'tab\there', 'good', '\x00ff', 1), (E'line\nbreak \\. end', 'bad', NULL, 2), ('ü; --', NULL, '\x', 3);
CREATE SCHEMA log;
CREATE TABLE log.entries (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE log.entries_2024 PARTITION OF log.entries FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO log.entries VALUES ('2024-05-05', 'x');
CREATE FUNCTION shout(t text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN upper(t) || ';'; END $$;
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE VIEW shown AS SELECT id, shout(body) AS body FROM notes;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM notes;
CREATE STATISTICS pairs ON body, mood FROM notes;
CREATE PUBLICATION changes FOR TABLE notes;
SELECT lo_from_bytea(0, 'large');
"""
OWNED_BY_ADMIN = """
    SELECT c.oid::regclass::text FROM pg_class c WHERE c.oid >= 16384 AND relowner = 10 AND relkind <> 't'
       AND relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT proname FROM pg_proc p WHERE oid >= 16384 AND proowner = 10
       AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
    UNION ALL SELECT typname FROM pg_type t WHERE oid >= 16384 AND typowner = 10
       AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = coalesce(nullif(t.typelem, 0), t.oid) AND deptype = 'e')
    UNION ALL SELECT nspname FROM pg_namespace WHERE oid >= 16384 AND nspowner = 10
    UNION ALL SELECT stxname FROM pg_statistic_ext WHERE stxowner = 10
    UNION ALL SELECT pubname FROM pg_publication WHERE pubowner = 10
    UNION ALL SELECT oid::text FROM pg_largeobject_metadata WHERE lomowner = 10
"""


def fill(blank: Blank) -> None:
    """A database of another server: its owner and a reader are roles that the next server does not have."""
    with Session.connect(blank.admin) as session:
        session.script(SCHEMA)
        for role in ("old_owner", "old_reader"):
            if not session.value("select count(*) from pg_roles where rolname = %s", (role,)):
                session.execute(f"create role {role}")
        session.script("ALTER TABLE notes OWNER TO old_owner; GRANT SELECT ON notes TO old_reader;"
                       "ALTER DEFAULT PRIVILEGES FOR ROLE old_owner GRANT SELECT ON TABLES TO old_reader")  # fmt: skip


def forget(blank: Blank) -> None:
    with Session.connect(blank.admin) as session:
        session.script(
            "DROP OWNED BY old_owner CASCADE; DROP OWNED BY old_reader CASCADE; DROP ROLE old_owner, old_reader;"
        )


def pg_dump(blank: Blank, *options: str) -> None:
    assert blank.binaries is not None
    subprocess.run(
        [blank.binaries / "pg_dump", *options],
        env={**os.environ, **blank.admin.libpq()},
        check=True,
        timeout=60,
    )


def check(blank: Blank) -> None:
    assert blank.rows("SELECT body, mood::text, raw, n FROM notes ORDER BY id") == [
        ("tab\there", "good", b"\x00\xff", 1), ("line\nbreak \\. end", "bad", None, 2), ("ü; --", None, b"", 3),
    ]  # fmt: skip
    assert blank.value("SELECT count(*) FROM log.entries_2024") == 1
    assert blank.value("SELECT body FROM shown WHERE id = 3") == "Ü; --;"
    assert blank.value("SELECT n FROM counted") == 3
    assert blank.value("SELECT nextval('notes_id_seq')") == 4
    assert blank.value("SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata") == "large"
    assert blank.rows(OWNED_BY_ADMIN) == []
    with Session.connect(blank.dsn) as session:
        session.script("ALTER TABLE notes ADD extra int; DROP VIEW shown; DROP SCHEMA log CASCADE;")
    assert blank.sessions() == 0


@pytest.mark.parametrize("version", ["15", "18"])
@pytest.mark.parametrize("form", ["plain", "gzip", "custom", "tar", "directory"])
def test_every_format(form: str, version: str, blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    old, new = blank_on(version), blank_on(version)
    fill(old)
    flag = {"gzip": "plain"}.get(form, form)
    target = tmp_path / ("d.sql" if flag == "plain" else "d.dump")
    pg_dump(old, f"--format={flag}", f"--file={target}")
    if form == "gzip":
        subprocess.run(["gzip", str(target)], check=True, timeout=60)
        target = target.with_name("d.sql.gz")
    forget(old)
    (source,) = new.migrate(tmp_path, f"dump:{target.name}")
    assert source.format == form  # type: ignore[attr-defined]
    check(new)


def test_plain_dump_needs_no_programs(blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    old, new = blank_on("15"), blank_on("18")
    fill(old)
    pg_dump(old, "--inserts", "--rows-per-insert=2", f"--file={tmp_path / 'a.sql'}")
    pg_dump(old, "--format=custom", f"--file={tmp_path / 'a.dump'}")
    forget(old)
    bare = replace(new.context(environment={"PATH": "/nonexistent"}), binaries=None)
    load(parse_spec("dump:a.sql", "a test"), tmp_path).apply(bare)
    check(new)
    with pytest.raises(MigrationError, match="custom format, which needs pg_restore"):
        load(parse_spec("dump:a.dump", "a test"), tmp_path).apply(bare)


def test_restrict_token_is_not_in_the_fingerprint(blank: Blank, tmp_path: Path) -> None:
    """PostgreSQL's minor releases of August 2025 write a random token into every plain dump."""

    def hashed(token: str, rest: str = "CREATE TABLE t ();\n") -> str:
        (tmp_path / "d.sql").write_text(f"--\n-- PostgreSQL database dump\n--\n\\restrict {token}\n{rest}\\unrestrict {token}\n")  # fmt: skip
        return load(parse_spec("dump:d.sql", "a test"), tmp_path).fingerprint()

    assert hashed("abc") == hashed("xyz")
    assert hashed("abc") != hashed("abc", "CREATE TABLE u ();\n")
    blank.migrate(tmp_path, "dump:d.sql")
    assert blank.tables() == {"u"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\\connect other\n", r"d.sql, line 1: \connect leads to another database"),
        ("CREATE TABLE t ();\n\\! rm -rf x\n", r"d.sql, line 2: \! is a command of psql"),
        ("CREATE DATABASE x;\n", "d.sql, line 1: CREATE DATABASE: the dump was made with --create"),
        ("CREATE TABLE t (a int);\nCOPY public.t (a) FROM stdin;\n1\n2\n", "d.sql, line 2: the rows of this COPY have no end"),
        ("CREATE TABLE t (a int);\nCOPY public.t (a) FROM stdin;\n1\nx\n\\.\n", 'ERROR: invalid input syntax for type integer: "x"'),
        ("\n\nSELECT 1;\nSELECT nope;\n", "d.sql, line 4:"),
        ("SELECT 'open", "d.sql, line 1: a string begins here and has no end"),
        ("", "d.sql is empty"),
    ],
)  # fmt: skip
def test_bad_dumps(text: str, message: str, blank: Blank, tmp_path: Path) -> None:
    (tmp_path / "d.sql").write_text(text)
    with pytest.raises(MigrationError) as caught:
        blank.migrate(tmp_path, "dump:d.sql")
    assert message in str(caught.value)
    assert caught.value.source == "dump:d.sql"
    assert len(str(caught.value).splitlines()) < 24
    assert blank.sessions() == 0


def test_files_that_are_no_dump(blank: Blank, tmp_path: Path) -> None:
    (tmp_path / "u.sql").write_text("SELECT 1;", "utf-16")
    (tmp_path / "broken.dump").write_bytes(b"PGDMP\x01")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("u.sql", "is encoded in UTF-16; write it with pg_dump -f FILE"),
        ("broken.dump", "pg_restore cannot read broken.dump"),
        ("folder", "is a folder without toc.dat"),
        ("gone.sql", "the dump gone.sql does not exist"),
    ):
        with pytest.raises(MigrationError) as caught:
            blank.migrate(tmp_path, f"dump:{name}")
        assert message in str(caught.value)


def test_a_dump_that_hangs(blank: Blank, tmp_path: Path) -> None:
    (tmp_path / "d.sql").write_text("SELECT pg_sleep(600);\n")
    with pytest.raises(MigrationError, match="migration_timeout"):
        blank.migrate(tmp_path, "dump:d.sql", timeout=1)
    assert blank.dsn.user == ROLE
