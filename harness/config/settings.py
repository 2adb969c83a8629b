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
MOST_REPLICAS = 3
"""Standbys of one server at most: each is a whole copy of it."""


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
    """

    name: str = DEFAULT_DATABASE
    migrations: tuple[SourceSpec, ...] | None = None
    """Where the schema comes from, applied in order. Not set: it is looked for. An entry is a text, or a table that also names the
    files which decide the outcome: ``{ source = "command:make db", watch = ["db/**"] }``."""
    seeds: tuple[SourceSpec, ...] = ()
    """Data, applied after the migrations, as further entries of them."""
    extensions: tuple[str, ...] = ()
    """Extensions that the superuser creates before the migrations."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further variables: name, and a template of the address and its parts."""


@dataclass(frozen=True)
class Settings:
    """Everything that a user can decide. Durations are seconds.

    Attributes:
        root: the project's root; relative paths of the settings start here.
        file: the file that the settings were read from; None where there is none.
        origins: key → where its value came from; a key that is missing has its default.
        pg_versions: all that :attr:`pg_version` was set to, in order; it is itself one of them. See
            :mod:`harness.config.versions`.
        by_version: setting → its text with ``{pg_version}`` in it, of those that differ from version to version.
    """

    root: Path
    file: Path | None = None
    root_origin: str = "the working directory"
    backend: str = "auto"
    """What runs the server: ``auto``, ``docker``, ``process`` (local binaries), ``swarm`` (a Docker Swarm), ``external``
    (:attr:`server_url`), or the word of an installed package. ``auto``: a container where a daemon answers, else local or bundled binaries."""
    image: str = DEFAULT_IMAGE
    """The image that containers are started from. Where it is not named, :attr:`pg_version` decides: ``postgres:18``. In a name of your own
    ``{pg_version}`` stands for it: ``registry.example/db:pg{pg_version}``."""
    hosts: tuple[str, ...] = ()
    """Docker hosts that servers are spread over: ``local``, ``context:NAME``, ``ssh://…``, ``tcp://…``, ``unix://…``. Not set: the
    one daemon that is found here. The variable may also be called ``DOCKER_HOSTS``. It stands for ``backend = "docker"``."""
    pg_version: str | None = None
    """The version of PostgreSQL. A server of another version is never taken in its place. A list names several, ``["15", "17"]``: the
    first is used, and all of them by ``run --each-version`` and ``pytest --pg-harness-each-version``."""
    binaries: Path | None = None
    """A folder with ``postgres`` and ``initdb`` in it, for the backend ``process``; ``{pg_version}`` in it stands for the version."""
    server_url: str | None = field(default=None, repr=False)
    """An existing server, as a role that may create databases. An inherited ``DATABASE_URL`` is never taken."""
    databases: tuple[DatabaseSettings, ...] = (DatabaseSettings(),)
    """Further databases of each worker: a table for each, by its name, with ``migrations``, ``seeds``, ``extensions`` and ``env``
    of its own; the keys of the top level are the database ``default``. One without migrations is empty."""
    role: str = "app"
    """The role that the application logs in as. It is no superuser, and owns its databases."""
    role_attributes: tuple[str, ...] = ("CREATEDB",)
    """Attributes of that role, as in ``CREATE ROLE``."""
    scram_iterations: int = 0
    """Rounds of hashing at each log-in (SCRAM-SHA-256). Not set: 4096 where the project is one of the JVM or of Bun, whose drivers
    refuse fewer; else one, which spares a client some milliseconds of each log-in."""
    superuser: bool = False
    """Whether the application's role is a superuser: then nothing keeps its tests apart."""
    migrate_as: str = "role"
    """Who runs the migrations: the application's role, or the superuser. What the ``admin`` makes is the admin's: grant what the
    role needs."""
    isolation: str = "database"
    """What each worker gets: databases in one server, or a server of its own."""
    fresh: str = "reset"
    """What each test gets: its database reset (``reset``), a new clone (``clone``), as the last test left it (``none``), or what
    the word of an installed package says."""
    engine: str = "auto"
    """How a reset puts back: by pages, by a module in the server (``rewind``), or by rows. ``auto``: rewind where it can be had."""
    storage: str = "auto"
    """Where data lies. ``auto``: in memory, where it fits."""
    memory_limit: int | None = None
    """What data in memory may take. Not set: a quarter of what is free."""
    shm_size: int = 256 * 1024**2
    """A container's ``/dev/shm``. Docker's default of 64 MB breaks parallel queries."""
    connections_per_worker: int = 50
    """How many connections each worker may open to each of its databases. Not set: 50, or what fits where a run has several workers."""
    max_connections: int = 500
    """The server's, for all workers of all runs."""
    keep_failed: int = 3
    """How many failed tests' databases are kept as copies. 0: none."""
    port: int = 0
    """Of your own server (``up``). Not set: the one that it had last, where that is free, else any."""
    ttl: float = 15 * 60
    """After this long without use, a server of test runs ends itself."""
    keep_templates: int = 8
    """How many templates stay on a server."""
    template_age: float = 14 * 24 * 3600
    """After this long without use, a template or a baked server may go."""
    keep_baked: int = 12
    """How many baked servers stay on this machine."""
    baked_size: int = 4 * 1024**3
    """What baked servers may take together."""
    baked_repository: str | None = None
    """A repository of a registry that baked images are pulled from before anything is migrated; `bake --push` puts them there."""
    start_timeout: float = 60
    """How long a server may take to start."""
    migration_timeout: float = 300
    """How long the migrations of one database may take."""
    reset_timeout: float = 5
    """How long a reset waits for sessions that are in its way, before it ends them."""
    serial_timeout: float = 300
    """How long a test that is ``serial_only`` waits for the others."""
    lease_timeout: float = 120
    """How long a run waits for connections that other runs have."""
    swarm_constraints: tuple[str, ...] = ()
    """Where the backend ``swarm`` may place servers, in Docker's words: all of them must be met."""
    swarm_labels: Mapping[str, str] = field(default_factory=dict)
    """Further labels of its services, containers, secrets and configs, for people and their tools."""
    allow_url_change: bool = False
    """Go on where something has changed ``DATABASE_URL`` after us."""
    allow_foreign: bool = False
    """Use a ``server_url`` although it holds databases of others, or looks like production."""
    postgres: Mapping[str, str] = field(default_factory=dict)
    """Parameters of PostgreSQL, for servers that are started here."""
    pooler: str = "none"
    """What stands in front of the server: ``pgbouncer``, in transaction mode. ``DATABASE_URL`` leads through it then, and
    ``DATABASE_DIRECT_URL`` to the server itself."""
    preload: tuple[str, ...] = ()
    """Libraries that the server loads when it starts (``shared_preload_libraries``), as extensions with background workers need it."""
    replicas: int = 0
    """How many streaming standbys the server has, to read from: ``lease.replica``, ``DATABASE_REPLICA_URL``. Resets are by rows then."""
    origins: Mapping[str, str] = field(default_factory=dict)
    pg_versions: tuple[str, ...] = ()
    by_version: Mapping[str, str] = field(default_factory=dict)

    @property
    def default(self) -> DatabaseSettings:
        """The database of the top level."""
        return self.databases[0]

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands in front of the server."""
        return self.pooler != "none"

    def origin(self, key: str) -> str:
        """Where the value of a key came from, for messages."""
        return self.origins.get(key, "default")
