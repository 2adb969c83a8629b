"""Connections: the admin's, which states everything that libpq would else take from the environment, and the application's."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import psycopg
from psycopg import pq, sql

from harness.dsn import Dsn
from harness.errors import ServerLost, ServerRefused, out_of_files
from harness.postgres import sqlstate
from harness.postgres.watchdog import Connection

APPLICATION_NAME = "pg-harness"
"""What ``pg_stat_activity`` shows for our sessions; sessions of the application have any other name."""

CONNECT_TIMEOUT = 5
"""Seconds to wait for a connection. psycopg's own default is 130 s, which looks like a hang."""

LOCK_LIMIT = 60.0
"""Seconds that a statement of ours waits for a lock, unless its caller says otherwise."""

STATEMENT_LIMIT = 3600.0
"""Seconds that a statement of ours may take, likewise: to copy a large database takes minutes, to wait for a backend that was
stopped takes for ever."""

SERVER_ID = "harness.server_id"
"""The setting that names a server of ours; ``system_identifier`` identifies nothing: copies share it."""

# Every parameter that libpq would else take from the user's shell (PostgreSQL docs, 34.15): PGHOSTADDR sent a session
# to another server than its URL named, and PGCHANNELBINDING=require made ours seem not to answer.
_STATED: Mapping[str, str] = {
    "hostaddr": "",
    "options": "",
    "passfile": "",
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
    "client_encoding": "UTF8",
    "channel_binding": "prefer",
    # Every method: an empty list allows none. Of servers of ours, see `conninfo`.
    "require_auth": "password,md5,gss,sspi,scram-sha-256,none",
    "requirepeer": "",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
    "gssencmode": "disable",
    "gssdelegation": "0",
    "gsslib": "",
    "krbsrvname": "postgres",
    # A server on loopback that we started has no TLS; for others, what the URL says.
    "sslmode": "prefer",
    "sslnegotiation": "postgres",
    "sslcompression": "0",
    "sslcert": "",
    "sslkey": "",
    "sslcertmode": "allow",
    "sslrootcert": "",
    "sslcrl": "",
    "sslcrldir": "",
    "sslsni": "1",
    "ssl_min_protocol_version": "TLSv1.2",
    "ssl_max_protocol_version": "",
}

_HIDDEN = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""Variables that no parameter can overrule: with ``service=''`` libpq looks for a service of that name and fails, and
the others go into the start packet as they are (fe-protocol3.c, EnvironmentOptions)."""


@cache
def _stated() -> Mapping[str, str]:
    """What this libpq knows of them: an older one refuses parameters of a newer one."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    return {keyword: value for keyword, value in _STATED.items() if keyword in known}


def asks_for_scram() -> bool:
    """Whether this libpq can insist on SCRAM (16 and later); else it sends the password to whoever asks for it, and before each log-in
    to a server of ours one has to see that it is that server's own process which listens there."""
    return "require_auth" in _stated()


def conninfo(dsn: Dsn, *, application_name: str = APPLICATION_NAME) -> dict[str, str]:
    """All connection parameters of an admin connection, for libpq."""
    proven = {"require_auth": "scram-sha-256"} if dsn.scram and asks_for_scram() else {}
    return {
        **_stated(),
        **proven,
        "application_name": application_name,
        **dsn.options,
        "host": dsn.host,
        "port": str(dsn.port),
        "user": dsn.user,
        "password": dsn.password,
        "dbname": dsn.database,
    }


CATALOG_ONLY: Mapping[str, str] = {"search_path": "pg_catalog"}
"""Settings of an admin's session in a database that somebody else owns: there ``public.format(text, regclass)`` would be taken for
PostgreSQL's own ``format``, whose arguments fit less well, and run with the admin's rights."""

WAYS: dict[str, Callable[[], str]] = {}
"""What leads to servers that are not reached directly, by the servers' ids: each says that it has ended; else nothing."""

_CONNECTING = "connect to "
"""What a log-in is called in errors."""

_hiding = threading.Lock()
_hidden: dict[str, str] = {}
_log_ins = 0
"""How many go on that want them hidden."""


@contextmanager
def unbent() -> Iterator[None]:
    """Hide from libpq, while it logs in, the variables that no parameter can overrule.

    Log-ins may go on side by side, in threads and in tasks: the last of them puts the variables back.
    """
    global _log_ins
    with _hiding:
        _log_ins += 1
        _hidden.update({name: os.environ.pop(name) for name in _HIDDEN if name in os.environ})
    try:
        yield
    finally:
        with _hiding:
            _log_ins -= 1
            if not _log_ins:
                os.environ.update(_hidden)
                _hidden.clear()


_LIMITS = {
    "lock_timeout": f"{1000 * LOCK_LIMIT:.0f}",
    "statement_timeout": f"{1000 * STATEMENT_LIMIT:.0f}",
}


