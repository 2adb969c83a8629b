"""Baked images in a registry: pulled before anything is migrated, pushed when that is asked for, and not believed at once."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fix_backends import docker
from fix_fleets import Estate
from fix_registry import MANIFEST, Front, Registry, login
from fix_users import User

from harness.config.project import Project
from harness.errors import BackendUnavailable
from harness.runs.run import Run
from harness.servers import inventory
from harness.servers.docker import repository, snapshots, spec
from harness.servers.port import free_port

pytestmark = [pytest.mark.docker, pytest.mark.server]

IMAGE = "pgharness-test:busybox"
"""The smallest one: a push brings all of it."""

MARK = uuid.uuid4().hex[:8]
"""In the migrations: their key is this module's alone."""

MIGRATION = (
    f"create table users (id bigserial primary key, name text); insert into users (name) values ('{MARK}');"
)


@dataclass
class Pushed:
    """What one machine has baked and pushed; it is not on the daemon any more."""

    key: str
    repository: str
    digest: str
    manifest: bytes
    about: dict[str, Any]
    cache: Path


def forget(key: str) -> None:
    """Remove all images of a key from the daemon: it is another machine's now."""
    for image in docker(
        "images", "-q", "--no-trunc", "--filter", f"label=dev.pg-harness.baked={key}"
    ).split():
        docker("rmi", "-f", image)


@pytest.fixture(scope="module")
def pushed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """By a machine whose Docker client has a proxy with a password."""
    folder = tmp_path_factory.mktemp("pusher")
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001.sql").write_text(MIGRATION)
    proxies = {"default": {"httpProxy": "http://me:hidden-word@127.0.0.1:9", "noProxy": "127.0.0.0/8"}}
    (folder / "config.json").write_text(json.dumps({"proxies": proxies}))
    name = registry.repository()
    estate = Estate(
        folder,
        {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PGHARNESS_", "PG"))},
            "PGHARNESS_STATE_DIR": str(folder / "state"),
            "PGHARNESS_CACHE_DIR": str(folder / "cache"),
            "PGHARNESS_MIGRATIONS": "sql:migrations",
        },
        {"backend": "docker", "image": IMAGE},
    )
    child = estate.cli("bake", "--push", "--json", PGHARNESS_BAKED_REPOSITORY=name, DOCKER_CONFIG=str(folder))
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    answer = json.loads(out)
    assert answer["built"], answer
    assert answer["pushed"], answer
    assert "hidden-word" not in err
    key = answer["key"]
    about = json.loads(docker("image", "inspect", answer["name"]))[0]
    manifest, _ = registry.ask(f"/v2/{name.partition('/')[2]}/manifests/{key}", Accept=MANIFEST)
    forget(key)
    assert (answer["repository"], answer["digest"]) == (name, registry.digest(name, key))
    yield Pushed(key, name, answer["digest"], manifest, about, folder / "cache")
    forget(key)


@pytest.fixture
def machine(
    new_estate: Callable[..., Estate], registry: Registry, pushed: Pushed
) -> Iterator[Callable[..., Estate]]:
    """Makes machines that have baked nothing yet; afterwards the registry and the daemon are as they were."""

    def make(name: str = pushed.repository) -> Estate:
        estate = new_estate(backend="docker", image=IMAGE)
        estate.environ["PGHARNESS_BAKED_REPOSITORY"] = name
        estate.migrate(MIGRATION)
        # Which version the image holds takes a container to find out, and is not what these tests are about.
        shutil.copytree(pushed.cache / "images", Path(estate.environ["PGHARNESS_CACHE_DIR"]) / "images")
        made.append(estate)
        return estate

    made: list[Estate] = []
    yield make
    for estate in made:
        for purpose in estate.purposes():
            inventory.stop(Project.of(estate.settings(), estate.environ), purpose=purpose)
    forget(pushed.key)
    registry.ask(
        f"/v2/{pushed.repository.partition('/')[2]}/manifests/{pushed.key}",
        method="PUT",
        data=pushed.manifest,
        Content_Type=MANIFEST,
    )


def behind(front: Front, pushed: Pushed) -> str:
    """The same repository, by way of whatever stands before the registry."""
    return f"{front.address}/{pushed.repository.partition('/')[2]}"


