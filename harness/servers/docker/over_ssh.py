"""A daemon that is reached by ssh://, through the system's own ssh: its keys, agent and configuration are the user's.

Not docker-py's way: that wants paramiko, which knows another configuration, and its own ssh asks for passwords on the terminal.
Each connection is one ``ssh HOST docker system dial-stdio``, as Docker's own client makes them.
"""

from __future__ import annotations

import socket as socket_
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any
from urllib.parse import urlsplit

from harness.config import processes
from harness.errors import BackendUnavailable

_UNLOCKED = (
    "-T",
    # No question on the terminal: nobody may be there to answer, or it belongs to the tests.
    "-oBatchMode=yes",
    # A machine that vanishes without a word ends the connection after 45 s, not never.
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=3",
)


def destination(url: str) -> list[str]:
    """The words of ssh's command line that mean the host of ``ssh://user@host:port``.

    Raises:
        BackendUnavailable: it names no host, or has a path, which Docker does not allow either.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BackendUnavailable(f"{_without_password(url)} is no address of a daemon: {error}") from None
    if not host or host.startswith("-") or parts.path.strip("/") or parts.password:
        why = (
            "ssh takes no password from an address"
            if parts.password
            else "write ssh://user@host, or ssh://user@host:port"
        )
        raise BackendUnavailable(f"{_without_password(url)} is no address of a daemon: {why}")
    words = [] if parts.username is None else ["-l", parts.username]
    words += [] if port is None else ["-p", str(port)]
    return [*words, "--", host]


def _without_password(url: str) -> str:
    head, at, tail = url.partition("@")
    scheme, slashes, login = head.partition("//")
    return f"{scheme}{slashes}{login.partition(':')[0]}{at}{tail}" if at else url


def command(url: str, options: Sequence[str], remote: str, *, timeout: float) -> list[str]:
    """The command line that runs a command over there.

    Args:
        timeout: seconds that the connection may take to be made.
    """
    patience = f"-oConnectTimeout={max(1, round(timeout))}"
    return ["ssh", *_UNLOCKED, patience, *options, *destination(url), remote]


def start(words: Sequence[str], environ: Mapping[str, str], *, both: Any, stderr: IO[bytes]) -> int:
    """Start a program that is nobody's child, and return its number.

    It outlives us and leaves no zombie, and a Ctrl-C of our terminal does not reach it.

    Args:
        both: what it reads from and writes to.

    Raises:
        BackendUnavailable: it cannot be started.
    """
    try:
        done = subprocess.run(
            # By another number, because in the background of a shell standard input is empty.
            ["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 >&3 3<&- & echo $!', "sh", *words],
            stdin=both,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            check=True,
            timeout=10,
            env={**environ, **processes.STAYS},
        )
        return int(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BackendUnavailable(f"{words[0]} cannot be started: {error}") from error


def explain(url: str, said: str) -> BackendUnavailable:
    """What ssh complains of, and what to do.

    Args:
        said: its standard error.
    """
    host = " ".join(destination(url)).replace("-- ", "")
    lines = [line for line in said.strip().splitlines() if line.strip() and not line.startswith("Warning: ")]
    # A host key that changed is told in a screen whose last line says what it means.
    text = lines[-1].strip() if lines else "it said nothing, and the connection ended"
    low = said.lower()
    if "host key verification failed" in low or "identification has changed" in low:
        remedy = (
            f"its host key is not known here, or not the one that is: compare it, then call `ssh {host}` once"
        )
    elif "permission denied" in low or "too many authentication failures" in low:
        remedy = f"see that `ssh -o BatchMode=yes {host} true` works: no password and no passphrase is asked for (ssh-agent, IdentityFile)"
    elif "not found" in low and "docker" in low:
        remedy = f"install Docker's client over there, on the PATH that `ssh {host} docker version` has"
    elif "not found" in low and "ssh" in low:
        remedy = "install ssh (Debian's openssh-client)"
    else:
        remedy = f"see that `ssh -o BatchMode=yes {host} docker version` works"
    return BackendUnavailable(
        f"no Docker daemon is reached by {url}: {text[:300]}",
        checked=[f"ssh {host} docker system dial-stdio"],
        remedies=[remedy],
    )


def client(url: str, environ: Mapping[str, str], *, timeout: float) -> Any:
    """A ``docker.DockerClient`` whose connections go through ssh.

    Raises:
        BackendUnavailable: ssh or the daemon refused, or nobody answered.
    """
    import docker
    import urllib3.connection
    import urllib3.connectionpool
    from docker.transport import UnixHTTPAdapter

    from harness.servers.docker.daemon import CALL_LIMIT

    # Open as long as the client, whose further connections write there too.
    said = tempfile.TemporaryFile()  # noqa: SIM115
    words = command(url, (), "docker system dial-stdio", timeout=timeout)

    class Connection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            ours, theirs = socket_.socketpair()
            with theirs:
                start(words, environ, both=theirs, stderr=said)
            ours.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
            self.sock = ours

    class Pool(urllib3.connectionpool.HTTPConnectionPool):
        def _new_conn(self) -> Any:
            return Connection("localhost", timeout=self.timeout.connect_timeout)

    class Adapter(UnixHTTPAdapter):  # type: ignore[misc]  # docker has no types
        def get_connection(self, url: str, proxies: Any = None) -> Any:
            # One for all that is asked: docker-py makes one for each URL, and each connection is a log-in here.
            with self.pools.lock:
                if (pool := self.pools.get("ssh")) is None:
                    pool = self.pools["ssh"] = Pool(
                        "localhost", timeout=self.timeout, maxsize=self.max_pool_size
                    )
                return pool

    # As for a Unix socket, which is never opened: its adapter is replaced by ours. A version that is named is not asked for.
    made = docker.DockerClient(base_url="unix:///ssh", version="1.41", timeout=CALL_LIMIT)
    adapter = Adapter("http+unix:///ssh", made.api.timeout)
    made.api.mount("http+docker://", adapter)
    made.api._custom_adapter = adapter
    weakref.finalize(made, said.close)
    try:
        made.api._version = made.api._retrieve_server_version()
    except Exception as error:
        made.close()
        said.seek(0)
        raise explain(url, said.read().decode("utf-8", "replace")) from error
    return made
