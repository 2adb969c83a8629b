"""Finding the Docker daemon and the host that its ports are on, as testcontainers finds them."""

from __future__ import annotations

import logging
import math
import os
import re
import socket as socket_
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.config.project import state_dir
from harness.errors import BackendError, BackendUnavailable, ServerLost
from harness.servers.docker.hosts import Host, parse

logger = logging.getLogger("pg_harness.servers.docker")

_one_at_a_time = threading.Lock()
"""The environment is the process's: of two threads, each would restore what the other has set."""

TURN = 120.0
"""Seconds that a start waits for others."""

CALL_LIMIT = 60.0
"""Seconds without a byte after which a call of the daemon fails, or a stream of its ends that nobody follows."""

SILENT = 60.0
"""Seconds for which a daemon that did not answer is not asked again: a command has several questions, and one patience."""

ELSEWHERE = 10.0
"""Seconds that a daemon on another machine has at least: a log-in by ssh takes one or two where that machine is busy, and
``backend = "auto"`` would take local binaries although somebody named a daemon."""

_silent: dict[str, tuple[float, float]] = {}
"""Address → when the wait for its answer was given up (``time.monotonic``), and how many seconds it was: who has more
patience asks again."""

_ASKED = "pg-harness asked"
"""Beside what it says of itself: when it was asked, by our clock."""

_LOCAL = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, and bound for servers with TLS alone

_told_of: set[str] = set()
"""Daemons of which it was told that anybody may command them: once is enough for a process."""


@dataclass(frozen=True)
class Daemon:
    """A daemon that answers.

    Attributes:
        client: ``docker.DockerClient``.
        host: where published ports are reached from here.
        bind: the daemon's address to publish on; empty: the container is reached on its own address.
        network: the network to join, where we run in a container ourselves; None: the default one.
        prefix: put before image names (``TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX``).
        where: for people, for instance ``"unix:///var/run/docker.sock"``.
        ssh: ``ssh://…`` of a daemon that is reached that way, and whose servers are too; else empty.
        folder: where the certificates of its servers are noted for their clients, and the tunnels to them.
        environ: of the programs that reach it.
        refused: image → why it cannot be had: whoever asks next in this run would wait for the registry once more.
    """

    client: Any
    host: str
    bind: str
    network: str | None
    prefix: str
    where: str
    ssh: str = ""
    folder: Path = Path()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    refused: dict[str, BackendUnavailable] = field(default_factory=dict, repr=False, compare=False)
    _about: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _turn: threading.Condition = field(default_factory=threading.Condition, repr=False, compare=False)
    _starting: set[int] = field(default_factory=set, repr=False, compare=False)

    def about(self) -> Mapping[str, Any]:
        """What it says of itself (`docker info`): asked once, because it takes it 8 ms to tell.

        Raises:
            ServerLost: it stopped answering.
        """
        if not self._about:
            with translated("tell about itself"):
                self._about.update(self.client.info())
            self._about[_ASKED] = time.time()
        return self._about

    def ahead(self) -> float:
        """Seconds that its clock is ahead of ours: its times of containers are by that."""
        about = self.about()
        try:
            return datetime.fromisoformat(str(about.get("SystemTime"))).timestamp() - float(about[_ASKED])
        except ValueError:
            return 0.0

    def now(self) -> float:
        """Seconds since 1970, by its clock, which may be another machine's."""
        return time.time() + self.ahead()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Not more starts at a time than its machine has processors, and two at least.

        It serialises what concerns the network: a third start makes the first two later, and nobody's data is
        copied meanwhile. Four starts by two took 1.03 s, all at once 1.13 s (docs/decisions/0065).
        """
        most = max(2, int(self.about().get("NCPU") or 0))
        me = threading.get_ident()
        with self._turn:
            # No longer: it makes starts quicker, nothing else.
            self._turn.wait_for(lambda: len(self._starting) < most, TURN)
            self._starting.add(me)
        try:
            yield
        finally:
            with self._turn:
                self._starting.discard(me)
                self._turn.notify()

    @property
    def feeds(self) -> bool:
        """Whether a container's standard input is reached as on a socket, where that is tried out."""
        return str(self.client.api.base_url).startswith(
            ("http+docker://localhost", "http+unix", "http://", "https://")
        )

    @property
    def local(self) -> bool:
        """Whether its ports are on our own loopback, and nobody's between."""
        return self.host == "127.0.0.1" and not self.ssh

    @property
    def encrypted(self) -> bool:
        """Whether its ports are open to a network: then all that is said there is TLS."""
        return self.bind in _EVERYWHERE