def refs(key: str) -> list[str]:
    """Names of the images of a key on the daemon."""
    found = docker(
        "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"label=dev.pg-harness.baked={key}"
    )
    return sorted(name for name in found.split() if not name.endswith(":<none>"))


# --- what is pushed ----------------------------------------------------------------------------------------


def test_what_is_pushed_holds_no_secret_of_who_pushed_it(pushed: Pushed, registry: Registry) -> None:
    told = json.dumps(pushed.about).lower()
    assert "hidden-word" not in told
    assert "proxy" not in told
    # The tag is the key, alone: whoever has the same migrations asks for it.
    assert registry.tags(pushed.repository) == [pushed.key]
    # And the name that was needed for the push is gone.
    assert pushed.about["RepoTags"] == [f"{snapshots.REPOSITORY}:{pushed.key}"]


def test_checkouts_of_other_folders_and_users_ask_for_the_same(
    machine: Callable[..., Estate], pushed: Pushed, new_user: Callable[..., User]
) -> None:
    assert machine().baker().key()[0] == pushed.key
    other = new_user("puller", docker=os.stat("/var/run/docker.sock").st_gid)
    (other.root / "migrations").mkdir()
    (other.root / "migrations" / "001.sql").write_text(MIGRATION)
    other.environ |= {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": IMAGE,
        "PGHARNESS_MIGRATIONS": "sql:migrations",
        "PGHARNESS_BAKED_REPOSITORY": pushed.repository,
    }
    answer = json.loads(other.ok("bake", "--json", drop=["PGHARNESS_PG_VERSION"]))
    assert (answer["key"], answer["built"], answer["fetched"]) == (pushed.key, False, True)


