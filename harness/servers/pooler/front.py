"""The pooler in front of one server: found by what is noted of it, or started; whom it lets in; its console."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from harness.config import own_folder, processes
from harness.config.project import Project, file_lock, make_folder
from harness.config.state_file import StateFile, Unreadable
from harness.dsn import Dsn
from harness.errors import BackendError, HarnessError, ServerLost, ServerRefused, ServerStartError
from harness.postgres import names, roles
from harness.postgres.admin import connect_verified
from harness.postgres.console import Console
from harness.servers.pooler import keeper, notes, pgbouncer
from harness.servers.pooler.keeper import Orders
from harness.servers.pooler.notes import FOLDER, FORMAT, PERSON, Notes
from harness.servers.pooler.pgbouncer import ADDRESS, Config, Program
from harness.servers.port import ServerInfo, free_port
from harness.servers.process import user as users
from harness.servers.process.user import ServerUser

logger = logging.getLogger("pg_harness.servers.pooler")

ADMIN = "pg_harness_console"
"""The name that may use the console. PostgreSQL has no role of it."""

KEPT = 400
"""How many users stay in a pooler's file: every worker of every run has a role of its own."""

ATTEMPTS = 5
"""Ports that are tried: another program may take one between our look and the start."""

OTHERS = 3.0
"""Seconds that the pooler of a server that has ended may take to end as well."""

ENDING = 5.0
"""Seconds that a keeper may take to end."""

BUSY = 0.05
"""Seconds to wait for a database without open transactions to be set aside; where there are some, who waits ends them."""


