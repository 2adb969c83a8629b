"""Settings that decide how a server is started, changed while one is warm."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import Checkout, docker, until

from harness.config.project import Project
from harness.config.settings import Settings
from harness.dsn import Dsn
from harness.errors import BackendUnavailable, ServerLost
from harness.postgres.session import Session
from harness.servers import drift, inventory
from harness.servers.docker import image
from harness.servers.handshake import life_key
from harness.servers.port import ServerInfo


def test_a_warm_server_is_replaced_and_the_change_is_named(place: Checkout) -> None:
    settings = place.settings(backend="process", postgres={"work_mem": "5MB"})
    with place.ensure(settings) as first:
        pass
    with place.ensure(settings) as again:
        assert again.info == first.info
    place.told.clear()
    changed = replace(settings, postgres={"work_mem": "7MB"}, max_connections=90)
    with place.ensure(changed) as second:
        assert second.started
        assert second.session.value("SHOW work_mem") == "7MB"
        assert second.session.value("SHOW max_connections") == "90"
    told = [line for line in place.told if "other settings" in line]
    assert len(told) == 1
    assert "max_connections 500 → 90" in told[0]
    assert "[tool.pg-harness.postgres] work_mem" in told[0]
    assert [info.server_id for info in inventory.servers(Project.of(settings, place.environ))] == [
        second.info.server_id
    ]


@pytest.mark.docker
def test_local_binaries_instead_of_an_image_follow_the_settings_too(
    place: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise BackendUnavailable("the image cannot be pulled")

    monkeypatch.setattr(image, "ensure", cannot)
    with place.ensure(place.settings()) as first:
        assert first.info.backend == "process"
    # It is warm, was started with other settings, and is not taken as it is.
    with place.ensure(place.settings(max_connections=90)) as second:
        assert second.info.backend == "process"
        assert second.session.value("SHOW max_connections") == "90"
    assert [line for line in place.told if "max_connections 500 → 90" in line]


@pytest.mark.docker
def test_another_image_replaces_the_container(place: Checkout) -> None:
    settings = place.settings(
        backend="docker", image="pgharness-test:15", postgres={"cluster_name": "s3cret-of-mine"}
    )
    with place.ensure(settings) as first:
        label = docker(
            "inspect", "-f", '{{index .Config.Labels "dev.pg-harness.made-with"}}', first.info.handle
        )
        assert json.loads(label)["image"] == "pgharness-test:15"
        # Neither a server setting's value nor the password can be read off the container.
        described = docker("inspect", first.info.handle)
        assert "s3cret-of-mine" not in described
        assert first.info.dsn.password not in described
        assert first.info.dsn.password not in docker("top", first.info.handle)
        assert first.info.dsn.password not in docker("logs", first.info.handle)
    # The labels alone say it, too.
    place.hint().unlink()
    other = replace(settings, image="pgharness-test:17")
    with place.ensure(other) as second:
        assert second.started
        assert second.session.value("SHOW server_version").startswith("17")
    assert any("image pgharness-test:15 → pgharness-test:17" in line for line in place.told)
    assert [info.handle for info in inventory.servers(Project.of(settings, place.environ))] == [
        second.info.handle
    ]


def test_a_server_in_use_is_left_alone(place: Checkout) -> None:
    settings = place.settings(backend="process")
    other = replace(settings, max_connections=90)
    with place.ensure(settings) as first:
        with place.ensure(other) as second:
            assert second.started
            assert second.info.server_id != first.info.server_id
            assert any("is in use: a second one is used beside it" in line for line in place.told)
            # Both stay warm side by side, and neither is looked for again.
            place.told.clear()
            with place.ensure(other) as warm, place.ensure(settings) as old:
                assert warm.info == second.info
                assert old.info == first.info
            assert place.told == []
        assert first.session.value("SELECT 1") == 1
    for info in inventory.servers(Project.of(settings, place.environ)):
        inventory.stop(Project.of(settings, place.environ), purpose=info.purpose)


def test_whoever_comes_while_it_is_replaced_gets_the_new_one(place: Checkout) -> None:
    settings = place.settings(backend="process")
    place.ensure(settings).close()
    changed = {"backend": "process", "max_connections": 90}
    answers = [place.answer(process) for process in [place.starter(**changed) for _ in range(4)]]
    assert len({answer["id"] for answer in answers}) == 1
    assert sum(answer["started"] for answer in answers) == 1
    assert len(inventory.servers(Project.of(settings, place.environ))) == 1


def test_a_persons_server_is_kept_and_says_so(place: Checkout) -> None:
    settings = place.settings(backend="process")
    with place.ensure(settings, purpose="up") as first:
        first.session.execute("CREATE TABLE precious AS SELECT 1 AS n")
        pid = int((Path(first.info.handle) / "data" / "postmaster.pid").read_text().splitlines()[0])
    changed = replace(settings, max_connections=90, pg_version="3")
    with place.ensure(changed, purpose="up") as again:
        assert again.info == first.info
    told = [line for line in place.told if "is used as it is" in line]
    assert len(told) == 1
    assert "max_connections 500 → 90" in told[0]
    assert "pg-harness down" in told[0]
    # Stopped, it starts again with today's settings, and with the programs and the data that it has.
    os.kill(pid, signal.SIGTERM)
    until(
        lambda: inventory.find(Project.of(settings, place.environ), purpose="up") is None,
        seconds=20,
        what="it stopped",
    )
    place.told.clear()
    with place.ensure(changed, purpose="up") as revived:
        assert revived.session.value("SHOW max_connections") == "90"
        assert revived.session.value("SELECT n FROM precious") == 1
    told = [line for line in place.told if "is used as it is" in line]
    assert "version any → 3" in told[0]
    assert "max_connections" not in told[0]


def test_an_end_that_is_claimed_turns_others_away(place: Checkout) -> None:
    from harness.servers.handshake import attach, claim_alone

    with place.ensure(place.settings(backend="process")) as found:
        other, _ = attach(found.info)
        assert other is not None
        began = time.monotonic()
        assert not claim_alone(found.info, found.session)
        assert time.monotonic() - began < 5
        other.close()
        until(lambda: claim_alone(found.info, found.session), seconds=10, what="the other one has logged out")
        late = Session.connect(found.info.dsn)
        late.execute("SET lock_timeout = '200ms'")
        with pytest.raises(Exception, match="lock timeout"):
            late.value("SELECT pg_advisory_lock_shared(%s)", (life_key(found.info),))
        late.close()
        found.stop()
        with pytest.raises(ServerLost):
            Session.connect(found.info.dsn)


def test_what_counts_as_changed() -> None:
    def info(settings: Settings, backend: str, storage: str) -> ServerInfo:
        return ServerInfo(
            Dsn("127.0.0.1", 1, "postgres", "x", "postgres"), "id", backend, "run", storage, "h",
            made_with=drift.of(settings, backend),
        )  # fmt: skip

    base = Settings(root=Path())
    assert drift.changes(info(base, "docker", "memory"), base) == []
    assert drift.changes(info(base, "process", "memory"), base) == []
    # Local programs do not concern a container, nor the size of its /dev/shm a process.
    assert drift.changes(info(base, "docker", "memory"), replace(base, pg_version="17")) == []
    assert drift.changes(info(base, "process", "memory"), replace(base, shm_size=1)) == []
    # An image that is named means Docker, also where `auto` took local binaries before.
    assert drift.changes(info(base, "process", "disk"), replace(base, image="x:1")) == ["image any → x:1"]
    # Where `auto` went to disk, disk is what is wanted; and memory that could not be had is not asked for again.
    assert drift.changes(info(base, "process", "disk"), replace(base, storage="disk")) == []
    assert drift.changes(info(base, "process", "memory"), replace(base, storage="disk")) == [
        "storage auto → disk"
    ]
    memory = replace(base, storage="memory")
    assert drift.changes(info(memory, "process", "disk"), memory) == []
    hashed = drift.of(replace(base, postgres={"primary_conninfo": "password=s3cret"}), "process")
    assert "s3cret" not in repr(hashed)


def test_the_second_servers_of_older_versions_keep_their_names(tmp_path: Path) -> None:
    # Part of a purpose, which is in labels and records: another digest would never find the server again.
    settings = Settings(root=tmp_path)
    assert drift.mark(settings) == "511989"
    assert drift.mark(replace(settings, image="x:1", shm_size=7)) != "511989"
    assert drift.of(settings, "docker") == {
        "max_connections": "500",
        "storage": "auto",
        "image": settings.image,
        "shm_size": str(256 * 1024**2),
        "memory_limit": "auto",
    }
    assert drift.of(settings, "process") == {
        "max_connections": "500",
        "storage": "auto",
        "version": "any",
        "binaries": "any",
        "image": "any",
    }