def connect(environ: Mapping[str, str], *, timeout: float, host: Host | None = None) -> Daemon:
    """The daemon that the user means.

    Args:
        timeout: seconds that it may take to answer (imports not counted); :data:`ELSEWHERE` at least over a network.
        host: one of several, as the settings name it; None: the only one.

    Raises:
        BackendUnavailable: none is configured or none answers.
    """
    if host is not None:
        environ = {**environ, "DOCKER_HOST": host.address, "DOCKER_CONTEXT": ""}
        socket: str | None = host.address or _socket_here(environ)
    else:
        socket = _socket(environ)
    if socket == "":
        raise BackendUnavailable(
            "no Docker daemon was found",
            checked=[
                "DOCKER_HOST is not set, no Docker context is chosen, and there is no socket of Docker's or podman's"
            ],
            remedies=_REMEDIES,
            absent=True,
        )
    where = environ.get("DOCKER_HOST") or socket or "the current Docker context"
    if _elsewhere(where):
        timeout = max(timeout, ELSEWHERE)
    since, waited = _silent.get(where, (-math.inf, 0.0))
    if waited >= timeout and time.monotonic() - since < SILENT:
        raise _no_answer(where, waited)
    if (reason := _refusal(where)) is not None:
        raise BackendUnavailable(
            f"the Docker daemon at {where} does not answer: {reason}",
            remedies=[*_rights(where.removeprefix("unix://")), *_REMEDIES],
        )
    try:
        # Here: 0.3 s, for nothing where no daemon runs.
        from testcontainers.core import config, docker_client
    except Exception as error:
        raise BackendUnavailable(
            f"the Docker client cannot be loaded: {error}", remedies=_REMEDIES
        ) from error
    folder = state_dir(environ) / "remote"
    found: list[Daemon] = []
    failures: list[BaseException] = []
    given_up = threading.Event()

    def open_() -> None:
        try:
            prefix = getattr(config.testcontainers_config, "hub_image_name_prefix", "") or ""
            named = host.address if host is not None else docker_client.get_docker_host() or ""
            if named.startswith("ssh://"):
                # Here: no other daemon is reached this way.
                from harness.servers.docker import over_ssh

                client = over_ssh.client(named, environ, timeout=timeout)
                daemon = Daemon(
                    client,
                    "127.0.0.1",
                    "127.0.0.1",
                    None,
                    prefix,
                    named,
                    ssh=named,
                    folder=folder,
                    environ=environ,
                )
            else:
                # A host that a user names need not be an address of the daemon's machine.
                override = bool(getattr(config.testcontainers_config, "tc_host_override", None))
                remote = host is not None and host.remote
                direct = host if remote else _by_authority_alone(named, environ) if host is None else None
                if direct is not None:
                    made: Any = _Direct(direct, timeout)
                else:
                    made = docker_client.DockerClient()
                    if isinstance(made.client.api.verify, str):
                        _trusting(made.client.api)
                daemon = _describe(made, socket, prefix, override and not remote, folder)
            if given_up.is_set():
                # Nobody takes it any more: left to the garbage collector it would be an unclosed socket.
                daemon.client.close()
            found.append(daemon)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failures.append(error)

    # A thread: a daemon behind a dead ssh or a firewall gives no answer at all for minutes.
    thread = threading.Thread(target=open_, name="pg-harness-docker", daemon=True)
    # One of several elsewhere takes nothing from the process's environment: they are asked side by side.
    set_up: AbstractContextManager[None] = nullcontext()
    if host is None or not host.remote:
        set_up = _alone(environ, socket)
    with set_up:
        thread.start()
        thread.join(timeout)
        given_up.set()
    if found:
        return found[0]
    if not failures:
        _silent[where] = time.monotonic(), timeout
        raise _no_answer(where, timeout)
    failure = failures[0]
    if not isinstance(failure, Exception) or isinstance(failure, BackendUnavailable):
        raise failure
    text, remedies = text_of(failure), list(_REMEDIES)
    if host is not None:
        remedies[:0] = _certificates(text, host)
    elif "certificate" in text.lower() and environ.get("DOCKER_TLS_VERIFY"):
        there = environ.get("DOCKER_CERT_PATH") or "~/.docker"
        told = f"see that {there} (DOCKER_CERT_PATH) has the ca.pem by which the daemon's certificate is signed, a cert.pem and a key.pem"
        remedies.insert(0, f"{told} that the daemon takes, and that the clocks of both machines are right")
    raise BackendUnavailable(
        f"the Docker daemon at {where} does not answer: {text}", remedies=remedies
    ) from failure


