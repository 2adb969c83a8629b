"""Jest: each worker its own database, pristine before each test, each file, or back to a mark; and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_examples import Javascript, entered
from fix_snippets import files, runs

MODES = """
const { appendFileSync } = require('node:fs');
const pg = require('pg');
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
  expect(process.env.OWN).toBe(`${process.env.DATABASE_URL} own`);
  appendFileSync('entered.txt', `${process.env.JEST_WORKER_ID} ${name}\\n`);
});
"""

FAKED = """
const pg = require('pg');
// What replaces timers and HTTP for a test must not reach the resets.
const http = require('node:http');
beforeAll(() => { jest.useFakeTimers(); http.request = () => { throw new Error('no net in tests'); }; });
for (const n of [1, 2]) test(`faked ${n}`, async () => {
  const client = new pg.Client();
  await client.connect();
  const { rows } = await client.query("insert into users (name) values ('ada') returning id");
  await client.end();
  expect(rows).toEqual([{ id: 1 }]);
});
"""

SEQUENCER = """
// What a file replaces stays replaced for those that the same process runs after it.
module.exports = class {
  sort(tests) { return [...tests].sort((a, b) => b.path.includes('faked') - a.path.includes('faked')); }
  shard(tests) { return tests; }
  allFailedTests(tests) { return tests; }
  cacheResults() {}
};
"""

CONFIG = """
const project = (name, file) => ({ displayName: name, testMatch: [`<rootDir>/${name}/*.test.js`], setupFilesAfterEnv: [file] });
module.exports = {
  maxWorkers: Number(process.env.PGHARNESS_WORKERS ?? 1),
  testSequencer: './sequencer.js',
  projects: [project('test', '%s'), project('file', 'pg-harness/jest/file'), project('mark', 'pg-harness/jest/mark')],
};
"""

SETTINGS = """
migrations = ["sql:db/migrations"]

[env]
OWN = "{url} own"
"""


@pytest.fixture(scope="module")
def jest(javascript: Callable[..., Javascript]) -> Javascript:
    project = javascript("jest", "jest", "pg")
    project.ok("init", "jest")
    project.write({
        "pg-harness.toml": SETTINGS, "jest.config.js": CONFIG % "pg-harness/jest", "single.config.js": CONFIG % "<rootDir>/pg-harness.jest.cjs",
        **{f"{mode}/{number}.test.js": MODES % mode for mode in ("test", "file", "mark") for number in range(2)},
        "test/faked.test.js": FAKED, "sequencer.js": SEQUENCER, "package.json": '{"private": true}',
    })  # fmt: skip
    return project


@pytest.mark.parametrize(
    ("how", "workers"),
    [((), 3), (("--runInBand", "--config", "single.config.js"), 1)],
    ids=["workers", "one process"],
)
def test_three_modes_side_by_side(jest: Javascript, how: tuple[str, ...], workers: int) -> None:
    done = jest.run("run", "-n", "3", "--", "jest", *how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests:       20 passed, 20 total" in done.stderr
    found = entered(jest)
    assert len(found) == workers
    assert all(len(databases) == 1 for databases in found.values()), found
    assert len(set.union(*found.values())) == workers, found


def test_outside_of_a_run_nothing_is_tested(jest: Javascript) -> None:
    done = jest.call("jest", "test/0", DATABASE_URL="postgresql://developer@localhost/precious")
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- npx jest --maxWorkers=4`" in done.stderr
    assert not (jest.root / "entered.txt").exists()


def test_more_workers_than_databases(jest: Javascript) -> None:
    # Jest does without workers where it remembers that the files were quick.
    done = jest.run("run", "-n", "1", "--", "jest", "--maxWorkers=3", "--cacheDirectory=fresh")
    assert done.returncode == 1
    assert "has no database: this run has 1, numbered from 1" in done.stderr
    assert "fewer workers (--maxWorkers)" in done.stderr


def test_the_page(javascript: Callable[..., Javascript]) -> None:
    project = javascript("page", "jest", "pg")
    project.write({**files("jest.md"), "package.json": '{"private": true}'})
    plain, modes = runs("jest.md")
    done = project.run(*plain, "--testPathIgnorePatterns", "mark/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests:       7 passed, 7 total" in done.stderr
    done = project.run(*modes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests:       9 passed, 9 total" in done.stderr