class Pooler:
    """One pgbouncer in front of one server, which all processes of a checkout share.

    Nothing is started before :meth:`through` or :meth:`ensure`. Where it has ended meanwhile, whatever is asked of it next starts it
    again, under the same address.

    Args:
        info: the server behind.
        connections: how many each worker may open to each of its databases.
        lasts: seconds after which it ends although the server goes on, where nobody uses it; None: with the server.
    """

    def __init__(
        self, project: Project, info: ServerInfo, *, connections: int, lasts: float | None = None
    ) -> None:
        self._project = project
        self._info = info
        self._connections = connections
        self._lasts = lasts
        # Of this folder of state too: root's, of several, put their files into one place.
        self._purpose = "" if info.ours else "up" if info.purpose == "up" else "run"
        self._server = info.server_id or f"{info.dsn.host}:{info.dsn.port}"
        person = info.purpose == "up"
        name = PERSON if person else names.digest(f"{self._server}:{self._purpose}", 16)
        # Of each server its own: who looked after the one before may be removing its files just now.
        self._key = names.digest(f"{project.folder}:{self._server}:{self._purpose}", 16)
        self._file = StateFile(project.folder / FOLDER / f"{name}.json", FORMAT)
        self._console: Console | None = None
        self._notes: Notes | None = None
        self._admitted: dict[str, str] = {}
        self._held: int | None = None
        # Leases are reset in threads.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, project: Project, info: ServerInfo, *, connections: int) -> Pooler:
        """The one in front of a server: it ends with a server of ours; in front of another's, with the last run that uses it."""
        lasts = None if info.ours or info.purpose == "up" else project.settings.ttl
        return cls(project, info, connections=connections, lasts=lasts)

    # --- addresses ---------------------------------------------------------------------------------

    def through(self, direct: Dsn, *, rounds: int | None) -> Dsn:
        """The address of a database through the pooler, for a role that it lets in from here on.

        Args:
            direct: the database's and role's own.
            rounds: how often the server hashes the role's password where we have set it; None: it is known in clear text only.

        Raises:
            BackendUnavailable: there is no pgbouncer. ServerStartError: it does not start.
        """
        # What the server itself has stored: the keys of the client's log-in fit there too, and no password lies in a file.
        password = str(direct.password)
        secret = password if rounds is None else roles.verifier(direct.user, password, rounds=rounds)
        with self._lock:
            self._admit(direct.user, secret)
            # Whoever set it aside last may have been killed.
            self._resume(direct.database)
            assert self._notes is not None
            return replace(direct, host=ADDRESS, port=self._notes.port, options=_for_clients(direct))

    @property
    def program(self) -> Program:
        """The one that runs."""
        with self._lock:
            if self._notes is None:
                self.ensure()
            assert self._notes is not None
            return self._notes.program

    def _admit(self, name: str, secret: str) -> None:
        if self._admitted.get(name) == secret and self._console is not None:
            return
        # One that has ended since is started again here: while its files are changed, nobody else can start it.
        self._command("SHOW VERSION")
        assert self._notes is not None
        path = self._notes.folder / "users.txt"
        line = pgbouncer.user_line(name, secret)
        with self._alone():
            known = self._lines(path)
            if not known:
                raise BackendError(f"the pooler's file {path} is gone: end what runs here, and run again")
            if changed := line not in known:
                mine = pgbouncer.user_line(name, "")[:-2]
                others = [other for other in known if not other.startswith(mine)]
                # The console's own is the first.
                kept = [others[0], *others[1:][-KEPT:]]
                self._put(path, "\n".join([*kept, line, ""]))
        if changed:
            self._command("RELOAD")
        self._admitted[name] = secret

    def fit(self, connections: int) -> None:
        """Every worker may open so many connections from here on. A pool is made smaller, never larger: others share it."""
        with self._lock:
            self._connections = connections
            if self._notes is None or self._notes.pool <= connections:
                return
            with self._alone():
                self._notes = replace(self._notes, pool=connections)
                config = self._config(self._notes)
                self._put(config.path, config.render())
                self._file.write(self._notes)
            self._command("RELOAD")

    # --- resets and clones -------------------------------------------------------------------------

    def settle(self, database: str) -> None:
        """Whoever asks from now on gets a new session in the database; idle ones are closed.

        Raises:
            ServerStartError: it had ended, and does not start again.
        """
        with self._lock:
            self._command(f"RECONNECT {database}")

    @contextmanager
    def aside(self, database: str) -> Iterator[None]:
        """Let clients of the database wait, and keep out of it, until the block ends.

        Transactions that are open are ended by whoever wants it to be empty; only their clients lose a connection.
        """
        console = None
        # Where it cannot be had, it keeps no sessions either.
        with suppress(HarnessError):
            console = self._connect()
            console.begin(f"PAUSE {database}")
            console.done(BUSY)
        try:
            yield
        finally:
            if console is not None:
                with suppress(HarnessError):
                    console.done(1.0)
                console.close()
                with self._lock:
                    # Sessions that it had there are gone, and it may not know yet.
                    self._command(f"RECONNECT {database}")
                    self._resume(database)

    def _connect(self) -> Console:
        with self._lock:
            if self._notes is None or self._console is None:
                self.ensure()
            assert self._notes is not None
            try:
                return Console.connect(self._dsn(self._notes))
            except (ServerLost, ServerRefused):
                self._start_again()
                return Console.connect(self._dsn(self._notes))

    def _resume(self, database: str) -> None:
        # One that is not set aside is refused.
        with suppress(ServerRefused):
            self._command(f"RESUME {database}")

    def _command(self, command: str) -> None:
        """Give one command; once more to a new one where this one has ended."""
        if self._console is None:
            self.ensure()
        for attempt in (1, 2):
            assert self._console is not None
            try:
                self._console.run(command)
                return
            except ServerLost:
                if attempt == 2:
                    raise
                self._start_again()

    def _start_again(self) -> None:
        self._leave()
        self.ensure()

    # --- found or started --------------------------------------------------------------------------

    def ensure(self) -> None:
        """Have it running, and be logged in at its console.

        Raises:
            BackendUnavailable: there is no pgbouncer. ServerStartError: it does not start.
        """
        with self._lock:
            self._hold()
            if self._found():
                return
            with self._alone():
                if self._found():
                    return
                self._start()

    def _alone(self) -> AbstractContextManager[None]:
        return file_lock(
            self._file.path.with_suffix(".lock"),
            timeout=self._project.settings.start_timeout,
            waiting_for="the pooler of this checkout",
        )

    def _found(self) -> bool:
        """Whether what is noted answers."""
        if self._console is not None:
            return True
        try:
            noted = self._file.read_as(Notes)
            if noted.server != self._server:
                return False
            self._console = Console.connect(self._dsn(noted))
        except (FileNotFoundError, Unreadable, ServerLost, ServerRefused):
            return False
        self._notes = noted
        return True

    def _start(self) -> None:
        # In front of a server that is gone, none is of any use; and it would not end with it.
        connect_verified(self._info.dsn, self._info.server_id).close()
        before = notes.read(self._file.path)
        notes.sweep(self._project.state)
        folder = self._folder()
        same = before is not None and before.server == self._server
        if before is not None and not same:
            # Its server has ended, and so will it: its port is ours then.
            notes.wait(before, OTHERS)
        program = pgbouncer.find(self._project.environ)
        password = secrets.token_hex(24)
        first = pgbouncer.user_line(ADMIN, roles.verifier(ADMIN, password, rounds=1))
        # Its files may be gone: the server was restarted.
        mine = [pgbouncer.user_line(name, secret) for name, secret in self._admitted.items()]
        admitted = list(dict.fromkeys([*self._lines(folder / "users.txt")[1:], *mine]))
        error: ServerStartError | None = None
        for attempt in range(ATTEMPTS):
            # The keeper of the attempt before has removed it.
            folder = self._folder()
            port = before.port if before is not None and attempt == 0 else free_port(ADDRESS)
            pool = min(
                pgbouncer.POOL,
                self._connections,
                before.pool if same and before is not None else pgbouncer.POOL,
            )
            made = Notes(port, password, 0, folder, pool, program, self._purpose, self._server)
            config = self._config(made)
            self._put(config.users, "\n".join([first, *admitted, ""]))
            self._put(config.path, config.render())
            self._put(config.log, "")
            if certificates := self._info.dsn.options.get("sslrootcert"):
                self._put(config.authority, Path(certificates).read_text())
            log = ""
            try:
                made = replace(made, keeper=self._launch(config))
                try:
                    self._console = Console.connect(self._dsn(made))
                    self._file.write(made)
                except BaseException:
                    # It is noted nowhere: it would stay until the server ends. Its files go with it.
                    log = pgbouncer.log_tail(config.log)
                    self._leave()
                    notes.end(made)
                    raise
            except (ServerStartError, ServerLost, ServerRefused) as why:
                error = pgbouncer.did_not_start(why.message, log or pgbouncer.log_tail(config.log))
                continue
            self._notes = made
            self._tell(before, made)
            return
        assert error is not None
        raise error

    def _tell(self, before: Notes | None, made: Notes) -> None:
        where = f"{made.program.told} on port {made.port}, in front of {self._info.description}"
        if before is None or before.server != self._server:
            logger.info("pooler: started %s", where)
        else:
            same = "same" if before.port == made.port else "another"
            logger.warning("pooler: it had ended; started again, on the %s port: %s", same, where)

    def _launch(self, config: Config) -> int:
        """Start the keeper, which starts pgbouncer; its number."""
        user = ServerUser.find()
        orders = Orders(
            command=(config.program.path, "-q", str(config.path)),
            uid=user.uid,
            gid=user.gid,
            folder=config.folder,
            notes=self._file.path,
            port=config.port,
            server=self._info.dsn,
            server_id=self._info.server_id,
            ttl=self._lasts,
            used=self._used,
            forgotten=self._file.path.stem != PERSON,
        )
        environ = {name: value for name, value in self._project.environ.items() if name in ("PATH", "HOME")}
        # It outlives the run that starts it, as the server does.
        environ |= {**processes.STAYS, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(config.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", keeper.MODULE, str(config.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=environ,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        said = ""
        try:
            with process.stdin, process.stdout:
                try:
                    process.stdin.write(json.dumps(asdict(orders), default=os.fspath).encode())
                    process.stdin.close()
                except OSError:
                    pass  # It has ended, and says why below.
                said = process.stdout.readline().decode().strip()
        finally:
            # Also where Ctrl-C came meanwhile: nobody else knows its number.
            if said != "ready":
                _end(process)
        if said != "ready":
            raise ServerStartError(said or "its keeper ended at once")
        # Nobody waits for it: it is init's as soon as we end.
        process.returncode = 0
        return process.pid

    # --- its files ---------------------------------------------------------------------------------

    def _folder(self) -> Path:
        try:
            user = ServerUser.find()
            parent = user.reachable(self._project.state / FOLDER, FOLDER)
            users.make_folder(parent.parent, ServerUser(), 0o711)
            users.make_folder(parent, user, 0o711)
            folder = users.make_folder(parent / f"{self._project.id}-{self._key}", user)
            owners = own_folder.ourselves() | ({user.uid} if user.uid is not None else set())
            if why := own_folder.distrust(folder, owners):
                raise BackendError(f"no pooler's files are put into {folder}: {why}. Remove or rename it")
            return folder
        except OSError as error:
            raise BackendError(f"the pooler's folder cannot be made: {error}") from error

    def _put(self, path: Path, text: str) -> None:
        try:
            users.put(path, text.encode(), mode=0o600, user=ServerUser.find())
        except OSError as error:
            raise BackendError(f"{path} cannot be written: {error.strerror}") from error

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            return path.read_text("utf-8").splitlines()
        except OSError:
            return []

    def _config(self, noted: Notes) -> Config:
        return Config(noted.folder, self._info.dsn, noted.port, noted.pool, ADMIN, noted.program)

    @staticmethod
    def _dsn(noted: Notes) -> Dsn:
        return Dsn(ADDRESS, noted.port, ADMIN, noted.password, "pgbouncer", {"sslmode": "disable"})

    @property
    def _used(self) -> Path:
        return self._file.path.with_suffix(".used")

    def _hold(self) -> None:
        """Be one of those who use it, until this process ends or :meth:`close`."""
        if self._held is None and self._lasts is not None:
            make_folder(self._used.parent)
            self._held = os.open(self._used, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_SH)

    # --- the end -----------------------------------------------------------------------------------

    def _leave(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()

    def close(self) -> None:
        """Let go of it. It goes on as long as its server does."""
        with self._lock:
            self._leave()
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def __repr__(self) -> str:
        where = f"port {self._notes.port}" if self._notes is not None else "not asked for yet"
        return f"<Pooler {where}, in front of {self._info.description}>"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a keeper and what it has started, which it ends itself, if it can."""
    process.terminate()
    try:
        process.wait(timeout=ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _for_clients(direct: Dsn) -> dict[str, str]:
    """A URL's parameters, but for those that say how the server is reached: what listens on loopback has no TLS."""
    return {name: value for name, value in direct.options.items() if not name.startswith("ssl")}
