"""What is changed at a Swarm, and what is left alone: over a stub of its manager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load
from harness.config.project import Project
from harness.errors import BackendError, ServerLost
from harness.servers.docker import spec as docker_spec
from harness.servers.docker.spec import LABEL
from harness.servers.port import ServerInfo, ServerRequest
from harness.servers.swarm import backend as backend_
from harness.servers.swarm import placing, spec
from harness.servers.swarm.backend import SwarmBackend
from harness.servers.swarm.cluster import Kept, Node, Service, Task
from harness.servers.swarm.note import Note, Notes

NODE = Node("n1", "db1", "192.0.2.7", "ready", "active", "", 2**34, "x86_64")
GROUP = "run-1234abcd"


def running(handle: str, slot: int = 1) -> Task:
    return Task(handle, slot, NODE.id, True, "running", "", 32000 + slot, 0)


@dataclass
class StubCluster:
    """One service at most, whose tasks end only where its number is lowered: what does not run first, then the highest slot."""

    id: str = "swarm-a"
    there: Service | None = None
    placed: list[Task] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def have(self, project: Project, group: str, tasks: Sequence[Task], ttl: str = "60") -> Service:
        labels = {
            spec.BACKEND: "swarm",
            spec.NOTE: "ab12",
            f"{LABEL}.project": project.id,
            f"{LABEL}.purpose": group,
            f"{LABEL}.owner": docker_spec.owner(),
            f"{LABEL}.ttl": ttl,
        }
        made_of = {"Name": "s", "Labels": labels, "Mode": {"Replicated": {"Replicas": len(tasks)}}}
        self.there, self.placed = Service("s1", "pg-harness-s", 1, made_of), list(tasks)
        return self.there

    def becomes(self, handle: str, **values: Any) -> None:
        self.placed = [replace(task, **values) if task.id == handle else task for task in self.placed]

    def nodes(self) -> dict[str, Node]:
        return {NODE.id: NODE}

    def services(self, _: Sequence[str]) -> list[Service]:
        return [self.there] if self.there is not None else []

    def service(self, _: str) -> Service | None:
        return copy.deepcopy(self.there)

    def tasks(self, _: str) -> list[Task]:
        return list(self.placed)

    def change(self, _: str, how: Callable[[dict[str, Any]], bool]) -> None:
        assert self.there is not None
        how(self.there.spec)
        order = sorted(self.placed, key=lambda task: (not task.alive, task.slot))
        kept = [task for task in self.placed if task.alive]
        while len(self.placed) > self.there.replicas:
            self.placed.remove(order.pop())
        for number in range(len(kept), self.there.replicas):
            if len(self.placed) < self.there.replicas:
                self.placed.append(running(f"new{number}", 10 + number))

    def remove(self, _: str) -> None:
        self.there, self.placed = None, []

    def files(self, _: Sequence[str]) -> list[Kept]:
        return list(self.kept)

    def remove_file(self, kind: str, handle: str) -> bool:
        self.kept = [file for file in self.kept if (file.kind, file.id) != (kind, handle)]
        return True

    def log(self, _: str, **__: object) -> list[str]:
        return []

    def now(self) -> float:
        return 1e9

    @property
    def left(self) -> list[str]:
        return [task.id for task in self.placed if task.alive]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    environ: Mapping[str, str] = {"PGHARNESS_STATE_DIR": str(tmp_path / "state")}
    return Project.of(load(environ, start=tmp_path, overrides={"backend": "swarm"}), environ)


@pytest.fixture
def cluster() -> StubCluster:
    return StubCluster()


@pytest.fixture
def backend(project: Project, cluster: StubCluster) -> SwarmBackend:
    made = SwarmBackend(project)
    made.__dict__["cluster"] = cluster
    return made


@pytest.fixture
def notes(project: Project) -> Notes:
    return Notes(project.folder / "swarm")


def info_of(backend: SwarmBackend, handle: str) -> ServerInfo:
    (info,) = [info for info in backend.list(None) if info.server_id == handle]
    return info


def test_a_server_that_cannot_be_told_to_end_costs_no_other_worker_its_own(
    backend: SwarmBackend,
    cluster: StubCluster,
    project: Project,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node is gone, and the Swarm still counts it: a smaller number would be another one's end."""

    def silent(*_: object, **__: object) -> None:
        raise ServerLost("nobody answers")

    monkeypatch.setattr(backend_, "greet", silent)
    service = cluster.have(project, GROUP, [running("t1", 1), running("t2", 2), running("t3", 3)])
    note = Note(str(project.settings.root), "secret")
    for worker in "123":
        note = note.claimed(f"t{worker}", f"{GROUP}-gw{worker}")
    notes.write("ab12", note)
    backend.stop(info_of(backend, "t1"))
    assert cluster.left == ["t1", "t2", "t3"]
    # It is nobody's, and nobody waits for it.
    assert info_of(backend, "t1").purpose == f"{GROUP}-t1"
    backend.note(service, notes.read("ab12").waits(f"{GROUP}-gw4"))  # type: ignore[union-attr]
    backend.fit("s1")
    assert cluster.left[:3] == ["t1", "t2", "t3"]
    assert len(cluster.left) == 4
    # The Swarm has noticed: what ends next takes the number of both along.
    cluster.becomes("t1", state="failed")
    cluster.becomes("t2", state="complete")
    backend.stop(info_of(backend, "t3"))
    assert cluster.left[0] == "t3"
    cluster.becomes("t3", state="complete")
    backend.note(service, notes.read("ab12").waits_no_more(f"{GROUP}-gw4"))  # type: ignore[union-attr]
    backend.tidy("s1")
    assert cluster.there is None


