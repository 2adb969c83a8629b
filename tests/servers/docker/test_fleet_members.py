"""What several hosts come to where some of them do not do as they should: members that are no daemons, so that each fault can be had."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import docker
import pytest

from harness.config.load import load
from harness.config.project import Project
from harness.dsn import Dsn
from harness.errors import BackendError, BackendUnavailable, ServerLost
from harness.servers import inventory, registry
from harness.servers.acquire import new_request
from harness.servers.docker import taking
from harness.servers.docker.backend import DockerBackend
from harness.servers.docker.fleet import Fleet
from harness.servers.port import Backend, ServerInfo, ServerRequest, Snapshot
from harness.servers.records import Hint


class Member:
    """A host: what it holds, and what is wrong with it.

    Attributes:
        servers: purposes of the containers there; stopped or not.
        silent: nobody answers.
        failing: it answers, and tells nothing of its containers.
    """

    def __init__(self, name: str, machine: str = "x86_64") -> None:
        self.name = name
        self.machine = machine
        self.servers: list[str] = []
        self.silent = False
        self.failing = False
        self.started: list[str] = []
        self.images: dict[str, str] = {}
        self.pulled: list[str] = []

    def snapshots(self) -> Store:
        return Store(self)

    @property
    def daemon(self) -> Any:
        if self.silent:
            raise ServerLost("it did not answer within 10 s")
        api = SimpleNamespace(
            networks=lambda names: [{"Name": "bridge", "Id": self.name}], containers=lambda **options: []
        )
        about = {"ID": self.name, "Architecture": self.machine, "MemTotal": 2**33, "NCPU": 4}
        client = SimpleNamespace(api=api, ping=lambda: True, images=SimpleNamespace(get=self.image))
        return SimpleNamespace(about=lambda: about, client=client, local=False, where=self.name)

    def image(self, ref: str) -> str:
        if ref in self.images:
            return ref
        raise docker.errors.ImageNotFound("no such image", response=SimpleNamespace(status_code=404))

    def list(self, project: str | None) -> list[ServerInfo]:
        if self.silent or self.failing:
            raise ServerLost("the daemon answered with an error: no space left on device")
        return [server(purpose) for purpose in self.servers]

    def find(self, project: str, purpose: str) -> ServerInfo | None:
        return next((info for info in self.list(project) if info.purpose == purpose), None)

    def holds(self, project: str, purpose: str) -> bool:
        return self.find(project, purpose) is not None

    def start(self, request: ServerRequest) -> ServerInfo:
        if request.snapshot is not None:
            assert request.snapshot in self.images
        self.started.append(request.purpose)
        return server(request.purpose)

    def stop(self, info: ServerInfo) -> None:
        self.servers.remove(info.purpose)


KEY = "0123456789abcdef01234567"


class Store:
    """Baked images of a host: ref → tag; one without a tag is found by its ref alone, as Docker's are.

    Attributes:
        shared: the ref of what a registry has under :data:`KEY`; empty: nothing, or no registry.
    """

    shared = ""

    def __init__(self, member: Member) -> None:
        self.member = member

    def here(self, key: str) -> Snapshot | None:
        if self.member.silent:
            raise ServerLost("it did not answer within 10 s")
        return next((snapshot(ref) for ref, tag in self.member.images.items() if tag == key), None)

    def find(self, key: str) -> Snapshot | None:
        if (found := self.here(key)) is not None or not self.shared:
            return found
        self.member.pulled.append(self.shared)
        self.member.images.setdefault(self.shared, "")
        return replace(snapshot(self.shared), fetched=True, shared=f"registry/baked@{self.shared}")

    def touch(self, found: Snapshot) -> None:
        if found.ref in self.member.images:
            self.member.images[found.ref] = found.key


def snapshot(ref: str) -> Snapshot:
    """As it is on a host that has it."""
    return Snapshot(ref, KEY, "docker", 1, 0, 0)


def server(purpose: str, host: str = "", ttl: float | None = None) -> ServerInfo:
    """One that does not answer."""
    dsn = Dsn("127.0.0.1", 1, "postgres", "secret", "postgres")
    return ServerInfo(
        dsn,
        "an-id",
        "docker",
        purpose,
        "disk",
        f"a-{purpose}",
        ttl=ttl,
        description=f"the server {purpose}",
        host=host,
    )


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    """A checkout with these settings, on a machine with nothing."""

    def make(**values: Any) -> Project:
        environ = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "PGHARNESS_STATE_DIR": str(tmp_path / "state"),
            "PGHARNESS_CACHE_DIR": str(tmp_path / "cache"),
            "DOCKER_HOST": f"unix://{tmp_path}/none",
        }
        return Project.of(load(environ, start=tmp_path, overrides=values), environ)

    return make


def fleet_of(project: Project, members: dict[str, Member], former: dict[str, Member] | None = None) -> Fleet:
    """As Fleet.of makes it."""
    kinds = (cast(dict[str, DockerBackend], each) for each in (members, former or {}))
    return Fleet(project, *kinds, timeout=1)


def asked(project: Project, fleet: Backend, monkeypatch: pytest.MonkeyPatch) -> inventory.Asked:
    """As a command asks the backends of its settings."""
    monkeypatch.setattr(registry, "starting", lambda: ["docker"])
    monkeypatch.setattr(registry, "named", lambda *args, **options: fleet)
    return inventory.Asked.of(project)


def noted(project: Project, purpose: str, host: str, *, ttl: float | None, age: float = 0) -> Path:
    """The hint of a server on that host, last used so long ago."""
    hint = Hint.of(project, purpose)
    hint.write(server(purpose, host, ttl))
    os.utime(hint.path, (time.time() - age,) * 2)
    return hint.path


PER_HOST = f"run.{hashlib.sha256(b'ci-1').hexdigest()[:8]}"


# --- hosts that are not there any more ---------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["up", PER_HOST])
@pytest.mark.parametrize("hosts", [[], ["tcp://127.0.0.1:1"]])
def test_a_context_that_was_removed_ends_no_command(
    project: Callable[..., Project], purpose: str, hosts: list[str]
) -> None:
    """That a server was noted there is no fault of the settings: it is told, with the file, and stands for what could not be asked."""
    here = project(hosts=hosts)
    path = noted(here, purpose, "context:ci-1", ttl=None if purpose == "up" else 600)
    with pytest.raises(BackendUnavailable):
        registry.named("docker", here).list(here.id)
    found = inventory.Asked.of(here)
    with pytest.raises(BackendUnavailable) as caught:
        found.check()
    assert "there is no Docker context 'ci-1'" in str(caught.value)
    assert str(path) in str(caught.value)
    assert inventory.servers(here, asked=found) == []
    # The next `down` needs it.
    inventory.stop(here, purpose=purpose, asked=found)
    inventory.forget_gone(here, found.silent)
    assert path.exists()


def test_a_removed_context_is_told_once_and_the_other_hosts_are_used(
    project: Callable[..., Project], caplog: pytest.LogCaptureFixture
) -> None:
    here = project(hosts=["tcp://127.0.0.1:1"])
    noted(here, PER_HOST, "context:ci-1", ttl=600)
    made = Fleet.of(here, timeout=1)
    member = Member("one")
    member.servers = ["run"]
    made._members = {"tcp://127.0.0.1:1": cast(DockerBackend, member)}
    for _ in range(2):
        assert [info.purpose for info in made.list(here.id)] == ["run"]
        assert list(made.usable()) == ["tcp://127.0.0.1:1"]
    assert caplog.text.count("the host context:ci-1 is left out: ") == 1
    assert list(made.silent()) == ["context:ci-1"]
    # Its server's own objects ask for its backend as well.
    with pytest.raises(BackendUnavailable, match="its host was 'context:ci-2'"):
        made.stop(server("run", "context:ci-2"))


def test_a_server_that_has_ended_by_itself_long_ago_names_no_host(project: Callable[..., Project]) -> None:
    """A host that was given up is waited for, and told, for an hour beyond the TTL; a person's server stays noted."""
    here = project()
    old = noted(here, PER_HOST, "tcp://127.0.0.1:1", ttl=600, age=4300)
    fresh = noted(here, "run.11111111", "tcp://127.0.0.1:2", ttl=600, age=4100)
    mine = noted(here, "up", "tcp://127.0.0.1:3", ttl=None, age=10**7)
    backend = registry.named("docker", here)
    assert isinstance(backend, Fleet)
    assert sorted(backend._former) == ["tcp://127.0.0.1:2", "tcp://127.0.0.1:3"]
    assert inventory.forget_gone(here, ["tcp://127.0.0.1:2"]) == [PER_HOST]
    assert [path.exists() for path in (old, fresh, mine)] == [False, True, True]
    # Its host answers, and does not have it.
    assert inventory.forget_gone(here) == []
    assert inventory.forget_gone(here, []) == ["run.11111111"]
    mine.unlink()
    assert not isinstance(registry.named("docker", here), Fleet)


