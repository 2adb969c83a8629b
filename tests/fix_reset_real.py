"""A real project's schema under reset: its own program writes, and everything comes back without a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from fix_migrations import ROLE, Blank
from fix_reset_picture import Picture, difference

from harness.postgres.session import Session, ident
from harness.reset.engine import ResetEngine
from harness.reset.report import ResetReport


class RealReset:
    """A lease of a migrated database, beside its baseline and a fresh clone to compare with."""

    def __init__(self, blank: Blank, root: Path) -> None:
        self.root = root
        self._admin = Session.connect(blank.admin.with_database("postgres"))
        template = blank.admin.database
        self.name = f"{template}_l"
        # The role of the migrations is the application's: its own databases, its own rows.
        self.dsn = blank.dsn.with_database(self.name)
        self._address = blank.admin
        with Session.connect(blank.admin) as session:
            session.execute("vacuum (freeze, analyze)")
        self._databases = [self.name, f"{template}_z", f"{template}_f"]
        for name in self._databases:
            self._admin.execute(
                f"create database {ident(name)} template {ident(template)} strategy file_copy owner {ident(ROLE)}"
            )
        with self._open(f"{template}_f") as session:
            self.picture = Picture(session)
            self.wanted = self.picture.take(session)
        self.engine = ResetEngine(
            reader=lambda: Session.connect(blank.admin.with_database("postgres")),
            restorer=lambda settings: Session.connect(
                blank.admin.with_database(self.name), settings=settings
            ),
            baseline=lambda settings: Session.connect(
                blank.admin.with_database(f"{template}_z"), settings=settings
            ),
            role=ROLE,
        )
        self.engine.rebase()

    def _open(self, database: str) -> Session:
        return Session.connect(self._address.with_database(database))

    def write(self, program: str, timeout: float = 90) -> list[str]:
        """Run a program against the lease; the tables and sequences that look different afterwards."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "DATABASE_URL", "DJANGO_"))}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], cwd=self.root, text=True, timeout=timeout,
            capture_output=True, check=False,
            env={**environ, "DATABASE_URL": self.dsn.url, **self.dsn.libpq(), "PYTHONPATH": str(self.root)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return self.differing()

    def differing(self) -> list[str]:
        """What looks different from a fresh clone."""
        with self._open(self.name) as session:
            found = difference(self.picture.take(session), self.wanted)
        return [line.partition(":")[0] for line in found]

    def assert_restores(self, program: str, tables: set[str], times: int = 2) -> ResetReport:
        """The program changes at least these tables; each reset puts all back, and ends no session.

        A connection of the application stays open all the time.
        """
        report = ResetReport("nothing")
        with psycopg.connect(self.dsn.url, autocommit=True) as kept:
            for _ in range(times):
                changed = {what.removeprefix("rows of ") for what in self.write(program)}
                assert tables <= changed, f"not written: {tables - changed}"
                assert set(self.engine.changes().table_names) >= tables
                report = self.engine.reset()
                assert (report.strategy, report.reason, report.ended) == ("restore", "", ())
                assert self.differing() == []
            assert kept.execute("select 1").fetchone() == (1,)
        assert self.engine.reset().strategy == "nothing"
        return report

    def close(self) -> None:
        self.engine.close()
        for name in self._databases:
            self._admin.execute(f"drop database if exists {ident(name)} with (force)")
        self._admin.close()


@contextmanager
def real_reset(blank: Blank, root: Path) -> Iterator[RealReset]:
    """Resets of a migrated database; what it made is dropped afterwards."""
    made = RealReset(blank, root)
    try:
        yield made
    finally:
        made.close()
