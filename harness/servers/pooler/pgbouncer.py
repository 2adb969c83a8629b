"""pgbouncer: its program, its version, and the files that it reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.dsn import Dsn
from harness.errors import BackendUnavailable, ServerStartError

NAME = "pgbouncer"

ADDRESS = "127.0.0.1"
"""Where it listens: never beyond this machine."""

PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/opt/homebrew/sbin")
"""Where distributions put it, which is not on every user's PATH."""

POOL = 20
"""Connections to a database at most, as pgbouncer's own default; fewer where a worker may have fewer."""

CLIENTS = 1000
"""Connections of clients at most, on the whole pooler."""

QUEUE = 60
"""Seconds that a client waits for a connection of the pool."""

PREPARED = (1, 21)
"""The first version that carries prepared statements from one connection to another."""


@dataclass(frozen=True)
class Program:
    """A pgbouncer that is installed here.

    Attributes:
        version: for instance ``(1, 18)``.
    """

    path: str
    version: tuple[int, int]

    @property
    def prepares(self) -> bool:
        """Whether clients may use prepared statements of the protocol."""
        return self.version >= PREPARED

    @property
    def told(self) -> str:
        """For people."""
        return f"pgbouncer {self.version[0]}.{self.version[1]}"


def find(environ: Mapping[str, str]) -> Program:
    """The program of this machine.

    Raises:
        BackendUnavailable: there is none, or it does not say what it is.
    """
    path = environ.get("PATH", os.defpath)
    found = shutil.which(NAME, path=os.pathsep.join([path, *PLACES]))
    if found is None:
        raise BackendUnavailable(
            'pooler = "pgbouncer": the program pgbouncer was not found',
            checked=[f"PATH: {path}", *PLACES],
            remedies=[
                "install it: apt install pgbouncer, dnf install pgbouncer, apk add pgbouncer, brew install pgbouncer",
                "or leave the setting `pooler` out: then DATABASE_URL leads to the server itself",
            ],
        )
    return Program(found, _version(found))


def _version(path: str) -> tuple[int, int]:
    try:
        done = subprocess.run(
            [path, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
        said = done.stdout + done.stderr
    except (OSError, subprocess.SubprocessError) as error:
        said = str(error)
    match = re.search(r"PgBouncer (\d+)\.(\d+)", said, re.IGNORECASE)
    if match is None:
        raise BackendUnavailable(
            f"{path} does not say which pgbouncer it is: {' '.join(said.split())[:200] or 'it says nothing'}",
            checked=[f"{path} --version"],
            remedies=["put a pgbouncer that works before it on PATH"],
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Config:
    """What decides how it runs.

    Attributes:
        folder: where its files are.
        server: the server behind it; its role is of no importance.
        port: it listens on.
        pool: connections to a database at most.
        admin: the name that may use the console.
    """

    folder: Path
    server: Dsn = field(repr=False)
    port: int
    pool: int
    admin: str
    program: Program

    @property
    def path(self) -> Path:
        """Of the file that pgbouncer is started with."""
        return self.folder / "pgbouncer.ini"

    @property
    def users(self) -> Path:
        """Of the file that says whom it lets in, and how it logs in as them."""
        return self.folder / "users.txt"

    @property
    def log(self) -> Path:
        """Of its log."""
        return self.folder / "log"

    @property
    def authority(self) -> Path:
        """Of its copy of the certificates that the server's is checked against."""
        return self.folder / "root.crt"

    def render(self) -> str:
        """The file's content. No secret is in it."""
        settings = {
            "listen_addr": ADDRESS,
            "listen_port": str(self.port),
            # Nothing of ours needs one, and its path is limited to 107 bytes.
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(self.users),
            "admin_users": self.admin,
            "pool_mode": "transaction",
            "max_client_conn": str(CLIENTS),
            "default_pool_size": str(self.pool),
            "max_db_connections": str(self.pool),
            # Its own 15 s: who comes while a database is being replaced would be refused for that long.
            "server_login_retry": "0.1",
            "query_wait_timeout": str(QUEUE),
            # Databases come and go by the hundred.
            "autodb_idle_timeout": "120",
            # Every JDBC driver sends it. Others are not ignored: a search path that is lost in silence is worse than an error.
            "ignore_startup_parameters": "extra_float_digits",
            "logfile": str(self.log),
            "log_connections": "0",
            "log_disconnections": "0",
            "log_stats": "0",
        }
        if self.program.prepares:
            settings["max_prepared_statements"] = "200"
        if mode := self.server.options.get("sslmode"):
            settings["server_tls_sslmode"] = mode
        if self.server.options.get("sslrootcert"):
            settings["server_tls_ca_file"] = str(self.authority)
        lines = [f"{name} = {value}" for name, value in settings.items()]
        where = f"host={_quoted(self.server.host)} port={self.server.port}"
        return "\n".join(["[databases]", f"* = {where}", "", "[pgbouncer]", *lines, ""])


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def user_line(name: str, secret: str) -> str:
    """One line of the file of users (pgbouncer(5), "Authentication file format")."""
    return " ".join('"' + text.replace('"', '""') + '"' for text in (name, secret))


def log_tail(log: Path, lines: int = 15) -> str:
    """The end of its log, for errors."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def did_not_start(why: str, log: str) -> ServerStartError:
    """What to raise where it does not run."""
    return ServerStartError(f"the pooler (pgbouncer) did not start: {why}", log_tail=log)
