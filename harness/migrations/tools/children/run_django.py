# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
"""Task of a child: ``migrate`` of a Django project, or the list of its migrations' folders.

See migrations/tools/django.py.
"""

import importlib
import json
import os
import sys

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db.migrations.loader import MigrationLoader

# Options that would send the connection elsewhere, or ask the test server for TLS.
BENDING = ("service", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "hostaddr", "host", "port")
POSTGRESQL = "django.db.backends.postgresql"
OTHER_VENDORS = ("sqlite3", "spatialite", "mysql", "oracle", "dummy", "mssql")


def run(parameters):
    os.environ["DJANGO_SETTINGS_MODULE"] = parameters["settings"]
    databases = settings.DATABASES  # imports the settings module
    alias = parameters["alias"] if parameters["alias"] in databases else "default"
    further = [name for name, entry in databases.items() if is_further(name, entry, databases)]
    point(databases, alias, parameters)
    django.setup()
    if parameters["list"]:
        with open(parameters["list"], "w", encoding="utf-8") as stream:
            json.dump({"databases": further, **listing(parameters["root"])}, stream)
        return
    call_command("migrate", database=alias, interactive=False, verbosity=1, no_color=True)


def point(databases, alias, parameters):
    """Send the alias to our database, and every other alias of a server to a database that does not exist."""
    target = dict(databases.setdefault(alias, {"ENGINE": POSTGRESQL}))
    for name, entry in databases.items():
        engine = entry.get("ENGINE", "")
        other_vendor = not engine or engine.rpartition(".")[2] in OTHER_VENDORS
        twin = name == alias or entry.get("TEST", {}).get("MIRROR") == alias or same(entry, target)
        if other_vendor and not twin:
            continue
        if other_vendor:
            entry["ENGINE"] = POSTGRESQL
            entry["OPTIONS"] = {}
        entry["NAME"] = parameters["database"] if twin else "not_migrated_yet"
        entry["USER"] = parameters["user"]
        entry["PASSWORD"] = parameters["password"]
        entry["HOST"] = parameters["host"]
        entry["PORT"] = parameters["port"]
        entry["CONN_MAX_AGE"] = 0
        entry["OPTIONS"] = {k: v for k, v in (entry.get("OPTIONS") or {}).items() if k not in BENDING}


def is_further(name, entry, databases):
    """Whether it is a database of PostgreSQL beside the default one, with tables of its own."""
    vendor = entry.get("ENGINE", "").rpartition(".")[2]
    mirror = (entry.get("TEST") or {}).get("MIRROR")
    twin = same(entry, databases.get("default", {}))
    return name != "default" and vendor not in ("", *OTHER_VENDORS) and not mirror and not twin


def same(entry, target):
    keys = ("ENGINE", "NAME", "HOST", "PORT")
    return bool(target) and all(entry.get(key) == target.get(key) for key in keys)


def listing(root):
    """The folders of all migrations, and the files of the project that say which apps there are."""
    folders = {}
    for config in apps.get_app_configs():
        name, _ = MigrationLoader.migrations_module(config.label)
        if name is None:
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # an app without migrations
        paths = list(getattr(module, "__path__", []))
        if paths:
            folders[config.label] = os.path.realpath(paths[0])
    root = os.path.realpath(root)
    prefixes = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)}
    loaded = []
    for module in list(sys.modules.values()):
        path = os.path.realpath(getattr(module, "__file__", None) or "")
        inside = path.startswith(root + os.sep) and "site-packages" not in path
        if inside and not any(p.startswith(root) and path.startswith(p + os.sep) for p in prefixes):
            loaded.append(path)
    return {"folders": folders, "loaded": sorted(set(loaded))}
