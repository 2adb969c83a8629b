"""Roles: the application's own, and those that migrations create; handing over to one what the admin has created.

Roles belong to the whole server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence

from harness.errors import ConfigError, HarnessError, ServerRefused
from harness.postgres import names, sqlstate
from harness.postgres.session import Session, ident, literal

USUAL_ROUNDS = 4096
"""PostgreSQL's own default (``scram_iterations``)."""

COMMENT = "pg-harness"
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
    password: str | None,
    attributes: Sequence[str],
    superuser: bool,
    must_be_ours: bool = False,
    group: str = "",
    rounds: int = 1,
) -> None:
    """Create the application's role, or bring its password, attributes and settings back to what they must be.

    The password goes over the wire as a SCRAM verifier made here: a failing statement is written to
    the server's log with its text.

    Args:
        password: None leaves it as it is.
        must_be_ours: refuse to alter a role that does not carry our comment (servers that we did not start).
        group: a role that it is a member of, where it is made here.
        rounds: of hashing, on a server that we started.

    Raises:
        ConfigError: the role is somebody else's.
    """
    catalog, stored = ("pg_authid", "rolpassword") if session.superuser else ("pg_roles", "null")
    found, held, ours, stored, configured = session.row(
        f"select coalesce(shobj_description(r.oid, 'pg_authid'), case when r.oid is not null then '' end), {_HELD}, "
        f"coalesce(current_setting('harness.server_id', true), '') <> '', {stored}, "
        "exists (select from pg_db_role_setting s where s.setdatabase = 0 and s.setrole = r.oid) "
        f"from (select) as one left join {catalog} r on rolname = %s",
        (role,),
    ) or (None, [], False, None, True)
    # Ours are random. Elsewhere, others may have given the role a password before.
    hashed = stored if password is None else verifier(role, password, rounds=rounds if ours else USUAL_ROUNDS)
    wanted = ["login", "superuser" if superuser else "nosuperuser", *_complete(attributes, superuser)]
    exists = found is not None
    # Who is no superuser may not even name most of them, although nothing would change.
    options = " ".join(option for option in wanted if not exists or option not in held)
    if exists and must_be_ours and found != COMMENT:
        raise ConfigError(
            f"the server has a role {role!r} that the harness did not make: it is left alone. "
            f'Set role = "…" in the settings to a name that is free.',
            key="role",
            value=role,
        )
    secret = f" password {literal(hashed)}" if password is not None else ""
    if exists:
        # Only what differs: each clone asks, and a role is one row for the whole server.
        different = (
            [f"alter role {ident(role)} with {options}{secret}"] if options or stored != hashed else []
        )
        if configured:
            # A test's `ALTER ROLE app SET search_path …` holds for every later session of every worker.
            different.append(f"alter role {ident(role)} reset all")
        _until_alone(session, *different)
        return
    made = [
        f"create role {ident(role)} with {options}{secret}" + (f" in role {ident(group)}" if group else ""),
        f"comment on role {ident(role)} is {literal(COMMENT)}",
    ]
    if not session.superuser:
        # Else CREATE DATABASE … OWNER is refused: since 16 a creator may administer a role, not act as it.
        made.append(f"grant {ident(role)} to current_user")
    session.script("; ".join(made))


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
                if error.sqlstate != sqlstate.INTERNAL_ERROR or time.monotonic() > deadline:
                    raise
            time.sleep(0.002)


def _complete(attributes: Sequence[str], superuser: bool) -> list[str]:
    given = {a.lower() for a in attributes}
    every = ("createdb", "createrole", "replication", "bypassrls")
    return [a if superuser or a in given else f"no{a}" for a in every]


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
    """A password that everybody who knows the secret can work out: nothing more to store, or to leak.

    Args:
        secret: random; of a word, the password would tell whether it is the word.
    """
    return hmac.new(secret.encode(), f"pg-harness role {role}".encode(), hashlib.sha256).hexdigest()[:32]


