"""What a controller tells its workers arrives as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness.config.load import load
from harness.databases.spec import Owner
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import ConfigError
from harness.postgres.databases import Attributes
from harness.runs.runfile import RunFile
from harness.servers.port import ServerInfo

SETTINGS = """
migrations = ["sql:db", {source = "command:make schema", watch = ["prisma/**"]}]
binaries = "bin"
role_attributes = ["CREATEDB", "BYPASSRLS"]
extensions = ["citext"]
ttl = "2m"
[postgres]
work_mem = "8MB"
[env]
URL = "{sqlalchemy}"
[databases.analytics]
seeds = ["sql:seeds"]
"""


def run_file(root: Path, **environ: str) -> RunFile:
    return RunFile(
        run="0123456789abcdef",
        pid=os.getpid(),
        settings=load(environ, start=root, overrides={"fresh": "none"}),
        server=ServerInfo(
            Dsn("127.0.0.1", 5, "postgres", "secret", "postgres"), "id", "process", "run", "memory", "123"
        ),
        owner=Owner("app", "secret", ("CREATEDB",), managed=True),
        templates={"default": Template("t", "f" * 64, "default", Attributes(("a", "b"), None), settled=True)},
        workers=4,
    )


@pytest.mark.parametrize("text", [SETTINGS, ""], ids=["everything", "nothing"])
def test_a_worker_reads_what_was_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "pg-harness.toml").write_text(text)
    written = run_file(tmp_path, PGHARNESS_KEEP_FAILED="7")
    path = written.write(tmp_path / "runs")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = RunFile.read(path)
    assert read == written
    assert "secret" not in repr(read)
    assert read.settings.origin("keep_failed") == "the variable PGHARNESS_KEEP_FAILED"


def test_another_versions_file_is_refused(tmp_path: Path) -> None:
    path = run_file(tmp_path).write(tmp_path)
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(ConfigError, match="another version of pg-harness wrote it"):
        RunFile.read(path)
