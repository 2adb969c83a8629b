"""procrastinate's SQL, from its wheel: its whole schema, and its history of migrations, through ``sql:``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank

procrastinate = pytest.importorskip("procrastinate", reason="tests/requirements-real.txt is not installed")
TABLES = {
    "procrastinate_jobs",
    "procrastinate_events",
    "procrastinate_periodic_defers",
    "procrastinate_workers",
}
# Names, arguments and bodies of its functions, triggers and types: what the two ways must agree on.
SHAPE = """
    SELECT 'function', proname::text, pg_get_function_identity_arguments(oid) FROM pg_proc
     WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'trigger', tgname::text, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'index', indexname::text, tablename::text FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'value', enumtypid::regtype::text, enumlabel::text FROM pg_enum
    ORDER BY 1, 2, 3
"""


@pytest.mark.parametrize("version", ["15", "18"])
def test_procrastinate(version: str, blank_on: Callable[[str], Blank]) -> None:
    root = Path(procrastinate.__file__).parent / "sql"
    whole, history = blank_on(version), blank_on(version)
    whole.migrate(root, "sql:schema.sql")
    (source,) = history.migrate(root, "sql:migrations")
    assert len(source.steps) == len(list((root / "migrations").glob("*.sql"))) >= 31  # type: ignore[attr-defined]
    assert whole.tables() >= TABLES
    assert whole.tables() == history.tables()
    shape = whole.rows(SHAPE)
    assert len(shape) > 40
    kinds = ("function", "trigger", "value")
    assert [row for row in shape if row[0] in kinds] == [
        row for row in history.rows(SHAPE) if row[0] in kinds
    ]
    job = "INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('q', 't') RETURNING status"
    assert history.value(job) == "todo"
    # Its trigger wrote the event: functions with $$ bodies arrived whole.
    assert history.value("SELECT count(*) FROM procrastinate_events WHERE type = 'deferred'") == 1