def _no_answer(where: str, waited: float) -> BackendUnavailable:
    return BackendUnavailable(
        f"the Docker daemon at {where} did not answer within {waited:g} s", remedies=_REMEDIES
    )


def _elsewhere(address: str) -> bool:
    """Whether a daemon's address is one of another machine."""
    try:
        parts = urlsplit(address)
        return parts.scheme == "ssh" or (parts.scheme == "tcp" and parts.hostname not in _LOCAL)
    except ValueError:
        # The client says what is wrong with it.
        return False


def _certificates(said: str, host: Host) -> Iterator[str]:
    """What to do where daemon and client do not believe each other's certificates, or speak without them."""
    low = said.lower()
    if not re.search(r"ssl|tls|certificate|http request to an https", low):
        return
    folder = host.certificates
    where = folder or "DOCKER_CERT_PATH, or the context"
    if "not yet valid" in low or "expired" in low:
        yield "compare the clocks of both machines (`date`), and the dates of its certificate (`openssl x509 -dates`)"
    elif not folder:
        yield "it wants certificates: set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, or name a context that has them"
    yield f"see that ca.pem in {where} is the authority of that daemon, and that cert.pem and key.pem there are of a client it knows"


def _has_own(folder: Path) -> bool:
    """Whether there is a certificate of ours. A daemon behind a proxy, or one that looks at nobody's, has none to show to."""
    return (folder / "cert.pem").is_file() and (folder / "key.pem").is_file()


def _by_authority_alone(named: str, environ: Mapping[str, str]) -> Host | None:
    """The daemon of ``DOCKER_HOST`` where ``DOCKER_CERT_PATH`` has a ``ca.pem`` and nothing of ours, which suffices docker's own command.

    The client's own reading of these variables demands all three files.
    """
    if not named.startswith("tcp://"):
        return None
    (host,) = parse([named], environ, "DOCKER_HOST")
    folder = Path(host.certificates)
    return host if host.certificates and (folder / "ca.pem").is_file() and not _has_own(folder) else None


class _Direct:
    """A client of one daemon elsewhere, in the form in which testcontainers has its own: nothing is read from the environment."""

    def __init__(self, host: Host, timeout: float) -> None:
        # Here: as in :func:`connect`.
        from docker import APIClient, DockerClient
        from docker.tls import TLSConfig

        tls: Any = False
        if host.certificates:
            folder = Path(host.certificates)
            own = (str(folder / "cert.pem"), str(folder / "key.pem")) if _has_own(folder) else None
            tls = TLSConfig(client_cert=own, ca_cert=str(folder / "ca.pem"), verify=host.verify)
        self._address = host.address
        self.client = DockerClient.__new__(DockerClient)
        # A version that is named is not asked for: nothing is said before the right authority is known.
        api = APIClient(base_url=host.address, version="1.41", tls=tls, timeout=timeout)
        _trusting(api)
        api._version = api._retrieve_server_version()
        self.client.api = api

    def get_connection_mode(self) -> str:
        """As where ``DOCKER_HOST`` is set."""
        return "docker_host"

    def host(self) -> str:
        """Where its published ports are."""
        return urlsplit(self._address).hostname or ""

    def find_host_network(self) -> str | None:
        """None of its networks is ours."""
        return None


