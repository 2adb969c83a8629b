"""Baked images: what is in them, what is not, how many stay."""

from __future__ import annotations

import io
import json
import re
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fix_backends import docker, until
from fix_fleets import Estate

from harness.errors import ServerStartError
from harness.servers.docker import snapshots
from harness.servers.port import Snapshot

pytestmark = pytest.mark.docker


@pytest.fixture
def estate(new_estate: Callable[..., Estate]) -> Estate:
    return new_estate(backend="docker", image="pgharness-test:17")


def test_an_image_holds_the_data_and_no_password(estate: Estate) -> None:
    base = estate.ensure().snapshot
    about: dict[str, Any] = json.loads(docker("image", "inspect", base.ref))[0]
    labels = about["Config"]["Labels"]
    assert labels["dev.pg-harness.baked"] == base.key
    # A container that a person runs from it must not be taken for one of ours.
    assert labels["dev.pg-harness.project"] == labels["dev.pg-harness.purpose"] == ""
    assert not about["Config"].get("Volumes")
    assert "PASSWORD" not in json.dumps(about["Config"]["Env"])
    assert base.size < 150 * 1024**2
    # Nothing but the data and what starts it: a deleted password file would lie in no layer either.
    container = docker("create", base.ref)
    try:
        with tarfile.open(fileobj=io.BytesIO(_archive(container, "/pgharness"))) as tar:
            names = tar.getnames()
    finally:
        docker("rm", container)
    assert "pgharness/data/1/PG_VERSION" in names
    assert "pgharness/data/1.ready" in names
    assert not [
        name for name in names if "password" in name or "pwfile" in name or name.endswith("postmaster.pid")
    ]
    with estate.open() as fleet:
        fleet.lease()
        session = fleet.members["1"].link.session
        assert (
            session.value(
                "select count(*) from pg_authid where rolname = 'postgres' and rolpassword is not null"
            )
            == 1
        )
    started = docker("run", "-d", "--rm", "--init", "-e", "POSTGRES_PASSWORD=secret", base.ref)
    try:
        ask = [
            "exec",
            started,
            "/usr/lib/postgresql/17/bin/psql",
            "-XAtq",
            "-h",
            "/pgharness/data",
            "-U",
            "postgres",
            "-c",
        ]
        hashed = "select rolname from pg_authid where rolpassword is not null"
        until(lambda: _quiet(*ask, hashed) == "postgres", seconds=20, what="only the password that was given")
        assert estate.purposes() == []
    finally:
        docker("rm", "-f", started)


def test_an_image_holds_no_verifier(estate: Estate) -> None:
    """Of passwords that were discarded: they stayed in dead rows, and in the log of the time before."""
    base = estate.ensure().snapshot
    container = docker("create", base.ref)
    try:
        archive = _archive(container, "/pgharness")
    finally:
        docker("rm", container)
    assert b"PG_VERSION" in archive
    assert re.findall(rb"SCRAM-SHA-256\$[^\0]{0,20}", archive) == []


def test_an_image_without_its_tag_is_swept(estate: Estate) -> None:
    """`bake --rebuild`, killed between the commit, which takes the tag away, and the removal of the one before."""
    base = estate.ensure().snapshot
    store = estate.baker().store
    # What a kill leaves: the same image, without any name.
    container = docker("create", base.ref)
    try:
        dangling = docker("commit", "-m", snapshots._COMMENT, container)
    finally:
        docker("rm", container)
    told = store.leftovers()
    assert len([line for line in told if base.key in line]) == 1, told
    assert dangling not in docker(
        "images", "-q", "--no-trunc", "--filter", f"label=dev.pg-harness.baked={base.key}"
    )
    assert [one.ref for one in estate.bases()] == [base.ref]


