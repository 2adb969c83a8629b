"""The standbys of one server: found, started, or made again from a copy of its data."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from harness.config.project import Project, file_lock
from harness.dsn import Dsn
from harness.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ServerLost,
    ServerRefused,
    ServerStartError,
)
from harness.listing import counted
from harness.postgres.admin import connect_verified
from harness.postgres.session import Session, asks_for_scram
from harness.servers import handshake
from harness.servers.handle import Server
from harness.servers.port import COPY_LIMIT, ServerInfo, StandbyPlace, private
from harness.servers.records import Hint

logger = logging.getLogger("pg_harness.servers.replica")

GOES_ON = 10.0
"""Seconds in which a standby that was started again has to answer, and then to come to where its primary is; else it is made anew."""

LOOK = 0.5
"""Seconds between two looks at its process: of one in a container the daemon has to be asked."""

PORTS = 5
"""Ports that are tried: another program may take one between our look and the start."""

DELAY = 10.0
"""Seconds beyond ``reset_timeout`` that the log waits for a transaction there. A reset has ended that before, and named it; other workers
wait no longer for one whose test goes on."""

_TAKEN = "could not create any TCP/IP sockets"
_TOO_LATE = "has already been removed"
"""What the log of a standby says that was away for too long (walsender.c): its primary has recycled what it lacks."""

FLUSH = "select pg_logical_emit_message(true, 'pg-harness', '')::text"
"""Writes to the log, and the commit behind it flushes all before; a standby gets nothing that was not flushed. Returns how far."""


class Standbys:
    """Those of one server, as one process knows them.

    Nothing is started before :meth:`ensure`.

    Args:
        server: the primary. Its :class:`ServerInfo` is changed where a standby gets another port.
    """

    def __init__(self, project: Project, server: Server) -> None:
        self._project = project
        self._server = server
        self._timeout = project.settings.start_timeout
        self._place: StandbyPlace | None = None
        # Of a server that was started just now nothing has to be looked for; a person's may have been stopped.
        self._new = set(self.numbers if server.started and server.info.purpose != "up" else ())
        # Leases are reset in threads.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, project: Project, server: Server) -> Standbys | None:
        """Those that the settings ask for; None: none, or the server was started without."""
        return cls(project, server) if project.settings.replicas and server.info.standbys else None

    @classmethod
    def demand(cls, project: Project, server: Server) -> None:
        """Refuse a server that was started for these settings and has none.

        Raises:
            BackendUnavailable: its backend starts none.
        """
        wanted = project.settings.replicas
        # A person's server that was started before: drift.told() has said so.
        if wanted and not server.info.standbys and not (server.info.ours and server.info.purpose == "up"):
            raise BackendUnavailable(
                f"replicas = {wanted} ({project.settings.origin('replicas')}), and the backend {server.info.backend} starts no standbys",
                checked=[server.info.description],
                remedies=["leave `replicas` out", 'or take backend = "docker" or "process"'],
            )

    @classmethod
    def told(cls, project: Project, server: Server) -> list[str]:
        """One line for each that a server has, whatever the settings ask for now: where it is, and how far it is behind."""
        its = cls(project, server)
        return [f"standby {n}: {its._state(n)}" for n in range(1, len(server.info.standbys) + 1)]

    @property
    def info(self) -> ServerInfo:
        """Of the primary."""
        return self._server.info

    @property
    def numbers(self) -> range:
        """Of those that are used, from 1."""
        return range(1, min(self._project.settings.replicas, len(self.info.standbys)) + 1)

    def dsn(self, number: int) -> Dsn:
        """The superuser's address of the maintenance database there."""
        return replace(self.info.dsn, port=self.info.standbys[number - 1])

    def dsns(self, direct: Dsn) -> tuple[Dsn, ...]:
        """Where a database of the primary is on each of them."""
        return tuple(replace(direct, port=self.dsn(number).port) for number in self.numbers)

    def connect(self, number: int) -> Session:
        """Log in to one, as the superuser.

        Raises:
            ServerLost: it is not there, or another server answers. ServerRefused: it is starting.
        """
        if not (asks_for_scram() or self._of.listens(number)):
            raise ServerLost(f"standby {number} does not listen on its port {self.dsn(number).port}")
        return connect_verified(self.dsn(number), _id(self.info, number))

    def _state(self, number: int) -> str:
        dsn = self.dsn(number)
        try:
            with self.connect(number) as session:
                row = session.row(
                    "select status, pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn())::bigint"
                    " from pg_stat_wal_receiver"
                )
        except (ServerLost, ServerRefused):
            return f"{dsn.masked} does not answer: the next run or reset starts it again"
        if row is None:
            return f"{dsn.masked}, not connected to its primary"
        behind = max(0, row[1] or 0)
        return f"{dsn.masked}, {row[0]}" + (f", {behind} bytes behind" if behind else "")

    # --- starting ----------------------------------------------------------------------------------

    def ensure(self, *, given_out: bool = False) -> None:
        """Have all of them there and near their primary.

        Args:
            given_out: whether this process has told tests and programs their addresses: no other port will do then.

        Raises:
            ServerStartError: one does not start. BackendError: its data cannot be copied.
        """
        for number in self.numbers:
            if not self._answers(number):
                with self._lock, self._alone():
                    # Another process may have seen to it meanwhile, at another port.
                    self._look_for_ports(number, given_out)
                    if not self._answers(number):
                        self._repair(number, given_out)

    def _look_for_ports(self, number: int, given_out: bool) -> None:
        ports = self._of.ports()
        if ports == self.info.standbys:
            return
        if given_out and ports[number - 1 : number] != (port := self.info.standbys[number - 1],):
            raise ServerStartError(
                f"standby {number} of {self.info.description} is at another port by now: something else had taken {port}, "
                "which tests and programs of this run were told. Start the run again"
            )
        self._are_at(ports)

    def _answers(self, number: int) -> bool:
        try:
            self.connect(number).close()
        except (ServerLost, ServerRefused):
            return False
        return True

    def _alone(self) -> AbstractContextManager[None]:
        if private(self.info.purpose):
            # One process uses it, and a lock file for each would stay for ever.
            return nullcontext()
        return file_lock(
            self._project.folder / f"{self.info.purpose}.standby.lock",
            timeout=COPY_LIMIT + 2 * self._timeout + GOES_ON,
            waiting_for="a standby of the server",
        )

    @property
    def _of(self) -> StandbyPlace:
        if self._place is None:
            self._place = self._server.backend.standbys(self.info)
        return self._place

    def _repair(self, number: int, given_out: bool) -> None:
        began = time.monotonic()
        if number in self._new:
            self._make(number, given_out)
            self._new.discard(number)
        elif (why := self._go_on(number, given_out)) is not None:
            if why:
                logger.info("replica: standby %s is made again: %s", number, why)
            self._make(number, given_out)
        logger.info(
            "replica: standby %s of %s on port %s, after %.1f s",
            number,
            self.info.description,
            self.info.standbys[number - 1],
            time.monotonic() - began,
        )

    def _go_on(self, number: int, given_out: bool) -> str | None:
        """Start it from its own data; return why it has to be made anew: empty where there is none of it. None: it goes on."""
        try:
            self._start(number, None, timeout=GOES_ON, given_out=given_out)
        except ServerStartError as error:
            if _TAKEN in error.log_tail:
                # Another copy of its data would have the same port.
                raise
            return error.message.splitlines()[0]
        except BackendError as error:
            logger.debug("replica: %s", error.message)
            return ""
        return self._comes(number) or None

    def _comes(self, number: int) -> str:
        """Why it does not come to where its primary is now; empty where it does."""
        deadline, look = time.monotonic() + GOES_ON, time.monotonic() + LOOK
        with connect_verified(self.info.dsn, self.info.server_id) as primary, self.connect(number) as session:
            target = primary.value(FLUSH)
            while (behind := bytes_behind(session, target)) != 0:
                now = time.monotonic()
                if now > look:
                    look = now + LOOK
                    if _TOO_LATE in self._of.log(number):
                        return "it was away for too long: its primary has recycled the log that it lacks"
                if now > deadline:
                    return f"it is still {behind} bytes behind after {GOES_ON:g} s"
                time.sleep(0.01)
        return ""

    def _make(self, number: int, given_out: bool = False) -> None:
        place = self._of
        with connect_verified(self.info.dsn, self.info.server_id) as session:
            _refuse_tablespaces(session)
            with _backup(session) as label:
                place.copy(number)
        self._start(number, label(), timeout=self._timeout, given_out=given_out)

    def _start(self, number: int, label: str | None, *, timeout: float, given_out: bool) -> None:
        """At its port, or at another one where somebody has taken that."""
        for attempt in range(PORTS):
            try:
                self._launch(number, label, timeout=timeout)
            except ServerStartError as error:
                if _TAKEN not in error.log_tail or attempt + 1 == PORTS:
                    raise
                port = self.info.standbys[number - 1]
                if given_out:
                    raise ServerStartError(
                        f"something else has taken port {port} of standby {number} of {self.info.description}, which tests and programs "
                        "of this run were told: end what listens there, or start the run again",
                        log_tail=error.log_tail,
                    ) from None
                self._moved(number, self._of.move(number))
                logger.warning(
                    "standby %s is at port %s now: something else has taken %s",
                    number,
                    self.info.standbys[number - 1],
                    port,
                )
            else:
                return

    def _moved(self, number: int, port: int) -> None:
        ports = [*self.info.standbys]
        ports[number - 1] = port
        self._are_at(tuple(ports))

    def _are_at(self, ports: tuple[int, ...]) -> None:
        self._server.info = replace(self.info, standbys=ports)
        Hint.of(self._project, self.info.purpose).write(self.info)

    def _launch(self, number: int, label: str | None, *, timeout: float) -> None:
        place = self._of
        place.launch(number, self._settings(number), label)
        looked = time.monotonic()

        def died() -> str | None:
            nonlocal looked
            if time.monotonic() - looked < LOOK:
                return None
            looked = time.monotonic()
            return (
                None
                if place.running(number)
                else f"standby {number} of {self.info.description} ended at once"
            )

        handshake.wait(
            self.dsn(number),
            _id(self.info, number),
            timeout=timeout,
            died=died,
            tail=lambda: place.log(number),
            listens=lambda: place.listens(number),
        )

    def _settings(self, number: int) -> dict[str, str]:
        reach = {**self._of.primary(), "user": "postgres", "application_name": f"pg-harness standby {number}"}
        reach |= {"sslmode": "disable", "gssencmode": "disable"}
        own, patience = self._project.settings.postgres, self._project.settings.reset_timeout
        return {
            "max_standby_streaming_delay": own.get(
                "max_standby_streaming_delay", f"{1000 * (patience + DELAY):.0f}ms"
            ),
            "harness.server_id": _id(self.info, number),
            "primary_conninfo": " ".join(f"{name}='{_quoted(value)}'" for name, value in reach.items()),
            "hot_standby": "on",
            "unix_socket_directories": "",
            "wal_receiver_status_interval": "1s",
            # Else it looks for its primary every five seconds only, after a crash of that.
            "wal_retrieve_retry_interval": "200ms",
            # Of its own log it needs nothing.
            "wal_keep_size": "0",
        }


