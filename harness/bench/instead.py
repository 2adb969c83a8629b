"""What people do without a reset, on the same data: by hand, and by other packages where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from harness import Lease
from harness.bench.measuring import Row, Table
from harness.bench.processes import ServerProcesses
from harness.bench.project import DIRTY, Application
from harness.postgres import databases
from harness.postgres.session import Session

if TYPE_CHECKING:
    from harness.runs.run import Run

TABLES = [f"t{number:03}" for number in range(60)]
SEEDS = "; ".join(
    f"insert into t{3 * n:03} (name, amount) select 'seed ' || i, i from generate_series(1, 100) i"
    for n in range(5)
)


def report(table: Table, processes: ServerProcesses, harness: Run, lease: Lease, slow: int) -> None:
    """Measure what people do instead, one after the other: each leaves other tables behind.

    Args:
        slow: how often slow rows are measured.
    """

    def measure(name: str, prepare: Callable[[], object], act: Callable[[], object], warm: int = 2) -> None:
        table.measure(Row(f"instead: {name}", prepare, act, slow, warm), processes=processes, blocks=1)

    with Application(lease) as app:

        def soil() -> None:
            app.script(DIRTY)

        truncate = f"truncate {', '.join(TABLES)} restart identity; {SEEDS}"
        measure("TRUNCATE all 60, seed again", soil, lambda: app.script(truncate))
        delete = "; ".join([*(f"delete from {name}" for name in reversed(TABLES)), SEEDS])
        measure("DELETE all in foreign-key order, seed again", soil, lambda: app.script(delete))
        _django(table, processes, lease, soil, slow)
        lease.renew()
        measure("roll back", lambda: app.script(f"begin; {DIRTY}"), lambda: app.script("rollback"))
    measure("a fresh clone of ours (renew)", lambda: None, lease.renew, warm=1)
    admin, template, name = harness.link.session, harness.templates["default"], "pgh_bench_clone"

    def drop() -> None:
        admin.execute(f"drop database if exists {name}")

    for strategy in ("file_copy", "wal_log"):
        clone = partial(_clone, harness, name, strategy)
        again = partial(_in_turn, drop, clone)
        measure(f"clone by {strategy} and connect", drop, clone, warm=1)
        measure(f"clone by {strategy}, with the drop of the last", lambda: None, again, warm=1)
        drop()
    _pytest_postgresql(table, processes, harness, template.name, slow)


def _clone(harness: Run, name: str, strategy: str) -> None:
    admin = harness.link.session
    databases.clone(
        admin, name, template=harness.templates["default"].name, owner=harness.owner.name, strategy=strategy
    )
    Session.connect(admin.dsn.with_database(name)).close()


def _in_turn(*acts: Callable[[], object]) -> None:
    for act in acts:
        act()


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception:  # noqa: BLE001 - of somebody else's package: not there, or not for these versions
        return None


def _django(
    table: Table, processes: ServerProcesses, lease: Lease, soil: Callable[[], object], slow: int
) -> None:
    """``TransactionTestCase``: Django's own flush of all tables; seeds are lost."""
    backend = _installed("django.db.backends.postgresql.base")
    if backend is None:
        return
    django, db = importlib.import_module("django"), importlib.import_module("django.db")
    settings = importlib.import_module("django.conf").settings
    where = {
        "ENGINE": "django.db.backends.postgresql", "NAME": lease.dsn.database, "USER": lease.dsn.user,
        "PASSWORD": lease.dsn.password, "HOST": lease.dsn.host, "PORT": str(lease.dsn.port),
    }  # fmt: skip
    if not settings.configured:
        settings.configure(USE_TZ=True, DATABASES={"default": where})
    django.setup()
    db.connections.settings["default"].update(where)
    connection = db.connections["default"]
    style = importlib.import_module("django.core.management.color").no_style()

    def flush() -> None:
        statements = connection.ops.sql_flush(style, TABLES, reset_sequences=True, allow_cascade=False)
        connection.ops.execute_sql_flush(statements)

    try:
        row = Row(
            "instead: Django's flush, seeds lost", soil, flush, slow, note=f"Django {django.get_version()}"
        )
        table.measure(row, processes=processes, blocks=1)
    finally:
        connection.close()
        del db.connections["default"]


def _pytest_postgresql(
    table: Table, processes: ServerProcesses, harness: Run, template: str, slow: int
) -> None:
    """What pytest-postgresql does for each test: a database from a template, and its end."""
    janitor = _installed("pytest_postgresql.janitor")
    if janitor is None:
        return
    dsn = harness.link.dsn
    made = janitor.DatabaseJanitor(
        user=dsn.user, host=dsn.host, port=dsn.port, dbname="pgh_bench_janitor", template_dbname=template,
        version=harness.link.session.server_version // 10000, password=dsn.password,
    )  # fmt: skip

    def fresh() -> None:
        made.init()
        Session.connect(dsn.with_database("pgh_bench_janitor")).close()
        made.drop()

    row = Row("instead: pytest-postgresql's janitor, with the drop", act=fresh, rounds=slow, warm=1)
    try:
        table.measure(row, processes=processes, blocks=1)
    except Exception as error:  # noqa: BLE001 - of somebody else's package
        row.failed = f"does not run here: {error}"
        table.add(row)