# --- hosts that are there ----------------------------------------------------------------------------------


def test_a_host_of_another_architecture_is_still_asked_for_what_it_holds(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` went there while the first host was silent: where that is back, it may not be lost sight of."""
    here = project(hosts=["local", "tcp://127.0.0.1:1"])
    members = {"amd": Member("amd"), "arm": Member("arm", "aarch64")}
    # By another address, one of each counts once.
    again = {"arm-again": Member("arm", "aarch64"), "amd-again": Member("amd")}
    for each in (members["arm"], again["arm-again"]):
        each.servers = ["up"]
    fleet = fleet_of(here, members, again)
    path = noted(here, "up", "arm", ttl=None)
    assert list(fleet.usable()) == ["amd"]
    assert [(host.word, host.ok) for host in fleet.hosts()] == [("amd", True), ("arm", False)]
    assert [(info.purpose, info.host) for info in fleet.list(here.id)] == [("up", "arm")]
    found = fleet.find(here.id, "up")
    assert found is not None
    assert found.host == "arm"
    assert inventory.stop(here, purpose="up", asked=asked(here, fleet, monkeypatch))
    assert members["arm"].servers == []
    assert not path.exists()
    assert fleet.silent() == {}


def test_a_host_that_fails_in_the_middle_of_down_is_not_forgotten(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and does not tell what it has, from some moment on: what is noted of it stays, and the command says so."""
    here = project(hosts=["local", "tcp://127.0.0.1:1"])
    members = {"one": Member("one"), "two": Member("two")}
    members["one"].servers = members["two"].servers = ["run"]
    fleet = fleet_of(here, members)
    path = noted(here, "up", "two", ttl=None)
    found = asked(here, fleet, monkeypatch)
    found.check()
    members["two"].failing = True
    assert not inventory.stop(here, purpose="up", asked=found)
    assert path.exists()
    with pytest.raises(
        BackendUnavailable, match=r"was not ended: two\n(?s:.*)two: .*no space left on device"
    ):
        found.check()
    # Both, then: each is told, and nothing passes for all that there is.
    members["one"].failing = True
    with pytest.raises(
        BackendUnavailable, match=r"(?s)no Docker host can be used.*one: .*no space left.*two: "
    ):
        fleet.list(here.id)


@pytest.mark.parametrize("word", ["arm", "former", ""])
def test_a_persons_stopped_server_starts_where_it_is(
    project: Callable[..., Project], caplog: pytest.LogCaptureFixture, word: str
) -> None:
    """Also where no servers are started any more: a second one elsewhere would hide it, and its note be overwritten."""
    caplog.set_level("INFO", "pg_harness")
    here = project(hosts=["local", "tcp://127.0.0.1:1"])
    members = {"amd": Member("amd"), "arm": Member("arm", "aarch64")}
    former = {"former": Member("three"), "": Member("four")}
    every = {**members, **former}
    every[word].servers = ["up"]
    fleet = fleet_of(here, members, former)
    for member in members.values():
        member.images = {"sha256:members": KEY}
    request = replace(
        new_request(here, "up", None), snapshot="sha256:members" if word == "arm" else "sha256:none"
    )
    assert fleet.start(request).host == word
    assert {each: member.started for each, member in every.items() if member.started} == {word: ["up"]}
    named = word or "this machine's own daemon"
    assert f"your server is on {named}, and is started there, with its data" in caplog.text
    # What is no person's goes where it is wanted.
    assert fleet.start(new_request(here, "run", None)).host == "amd"


@pytest.mark.parametrize("word", ["amd", "former", ""])
def test_no_second_server_while_the_host_of_a_persons_does_not_tell(
    project: Callable[..., Project], word: str
) -> None:
    """It answered when it was asked who it is, and not when it was asked for that server."""
    here = project(hosts=["local", "tcp://127.0.0.1:1"])
    members, former = (
        {"amd": Member("amd"), "two": Member("two")},
        {"former": Member("three"), "": Member("")},
    )
    every = {**members, **former}
    noted(here, "up", word, ttl=None)
    every[word].failing = True
    fleet = fleet_of(here, members, former)
    with pytest.raises(
        BackendUnavailable, match=f"was on the Docker host {word or 'docker'}, which does not"
    ):
        fleet.start(new_request(here, "up", None))
    assert [member.started for member in every.values()] == [[]] * 4


def test_a_persons_server_of_before_hosts_were_named_is_looked_for(project: Callable[..., Project]) -> None:
    here = project(hosts=["tcp://127.0.0.1:1"])
    assert list(Fleet.of(here, timeout=1)._former) == []
    noted(here, "up", "", ttl=None)
    assert list(Fleet.of(here, timeout=1)._former) == [""]


# --- baked images that a registry has ----------------------------------------------------------------------


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What hosts take from each other is noted, as ``source > target``."""
    taken: list[str] = []

    def copy(found: Snapshot, source: str, from_: Member, target: str, to: Member) -> None:
        taken.append(f"{source} > {target}")
        to.images[found.ref] = found.key

    monkeypatch.setattr(taking, "_stream", copy)
    return taken


def test_what_is_pulled_is_tried_where_it_is_kept_and_streamed_to_the_others(
    project: Callable[..., Project], stream: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial for all hosts and workers, also where the registry has something else by then."""
    here = project(hosts=["local", "tcp://127.0.0.1:1"])
    members = {"one": Member("one"), "two": Member("two"), "three": Member("three")}
    fleet = fleet_of(here, members)
    store = fleet.snapshots()
    monkeypatch.setattr(Store, "shared", "sha256:tried")
    found = store.find(KEY)
    assert found is not None
    assert found.fetched
    # Somebody pushes another one meanwhile.
    monkeypatch.setattr(Store, "shared", "sha256:untried")
    trial = replace(new_request(here, "bake-01234567", 60), snapshot=found.ref, host="one")
    fleet.start(trial)
    assert members["one"].images == {"sha256:tried": ""}
    store.touch(found)
    assert members["one"].images == {"sha256:tried": KEY}
    again = store.here(KEY)
    assert again is not None
    assert not again.fetched
    fleet.spread(again, ["one", "two"])
    fleet.start(replace(new_request(here, "run-0-3", 60), snapshot=again.ref, host="three"))
    assert stream == ["one > two", "one > three"]
    assert [member.images["sha256:tried"] for member in members.values()] == [KEY] * 3
    assert [member.images.get("sha256:untried", "") for member in members.values()] == [""] * 3
    # Once a host, however many servers start there; what is shared under the key by now is used by none.
    for word in ("one", "three"):
        fleet.start(replace(new_request(here, "run-0-4", 60), snapshot=again.ref, host=word))
    pulled = [member.pulled for member in members.values()]
    assert pulled == [["sha256:tried"], ["sha256:untried"], ["sha256:untried"]]


def test_what_was_not_tried_starts_on_no_host(
    project: Callable[..., Project], stream: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project()
    members = {"one": Member("one"), "two": Member("two"), "three": Member("three")}
    members["one"].silent = True
    monkeypatch.setattr(Store, "shared", "sha256:untried")
    every = cast(dict[str, DockerBackend], members)
    with pytest.raises(BackendError, match="is on none of the hosts"):
        taking.take(KEY, "two", every, here, ref="sha256:tried")
    # While it is tried, it has no tag.
    monkeypatch.setattr(Store, "shared", "sha256:tried")
    assert taking.take(KEY, "two", every, here, ref="sha256:tried").ref == "sha256:tried"
    assert members["two"].images["sha256:tried"] == ""
    # Pulled again from where all can have it; it was tried on another host.
    members["three"].images = {"sha256:tried": KEY}
    assert taking.take(KEY, "two", every, here, ref="sha256:tried").ref == "sha256:tried"
    assert members["two"].images["sha256:tried"] == KEY
    assert stream == []
    # A host that is lost is no fault of one that wants it, as long as another has it.
    monkeypatch.setattr(Store, "shared", "")
    members["two"].images = {}
    assert taking.take(KEY, "two", every, here, ref="sha256:tried").ref == "sha256:tried"
    assert stream == ["three > two"]
