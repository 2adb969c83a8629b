"""An empty database, owned by a plain role, to run migrations into."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.config.sources import parse_spec
from harness.dsn import Dsn
from harness.migrations.port import MigrationContext, MigrationSource
from harness.migrations.registry import load
from harness.postgres.session import Session, ident, literal
from harness.servers.port import ServerInfo

ROLE = "migrator"


@dataclass
class Blank:
    """One empty database. ``dsn`` is the plain role's address, ``admin`` the superuser's."""

    dsn: Dsn
    admin: Dsn
    binaries: Path | None
    progress: list[str] = field(default_factory=list)

    def context(self, timeout: float = 60, environment: Mapping[str, str] | None = None) -> MigrationContext:
        base = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "DATABASE_URL", "DJANGO_"))}
        return MigrationContext(
            dsn=self.dsn,
            admin_dsn=self.admin,
            environment={**base, "DATABASE_URL": self.dsn.url, **self.dsn.libpq(), **(environment or {})},
            timeout=timeout,
            progress=lambda done, total, what: self.progress.append(what),
            binaries=self.binaries,
        )

    def migrate(self, root: Path, *specs: object, timeout: float = 60) -> list[MigrationSource]:
        """Apply the sources in order, as the template's maker does."""
        sources = [load(parse_spec(s, "a test"), root, environment=dict(os.environ)) for s in specs]
        for source in sources:
            source.apply(self.context(timeout))
        return sources

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with Session.connect(self.admin) as session:
            return session.rows(query)

    def value(self, query: str) -> Any:
        return self.rows(query)[0][0]

    def tables(self, schema: str = "public") -> set[str]:
        found = self.rows(
            "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            f" where n.nspname = '{schema}' and c.relkind in ('r', 'p')"
        )
        return {name for (name,) in found}

    def sessions(self) -> int:
        """Sessions of others in this database, once those that were closed have had time to end.

        A backend ends some milliseconds after its client has gone; on a busy machine, later.
        """
        deadline = time.monotonic() + 5
        with Session.connect(self.admin) as session:
            while True:
                count = session.value(
                    "select count(*) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
                if not count or time.monotonic() > deadline:
                    return int(count)
                session.execute("select pg_sleep(0.01)")


@pytest.fixture
def blank_on(server_of: Callable[[str], ServerInfo]) -> Iterator[Callable[[str], Blank]]:
    """Makes empty databases on a server of the version that is asked for."""
    made: list[tuple[Dsn, str]] = []

    def make(version: str) -> Blank:
        info = server_of(version)
        name = f"blank_{secrets.token_hex(5)}"
        password = "s3cret of äpp%/"
        with Session.connect(info.dsn) as session:
            if not session.value("select count(*) from pg_roles where rolname = %s", (ROLE,)):
                session.execute(f"create role {ident(ROLE)} login createdb password {literal(password)}")
            session.execute(
                f"create database {ident(name)} template template0 encoding 'UTF8' owner {ident(ROLE)}"
            )
        made.append((info.dsn, name))
        admin = info.dsn.with_database(name)
        binaries = Path(info.binaries) if info.binaries else None
        return Blank(admin.with_user(ROLE, password), admin, binaries)

    yield make
    for dsn, name in made:
        with Session.connect(dsn) as session:
            session.execute(f"drop database if exists {ident(name)} with (force)")


@pytest.fixture
def blank(blank_on: Callable[[str], Blank]) -> Blank:
    """An empty database on PostgreSQL 15."""
    return blank_on("15")
