"""Scripts are cut where psql cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.migrations.hashing.files import position
from harness.migrations.sql.split import ScriptError, split


def texts(script: str) -> list[str]:
    return [statement.text for statement in split(script)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        (" \n;;\n -- only; a comment\n/* and; /* a nested; */ one */", []),
        ("select 1; select 2", ["select 1", "select 2"]),
        ("select ';', \";\", 'it''s; fine'; select 2;", ["select ';', \";\", 'it''s; fine'", "select 2"]),
        ("select E'a\\';b'; select 2", ["select E'a\\';b'", "select 2"]),
        ("select 'a\\'; select 2", ["select 'a\\'", "select 2"]),  # standard strings know no backslash
        ("do $$ begin; end $$; do $a$ $$;$b$; $a$;", ["do $$ begin; end $$", "do $a$ $$;$b$; $a$"]),
        ("select a$b$ from t; select $1; prepare p as select $1", ["select a$b$ from t", "select $1", "prepare p as select $1"]),
        ("create rule r as on delete to a do (select 1; select 2); select 3",
         ["create rule r as on delete to a do (select 1; select 2)", "select 3"]),
        ("create function f() returns int begin atomic select 1; select case when true then 2 end; end; select 3",
         ["create function f() returns int begin atomic select 1; select case when true then 2 end; end", "select 3"]),
        ("create or replace procedure p() begin atomic; end; begin; commit; end;",
         ["create or replace procedure p() begin atomic; end", "begin", "commit", "end"]),
        ("-- a\r\nselect 1;\r\n/* b */ select 2;\r\n", ["select 1", "select 2"]),
        ("select 1 -- one; \n + 2; select 3", ["select 1 -- one; \n + 2", "select 3"]),
        ("select a[1:2], (b).c, d::text; select 2", ["select a[1:2], (b).c, d::text", "select 2"]),
        ("select U&'\\0441;', b'0;', x'1'; select 2", ["select U&'\\0441;', b'0;', x'1'", "select 2"]),
        ("insert into straße values ('ü;ß'); select 2", ["insert into straße values ('ü;ß')", "select 2"]),
    ],
)  # fmt: skip
def test_split(script: str, expected: list[str]) -> None:
    assert texts(script) == expected


@pytest.mark.parametrize(
    ("script", "reason", "line", "column"),
    [
        ("select 1;\n  \\copy t from 'x'\n", "\\copy is a command of psql", 2, 3),
        ("\\i other.sql", "\\i is a command of psql", 1, 1),
        ("select 1 \\gset", "\\gset is a command of psql", 1, 10),
        ("select 1;\r\nselect 'open;\r\n", "a string begins here and has no end", 2, 8),
        ('select "open;', "a quoted identifier begins here", 1, 8),
        ("do $x$ begin", "a body quoted with $x$ begins here", 1, 4),
        ("select E'a\\'", "a string begins here", 1, 8),
        ("select 1; /* /* */", "a /* comment begins here", 1, 11),
    ],
)
def test_errors_have_a_place(script: str, reason: str, line: int, column: int) -> None:
    with pytest.raises(ScriptError) as caught:
        split(script)
    assert reason in caught.value.reason
    assert position(script, caught.value.offset) == (line, column)


@pytest.mark.parametrize(
    ("statement", "alone"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", True),
        ("create unique  index\nconcurrently if not exists i on t (a)", True),
        ("DROP INDEX CONCURRENTLY i", True),
        ("REINDEX TABLE CONCURRENTLY t", True),
        ("reindex (verbose, concurrently) table t", True),
        ("VACUUM ANALYZE t", True),
        ("CREATE DATABASE d", True),
        ("ALTER TABLE p DETACH PARTITION q CONCURRENTLY", True),
        ("ALTER SYSTEM SET a = 1", True),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY m", False),
        ("CREATE INDEX i ON t (a)", False),
        ("CREATE TABLE vacuum_log ()", False),
        ("ALTER TYPE m ADD VALUE 'x'", False),
    ],
)
def test_what_needs_no_transaction(statement: str, alone: bool) -> None:
    (found,) = split(statement + ";")
    assert found.needs_no_transaction is alone


pieces = st.sampled_from(
    ["select 1", "'a;b'", '"x;y"', "$$ ; $$", "$t$ ; $$ ; $t$", "-- c;\n", "/* ; /* ; */ */", ";", " ", "\n", "E'\\';'",
     "(1;2)", "ü", "a$b", "$1", "case", "begin", "end"]
)  # fmt: skip


@given(st.lists(pieces, max_size=30).map(" ".join))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(script: str) -> None:
    """Statements lie in order, apart, at their offsets; between them is nothing but blanks, comments, semicolons."""
    at, between = 0, ""
    for statement in split(script):
        assert statement.offset >= at
        assert script[statement.offset : statement.offset + len(statement.text)] == statement.text
        between += script[at : statement.offset]
        at = statement.tail
    between += script[at:]
    assert split(between) == []
