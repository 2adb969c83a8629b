"""What people do without a reset, on the same data: by hand, and by other packages where they are installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.bench.measuring import Timing, line, measured
from harness.catalog import databases
from harness.catalog.session import Session

if TYPE_CHECKING:
    from harness.core import Harness
    from harness.lease import Lease

TABLES = [f"t{number:03}" for number in range(60)]
SEEDS = "; ".join(
    f"insert into t{3 * n:03} (name, amount) select 'seed ' || i, i from generate_series(1, 100) i"
    for n in range(5)
)


def report(
    harness: Harness, app: Session, lease: Lease, dirty: str, rounds: int, slow: int, *, reset: float
) -> None:
    """Print the rows.

    Args:
        app: a session of the application in the lease.
        dirty: what each test writes.
        rounds, slow: how often quick and slow rows are measured.
        reset: milliseconds of a reset after the same, for ratios.
    """

    def soil() -> None:
        app.script(dirty)

    truncate = f"truncate {', '.join(TABLES)} restart identity; {SEEDS}"
    _print("instead: TRUNCATE all 60, seed again", measured(soil, lambda: app.script(truncate), slow))
    delete = "; ".join([*(f"delete from {name}" for name in reversed(TABLES)), SEEDS])
    _print(
        "instead: DELETE all in foreign-key order, seed again",
        measured(soil, lambda: app.script(delete), slow),
    )
    _django(lease, soil, slow)
    lease.renew()
    with Session.connect(lease.dsn, application_name="bench") as again:
        _print(
            "instead: roll back",
            measured(lambda: again.script(f"begin; {dirty}"), lambda: again.execute("rollback"), rounds),
        )
    ours = measured(lambda: None, lease.renew, slow, warm=1)
    _print("instead: a fresh clone of ours (renew)", ours, _times(ours, reset))
    for strategy in ("file_copy", "wal_log"):
        _clone(harness, strategy, slow, reset)
    _pytest_postgresql(harness, slow)


def _print(name: str, timing: Any, note: str = "") -> None:
    print(line(name, timing, note), flush=True)


def _times(timing: Timing, reset: float) -> str:
    return f"{timing.p50 / reset:.1f} x a reset of 3 dirty tables"


def _clone(harness: Harness, strategy: str, slow: int, reset: float) -> None:
    admin, template = harness.link.session, harness.templates["default"]
    name = "pgh_bench_clone"

    def drop() -> None:
        admin.execute(f"drop database if exists {name}")

    def clone() -> None:
        databases.clone(admin, name, template=template.name, owner=harness.owner.name, strategy=strategy)
        Session.connect(admin.dsn.with_database(name)).close()

    def again() -> None:
        drop()
        clone()

    first = measured(drop, clone, slow, warm=1)
    _print(f"instead: clone by {strategy} and connect", first, _times(first, reset))
    each = measured(lambda: None, again, slow, warm=1)
    _print("the same for each test, with the drop of the last", each, _times(each, reset))
    drop()


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception:  # noqa: BLE001 - of somebody else's package: not there, or not for these versions
        return None


def _django(lease: Lease, soil: Any, slow: int) -> None:
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
        timing = measured(soil, flush, slow)
        _print("instead: Django's flush, seeds lost", timing, f"Django {django.get_version()}")
    finally:
        connection.close()
        del db.connections["default"]


def _pytest_postgresql(harness: Harness, slow: int) -> None:
    """What pytest-postgresql does for each test: a database from a template, and its end."""
    janitor = _installed("pytest_postgresql.janitor")
    if janitor is None:
        return
    dsn, template = harness.link.dsn, harness.templates["default"]
    made = janitor.DatabaseJanitor(
        user=dsn.user, host=dsn.host, port=dsn.port, dbname="pgh_bench_janitor", template_dbname=template.name,
        version=harness.link.session.server_version // 10000, password=dsn.password,
    )  # fmt: skip

    def fresh() -> None:
        made.init()
        Session.connect(dsn.with_database("pgh_bench_janitor")).close()
        made.drop()

    try:
        timing = measured(lambda: None, fresh, slow, warm=1)
    except Exception as error:  # noqa: BLE001 - of somebody else's package
        print(f"instead: pytest-postgresql's janitor does not run here: {error}")
    else:
        _print("instead: pytest-postgresql's janitor, with the drop", timing)
