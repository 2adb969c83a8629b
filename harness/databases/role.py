"""The application's role: who it is on a server, made or put right there; and which databases it may enter."""

from __future__ import annotations

import logging
import secrets
from functools import cache
from pathlib import Path

from harness.config.project import Project, file_lock
from harness.config.state_file import StateFile, Unreadable
from harness.databases.spec import Owner
from harness.errors import ConfigError
from harness.postgres import locks, names, roles
from harness.postgres.session import Session, ident
from harness.servers.port import ServerInfo, private

logger = logging.getLogger("pg_harness.databases")


def expected(session: Session, info: ServerInfo, project: Project) -> tuple[Owner, bool]:
    """The role that the application logs in as, without touching it; and whether we may make it."""
    settings = project.settings
    # Servers that we start are ours: no need to ask.
    if not info.ours and not session.value(
        "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
    ):
        return Owner(session.dsn.user, session.dsn.password), False
    name = settings.role
    if not info.ours and settings.origin("role") == "default":
        name = f"{names.PREFIX}_{project.id}"
    owner = Owner(
        name,
        roles.derived_password(_secret(session, info, project), name),
        tuple(settings.role_attributes),
        settings.superuser,
        managed=True,
        each=shared(info),
        rounds=_rounds(project),
    )
    return owner, True


_STRICT = (
    "pom.xml",
    "build.gradle",
    "build.gradle.kts",
    "settings.gradle.kts",
    "build.sbt",
    "project.clj",
    "deps.edn",
    "bunfig.toml",
    "bun.lock",
    "bun.lockb",
)
"""Files of projects whose drivers refuse fewer rounds of hashing than :data:`~harness.postgres.roles.USUAL_ROUNDS`."""


def _rounds(project: Project) -> int:
    """How often a password is hashed at each log-in.

    The JVM's drivers (pgJDBC, R2DBC: the library com.ongres.scram) and Bun's refuse fewer than RFC 7677's 4096: "the server
    requested an iteration count of 1", "SCRAM-SHA-256 iteration count 1 is out of range". Everybody else is spared the
    milliseconds: with libpq a log-in took 10 ms with one, and 26 ms with 4096.
    """
    settings = project.settings
    if settings.scram_iterations:
        return settings.scram_iterations
    texts = [text for database in settings.databases for text in database.env.values()]
    if any("jdbc" in text for text in texts):
        return roles.USUAL_ROUNDS
    root = settings.root
    folders = [root, *(folder for folder in _folders(root) if not folder.name.startswith("."))]
    strict = any((folder / name).exists() for folder in folders for name in _STRICT)
    return roles.USUAL_ROUNDS if strict else 1


def _folders(root: Path) -> list[Path]:
    try:
        return [folder for folder in root.iterdir() if folder.is_dir()]
    except OSError:
        return []


def _secret(session: Session, info: ServerInfo, project: Project) -> str:
    """What the passwords of a server are worked out from: random, and kept in a file that its owner alone can read.

    On our own servers, the admin's password. On another's, that may be a word: whoever has one of ours could try words until it
    fits.
    """
    if info.ours:
        return session.dsn.password
    where = names.digest(f"{session.dsn.host}:{session.dsn.port}", 16)
    return _kept_secret(project.folder / f"passwords-{where}.secret")


@cache
def _kept_secret(path: Path) -> str:
    file = StateFile(path, 1)
    made = secrets.token_hex(24)
    try:
        return _read_secret(file)
    except (FileNotFoundError, Unreadable):
        pass
    try:
        with file_lock(path.with_suffix(".lock"), timeout=60, waiting_for="the passwords of a server"):
            try:
                return _read_secret(file)
            except (FileNotFoundError, Unreadable):
                file.write({"secret": made})
    except (OSError, ConfigError):
        # What a run needs is known to its own processes; `psql` and `env` of other commands cannot log in.
        logger.warning("%s cannot be written: other commands will not know the databases' passwords", path)
    return made


def _read_secret(file: StateFile) -> str:
    secret = file.read().get("secret")
    if not isinstance(secret, str) or len(secret) < 32:
        raise Unreadable("holds no secret")
    return secret


def shared(info: ServerInfo) -> bool:
    """Whether there may be databases on a server that are none of the application's business: other workers', or a person's."""
    return not info.ours or not (info.purpose == "up" or private(info.purpose))


def ensure(session: Session, info: ServerInfo, project: Project) -> Owner:
    """The application's role: made or put right here, unless the server forbids it.

    Raises:
        ConfigError: a role of that name is somebody else's. PoolTimeout: another process is busy with it.
    """
    owner, may = expected(session, info, project)
    if not may:
        logger.info("role %s may not create roles: the application uses it as well", session.dsn.user)
        return owner
    with locks.exclusive(session, "roles", "", timeout=60, waiting_for="the application's role"):
        make(session, owner, must_be_ours=not info.ours)
        if info.ours and owner.each and owner.confined:
            close_common(session, owner)
    return owner


def make(session: Session, owner: Owner, *, must_be_ours: bool = False) -> None:
    """Make the role, or put it right. See :func:`harness.postgres.roles.ensure`."""
    roles.ensure(
        session,
        owner.name,
        # Nobody logs in as it but migrations, for which the password is set then: another checkout may have the same role.
        password=None if owner.each else owner.password,
        attributes=owner.attributes,
        superuser=owner.superuser,
        must_be_ours=must_be_ours,
        group=owner.group,
        rounds=owner.rounds,
    )


def close_common(session: Session, owner: Owner) -> None:
    """Keep the application out of what all workers have in common: ``template1``, and ``postgres``, where our locks are.

    Tools that create databases (Rails, Ecto, createdb) do so from ``postgres``: where the role may, it may enter, and do
    nothing else there. It is the whole server's: called under a lock, and done once.
    """
    enters = "createdb" in {attribute.lower() for attribute in owner.attributes}
    found = session.row(
        "select exists (select from pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a "
        "where d.datname in (current_database(), 'template1') and a.grantee = 0), "
        "has_database_privilege(%s, current_database(), 'connect')",
        (owner.name,),
    )
    open_, entering = found or (True, False)
    here = ident(session.dsn.database)
    if open_:
        session.script(f"{_NOTHING_TO_DO_HERE}; revoke all on database {here}, template1 from public")
    if entering != enters or open_:
        act = f"grant connect on database {here} to" if enters else f"revoke connect on database {here} from"
        session.execute(f"{act} {ident(owner.name)}")


# Advisory locks: ours in that database are signs of life, and what a test takes there could pass for one. A large object
# needs no right to be made. Built-in functions have their rights per database.
_NOTHING_TO_DO_HERE = """
revoke create on schema public from public;
do $close$
declare
    it regprocedure;
begin
    for it in select oid from pg_proc where pronamespace = 'pg_catalog'::regnamespace
        and proname ~ '^(pg_(try_)?advisory_|lo_(creat|create|from_bytea|import)$)' loop
        execute format('revoke execute on function %s from public', it);
    end loop;
end $close$
"""
