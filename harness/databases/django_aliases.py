"""Django's connections, pointed to leased databases: alias by alias, before anything connects.

For a process in which Django's settings are there; it is imported only then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from harness.dsn import Dsn

BENDING = frozenset({
    "service", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "hostaddr", "host", "port",
})  # fmt: skip
"""Keys of OPTIONS that belong to the server that the settings name."""


def adopt(dsns: Mapping[str, Dsn]) -> list[str]:
    """Point Django's connections to the databases; return the aliases for which there is none.

    An alias goes to the database of its name in ``[tool.pg-harness.databases]``, ``default`` to the top level;
    one whose settings came from DATABASE_URL is there already, and a mirror follows what it mirrors. ``replica``, where ``dsns`` has
    it, is the server's standby.
    """
    from django.db import connections

    ours = {dsn.database for dsn in dsns.values()}
    left: list[str] = []
    for alias in connections:
        values: dict[str, Any] = connections.settings[alias]
        mirrored = (values.get("TEST") or {}).get("MIRROR")
        dsn = dsns.get(mirrored or alias)
        if not any(kind in str(values.get("ENGINE", "")) for kind in ("postgresql", "postgis", "psycopg")):
            left.append(alias)
        elif dsn is not None:
            _point(values, dsn)
        elif str(values.get("NAME")) not in ours:
            left.append(alias)
    return left


def _point(values: dict[str, Any], dsn: Dsn) -> None:
    # In place: connections that were made already hold this very dictionary.
    values.update(NAME=dsn.database, USER=dsn.user, PASSWORD=dsn.password, HOST=dsn.host, PORT=str(dsn.port))
    # What settings say of the server in production: TLS that ours does not have, say.
    options = {key: value for key, value in (values.get("OPTIONS") or {}).items() if key not in BENDING}
    values["OPTIONS"] = {**options, **dsn.options}
    # Django's own test runner would put `test_` in front.
    values["TEST"] = {**(values.get("TEST") or {}), "NAME": dsn.database}


def forget() -> None:
    """Close this thread's connections and make new ones when they are asked for: they know the server's version by heart, and
    caches of rows know keys."""
    from django.apps import apps
    from django.db import connections

    for alias in list(connections):
        connections[alias].close()
        del connections[alias]
    for label, name in (("contenttypes", "ContentType"), ("sites", "Site")):
        if apps.is_installed(f"django.contrib.{label}"):
            apps.get_model(label, name).objects.clear_cache()


def without_ours(left: Collection[str]) -> None:
    """Let the aliases that Django makes itself depend on none of ours.

    Django makes each depend on `default`, and finds a circle where that is not among those to be made.
    """
    from django.db import connections

    for alias in left:
        test = connections.settings[alias].setdefault("TEST", {})
        depends = test.get("DEPENDENCIES", [])
        test["DEPENDENCIES"] = [other for other in depends if other in left and other != alias]
