"""Variables of libpq in the user's shell: none of them bends a session of ours, or costs anybody a server."""

from __future__ import annotations

import os

import pytest
from psycopg import pq

from harness.config.environment import BENDING
from harness.dsn import Dsn
from harness.postgres import session as session_
from harness.postgres.session import Session
from harness.servers.port import ServerInfo

WRONG = {
    "PGCLIENTENCODING": "SQL_ASCII",
    "PGCONNECT_TIMEOUT": "bogus",
    "PGPORT": "1",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGSSLCERTMODE": "require",
    "PGREQUIRESSL": "1",
    "PGMINPROTOCOLVERSION": "latest",
    "PGREQUIREPEER": "nobody",
}
"""What bends most; any other variable is given a word that means nothing."""


def variables() -> list[str]:
    """All that this libpq reads, and all that any does."""
    known = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    return sorted(known | BENDING)


def test_every_variable_of_libpq_has_its_parameter_or_is_hidden() -> None:
    """So that a libpq with a new one makes this fail, not a user's run."""
    unanswered = {
        option.envvar.decode(): option.keyword.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.envvar.decode() not in session_._HIDDEN
    }
    stated = {*session_.conninfo(Dsn("127.0.0.1", 1, "a", "b", "c")), "connect_timeout"}
    assert {name: word for name, word in unanswered.items() if word not in stated} == {}


@pytest.mark.parametrize("name", variables())
def test_a_session_is_the_same_whatever_the_shell_says(
    server: ServerInfo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "select current_setting('TimeZone'), current_setting('DateStyle'), current_setting('geqo'), "
    shown += (
        "current_setting('client_encoding'), current_setting('default_transaction_read_only'), current_user"
    )
    monkeypatch.delenv(name, raising=False)
    with Session.connect(server.dsn) as session:
        before = session.row(shown)
    monkeypatch.setenv(name, WRONG.get(name, "bogus"))
    with Session.connect(server.dsn) as session:
        assert session.row(shown) == before
    assert os.environ[name] == WRONG.get(name, "bogus")
