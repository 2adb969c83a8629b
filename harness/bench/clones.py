"""The fallback clone beside CREATE DATABASE by hand, with and without a spare ready."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Lease
from harness.bench.measuring import Row, Table, paired
from harness.bench.processes import ServerProcesses
from harness.bench.project import open_run
from harness.postgres import databases
from harness.postgres.session import Session, ident

if TYPE_CHECKING:
    from harness.runs.run import Run

BARE = "pgh_bench_bare"

PATIENCE = 10.0
"""Seconds to wait for what goes on in the background, before a round."""


def measure(
    table: Table, processes: ServerProcesses, folder: Path, version: str | None, rounds: int, *, of: str = ""
) -> None:
    """Rows in turn with a bare CREATE DATABASE and log-in: the clone alone, and a reset that finds out it needs one.

    Args:
        of: what the template holds; part of the rows' names.
    """
    # A run of its own: what it keeps ready must not be in the way of other rows.
    with open_run(folder, version) as harness, harness.lease("fallback", watch=True) as lease:
        # As in a run some tests later: what the first reset of all opens is not what a clone costs.
        lease.changes()
        admin, template = harness.link.session, harness.templates["default"]

        def drop() -> None:
            settle(harness)
            admin.execute(f"drop database if exists {BARE}")

        def bare() -> None:
            admin.execute(
                f"create database {BARE} template {ident(template.name)} strategy {template.strategy} "
                f"owner {ident(harness.owner.name)}"
            )
            Session.connect(admin.dsn.with_database(BARE)).close()

        def no_spare() -> None:
            settle(harness)
            for name in harness.clones.spares(template):
                databases.drop(admin, name, harness.project)
            _leave_table(harness, lease)

        def spare() -> None:
            settle(harness)
            harness.fill_aside(1)
            _leave_table(harness, lease)

        by_hand = Row(f"CREATE DATABASE{of} and log-in, by hand", drop, bare, rounds, warm=1)
        others = [
            Row(f"{name}{of}{', a spare ready' if prepare is spare else ''}", prepare, act, rounds, warm=1)
            for name, act in (
                ("fallback clone", lease.renew),
                ("reset that falls back to a clone", lease.reset),
            )
            for prepare in (no_spare, spare)
        ]
        table.measure([by_hand, *others], processes=processes)
        drop()
        for row in others:
            row.more["of_by_hand"] = paired(row, by_hand)
        table.say_ratios("by hand", "of_by_hand", others)


def _leave_table(harness: Run, lease: Lease) -> None:
    """Change the schema, which no restore undoes; nobody is logged in afterwards."""
    with Session.connect(lease.dsn, application_name="bench") as app:
        app.script("create table left_over (id int)")
    # Else the round would end a session that is on its way out.
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and harness.link.session.value(
        "select exists (select from pg_stat_activity where datname = %s and application_name = 'bench')",
        (lease.dsn.database,),
    ):
        time.sleep(0.002)


def settle(harness: Run) -> None:
    """Wait for spares and drops behind our back: they would share the processors with the round."""
    filler = getattr(harness, "_filler", None)
    if filler is not None:
        filler.idle(PATIENCE)
