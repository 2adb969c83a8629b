"""Dropping templates, and the roles that came with them: roles belong to the whole server."""

from __future__ import annotations

from harness.errors import MigrationError
from harness.postgres import databases, names, roles
from harness.postgres.databases import Database
from harness.postgres.session import Session


def drop(session: Session, project: str, template: Database) -> list[str]:
    """Drop a template with its spares, its baseline, and the roles that no other template uses.

    Returns:
        Roles of the template that had to stay, because something else depends on them.
    """
    for other in databases.list_ours(session, project):
        if other.owner == template.owner and other.kind in (names.Kind.SPARE, names.Kind.BASELINE):
            databases.drop(session, other.name, project)
    databases.drop(session, template.name, project)
    mine_roles = set(template.label.roles or ())
    for other in databases.list_ours(session, None):
        mine_roles -= set(other.label.roles or ())
    return roles.drop(session, sorted(mine_roles))


def drop_new_roles(session: Session, before: set[str]) -> None:
    """Drop the roles that were not there before: a migration that failed must not fail the next one too."""
    roles.drop(session, sorted(roles.all_roles(session) - before))


def make_room(session: Session, project: str, existing: set[str]) -> list[str]:
    """Drop idle templates that brought roles which still exist; return those roles that are gone now."""
    everything = databases.list_ours(session, project)
    leased = {d.label.short_fingerprint for d in everything if d.kind is names.Kind.LEASE}
    brought: set[str] = set()
    for found in everything:
        own = set(found.label.roles or ()) & existing
        if not own or found.kind is not names.Kind.TEMPLATE or found.owner in leased:
            continue
        drop(session, project, found)
        brought |= own
    return sorted(brought - roles.all_roles(session))


def hint(session: Session, project: str, existing: set[str], error: MigrationError) -> str:
    """What to do where a role that another template brought is in the way of this migration."""
    brought = {role for d in databases.list_ours(session, project) for role in d.label.roles or ()}
    in_the_way = sorted(role for role in brought & existing if role in error.message)
    if not in_the_way:
        return ""
    return (
        f"Roles belong to the whole server, and {', '.join(in_the_way)} came with another template whose "
        f'databases are in use. End that run and try again, or set isolation = "server".'
    )
