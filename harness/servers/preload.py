"""Libraries that a server loads when it starts (setting ``preload``), and what they need to be of use in tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from harness.config.settings import Settings
from harness.errors import ServerStartError
from harness.postgres import known_extensions, names

LIBRARIES = "shared_preload_libraries"

SCHEDULER = "pg_cron"
"""What runs jobs in one database of the server."""

SCHEDULER_DATABASE = "cron.database_name"
"""Which one: it is decided when the server starts."""

_MISSING = re.compile(r'could not (?:access|load) (?:file|library) "(?:[^"]*/)?([^"/]+?)(?:\.so|\.dylib)?"')


def postgres(settings: Settings, project: str) -> dict[str, str]:
    """The user's parameters of PostgreSQL, joined with what ``preload`` needs where the user says nothing of it."""
    given = dict(settings.postgres)
    if not settings.preload:
        return given
    before = [name.strip() for name in given.get(LIBRARIES, "").split(",") if name.strip()]
    given[LIBRARIES] = ",".join(dict.fromkeys([*before, *settings.preload]))
    if SCHEDULER in settings.preload:
        given.setdefault(SCHEDULER_DATABASE, names.scheduler(project))
        # Else it logs in over TCP as whoever made the job, without a password.
        given.setdefault("cron.use_background_workers", "on")
    if "timescaledb" in settings.preload:
        given.setdefault("timescaledb.telemetry_level", "off")
    return given


def scheduling(settings: Settings) -> bool:
    """Whether the server has a scheduler, whose database nobody has named."""
    return SCHEDULER in settings.preload and SCHEDULER_DATABASE not in settings.postgres


@contextmanager
def explaining(settings: Settings) -> Iterator[None]:
    """Say of a server that did not start which library it lacks, and where that is to be had.

    Raises:
        ServerStartError: the block's, with that.
    """
    try:
        yield
    except ServerStartError as error:
        if (said := _lacking(error, settings)) is None:
            raise
        raise ServerStartError(said, log_tail=error.log_tail) from error


def _lacking(error: ServerStartError, settings: Settings) -> str | None:
    missing = [name for name in _MISSING.findall(error.log_tail) if name in settings.preload]
    if not missing:
        return None
    name = missing[0]
    told = f"which it was told to load (setting preload, from {settings.origin('preload')})"
    lines = [f"the server has no library {name!r}, {told}, so it did not start."]
    right = known_extensions.ALIASES.get(name, name)
    if right != name:
        lines.append(f"It is called {right!r}.")
    lines += known_extensions.places(right, settings.pg_version or "N")
    if len(lines) == 1:
        lines.append(
            "Install the extension's package for this version of PostgreSQL, name an image that has it (setting image), or leave it "
            "out of preload."
        )
    return " ".join(lines)
