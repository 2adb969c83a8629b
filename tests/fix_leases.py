"""A small real project on a test server: a template with seed rows, and leases of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.databases import eviction, template
from harness.databases.clones import Claim, Clones
from harness.databases.lease import Lease, LeasedDatabase
from harness.databases.spec import Owner, Recipe
from harness.databases.template import Template
from harness.migrations.port import MigrationContext
from harness.postgres import databases, names, roles
from harness.postgres.admin import Link
from harness.postgres.names import Kind
from harness.postgres.session import Session

OWNER = Owner("app", "s3cret of äpp", attributes=("CREATEDB",), managed=True)


class Schema:
    """A source of three tables, one of them with seed rows."""

    text = "sql:schema"
    statements = (
        "create table users (id serial primary key, name text not null)",
        "create table orders (id bigint generated always as identity primary key, user_id int references users)",
        "create table colours (name text primary key, rgb int)",
        "insert into colours values ('red', 255), ('green', 65280), ('blue', 16711680)",
        "create sequence numbers",
        "select nextval('numbers')",
    )

    def fingerprint(self) -> str:
        return names.digest("".join(self.statements), 32)

    def apply(self, context: MigrationContext) -> None:
        with Session.connect(context.dsn) as session:
            for statement in self.statements:
                session.execute(statement)


@pytest.fixture
def checkout(link: Link) -> Iterator[str]:
    """An id of a checkout of its own; all its databases are dropped afterwards."""
    project = names.digest(names.token(), 10)
    roles.ensure(link.session, OWNER.name, password=OWNER.password, attributes=("CREATEDB",), superuser=False)
    yield project
    for found in databases.list_ours(link.session, project):
        if found.parsed and found.parsed.kind is Kind.TEMPLATE:
            eviction.drop(link.session, project, found)
        else:
            databases.drop(link.session, found.name, project)


@pytest.fixture
def made(link: Link, checkout: str) -> Template:
    """The template of :class:`Schema`."""
    return template.ensure(link.session, checkout, Recipe("default", [Schema()]), OWNER)


@pytest.fixture
def clones(link: Link, checkout: str) -> Clones:
    """Clones of this checkout, five connections each."""
    return Clones(link, checkout, OWNER, connections=5)


def make_lease(clones: Clones, made: Template, run: str, worker: str = "1") -> Lease:
    """Claim a clone and wrap it as a lease of one database."""
    claim = Claim(run, worker)
    name = clones.claim(made, claim)
    dsn = clones.link.dsn.with_user(OWNER.name, OWNER.password).with_database(name)
    return Lease(clones, {"default": LeasedDatabase("default", dsn, made, claim)}, run=run, worker=worker)


@pytest.fixture
def lease_of(clones: Clones, made: Template) -> Callable[[str], Lease]:
    """Makes a lease for a worker of one run."""
    run = names.run_id()
    return lambda worker: make_lease(clones, made, run, worker)


@pytest.fixture
def lease(lease_of: Callable[[str], Lease]) -> Iterator[Lease]:
    """One lease, released afterwards."""
    with lease_of("1") as lease:
        yield lease
