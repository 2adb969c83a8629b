"""Docker hosts by their words: contexts, certificates, and what is wrong with a word."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from harness.config.load import load
from harness.errors import BackendUnavailable, ConfigError
from harness.servers import registry
from harness.servers.docker.daemon import connect
from harness.servers.docker.hosts import Host, parse

ORIGIN = "pyproject.toml"


def context(home: Path, name: str, host: str, *, certificates: bool = False, skip: bool = False) -> Path:
    """As `docker context create` leaves it; the folder for its certificates."""
    identity = hashlib.sha256(name.encode()).hexdigest()
    meta = home / ".docker" / "contexts" / "meta" / identity / "meta.json"
    meta.parent.mkdir(parents=True)
    endpoint = {"Host": host, "SkipTLSVerify": skip}
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    folder = home / ".docker" / "contexts" / "tls" / identity / "docker"
    if certificates:
        folder.mkdir(parents=True)
    return folder


def test_words_become_addresses(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    words = ["local", "ssh://build@db2", "unix:///run/x.sock", "tcp://10.0.0.5:2375", "local"]
    assert parse(words, environ, ORIGIN) == [
        Host("local", ""),
        Host("ssh://build@db2", "ssh://build@db2"),
        Host("unix:///run/x.sock", "unix:///run/x.sock"),
        Host("tcp://10.0.0.5:2375", "tcp://10.0.0.5:2375"),
    ]


def test_certificates_are_dockers_own(tmp_path: Path) -> None:
    """By the variables that the docker command obeys; a folder that is not named is ~/.docker."""
    home = {"HOME": str(tmp_path)}
    given = {**home, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"}
    assert parse(["tcp://h:2376"], given, ORIGIN) == [Host("tcp://h:2376", "tcp://h:2376", "/certs")]
    (found,) = parse(["tcp://h:2376"], {**home, "DOCKER_TLS_VERIFY": "1"}, ORIGIN)
    assert (found.certificates, found.verify) == (str(tmp_path / ".docker"), True)


def test_a_context_without_a_config_file(tmp_path: Path) -> None:
    folder = context(tmp_path, "ci-1", "tcp://10.0.0.5:2376", certificates=True)
    context(tmp_path, "db", "ssh://build@db2")
    context(tmp_path, "lax", "tcp://10.0.0.6:2376", certificates=True, skip=True)
    one, two, lax, default = parse(
        ["context:ci-1", "context:db", "context:lax", "context:default"], {"HOME": str(tmp_path)}, ORIGIN
    )
    assert one == Host("context:ci-1", "tcp://10.0.0.5:2376", str(folder), True)
    assert two == Host("context:db", "ssh://build@db2")
    assert (lax.verify, default.address) == (False, "")


def test_a_context_that_does_not_exist(tmp_path: Path) -> None:
    context(tmp_path, "ci-1", "tcp://10.0.0.5:2376")
    with pytest.raises(ConfigError) as caught:
        parse(["context:ci-2"], {"HOME": str(tmp_path)}, ORIGIN)
    assert str(caught.value).startswith(
        f"{ORIGIN}: hosts holds 'context:ci-2': there is no Docker context 'ci-2'"
    )
    assert "there are: default, ci-1" in str(caught.value)
    assert "did you mean context:ci-1?" in str(caught.value)
    assert (caught.value.key, caught.value.value) == ("hosts", "context:ci-2")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"Name": "x"}', '{"Endpoints": {"docker": {"Host": "npipe:////./pipe/docker_engine"}}}'],
)
def test_a_context_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    folder = context(tmp_path, "x", "tcp://h:1")
    (folder.parents[2] / "meta" / folder.parent.name / "meta.json").write_text(text)
    with pytest.raises(ConfigError, match=r"the Docker context 'x' (cannot be read|is at npipe)"):
        parse(["context:x"], {"HOME": str(tmp_path)}, ORIGIN)


@pytest.mark.parametrize("word", ["ci-1", "http://h", "tcp://", "context:", "ssh:build@h"])
def test_a_wrong_word_is_refused_where_it_was_read(tmp_path: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=r'the variable DOCKER_HOSTS: hosts holds .* a host is "local"'):
        load({"DOCKER_HOSTS": f"local,{word}"}, start=tmp_path)


def test_the_variables(tmp_path: Path) -> None:
    """PGHARNESS_HOSTS wins over Docker-like DOCKER_HOSTS, which wins over the file; either means docker."""
    (tmp_path / "pg-harness.toml").write_text('hosts = ["local"]\n')
    settings = load({}, start=tmp_path)
    assert (settings.hosts, registry.wanted(settings)) == (("local",), "docker")
    settings = load({"DOCKER_HOSTS": "local, ssh://db2"}, start=tmp_path)
    assert (settings.hosts, settings.origin("hosts")) == (("local", "ssh://db2"), "the variable DOCKER_HOSTS")
    settings = load({"DOCKER_HOSTS": "ssh://db2", "PGHARNESS_HOSTS": "ssh://db3"}, start=tmp_path)
    assert (settings.hosts, settings.origin("hosts")) == (("ssh://db3",), "the variable PGHARNESS_HOSTS")
    # Who names another backend means that.
    assert registry.wanted(load({"PGHARNESS_BACKEND": "process"}, start=tmp_path)) == "process"


def test_the_docker_command_of_a_host(tmp_path: Path) -> None:
    context(tmp_path, "db", "ssh://build@db2")
    words = ["context:db", "tcp://10.0.0.5:2375", "local"]
    assert [list(host.command) for host in parse(words, {"HOME": str(tmp_path)}, ORIGIN)] == [
        ["docker", "--context", "db"],
        ["docker", "-H", "tcp://10.0.0.5:2375"],
        [],
    ]


class _Version(BaseHTTPRequestHandler):
    """Answers as a daemon that is asked for its version."""

    def do_GET(self) -> None:
        body = json.dumps({"ApiVersion": "1.41"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def behind_tls(tmp_path: Path) -> Iterator[tuple[str, trustme.CA]]:
    """The address of a daemon that shows a certificate and wants none, and the authority that it is of."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Version) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}", authority
        server.shutdown()
        thread.join(timeout=10)


@pytest.mark.parametrize("named", ["by a context", "by a word", "by DOCKER_HOST"])
def test_an_authority_without_a_certificate_of_ours_suffices(
    tmp_path: Path, behind_tls: tuple[str, trustme.CA], named: str
) -> None:
    """As for the docker command, which shows none where there is none to show."""
    address, authority = behind_tls
    environ = {"HOME": str(tmp_path)}
    folder = context(tmp_path, "ci-1", address, certificates=True)
    if named != "by a context":
        environ |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder), "DOCKER_HOST": address}
    words = {"by a context": ["context:ci-1"], "by a word": [address]}.get(named, [])
    host = next(iter(parse(words, environ, ORIGIN)), None)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    found = connect(environ, timeout=10, host=host)
    try:
        assert found.where == address
        assert found.client.version()["ApiVersion"] == "1.41"
    finally:
        found.client.close()
    # It is what the daemon is believed by.
    trustme.CA().cert_pem.write_to_path(folder / "ca.pem")
    with pytest.raises(BackendUnavailable, match="certificate verify failed"):
        connect(environ, timeout=10, host=host)
