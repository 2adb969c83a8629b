"""Connections of the application's kind: as its role, in its database, with psycopg's defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.catalog.session import CONNECT_TIMEOUT, conninfo, translated, without_service
from harness.dsn import Dsn

if TYPE_CHECKING:
    import psycopg


def open_application(dsn: Dsn, options: Mapping[str, Any] | None = None) -> psycopg.Connection[Any]:
    """A plain psycopg connection, not in autocommit mode unless asked for.

    Raises:
        ServerLost: nobody answers. ServerRefused: the server says no.
    """
    import psycopg

    parameters: dict[str, Any] = conninfo(dsn, application_name="pg-harness-test")
    parameters["connect_timeout"] = CONNECT_TIMEOUT
    with translated(f"connect to {dsn.masked}"), without_service():
        return psycopg.connect(**{**parameters, **(options or {})})


@contextmanager
def connect_application(
    dsn: Dsn, options: Mapping[str, Any] | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """:func:`open_application` for a block: committed at its end, rolled back if it raises, closed."""
    with open_application(dsn, options) as connection:
        yield connection
