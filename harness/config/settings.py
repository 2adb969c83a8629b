"""Settings as one frozen value; every key knows where its value came from.

Order, the later wins: defaults, ``[tool.pg-harness]`` in ``pyproject.toml`` or a ``pg-harness.toml``,
``PGHARNESS_*`` variables, overrides (flags, or arguments of :meth:`harness.Harness.open`).
Only this module and the edges (cli, pytest plugin) know the environment; below, values are passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_IMAGE = "postgres:17"
IMAGE_OF = "postgres:{}"
"""The image of a version."""
DEFAULT_DATABASE = "default"


@dataclass(frozen=True)
class SourceSpec:
    """One entry of ``migrations``, not yet read.

    Attributes:
        kind: the word before the colon, one of :func:`harness.migrations.registry.kinds`.
        argument: what follows the colon; empty where there is none.
        watch: globs, relative to the root, of the files that decide the outcome; None where the user
            gave none.
        text: as written, for messages.
        origin: where it was read, for messages.
        key: the setting that holds it, for messages.
    """

    kind: str
    argument: str
    watch: tuple[str, ...] | None = None
    text: str = ""
    # The same entry in another file makes the same template.
    origin: str = field(default="", compare=False)
    key: str = field(default="migrations", compare=False)


@dataclass(frozen=True)
class DatabaseSettings:
    """One database of each worker.

    Attributes:
        name: ``"default"`` for the top level, else the name in ``[tool.pg-harness.databases.NAME]``.
        migrations: the sources in order; None where nothing is configured (then they are detected).
        seeds: the last entries of ``migrations``: data, applied after the schema.
        extensions: created by the admin before the migrations.
        env: further variables, name → template (``"{sqlalchemy}"``).
    """

    name: str = DEFAULT_DATABASE
    migrations: tuple[SourceSpec, ...] | None = None
    seeds: tuple[SourceSpec, ...] = ()
    extensions: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Everything that a user can decide. Durations are seconds.

    Attributes:
        root: the project's root; relative paths of the settings start here.
        file: the file that the settings were read from; None where there is none.
        origins: key → where its value came from; a key that is missing has its default.
    """

    root: Path
    file: Path | None = None
    root_origin: str = "the working directory"
    backend: str = "auto"
    image: str = DEFAULT_IMAGE
    """Where it is not named, :attr:`pg_version` decides: ``postgres:18``."""
    pg_version: str | None = None
    """Of PostgreSQL: ``"17"`` or ``"17.2"``. A server of another version is never taken in its place."""
    binaries: Path | None = None
    """A folder with ``postgres`` and ``initdb`` in it (process backend)."""
    server_url: str | None = field(default=None, repr=False)
    databases: tuple[DatabaseSettings, ...] = (DatabaseSettings(),)
    role: str = "app"
    role_attributes: tuple[str, ...] = ("CREATEDB",)
    scram_iterations: int = 0
    """Rounds of hashing at each log-in (SCRAM-SHA-256). 0: 4096 where the project is one of the JVM or of Bun, whose drivers
    refuse fewer; else one, which spares a client some milliseconds of each log-in."""
    superuser: bool = False
    migrate_as: str = "role"
    """``role`` or ``admin``: who runs the migrations. What the admin makes is the admin's: grant what the role needs."""
    isolation: str = "database"
    fresh: str = "reset"
    """The word of a strategy, one of :func:`harness.databases.freshness.strategies`."""
    engine: str = "auto"
    """``rewind`` (by pages, by a module in the server), ``rows``, or ``auto``: rewind where it can be had."""
    storage: str = "auto"
    memory_limit: int | None = None
    """Bytes that data in memory may take; None: a quarter of what is free."""
    shm_size: int = 256 * 1024**2
    """Bytes of a container's ``/dev/shm`` (Docker's default of 64 MB breaks parallel queries)."""
    connections_per_worker: int = 50
    """Where it is not set, a run of several workers takes what fits (``harness.runs.budget``)."""
    max_connections: int = 500
    keep_failed: int = 3
    port: int = 0
    """Of a person's server (``up``). 0: the one that it had last, where that is free, else any."""
    ttl: float = 15 * 60
    keep_templates: int = 8
    template_age: float = 14 * 24 * 3600
    keep_baked: int = 12
    """How many baked servers (``isolation = "server"``) stay on this machine."""
    baked_size: int = 4 * 1024**3
    """Bytes that baked servers may take together."""
    start_timeout: float = 60
    migration_timeout: float = 300
    reset_timeout: float = 5
    serial_timeout: float = 300
    lease_timeout: float = 120
    """How long a run waits for connections that other runs have."""
    allow_url_change: bool = False
    allow_foreign: bool = False
    """Use a ``server_url`` although it holds databases of others, or looks like production."""
    postgres: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def default(self) -> DatabaseSettings:
        """The database of the top level."""
        return self.databases[0]

    def origin(self, key: str) -> str:
        """Where the value of a key came from, for messages."""
        return self.origins.get(key, "default")