def test_what_a_person_has_made_of_an_image_stays(estate: Estate) -> None:
    """Built or committed on top of one, it has our labels; tagged, it is one: none of it is a leftover of ours."""
    base = estate.ensure().snapshot
    name = f"pgharness-mine-{base.key[:8]}"
    made = {
        "built": docker(
            "build", "-q", "-t", f"{name}:built", "-", stdin=f"FROM {base.ref}\nLABEL a=b\n".encode()
        ),
        # As the first one is once the same tag is built again.
        "built, without a name": docker("build", "-q", "-", stdin=f"FROM {base.ref}\nLABEL a=c\n".encode()),
    }
    container = docker("create", base.ref)
    try:
        made["committed"] = docker("commit", container, f"{name}:committed")
        made["committed, without a name"] = docker("commit", "-m", "with my rows", container)
    finally:
        docker("rm", container)
    docker("tag", base.ref, f"{name}:kept")
    made["baked"] = base.ref
    try:
        # Nothing is left of its own names, and it is not the one that is found any more.
        again = estate.baker().ensure(rebuild=True).snapshot
        store = estate.baker().store
        for _ in range(2):
            assert [line for line in store.leftovers() if base.key in line] == []
            assert _there(made) == set(made)
            assert [one.ref for one in estate.bases()] == [again.ref]
            # Nor by whoever was told of it before.
            assert [store.remove(replace(base, ref=ref)) for ref in made.values()] == [False] * len(made)
        # One that has both names loses ours.
        docker("tag", again.ref, f"{name}:again")
        assert store.remove(again)
        assert docker("image", "inspect", "-f", "{{.RepoTags}}", again.ref) == f"[{name}:again]"
        assert (estate.baker().look(), estate.bases()) == (None, [])
        assert _there(made) == set(made)
    finally:
        mine = docker(
            "images", "-q", "--no-trunc", "--filter", f"label=dev.pg-harness.baked={base.key}"
        ).split()
        # Children first: they were made last.
        for _ in range(2):
            for ref in mine:
                _quiet("rmi", "-f", ref)


def _there(made: dict[str, str]) -> set[str]:
    return {what for what, ref in made.items() if _quiet("image", "inspect", "-f", "{{.Id}}", ref)}


def _archive(container: str, path: str) -> bytes:
    import subprocess

    return subprocess.run(
        ["docker", "cp", f"{container}:{path}", "-"], capture_output=True, check=True, timeout=60
    ).stdout


def _quiet(*arguments: str) -> str:
    import subprocess

    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=20
    ).stdout.strip()


