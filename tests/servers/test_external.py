"""A server that someone else runs: what it allows, said before anything is tried. Other tests have made databases on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fix_backends import Checkout
from fix_last_will import leave
from fix_servers import person

from harness.dsn import Dsn
from harness.errors import BackendUnavailable, ConfigError
from harness.postgres import roles
from harness.postgres.session import Session
from harness.servers.external import ExternalBackend
from harness.servers.port import ServerInfo


@pytest.fixture
def role(server: ServerInfo) -> Callable[[str], Dsn]:
    """Makes a role with these attributes on a real server."""
    return partial(person, server)


def test_a_superuser_is_told_nothing(server: ServerInfo, place: Checkout) -> None:
    ours = ExternalBackend(server.dsn.url, allow_foreign=True)
    info = ours.start(place.request())
    assert info.server_id == ""
    assert (info.backend, info.storage) == ("external", "unknown")
    assert ours.capabilities().superuser
    assert not ours.capabilities().pooler
    assert server.dsn.password not in info.handle + info.description + repr(info)
    ours.stop(info)
    assert ours.list(None) != []


def test_without_rights(role: Callable[[str], Dsn]) -> None:
    with pytest.raises(BackendUnavailable, match="may not create databases: ALTER ROLE"):
        ExternalBackend(role("").url).find("", "run")


def test_with_few_rights(role: Callable[[str], Dsn], place: Checkout) -> None:
    ours = ExternalBackend(role("CREATEDB").url, allow_foreign=True)
    ours.start(place.request())
    assert any("no CREATEROLE" in line for line in place.told)
    assert any("each reset is a new clone" in line for line in place.told)


def test_who_is_no_superuser_can_put_its_role_right_again(
    role: Callable[[str], Dsn], server: ServerInfo
) -> None:
    """The second command on such a server was refused: only a superuser may say `nosuperuser` of a role."""
    name = f"ext_{os.urandom(4).hex()}"
    look = (
        "select rolcreatedb, rolcreaterole, rolcanlogin, rolsuper, rolconfig from pg_roles where rolname = %s"
    )
    with Session.connect(role("CREATEDB CREATEROLE")) as plain, Session.connect(server.dsn) as admin:

        def ensure() -> tuple[object, ...] | None:
            roles.ensure(
                plain, name, password="x", attributes=("CREATEDB",), superuser=False, must_be_ours=True
            )
            return admin.row(look, (name,))

        right = (True, False, True, False, None)
        assert ensure() == right
        assert ensure() == right
        admin.script(
            f"alter role {name} nocreatedb createrole nologin; alter role {name} set work_mem = '5MB'"
        )
        assert ensure() == right
        admin.execute(f"grant connect on database postgres to {name}")
        with Session.connect(server.dsn.with_user(name, "x")) as application:
            assert application.value("select current_user") == name


def test_read_only(role: Callable[[str], Dsn], server: ServerInfo) -> None:
    dsn = role("CREATEDB")
    with Session.connect(server.dsn) as session:
        session.execute(f"ALTER ROLE {dsn.user} SET default_transaction_read_only = on")
    with pytest.raises(BackendUnavailable, match="read-only"):
        ExternalBackend(dsn.url).find("", "run")


def test_unreachable_and_refused(server: ServerInfo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(BackendUnavailable, match="does not answer") as caught:
        ExternalBackend(
            f"postgresql://u:topsecret@127.0.0.1:{port}/postgres", origin="PGHARNESS_SERVER_URL"
        ).find("", "run")
    assert "PGHARNESS_SERVER_URL" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    with pytest.raises(BackendUnavailable, match="refuses us"):
        ExternalBackend(server.dsn.with_user("postgres", "wrong").url).find("", "run")
    with pytest.raises(ConfigError):
        ExternalBackend("mysql://x")


def test_a_pooler_in_front_is_refused(server: ServerInfo, place: Checkout) -> None:
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = Path(f"/tmp/pgharness-bouncer-{os.getpid()}-{port}")
    folder.mkdir(mode=0o755)
    (folder / "users").write_text(f'"postgres" "{server.dsn.password}"\n')
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.dsn.port} user=postgres password={server.dsn.password}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nauth_type=plain\nauth_file={folder}/users\n"
        f"unix_socket_dir=\npool_mode=transaction\nignore_startup_parameters=extra_float_digits,options\n"
    )
    identity = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    bouncer = subprocess.Popen(
        [program, "-q", folder / "ini"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **identity,  # type: ignore[call-overload]
    )
    leave("process", bouncer.pid, str(folder))
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        dsn = Dsn("127.0.0.1", port, "postgres", server.dsn.password, "postgres")
        with pytest.raises(BackendUnavailable, match="pooler"):
            ExternalBackend(dsn.url).find("", "run")
    finally:
        bouncer.kill()
        bouncer.wait(10)
        shutil.rmtree(folder)


def test_an_inherited_database_url_is_never_used(place: Checkout, server: ServerInfo) -> None:
    place.environ["DATABASE_URL"] = server.dsn.url
    with pytest.raises(ConfigError, match="DATABASE_URL is never taken"):
        place.ensure(place.settings(backend="external"))
