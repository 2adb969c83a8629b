"""Templates are the admin's, and one that was written to by somebody is built again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from fix_leases import Schema
from fix_servers import OWNER

from harness.databases import template
from harness.databases.lease import Lease
from harness.databases.resetting import ensure_baseline
from harness.databases.spec import TemplateSpec
from harness.databases.template import Template
from harness.errors import ServerRefused
from harness.postgres import databases, sqlstate
from harness.postgres.admin import Link
from harness.postgres.session import Session, ident

LABEL = "comment on database {0} is 'mine'"


@pytest.mark.parametrize("of", ["template", "baseline"])
@pytest.mark.parametrize(
    "statement",
    [
        "alter database {0} with allow_connections true",
        "alter database {0} with is_template false",
        "alter database {0} rename to mine",
        "alter database {0} set work_mem = '5MB'",
        "drop database {0} with (force)",
        LABEL,
    ],
)
def test_a_test_may_not_touch_it(lease: Lease, made: Template, of: str, statement: str) -> None:
    name = made.name if of == "template" else ensure_baseline(lease._clones, made)
    with Session.connect(lease.dsn) as test, pytest.raises(ServerRefused) as refused:
        test.execute(statement.format(ident(name)))
    assert refused.value.sqlstate == sqlstate.INSUFFICIENT_PRIVILEGE


def _enter(link: Link, name: str) -> None:
    link.session.execute(f"alter database {ident(name)} with allow_connections true")
    with Session.connect(link.dsn.with_database(name)) as session:
        session.execute("insert into colours values ('poison', 0)")
    databases.terminate(link.session, name)
    link.session.execute(f"alter database {ident(name)} with allow_connections false")


def _opens(link: Link, name: str) -> None:
    link.session.execute(f"alter database {ident(name)} with allow_connections true")


def _no_template(link: Link, name: str) -> None:
    link.session.execute(f"alter database {ident(name)} with is_template false")


def _comments(link: Link, name: str) -> None:
    link.session.execute(LABEL.format(ident(name)))


@pytest.mark.parametrize("change", [_enter, _opens, _no_template, _comments])
def test_one_that_was_altered_is_built_again(
    link: Link,
    checkout: str,
    made: Template,
    change: Callable[[Link, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A superuser can: an application with ``superuser = true``, or a person."""
    change(link, made.name)
    with caplog.at_level(logging.WARNING, "pg_harness"):
        again = template.ensure(link.session, checkout, TemplateSpec("default", [Schema()]), OWNER)
    assert again.built
    assert [made.name in record.getMessage() for record in caplog.records] == [True]
    link.session.execute(f"create database pgh_test_look template {ident(again.name)}")
    try:
        with Session.connect(link.dsn.with_database("pgh_test_look")) as session:
            assert session.value("select count(*) from colours") == 3
    finally:
        link.session.execute("drop database pgh_test_look with (force)")
    assert not template.ensure(link.session, checkout, TemplateSpec("default", [Schema()]), OWNER).built


def test_use_is_no_alteration(
    link: Link,
    checkout: str,
    made: Template,
    lease_of: Callable[[str], Lease],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "pg_harness"), lease_of("2") as lease:
        lease.watch()
        lease.reset()
        lease.renew()
        template.touch(link.session, made)
        link.session.execute("vacuum (freeze) pg_database")
        assert template.look(link.session, checkout, made.fingerprint) is not None
    assert caplog.records == []