def test_nothing_is_unpacked_into_a_container_of_an_image_that_has_our_scripts(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from docker.models.containers import Container

    unpacked: list[str] = []
    put_archive = Container.put_archive

    def put(container: Container, path: str, data: bytes) -> bool:
        unpacked.append(container.short_id)
        return bool(put_archive(container, path, data))

    key = estate.ensure().snapshot.key
    monkeypatch.setattr(Container, "put_archive", put)
    with estate.open() as fleet:
        fleet.lease()
        info = fleet.members["1"].server.info
        assert unpacked == []
        # What came by standard input is seen by nobody who may look at containers.
        for seen in (docker("inspect", info.handle), docker("logs", info.handle)):
            assert info.dsn.password not in seen
        assert info.dsn.password not in docker("top", info.handle, "-eo", "pid,args")
        # Another process finds it, with its password and settings.
        assert [other.dsn for other in fleet.backend.list(fleet.project)] == [info.dsn]
        assert fleet.members["1"].link.session.value("show log_line_prefix") == "%m [%p] %q%u@%d %a "
    # Baked by a version of ours with other scripts: they are replaced.
    name = f"{snapshots.REPOSITORY}:{key}"
    older = f"FROM {name}\nLABEL dev.pg-harness.scripts=0123456789abcdef\nRUN rm /pgharness/*.sh\n"
    docker("build", "-q", "-t", name, "-", stdin=older.encode())
    with estate.open() as fleet, fleet.lease().connect() as connection:
        assert connection.execute("select count(*) from users").fetchone() == (1,)
        assert len(unpacked) == 1


def test_after_many_migrations_the_images_are_bounded(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = snapshots.DockerSnapshots.list

    def ours(bakery: snapshots.DockerSnapshots) -> list[Snapshot]:
        # The limit holds for a daemon: here it must not reach what the developer has baked.
        return [base for base in everything(bakery) if base.facts.get("root") == str(estate.root)]

    monkeypatch.setattr(snapshots.DockerSnapshots, "list", ours)
    keys = []
    for number in range(3):
        estate.migrate(f"create table users (id int, column{number} int)")
        keys.append(estate.ensure(keep_baked=1).snapshot.key)
        assert [base.key for base in estate.bases()] == [keys[-1]]
    assert len(set(keys)) == 3
    listed = docker(
        "images", "-q", "--filter", "dangling=true", "--filter", f"label=dev.pg-harness.baked={keys[0]}"
    )
    assert listed == ""
    # Baked again, one stays all the same.
    again = estate.baker().ensure(rebuild=True)
    assert again.built
    assert [base.ref for base in estate.bases()] == [again.snapshot.ref]


def test_two_bakes_at_once_are_one(estate: Estate) -> None:
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    children = [estate.cli("bake", "--json") for _ in range(2)]
    answers = []
    for child in children:
        out, err = child.communicate(timeout=100)
        assert child.returncode == 0, err
        answers.append(json.loads(out))
    assert sorted(answer["built"] for answer in answers) == [False, True]
    assert answers[0]["name"] == answers[1]["name"]
    assert len(estate.bases()) == 1


def test_an_image_that_lies_or_is_gone(estate: Estate) -> None:
    wrong = estate.ensure().snapshot
    estate.migrate("create table other (id int)")
    key, _ = estate.baker().key()
    # The right name on the wrong image: its label tells.
    docker("tag", wrong.ref, f"{snapshots.REPOSITORY}:{key}")
    try:
        assert estate.baker().look() is None
    finally:
        docker("rmi", f"{snapshots.REPOSITORY}:{key}")
    # A label that lies as well: the databases tell.
    forged = docker(
        "build",
        "-q",
        "-t",
        f"{snapshots.REPOSITORY}:{key}",
        "-",
        stdin=f"FROM {snapshots.REPOSITORY}:{wrong.key}\nLABEL dev.pg-harness.baked={key}\n".encode(),
    )
    with estate.open() as fleet:
        assert fleet.baked.snapshot.ref == forged
        with fleet.lease().connect() as connection:
            assert connection.execute("select to_regclass('other'), to_regclass('users')").fetchone() == (
                "other",
                None,
            )
    docker("rmi", "-f", forged)
    estate.told.clear()
    with estate.open() as fleet:
        docker("rmi", fleet.baked.snapshot.ref)
        with pytest.raises(ServerStartError, match="run again, and it is baked anew"):
            fleet.lease()


def test_killed_while_baking(estate: Estate) -> None:
    estate.migrate("create table users (id int); select pg_sleep(20);")
    child = estate.python("bake.TTL = 1.0\nestate_open()\n")

    try:
        until(estate.migrating, seconds=30, what="a migration that sleeps")
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
    mine = [
        "ps",
        "-a",
        "--format",
        "{{.Names}} {{.State}}",
        "--filter",
        f"label=dev.pg-harness.root={estate.root.resolve()}",
    ]
    until(lambda: "running" not in docker(*mine), seconds=30, what="the builder to end itself")
    assert estate.bases() == []
    # It stays, stopped, for as long as somebody may still be about to commit it.
    bakery = estate.baker().store
    bakery.leftovers()
    assert docker(*mine) != ""
    snapshots.CUT_OFF, before = 0, snapshots.CUT_OFF
    try:
        assert len(bakery.leftovers()) >= 1
    finally:
        snapshots.CUT_OFF = before
    assert docker(*mine) == ""