def forget_verifiers(session: Session) -> None:
    """Leave no trace of passwords that were taken away or changed: not in dead rows, and not in the log.

    Who has a copy of the data directory could log in with them to whatever server took them again, or guess them.
    For a server of ours that is about to be copied, and that removes segments instead of using them again
    (``wal_recycle = off``).
    """
    # Rows that somebody's snapshot may see are copied too: the dead-man's switch has one while it sleeps, and comes back.
    session.column(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    # A new file: VACUUM alone leaves the bytes of dead rows where they were.
    session.execute("vacuum full pg_authid")
    # The first writes all that the log so far is needed for; the second, in a new segment, removes the log so far.
    session.execute("checkpoint")
    session.value("select pg_switch_wal()")
    session.execute("checkpoint")


def drop_ours(session: Session, role: str) -> None:
    """Drop a role that carries our comment; one that something still depends on stays."""
    comment = session.value(
        "select shobj_description(oid, 'pg_authid') from pg_roles where rolname = %s", (role,)
    )
    if comment == COMMENT:
        drop(session, [role])


def all_roles(session: Session) -> set[str]:
    """Names of all roles but PostgreSQL's own, and the workers', which come and go at any time."""
    found = session.column("select rolname from pg_roles where rolname !~ '^pg_'")
    return {name for name in found if not names.run_of_role(name)}


def of_workers(session: Session, project: str) -> list[str]:
    """Names of the workers' roles of one checkout."""
    prefix = names.role_prefix(project)
    found = session.column("select rolname from pg_roles where starts_with(rolname, %s)", (prefix,))
    return [name for name in found if names.run_of_role(name)]


def drop_idle(session: Session, given: Sequence[str]) -> None:
    """Drop those of the roles that own nothing any more, and were granted nothing."""
    # Looked for first: a DROP that fails would stand as an error in everybody's server log.
    idle = session.column(
        "select rolname from pg_roles r where rolname = any(%s) and not exists (select from pg_shdepend "
        "where refclassid = 'pg_authid'::regclass and refobjid = r.oid)",
        (list(given),),
    )
    drop(session, idle)


def drop(session: Session, roles: Sequence[str]) -> list[str]:
    """Drop roles; return those that something still depends on (they stay)."""
    left: list[str] = []
    for role in roles:
        try:
            session.execute(f"drop role if exists {ident(role)}")
        except HarnessError:
            left.append(role)
    return left


# FirstNormalObjectId (src/include/access/transam.h): what initdb made lies below.
_FIRST_OWN_OID = 16384

_FOLLOWS_A_TABLE = (
    "relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass"
    " and d.objid = pg_class.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i'))"
)

# (catalog, owner's column, further condition). Event triggers and foreign-data wrappers need a superuser as
# their owner, so they stay with the admin. What belongs to an extension stays with the extension.
_OWNED = (
    ("pg_namespace", "nspowner", "nspname !~ '^pg_'"),
    # Indexes and TOAST tables follow their tables; so do sequences of serial and identity columns.
    ("pg_class", "relowner", f"relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and not ({_FOLLOWS_A_TABLE})"),
    ("pg_proc", "proowner", "true"),
    # A table's row type and an array follow; composite types are in pg_class.
    ("pg_type", "typowner", "typrelid = 0 and typelem = 0 and typtype <> 'm'"),
    ("pg_operator", "oprowner", "true"),
    ("pg_opclass", "opcowner", "true"),
    ("pg_opfamily", "opfowner", "true"),
    ("pg_collation", "collowner", "true"),
    ("pg_conversion", "conowner", "true"),
    ("pg_ts_dict", "dictowner", "true"),
    ("pg_ts_config", "cfgowner", "true"),
    ("pg_statistic_ext", "stxowner", "true"),
    ("pg_foreign_server", "srvowner", "true"),
    ("pg_largeobject_metadata", "lomowner", "true"),
    ("pg_publication", "pubowner", "not puballtables"),
)

# A large object's address names the catalog of its pages (LargeObjectRelationId).
_CLASSES = {"pg_largeobject_metadata": "pg_largeobject"}

# pg_identify_object's word → the word that ALTER takes, where they differ.
_ALTER_WORDS = {
    "composite type": "type",
    "foreign server": "server",
    "statistics object": "statistics",
}


def give_to(session: Session, role: str) -> int:
    """Make ``role`` the owner of everything in this database that belongs to the session's own role.

    ``REASSIGN OWNED`` refuses the bootstrap superuser, and takes extensions along.

    Returns:
        How many objects changed hands.

    Raises:
        ServerRefused: the session may not give one of them away.
    """
    listing = " union all ".join(
        f"select '{_CLASSES.get(catalog, catalog)}'::regclass as class, oid, {owner} as owner from pg_catalog.{catalog} where {condition}"
        for catalog, owner, condition in _OWNED
    )
    # By OID: a schema before what is in it, a type before its users.
    rows = session.rows(
        "select (o).type, (o).identity from ("
        "  select pg_identify_object(l.class, l.oid, 0) as o, l.oid"
        f" from ({listing}) as l"
        "  where l.owner = (select oid from pg_roles where rolname = current_user)"
        "  and l.oid >= %s"
        "  and not exists (select from pg_depend d where d.classid = l.class and d.objid = l.oid"
        "    and d.deptype = 'e')"
        ") as objects order by oid",
        (_FIRST_OWN_OID,),
    )
    for kind, identity in rows:
        word = _ALTER_WORDS.get(kind, kind)
        session.execute(f"alter {word} {identity} owner to {ident(role)}")
    return len(rows)
