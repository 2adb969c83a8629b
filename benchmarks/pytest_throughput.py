"""400 short database tests with ``-n 4``: under the plugin, and on four databases made by hand.

Called by ``pytest_overhead.py`` (``throughput``). Every suite runs in every round, in another order each time, so
that a busy machine hits all alike; medians are told. What is compared with what is a claim of its own:

- *Nothing put back*: ``fresh = "none"`` against a suite by hand that puts nothing back.
- *Everything put back*: each test finds all tables as they were migrated, whichever the last one has written.
  ``fresh = "reset"``, the default, against suites that empty all tables and seed them again.
- *Rolled back*: tests that write through one connection, never commit, and roll back. Sequences go on.
- *Not like for like*: the default against suites that promise less. It tells what the promise costs.

That tables are put back or rolled back is checked by every test.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.bench import instead
from harness.bench.project import schema_of
from harness.config.project import Project

WORKERS = 4

TESTS = """
import os, time, psycopg, pytest

@pytest.fixture(scope="session")
def connection():
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    open("began-" + worker, "w").write(repr(time.time()))
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        yield connection
    open("ended-" + worker, "w").write(repr(time.time()))

@pytest.mark.parametrize("i", range(400))
def test_it(connection, i):
    found = connection.execute({pristine!r}).fetchone()
    assert not os.environ.get("PROMISED") or found == (True,), "the last test's rows are there"
    for n in range(10):
        connection.execute({insert!r}, (f"user {{n}}",))
        connection.execute({select!r}).fetchall()
    connection.execute({child!r})
    connection.execute({update!r})
"""

HARD_CODED = """
import os
os.environ["DATABASE_URL"] = os.environ["URL_" + os.environ.get("PYTEST_XDIST_WORKER", "gw0")]
"""

AFTER = """
import pytest

@pytest.fixture(autouse=True)
def put_back(connection):
    yield
    connection.execute({statement!r})
"""

ROLLED_BACK = """
import pytest

@pytest.fixture(autouse=True)
def rolled_back(connection):
    connection.execute("begin")
    yield
    connection.execute("rollback")
