"""The ports that every backend fills: its servers, and the snapshots that servers are started from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable


@dataclass(frozen=True)
class ServerRequest:
    """What server is wanted.

    Attributes:
        project: ten hex digits of the checkout, see :func:`harness.config.project.project_id`.
        purpose: ``"up"`` (a person's: on disk, survives a reboot and ``docker stop``) or ``"run"``
            (a test run's: auto-removed, kept warm for ``ttl``), ``"run-pg17"`` (one of another version beside it);
            with ``isolation = "server"`` also ``"run-<n>"``. At most one server per (project, purpose).
        server_id: a fresh UUID; the server is started with ``-c harness.server_id=<it>``.
        root: real path of the checkout, for labels and people.
        password: of the superuser ``postgres``, generated; reaches the server through a file that only it
            can read, never through a command line, a label or a log.
        settings: server settings, name → value, already complete (throwaway data, connections, user's).
        storage: ``"memory"`` or ``"disk"``, already decided or ``"auto"`` for the backend to decide.
        ttl: seconds after which the server ends itself once nobody has held its sign of life; None: never.
        snapshot: what to start from instead of an empty cluster: a baked directory (process) or image (docker),
            see :mod:`harness.servers.port`.
        port: the one to listen on where it is free; 0: any.
        port_named: nothing but that port will do: a user has named it.
        memory: bytes that data in memory may take; None: the backend's own share of what is free.
        made_with: the settings that decided this start, see :mod:`harness.servers.drift`; noted with the server.
        host: word of the Docker host to prefer, where the backend has several; empty: any.
        files: machine, as ``uname -m`` says → name → what the server may want to read, see :meth:`Backend.shelf`: put
            there at once where that is cheaper than later.
        replicas: how many standbys it will have, see :meth:`Backend.standbys`.
    """

    project: str
    purpose: str
    server_id: str
    root: Path
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    storage: str = "auto"
    ttl: float | None = None
    start_timeout: float = 60
    snapshot: str | None = None
    port: int = 0
    port_named: bool = False
    memory: int | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)
    host: str = ""
    replicas: int = 0

    @property
    def throwaway(self) -> bool:
        """Whether nobody expects the data to be there after a reboot."""
        return self.ttl is not None or self.purpose != "up"


def watching(purpose: str) -> Mapping[str, str]:
    """Variables of the watcher: on a person's server what the application does is a sign of life too, while of a
    test run only the run's own lock is: a child that hangs must not keep its server for ever."""
    return {"PGHARNESS_USE": "yes"} if purpose == "up" else {}


def free_port(address: str) -> int:
    """A port there on which nobody listens just now."""
    # Here: who only finds a server needs none.
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


OF_VERSION = "run-pg"
"""What the purpose of a test runs' server begins with that stands beside one of another version: ``"run-pg17"``."""


OF_AGENTS = "mcp"
"""The purpose of the server that ``pg-harness mcp`` has agents' databases on. Where others use it and other settings started it, there is
a second one, ``"mcp-…"``."""


def of_agents(purpose: str) -> bool:
    """Whether agents' databases are on servers of this purpose."""
    return purpose.partition("-")[0] == OF_AGENTS


def private(purpose: str) -> bool:
    """Whether one process alone, by itself or by its workers, uses servers of this purpose: of a worker, of a bake."""
    return purpose.startswith(("run-", "bake-")) and not purpose.startswith(OF_VERSION)


@dataclass(frozen=True)
class ServerInfo:
    """A server that runs (or ran), as its backend knows it.

    Attributes:
        dsn: the superuser's address of the maintenance database ``postgres``.
        server_id: what ``current_setting('harness.server_id')`` must answer; empty for a server that is not ours.
        backend: the backend's name, see :mod:`harness.servers.registry`.
        storage: ``"memory"``, ``"disk"``, or ``"unknown"`` for a server that is not ours.
        handle: what the backend finds it by again: container id, data directory, or the masked URL.
        binaries: local folder with ``psql`` and the rest, where there is one.
        description: for people, for instance ``"postgres:17 in container 3f9a1c02be"``.
        project: the checkout that it belongs to; empty where it is unknown.
        root: that checkout's path, for people; empty where it is unknown.
        made_with: the settings that decided its start; empty where they are unknown.
        host: word of the Docker host that it runs on, where the settings name several; empty: the only daemon.
        standbys: the port of each standby that it may have, at the same address; whether one is there is not said.
    """

    dsn: Dsn
    server_id: str
    backend: str
    purpose: str
    storage: str
    handle: str
    binaries: str | None = None
    ttl: float | None = None
    description: str = ""
    project: str = ""
    root: str = ""
    made_with: Mapping[str, str] = field(default_factory=dict, hash=False)
    host: str = ""
    standbys: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.ours:
            object.__setattr__(self, "dsn", replace(self.dsn, scram=True))

    @property
    def ours(self) -> bool:
        """Whether it holds nothing but what we put there, and ends by us; else others use it and look after it."""
        return bool(self.server_id)


class Finding(NamedTuple):
    """One line of what ``doctor`` tells of a backend.

    Attributes:
        state: ``"ok"``, ``"note"`` (worth knowing) or ``"fail"``.
        detail: what was found, in one line.
        remedies: what to do about it, one line each.
    """

    state: str
    detail: str
    remedies: Sequence[str] = ()


class Backend(Protocol):
    """What can find, start and stop servers of one kind.

    One is made by what its :class:`harness.servers.registry.BackendKind` names, and asks nobody anything before one
    of these is called. A class that derives from it inherits an answer for what it does not do.

    Attributes:
        name: the word that stands for it in the settings, and in :attr:`ServerInfo.backend`.
    """

    name: str

    def available(self) -> str:
        """What it would start servers with, for people; starts nothing.

        Raises:
            BackendUnavailable: nothing here can start one; it says what was looked at and what to do.
        """
        ...

    def examine(self) -> Iterator[Finding]:
        """As :meth:`available`, in detail: all that is worth knowing before a server is started.

        Raises:
            BackendUnavailable: as :meth:`available`.
        """
        yield Finding("ok", self.available())

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running server of that identity, from the vendor's own records (labels, pid files); None if none runs."""
        ...

    def start(self, request: ServerRequest) -> ServerInfo:
        """Start a server (or start a stopped one of the same identity again, for ``up``) and wait until it answers.

        Raises:
            BackendUnavailable: nothing here can start it. ServerStartError: it did not become ready.
        """
        ...

    def stop(self, info: ServerInfo) -> None:
        """End the server and remove its data. That it is already gone is success."""
        ...

    def halt(self, info: ServerInfo) -> None:
        """End the server and keep its data: the next :meth:`start` of the same identity goes on with it, for ``up``.

        Raises:
            BackendError: its data would be gone with it, or it does not end.
        """
        raise BackendError(
            f"{info.description}: a server of the backend {info.backend} cannot be stopped with its data kept"
        )

    def list(self, project: str | None) -> list[ServerInfo]:
        """All servers of the checkout, running or stopped; of all checkouts with None."""
        ...

    def watched(self, info: ServerInfo) -> bool:
        """Whether the dead-man's switch of a running server with a TTL is alive, as far as can be told.

        Raises:
            BackendError: whoever knows does not tell.
        """
        return True

    def watch(self, info: ServerInfo) -> None:
        """Start that switch again, unless it is alive; of several callers at once, one does.

        Raises:
            BackendError: it cannot be started.
        """

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the server's log, without line ends."""
        ...

    def fate(self, info: ServerInfo) -> str:
        """What has become of a server that does not answer any more, in one sentence for people; empty where that is unknown.

        Raises:
            BackendError: whoever knows does not tell.
        """
        return ""

    def psql(
        self, info: ServerInfo, database: str, words: Sequence[str], *, user: str, terminal: bool
    ) -> Sequence[str] | None:
        """The command line that runs psql where the server is, for machines that have none; None: it cannot.

        Args:
            words: psql's own arguments.
            user: role to log in as, without a password.
            terminal: whether a person types.
        """
        return None

    def free_memory(self) -> int:
        """Bytes of memory that its servers may take; 0 where it is unknown.

        Raises:
            BackendError: whoever knows does not tell.
        """
        return 0

    def hosts(self) -> Sequence[HostState]:
        """The hosts that its servers are spread over, each with its state; none where there is nothing to choose from."""
        return ()

    def silent(self) -> Mapping[str, str]:
        """Word → why, of those of its hosts that could not be asked so far: they may hold servers all the same."""
        return {}

    def places(
        self, workers: Sequence[str], *, need: int, placed: Mapping[str, str] | None = None
    ) -> Mapping[str, str]:
        """Worker → word of the host that its server should be on; empty where there is nothing to choose from.

        Args:
            need: bytes of memory of one server.
            placed: as decided before, which stays as it is.

        Raises:
            BackendError: there is no room for them. BackendUnavailable: no host can be used.
        """
        return {}

    def spread(self, snapshot: Snapshot, words: Sequence[str]) -> None:
        """Bring a snapshot to these hosts, where servers will be started from it; a host that cannot take it is left out."""
        return

    def shelf(self, info: ServerInfo) -> Shelf:
        """Where the process of a server that runs can read files that we put there.

        Raises:
            BackendError: nowhere; the text says why.
        """
        raise BackendError(f"the backend {self.name} brings no files to its servers")

    def standbys(self, info: ServerInfo) -> StandbyPlace:
        """Where standbys of a server run, see :attr:`ServerRequest.replicas`.

        Raises:
            BackendError: nowhere; the text says why.
        """
        raise BackendError(f"the backend {self.name} starts no standbys: leave the setting `replicas` out")

    def folders(self) -> Sequence[Path]:
        """What it keeps on this machine for this user beside the folders of state and cache; for ``uninstall``."""
        return ()

    def snapshots(self) -> SnapshotStore | None:
        """Where its servers' data is kept, to start others from it; None: it cannot keep any."""
        return None


COPY_LIMIT = 3600.0
"""Seconds that a copy of a server's data may take."""


class StandbyPlace(Protocol):
    """Where the standbys of one server run: beside it, as its own user, until it ends. They are numbered from 1."""

    def primary(self) -> Mapping[str, str]:
        """How a standby reaches its primary, as parameters of libpq; no secret is among them."""
        ...

    def copy(self, number: int) -> None:
        """Copy the server's data, while it runs: the caller has told it that a backup is made. What was there before is removed.

        Raises:
            BackendError: there is no room for it.
        """
        ...

    def launch(self, number: int, settings: Mapping[str, str], label: str | None) -> None:
        """Start the postmaster on its data, unless it runs; do not wait until it answers.

        Args:
            settings: beyond those of the server.
            label: of the backup that its data was just copied in; None: it goes on from where it was.

        Raises:
            BackendError: it cannot be started.
        """
        ...

    def running(self, number: int) -> bool:
        """Whether its postmaster runs."""
        ...

    def listens(self, number: int) -> bool:
        """Whether it is its postmaster that listens on its port."""
        ...

    def end(self, number: int) -> None:
        """End its postmaster at once; that it does not run is success. Its data stays."""
        ...

    def log(self, number: int) -> str:
        """The last lines of its log; empty where there is none."""
        ...

    def ports(self) -> tuple[int, ...]:
        """Of each of them, as they are by now: another process may have had one moved."""
        ...

    def move(self, number: int) -> int:
        """Give it another port, because somebody else has its own; return that.

        Raises:
            BackendError: it cannot have another one.
        """
        ...


@dataclass(frozen=True)
class HostState:
    """One of several Docker hosts, for people.

    Attributes:
        word: what the settings call it.
        version: of its daemon; empty where that does not answer.
        processors: of its machine.
        memory: bytes that further servers may take; 0: unknown.
        servers: containers of ours that run there.
        state: ``"ok"``, or why it is left out.
    """

    word: str
    version: str = ""
    processors: int = 0
    memory: int = 0
    servers: int = 0
    state: str = "ok"

    @property
    def ok(self) -> bool:
        """Whether servers can be started there."""
        return self.state == "ok"


def table(states: Sequence[HostState]) -> list[str]:
    """One line for each host, in columns: word, daemon, processors, free memory, servers of ours, state."""
    wide = max((len(each.word) for each in states), default=0)
    version = max((len(each.version) for each in states), default=0)
    return [
        f"{each.word:<{wide}}  "
        + (
            f"Docker {each.version:<{version}}  {each.processors:>3} processors  {each.memory >> 20:>7} MB free  "
            f"{each.servers:>3} of ours  ok"
            if each.ok
            else f"left out: {each.state}"
        )
        for each in states
    ]


@dataclass(frozen=True)
class Shelf:
    """A folder for files that the process of a server reads, and that only its owner, or root, can change.

    Attributes:
        folder: as that process resolves it: absolute, or from its data directory.
        put: puts a file there, by name; one of that name is replaced in one act. It raises :class:`BackendError` where
            that fails.
        remove: removes one of that name, if it is there and is this server's alone; likewise.
    """

    folder: str
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None] = lambda name: None


@dataclass(frozen=True)
class Snapshot:
    """The data of a migrated server, kept to start others from it.

    Attributes:
        ref: what :attr:`ServerRequest.snapshot` takes: a directory, or an image's id.
        key: 24 hex digits of all that decides what it holds.
        backend: the name of the backend that starts servers from it.
        size: bytes that it takes beyond what is there anyway.
        created, used: seconds since 1970.
        facts: what was baked, for people: project, databases, server version.
        name: what people call it; empty: by its ref.
        shared: where else it lies, for people: ``"registry.example/pg-harness@sha256:…"``; empty: nowhere that is known.
        fetched: it came from there just now, and nobody has started from it here: whether it holds what it says is not
            known, and it is not kept before :meth:`SnapshotStore.touch`.
    """

    ref: str
    key: str
    backend: str
    size: int
    created: float
    used: float
    facts: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    shared: str = ""
    fetched: bool = False


@dataclass(frozen=True)
class Shared:
    """A snapshot where other machines find it.

    Attributes:
        repository: for instance ``"registry.example/pg-harness"``.
        digest: of its content, as the registry tells it.
        platforms: what it is for, as ``"linux/amd64"``; empty where that is not told.
    """

    repository: str
    key: str
    digest: str
    platforms: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """What it is pulled by."""
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True)
class Origin:
    """What a snapshot is baked on.

    Attributes:
        major: the server's major version, known before any server runs.
        text: all else that makes a data directory fit: build, platform, C library, initdb's options.
    """

    major: int
    text: str


STOP_PATIENCE = 120.0
"""Seconds that the clean shutdown of what is kept may take: its checkpoint writes everything."""

CUT_OFF = 15 * 60
"""Seconds after which something half-made is nobody's work in progress."""


class SnapshotStore(Protocol):
    """Where one backend keeps its snapshots.

    Attributes:
        from_disk: whether only data on disk can be kept.
        repository: where snapshots are shared with other machines; empty: nowhere.
    """

    from_disk: bool
    repository: str = ""

    def origin(self) -> Origin:
        """What a server of this backend would be started from now.

        Raises:
            BackendUnavailable: nothing could be started.
        """
        ...

    def find(self, key: str) -> Snapshot | None:
        """The finished snapshot of that key, here or where it is shared."""
        ...

    def here(self, key: str) -> Snapshot | None:
        """The same on this machine alone."""
        return self.find(key)

    def keep(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> Snapshot:
        """Stop a server cleanly and keep its data as a snapshot; the server is gone afterwards.

        Raises:
            ServerStartError: it did not stop cleanly. BackendError: the disk is full, the daemon refused.
        """
        ...

    def keep_later(self, info: ServerInfo, key: str, facts: Mapping[str, str]) -> bool:
        """Ask the switch of a server with a TTL to keep its data when that is over; False where there is none that can.

        Raises:
            BackendError: it cannot be asked.
        """
        return False

    def touch(self, snapshot: Snapshot) -> None:
        """Note that it was used now; eviction goes by that."""
        ...

    def list(self) -> Sequence[Snapshot]:
        """All finished snapshots of this user."""
        ...

    def remove(self, snapshot: Snapshot) -> bool:
        """Remove it; False where it is in use. Servers that were started from it go on."""
        ...

    def refuse(self, snapshot: Snapshot, why: str) -> None:
        """It does not hold what it says: see that nobody starts from it again, nor fetches it.

        Args:
            why: in one clause, for people.
        """
        self.remove(snapshot)

    def push(self, snapshot: Snapshot, *, replace: bool) -> tuple[Shared, bool]:
        """Put it where other machines find it; nothing is done where one of its key is there already.

        Args:
            replace: put it in that one's place.

        Returns:
            What lies there now, and whether it was pushed by this call.

        Raises:
            BackendUnavailable: it cannot be; the text says why, and what to do.
        """
        raise BackendUnavailable("snapshots of this backend cannot be shared")

    def examine(self, key: Callable[[], str]) -> Iterator[Finding]:
        """What ``doctor`` tells of the place where they are shared.

        Args:
            key: gives the key of today's migrations.
        """
        return iter(())

    def leftovers(self) -> Sequence[str]:
        """Remove what bakes and starts that were cut off have left; return it, for people."""
        ...
