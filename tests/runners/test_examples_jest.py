"""The example that Jest runs: it fails on one shared database, and passes in parallel here, without any clean-up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_backends import docker
from fix_compose import COMPOSE, Run
from fix_examples import Javascript
from fix_vitest import command, results

from harness.dsn import Dsn
from harness.postgres.session import Session

REPORT = ("--", "--json", "--outputFile=results.json")
TESTS = 68


@pytest.fixture(scope="module")
def orders(example: Callable[[str], Javascript]) -> Javascript:
    project = example("jest-nest-mikroorm")
    # Nest and MikroORM are loaded for each file anew: seconds, and on a busy machine many.
    project.patience = 170
    return project


def nothing_is_cleaned(project: Javascript) -> None:
    """Fails where a test file of the example cleans up, or sets something up that lasts."""
    paths = list((project.root / "test").glob("*.spec.ts"))
    assert len(paths) == 12
    for path in paths:
        assert not re.search("(before|after)(Each|All)|truncate|clean|schema", path.read_text(), re.I), path


@pytest.mark.timeout(180)
def test_orders_fail_on_one_database(orders: Javascript) -> None:
    words, variables = command(orders, 2)
    done = orders.run(*words, *REPORT, **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(orders)
    failed = [name for name, status in found.items() if status == "failed"]
    assert len(found) == TESTS
    assert len(failed) > 17, done.stdout
    said = done.stdout + done.stderr
    # Rows of other workers are there already, or are gone.
    assert "duplicate key value violates unique constraint" in said
    assert "violates foreign key constraint" in said


@pytest.mark.timeout(180)
def test_orders_on_four_workers(orders: Javascript) -> None:
    nothing_is_cleaned(orders)
    words, variables = command(orders, 0)
    done = orders.run(*words, *REPORT, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(orders).values()) == ["passed"] * TESTS
    assert "not isolated" not in done.stderr


@pytest.fixture
def contained(orders: Javascript) -> Iterator[dict[str, str]]:
    """Variables for servers in containers. The migrated image that is baked for them is removed, and one that an earlier run has left."""
    environ = {
        "PGHARNESS_BACKEND": "docker",
        "PGHARNESS_IMAGE": "pgharness-test:15",
        "TESTCONTAINERS_RYUK_DISABLED": "true",
    }

    def baked() -> str | None:
        told = json.loads(orders.ok("fingerprint", "--json", PGHARNESS_ISOLATION="server", **environ))
        found: str | None = told["baked"]
        return found

    if left := baked():
        docker("rmi", "-f", left)
    yield environ
    made = baked()
    assert made is not None
    docker("rmi", "-f", made)


@pytest.mark.docker
@pytest.mark.timeout(180)
def test_orders_on_three_containers(orders: Javascript, contained: dict[str, str]) -> None:
    words, variables = command(orders, 1)
    done = orders.run(*words, *REPORT, **variables, **contained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results(orders).values()) == ["passed"] * TESTS
    # Migrated once, before there were three.
    assert done.stderr.count("migrating default: command:npx mikro-orm migration:up") == 1
    assert done.stderr.count("started pgharness-test:15 in container") == 4


@pytest.mark.docker
@pytest.mark.timeout(240)
def test_orders_in_three_parts_on_servers_of_compose(
    orders: Javascript, compose: Run, tmp_path: Path
) -> None:
    told = (orders.root / "README.md").read_text().replace("../../compose/", f"{COMPOSE}/")
    up, parts, down = (
        line.split() for line in re.findall(rf"^\$ (.*{re.escape(str(COMPOSE))}.*)$", told, re.MULTILINE)
    )
    assert up[:4] == ["docker", "compose", "-f", str(COMPOSE / "workers.yml")]
    done = compose("workers.yml", *up[4:])
    assert done.returncode == 0, done.stderr
    urls, words = parts[: parts.index("|")], parts[parts.index("|") + 1 :]
    addresses = compose("workers.yml", *urls[1:], program=urls[0])
    assert addresses.returncode == 0, addresses.stderr
    program = tmp_path / "bin" / "pg-harness"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness "$@"\n')
    program.chmod(0o755)
    environ = {name: value for name, value in orders.environ.items() if name != "PGHARNESS_BACKEND"}
    environ["PATH"] = f"{program.parent}:{environ['PATH']}"
    ran = subprocess.run(
        words, cwd=orders.root, env=environ, input=addresses.stdout, text=True, capture_output=True,
        timeout=orders.patience, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    reports = [results(orders, f"results-{number}.json") for number in (1, 2, 3)]
    assert all(reports)
    assert [status for report in reports for status in report.values()] == ["passed"] * TESTS
    # Migrated on each of them, once.
    for line in addresses.stdout.splitlines():
        with Session.connect(Dsn.parse(line.split("=", 1)[1])) as session:
            assert session.value("select count(*) from pg_database where datname ~ '^pgh_.*_t_'") == 1
    assert down[-2:] == ["down", "-v"]  # as the fixture does
