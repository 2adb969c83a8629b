"""Roles: the application's own, and those that migrations create. Roles belong to the whole server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence

from harness.catalog.session import Session, ident, literal
from harness.errors import ConfigError, HarnessError, ServerRefused


def is_superuser(session: Session) -> bool:
    """Whether the session's role is one."""
    return bool(session.value("select rolsuper from pg_roles where rolname = current_user"))


USUAL_ROUNDS = 4096
"""PostgreSQL's own default (``scram_iterations``)."""

MARK = "pg-harness"
"""The comment of a role that we made. On a server that is not ours, no other role is ever altered."""


_HELD = (
    "array["
    + ", ".join(
        f"case when r.rol{column} then '{word}' else 'no{word}' end"
        for column, word in (
            ("canlogin", "login"),
            ("super", "superuser"),
            ("createdb", "createdb"),
            ("createrole", "createrole"),
            ("replication", "replication"),
            ("bypassrls", "bypassrls"),
        )
    )
    + "]"
)
"""The attributes that a role has, as ALTER ROLE calls them."""


def ensure(
    session: Session,
    role: str,
    *,
    password: str,
    attributes: Sequence[str],
    superuser: bool,
    must_be_ours: bool = False,
) -> None:
    """Create the application's role, or bring its password, attributes and settings back to what they must be.

    The password goes over the wire as a SCRAM verifier made here: a failing statement is written to
    the server's log with its text.

    Args:
        must_be_ours: refuse to alter a role that does not carry our mark (servers that we did not start).

    Raises:
        ConfigError: the role is somebody else's.
    """
    may_see = session.connection.info.parameter_status("is_superuser") == "on"
    catalog, stored = ("pg_authid", "rolpassword") if may_see else ("pg_roles", "null")
    found, held, ours, stored, configured = session.row(
        f"select coalesce(shobj_description(r.oid, 'pg_authid'), case when r.oid is not null then '' end), {_HELD}, "
        f"coalesce(current_setting('harness.server_id', true), '') <> '', {stored}, "
        "exists (select from pg_db_role_setting s where s.setdatabase = 0 and s.setrole = r.oid) "
        f"from (select) as one left join {catalog} r on rolname = %s",
        (role,),
    ) or (None, [], False, None, True)
    # The password is random on our servers; on others it follows from one that a person may have thought up.
    hashed = verifier(role, password, rounds=1 if ours else USUAL_ROUNDS)
    wanted = ["login", "superuser" if superuser else "nosuperuser", *_complete(attributes, superuser)]
    exists = found is not None
    # Who is no superuser may not even name most of them, although nothing would change.
    options = " ".join(option for option in wanted if not exists or option not in held)
    if exists and must_be_ours and found != MARK:
        raise ConfigError(
            f"the server has a role {role!r} that the harness did not make: it is left alone. "
            f'Set role = "…" in the settings to a name that is free.',
            key="role",
            value=role,
        )
    verb = "alter" if exists else "create"
    statement = f"{verb} role {ident(role)} with {options} password {literal(hashed)}"
    if exists:
        # Only what differs: each clone asks, and a role is one row for the whole server.
        different = [statement] if options or stored != hashed else []
        if configured:
            # A test's `ALTER ROLE app SET search_path …` holds for every later session of every worker.
            different.append(f"alter role {ident(role)} reset all")
        _until_alone(session, *different)
        return
    session.execute(statement)
    session.execute(f"comment on role {ident(role)} is {literal(MARK)}")
    if not is_superuser(session):
        # Else CREATE DATABASE … OWNER is refused: since 16 a creator may administer a role, not act as it.
        session.execute(f"grant {ident(role)} to current_user")


def _until_alone(session: Session, *statements: str) -> None:
    """Run statements that change a role. It is one row for the whole server: where another worker changes it at
    the same moment, PostgreSQL refuses with "tuple concurrently updated" instead of waiting.

    Raises:
        ServerRefused: also where that goes on for five seconds.
    """
    deadline = time.monotonic() + 5
    for statement in statements:
        while True:
            try:
                session.execute(statement)
                break
            except ServerRefused as error:
                if error.sqlstate != "XX000" or time.monotonic() > deadline:
                    raise
            time.sleep(0.002)


def _complete(attributes: Sequence[str], superuser: bool) -> list[str]:
    if superuser:
        return ["createdb", "createrole", "replication", "bypassrls"]
    given = {a.lower() for a in attributes}
    return [a if a in given else f"no{a}" for a in ("createdb", "createrole", "replication", "bypassrls")]


def verifier(role: str, password: str, *, rounds: int) -> str:
    """What PostgreSQL stores for SCRAM-SHA-256 (RFC 5803), with a salt that follows from role and password.

    The same each time: a role that is put right by one run does not look changed to the others.

    Args:
        rounds: of hashing. Each log-in repeats them: 4096 take 2 ms of the client's time, and guard a password that
            might be guessed.
    """
    salt = hashlib.sha256(f"pg-harness:{role}:{password}".encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{text[0]}${text[1]}:{text[2]}"


def derived_password(secret: str, role: str) -> str:
    """A password that everybody who knows the admin's can work out: nothing more to store, or to leak."""
    return hmac.new(secret.encode(), f"pg-harness role {role}".encode(), hashlib.sha256).hexdigest()[:32]


def drop_ours(session: Session, role: str) -> None:
    """Drop a role that carries our mark; one that something still depends on stays."""
    comment = session.value(
        "select shobj_description(oid, 'pg_authid') from pg_roles where rolname = %s", (role,)
    )
    if comment == MARK:
        drop(session, [role])


def all_roles(session: Session) -> set[str]:
    """Names of all roles but PostgreSQL's own."""
    return {name for (name,) in session.rows("select rolname from pg_roles where rolname !~ '^pg_'")}


def drop(session: Session, roles: Sequence[str]) -> list[str]:
    """Drop roles; return those that something still depends on (they stay)."""
    left: list[str] = []
    for role in roles:
        try:
            session.execute(f"drop role if exists {ident(role)}")
        except HarnessError:
            left.append(role)
    return left
