"""What needs no Swarm: names, settings, refusals, and a claim on a server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fix_backends import Checkout, docker

from harness.config.load import load
from harness.errors import BackendUnavailable, ConfigError
from harness.postgres.session import Session, lock_key
from harness.servers import drift, registry
from harness.servers.docker import spec as docker_spec
from harness.servers.port import ServerRequest
from harness.servers.swarm import spec
from harness.servers.swarm.claim import claim, holder, shut_down
from harness.servers.swarm.cluster import Node, Task
from harness.servers.swarm.note import Note, Notes


def test_workers_of_one_run_share_a_service_and_nobody_else() -> None:
    assert spec.group_of("run-1234abcd-gw0") == spec.group_of("run-1234abcd-gw1") == "run-1234abcd"
    # A second server beside the first, because of other settings.
    for purpose in ("run", "up", "run-12ab34"):
        assert spec.group_of(purpose) == purpose
        assert not spec.is_group(purpose)
    assert spec.is_group("run-1234abcd")


def test_two_users_of_one_checkout_have_services_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swarm has each name once."""
    names = set()
    for user in (0, 1000, 4294967294):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        name = spec.name_of(ServerRequest("0123456789", "run-1234abcd-gw0", "", Path("/shop"), "secret"))
        # Docker takes no longer one.
        assert re.fullmatch(r"pg-harness-0123456789-[0-9]+-run-1234abcd", name)
        assert len(name) < 64
        names.add(name)
    assert len(names) == 3


def test_what_a_manager_shows_holds_no_setting() -> None:
    """A setting may hold a password: configs are shown to whoever may look at them, secrets to nobody."""
    request = ServerRequest(
        "0123456789", "up", "", Path("/shop"), "s3cr3t", {"primary_conninfo": "password=t0psecret"}
    )
    image = SimpleNamespace(attrs={"Architecture": "amd64"}, labels={})
    made_of = docker_spec.ContainerSpec(image, "postgres:17", "disk", 0, 0)
    found = {file.name: file for file in spec.files(request, made_of, certificate="PEM", key="pr1vate")}
    assert b"t0psecret" in found["settings"].content
    shown = b"".join(file.content for file in found.values() if not file.secret)
    assert not any(secret in shown for secret in (b"t0psecret", b"s3cr3t", b"pr1vate"))
    # The server's own user reads it.
    assert found["settings"].mounted("s1", "x")["File"]["Mode"] & 0o004


def test_a_manager_that_listens_everywhere_knows_its_address_as_a_manager() -> None:
    told = {
        "ID": "n1",
        "Status": {"State": "ready", "Addr": "0.0.0.0"},
        "ManagerStatus": {"Addr": "192.0.2.7:2377"},
        "Description": {"Hostname": "db1"},
        "Spec": {"Availability": "drain"},
    }
    node = Node.of(told)
    assert (str(node), node.usable, node.trouble) == ("db1 (192.0.2.7)", False, "was drained")
    down = Node.of({**told, "Status": {"State": "down", "Message": "heartbeat failure", "Addr": "192.0.2.8"}})
    assert down.trouble == "is down (heartbeat failure)"


def test_a_task_that_nobody_takes_says_why() -> None:
    pending = Task.of(
        {"ID": "t", "DesiredState": "running", "Status": {"State": "pending", "Err": "no suitable node (x)"}}
    )
    assert (pending.alive, pending.unplaced) == (True, "no suitable node (x)")
    ended = Task.of({"ID": "t", "DesiredState": "shutdown", "Status": {"State": "complete"}})
    assert (ended.alive, ended.ended) == (False, True)


def test_a_note_is_for_its_owner_alone_and_hides_the_password(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "swarm")
    note = (
        Note("/shop", "s3cr3t", "PEM", ("192.0.2.7",))
        .waits("run-1234abcd-gw0")
        .claimed("t1", "run-1234abcd-gw1")
    )
    notes.write("ab12", note)
    assert notes.read("ab12") == note
    assert "s3cr3t" not in repr(note)
    assert (tmp_path / "swarm" / "ab12.json").stat().st_mode & 0o077 == 0
    assert notes.certificate("ab12").read_text() == "PEM"
    assert note.waiters == 1
    assert notes.read("../ab12") is None
    notes.forget("ab12")
    assert notes.read("ab12") is None


@pytest.mark.parametrize("wrong", ["db=yes", "node.labels.db", "node.foo == 1", "node.labels.db => yes"])
def test_a_constraint_of_another_form(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"a constraint of a Swarm is node\.labels\.NAME"):
        load({}, start=tmp_path, overrides={"swarm_constraints": [wrong]})


def test_labels_and_constraints_from_variables(tmp_path: Path) -> None:
    found = load(
        {
            "PGHARNESS_SWARM_CONSTRAINTS": "node.labels.db == yes,node.role!=manager",
            "PGHARNESS_SWARM_LABELS": "team=shop",
        },
        start=tmp_path,
    )
    assert found.swarm_constraints == ("node.labels.db == yes", "node.role!=manager")
    assert found.swarm_labels == {"team": "shop"}
    # A server that runs elsewhere is not taken once they change.
    assert (
        drift.of(found, "swarm")["swarm_constraints"]
        != drift.of(load({}, start=tmp_path), "swarm")["swarm_constraints"]
    )
    with pytest.raises(ConfigError, match="no label of yours can have that name"):
        load({}, start=tmp_path, overrides={"swarm_labels": {"dev.pg-harness.project": "x"}})


@pytest.mark.server
def test_one_of_two_claims_wins_and_the_server_ends_itself(new_checkout: Callable[..., Checkout]) -> None:
    place = new_checkout("claimed")
    with place.ensure(place.settings(backend="process")) as server:
        key = server.session.value(f"select {spec.LIFE_KEY}")
        assert key == lock_key("server", server.info.server_id)
        with Session.connect(server.info.dsn) as other:
            assert claim(server.session, "run-1234abcd-gw0")
            assert not claim(other, "run-1234abcd-gw1")
            # As if the other had looked before the first was done.
            other.execute("create schema pgh_free")
            assert not claim(other, "run-1234abcd-gw1")
            assert holder(other) == "run-1234abcd-gw0"
            shut_down(other)
        with pytest.raises(Exception, match=r"terminat|closed|not there"):
            server.session.value("select pg_sleep(10)")


@pytest.mark.docker
def test_a_daemon_that_is_in_no_swarm(new_checkout: Callable[..., Checkout]) -> None:
    if docker("info", "--format", "{{.Swarm.LocalNodeState}}").strip() != "inactive":
        pytest.skip("the daemon is in a Swarm")
    place = new_checkout("lonely")
    with pytest.raises(BackendUnavailable, match="is not in a Swarm") as caught:
        place.ensure(place.settings(backend="swarm"))
    assert "`docker swarm init` makes it one" in str(caught.value)


def test_commands_of_others_do_not_ask_a_swarm() -> None:
    """Who has named none waits for none."""
    assert registry.BACKENDS["swarm"].elsewhere
    assert not registry.BACKENDS["swarm"].auto
