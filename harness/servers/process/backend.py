"""Servers from local binaries: a postmaster of our own, on a copied data directory."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path

from harness.config import own_folder, processes
from harness.config.project import Project, file_lock
from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable, ServerStartError
from harness.servers import defaults, handshake, sharing
from harness.servers import memory as memory_
from harness.servers.port import (
    Backend,
    ServerInfo,
    ServerRequest,
    Shelf,
    SnapshotStore,
    StandbyPlace,
    free_port,
    private,
    watching,
)
from harness.servers.process import cluster as cluster_
from harness.servers.process import folders
from harness.servers.process.binaries import Binaries, choose
from harness.servers.process.record import (
    ADDRESS,
    NAME,
    Record,
    folder_name,
    listening_in,
    log_tail,
    open_log,
)
from harness.servers.process.user import COMMON, ServerUser, enterable_binaries, make_folder, put

logger = logging.getLogger("pg_harness.servers.process")

_ATTEMPTS = 10
"""How many ports are tried: between choosing and binding, somebody else may take one."""


class ProcessBackend(Backend):
    """Servers as processes of this machine.

    Args:
        environ: where binaries are looked for (``PATH``).
        state: folder for data on disk.
        cache: folder for initialised directories.
        binaries: the user's own folder of programs.
        version: ``"17"``; None: any.
        memory_limit: bytes that data in memory may take; None: a quarter of what is free.
        memory: folder in memory; None: ``/dev/shm`` where there is one.
    """

    name = "process"

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        state: Path,
        cache: Path,
        binaries: Path | None = None,
        version: str | None = None,
        memory_limit: int | None = None,
        memory: Path | None = None,
    ) -> None:
        self._environ = environ
        self._state = state
        self.cache = cache
        self._found: Binaries | None = None
        self._folder = binaries
        self._version = version
        self._limit = memory_limit
        self._memory = memory or memory_.shared_memory()

    @classmethod
    def of(cls, project: Project, *, timeout: float) -> Backend:
        """The backend as the settings describe it; nobody has to answer it in time."""
        settings = project.settings
        return cls(
            project.environ,
            state=project.state,
            cache=project.cache,
            binaries=settings.binaries,
            version=settings.pg_version,
            memory_limit=settings.memory_limit,
        )

    def available(self) -> str:
        """The version and place of the programs.

        Raises:
            BackendUnavailable: as :meth:`binaries`.
        """
        found = self.binaries()
        return f"PostgreSQL {found.version} in {found.folder}"

    def binaries(self) -> Binaries:
        """The programs to use.

        Raises:
            BackendUnavailable: there are none, or this system cannot run them.
        """
        if self._found is None:
            self._found = choose(self._environ, folder=self._folder, version=self._version)
        return self._found

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        """The running server of that identity, by the records in our folders and PostgreSQL's pid file."""
        for folder, record in self._records(project, purpose):
            if record.running(folder):
                return _info(folder, record)
        return None

    def start(self, request: ServerRequest) -> ServerInfo:
        """Copy an initialised directory and start a postmaster on it; for ``up``, one that was stopped again.

        Raises:
            BackendUnavailable: no binaries. ServerStartError: it did not become ready.
        """
        user = ServerUser.find()
        for folder, record in self._records(request.project, request.purpose):
            # One of a single owner, who was killed: nobody knows how far he came.
            if record.running(folder) and not private(request.purpose):
                return _wait(folder, record, request)
            if request.purpose == "up" and record.whole and (folder / "data" / "PG_VERSION").exists():
                logger.info("process: the server in %s was stopped: starting it again, with its data", folder)
                if record.standbys:
                    # Those that it is to have no more.
                    for standby in _end_standbys(folder, beyond=request.replicas):
                        shutil.rmtree(standby, ignore_errors=True)
                return self._launch(folder, _renewed(record, request), request, user)
            # That one, or what a server left that was killed together with its watcher.
            _remove(folder)
        cache = user.reachable(self.cache, "caches")
        binaries = enterable_binaries(self.binaries(), user, cache)
        if request.snapshot is not None:
            cluster = cluster_.baked(request.snapshot)
        else:
            cluster = cluster_.cached(binaries, user, cache)
        storage, parent = self._place(request, user)
        folder = parent / folder_name(request.project, request.purpose, request.server_id)
        record = Record(
            project=request.project,
            purpose=request.purpose,
            server_id=request.server_id,
            root=str(request.root),
            password=request.password,
            storage=storage,
            binaries=str(binaries.folder),
            version=binaries.version,
            ttl=request.ttl,
            made_with=request.made_with,
            standbys=_ports(request),
        )
        try:
            make_folder(folder, user)
            record.write(folder)
            # Half a copy is nobody's data: a start that finds `data` takes it for a stopped server's.
            cluster_.copy(cluster.data, folder / "copied", user)
            cluster_.change_password(folder / "copied", cluster.password, record.password)
            (folder / "copied").rename(folder / "data")
            info = self._launch(folder, record, request, user)
        except BaseException as error:
            _remove(folder)
            if isinstance(error, OSError):
                raise ServerStartError(
                    f"the server's files cannot be written in {folder}: {error.strerror}"
                ) from error
            raise
        where = "in memory" if storage == "memory" else "on disk"
        logger.info(
            "process: started %s (%s), data %s (%s)", info.description, binaries.origin, where, folder
        )
        return info

    def stop(self, info: ServerInfo) -> None:
        """End the postmaster and its watcher, and remove the folder."""
        folder = Path(info.handle)
        if Record.read(folder) is not None:
            _remove(folder)

    def halt(self, info: ServerInfo) -> None:
        """End the postmaster by a checkpoint; its watcher first, which would remove the folder."""
        folder = Path(info.handle)
        record = Record.read(folder)
        if record is None:
            return
        record.kill_watcher(folder)
        if not record.interrupt(folder, patience=60):
            raise BackendError(f"{info.description} does not end within 60 s: its log is {folder / 'log'}")
        if record.standbys:
            from harness.servers.process import standbys  # as in `_remove`

            # They end by themselves, each from a point that it goes on from; one that is started before that ends again.
            for standby in standbys.of(folder):
                standbys.wait(standby, patience=10)

    def watched(self, info: ServerInfo) -> bool:
        """By its record; of a server that has ended there is nothing to watch."""
        folder = Path(info.handle)
        record = Record.read(folder)
        return record is None or not record.running(folder) or record.watched(folder)

    def watch(self, info: ServerInfo) -> None:
        """Start it beside the postmaster, as at the server's own start."""
        folder = Path(info.handle)
        with file_lock(self._state / "switch.lock", timeout=30, waiting_for="starting a server's switch"):
            record = Record.read(folder)
            if record is None or self.watched(info):
                return
            try:
                self._run_launcher(folder, record, handshake.life_key(info), ServerUser.find())
            except OSError as error:
                raise BackendError(f"it cannot be started in {folder}: {error.strerror}") from error

    def list(self, project: str | None) -> list[ServerInfo]:
        """All servers of ours, running or stopped."""
        return [_info(folder, record) for folder, record in self._records(project, None)]

    def logs(self, info: ServerInfo, follow: bool) -> Iterator[str]:
        """Lines of the server's log; while following, until the server has ended."""
        folder = Path(info.handle)
        try:
            with open_log(folder) as file:
                while True:
                    record = Record.read(folder)
                    running = record is not None and record.running(folder)
                    for line in file:
                        yield line.rstrip("\n")
                    if not follow or not running:
                        return
                    time.sleep(0.2)
        except OSError:
            return

    def free_memory(self) -> int:
        """Bytes of memory that are free on this machine, cut by what the control groups leave; 0: unknown."""
        return memory_.free_memory()

    def folders(self) -> Sequence[Path]:
        """Those in memory; and root's, where the servers' own user may not enter the usual ones."""
        try:
            user = ServerUser.find()
        except BackendUnavailable:
            return ()
        places = {user.reachable(self.cache, "caches"), user.reachable(self._state / "servers", "servers")}
        places.add(user.reachable(self._state / "poolers", "poolers"))
        common = [place for place in places if place.is_relative_to(COMMON)]
        memory = folders.in_memory(self._memory, user) if self._memory is not None else ()
        return [*common, *memory]

    def snapshots(self) -> SnapshotStore:
        """Data directories in the cache."""
        # Here: only what bakes, or starts from a snapshot, needs it.
        from harness.servers.process.snapshots import ProcessSnapshots

        return ProcessSnapshots(self)

    def shelf(self, info: ServerInfo) -> Shelf:
        """The server's own folder: the package may lie where the server's user may not enter.

        Raises:
            BackendError: the folder is gone, or not ours.
        """
        folder = Path(info.handle)
        try:
            if why := own_folder.distrust(folder, folders.owners(ServerUser.find())):
                raise BackendError(f"the folder {folder} is not believed: {why}")
            if os.statvfs(folder).f_flag & os.ST_NOEXEC:
                # Nothing can be loaded from there: /dev/shm of a container is mounted so.
                user = ServerUser.find()
                folder = make_folder(user.reachable(self.cache, "caches") / "modules", ServerUser(), 0o755)
                if not user.may_enter(folder):
                    raise BackendError(
                        f"nothing can be loaded from {info.handle}, nor by {user.name} from {folder}"
                    )
                return Shelf(str(folder), partial(_put, folder))
        except OSError as error:
            raise BackendError(f"the server's folder {folder}: {error.strerror}") from error
        # From the data directory: a server that is started from this one's data finds the file beside its own.
        return Shelf("..", partial(_put, folder), partial(_take_away, folder))

    def standbys(self, info: ServerInfo) -> StandbyPlace:
        """In the server's own folder."""
        # Here: most servers have none.
        from harness.servers.process.standbys import ProcessStandbys

        return ProcessStandbys(Path(info.handle))

    def _place(self, request: ServerRequest, user: ServerUser) -> tuple[str, Path]:
        """Storage, and the folder in which the server's own is made."""
        storage, shared = "disk", self._memory
        if shared is not None and request.storage != "disk":
            room = 0
            if request.storage == "auto" and request.throwaway:
                room = min(memory_.budget(self._limit), shutil.disk_usage(shared).free)
            storage = memory_.storage(request.storage, room, throwaway=request.throwaway)
            if storage == "memory":
                return storage, folders.make_in_memory(shared, user)
        disk = make_folder(user.reachable(self._state / "servers", "servers"), user, 0o711)
        if why := own_folder.distrust(disk, folders.owners(user)):
            raise BackendError(f"no server's data is put into {disk}: {why}. Remove or rename it")
        return "disk", disk

    def _records(self, project: str | None, purpose: str | None) -> Iterator[tuple[Path, Record]]:
        try:
            user = ServerUser.find()
        except BackendUnavailable:
            return  # Nor has anybody been found when a server was started.
        parents = [self._state / "servers", COMMON / "servers"]
        parents = [parent for parent in parents if folders.believed(parent, user)]
        if self._memory is not None:
            parents += folders.in_memory(self._memory, user)
        for parent in parents:
            try:
                found = sorted(parent.iterdir())
            except OSError:
                continue
            for folder in found:
                record = Record.read(folder) if folders.believed(folder, user) else None
                if record is None or project not in (None, record.project):
                    continue
                if purpose in (None, record.purpose):
                    yield folder, record

    def _launch(self, folder: Path, record: Record, request: ServerRequest, user: ServerUser) -> ServerInfo:
        # The same port as before, if it is free: a person's URLs stay the same.
        chosen = request.port if request.port_named else record.port or request.port
        for attempt in range(1 if request.port_named else _ATTEMPTS):
            port = chosen if chosen and attempt == 0 else free_port(ADDRESS)
            started = self._launch_once(folder, replace(record, port=port, ttl=request.ttl), request, user)
            try:
                return _wait(folder, started, request)
            except ServerStartError as error:
                if "could not create any TCP/IP sockets" not in error.log_tail:
                    raise
                started.kill_watcher(folder)
        if request.port_named:
            raise ServerStartError(
                f"port {chosen} (setting port) is in use on {ADDRESS}: name another, or none",
                log_tail=log_tail(folder),
            )
        raise ServerStartError(
            f"no port on {ADDRESS} could be bound in {_ATTEMPTS} attempts", log_tail=log_tail(folder)
        )

    def _launch_once(self, folder: Path, record: Record, request: ServerRequest, user: ServerUser) -> Record:
        settings = defaults.complete(
            request.settings,
            storage=record.storage,
            server_id=record.server_id,
            replicas=len(record.standbys),
        )
        settings |= {
            "listen_addresses": ADDRESS,
            "port": str(record.port),
            # Socket paths are limited to 107 bytes; nothing of ours needs one.
            "unix_socket_directories": "",
        }
        if (
            record.storage == "disk"
            and sharing.clones(record.version)
            and "file_copy_method" not in settings
            and sharing.can(folder)
        ):
            # Where the file system cannot, the server's copies are ours to leave alone.
            settings["file_copy_method"] = "clone"
        if record.storage == "memory":
            # Kept with the data: a postmaster killed with SIGKILL left its segments in /dev/shm for ever.
            settings.setdefault("dynamic_shared_memory_type", "mmap")
        put(folder / "settings", defaults.render(settings).encode(), mode=0o600, user=user)
        put(folder / "log", b"", mode=0o600, user=user)
        user.write_secret(folder / "pgpass", f"*:*:*:postgres:{record.password}")
        return self._run_launcher(folder, replace(record, pid=0), handshake.life_key(request), user)

    def _run_launcher(self, folder: Path, record: Record, key: int, user: ServerUser) -> Record:
        """Start the postmaster of a record, unless it runs, and its switch, where it has a TTL; note their numbers."""
        for name in ("launch.sh", "watch.sh"):
            # A copy: the package may lie where the server's user may not enter.
            put(folder / name, resources.files("harness.servers").joinpath("scripts", name).read_bytes())
        command: list[str | Path] = ["/bin/sh", folder / "launch.sh", record.binaries, folder / "data"]
        command += [folder / "log", folder / "settings"]
        if record.ttl is not None:
            command += [str(key), f"{record.ttl:g}", folder, *([str(record.pid)] if record.pid else ())]
        watcher = {"PGHOST": ADDRESS, "PGPORT": str(record.port), "PGPASSFILE": str(folder / "pgpass")}
        watcher |= watching(record.purpose)
        try:
            # Where it listens is known to all before it does.
            replace(record, pid=0, watcher=0).write(folder)
            # A server that somebody starts inside a run (`up`, pytest) is not the run's.
            environ = {**cluster_.BASE_ENVIRONMENT, **watcher, **processes.STAYS}
            done = user.run(command, timeout=30, env=environ)
            pid, watcher_pid = (int(number) for number in done.stdout.split())
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ServerStartError(
                f"the server cannot be launched: {error}", log_tail=log_tail(folder)
            ) from error
        started = replace(record, pid=pid, watcher=watcher_pid)
        started.write(folder)
        return started