@contextmanager
def _alone(environ: Mapping[str, str], socket: str | None) -> Iterator[None]:
    with _one_at_a_time, _environment(environ, socket):
        yield


_REMEDIES = (
    "start Docker (or set DOCKER_HOST), and see that `docker info` works for this user",
    'or use local binaries: pip install "pg-harness[embedded]" and backend = "process"',
    "or name a server that runs already: PGHARNESS_SERVER_URL=postgresql://…",
)


def _refusal(where: str) -> str | None:
    """Why nobody takes calls at a Unix socket; None where somebody does, or where it is no such address.

    It saves the client's imports (0.3 s) where no daemon runs, and the client loses a socket that it cannot connect.
    """
    if not where.startswith("unix://"):
        return None
    with socket_.socket(socket_.AF_UNIX) as caller:
        # A full queue of calls blocks: that is for the caller's own patience.
        caller.settimeout(0.5)
        try:
            caller.connect(where.removeprefix("unix://"))
        except TimeoutError:
            return None
        except OSError as error:
            return error.strerror or str(error)
    return None


def _rights(path: str) -> Iterator[str]:
    """What to do where a socket is there and this user may not use it: Docker gives it to a group."""
    try:
        if os.access(path, os.R_OK | os.W_OK):
            return
        number = os.stat(path).st_gid
    except OSError:
        return
    # Here: Windows has neither, and no such socket.
    import grp
    import pwd

    try:
        group = grp.getgrgid(number)
    except KeyError:
        yield f"the socket belongs to group {number}, in which this user is not"
        return
    try:
        user = pwd.getpwuid(os.geteuid())
    except KeyError:
        yield f"the socket belongs to the group {group.gr_name}, in which this user, who has no name, is not"
        return
    if user.pw_name in group.gr_mem or user.pw_gid == number:
        yield f"log in again: {user.pw_name} is in the group {group.gr_name}, and this session began before"
    else:
        yield (
            f"the socket belongs to the group {group.gr_name}, in which {user.pw_name} is not: "
            f"`sudo usermod -aG {group.gr_name} {user.pw_name}`, then log in again (its members are as good as root)"
        )


def _socket(environ: Mapping[str, str]) -> str | None:
    """The socket to use; None: leave it to testcontainers; empty: there is nothing to try."""
    home = environ.get("HOME") or os.path.expanduser("~")
    if environ.get("DOCKER_HOST") or environ.get("DOCKER_CONTEXT") or os.name == "nt":
        return None
    config = Path(environ.get("DOCKER_CONFIG") or Path(home, ".docker"), "config.json")
    if _mentions(Path(home, ".testcontainers.properties"), "tc.host") or _mentions(
        config, '"currentContext"'
    ):
        return None
    return _socket_here(environ)


def _socket_here(environ: Mapping[str, str]) -> str:
    """The socket of this machine's own daemon, whatever contexts there are; empty: there is none."""
    home = environ.get("HOME") or os.path.expanduser("~")
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    for path in (
        "/var/run/docker.sock",
        f"{runtime}/docker.sock",
        f"{home}/.docker/run/docker.sock",
        f"{home}/.docker/desktop/docker.sock",
        f"{home}/.colima/default/docker.sock",
        f"{runtime}/podman/podman.sock",
        "/run/podman/podman.sock",
    ):
        if os.path.exists(path) and os.access(path, os.R_OK | os.W_OK):
            return f"unix://{path}"
    # A socket that we may not use deserves the daemon's own refusal, not "none was found".
    return "unix:///var/run/docker.sock" if os.path.exists("/var/run/docker.sock") else ""


