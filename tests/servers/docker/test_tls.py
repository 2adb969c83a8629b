"""Certificates of servers that are reached over a network: what is in them, and what an address says of them."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from harness.config import environment
from harness.dsn import Dsn
from harness.errors import BackendUnavailable
from harness.servers.docker import container, over_ssh, spec, tls, tunnel

FAR = Dsn("10.0.0.5", 20001, "app", "s3cret/", "db", {"sslmode": "verify-full", "sslrootcert": "/a b/c.crt"})


def test_what_a_certificate_names() -> None:
    made = tls.make(["10.0.0.5", "fd00::5", "db.example", "bücher.example"])
    read = x509.load_pem_x509_certificate(made.certificate.encode())
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.5",
        "fd00::5",
        "127.0.0.1",
    ]
    assert names.get_values_for_type(x509.DNSName) == ["db.example", "xn--bcher-kva.example", "localhost"]
    # Nothing else can be signed with it, wherever it is trusted.
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    again = x509.load_pem_x509_certificate(tls.make(["10.0.0.5"]).certificate.encode())
    assert read.public_key() != again.public_key()


def test_clocks_that_differ_by_an_hour_do_not_matter(tmp_path: Path) -> None:
    made = tls.make(["10.0.0.5"])
    path = tmp_path / "root.crt"
    path.write_text(made.certificate)
    for hours in (-24, -1, 0, 1, 24):
        at = str(int(time.time()) + hours * 3600)
        words = [
            "openssl",
            "verify",
            "-x509_strict",
            "-verify_ip",
            "10.0.0.5",
            "-purpose",
            "sslserver",
            "-attime",
            at,
        ]
        done = subprocess.run(
            [*words, "-CAfile", path, path], capture_output=True, text=True, check=False, timeout=20
        )
        assert done.returncode == 0, done.stdout + done.stderr
    read = x509.load_pem_x509_certificate(made.certificate.encode())
    # Apple's library refuses more.
    assert read.not_valid_after_utc - read.not_valid_before_utc <= timedelta(days=825)
    assert read.not_valid_after_utc > datetime.now(UTC) + timedelta(days=800)


def test_the_key_shows_itself_to_nobody_who_prints() -> None:
    made = tls.make(["10.0.0.5"])
    assert "BEGIN PRIVATE KEY" in made.key
    assert "PRIVATE" not in repr(made)
    assert "PRIVATE" not in repr([made.key])


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    with pytest.raises(BackendUnavailable) as told:
        tls.make(["10.0.0.5"])
    assert 'pip install "pg-harness[remote]"' in str(told.value)
    assert "ssh://" in str(told.value)


def test_a_postgresql_without_openssl_is_told_plainly() -> None:
    log = 'FATAL:  invalid value for parameter "ssl": 1\nDETAIL:  SSL is not supported by this build'
    told = container._plainly(log, "alpine-postgres", "")
    assert told is not None
    assert "built without OpenSSL" in told


def test_what_is_pinned_lies_in_a_file_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    options = tls.options(folder, "a-server", "PEM")
    path = Path(options["sslrootcert"])
    assert options["sslmode"] == "verify-full"
    assert path.read_text() == "PEM"
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    # Who finds the server again writes what it shows now.
    tls.options(folder, "a-server", "OTHER")
    assert path.read_text() == "OTHER"
    tunnel.forget(folder, "0" * 64, "a-server")
    assert list(folder.iterdir()) == []


def test_what_nobody_names_any_more_is_swept(tmp_path: Path) -> None:
    import os

    folder, hints = tmp_path / "remote", tmp_path / "0123456789"
    hints.mkdir()
    (hints / "up.json").write_text('{"server_id": "known", "handle": "abc"}')
    for name in ("known", "old", "new"):
        tls.options(folder, name, "PEM")
    (folder / "deadbeef.lock").write_text("")
    before = time.time() - tunnel.FORGOTTEN - 60
    for name in ("known.crt", "old.crt", "deadbeef.lock"):
        os.utime(folder / name, (before, before))
    assert [Path(path).name for path in tunnel.sweep(tmp_path)] == ["deadbeef.lock", "old.crt"]
    assert sorted(path.name for path in folder.iterdir()) == ["known.crt", "new.crt"]


# --- addresses ---------------------------------------------------------------------------------------------


def test_each_form_says_it_in_its_clients_words() -> None:
    asked = "sslmode=verify-full&sslrootcert=%2Fa%20b%2Fc.crt"
    assert FAR.url == f"postgresql://app:s3cret%2F@10.0.0.5:20001/db?{asked}"
    assert FAR.sqlalchemy == f"postgresql+psycopg://app:s3cret%2F@10.0.0.5:20001/db?{asked}"
    assert FAR.jdbc.endswith(f"&{asked}")
    # One parameter that is a URL: what asyncpg.connect takes as an argument.
    inside = "postgresql%3A%2F%2F%3Fsslmode%3Dverify-full%26sslrootcert%3D%252Fa%2520b%252Fc.crt"
    assert FAR.asyncpg == f"postgresql+asyncpg://app:s3cret%2F@10.0.0.5:20001/db?dsn={inside}"
    assert FAR.with_options({"command_timeout": "5"}).asyncpg.endswith(f"?command_timeout=5&dsn={inside}")


def test_libpqs_variables_are_set_and_not_dropped() -> None:
    values = environment.variables({"default": FAR}, {"default": {}}, environment.Slot())
    assert values["PGSSLMODE"] == "verify-full"
    assert values["PGSSLROOTCERT"] == "/a b/c.crt"
    child = environment.child_environment(
        {"PGSSLMODE": "disable", "PGSSLROOTCERT": "/theirs", "PGSSLCERT": "/c"}, values
    )
    assert (child["PGSSLMODE"], child["PGSSLROOTCERT"]) == ("verify-full", "/a b/c.crt")
    assert "PGSSLCERT" not in child
    each = environment.numbered([{}], {"1": values, "2": values})
    assert each["PGSSLROOTCERT_2"] == "/a b/c.crt"
    # A local server's address says nothing of it, and what is left of another one goes.
    near = environment.variables(
        {"default": Dsn("127.0.0.1", 1, "a", "b", "c")}, {"default": {}}, environment.Slot()
    )
    assert "PGSSLMODE" not in near
    assert "PGSSLMODE" not in environment.child_environment({"PGSSLMODE": "verify-full"}, near)


# --- ssh ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://build@db2", ["-l", "build", "--", "db2"]),
        ("ssh://db2:2222", ["-p", "2222", "--", "db2"]),
        ("ssh://root@[fd00::5]:22/", ["-l", "root", "-p", "22", "--", "fd00::5"]),
    ],
)
def test_destinations(url: str, words: list[str]) -> None:
    assert over_ssh.destination(url) == words


@pytest.mark.parametrize(
    "url", ["ssh://", "ssh://-oProxyCommand=x", "ssh://host/path", "ssh://a:secret@host", "ssh://host:port"]
)
def test_no_destination(url: str) -> None:
    with pytest.raises(BackendUnavailable) as told:
        over_ssh.destination(url)
    assert "secret" not in str(told.value)


def test_a_path_in_an_image_is_no_secret_of_it() -> None:
    """All that a start puts beside the data is removed before a commit."""
    assert {f"{spec.HOME}/server.key", f"{spec.DISK}/server.key", f"{spec.HOME}/password"} <= set(
        spec.SECRETS
    )
