"""Passwords and verifiers: in no error's text, and in no variable of a traceback's frames."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import traceback
from collections.abc import Callable
from dataclasses import asdict

import pytest
from rich.console import Console
from rich.traceback import Traceback

from harness.databases.lease import LeasedDatabase
from harness.dsn import Dsn, Secret
from harness.errors import HarnessError
from harness.postgres import roles
from harness.postgres.session import Session, greet, open_application, open_application_async, without_secrets
from harness.servers.external import ExternalBackend
from harness.servers.handshake import attach
from harness.servers.port import ServerInfo

PASSWORD = "hunter2-for-nobody"


def shown(error: BaseException) -> str:
    """An error as tools print it that show the variables of each frame: rich, and pytest --showlocals."""
    screen = io.StringIO()
    told = Traceback.from_exception(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_string=None,
        locals_max_length=None,
    )
    Console(file=screen, width=300).print(told)
    chain: list[BaseException | None] = [error]
    seen: list[str] = [screen.getvalue(), *traceback.format_exception(error)]
    while chain:
        each = chain.pop()
        if each is None:
            continue
        chain += [each.__cause__, each.__context__]
        # Frames of this file hold what the test itself has in its hands.
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                seen += [f"{name} = {value!r}" for name, value in frame.f_locals.items()]
    return "\n".join(seen)


def _connect_as_application(dsn: Dsn) -> None:
    with open_application(dsn):
        raise AssertionError("it let us in")


DOORS: dict[str, Callable[[Dsn], object]] = {
    "session": Session.connect,
    "greet": lambda dsn: greet(dsn, "x"),
    "application": _connect_as_application,
    "asyncio": lambda dsn: asyncio.run(open_application_async(dsn)),
    "external": lambda dsn: ExternalBackend(dsn.url).capabilities(),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("nobody", [False, True], ids=["refused", "nobody answers"])
def test_a_failed_log_in_shows_no_password(server: ServerInfo, door: str, nobody: bool) -> None:
    dsn = server.dsn.with_user("postgres", PASSWORD)
    dsn = Dsn(dsn.host, 1 if nobody else dsn.port, dsn.user, dsn.password, dsn.database)
    with pytest.raises(HarnessError) as caught:
        # Not through a variable of this frame.
        DOORS[door](dsn)
    assert caught.value.__cause__ is not None
    assert PASSWORD not in shown(caught.value)


def test_a_password_shows_itself_to_whoever_uses_it() -> None:
    dsn = Dsn("h", 1, "u", PASSWORD, "d")
    assert dsn.password == PASSWORD
    assert f"{dsn.password}" == PASSWORD
    assert PASSWORD in dsn.url
    assert repr({"password": dsn.password}) == "{'password': '***'}"
    assert json.loads(json.dumps(asdict(dsn)))["password"] == PASSWORD
    assert pickle.loads(pickle.dumps(dsn)) == dsn
    assert isinstance(dsn.with_user("x", "y").password, Secret)


@pytest.mark.parametrize(
    "statement",
    [
        "alter role nobody_{} password 'hunter2-for-nobody'",
        "ALTER ROLE nobody_{}   PASSWORD\n E'hunter2-for-nobody' VALID UNTIL 'x'",
        "alter role nobody_{} with passwordd 'x' password 'hunter2-for-nobody'",
        "create role postgres with login password 'SCRAM-SHA-256$1:hunter2-for-nobody$x:y'",
        (
            "alter role nobody_{} with login nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit "
            "connection limit 17 password 'SCRAM-SHA-256$4096:hunter2-for-nobody"
        ),
    ],
)
def test_a_refused_statement_shows_no_password(server: ServerInfo, statement: str) -> None:
    with Session.connect(server.dsn) as session, pytest.raises(HarnessError) as caught:
        session.script(statement)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "***" in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_no_secret_stays() -> None:
    text = "alter role a password null; select 'password', md5('x'); grant a to b"
    assert without_secrets(text) == text


def test_a_role_that_cannot_be_made(server: ServerInfo) -> None:
    with Session.connect(server.dsn) as session, pytest.raises(HarnessError) as caught:
        roles.ensure(session, "pg_forbidden", password=PASSWORD, attributes=(), superuser=False)
    verifier = roles.verifier("pg_forbidden", PASSWORD, rounds=1)
    for fragment in (PASSWORD, *verifier.split("$")[1:], verifier[:24]):
        assert fragment not in str(caught.value), str(caught.value)


def test_what_is_handed_out_shows_no_password(server: ServerInfo) -> None:
    assert PASSWORD not in repr(LeasedDatabase("default", server.dsn.with_user("a", PASSWORD), None, None))  # type: ignore[arg-type]
    info = ServerInfo(Dsn("127.0.0.1", 1, "u", PASSWORD, "d"), "id", "process", "run", "disk", "x")
    assert attach(info)[0] is None
    assert PASSWORD not in repr(info) + attach(info)[1]
