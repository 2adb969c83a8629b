"""The application's role: who it is on a server, made or put right there."""

from __future__ import annotations

import logging

from harness.config.settings import Settings
from harness.databases.spec import Owner
from harness.postgres import locks, names, roles
from harness.postgres.session import Session
from harness.servers.port import ServerInfo

logger = logging.getLogger("pg_harness.databases")


def expected(session: Session, info: ServerInfo, settings: Settings, project: str) -> tuple[Owner, bool]:
    """The role that the application logs in as, without touching it; and whether we may make it."""
    # Servers that we start are ours: no need to ask.
    if not info.ours and not session.value(
        "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
    ):
        return Owner(session.dsn.user, session.dsn.password), False
    name = settings.role
    if not info.ours and settings.origin("role") == "default":
        name = f"{names.PREFIX}_{project}"
    return Owner(name, roles.derived_password(session.dsn.password, name)), True


def ensure(session: Session, info: ServerInfo, settings: Settings, project: str) -> Owner:
    """The application's role: made or put right here, unless the server forbids it.

    Raises:
        ConfigError: a role of that name is somebody else's. PoolTimeout: another process is busy with it.
    """
    owner, may = expected(session, info, settings, project)
    if not may:
        logger.info("role %s may not create roles: the application uses it as well", session.dsn.user)
        return owner
    owner = Owner(
        owner.name, owner.password, tuple(settings.role_attributes), settings.superuser, managed=True
    )
    with locks.exclusive(session, "roles", "", timeout=60, waiting_for="the application's role"):
        make(session, owner, must_be_ours=not info.ours)
    return owner


def make(session: Session, owner: Owner, *, must_be_ours: bool = False) -> None:
    """Make the role, or put it right. See :func:`harness.postgres.roles.ensure`."""
    roles.ensure(
        session,
        owner.name,
        password=owner.password,
        attributes=owner.attributes,
        superuser=owner.superuser,
        must_be_ours=must_be_ours,
    )
