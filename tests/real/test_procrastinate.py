"""procrastinate's SQL, from its wheel: its whole schema, and its history of migrations, through ``sql:``; and
resets of what its own functions and workers write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank
from fix_reset_real import real_reset

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

# Jobs are deferred, run, fail, are retried and cancelled: enums, triggers, functions, LISTEN and NOTIFY.
WORKING = """
    import asyncio
    import os
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))

    @app.task(queue="q", name="add")
    async def add(a, b):
        return a + b

    @app.task(queue="q", name="fail", retry=procrastinate.RetryStrategy(max_attempts=2, wait=0))
    async def fail():
        raise ValueError

    async def main():
        async with app.open_async():
            for number in range(12):
                await add.configure(lock=f"lock {number % 3}", priority=number).defer_async(a=number, b=1)
            await add.configure(queueing_lock="once").defer_async(a=1, b=1)
            try:
                await add.configure(queueing_lock="once").defer_async(a=1, b=1)
            except procrastinate.exceptions.AlreadyEnqueued:
                pass
            await fail.defer_async()
            later = await add.configure(schedule_in={"hours": 1}).defer_async(a=0, b=0)
            await app.job_manager.cancel_job_by_id_async(later)
            await add.configure(queue="other").defer_async(a=5, b=5)
            await app.run_worker_async(queues=["q"], wait=False, install_signal_handlers=False)
            await app.job_manager.delete_old_jobs(nb_hours=0, queue="q")
            job = add.configure(queue="q").make_new_job(timestamp=1)
            await app.job_manager.defer_periodic_job(job=job, periodic_id="p", defer_timestamp=1)

    asyncio.run(main())
"""


@pytest.mark.parametrize("version", ["15", "18"])
def test_procrastinate(version: str, blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    root = Path(procrastinate.__file__).parent / "sql"
    whole, history = blank_on(version), blank_on(version)
    whole.migrate(root, "sql:schema.sql")
    (source,) = history.migrate(root, "sql:migrations")
    assert len(source.plan[1]) == len(list((root / "migrations").glob("*.sql"))) >= 31  # type: ignore[attr-defined]
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
    with real_reset(whole, tmp_path) as lease:
        lease.assert_restores(
            WORKING, {"procrastinate_jobs", "procrastinate_events", "procrastinate_periodic_defers"}
        )