def test_a_service_goes_with_its_last_worker_although_a_server_of_it_hangs(
    backend: SwarmBackend, cluster: StubCluster, project: Project, notes: Notes
) -> None:
    cluster.have(project, GROUP, [running("t1", 1), running("t2", 2)])
    notes.write("ab12", Note("/shop", "secret").claimed("t1", f"{GROUP}-gw1").claimed("t2", f"{GROUP}-gw2"))
    backend.tidy("s1", ended="t1")
    assert cluster.left == ["t1", "t2"]
    cluster.becomes("t2", state="complete")
    backend.tidy("s1", ended="t2")
    assert cluster.there is None
    assert notes.marks() == []


def request(project: Project, purpose: str) -> ServerRequest:
    return ServerRequest(project.id, purpose, "id", Path(project.settings.root), "secret")


@pytest.mark.parametrize(
    ("purpose", "ends"), [("up", "`pg-harness down` ends"), (f"{GROUP}-gw1", "`pg-harness down --all` ends")]
)
def test_a_service_that_is_noted_elsewhere_is_not_replaced(
    backend: SwarmBackend, cluster: StubCluster, project: Project, purpose: str, ends: str
) -> None:
    """Another state folder may know it: a person's databases, or a run, would go with it."""
    cluster.have(project, spec.group_of(purpose), [running("t1")])
    with pytest.raises(
        BackendError, match=r"password is not noted in .*/swarm.*It was not replaced"
    ) as caught:
        backend.start(request(project, purpose))
    assert ends in str(caught.value)
    assert cluster.left == ["t1"]
    # Nor one whose first task is not there yet.
    cluster.placed = []
    with pytest.raises(BackendError, match="It was not replaced"):
        backend.start(request(project, purpose))
    assert cluster.there is not None
    # Who ends it ends it: it is listed, without a password.
    cluster.placed = [running("t1"), running("t2", 2)]
    backend.stop(info_of(backend, "t1"))
    assert cluster.there is None


def test_a_run_s_service_whose_servers_have_ended_is_replaced_without_its_note(
    backend: SwarmBackend, cluster: StubCluster, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.have(project, GROUP, [replace(running("t1"), state="complete", wanted=False)])

    def create(_: object) -> None:
        assert cluster.there is None
        raise ServerLost("as far as it goes here")

    monkeypatch.setattr(backend, "_create", create)
    with pytest.raises(ServerLost, match="as far"):
        backend.start(request(project, f"{GROUP}-gw1"))


def test_a_worker_that_ends_leaves_the_servers_of_others_although_the_note_is_lost(
    backend: SwarmBackend, cluster: StubCluster, project: Project, notes: Notes, told: list[str]
) -> None:
    cluster.have(project, GROUP, [running("t1", 1), running("t2", 2)])
    notes.write("ab12", Note("/shop", "secret").claimed("t1", f"{GROUP}-gw1").claimed("t2", f"{GROUP}-gw2"))
    info = info_of(backend, "t1")
    notes.forget("ab12")
    cluster.becomes("t1", state="complete")
    backend.stop(info)
    assert cluster.left == ["t2"]
    assert any("nothing is noted any more of the service pg-harness-s" in line for line in told)


def test_leftovers_of_one_swarm_are_not_another_s(
    backend: SwarmBackend, cluster: StubCluster, project: Project, notes: Notes
) -> None:
    """A checkout may use two by turns: what is noted of the other's servers is their only password."""
    notes.write("aa11", Note("/shop", "secret", "PEM", swarm="swarm-b"))
    notes.write("bb22", Note("/shop", "secret", "PEM", swarm=cluster.id))
    (notes.folder / "cc33.json").write_text('{"format": 2}')
    assert backend.leftovers() == []
    assert notes.marks() == ["aa11", "cc33"]
    assert notes.certificate("aa11").exists()
    assert not notes.certificate("bb22").exists()


def test_files_of_a_service_that_is_being_made_under_another_state_folder_stay(
    backend: SwarmBackend, cluster: StubCluster, notes: Notes
) -> None:
    notes.write("bb22", Note("/shop", "secret", swarm=cluster.id))
    cluster.kept = [
        Kept("secret", "being-made", {spec.NOTE: "dd44"}, cluster.now() - 60),
        Kept("secret", "left", {spec.NOTE: "ee55"}, cluster.now() - backend_.LEFT - 1),
        Kept("config", "cut-off", {spec.NOTE: "bb22"}, cluster.now()),
    ]
    assert backend.leftovers() == ["the secret left of the Swarm", "the config cut-off of the Swarm"]
    assert [file.id for file in cluster.kept] == ["being-made"]


def test_a_claim_that_was_never_noted_is_no_free_server(
    backend: SwarmBackend,
    cluster: StubCluster,
    project: Project,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its worker was killed before it could: the next one asks for a server of its own, and does not wait for that one."""
    cluster.have(project, GROUP, [running("t1")])
    notes.write("ab12", Note("/shop", "secret"))
    monkeypatch.setattr(placing, "greet", lambda dsn, server_id, timeout: StubSession(server_id))
    monkeypatch.setattr(placing, "claim", lambda session, purpose: session.server_id != "t1")
    monkeypatch.setattr(placing, "holder", lambda session: f"{GROUP}-gw0", raising=False)
    found = backend.start(replace(request(project, f"{GROUP}-gw1"), start_timeout=3))
    assert found.server_id != "t1"
    assert found.purpose == f"{GROUP}-gw1"
    noted = notes.read("ab12")
    assert noted is not None
    assert noted.claims == {"t1": f"{GROUP}-gw0", found.server_id: f"{GROUP}-gw1"}
    assert noted.waiters == 0


@dataclass
class StubSession:
    """A session on the server of one task."""

    server_id: str

    def __enter__(self) -> StubSession:
        return self

    def __exit__(self, *_: object) -> None:
        return None
