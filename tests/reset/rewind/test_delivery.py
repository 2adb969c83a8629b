"""The module comes to a server's process, is tried there once, and whatever is wrong is a sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import Checkout
from fix_cli import Project as CliProject
from fix_native import CRASHES, DOES_NOTHING, PANICS, compiled, packaged
from fix_servers import binaries_of, enterable_folder

from harness.config.project import Project
from harness.errors import BackendError, BackendUnavailable, ServerRefused
from harness.postgres.admin import Link
from harness.postgres.session import Session
from harness.reset.rewind import fit, functions, module
from harness.reset.rewind.module import Prepared
from harness.runs import rewinding
from harness.runs.session import ServerSession
from harness.servers.handle import Server
from harness.servers.port import Backend, ServerInfo, Shelf
from harness.servers.process.backend import ProcessBackend
from harness.servers.process.user import ServerUser, put

PROJECT = "0123456789"
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Counting:
    """A shelf that counts what is put there."""

    def __init__(self, shelf: Shelf) -> None:
        self.folder = shelf.folder
        self._shelf = shelf
        self.names: list[str] = []

    def put(self, name: str, content: bytes, /) -> None:
        self.names.append(name)
        self._shelf.put(name, content)


@pytest.fixture(params=["15", "18"])
def place(
    request: pytest.FixtureRequest, new_checkout: Callable[[], Checkout]
) -> Iterator[tuple[Server, Project]]:
    """A new local server of each version, and its project."""
    version: str = request.param
    packaged(int(version))
    binaries = binaries_of(version)
    if binaries is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    checkout = new_checkout()
    settings = checkout.settings(backend="process", binaries=binaries)
    with checkout.ensure(settings) as server:
        yield server, Project.of(settings, checkout.environ)


def shelf_of(server: Server) -> Counting:
    return Counting(server.backend.shelf(server.info))


def databases(session: Session) -> set[str]:
    return set(session.column("select datname from pg_database"))


def test_it_is_brought_and_tried_once(place: tuple[Server, Project]) -> None:
    server, project = place
    session, shelf = server.session, shelf_of(server)
    before = databases(session)
    assert module.known(session) is None
    assert session.value("select count(*) from pg_namespace where nspname like 'pgharness%'") == 0
    prepared = module.prepare(session, shelf, project=project.id)
    assert isinstance(prepared, Prepared)
    assert shelf.names == [f"pgh_rewind-{prepared.digest[:12]}.so"]
    assert databases(session) == before
    assert module.known(session) == prepared

    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        rows = Session.rows
        patch.setattr(Session, "rows", lambda self, *a: asked.append(a[0]) or rows(self, *a))
        patch.setattr(Session, "row", None)
        patch.setattr(Session, "execute", None)
        assert module.prepare(session, shelf, project=project.id) == prepared
    assert len(asked) == 1
    assert len(shelf.names) == 1


def test_nobody_else_may_call_it(place: tuple[Server, Project]) -> None:
    server, project = place
    session = server.session
    prepared = module.prepare(session, shelf_of(server), project=project.id)
    assert isinstance(prepared, Prepared)
    session.execute("create role stranger")
    assert session.row(
        "select has_schema_privilege('stranger', n.oid, 'usage'), has_schema_privilege('stranger', n.oid, 'create'),"
        " bool_or(has_function_privilege('stranger', p.oid, 'execute')), count(*)::int"
        " from pg_namespace n join pg_proc p on p.pronamespace = n.oid where nspname = %s group by n.oid",
        (prepared.schema,),
    ) == (False, False, False, functions.STATEMENTS.count("create or replace function"))


def test_of_many_at_once_one_tries_it(place: tuple[Server, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    server, project = place
    shelf = shelf_of(server)
    said: list[str] = []
    say = functions.say
    monkeypatch.setattr(
        functions, "say", lambda session, schema, text: said.append(text) or say(session, schema, text)
    )

    def one(_: int) -> Prepared | str:
        with Session.connect(server.admin_dsn) as session:
            return module.prepare(session, shelf, project=project.id)

    with ThreadPoolExecutor(6) as threads:
        answers = set(threads.map(one, range(6)))
    assert len(answers) == 1
    assert isinstance(answers.pop(), Prepared)
    assert [text.split()[0] for text in said] == ["trying", "ok"]
    assert len(shelf.names) == 1


def test_a_file_that_is_gone_or_another_is_brought_again(place: tuple[Server, Project]) -> None:
    server, project = place
    shelf = shelf_of(server)
    prepared = module.prepare(server.session, shelf, project=project.id)
    file = Path(server.info.handle) / shelf.names[0]
    file.unlink()
    assert module.known(server.session) is None
    assert module.prepare(server.session, shelf, project=project.id) == prepared
    file.write_bytes(file.read_bytes()[:-100])
    assert module.prepare(server.session, shelf, project=project.id) == prepared
    assert len(shelf.names) == 3
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "module.so"
    victim.write_text("precious")
    link.symlink_to(victim)
    put(link, b"content")
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"content"
    assert link.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module.so", "victim"]
    with pytest.raises(OSError, match="directory"):
        put(tmp_path / "missing" / "module.so", b"content")


def damaged(major: int, folder: Path, content: bytes) -> list[Path]:
    (folder / fit.name_of(major, "x86_64")).write_bytes(content)
    return [folder]


def test_a_file_that_does_not_fit_is_a_reason(place: tuple[Server, Project], tmp_path: Path) -> None:
    server, project = place
    session, shelf = server.session, shelf_of(server)
    major = session.server_version // 10000
    content = packaged(major).read_bytes()

    def said(content: bytes) -> str:
        answer = module.prepare(session, shelf, project=project.id, places=damaged(major, tmp_path, content))
        assert isinstance(answer, str)
        return answer

    assert said(content[: len(content) // 2]).endswith("it is cut off")
    assert said(content[:-1]).endswith("it is cut off")
    assert said(b"").endswith("it is no shared object")
    assert said(b"#!/bin/sh\n").endswith("it is no shared object")
    # e_machine, of the ELF header.
    assert "is for aarch64, and the server runs on x86_64" in said(content[:18] + b"\xb7\x00" + content[20:])
    assert shelf.names == []
    other = packaged(18 if major == 15 else 15).read_bytes()
    # By its magic block, or because that version has not all functions that it calls.
    why = said(other)
    assert "incompatible library" in why or "could not load library" in why
    assert "while" not in why
    assert module.prepare(session, shelf, project=project.id, places=[tmp_path / "nowhere"]) == (
        f"there is no module for PostgreSQL {major} on x86_64: `pg-harness build-native` makes one"
    )
    # The server goes on, and the right one is used.
    assert isinstance(module.prepare(session, shelf, project=project.id), Prepared)


@pytest.mark.skipif(
    not ROOT, reason="the server's user is ourselves: there is no path that it alone cannot read"
)
def test_a_path_that_the_server_cannot_read_is_a_reason(
    place: tuple[Server, Project], tmp_path: Path
) -> None:
    server, project = place
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shelf = Shelf(str(closed), lambda name, content: put(closed / name, content))
    answer = module.prepare(server.session, shelf, project=project.id)
    assert isinstance(answer, str)
    assert "Permission denied" in answer
    assert server.session.value("select 1") == 1


def test_what_cannot_be_put_anywhere_is_a_reason(place: tuple[Server, Project]) -> None:
    server, project = place

    def refuse(name: str, content: bytes) -> None:
        raise BackendError("the disk is full")

    answer = module.prepare(server.session, Shelf("..", refuse), project=project.id)
    assert answer == "the module cannot be used here: the disk is full"


@pytest.mark.parametrize("source", [CRASHES, PANICS], ids=["crashes", "panics"])
def test_one_that_crashes_the_server_is_tried_twice(
    place: tuple[Server, Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    server, project = place
    link = Link(server.admin_dsn, server.info.server_id)
    places = [compiled(source, link.session.server_version // 10000, tmp_path, monkeypatch)]

    def ask() -> Prepared | str:
        return module.prepare(link.session, shelf_of(server), project=project.id, places=places)

    crashed = "the server crashed when the module was tried: its log may say why"
    assert [ask(), ask()] == [crashed, crashed]
    # Not another time: a run after another would crash it for everybody.
    assert ask() == "its trial crashed this server 2 times: the server's log may say why"
    epoch = link.epoch
    assert "2 times" in str(ask())
    assert link.epoch == epoch
    # What a crash has left of the trial is of a kind that is swept.
    assert {name for name in databases(link.session) if name.startswith(f"pgh_{project.id}")} == {
        name for name in databases(link.session) if name.startswith(f"pgh_{project.id}_x_")
    }
    # Another module is another matter.
    assert isinstance(module.prepare(link.session, shelf_of(server), project=project.id), Prepared)
    link.close()


def test_one_that_does_not_rewind_is_not_used(
    place: tuple[Server, Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, project = place
    session = server.session
    before = databases(session)
    places = [compiled(DOES_NOTHING, session.server_version // 10000, tmp_path, monkeypatch)]
    why = "its trial did not come back as it was"
    assert module.prepare(session, shelf_of(server), project=project.id, places=places) == why
    assert databases(session) == before
    # Remembered on the server: nobody tries it again.
    monkeypatch.setattr("harness.reset.rewind.selftest.run", None)
    assert module.prepare(session, shelf_of(server), project=project.id, places=places) == why
    assert module.known(session, places=places) == why


def test_a_trial_that_was_cut_off_is_no_crash(
    place: tuple[Server, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, project = place
    session, shelf = server.session, shelf_of(server)
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("harness.reset.rewind.selftest._try", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                module.prepare(session, shelf, project=project.id)
            assert module.known(session) is None
    assert not {name for name in databases(session) if name.startswith(f"pgh_{project.id}")}
    assert isinstance(module.prepare(session, shelf, project=project.id), Prepared)


def test_what_passes_is_tried_again(place: tuple[Server, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    server, project = place
    session, shelf = server.session, shelf_of(server)
    with monkeypatch.context() as patch:
        patch.setattr("harness.reset.rewind.selftest.databases.clone", full)
        answer = module.prepare(session, shelf, project=project.id)
        assert answer == "its trial failed: No space left on device"
        assert module.known(session) is None
    assert isinstance(module.prepare(session, shelf, project=project.id), Prepared)


def full(*_: object, **__: object) -> None:
    raise ServerRefused("No space left on device", sqlstate="53100")


def mounted_noexec(folder: Path) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "noexec,mode=711", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.skipif(not ROOT, reason="only root mounts")
def test_where_nothing_can_be_loaded_from_memory_the_cache_is_used(
    new_checkout: Callable[[], Checkout], folders: tuple[Path, Path]
) -> None:
    """/dev/shm of a container is mounted noexec, and the data of a run lies there."""
    packaged(15)
    checkout = new_checkout()
    with enterable_folder("noexec") as memory:
        if not mounted_noexec(memory):
            pytest.skip("nothing can be mounted here")
        try:
            backend = ProcessBackend(
                checkout.environ,
                state=folders[0],
                cache=folders[1],
                binaries=binaries_of("15"),
                memory=memory,
            )
            info = backend.start(checkout.request(storage="memory"))
            try:
                assert str(memory) in info.handle
                with Session.connect(info.dsn) as session:
                    shelf = Counting(backend.shelf(info))
                    assert shelf.folder == str(folders[1] / "modules")
                    assert isinstance(module.prepare(session, shelf, project=PROJECT), Prepared)
                    assert ServerUser.find().may_enter(Path(shelf.folder))
            finally:
                backend.stop(info)
        finally:
            subprocess.run(["umount", "-l", str(memory)], check=True)
            shutil.rmtree(folders[1] / "modules", ignore_errors=True)


# --- what the settings say ---------------------------------------------------------------------------


def test_the_setting_decides(place: tuple[Server, Project]) -> None:
    server, project = place
    rows = rewinding.prepare(project.having(engine="rows"), server, server.session)
    assert rows == 'engine = "rows", default'
    assert rewinding.told(rows) == 'rows (engine = "rows", default)'
    assert module.known(server.session) is None
    assert rewinding.told(rewinding.known(project, server, server.session)) == "not tried yet"
    for engine in ("auto", "rewind"):
        assert isinstance(rewinding.prepare(project.having(engine=engine), server, server.session), Prepared)
    assert rewinding.told(rewinding.known(project, server, server.session)) == "rewind"


def test_a_server_of_somebody_else_gets_nothing(place: tuple[Server, Project]) -> None:
    server, project = place
    theirs = replace(server, info=replace(server.info, server_id="", backend="external"))
    assert rewinding.prepare(project, theirs, server.session) == "the server is somebody else's"
    assert rewinding.known(project, theirs, server.session) == "the server is somebody else's"
    with pytest.raises(BackendUnavailable) as caught:
        rewinding.prepare(project.having(engine="rewind"), theirs, server.session)
    assert caught.value.checked == ("the server is somebody else's",)
    assert 'engine = "rewind" (default)' in caught.value.message
    # No module would help.
    assert "pg-harness starts a server of its own" in caught.value.remedies[0]
    assert not any("build-native" in line for line in caught.value.remedies)
    assert server.session.value("select count(*) from pg_namespace where nspname like 'pgharness%'") == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"fsync": "on"}, "it syncs its files to disk (fsync = on)")],
)
def test_a_server_that_is_started_otherwise(
    new_checkout: Callable[[], Checkout], settings: dict[str, str], why: str
) -> None:
    packaged(15)
    checkout = new_checkout()
    given = checkout.settings(backend="process", binaries=binaries_of("15"), postgres=settings)
    with checkout.ensure(given) as server:
        project = Project.of(given, checkout.environ)
        assert rewinding.prepare(project, server, server.session) == why
        with pytest.raises(BackendUnavailable) as caught:
            rewinding.prepare(project.having(engine="rewind"), server, server.session)
        assert "fsync off" in caught.value.remedies[0]


# --- which module fits -------------------------------------------------------------------------------

DEBIAN = "PostgreSQL 15.20 (Debian 15.20-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0) 12.2.0, 64-bit"
USUAL = {name: value for name, (value, _) in fit.WANTED.items()}


@pytest.mark.parametrize(
    ("text", "machine", "system"),
    [
        (DEBIAN, "x86_64", "pc-linux-gnu"),
        (
            "PostgreSQL 17.2 on x86_64-pc-linux-musl, compiled by gcc (Alpine) 13, 64-bit",
            "x86_64",
            "pc-linux-musl",
        ),
        (
            "PostgreSQL 18.1 on aarch64-unknown-linux-gnu, compiled by gcc, 64-bit",
            "aarch64",
            "unknown-linux-gnu",
        ),
        ("PostgreSQL 16.3 on x86_64-linux, compiled by clang-18.1.8, 64-bit", "x86_64", "linux"),
        ("PostgreSQL 17.5 on aarch64-apple-darwin23, compiled by clang, 64-bit", "aarch64", "apple-darwin23"),
        ("PostgreSQL 17.5 on arm64-apple-darwin23, compiled by clang, 64-bit", "aarch64", "apple-darwin23"),
        ("PostgreSQL 15.3, compiled by Visual C++ build 1914, 64-bit", "", ""),
    ],
)
def test_a_server_tells_its_machine(text: str, machine: str, system: str) -> None:
    build = fit.Build(170000, text, USUAL)
    assert (build.machine, build.system) == (machine, system)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (fit.Build(150020, DEBIAN, USUAL), ""),
        (fit.Build(140005, DEBIAN, USUAL), "PostgreSQL 14 is not known: 15 to 18 are"),
        (fit.Build(190000, DEBIAN, USUAL), "PostgreSQL 19 is not known: 15 to 18 are"),
        (
            fit.Build(170005, "PostgreSQL 17.5 on aarch64-apple-darwin23, compiled by clang, 64-bit", USUAL),
            "the server runs on apple-darwin23, not on Linux",
        ),
        (fit.Build(170005, "EnterpriseDB", USUAL), "the server runs on an unknown system, not on Linux"),
        (fit.Build(150020, DEBIAN, {**USUAL, "block_size": "16384"}), "its blocks have 16384 bytes"),
        (
            fit.Build(150020, DEBIAN, {**USUAL, "wal_block_size": "4096"}),
            "the blocks of its log have 4096 bytes",
        ),
        (fit.Build(150020, DEBIAN, {**USUAL, "segment_size": "512MB"}), "its files are cut at 512MB"),
        (fit.Build(150020, DEBIAN, {**USUAL, "data_checksums": "on"}), "its pages have checksums"),
        (fit.Build(150020, DEBIAN, {**USUAL, "fsync": "on"}), "it syncs its files to disk (fsync = on)"),
        (fit.Build(150020, DEBIAN, {}), "its blocks have unknown bytes"),
    ],
)
def test_what_no_module_is_made_for(build: fit.Build, why: str) -> None:
    assert fit.unfit(build) == why


def test_the_first_folder_that_has_one_counts(tmp_path: Path) -> None:
    content = packaged(15).read_bytes()
    own = tmp_path / "own"
    own.mkdir()
    places = [own, fit.PACKAGED]
    build = fit.Build(150020, DEBIAN, USUAL)
    found = fit.find(build, places)
    assert isinstance(found, fit.Module)
    assert found.path == fit.PACKAGED / "pgh_rewind-15-x86_64.so"
    assert found.content == content
    (own / "pgh_rewind-15-x86_64.so").write_bytes(content + b"\0")
    (own / "notes.so").write_bytes(b"")
    mine = fit.find(build, places)
    assert isinstance(mine, fit.Module)
    assert mine.path.parent == own
    assert mine.schema != found.schema
    assert len(mine.schema) == len("pgharness_") + 12
    assert [m.path.parent for m in fit.everything(places) if (m.major, m.machine) == (15, "x86_64")] == [own]


def test_a_backend_that_brings_no_files_is_a_reason(place: tuple[Server, Project]) -> None:
    server, project = place

    class Lent(Backend):
        name = "lent"

    # As Server.backend, which a package's own backend may be.
    lent = type("Lent", (), {"info": server.info, "backend": Lent()})()
    assert (
        rewinding.prepare(project, lent, server.session) == "the backend lent brings no files to its servers"
    )
    assert module.known(server.session) is None


# --- what the command line says ----------------------------------------------------------------------


def test_the_verbs_say_how_resets_are_made(new_project: Callable[..., CliProject]) -> None:
    packaged(15)
    cli = new_project("told")
    up = cli.run("up")
    assert up.stderr.count("reset: ") == 1
    assert "reset: rewind\n" in up.stderr
    assert "reset     rewind\n" in cli.ok("status")
    assert json.loads(cli.ok("status", "--json"))["servers"][0]["reset"] == "rewind"
    doctor = cli.ok("doctor")
    assert "up: reset: rewind" in doctor
    assert re.search("ok +reset +modules that reset by pages, for .*15 x86_64", doctor)
    off = cli.run("run", "-vv", "--", "true", PGHARNESS_ENGINE="rows")
    assert off.stderr.count("reset: ") == 1
    assert 'reset: rows (engine = "rows", the variable PGHARNESS_ENGINE)' in off.stderr
    assert 'reset     rows (engine = "rows"' in cli.ok("status", PGHARNESS_ENGINE="rows")


def test_what_cannot_be_had_on_somebody_elses_server_ends_the_run(
    new_project: Callable[..., CliProject], server: ServerInfo
) -> None:
    cli = new_project("theirs")
    # Other tests have made databases there.
    allowed = {"PGHARNESS_ALLOW_FOREIGN": "1"}
    given = {"PGHARNESS_BACKEND": "external", "PGHARNESS_SERVER_URL": server.dsn.url, **allowed}
    said = cli.fails(121, "run", "--", "true", PGHARNESS_ENGINE="rewind", **given)
    assert 'engine = "rewind" (the variable PGHARNESS_ENGINE)' in said
    assert "the server is somebody else's" in said
    # No module would help there.
    assert "without server_url (it is set by the variable PGHARNESS_SERVER_URL)" in said
    assert "build-native" not in said
    doctor = cli.run("doctor", PGHARNESS_ENGINE="rewind", **given)
    assert re.search(r"fail +servers .*reset: rows \(the server is somebody else's\)", doctor.stdout), (
        doctor.stdout
    )
    auto = cli.run("run", "-vv", "--", "true", **given)
    assert auto.returncode == 0, auto.stderr
    assert "reset: rows (the server is somebody else's)" in auto.stderr
    assert "must be one of 'auto', 'rewind', 'rows'" in cli.fails(
        120, "run", "--", "true", PGHARNESS_ENGINE="page"
    )


def test_a_run_drops_what_an_earlier_version_has_left(place: tuple[Server, Project]) -> None:
    server, project = place
    prepared = rewinding.prepare(project, server, server.session)
    assert isinstance(prepared, Prepared)
    own, old = Path(server.info.handle) / fit.file_of(prepared.schema), "pgharness_0123456789ab"
    (own.parent / fit.file_of(old)).write_bytes(own.read_bytes())
    functions.create(server.session, old, f"../{fit.file_of(old)}")
    session = ServerSession(project, server)
    session.sweep(dry_run=True)
    assert server.session.value("select to_regnamespace(%s)::text", (old,)) == old
    session.sweep()
    assert server.session.value("select to_regnamespace(%s)::text", (old,)) is None
    assert sorted(path.name for path in own.parent.glob("*.so")) == [own.name]
    assert rewinding.prepare(project, server, server.session) == prepared