def _put(folder: Path, name: str, content: bytes) -> None:
    try:
        put(folder / name, content)
    except OSError as error:
        raise BackendError(f"{folder / name} cannot be written: {error.strerror}") from error


def _take_away(folder: Path, name: str) -> None:
    try:
        (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"{folder / name} cannot be removed: {error.strerror}") from error


def _info(folder: Path, record: Record) -> ServerInfo:
    return ServerInfo(
        dsn=Dsn(ADDRESS, record.port or 1, "postgres", record.password, "postgres"),
        server_id=record.server_id,
        backend="process",
        purpose=record.purpose,
        storage=record.storage,
        handle=str(folder),
        binaries=record.binaries,
        ttl=record.ttl,
        description=f"PostgreSQL {record.version} as process {record.pid} on port {record.port}",
        project=record.project,
        root=record.root,
        made_with=record.made_with,
        standbys=record.standbys,
    )


def _ports(request: ServerRequest) -> tuple[int, ...]:
    """One for each standby, free just now."""
    return tuple(free_port(ADDRESS) for _ in range(request.replicas))


def _wait(folder: Path, record: Record, request: ServerRequest) -> ServerInfo:
    """The server of a postmaster that was started, once it answers."""
    info = _info(folder, record)
    handshake.wait(
        info.dsn,
        info.server_id,
        timeout=request.start_timeout,
        died=lambda: None if processes.running(record.pid) else "the server ended at once",
        tail=lambda: log_tail(folder),
        listens=lambda: listening_in(folder / "data", record.port),
    )
    return info


def _renewed(record: Record, request: ServerRequest) -> Record:
    """The record of a stopped server that starts again: its settings are new, its data and programs stay."""
    stays = {
        key: record.made_with[key] for key in ("version", "binaries", "storage") if key in record.made_with
    }
    # Those that it has keep their addresses.
    ports = (*record.standbys, *_ports(request))[: request.replicas]
    return replace(
        record,
        server_id=request.server_id,
        made_with={**request.made_with, **stays},
        standbys=ports,
    )


def _end_standbys(folder: Path, *, beyond: int = 0) -> Sequence[Path]:
    """End the standbys of a server, but for the first ones; return their folders."""
    # Here: most servers have none.
    from harness.servers.process import standbys

    ended = standbys.of(folder, beyond)
    for standby in ended:
        standbys.end(standby)
    return ended


def _remove(folder: Path) -> None:
    """End what runs in a folder of ours, then remove it."""
    record = Record.read(folder)
    if record is not None:
        record.end(folder, patience=10)
        record.kill_watcher(folder)
        if record.standbys:
            _end_standbys(folder)
        # First: a start that finds half of the data, because we were cut off, must not take it for a server's.
        with suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)
    # A watcher may be removing it at the same moment.
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
