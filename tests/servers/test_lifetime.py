"""Servers that end themselves, and starts and bakes that were cut off at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from fix_backends import Checkout, docker, processes_naming, until
from fix_daemons import SMALL
from fix_fleets import Estate
from fix_servers import binaries_of

from harness.config.project import Project
from harness.servers import acquire
from harness.servers.docker.spec import LABEL


@pytest.mark.parametrize("backend", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_yours_ends_itself_where_you_said_so(new_estate: Callable[..., Estate], backend: str) -> None:
    given = {"image": SMALL} if backend == "docker" else {}
    estate = new_estate(backend=backend, **given)
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    child = estate.cli("up", "--ttl", "1s")
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    assert out.startswith("postgresql://")
    assert until(lambda: estate.purposes() == [], seconds=30, what="the server to end itself") < 20
    # And comes again, empty, for who asks again.
    child = estate.cli("up", "--ttl", "1h")
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    assert estate.purposes() == ["up"]


@pytest.mark.parametrize(
    ("version", "use"),
    [
        ("15", "a short session now and then"),
        ("18", "a statement now and then"),
        ("18", "one long statement"),
    ],
)
def test_yours_stays_while_your_application_uses_it(
    new_estate: Callable[..., Estate], version: str, use: str
) -> None:
    """`up --ttl` ended under an application that queried each second: it holds no sign of life."""
    folder = binaries_of(version)
    if folder is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    estate = new_estate(backend="process", binaries=str(folder))
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    child = estate.cli("up", "--ttl", "2s")
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    deadline = time.monotonic() + 9
    connection = psycopg.connect(out.strip(), autocommit=True)
    if use == "one long statement":
        connection.execute("select pg_sleep(9)")
    while time.monotonic() < deadline:
        time.sleep(1)
        if use.startswith("a short session"):
            connection.close()
            connection = psycopg.connect(out.strip(), autocommit=True)
        connection.execute("select count(*) from pg_class, generate_series(1, 10)")
    # An open connection alone is no use of it.
    until(lambda: estate.purposes() == [], seconds=30, what="the server to end itself")
    connection.close()


@pytest.mark.docker
def test_an_initialisation_that_was_cut_off_is_not_taken_for_a_finished_one(
    new_estate: Callable[..., Estate],
) -> None:
    estate = new_estate(backend="docker", image="pgharness-test:17")
    (estate.root / "pg-harness.toml").write_text('migrations = ["sql:migrations"]\n')
    first = estate.cli("up")
    mine = ["ps", "-q", "--filter", f"label={LABEL}.root={estate.root.resolve()}"]

    def initialising() -> str:
        for handle in docker(*mine).split():
            with suppress(AssertionError):
                if "initdb" in docker("top", handle, "-eo", "pid,args"):
                    return handle
        return "" if first.poll() is None else "too late"

    found: list[str] = []
    until(lambda: found.append(initialising()) or found[-1], seconds=60, what="initdb to run")  # type: ignore[func-returns-value]
    # Both at once, as where a machine loses its power; the container stays.
    first.kill()
    docker("kill", found[-1])
    first.communicate(timeout=30)
    again = estate.cli("up")
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert docker(*mine).strip() == found[-1][:12]
    with acquire.ensure(Project.of(estate.settings(), estate.environ), purpose="up") as yours:
        # The first directory lacks its mark: it lies there, unused.
        assert yours.session.value("show data_directory") == "/pgharness/data/2"
    with psycopg.connect(out.strip()) as connection:
        assert connection.execute("select name from users").fetchall() == [("a",)]


@contextmanager
def unplugged(first: int, second: int) -> Iterator[None]:
    """Drop what two ports on loopback send to each other, as after a cable was pulled: nobody is told."""
    rules = [["INPUT", "-i", "lo", "-p", "tcp", "--sport", str(a), "--dport", str(b), "-j", "DROP"]
             for a, b in ((first, second), (second, first))]  # fmt: skip
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        pytest.skip("dropping packets needs root and iptables")
    done = []
    try:
        for rule in rules:
            if subprocess.run(["iptables", "-w", "-I", *rule], check=False, capture_output=True).returncode:
                pytest.skip("iptables does not work here")
            done.append(rule)
        yield
    finally:
        for rule in done:
            subprocess.run(["iptables", "-w", "-D", *rule], check=True)


@pytest.mark.slow
def test_a_client_machine_that_vanished(place: Checkout) -> None:
    with place.ensure(place.settings(backend="process", ttl=2)) as found:
        port = found.session.value("select inet_client_port()")
        folder = found.info.handle
        with unplugged(port, found.info.dsn.port):
            # The answer to the question for its port was not acknowledged yet, so no keepalive is ever sent.
            took = until(lambda: not os.path.exists(folder), seconds=90, what="the server to end itself")
        assert 5 < took < 60
    until(lambda: not processes_naming(folder), seconds=10, what="no stray process")


@pytest.mark.slow
def test_killed_at_any_moment_of_a_bake(new_estate: Callable[..., Estate]) -> None:
    estate = new_estate(backend="process")
    began = time.monotonic()
    child = estate.python("bake.TTL = 2.0\nestate_open()\n")
    assert child.wait(timeout=100) == 0, child.communicate()
    child.communicate()
    whole = time.monotonic() - began
    for moment in range(12):
        estate.migrate(f"create table users (id int, c{moment} int)")
        child = estate.python("bake.TTL = 2.0\nestate_open()\n")
        # From the start of the interpreter to the rename: the moments are what is tested.
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=whole * (moment + 1) / 12)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=20)
        # Half a base is never found; a whole one works, and so does the next attempt.
        with estate.open() as fleet, fleet.lease().connect() as connection:
            assert connection.execute(f"select count(c{moment}) from users").fetchone() == (0,)
    until(lambda: estate.purposes() == [], seconds=60, what="the builders to end themselves")
    halves = [path for path in Path(estate.environ["PGHARNESS_CACHE_DIR"]).glob("base-*.*") if path.is_dir()]
    estate.baker().store.leftovers()
    assert not [path for path in halves if path.exists()]