"""


@dataclass(frozen=True)
class Schema:
    """What is migrated, what each test does to it, and how a suite by hand puts it back.

    Attributes:
        tests: values of :data:`TESTS`.
        truncate, delete: statements that put all tables back.
    """

    title: str
    migration: str
    tests: dict[str, str]
    truncate: str
    delete: str


SIXTY = Schema(
    "60 tables, five of them seeded with 100 rows",
    schema_of(60),
    {
        "pristine": "select (select count(*) = 100 and sum(amount) = 5050 from t000) "
        "and not exists (select from t001) and not exists (select from t002)",
        "insert": "insert into t001 (name) values (%s)",
        "select": "select id, name from t001 order by id desc limit 10",
        "child": "insert into t002 (name, parent_id) select 'order', max(id) from t001",
        "update": "update t000 set amount = amount + 1 where id = 7",
    },
    truncate=f"truncate {', '.join(instead.TABLES)} restart identity; {instead.SEEDS}",
    delete="; ".join([*(f"delete from {name}" for name in reversed(instead.TABLES)), instead.SEEDS]),
)

TWO = Schema(
    "2 tables, none seeded",
    "create table users (id serial primary key, name text);"
    "create table orders (id serial primary key, user_id int references users);",
    {
        "pristine": "select not exists (select from users) and not exists (select from orders)",
        "insert": "insert into users (name) values (%s)",
        "select": "select id, name from users order by id desc limit 10",
        "child": "insert into orders (user_id) select max(id) from users",
        "update": "update orders set user_id = user_id where user_id > 0",
    },
    truncate="truncate users, orders restart identity cascade",
    delete="delete from orders; delete from users",
)

SCHEMAS = {"60": SIXTY, "2": TWO}


@dataclass(frozen=True)
class Suite:
    """One way to run the tests.

    Attributes:
        conftest: its conftest.py.
        fresh: the plugin's setting; empty where the plugin is not there.
        promised: whether every test may rely on pristine tables, and checks them.
    """

    conftest: str
    fresh: str = ""
    promised: bool = True


def suites(schema: Schema) -> dict[str, Suite]:
    """All suites of one schema, by name."""
    return {
        "by hand, nothing": Suite(HARD_CODED, promised=False),
        "by hand, TRUNCATE": Suite(HARD_CODED + AFTER.format(statement=schema.truncate)),
        "by hand, DELETE": Suite(HARD_CODED + AFTER.format(statement=schema.delete)),
        "by hand, rollback": Suite(HARD_CODED + ROLLED_BACK),
        "plugin, none": Suite("", "none", promised=False),
        "plugin, reset": Suite("", "reset"),
        "plugin, none, rollback": Suite(ROLLED_BACK, "none"),
        "plugin, reset, rollback": Suite(ROLLED_BACK, "reset"),
    }


CLAIMS = (
    ("nothing put back, like for like", "plugin, none", "by hand, nothing"),
    ("all tables put back, like for like", "plugin, reset", "by hand, TRUNCATE"),
    ("all tables put back (sequences not by hand)", "plugin, reset", "by hand, DELETE"),
    ("tests roll back and never commit, like for like", "plugin, none, rollback", "by hand, rollback"),
    ("NOT like for like, what the default costs", "plugin, reset, rollback", "by hand, rollback"),
    ("NOT like for like, what the default costs", "plugin, reset", "by hand, rollback"),
    ("NOT like for like, what the default costs", "plugin, reset", "by hand, nothing"),
)
"""What a ratio supports, the suite under the plugin, the suite by hand."""


def throughput(
    schema: Schema,
    folder: Path,
    environ: dict[str, str],
    rounds: int,
    *,
    run: Callable[[list[str], Path, dict[str, str]], float],
) -> None:
    """Measure and print one schema's table.

    Args:
        folder: an empty folder, for the project.
        run: runs pytest with these options in that folder, and returns its wall-clock seconds.
    """
    from harness.config.load import load
    from harness.runs.run import Run
    from harness.servers import inventory

    (folder / "migrations").mkdir(parents=True)
    (folder / "migrations" / "1.sql").write_text(schema.migration)
    (folder / "pg-harness.toml").write_text('backend = "process"\nmigrations = ["sql:migrations"]\n')
    (folder / "test_a.py").write_text(TESTS.format(**schema.tests))
    taken: dict[str, list[tuple[float, float]]] = {}
    everything = suites(schema)
    names = list(everything)
    try:
        with Run.open(root=folder, environ=environ) as harness:
            leases = harness.leases(WORKERS, first=0)
            urls = {f"URL_gw{lease.worker}": lease.url for lease in leases}
            for number in range(rounds):
                turn = number * 3 % len(names)
                for name in names[turn:] + names[:turn]:
                    suite = everything[name]
                    (folder / "conftest.py").write_text(suite.conftest)
                    options = ["-p", "xdist", "-n", str(WORKERS)]
                    if suite.fresh:
                        options += ["-p", "pg_harness_pytest", "--pg-harness-fresh", suite.fresh]
                    given = {**environ, **urls, "PROMISED": "1" if suite.promised else ""}
                    whole = run(options, folder, given)
                    taken.setdefault(name, []).append((between(folder), whole))
                    if not suite.fresh and not suite.promised:
                        # Its rows must not be in the way of the next suite, nor make its own next round slower.
                        for lease in leases:
                            with lease.connect() as connection:
                                connection.execute(schema.truncate)
    finally:
        inventory.stop(Project.of(load(environ, start=folder), environ))
    tell(schema, taken)


def between(folder: Path) -> float:
    """Seconds from the first worker's first test to the last one's last."""
    began, ended = (
        [float(p.read_text()) for p in folder.glob(f"{which}-gw*")] for which in ("began", "ended")
    )
    return max(ended) - min(began)


def tell(schema: Schema, taken: dict[str, list[tuple[float, float]]]) -> None:
    """The table, then the ratios: throughput of the plugin over that by hand, above 1 where it is faster."""
    rounds = len(next(iter(taken.values())))
    print(f"\n400 short tests, -n {WORKERS}, {schema.title}; median of {rounds} rounds")
    print(f"  {'':<26}{'first test to last':>20}{'whole run':>12}")
    for name, both in taken.items():
        tests, whole = (statistics.median(times[i] for times in both) for i in (0, 1))
        print(f"  {name:<26}{tests:>18.2f} s{whole:>10.2f} s")
    print(
        "  throughput of the plugin over that by hand (first test to last; lowest to highest round | whole run)"
    )
    for claim, ours, theirs in CLAIMS:
        by_tests, by_whole = (
            sorted(b[i] / a[i] for a, b in zip(taken[ours], taken[theirs], strict=True)) for i in (0, 1)
        )
        print(
            f"  {statistics.median(by_tests):5.2f}× ({by_tests[0]:.2f} to {by_tests[-1]:.2f} | {statistics.median(by_whole):.2f}×)"
            f"  {claim}: {ours} / {theirs}"
        )
