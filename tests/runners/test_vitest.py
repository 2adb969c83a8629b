"""Vitest: each worker its own database, pristine before each test, each file, or back to a mark; and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_examples import Javascript, entered
from fix_snippets import files, runs

MODES = """
import { appendFileSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
const WHEN = '%s';
const pool = new pg.Pool();                                                    // PG*
const byUrl = new pg.Pool({ connectionString: process.env.DATABASE_URL });
beforeAll(async () => {
  if (WHEN !== 'test') await pool.query("insert into users (name) values ('eve')");
});
afterAll(async () => { await pool.end(); await byUrl.end(); });
const backends = new Set();
test.each([1, 2, 3])('alone %%i', async (n) => {
  await pool.query('insert into users (name) values ($1)', [WHEN === 'file' ? `ada${n}` : 'ada']);
  await new Promise((done) => setTimeout(done, 20));
  const names = (await byUrl.query('select name from users order by id')).rows.map(({ name }) => name);
  expect(names).toEqual({ test: ['ada'], mark: ['eve', 'ada'], file: ['eve', 'ada1', 'ada2', 'ada3'].slice(0, n + 1) }[WHEN]);
  const { rows: [{ pid, name }] } = await pool.query('select pg_backend_pid() as pid, current_database()::text as name');
  backends.add(pid);
  expect(backends.size).toBe(1);                                               // the pool stayed connected over the reset
  expect(process.env.OWN).toBe(`${process.env.DATABASE_URL}?application_name=own`);
  appendFileSync('entered.txt', `${process.env.VITEST_POOL_ID} ${name}\\n`);
});
"""

CONFIG = """
import { defineConfig } from 'vitest/config';
const project = (name, file) => ({ test: { name, setupFiles: [file], include: [`${name}/*.test.mjs`] } });
export default defineConfig({ test: {
  maxWorkers: Number(process.env.PGHARNESS_WORKERS ?? 1),
  projects: [project('test', '%s'), project('file', 'pg-harness/vitest/file'), project('mark', 'pg-harness/vitest/mark')],
} });
"""

SETTINGS = """
migrations = ["sql:db/migrations"]

[env]
OWN = "{url:application_name=own}"
"""


@pytest.fixture(scope="module")
def vitest(javascript: Callable[..., Javascript]) -> Javascript:
    project = javascript("vitest", "vitest", "pg")
    project.ok("init", "vitest")
    project.write({
        "pg-harness.toml": SETTINGS, "vitest.config.mjs": CONFIG % "pg-harness/vitest", "single.config.mjs": CONFIG % "./pg-harness.vitest.mjs",
        **{f"{mode}/{number}.test.mjs": MODES % mode for mode in ("test", "file", "mark") for number in range(2)},
    })  # fmt: skip
    return project


@pytest.mark.parametrize(
    "how",
    [(), ("--no-isolate",), ("--pool=threads", "--config", "single.config.mjs")],
    ids=["forks", "no isolation", "threads and the single file"],
)
def test_three_modes_side_by_side(vitest: Javascript, how: tuple[str, ...]) -> None:
    done = vitest.run("run", "-n", "3", "--", "vitest", "run", *how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 passed" in done.stdout
    found = entered(vitest)
    assert set(found) <= {"1", "2", "3"}
    assert all(len(databases) == 1 for databases in found.values()), found
    assert len(set.union(*found.values())) == len(found) > 1, found


def test_outside_of_a_run_nothing_is_tested(vitest: Javascript) -> None:
    done = vitest.call("vitest", "run", DATABASE_URL="postgresql://developer@localhost/precious")
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- npx vitest run`" in done.stdout + done.stderr
    assert "passed" not in done.stdout
    assert not (vitest.root / "entered.txt").exists()


def test_more_workers_than_databases(vitest: Javascript) -> None:
    done = vitest.run("run", "-n", "1", "--", "vitest", "run", "--maxWorkers=3")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "has no database: this run has 1, numbered from 1" in said
    assert "fewer workers (maxWorkers in vitest.config)" in said


REFUSED = """
import { expect, test } from 'vitest';
test.concurrent('one of them', async () => expect(1).toBe(1));
"""


def test_concurrent_tests_and_a_worker_called_0(javascript: Callable[..., Javascript]) -> None:
    project = javascript("refused", "vitest")
    # As Vitest 4.0.18 did.
    project.write({
        "zero.mjs": "if (process.env.ZERO) process.env.VITEST_POOL_ID = '0';\n", "concurrent.test.mjs": REFUSED,
        "vitest.config.mjs": "export default { test: { setupFiles: ['./zero.mjs', 'pg-harness/vitest'] } };\n",
    })  # fmt: skip
    done = project.run("run", "--", "vitest", "run", "--maxWorkers=1")
    assert done.returncode == 1
    assert "concurrent tests of one file share one database" in done.stdout + done.stderr
    done = project.run("run", "--", "vitest", "run", "--maxWorkers=1", ZERO="1")
    assert done.returncode == 1
    assert "its worker is number 0 (VITEST_POOL_ID)" in done.stdout + done.stderr


def test_the_page(javascript: Callable[..., Javascript]) -> None:
    project = javascript("page", "vitest", "pg")
    project.write(files("vitest.md"))
    commands = runs("vitest.md")
    assert len(commands) == 2
    # The first configuration is for the files that want each test pristine.
    plain = project.run(*commands[0], "test/users.test.ts", "test/describe.test.ts")
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "7 passed" in plain.stdout
    modes = project.run(*commands[1])
    assert modes.returncode == 0, modes.stdout + modes.stderr
    assert "9 passed" in modes.stdout
