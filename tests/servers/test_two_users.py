"""Two users of one machine: whatever one does with pg-harness, the other's servers, databases and files stay as they are.

The table below is tried in both directions: an unprivileged user against root, against another one, and root against him.
"""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from fix_backends import docker
from fix_users import SHARED, User

from harness.config.project import project_id
from harness.dsn import Dsn

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


# --- what one may try --------------------------------------------------------------------------------------


def beside(stranger: User, victim: User) -> None:
    """Works in a checkout of his own."""
    url = Dsn.parse(stranger.ok("up").strip())
    assert url.port not in (victim.hint("up").port, victim.hint("run").port)
    stranger.ok("run", "--", "true")
    stranger.ok("gc")
    assert victim.root.name
    assert str(victim.root) not in stranger.ok("status")
    stranger.ok("down", "--all", "--yes")


def in_his_checkout(stranger: User, victim: User) -> None:
    """Calls everything in the other's checkout, which everybody may read: he gets servers of his own."""
    stranger.ok("gc", folder=victim.root)
    stranger.ok("down", "--all", folder=victim.root)
    url = Dsn.parse(stranger.ok("up", folder=victim.root).strip())
    assert url.port != victim.hint("up").port
    stranger.ok("run", "--", "true", folder=victim.root)
    stranger.ok("reset", folder=victim.root)
    stranger.ok("gc", folder=victim.root)
    stranger.ok("down", "--all", folder=victim.root)


def with_his_state(stranger: User, victim: User) -> None:
    """Says that the other's state is his."""
    for words in (("up",), ("run", "--", "true"), ("gc",), ("down", "--all", "--yes"), ("url",), ("status",)):
        said = stranger.refused(*words, PGHARNESS_STATE_DIR=str(victim.state))
        assert "PGHARNESS_STATE_DIR" in said


def with_his_cache(stranger: User, victim: User) -> None:
    """Says that the other's cache is his: root would start programs from there."""
    cache = victim.home / ".cache" / "pg-harness"
    for words in (("up",), ("bake",), ("gc",)):
        stranger.refused(*words, PGHARNESS_CACHE_DIR=str(cache))


def with_his_home(stranger: User, victim: User) -> None:
    """Says that the other's home is his (`sudo` that keeps HOME)."""
    for words in (("up",), ("down", "--all", "--yes"), ("gc",)):
        stranger.refused(*words, HOME=str(victim.home))


def without_a_home(stranger: User, victim: User) -> None:
    """Has no HOME (cron, a service)."""
    if stranger.uid:
        # The system's word for it: of root it would be root's own.
        stranger.ok("up", drop=["HOME"])
        stranger.ok("down", "--all", drop=["HOME"])


def with_an_open_umask(stranger: User, victim: User) -> None:
    """Lets everybody write what he makes: nothing of ours is open all the same."""
    code = "import os; os.umask(0); sys.argv = ['pg-harness', 'up']; importlib.import_module('harness.cli').main()"
    stranger.does(code)
    opened = [
        path
        for top in (stranger.state, stranger.memory)
        for path in top.rglob("*")
        if not path.is_symlink() and os.lstat(path).st_mode & 0o022
    ]
    assert opened == []
    stranger.ok("down", "--all", "--yes")


def reads(stranger: User, victim: User) -> None:
    """Looks for passwords in files and in the list of processes. Root reads everything."""
    secrets = [victim.hint("up").password, victim.hint("run").password, str(Dsn.parse(victim.url).password)]
    files = [
        str(path) for top in (victim.state, *victim.folders) for path in top.rglob("*") if path.is_file()
    ]
    assert files
    # Backwards: what he asks for stands in the list of processes too.
    code = f"""
import glob
secrets = [secret[::-1] for secret in {[secret[::-1] for secret in secrets]}]
def holds(path):
    try:
        text = open(path, errors="replace").read()
    except OSError:
        return False
    return any(secret in text for secret in secrets)
places = {files} + glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ")
print([path for path in places if holds(path)])
"""
    assert stranger.uid == 0 or stranger.does(code) == "[]\n"


def logs_in(stranger: User, victim: User) -> None:
    """Comes to the ports, which all users of the machine reach."""
    for purpose in ("up", "run"):
        dsn = victim.hint(purpose)
        for user in ("postgres", "app", stranger.name):
            for password in ("", "postgres", "app"):
                with pytest.raises(psycopg.OperationalError):
                    psycopg.connect(
                        host=dsn.host, port=dsn.port, user=user, password=password, dbname="postgres"
                    ).close()


def holds_locks(stranger: User, victim: User) -> None:
    """Holds every lock of the other's that he can open, while the other works."""
    locks = [
        str(path)
        for path in (*victim.state.rglob("*.lock"), *victim.state.rglob("*"), victim.memory, victim.root)
    ]
    code = (
        f"import fcntl\nheld = []\nfor path in {locks!r}:\n    try:\n        held.append(open(path, 'a'))\n"
        "        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)\n        print(path)\n    except OSError:\n        pass"
    )
    if stranger.uid:
        assert stranger.does(code) == ""


def names_his_processes(stranger: User, victim: User) -> None:
    """Has a record that names the other's postmaster, and ends "his own"."""
    stranger.ok("up")
    (folder,) = (
        (stranger.state / "servers").glob("*-up-*")
        if stranger.uid
        else Path("/var/lib/pg-harness/servers").glob(f"{project_id(stranger.root)}-up-*")
    )
    folders = [*victim.folders, *(victim.state / "servers").glob("*-up-*")]
    his = [path / "server.json" for path in folders if (path / "server.json").exists()]
    number = json.loads(his[0].read_text())["pid"] if his else 1
    whole = json.loads((folder / "server.json").read_text())
    (folder / "server.json").write_text(json.dumps({**whole, "pid": number, "watcher": number}))
    stranger.ok("down", "--all", "--yes")
    # His own has gone on without a word of it: no record names it any more.
    with suppress(ProcessLookupError):
        os.kill(whole["pid"], signal.SIGQUIT)


