"""Images that are like other people's: Alpine's userland, the official image's volume, no user of the server's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import INSTALLED, STARTER, Checkout, docker, processes_naming, until
from fix_daemons import SMALL
from fix_fleets import Estate
from fix_servers import binaries_of

from harness.config.project import Project
from harness.postgres.session import Session
from harness.runs.run import Run
from harness.servers import inventory
from harness.servers.docker.backend import DockerBackend
from harness.servers.process.record import Record

pytestmark = pytest.mark.docker

# As docker-library/postgres has them: the volume, PGDATA in it, an entrypoint of their own, SIGINT.
OFFICIAL = """
ENV PGDATA=/var/lib/postgresql/data PG_MAJOR=17 LANG=en_US.utf8
ENV PATH=$PATH:/usr/lib/postgresql/17/bin
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["docker-entrypoint.sh"]
STOPSIGNAL SIGINT
EXPOSE 5432
CMD ["postgres"]
"""


@pytest.fixture
def image() -> Iterator[Callable[[str], str]]:
    """Builds an image from the text of a Dockerfile."""
    made: list[str] = []

    def build(text: str) -> str:
        made.append(f"pgharness-other-{os.getpid()}:{len(made)}")
        docker(
            "build",
            "-q",
            "-t",
            made[-1],
            "-",
            stdin=text.encode(),
            environ={**os.environ, "DOCKER_BUILDKIT": "0"},
        )
        return made[-1]

    yield build
    for tag in made:
        docker("rmi", "-f", tag)


def volumes() -> set[str]:
    return set(docker("volume", "ls", "-q").split())


def test_a_volume_of_the_images_holds_nothing_of_ours(
    new_estate: Callable[..., Estate], image: Callable[[str], str]
) -> None:
    before = volumes()
    estate = new_estate(backend="docker", image=image(f"FROM {SMALL}\n{OFFICIAL}"))
    with estate.open() as fleet:
        leases = fleet.leases(2)
        for lease in leases:
            with lease.connect() as connection:
                assert connection.execute("select name from users").fetchall() == [("a",)]
        session = fleet.members["2"].link.session
        assert session.value("show data_directory") == "/pgharness/memory/1"
        assert session.value("show timezone") == "UTC"
    # Yours starts from the same image, on disk, and its data survives there.
    settings = estate.settings(isolation="database")
    with Run.open_with(settings, estate.environ, purpose="up") as mine:
        assert not mine.templates["default"].built
        assert mine.server.info.storage == "disk"
        with mine.lease().connect() as connection:
            connection.execute("insert into users (name) values ('precious')")
        handle = mine.server.info.handle
    docker("stop", handle)
    with (
        Run.open_with(settings, estate.environ, purpose="up") as mine,
        mine.session._leased("1").connect() as connection,
    ):
        assert connection.execute("select count(*) from users").fetchone() == (2,)
    inventory.stop(Project.of(settings, estate.environ), purpose="up")
    assert any("starting from a baked server" in line for line in estate.told)
    # Containers of such an image have a volume each: gone with them.
    assert volumes() <= before


@pytest.mark.parametrize(
    ("lines", "user"),
    [
        ("", "70"),
        ("RUN rm /etc/passwd /etc/group", "26"),
        ("RUN echo 'db:x:1001:1001::/:/bin/sh' >>/etc/passwd\nUSER db", "1001"),
        ("USER 1234:1234", "70"),
    ],
    ids=["alpine", "no passwd", "a user of its own", "a number"],
)
def test_whoever_runs_the_server_is_unprivileged(
    place: Checkout, image: Callable[[str], str], lines: str, user: str
) -> None:
    ours = DockerBackend(place.environ, image=image(f"FROM {SMALL}\n{lines}\n") if lines else SMALL)
    info = ours.start(place.request(ttl=300))
    with Session.connect(info.dsn) as session:
        assert session.value("show data_directory") == "/pgharness/memory/1"
    rows = [line.split() for line in docker("top", info.handle, "-eo", "pid,uid,args").splitlines()[1:]]
    assert {uid for _, uid, *words in rows if "postgres" in words[0]} == {user}
    ours.stop(info)


def test_the_switch_with_busybox(place: Checkout) -> None:
    ours = DockerBackend(place.environ, image=SMALL)
    ours.start(place.request(ttl=1))
    assert until(lambda: ours.list(place.project) == [], seconds=20, what="the container to end itself") < 15


def test_local_servers_where_sh_is_busybox(place: Checkout, tmp_path: Path) -> None:
    """As on Alpine: launch.sh and watch.sh by busybox's shell, in a mount namespace of the starter's."""
    folder = binaries_of("15") or binaries_of("18")
    if os.geteuid() != 0 or shutil.which("unshare") is None or folder is None:
        pytest.skip("mounting busybox over /bin/sh needs root, unshare, and a local PostgreSQL")
    container = docker("create", SMALL, "true")
    docker("cp", f"{container}:/bin/busybox", str(tmp_path / "busybox"))
    docker("rm", container)
    given = json.dumps({"root": str(place.root), "ttl": 1, "backend": "process"})
    script = f'mount --bind {tmp_path}/busybox "$(readlink -f /bin/sh)" && exec "$@"'
    # bash: the shell that mounts must not be the one that is mounted over.
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, "-c", STARTER, given]
    environ = {**place.environ, "PYTHONPATH": str(INSTALLED), "PATH": f"{folder}:{os.environ['PATH']}"}
    starter = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )
    answer = place.answer(starter)
    record = Record.read(Path(answer["handle"]))
    if record is not None and Path(f"/proc/{record.watcher}").exists():
        assert os.path.samefile(f"/proc/{record.watcher}/exe", tmp_path / "busybox")
    until(
        lambda: not os.path.exists(answer["handle"]),
        seconds=20,
        what="the server to end itself and remove its folder",
    )
    until(lambda: not processes_naming(answer["handle"]), seconds=10, what="no stray process")
    assert inventory.find(Project.of(place.settings(backend="process"), place.environ)) is None
