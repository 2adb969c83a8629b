"""Clients of other kinds at a server on another machine: each verifies its certificate by the address alone, and refuses another."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fix_backends import Checkout
from fix_examples import EXAMPLES, Javascript

from harness.config.environment import BENDING
from harness.dsn import Dsn
from harness.servers.docker import tls
from harness.servers.docker.backend import DockerBackend
from harness.servers.docker.daemon import connect
from harness.servers.port import ServerRequest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

ASK = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dsn]:
    """Of a server as a daemon elsewhere has it: its port is open on this machine's address, for TLS alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        host = probe.getsockname()[0]
    root = tmp_path_factory.mktemp("a checkout")
    environ = {
        **os.environ,
        "PGHARNESS_STATE_DIR": str(root / "a state"),
        "PGHARNESS_CACHE_DIR": str(root / "cache"),
    }
    backend = DockerBackend(environ, image="pgharness-test:busybox")
    backend._daemon = replace(connect(environ, timeout=20), host=host, bind="0.0.0.0")
    place = Checkout(root, environ)
    request: ServerRequest = place.request()
    info = backend.start(request)
    assert info.dsn.host == host
    assert info.dsn.options["sslmode"] == "verify-full"
    yield info.dsn
    backend.stop(info)
    backend.daemon.client.close()
    assert not list((root / "a state" / "remote").glob("*"))


@pytest.fixture
def forged(dsn: Dsn, tmp_path: Path) -> Dsn:
    """The address with another root: to its client, the server is somebody who shows a certificate of his own."""
    path = tmp_path / "an other.crt"
    path.write_text(tls.make([dsn.host]).certificate)
    return dsn.with_options({"sslrootcert": str(path)})


def call(
    *words: str | Path, cwd: Path | None = None, environ: dict[str, str] | None = None
) -> tuple[bool, str]:
    """Whether a program succeeds, and all that it says. It has nothing but the address: no variable of libpq."""
    clean = {name: value for name, value in os.environ.items() if name not in BENDING}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**clean, **(environ or {})}, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    return done.returncode == 0, done.stdout + done.stderr


def both(say: Callable[[Dsn], tuple[bool, str]], dsn: Dsn, forged: Dsn) -> None:
    """The right certificate lets in, by TLS; another one does not, and the error is about it."""
    good, said = say(dsn)
    assert good, said
    assert "true" in said.lower() or said.strip() == "t"
    good, said = say(forged)
    assert not good, said
    assert any(word in said.lower() for word in ("certificate", "self-signed", "pkix")), said


def test_libpq(dsn: Dsn, forged: Dsn) -> None:
    both(lambda d: call("psql", d.url, "-Atqc", ASK), dsn, forged)


def test_the_variables_of_libpq(dsn: Dsn, forged: Dsn) -> None:
    both(lambda d: call("psql", "-Atqc", ASK, environ=d.libpq()), dsn, forged)


SQLALCHEMY = f"""
import sys, sqlalchemy
with sqlalchemy.create_engine(sys.argv[1]).connect() as connection:
    print(connection.execute(sqlalchemy.text({ASK!r})).scalar())
"""
SQLALCHEMY_ASYNC = f"""
import asyncio, sys, sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine
async def main():
    engine = create_async_engine(sys.argv[1])
    async with engine.connect() as connection:
        print((await connection.execute(sqlalchemy.text({ASK!r}))).scalar())
    await engine.dispose()
asyncio.run(main())
"""
ASYNCPG = f"""
import asyncio, asyncpg, sys
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    print(await connection.fetchval({ASK!r}))
    await connection.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("text", "form"), [(SQLALCHEMY, "sqlalchemy"), (SQLALCHEMY_ASYNC, "asyncpg"), (ASYNCPG, "url")]
)
def test_python(text: str, form: str, dsn: Dsn, forged: Dsn) -> None:
    both(lambda d: call(sys.executable, "-c", text, getattr(d, form)), dsn, forged)


NODE = f"""
import pg from 'pg';
const client = new pg.Client(process.argv[2]);
await client.connect();
console.log((await client.query({ASK!r})).rows[0].ssl);
await client.end();
"""
PRISMA = f"""
import {{ PrismaPg }} from '@prisma/adapter-pg';
const adapter = await new PrismaPg({{ connectionString: process.argv[2] }}).connect();
const answer = await adapter.queryRaw({{ sql: {ASK!r}, args: [], argTypes: [] }});
console.log(answer.rows[0][0]);
await adapter.dispose();
"""


def test_node_and_prismas_adapter(dsn: Dsn, forged: Dsn, javascript: Callable[..., Javascript]) -> None:
    project = javascript("tls", "pg", "@prisma/adapter-pg")
    project.write({"node.mjs": NODE, "prisma.mjs": PRISMA})
    for name in ("node.mjs", "prisma.mjs"):

        def say(d: Dsn, name: str = name) -> tuple[bool, str]:
            done = project.call("node", name, d.url)
            return done.returncode == 0, done.stdout + done.stderr

        both(say, dsn, forged)


JAVA = f"""
import java.sql.*;
class Ask {{
    public static void main(String[] words) throws Exception {{
        try (var c = DriverManager.getConnection(words[0]); var s = c.createStatement(); var r = s.executeQuery("{ASK}")) {{
            r.next();
            System.out.println(r.getBoolean(1));
        }}
    }}
}}
"""


def test_pgjdbc(dsn: Dsn, forged: Dsn, tmp_path: Path) -> None:
    # Java's home is the one of the user's entry, whatever HOME says.
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    jars = sorted(home.glob(".m2/repository/org/postgresql/postgresql/*/postgresql-*.jar"))
    if shutil.which("java") is None or not jars:
        if os.environ.get("PGHARNESS_TEST_REQUIRE_RUNNERS") == "1":
            pytest.fail("Java and pgJDBC are required here (PGHARNESS_TEST_REQUIRE_RUNNERS=1)")
        pytest.skip("no java, or no pgJDBC in Maven's repository (scripts/fetch-runners fetches it)")
    (tmp_path / "Ask.java").write_text(JAVA)
    both(lambda d: call("java", "-cp", jars[-1], tmp_path / "Ask.java", d.jdbc), dsn, forged)


GO = f"""package main

import (
    "context"
    "fmt"
    "os"

    "github.com/jackc/pgx/v5"
)

func main() {{
    connection, err := pgx.Connect(context.Background(), os.Args[1])
    if err != nil {{
        fmt.Println(err)
        os.Exit(1)
    }}
    var ssl bool
    if err := connection.QueryRow(context.Background(), "{ASK}").Scan(&ssl); err != nil {{
        panic(err)
    }}
    fmt.Println(ssl)
}}
"""


def test_go(dsn: Dsn, forged: Dsn, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("no go on this machine")
    for name in ("go.mod", "go.sum"):
        shutil.copy(EXAMPLES / "go" / name, tmp_path / name)
    (tmp_path / "main.go").write_text(GO)
    built, said = call("go", "build", "-o", "ask", ".", cwd=tmp_path)
    if not built and os.environ.get("PGHARNESS_TEST_REQUIRE_RUNNERS") != "1":
        pytest.skip(f"go cannot have what it needs: {said[-300:]}")
    assert built, said
    both(lambda d: call(tmp_path / "ask", d.url), dsn, forged)