def test_a_bake_alone_pushes_nothing_and_a_push_pushes_once(
    machine: Callable[..., Estate], front: Front, registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    estate = machine(behind(front, pushed))
    baked = estate.ensure()
    assert baked.fetched
    assert not baked.built
    assert {line.split()[0] for line in front.seen} <= {"GET", "HEAD"}
    front.seen.clear()
    shared, did = estate.baker().push(baked, replace=False)
    assert (shared.digest, did) == (pushed.digest, False)
    assert {line.split()[0] for line in front.seen} <= {"GET", "HEAD"}
    # With `--rebuild` it takes the place of what is there.
    shared, did = estate.baker().push(baked, replace=True)
    assert did
    assert shared.digest == registry.digest(pushed.repository, pushed.key)
    assert any(line.startswith("PUT") for line in front.seen)
    assert refs(pushed.key) == [f"{snapshots.REPOSITORY}:{pushed.key}"]


# --- what is pulled ----------------------------------------------------------------------------------------


def test_it_is_pulled_by_digest_before_anything_is_migrated(
    machine: Callable[..., Estate], front: Front, pushed: Pushed, told: list[str]
) -> None:
    estate = machine(behind(front, pushed))
    with estate.open() as fleet, fleet.lease().connect() as connection:
        assert connection.execute("select name from users").fetchone() == (MARK,)
        assert fleet.baked.fetched
        assert "base pulled in" in fleet.placement.unmade
    assert (
        fleet.baked.snapshot.shared
        == f"{front.address}/{pushed.repository.partition('/')[2]}@{pushed.digest}"
    )
    assert any(f"/manifests/{pushed.digest}" in line for line in front.seen)
    assert any("migrated elsewhere" in line for line in told)
    assert not any("baked in" in line for line in told)
    # From now on it is here, and nobody asks the registry for it.
    front.seen.clear()
    again = estate.ensure()
    assert not again.fetched
    assert not again.built
    assert front.seen == []
    # Removed, as by `gc`, it is gone from here, with all of its names, and from nowhere else.
    assert estate.baker().store.remove(again.snapshot)
    assert docker("images", "-q", "--filter", f"label=dev.pg-harness.baked={pushed.key}") == ""
    assert estate.baker().store.find(pushed.key) is not None


def test_two_processes_of_a_machine_pull_it_once(machine: Callable[..., Estate], pushed: Pushed) -> None:
    estate = machine()
    estate.environ["PGHARNESS_MIGRATIONS"] = "sql:migrations"
    answers = []
    for child in [estate.cli("bake", "--json") for _ in range(2)]:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        answers.append(json.loads(out))
    assert sorted((answer["built"], answer["fetched"]) for answer in answers) == [
        (False, False),
        (False, True),
    ]


def test_who_shares_nothing_imports_nothing_of_it() -> None:
    code = (
        "import sys; from harness.servers.docker import backend, snapshots; from harness.runs import bake;"
        "print([name for name in sys.modules if name.rpartition('.')[2] in ('repository', 'proof') and 'harness' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_servers_that_workers_share_start_from_it_too(
    machine: Callable[..., Estate], pushed: Pushed, told: list[str]
) -> None:
    estate = machine()
    settings = estate.settings(isolation="database")
    with Run.open_with(settings, estate.environ) as run, run.lease().connect() as connection:
        assert connection.execute("select name from users").fetchone() == (MARK,)
    assert any("starting from a baked server" in line for line in told)
    assert not [line for line in told if line.startswith("migrating")]
    assert refs(pushed.key) == [f"{snapshots.REPOSITORY}:{pushed.key}"]


def test_one_that_nobody_has_tried_yet_is_not_kept(machine: Callable[..., Estate], pushed: Pushed) -> None:
    """Killed after the pull: what it holds is looked at by whoever comes next."""
    store = machine().baker().store
    found = store.find(pushed.key)
    assert found is not None
    assert found.fetched
    assert store.here(pushed.key) is None
    assert store.leftovers() == []
    again = store.find(pushed.key)
    assert again is not None
    assert again.fetched
    assert again.ref == found.ref
    assert store.remove(again)
    assert docker("images", "-q", "--filter", f"label=dev.pg-harness.baked={pushed.key}") == ""


# --- a registry that is down, slow or refuses ----------------------------------------------------------------


def test_one_that_is_down_is_told_once_and_not_asked_again(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    estate = machine(f"127.0.0.1:{free_port('127.0.0.1')}/pg-harness")
    assert estate.baker().look() is None
    said = [line for line in told if "cannot be used" in line]
    assert len(said) == 1
    assert "connection refused" in said[0]
    assert "Going on without it" in said[0]
    # Another process of the run has the same cache.
    assert estate.baker().look() is None
    assert len([line for line in told if "cannot be used" in line]) == 1
    # A person who asks is answered, whatever was noted.
    with pytest.raises(BackendUnavailable, match="connection refused"):
        estate.baker().store.push(_any(pushed), replace=True)


def _any(pushed: Pushed) -> Any:
    from harness.servers.port import Snapshot

    return Snapshot(IMAGE, pushed.key, "docker", 0, 0, 0, name="x")


def test_one_that_hangs_costs_its_patience_once(
    machine: Callable[..., Estate],
    front: Front,
    pushed: Pushed,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "LOOK", 1.0)
    estate = machine(behind(front, pushed))
    front.misbehave = front.hang  # type: ignore[method-assign]
    assert estate.baker().look() is None
    assert [line for line in told if "nothing came from it in time" in line]
    asked = len(front.seen)
    began = time.monotonic()
    assert estate.baker().look() is None
    assert len(front.seen) == asked
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("how", ["crawls", "stalls", "breaks"])
def test_a_pull_that_does_not_come_to_its_end(
    machine: Callable[..., Estate],
    front: Front,
    pushed: Pushed,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    estate = machine(behind(front, pushed))
    layer = json.loads(pushed.manifest)["layers"][-1]["digest"]

    def blobs(method: str, path: str) -> tuple[int, bytes] | None:
        # Not the configuration, which is read before anything is pulled.
        if path.endswith(layer) and how == "stalls":
            front.hang(method, path)
        if "/blobs/" in path and how == "breaks":
            return 404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown \\u001b[31m to us"}]}'
        return None

    front.misbehave = blobs  # type: ignore[method-assign]
    if how == "crawls":
        front.pause = 0.2
        monkeypatch.setattr(repository, "SETTLED", 0.5)
        monkeypatch.setattr(repository, "AT_LEAST", 10_000_000)
    monkeypatch.setattr(repository, "STALLED", 1.5 if how == "stalls" else 30.0)
    assert estate.baker().look() is None
    word = "is passed over" if how == "breaks" else "Going on without it"
    said = "\n".join(line for line in told if word in line)
    assert [line for line in told if "pulling" in line]
    assert {"crawls": "it is slow", "stalls": "nothing came from it in time", "breaks": "unknown"}[
        how
    ] in said
    # What a terminal obeys is not passed on.
    assert "\x1b" not in said
    assert docker("images", "-q", "--filter", f"label=dev.pg-harness.baked={pushed.key}") == ""


@pytest.mark.parametrize("known", ["nobody", "wrong", "right"])
def test_one_that_asks_for_a_password(
    machine: Callable[..., Estate],
    closed_registry: Registry,
    pushed: Pushed,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    known: str,
) -> None:
    password = {"nobody": "", "wrong": "wrong-horse", "right": "right-horse"}[known]
    config = login(tmp_path / "docker", closed_registry, password) if password else str(tmp_path / "none")
    monkeypatch.setenv("DOCKER_CONFIG", config)
    name = f"{closed_registry.address}/{pushed.repository.partition('/')[2]}"
    estate = machine(name)
    found = estate.baker().look()
    if known == "right":
        assert found is not None
        assert found.fetched
    else:
        assert found is None
        assert [line for line in told if "refuses" in line]
        assert [line for line in told if f"docker login {closed_registry.address}" in line]
        # What is to be pushed comes from elsewhere.
        assert estate.baker(baked_repository=pushed.repository).look() is not None
    closed_registry.ask(f"/v2/{name.partition('/')[2]}/manifests/{pushed.digest}", method="DELETE")
    child = estate.cli(
        "bake", "--push", DOCKER_CONFIG=config, PGHARNESS_MIGRATIONS="sql:migrations", PGHARNESS_LOG="debug"
    )
    out, err = child.communicate(timeout=60)
    assert not [line for line in (*told, err, out) if "horse" in line]
    if known == "right":
        assert child.returncode == 0, err
        assert out.strip() == f"{name}@{closed_registry.digest(name, pushed.key)}"
        return
    assert child.returncode == 121, err
    assert "refuses" in err
    assert f"docker login {closed_registry.address}" in err
    assert f"It stays on this machine, as {snapshots.REPOSITORY}:{pushed.key}" in err
    assert closed_registry.tags(name) == []


def test_a_helper_that_keeps_the_password_and_hangs(
    machine: Callable[..., Estate],
    pushed: Pushed,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "LOOK", 1.0)
    helper = tmp_path / "docker-credential-slow"
    helper.write_text("#!/bin/sh\nexec sleep 4\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "slow"}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine().baker().look() is None
    assert [
        line for line in told if "the helper that keeps its credentials did not answer within 1 s" in line
    ]


# --- a registry that lies ------------------------------------------------------------------------------------


def _label(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(config: dict[str, Any]) -> None:
        config["config"]["Labels"][name] = value

    return change


def _variable(config: dict[str, Any]) -> None:
    config["config"]["Env"].append("LD_PRELOAD=/pgharness/evil.so")


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another key": (_label("dev.pg-harness.baked", "0" * 24), "its label dev.pg-harness.baked does not say"),
    "a key for a shell": (_label("dev.pg-harness.baked", "$(reboot)`reboot`;'\""), "its label"),
    "facts of another form": (_label("dev.pg-harness.facts", '["a"]'), "its labels cannot be read"),
    "facts without an end": (_label("dev.pg-harness.facts", "[" * 50_000), "its labels cannot be read"),
    "huge facts": (_label("dev.pg-harness.facts", json.dumps({"a": "b" * 200_000})), "its labels cannot be read"),
    "no number": (_label("dev.pg-harness.created", "nan"), "its labels cannot be read"),
    "a label that others obey": (_label("traefik.enable", "true"), "other labels than the image .* traefik.enable"),
    "a variable": (_variable, "other variables than the image .* LD_PRELOAD"),
    "a volume": (lambda config: config["config"].update(Volumes={"/x": {}}), "other volumes"),
    "another machine": (lambda config: config.update(architecture="arm64"), "linux/arm64, and not for linux/"),
    "no layer": (
        lambda config: config["rootfs"].update(diff_ids=["sha256:" + "0" * 64] * 2), "passed over: .*layers from manifest don.t match"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_labels_that_lie(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str], lie: str
) -> None:
    change, why = LIES[lie]
    digest = registry.forge(pushed.repository, pushed.key, pushed.key, change)
    estate = machine()
    assert estate.baker().look() is None
    said = [line for line in told if re.search(why, line)]
    assert said, told
    assert f"{pushed.repository}@{digest}" in said[0]
    assert docker("images", "-q", "--filter", f"reference={pushed.repository}") == ""
    # Known by its digest now.
    told.clear()
    assert estate.baker().look() is None
    assert [line for line in told if "is passed over" in line]
    assert not [line for line in told if "pulling" in line]


def test_a_lie_does_not_cost_a_person_his_image(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    """The tag leads to an image that is here for another reason: it stays."""
    mine = f"pgharness-mine-{MARK}"
    docker("build", "-q", "-t", mine, "-", stdin=f"FROM {IMAGE}\nLABEL a=b\n".encode())
    try:
        docker("tag", mine, f"{pushed.repository}:{pushed.key}")
        docker("push", f"{pushed.repository}:{pushed.key}")
        docker("rmi", f"{pushed.repository}:{pushed.key}")
        assert machine().baker().look() is None
        assert [line for line in told if "its label" in line]
        assert docker("images", "-q", mine) != ""
    finally:
        docker("rmi", "-f", mine)


def commit(pushed: Pushed, registry: Registry, files: bytes, *labels: str) -> str:
    """Push what is one layer on top of the right image, with labels as they ought to be; return its digest."""
    given = {"baked": pushed.key, "created": "1", "scripts": spec.scripts_mark()}
    words = [
        f"--change=LABEL dev.pg-harness.{name}={value}" for name, value in given.items() if name not in labels
    ]
    made = docker("create", IMAGE, "true")
    try:
        docker("cp", "-", f"{made}:/", stdin=files)
        docker("commit", *words, made, f"{pushed.repository}:{pushed.key}")
    finally:
        docker("rm", made)
    docker("push", f"{pushed.repository}:{pushed.key}")
    forget(pushed.key)
    return registry.digest(pushed.repository, pushed.key)


def test_data_that_is_not_what_the_label_says(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    folder = tarfile.TarInfo("pgharness/data")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
    files = io.BytesIO(spec.scripts())
    with tarfile.open(fileobj=files, mode="a") as tar:
        tar.addfile(folder)
    digest = commit(pushed, registry, files.getvalue())
    estate = machine()
    baked = estate.ensure()
    assert baked.built
    assert not baked.fetched
    said = [line for line in told if "its data does not hold what it says: there is no template" in line]
    assert len(said) == 1
    assert f"{pushed.repository}@{digest}" in said[0]
    assert refs(pushed.key) == [f"{snapshots.REPOSITORY}:{pushed.key}"]
    assert estate.purposes() == []
    # Where it has to be asked for again, it is known.
    docker("tag", f"{snapshots.REPOSITORY}:{pushed.key}", f"pgharness-mine-{MARK}")
    docker("rmi", f"{snapshots.REPOSITORY}:{pushed.key}")
    told.clear()
    assert estate.baker().look() is None
    assert not [line for line in told if "pulling" in line]
    # `bake --push` puts a right one in its place: what is there is no reason not to.
    docker("tag", f"pgharness-mine-{MARK}", f"{snapshots.REPOSITORY}:{pushed.key}")
    docker("rmi", f"pgharness-mine-{MARK}")
    _, did = estate.baker().push(estate.ensure(), replace=False)
    assert did
    assert registry.digest(pushed.repository, pushed.key) != digest


def test_data_from_which_no_server_starts(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    commit(pushed, registry, spec.scripts())
    estate = machine()
    assert estate.baker().look() is None
    assert [line for line in told if "no server starts from it" in line]
    assert estate.purposes() == []
    assert refs(pushed.key) == []


def test_scripts_that_are_not_ours(
    machine: Callable[..., Estate], registry: Registry, pushed: Pushed, told: list[str]
) -> None:
    commit(pushed, registry, spec.beside("entrypoint.sh", b"touch /gotcha\n"))
    assert machine().baker().look() is None
    assert [line for line in told if "the script /pgharness/entrypoint.sh in it is not ours" in line], told
    assert (
        docker("ps", "-aq", "--filter", f"ancestor={IMAGE}", "--filter", "label=dev.pg-harness.version-of")
        == ""
    )


# --- pushes that are refused ---------------------------------------------------------------------------------


def test_pushes_that_are_refused(
    machine: Callable[..., Estate], front: Front, pushed: Pushed, told: list[str]
) -> None:
    estate = machine(behind(front, pushed))
    baked = estate.ensure()
    answers = {
        403: (b'{"errors":[{"code":"DENIED","message":"may pull only"}]}', "docker login"),
        405: (b'{"errors":[{"code":"UNSUPPORTED","message":"read-only"}]}', "it takes no pushes"),
        412: (
            b'{"errors":[{"code":"DENIED","message":"will exceed the configured quota"}]}',
            "make room there",
        ),
    }
    for status, (body, remedy) in answers.items():

        def refuse(
            method: str, path: str, status: int = status, body: bytes = body
        ) -> tuple[int, bytes] | None:
            return None if method in ("GET", "HEAD") else (status, body)

        front.misbehave = refuse  # type: ignore[method-assign]
        with pytest.raises(BackendUnavailable) as caught:
            estate.baker().push(baked, replace=True)
        text = caught.value.full_text
        assert "was not pushed" in text, text
        assert remedy in text, text
        assert "It stays on this machine" in text
    assert refs(pushed.key) == [f"{snapshots.REPOSITORY}:{pushed.key}"]


def test_pushing_needs_a_repository_and_an_image(machine: Callable[..., Estate], pushed: Pushed) -> None:
    estate = machine()
    del estate.environ["PGHARNESS_BAKED_REPOSITORY"]
    child = estate.cli("bake", "--push")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 120, err
    assert "baked_repository" in err, err
    estate.given = {"backend": "process", "pg_version": "15"}
    child = estate.cli("bake", "--push", PGHARNESS_BAKED_REPOSITORY=pushed.repository)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 121, err
    assert 'backend = "docker"' in err, err
    estate.given = {"backend": "docker", "image": IMAGE}


# --- doctor --------------------------------------------------------------------------------------------------


def test_doctor_says_whether_it_answers_and_has_them(
    machine: Callable[..., Estate],
    front: Front,
    registry: Registry,
    pushed: Pushed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    estate = machine(behind(front, pushed))
    baker = estate.baker()

    def told() -> list[str]:
        return [f"{line.state} {line.detail}" for line in baker.store.examine(lambda: baker.key()[0])]

    assert told() == [f"ok these migrations are in {behind(front, pushed)}@{pushed.digest}"]
    # Its configuration alone, which the daemon reads to tell what it is for.
    assert len([line for line in front.seen if "/blobs/" in line and line.startswith("GET")]) == 1
    estate.migrate("create table other (id int)")
    baker = estate.baker()
    (line,) = told()
    assert line.startswith("note")
    assert "has nothing for these migrations" in line
    monkeypatch.setattr(repository, "LOOK", 1.0)
    front.misbehave = front.hang  # type: ignore[method-assign]
    (line,) = told()
    assert line.startswith("note")
    assert "nothing came from it in time" in line


def test_the_commands_tell_of_it(machine: Callable[..., Estate], pushed: Pushed) -> None:
    estate = machine()
    estate.environ["PGHARNESS_MIGRATIONS"] = "sql:migrations"
    out, err = estate.cli("doctor", "--json").communicate(timeout=100)
    lines = [line for line in json.loads(out) if line["check"] == "repository"]
    assert [(line["state"], line["detail"]) for line in lines] == [
        ("ok", f"these migrations are in {pushed.repository}@{pushed.digest}")
    ], err
    out, err = estate.cli("status").communicate(timeout=60)
    assert f"baked in  {pushed.repository}" in out, err
