"""Standbys of other versions, behind a pooler, in a container; and where there can be none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fix_backends import docker
from fix_replicas import names_in, new_root, replica_of, write
from fix_reset_servers import VERSIONS, binaries
from fix_runs import environ_of_15, opened
from fix_servers import binaries_of

from harness.config.load import load
from harness.config.project import Project
from harness.databases.replicas import NoReplica
from harness.errors import BackendUnavailable, ConfigError
from harness.postgres.session import Session
from harness.runs.opening import settings_of
from harness.runs.places import places_on
from harness.runs.run import Run
from harness.runs.session import ServerSession
from harness.servers.external import OLDEST
from harness.servers.pooler import pgbouncer
from harness.servers.replica import standbys as standbys_

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(binaries_of("15") is None, reason="PostgreSQL 15 is not installed"),
]

# --- with others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [each for each in dict.fromkeys((OLDEST, *VERSIONS)) if each != 15])
def test_versions(version: int, folders: tuple[Path, Path], tmp_path: Path) -> None:
    programs = binaries(version)
    if programs is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    environ, root = environ_of_15(folders), new_root(tmp_path / "version")
    environ["PGHARNESS_BINARIES"] = str(programs)
    with opened(root, environ) as run, run.lease(watch=True) as lease:
        replica = replica_of(lease)
        with replica.connect() as connection:
            assert connection.info.server_version // 10000 == version
        for statement in ("insert into users (name) values ('new')", "alter table users add column age int"):
            write(lease, statement)
            lease.wait_for_replica()
            lease.reset()
            with replica.connect() as connection:
                assert connection.execute("select * from users").fetchall() == [(1, "first")]


@pytest.mark.skipif(
    shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], *pgbouncer.PLACES])) is None,
    reason="pgbouncer is not installed",
)
def test_a_pooler_is_in_front_of_the_primary_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "pooled")
    with opened(root, environ, pooler="pgbouncer") as run, run.lease(watch=True) as lease:
        replica, values = replica_of(lease), run.variables(lease)
        assert lease.pooled
        assert values["DATABASE_REPLICA_URL"] == values["READ_URL"] == replica.url
        assert len({replica.dsn.port, lease.dsn.port, lease.direct.dsn.port}) == 3
        with lease.connect() as writing, replica.connect(autocommit=True) as reading:
            for statement in ("insert into users (name) values ('new')", "drop table users"):
                writing.execute(statement.encode())
                writing.commit()
                lease.wait_for_replica()
                lease.reset()
                # A clone ends who reads in the database before it.
                if statement.startswith("insert"):
                    assert reading.execute("select name from users").fetchall() == [("first",)]
        assert names_in(replica) == names_in(lease) == ["first"]


# --- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (
            {"server_url": "postgresql://ann@127.0.0.1:9/shop"},
            r"server_url \(.*\): the server is somebody else's",
        ),
        ({"backend": "swarm"}, r'backend = "swarm" \(.*\): a Swarm\'s task publishes one port'),
    ],
    ids=["external", "swarm"],
)
def test_what_can_have_none_says_so_before_anything_is_started(
    backend: dict[str, str], why: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "others")
    del environ["PGHARNESS_BACKEND"]
    with pytest.raises(ConfigError, match=rf"replicas = 1 cannot be had beside {why}.*Leave `replicas` out"):
        settings_of(root, environ, backend)


def test_a_backend_of_others_that_starts_none_says_so(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "lent")
    url = run.server.info.dsn.url
    with (
        # Not through the edge, which refuses it before.
        pytest.raises(BackendUnavailable, match=r"replicas = 1 .*the backend external starts no standbys"),
        opened(root, environ, backend="external", server_url=url, allow_foreign=True),
    ):
        pass


def test_one_that_was_started_without_is_looked_at_as_it_is(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "without")
    with opened(root, environ, replicas=0) as run, run.lease() as lease:
        # `env`, `url`, `psql` and the databases of agents, with settings that have changed since.
        project = Project.of(load(environ, start=root), environ)
        session = ServerSession(project, run.server)
        assert project.settings.replicas == 1
        assert session.standbys is None
        place = next(each for each in places_on(session) if each.run == run.session.run)
        assert place.addresses()["default"] == lease.dsn
        assert not [word for word in place.addresses() if "replica" in word]
        with pytest.raises(NoReplica):
            place.on_standby("default")


def test_rewinding_cannot_be_asked_for_as_well(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "rewind")
    with (
        pytest.raises(BackendUnavailable, match=r"(?s)engine = .rewind.*replicas = 1.*leave `replicas` out"),
        opened(root, environ, engine="rewind"),
    ):
        pass


def test_a_tablespace_would_be_shared(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = run.link.session
    session.execute("set allow_in_place_tablespaces = on")
    session.execute("create tablespace within location ''")
    try:
        # In the data directory: copied with it.
        standbys_._refuse_tablespaces(session)
    finally:
        session.execute("drop tablespace within")
    monkeypatch.setattr(Session, "rows", lambda self, statement: [("fast", "/mnt/fast")])
    with pytest.raises(ConfigError, match=r"1 tablespace \(fast\)"):
        standbys_._refuse_tablespaces(session)


def test_without_the_setting_there_is_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "none")
    with opened(root, environ, replicas=0) as run, run.lease() as lease:
        assert lease.replica is None
        assert lease.replicas == ()
        with pytest.raises(ConfigError, match="replicas = 1"):
            lease.wait_for_replica()
        values = run.variables(lease)
        assert "DATABASE_REPLICA_URL" not in values
        # The same settings hold for both.
        assert values["READ_URL"] == lease.url
        assert values["ANALYTICS_READ"] == lease["analytics"].sqlalchemy_url
        assert run.server.info.standbys == ()


@pytest.mark.parametrize("value", ["4", "-1", "one"])
def test_a_wrong_number_is_refused(value: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ = {**environ_of_15(folders), "PGHARNESS_REPLICAS": value}
    with pytest.raises(ConfigError, match="PGHARNESS_REPLICAS"):
        load(environ, start=new_root(tmp_path / "wrong"))


# --- in a container ----------------------------------------------------------------------------------------


@pytest.mark.docker
def test_one_in_a_container(folders: tuple[Path, Path], tmp_path: Path) -> None:
    environ, root = environ_of_15(folders), new_root(tmp_path / "container")
    environ |= {"PGHARNESS_BACKEND": "docker", "PGHARNESS_IMAGE": "pgharness-test:15"}
    del environ["PGHARNESS_BINARIES"]
    with opened(root, environ) as run, run.lease(watch=True) as lease:
        replica = replica_of(lease)
        assert names_in(replica) == ["first"]
        for _ in range(2):
            write(lease)
            lease.wait_for_replica()
            assert names_in(replica) == ["first", "new"]
            lease.reset()
            assert names_in(replica) == ["first"]
            # As if it had been killed, in its container.
            run.server.backend.standbys(run.server.info).end(1)
        write(lease, "create table more ()")
        assert lease.reset().strategy == "clone"
        assert names_in(replica) == ["first"]
        # Its port is for this machine alone, as its server's is.
        bound = docker("port", run.server.info.handle).splitlines()
        assert len(bound) == 2
        assert all("-> 127.0.0.1:" in line for line in bound)
        # Found again by what the container says of itself.
        found = run.server.backend.find(run.project, "run")
        assert found is not None
        assert found.standbys == run.server.info.standbys
        handle = run.server.info.handle
    assert not docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"id={handle}")