class Session:
    """One admin connection to one database of a server, in autocommit mode.

    Not safe for use by several threads at once. Statements are text with ``%s`` for values;
    names go in through :func:`ident`.
    """

    def __init__(self, connection: Connection, dsn: Dsn) -> None:
        self.connection = connection
        self.dsn = dsn
        # Now: a connection that was closed says nothing any more, not even this, and raises what is no error of ours.
        self._version = connection.info.server_version

    @classmethod
    def connect(
        cls,
        dsn: Dsn,
        *,
        timeout: float = CONNECT_TIMEOUT,
        application_name: str = APPLICATION_NAME,
        settings: Mapping[str, str] | None = None,
        limited: bool = True,
    ) -> Session:
        """Log in.

        Args:
            dsn: whom to connect to, and as whom.
            timeout: seconds (libpq rounds up, and takes 2 as the least).
            settings: server settings of this session, set with the start packet (no round trip).
            limited: whether no statement waits longer than :data:`LOCK_LIMIT` or takes longer than :data:`STATEMENT_LIMIT`;
                else its caller sees to that.

        Raises:
            ServerLost: nobody answers there.
            ServerRefused: the server answers and refuses (``28P01`` password, ``3D000`` no such
                database, ``53300`` too many clients, ``57P03`` starting up or going down).
        """
        parameters: dict[str, Any] = conninfo(dsn, application_name=application_name)
        parameters["connect_timeout"] = str(max(2, round(timeout)))
        stated = {**(_LIMITS if limited else {}), **(settings or {})}
        if stated:
            # With what the URL says.
            words = [
                dsn.options.get("options", ""),
                *(f"-c {k}={_escape_option(v)}" for k, v in stated.items()),
            ]
            parameters["options"] = " ".join(filter(None, words))
        with translated(_CONNECTING + dsn.masked), unbent():
            # prepare_threshold=None: admin statements are few, and a pooler in front forbids prepared ones.
            connection = Connection.connect(**parameters, autocommit=True, prepare_threshold=None)
        connection.server = (dsn.host, dsn.port)
        return cls(connection, dsn)

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query and return all its rows."""
        with translated(statement):
            return self.connection.execute(statement, parameters or None).fetchall()

    def column(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """The first column of all rows."""
        return [row[0] for row in self.rows(statement, parameters)]

    def row(self, statement: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row, or None."""
        with translated(statement):
            return self.connection.execute(statement, parameters or None).fetchone()

    def value(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None where there is no row."""
        row = self.row(statement, parameters)
        return None if row is None else row[0]

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement; return the number of rows it touched (-1 where that has no meaning)."""
        with translated(statement):
            return self.connection.execute(statement, parameters or None).rowcount

    def script(self, statements: str) -> None:
        """Run several statements, separated by semicolons, as one simple query (one transaction)."""
        with translated(statements):
            self.connection.execute(statements.encode())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction around the block, rolled back if it raises."""
        with translated("transaction"), self.connection.transaction():
            yield

    @property
    def pid(self) -> int:
        """The backend's process id, as in ``pg_stat_activity.pid``."""
        return self.connection.pgconn.backend_pid

    @property
    def server_version(self) -> int:
        """As ``server_version_num``: 150018 is 15.18."""
        return self._version

    @property
    def closed(self) -> bool:
        """Whether the connection is closed or known to be broken."""
        return self.connection.closed

    @property
    def superuser(self) -> bool:
        """Whether the session's role is one; the server tells it with every log-in."""
        return self.connection.info.parameter_status("is_superuser") == "on"

    def close(self) -> None:
        """Log out; never raises for a connection that is already gone."""
        self.connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Session {self.dsn.masked}{' closed' if self.closed else ''}>"


def greet(dsn: Dsn, server_id: str, timeout: float = CONNECT_TIMEOUT) -> Session | None:
    """A session on the server of ours of that id; None: another server answers there.

    Args:
        timeout: seconds for the login.

    Raises:
        ServerLost: nobody answers. ServerRefused: somebody answers and refuses.
    """
    session = Session.connect(replace(dsn, scram=True), timeout=timeout)
    try:
        if session.value(f"select current_setting('{SERVER_ID}', true)") == server_id:
            return session
    except BaseException:
        session.close()
        raise
    session.close()
    return None


def ident(*names: str) -> str:
    """Quoted identifier, schema-qualified where there are several names."""
    return sql.Identifier(*names).as_string(None)


def literal(value: str | int | float | bool | None) -> str:
    """Quoted literal, for statements that take no parameters (DDL)."""
    return sql.Literal(value).as_string(None)


LOCK_PREFIX = "pg-harness:"
"""What is hashed before the kind and the name of what is locked."""


def lock_key(kind: str, name: str) -> int:
    """The 64-bit key of an advisory lock: a hash of what is locked (a 32-bit one would collide).

    Take every lock in the *maintenance database*: advisory locks are per database.
    """
    digest = hashlib.sha256(f"{LOCK_PREFIX}{kind}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class translated:
    """Turns every psycopg error of the block into one of ours, with the vendor's as its cause.

    Raises:
        ServerLost: the connection could not be made or broke (no SQLSTATE, class 08, 57P01, 57P02).
        ServerRefused: everything that the server itself said.
        BackendError: there is no file descriptor left for a connection.
    """

    # No generator: it is entered with every message to the server.
    def __init__(self, statement: str) -> None:
        self._statement = statement

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, psycopg.Error):
            return
        told = (None if error.sqlstate else out_of_files(error)) or _translate(error, self._statement)
        secret = without_secrets(self._statement) != self._statement
        if secret or self._statement.startswith(_CONNECTING):
            # Its frames hold the password in clear text: whoever prints a traceback's variables (pytest --showlocals,
            # rich) would print it.
            _forget_frames(error)
        # The server quotes the line that it could not parse.
        raise told from (None if secret else error)


def _forget_frames(error: BaseException) -> None:
    """Of an error, and of what it came from (one for each address of a host that was tried)."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


_PASSWORD = re.compile(r"(\bpassword\s+)E?'(?!\*\*\*')(?:[^']|'')*('|$)", re.IGNORECASE)
_VERIFIER = re.compile(r"SCRAM-SHA-256\$[^\s']*|\bmd5[0-9a-f]{32}\b")


def without_secrets(text: str) -> str:
    """A statement, or a line of a log that quotes one, without passwords and without what a server keeps in their place."""
    return _VERIFIER.sub("***", _PASSWORD.sub(r"\1'***'", text))


# libpq keeps the SQLSTATE of a refused login to itself: only the text tells. Our servers speak English
# (lc_messages = C); of a translated text from somebody else's server, "FATAL" may be lost, not more.
_REFUSED_LOGINS = (
    ("password authentication failed", sqlstate.INVALID_PASSWORD),
    ("no password supplied", sqlstate.INVALID_PASSWORD),
    ("no pg_hba.conf entry", sqlstate.INVALID_AUTHORIZATION_SPECIFICATION),
    ("is not permitted to log in", sqlstate.INVALID_AUTHORIZATION_SPECIFICATION),
    ("is not currently accepting connections", sqlstate.OBJECT_NOT_IN_PREREQUISITE_STATE),
    ("too many", sqlstate.TOO_MANY_CONNECTIONS),
    ("remaining connection slots", sqlstate.TOO_MANY_CONNECTIONS),
    ("already in use", sqlstate.TOO_MANY_CONNECTIONS),
    ("starting up", sqlstate.CANNOT_CONNECT_NOW),
    ("shutting down", sqlstate.CANNOT_CONNECT_NOW),
    ("in recovery mode", sqlstate.CANNOT_CONNECT_NOW),
    ("not yet accepting connections", sqlstate.CANNOT_CONNECT_NOW),
    ("does not exist", sqlstate.INVALID_CATALOG_NAME),
    ("permission denied for database", sqlstate.INSUFFICIENT_PRIVILEGE),
)


def _login_sqlstate(text: str) -> str:
    if "FATAL" not in text:
        return ""
    return next(
        (state for words, state in _REFUSED_LOGINS if words in text),
        sqlstate.INVALID_AUTHORIZATION_SPECIFICATION,
    )


def _translate(error: psycopg.Error, statement: str) -> ServerLost | ServerRefused:
    code = error.sqlstate or ""
    if not code and statement.startswith(_CONNECTING):
        code = _login_sqlstate(str(error))
    text = (error.diag.message_primary or str(error)).strip()
    for extra in (error.diag.message_detail, error.diag.message_hint):
        if extra:
            text += f" ({extra})"
    # Before it is cut: a fragment tells enough.
    text, line = without_secrets(text), without_secrets(" ".join(statement.split()))
    line = line if len(line) <= 160 else line[:157] + "…"
    if is_lost(error, code):
        ways = "".join(f". {told}" for way in tuple(WAYS.values()) if (told := way()))
        return ServerLost(f"the PostgreSQL server is not there: {text} (while: {line}){ways}")
    return ServerRefused(
        f"PostgreSQL refused: {text} [{code}] (while: {line})", sqlstate=code, statement=line
    )


def is_lost(error: psycopg.Error, code: str) -> bool:
    """Whether the session is gone; ``code`` is the SQLSTATE, empty where the server said none."""
    if code:
        return sqlstate.is_lost(code)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _escape_option(value: str) -> str:
    # libpq splits `options` at blanks; a backslash keeps one (PostgreSQL docs, 34.1.2).
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def open_application(dsn: Dsn, options: Mapping[str, Any] | None = None) -> psycopg.Connection[Any]:
    """A plain psycopg connection, not in autocommit mode unless asked for.

    Raises:
        ServerLost: nobody answers. ServerRefused: the server says no.
    """
    with translated(_CONNECTING + dsn.masked), unbent():
        return psycopg.connect(**_application(dsn, options))


async def open_application_async(
    dsn: Dsn, options: Mapping[str, Any] | None = None
) -> psycopg.AsyncConnection[Any]:
    """As :func:`open_application`, for asyncio."""
    with translated(_CONNECTING + dsn.masked), unbent():
        return await psycopg.AsyncConnection.connect(**_application(dsn, options))


def _application(dsn: Dsn, options: Mapping[str, Any] | None) -> dict[str, Any]:
    stated = conninfo(dsn, application_name="pg-harness-test")
    return {**stated, "connect_timeout": CONNECT_TIMEOUT, **(options or {})}
