"""Whether a server that others run is meant for tests: it holds nobody else's databases, and does not look like production."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.dsn import Dsn
from harness.errors import BackendUnavailable
from harness.postgres import names, roles
from harness.postgres.label import split
from harness.postgres.session import Session

KEY = "allow_foreign"

_PROVIDERS = {
    "Amazon RDS": (".rds.amazonaws.com", ".rds.amazonaws.com.cn"),
    "Heroku": (".compute-1.amazonaws.com", ".compute.amazonaws.com"),
    "Azure": (".database.azure.com", ".cosmos.azure.com", ".database.windows.net"),
    "Google Cloud SQL": ("/cloudsql/", ".sql.goog", ".alloydb.goog"),
    "Neon": (".neon.tech",),
    "Supabase": (".supabase.co", ".supabase.com"),
    "Render": (".render.com",),
    "Railway": (".railway.app", ".rlwy.net", ".railway.internal"),
    "Fly.io": (".fly.dev", ".flycast"),
    "DigitalOcean": (".ondigitalocean.com",),
    "Aiven": (".aivencloud.com",),
    "Timescale": (".tsdb.cloud.timescale.com", ".tsdb.forge.timescale.com"),
    "Crunchy Bridge": (".postgresbridge.com",),
    "PlanetScale": (".psdb.cloud",),
    "Prisma": (".prisma.io",),
    "ElephantSQL": (".elephantsql.com",),
    "Vercel": (".vercel-storage.com",),
    "Xata": (".xata.sh", ".xata.tech"),
    "Scaleway": (".scw.cloud",),
}
"""Who hosts servers that people keep data on → how their hosts' names end; with a slash, how a socket's folder begins."""

# A word of its own: not in "product" or "reproduce"; numbers may follow.
_PRODUCTION = re.compile(r"(?<![a-z])prod(uction)?(?![a-z])", re.IGNORECASE)

_OF_THE_SERVER = ("postgres", "template0", "template1")

_NAMED = 5
"""Databases that a message names."""


def production(dsn: Dsn) -> str:
    """Why an address looks like production; empty where it does not. Nobody is asked."""
    host = dsn.host.lower().rstrip(".")
    for provider, places in _PROVIDERS.items():
        if any(host.startswith(place) if place.startswith("/") else host.endswith(place) for place in places):
            return f"{dsn.host} is a host of {provider}"
    for what, text in (("host", dsn.host), ("database", dsn.database)):
        if found := _PRODUCTION.search(text):
            return f"its {what} is called {text!r}, and that says {found[0]!r}"
    return ""


def databases(session: Session) -> tuple[str, ...]:
    """Names of the databases that are neither PostgreSQL's own nor of any checkout's.

    The one that the session is in counts only where somebody has put something into it: images make one that is empty
    (``POSTGRES_DB``).
    """
    rows = session.rows(
        "select datname, shobj_description(d.oid, 'pg_database'), shobj_description(datdba, 'pg_authid'),"
        " datname = current_database() from pg_database d where datname <> all(%s) order by datname",
        (list(_OF_THE_SERVER),),
    )
    return tuple(
        name
        for name, comment, owner, here in rows
        # A template that is being built has no label yet, and what a test creates has neither: its owner is our role.
        if not (
            split(comment)[1] or names.parse(name) or owner == roles.COMMENT or (here and _empty(session))
        )
    )


def _empty(session: Session) -> bool:
    """Whether nobody but PostgreSQL, its extensions and we have made anything in the session's database."""
    return not session.value(
        "select exists (select from pg_class c where relnamespace::regnamespace::text !~ %s and c.oid >= 16384"
        " and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid"
        " and d.deptype = 'e'))",
        (f"^(pg_.*|information_schema|{names.PREFIX}_.*)$",),
    )


def refuse_production(dsn: Dsn, origin: str) -> None:
    """Before anything is sent there.

    Raises:
        BackendUnavailable: an address looks like production.
    """
    if why := production(dsn):
        raise _refused(f"the server {dsn.masked} ({origin}) looks like production: {why}")


def refuse(found: Sequence[str], dsn: Dsn, origin: str) -> None:
    """Refuse a server that holds such databases.

    Raises:
        BackendUnavailable: it holds some.
    """
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise _refused(
            f"the server {dsn.masked} ({origin}) holds databases that pg-harness has not made: "
            f"{', '.join(found[:_NAMED])}{more}"
        )


def _refused(message: str) -> BackendUnavailable:
    return BackendUnavailable(
        message,
        remedies=[
            (
                f"if tests may run there: {KEY} = true in the settings, or PGHARNESS_{KEY.upper()}=1. Other databases are "
                "not touched; the server's memory, disk, connections and roles are shared with them"
            ),
            "else name another server, or none: then one is started",
        ],
    )
