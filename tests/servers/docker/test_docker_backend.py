"""Servers in containers: any image, our entrypoint, and everything that goes wrong there."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fix_backends import Checkout, docker, until
from fix_fleets import Estate

from harness.config.project import Project
from harness.errors import BackendUnavailable, ServerRefused, ServerStartError
from harness.postgres.session import Session
from harness.servers import inventory
from harness.servers.docker import abandoned, spec
from harness.servers.docker.backend import LABEL, DockerBackend
from harness.servers.docker.daemon import connect
from harness.servers.handshake import attach, life_key

pytestmark = pytest.mark.docker
IMAGE = "pgharness-test:15"


def backend(place: Checkout, image: str = IMAGE, **options: Any) -> DockerBackend:
    return DockerBackend(place.environ, image=image, **options)


def containers(place: Checkout) -> list[str]:
    return docker("ps", "-aq", "--filter", f"label={LABEL}.project={place.project}").split()


@pytest.fixture
def image() -> Iterator[Callable[[dict[str, bytes | Path], str], str]]:
    """Makes an image of a few files and nothing else; removed afterwards."""
    made: list[str] = []

    def make(files: dict[str, bytes | Path], architecture: str = "amd64") -> str:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            for name, content in files.items():
                data = content.read_bytes() if isinstance(content, Path) else content
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o755
                tar.addfile(entry, io.BytesIO(data))
        tag = f"pgharness-made-{os.getpid()}:{len(made)}"
        made.append(tag)
        docker("load", stdin=_archive(layer.getvalue(), tag, architecture))
        return tag

    yield make
    for tag in made:
        docker("rmi", "-f", tag)


def _archive(layer: bytes, tag: str, architecture: str) -> bytes:
    import hashlib

    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created_by": "test"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def shell() -> dict[str, bytes | Path]:
    """dash and what it is linked with: a POSIX shell and not one other program."""
    files: dict[str, bytes | Path] = {"bin/sh": Path("/bin/sh").resolve()}
    for word in subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout.split():
        if word.startswith("/"):
            files[word.lstrip("/")] = Path(word).resolve()
    return files


@pytest.mark.parametrize("version", ["15", "17", "busybox"])
@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_start_find_stop(place: Checkout, version: str, storage: str) -> None:
    ours = backend(place, f"pgharness-test:{version}")
    info = ours.start(place.request(storage=storage))
    with Session.connect(info.dsn) as session:
        assert session.server_version // 10000 == {"15": 15}.get(version, 17)
        shown = session.row("SELECT current_setting('data_directory'), current_setting('max_wal_size')")
    assert shown == (
        ("/pgharness/memory/1", "192MB") if storage == "memory" else ("/pgharness/data/1", "1GB")
    )
    assert info.storage == storage
    # Another process, without any hint, finds all of it again; the password too.
    assert backend(place).find(place.project, "run") == info
    assert "database system is ready" in "\n".join(ours.logs(info, False))
    ours.stop(info)
    assert containers(place) == []
    # That it is gone already is success.
    ours.stop(info)


def test_what_docker_shows_holds_no_secret_and_no_open_port(place: Checkout) -> None:
    ours = backend(place)
    info = ours.start(place.request())
    shown = json.loads(docker("inspect", info.handle))[0]
    assert info.dsn.password not in json.dumps(shown)
    assert info.dsn.password not in docker("logs", info.handle)
    assert info.dsn.password not in docker("top", info.handle, "-eo", "pid,args")
    (published,) = shown["NetworkSettings"]["Ports"]["5432/tcp"]
    assert published["HostIp"] == "127.0.0.1"
    labels = shown["Config"]["Labels"]
    assert labels[f"{LABEL}.server-id"] == info.server_id
    assert labels[f"{LABEL}.root"] == str(place.root)
    assert shown["HostConfig"]["AutoRemove"] is True
    assert shown["HostConfig"]["Init"] is True
    assert shown["Config"]["StopSignal"] == "SIGINT"
    # Not readable by the server's own user, who runs what a test sends it.
    with Session.connect(info.dsn) as session, pytest.raises(ServerRefused, match="exit code 1"):
        session.execute("COPY (SELECT 1) TO PROGRAM 'cat /pgharness/password'")


def test_the_watcher_is_inits_child(place: Checkout) -> None:
    info = backend(place).start(place.request(ttl=300))
    rows = [
        line.split(None, 2) for line in docker("top", info.handle, "-eo", "pid,ppid,args").splitlines()[1:]
    ]
    init = next(pid for pid, _, args in rows if "docker-init" in args or "tini" in args)
    postmaster = next(pid for pid, parent, args in rows if "postgres" in args and parent == init)
    (watcher,) = [(pid, parent) for pid, parent, args in rows if "watch.sh" in args]
    assert watcher[1] == init != postmaster


def test_a_watcher_that_cannot_connect_ends_the_server(place: Checkout) -> None:
    ours = backend(place)
    info = ours.start(place.request(ttl=3))
    with Session.connect(info.dsn) as session:
        # Held, so idleness is not the reason; and nobody new is let in.
        session.value("SELECT pg_advisory_lock_shared(%s)", (life_key(info),))
        session.execute("COPY (SELECT 'local all all reject') TO '/pgharness/memory/1/pg_hba.conf'")
        session.value("SELECT pg_reload_conf()")
        # The watcher may have come in before; if so, its session is ended.
        session.value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE '%watcher%'"
        )
        until(lambda: containers(place) == [], seconds=40, what="the server ended")


def test_a_missing_image(place: Checkout) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        backend(place, "127.0.0.1:9/no-such/image:1").start(place.request())
    assert caught.value.exit_code == 121
    assert "127.0.0.1:9/no-such/image:1 is not on this Docker daemon" in str(caught.value)
    assert "docker login" in str(caught.value)
    assert "pulling" in place.told[0]
    assert containers(place) == []


def test_an_image_without_a_shell(place: Checkout, image: Callable[..., str]) -> None:
    with pytest.raises(ServerStartError, match="has no /bin/sh"):
        backend(place, image({"hello": b"x"})).start(place.request())
    assert containers(place) == []


def test_an_image_without_postgresql(place: Checkout, image: Callable[..., str]) -> None:
    # Nothing but a shell: this also proves that the entrypoint gets this far with builtins alone.
    with pytest.raises(ServerStartError) as caught:
        backend(place, image(shell())).start(place.request())
    assert caught.value.exit_code == 122
    assert "this image holds no PostgreSQL server" in caught.value.log_tail
    assert "not found" not in caught.value.log_tail
    assert containers(place) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the daemon's machine is taken for this one")
def test_an_image_for_another_architecture(
    place: Checkout, image: Callable[..., str], new_estate: Callable[..., Estate]
) -> None:
    # An ELF header of AArch64 with nothing behind it.
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(44)
    made = image({"bin/sh": elf}, "arm64")
    with pytest.raises(ServerStartError, match="it is for arm64, and the daemon's machine is amd64"):
        backend(place, made).start(place.request())
    # Told before it is tried: where an emulator is registered, it is slow and right.
    assert "it is for arm64" in place.told[0]
    assert containers(place) == []
    # For a server each, its version is asked first.
    estate = new_estate(backend="docker", image=made)
    with pytest.raises(ServerStartError, match="it is for arm64, and the daemon's machine is amd64"):
        estate.open()
    assert docker("ps", "-aq", "--filter", f"label={LABEL}.version-of={made}") == ""


def test_a_label_that_is_wrong_hinders_nobody(place: Checkout, image: Callable[..., str]) -> None:
    # `docker import --platform` writes what it is told.
    files = shell()
    with pytest.raises(ServerStartError) as caught:
        backend(place, image(files, "arm64")).start(place.request())
    assert "this image holds no PostgreSQL server" in caught.value.log_tail


def test_a_container_that_dies_at_start_shows_its_log(place: Checkout) -> None:
    began = time.monotonic()
    with pytest.raises(ServerStartError) as caught:
        backend(place).start(place.request(settings={"shared_buffers": "plenty"}))
    assert 'invalid value for parameter "shared_buffers": "plenty"' in caught.value.log_tail
    assert time.monotonic() - began < 20
    assert len(str(caught.value).splitlines()) < 30
    assert containers(place) == []


def test_a_memory_file_system_that_is_full_at_initdb(place: Checkout) -> None:
    with pytest.raises(ServerStartError, match="No space left on device"):
        backend(place, memory_limit=9 * 1024**2).start(place.request(storage="memory"))
    assert containers(place) == []


def test_paused_by_hand(place: Checkout) -> None:
    settings = place.settings(backend="docker", image=IMAGE)
    first = place.ensure(settings)
    first.close()
    docker("pause", first.info.handle)
    place.told.clear()
    with place.ensure(settings) as again:
        assert again.info.server_id == first.info.server_id
    assert any("was paused" in line for line in place.told)


def test_removed_by_hand(place: Checkout) -> None:
    settings = place.settings(backend="docker", image=IMAGE)
    first = place.ensure(settings)
    first.close()
    docker("rm", "-f", first.info.handle)
    with place.ensure(settings) as again:
        assert again.started
        assert again.info.server_id != first.info.server_id
    assert len(containers(place)) == 1


def test_a_persons_server_survives_docker_stop(place: Checkout) -> None:
    settings = place.settings(backend="docker", image=IMAGE)
    with place.ensure(settings, purpose="up") as first:
        assert first.info.storage == "disk"
        first.session.execute("CREATE TABLE precious AS SELECT 1 AS n")
    began = time.monotonic()
    docker("stop", first.info.handle)
    # The stop signal is the fast shutdown: nobody waits for ten seconds and a SIGKILL.
    assert time.monotonic() - began < 8
    with place.ensure(settings, purpose="up") as again:
        assert again.info.server_id == first.info.server_id
        assert again.session.value("SELECT n FROM precious") == 1
    docker("restart", first.info.handle)
    with place.ensure(settings, purpose="up") as third:
        assert third.session.value("SELECT n FROM precious") == 1
    docker("kill", first.info.handle)
    with place.ensure(settings, purpose="up") as fourth:
        assert fourth.session.value("SELECT n FROM precious") == 1


def test_data_that_the_image_brought_gets_our_password(place: Checkout) -> None:
    ours = backend(place)
    made = ours.start(place.request("up"))
    with Session.connect(made.dsn) as session:
        session.execute("CREATE TABLE baked AS SELECT 7 AS n")
    docker("stop", made.handle)
    tag = f"pgharness-baked-{os.getpid()}:1"
    docker("commit", made.handle, tag)
    try:
        for storage in ("disk", "memory"):
            request = place.request(storage=storage)
            info = backend(place, tag).start(request)
            assert info.dsn.password == request.password != made.dsn.password
            with Session.connect(info.dsn) as session:
                assert session.value("SELECT n FROM baked") == 7
                assert session.value("SHOW data_directory").startswith(
                    "/pgharness/memory" if storage == "memory" else "/pgharness/data"
                )
            ours.stop(info)
        # Where the data does not fit into memory it is used where it is; psql in the container finds the server.
        cramped = backend(place, tag, memory_limit=16 * 1024**2)
        info = cramped.start(place.request(storage="memory"))
        with Session.connect(info.dsn) as session:
            assert session.value("SHOW data_directory") == "/pgharness/data/1"
        words = ["-Atc", "SELECT n FROM baked"]
        ask = cramped.psql(info, "postgres", words, user=info.dsn.user, terminal=False)
        assert ask is not None
        assert subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout == "7\n"
        assert any("does not fit into memory" in line for line in cramped.logs(info, False))
        cramped.stop(info)
    finally:
        ours.stop(made)
        docker("rmi", "-f", tag)


def test_an_interrupt_leaves_no_container(place: Checkout) -> None:
    starter = place.starter(backend="docker", image=IMAGE)
    until(lambda: containers(place), seconds=30, what="the container exists")
    starter.send_signal(signal.SIGINT)
    starter.communicate(timeout=60)
    if starter.returncode == 0:
        pytest.skip("it was ready before the signal came")
    assert containers(place) == []


def test_a_daemon_over_tcp(place: Checkout) -> None:
    with _proxy("/var/run/docker.sock") as port:
        place.environ["DOCKER_HOST"] = f"tcp://127.0.0.1:{port}"
        found = connect(place.environ, timeout=10)
        assert (found.host, found.bind, found.local) == ("127.0.0.1", "127.0.0.1", True)
        ours = backend(place)
        info = ours.start(place.request())
        with Session.connect(info.dsn) as session:
            assert session.value("SELECT 1") == 1
        ours.stop(info)
    assert os.environ.get("DOCKER_HOST") is None or "127.0.0.1" not in os.environ["DOCKER_HOST"]


def test_threads_leave_the_environment_as_it_was(place: Checkout) -> None:
    place.environ["DOCKER_HOST"] = "unix:///var/run/docker.sock"
    before = os.environ.get("DOCKER_HOST")
    with ThreadPoolExecutor(4) as threads:
        daemons = list(threads.map(lambda _: connect(place.environ, timeout=10), range(8)))
    for each in daemons:
        each.client.close()
    assert os.environ.get("DOCKER_HOST") == before
    ours = backend(place)
    with ThreadPoolExecutor(4) as threads:
        assert len({id(found) for found in threads.map(lambda _: ours.daemon, range(8))}) == 1


def test_a_daemon_that_says_nothing_costs_a_second(place: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place.environ["DOCKER_HOST"] = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="did not answer within 1 s"):
            connect(place.environ, timeout=1)
        assert time.monotonic() - began < 4
        # Who asks with the same patience is told at once; who has more of it asks again, and is told what was waited.
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="did not answer within 1 s"):
            connect(place.environ, timeout=1)
        assert time.monotonic() - began < 0.5
        with pytest.raises(BackendUnavailable, match="did not answer within 2 s"):
            connect(place.environ, timeout=2)
        assert time.monotonic() - began >= 2


def test_a_log_in_by_ssh_may_take_longer_than_a_socket_here(place: Checkout) -> None:
    """`auto` and `doctor` give a daemon a second; a busy machine needs more than that to let somebody in."""
    programs = place.root / "programs"
    programs.mkdir()
    ssh = programs / "ssh"
    ssh.write_text("#!/bin/sh\nsleep 1.5\nunset DOCKER_HOST\nexec docker system dial-stdio\n")
    ssh.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    daemon = connect(place.environ | {"DOCKER_HOST": "ssh://somebody@busy", "PATH": path}, timeout=1)
    daemon.client.close()
    assert daemon.ssh == "ssh://somebody@busy"


class _proxy:
    """Forwards TCP connections on loopback to a Unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> int:
        self._start(self._accept)
        port: int = self.listener.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        # shutdown, not close: a thread that is inside accept or recv does not notice a close.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(timeout=10)
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(timeout=10)
        for each in (self.listener, *self.sockets):
            each.close()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        self.threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self.threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            there = socket.socket(socket.AF_UNIX)
            there.connect(self.path)
            self.sockets += [client, there]
            for source, target in ((client, there), (there, client)):
                self._start(self._copy, source, target)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_an_interrupt_during_a_pull_leaves_nothing(place: Checkout) -> None:
    # A registry that takes the call and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as registry:
        registry.settimeout(30)
        image = f"127.0.0.1:{registry.getsockname()[1]}/nobody/postgres:1"
        starter = place.starter(backend="docker", image=image)
        caller, _ = registry.accept()
        with caller:
            starter.send_signal(signal.SIGINT)
            _, err = starter.communicate(timeout=30)
        assert starter.returncode != 0
        assert "KeyboardInterrupt" in err
    assert containers(place) == []
    assert inventory.servers(Project.of(place.settings(), place.environ)) == []
    assert not place.hint().exists()