def _id(info: ServerInfo, number: int) -> str:
    """What a standby calls itself: who means the primary never takes it for that."""
    return f"{info.server_id}.{number}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def bytes_behind(session: Session, target: str) -> int | None:
    """How much a standby has not replayed yet, up to a place in the log; None: nothing at all so far.

    Args:
        session: on the standby.
    """
    behind: int | None = session.value(
        # GREATEST passes over a NULL.
        "select case when replayed is not null then greatest(0, pg_wal_lsn_diff(%s, replayed)) end::bigint"
        " from pg_last_wal_replay_lsn() replayed",
        (target,),
    )
    return behind


@contextmanager
def _backup(session: Session) -> Iterator[Callable[[], str]]:
    """As long as the block lasts the server's files may be copied; what is given returns the backup's label afterwards."""
    # Until 15 a backup is one of two kinds, and is called otherwise.
    old = session.server_version < 150000
    session.value(
        "select pg_start_backup('pg-harness', true, false)"
        if old
        else "select pg_backup_start('pg-harness', true)"
    )
    label: list[str] = []
    stop = "pg_stop_backup(false, false)" if old else "pg_backup_stop(false)"
    try:
        yield lambda: label[0]
    finally:
        # Left open it would end with the session, and so would full pages in the log.
        label.append(str(session.value(f"select labelfile from {stop}")))


def _refuse_tablespaces(session: Session) -> None:
    found: Mapping[str, str] = dict(
        session.rows(
            "select spcname, pg_tablespace_location(oid) from pg_tablespace"
            " where pg_tablespace_location(oid) not in ('', 'pg_tblspc/' || oid)"
        )
    )
    if found:
        raise ConfigError(
            f"the server has {counted(len(found), 'tablespace')} ({', '.join(found)}): a standby on the same machine would write "
            "to the same folder. Leave `replicas` out, or drop them",
            key="replicas",
        )