TABLE = [
    beside, in_his_checkout, with_his_state, with_his_cache, with_his_home, without_a_home, with_an_open_umask, reads, logs_in,
    holds_locks, names_his_processes,
]  # fmt: skip


@dataclass(frozen=True)
class Pair:
    stranger: User
    victim: User


@pytest.fixture(
    scope="module", params=["a user against root", "a user against another", "root against a user"]
)
def pair(request: pytest.FixtureRequest, new_user: Callable[..., User]) -> Iterator[Pair]:
    """The other one has two servers, with rows in his database."""
    words = {
        "a user against root": ("a", "root"),
        "a user against another": ("a", "b"),
        "root against a user": ("root", "b"),
    }
    stranger, victim = (
        new_user(name + str(len(request.param)) if name != "root" else name) for name in words[request.param]
    )
    victim.ok("up")
    victim.ok("run", "--", "true")
    with psycopg.connect(victim.url) as session:
        session.execute("insert into users (name) values ('mine')")
    yield Pair(stranger, victim)
    victim.ok("down", "--all", "--yes")


@pytest.mark.parametrize("attempt", TABLE, ids=lambda attempt: attempt.__name__)
def test_nothing_of_the_others_changes(pair: Pair, attempt: Callable[[User, User], None]) -> None:
    before = pair.victim.picture()
    attempt(pair.stranger, pair.victim)
    assert pair.victim.picture() == before
    # And he works as ever.
    pair.victim.ok("run", "--", "true")


# --- names that are taken first ----------------------------------------------------------------------------


def folder_of_his(path: Path, stranger: User) -> None:
    path.mkdir()
    path.chmod(0o777)


def link_to_his(path: Path, stranger: User) -> None:
    path.symlink_to(stranger.home)


def pipe(path: Path, stranger: User) -> None:
    os.mkfifo(path)


def door(path: Path, stranger: User) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def file(path: Path, stranger: User) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    "plant", [folder_of_his, link_to_his, pipe, door, file], ids=lambda plant: plant.__name__
)
def test_a_name_in_shared_memory_that_the_other_took_first(
    new_user: Callable[..., User], plant: Callable[[Path, User], None]
) -> None:
    stranger, victim = new_user(f"s{plant.__name__[:4]}"), new_user(f"v{plant.__name__[:4]}")
    plant(victim.memory, stranger)
    os.chown(victim.memory, stranger.uid, stranger.gid, follow_symlinks=False)
    before = os.lstat(victim.memory)
    done = victim.call("run", "--", "true")
    assert done.returncode == 0, done.stderr
    assert f"{victim.memory} is not used" in done.stderr
    assert victim.call("run", "--", "true").returncode == 0
    victim.ok("gc")
    victim.ok("down", "--all", "--yes")
    after = os.lstat(victim.memory)
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_ino, before.st_mode, before.st_uid, before.st_mtime_ns,
    )  # fmt: skip
    for path in SHARED.glob(f"{victim.memory.name}-*"):
        assert list(path.iterdir()) == []
    victim.memory.rmdir() if victim.memory.is_dir() and not victim.memory.is_symlink() else victim.memory.unlink()


# --- a daemon that both use --------------------------------------------------------------------------------


def test_a_socket_without_rights_names_the_group(new_user: Callable[..., User]) -> None:
    user = new_user("nodock")
    path = user.top / "docker.sock"
    group = grp.getgrnam("adm")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        os.chown(path, 0, group.gr_gid)
        path.chmod(0o660)
        user.environ.pop("PGHARNESS_PG_VERSION")
        said = user.refused("up", PGHARNESS_BACKEND="docker", DOCKER_HOST=f"unix://{path}")
    assert "does not answer: Permission denied" in said
    assert f"the socket belongs to the group adm, in which {user.name} is not" in said
    assert f"`sudo usermod -aG adm {user.name}`, then log in again" in said


@pytest.mark.docker
def test_a_daemon_that_both_use(new_user: Callable[..., User]) -> None:
    """In one checkout even, whose name is in the labels: everybody ends his own containers only."""
    group = os.stat("/var/run/docker.sock").st_gid
    stranger, victim = new_user("sdock", docker=group), new_user("vdock", docker=group)
    for user in (stranger, victim):
        user.environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15"}
        user.environ.pop("PGHARNESS_PG_VERSION")
    url = victim.ok("up").strip()
    label = f"label=dev.pg-harness.project={project_id(victim.root)}"
    mine = docker("ps", "-aq", "--no-trunc", "--filter", label).split()
    assert len(mine) == 1
    looks = ["inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Status}}", *mine]
    before = docker(*looks)
    assert stranger.ok("up", folder=victim.root).strip() != url
    for words in (("status",), ("gc",), ("down", "--all", "--yes"), ("gc",)):
        stranger.ok(*words, folder=victim.root)
    assert docker(*looks) == before
    assert docker("ps", "-aq", "--no-trunc", "--filter", label).split() == mine
    assert victim.ok("up").strip() == url
    victim.ok("down", "--all", "--yes")
    assert docker("ps", "-aq", "--filter", label) == ""