def _dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as ended:
        pass
    return ended.pid


def _made(place: Checkout, purpose: str, maker: str, verb: str = "create") -> str:
    """A container of this checkout's, as another client has made it."""
    request = place.request(purpose)
    labels = {"project": place.project, "purpose": purpose, "maker": maker, "server-id": request.server_id}
    words = [word for name, value in labels.items() for word in ("--label", f"{LABEL}.{name}={value}")]
    words += ["--name", spec.name_of(request)]
    made = docker(verb, *(["-d"] if verb == "run" else []), *words, IMAGE, "true")
    if verb == "run":
        docker("wait", made)
    return made


def test_a_container_whose_maker_was_killed_is_removed_by_the_next(place: Checkout) -> None:
    _made(place, "run", f"{_dead()} {spec.process_space()}")
    assert len(containers(place)) == 1
    with place.ensure(place.settings(backend="docker", image=IMAGE)) as found:
        assert found.started
        assert len(containers(place)) == 1


def test_what_a_person_runs_from_an_image_of_a_server_is_that_persons(
    place: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker commit` keeps our labels in the image: `down` would remove the container that runs from it."""
    ours = backend(place, "pgharness-test:busybox")
    info = ours.start(place.request())
    tag = f"pgharness-kept-{os.getpid()}"
    docker("commit", info.handle, tag)
    try:
        kept = [docker("run", "-d", "--entrypoint", "sleep", tag, "300"), docker("create", tag)]
        try:
            monkeypatch.setattr(abandoned, "CUT_OFF", 0)
            assert [found.handle for found in ours.list(place.project)] == [info.handle]
            assert ours.snapshots().leftovers() == []
            found = ours.find(place.project, info.purpose)
            assert found is not None
            assert found.handle == info.handle
            ours.stop(info)
            assert not ours.holds(place.project, info.purpose)
            assert len(containers(place)) == 2
        finally:
            docker("rm", "-f", *kept)
    finally:
        ours.stop(info)
        docker("rmi", "-f", tag)


def _start(place: Checkout, purpose: str) -> None:
    """Look at what is there under that name, as a start does, and start nothing: there is no such image."""
    with pytest.raises(ServerStartError, match="was removed"):
        backend(place).start(place.request(purpose, snapshot=f"sha256:{'0' * 64}"))


@pytest.mark.parametrize(
    ("purpose", "verb"), [("run", "create"), ("bake-0123", "create"), ("bake-0123", "run")]
)
def test_what_another_client_is_about_to_start_or_to_keep_stays(
    place: Checkout, monkeypatch: pytest.MonkeyPatch, purpose: str, verb: str
) -> None:
    """Its lock lies on another machine, or in another folder: it has just created a container, or is about to commit it."""
    living = _made(place, purpose, f"{os.getpid()} {spec.process_space()}", verb)
    elsewhere = _made(place, purpose, f"{_dead()} 0123456789abcdef", verb)
    _made(place, purpose, f"{_dead()} {spec.process_space()}", verb)
    assert len(containers(place)) == 3
    _start(place, purpose)
    left = docker("ps", "-aq", "--no-trunc", "--filter", f"label={LABEL}.project={place.project}").split()
    assert set(left) == {living, elsewhere}
    # Nobody is about to for that long.
    monkeypatch.setattr(abandoned, "CUT_OFF", 0)
    _start(place, purpose)
    assert containers(place) == []


def test_a_server_of_another_client_is_removed_once_nobody_uses_it(place: Checkout) -> None:
    """Two clients that bake the same at once: neither ends the other's server; that of one who was killed is replaced."""
    ours = backend(place, "pgharness-test:busybox")
    info = ours.start(place.request("bake-0123"))
    try:
        session, why = attach(info)
        assert session is not None, why
        _start(place, "bake-0123")
        assert session.value("select 1") == 1
        with Session.connect(info.dsn) as other:
            session.close()
            # As a baker does in the end: we cannot find out whether he is there.
            other.execute("alter role postgres password null")
            _start(place, "bake-0123")
            assert len(containers(place)) == 1
            other.execute(f"alter role postgres password '{info.dsn.password}'")
        _start(place, "bake-0123")
        assert containers(place) == []
    finally:
        ours.stop(info)
