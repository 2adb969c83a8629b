"""``up`` again, the short way: everything is there and current.

Apart from :mod:`harness.sandbox.sandbox`, because a person waits for it: nothing is imported that this does not need.
"""

from __future__ import annotations

import logging

from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE
from harness.databases.spec import TemplateSpec
from harness.postgres import databases, names, roles
from harness.servers import drift, inventory
from harness.servers.records import Hint

logger = logging.getLogger("pg_harness.sandbox")


def urls(project: Project, workers: int | None) -> list[str]:
    """The URLs of a person's databases; empty where one is missing or outdated, which ``Sandbox`` looks after.

    Args:
        workers: how many; None: as many as there are.
    """
    settings = project.settings
    more = settings.pooled or settings.replicas
    if settings.server_url is not None or more or not Hint.of(project, "up").path.exists():
        return []
    found = inventory.find(project, purpose="up")
    if found is None:
        return []
    with found:
        if settings.backend not in ("auto", found.info.backend) or drift.changes(found.info, settings):
            return []
        wanted = {
            database.name: TemplateSpec.of(project, database, role=settings.role).fingerprint(found.session)
            for database in settings.databases
        }
        mine: dict[str, dict[str, str]] = {}
        for database in databases.list_ours(found.session, project.id):
            parsed, label = database.parsed, database.label
            if (
                parsed is None
                or parsed.kind is not names.Kind.LEASE
                or not database.sandbox
                or parsed.claiming
            ):
                continue
            name = label.name_in_settings
            if not database.allows_connections:
                return []
            if not parsed.worker.isdigit():
                continue  # a fork: whatever it is made from, `up` has no part in it
            # By its name: the label may be written by whoever owns the database.
            if label.kind == "lease" and label.fingerprint == wanted.get(name):
                mine.setdefault(parsed.worker, {})[name] = database.name
            elif name in wanted:
                return []
        numbers = [str(number) for number in range(1, (workers or len(mine)) + 1)]
        if not numbers or any(mine.get(number, {}).keys() != wanted.keys() for number in numbers):
            return []
        logger.debug("server: using %s; %d of yours are current", found.info.description, len(mine))
        password = roles.derived_password(found.info.dsn.password, settings.role)
        owner = found.info.dsn.with_user(settings.role, password)
        return [owner.with_database(mine[number][DEFAULT_DATABASE]).url for number in numbers]