def _mentions(path: Path, word: str) -> bool:
    try:
        return word in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


@contextmanager
def _environment(environ: Mapping[str, str], socket: str | None) -> Iterator[None]:
    # testcontainers writes DOCKER_HOST into our own environment: the tests that follow would inherit it.
    before = {name: os.environ.get(name) for name in (*_READ, *_OF_REQUESTS)}
    wanted = {**{name: environ.get(name) for name in _READ}, **({"DOCKER_HOST": socket} if socket else {})}
    # Certificates for the web: requests takes them instead of the daemon's own.
    _set({**wanted, **dict.fromkeys(_OF_REQUESTS)})
    try:
        yield
    finally:
        _set(before)


_READ = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
"""Variables that the client reads in our own environment, whatever the caller's is."""
_OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _trusting(session: Any) -> None:
    """Let a session of requests check by its own certificates, where the environment names others for the web."""
    merge = session.merge_environment_settings

    def merged(url: str, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        return merge(url, proxies, stream, session.verify if verify is None else verify, cert)

    session.merge_environment_settings = merged


def _describe(tc: Any, socket: str | None, prefix: str, named: bool, folder: Path) -> Daemon:
    # docker-py's own default is the same today.
    tc.client.api.timeout = CALL_LIMIT
    mode = getattr(tc.get_connection_mode(), "value", "docker_host")
    host = tc.host()
    where = socket or os.environ.get("DOCKER_HOST") or str(tc.client.api.base_url)
    if mode == "bridge_ip":
        return Daemon(tc.client, "", "", tc.find_host_network(), prefix, where, folder=folder)
    if host in _LOCAL:
        # Not `localhost`: it may resolve to ::1, where the port is somebody else's.
        return Daemon(tc.client, "127.0.0.1", "127.0.0.1", None, prefix, where, folder=folder)
    # A daemon elsewhere: its loopback cannot be reached from here. From a container beside it (unix
    # socket, the host is our gateway) only that bridge's address is opened.
    # Of another machine no address is known here but the one that we reach it by: its ports are open on all, with TLS.
    everywhere = _EVERYWHERE[":" in host]
    beside = str(tc.client.api.base_url).startswith(("http+unix", "http+docker", "unix"))
    if str(tc.client.api.base_url).startswith("http://") and where not in _told_of:
        _told_of.add(where)
        logger.warning(
            "docker: the daemon at %s takes commands without TLS: whoever reaches that port is root on its machine, and reads "
            "and changes all that we say to it, passwords too. Protect it (DOCKER_TLS_VERIFY=1 with DOCKER_CERT_PATH), or "
            "reach it by ssh:// instead",
            where,
        )
    bind = host if beside and host[:1].isdigit() and not named else everywhere
    return Daemon(tc.client, host, bind, None, prefix, where, folder=folder)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn every error of the Docker client within the block into one of ours.

    Raises:
        ServerLost: the daemon does not answer (any more). BackendError: it refused.
    """
    # Here: 0.3 s, for nothing where no daemon runs.
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        raise BackendError(f"Docker refused to {doing}: {text_of(error)}") from error
    # What comes as a stream is read past the client: urllib3's own errors get through.
    except (RequestException, HTTPError, DockerException) as error:
        raise ServerLost(
            f"the Docker daemon stopped answering (while it should {doing}): {text_of(error)}"
        ) from error


def text_of(error: BaseException) -> str:
    """What an error of the Docker client says, in one line without its wrappings."""
    text = str(getattr(error, "explanation", None) or error)
    if "Max retries exceeded" in text or "Connection aborted" in text:
        # urllib3 wraps the system's own words ("Connection refused") in a screen of its own.
        text = next(iter(re.findall(r"\[(?:Errno -?\d+|SSL[^]]*)\] ([^\"')]+)", text)), text)
    return " ".join(text.split())[:400]


def gone(error: BaseException) -> int:
    """404 where the daemon says that a thing is not there, 409 where it is in use or being removed already; else 0."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if status in (404, 409) else 0
