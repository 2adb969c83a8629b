"""PostgreSQL upgraded under a person's server: its libraries are of another build, and the error says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

SERVERS = Path(__file__).resolve().parents[2] / "build" / "servers"


@pytest.mark.timeout(180)
def test_the_error_and_doctor_say_it_and_the_data_stays(new_project: Callable[..., Project]) -> None:
    for version in ("16", "17"):
        if not (SERVERS / version / "bin" / "postgres").exists():
            pytest.skip("scripts/fetch-servers has not been run")
    project = new_project("upgraded")
    # Where the server's user may enter.
    programs = Path(project.environ["PGHARNESS_CACHE_DIR"]) / "programs"
    shutil.copytree(SERVERS / "16", programs, symlinks=True)
    for folder in (programs, programs.parent):
        folder.chmod(0o755)
    settings = {"PGHARNESS_BACKEND": "process", "PGHARNESS_BINARIES": str(programs / "bin")}
    project.ok("up", **settings)
    project.ok("psql", "--", "-c", "insert into users (name) values ('mine')", **settings)
    assert "upgraded under" not in project.ok("doctor", **settings)

    # As dpkg does it: new files under the old names, and a program that tells another version.
    library, postgres = programs / "lib" / "postgresql" / "plpgsql.so", programs / "bin" / "postgres"
    ours, program = library.read_bytes(), programs / "bin" / "postgres-16"
    library.unlink()
    shutil.copyfile(SERVERS / "17" / "lib" / "postgresql" / "plpgsql.so", library)
    postgres.rename(program)
    postgres.write_text(
        f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "postgres (PostgreSQL) 16.99"; exit; }}\nexec {program} "$@"\n'
    )
    postgres.chmod(0o755)
    project.migrate("9_block.sql", "do $$ begin perform 1; end $$;")
    said = project.fails(123, "up", "--fresh", "--yes", **settings)
    assert "could not load library" in said
    assert "PostgreSQL was upgraded under the server, which runs as 16." in said
    assert "16.99 is there now" in said
    assert "`pg-harness stop && pg-harness up` starts it again, with its data" in said
    assert "install" not in said
    told = project.run("doctor", **settings)
    assert told.returncode == 121
    assert "fail  servers     up: PostgreSQL was upgraded" in told.stdout

    # What it advises.
    library.unlink()
    library.write_bytes(ours)
    project.ok("stop", **settings)
    project.ok("up", **settings)
    assert "mine" in project.ok("psql", "--", "-Atc", "select name from users", **settings)
