"""Bun: each of its processes its own database, pristine before each test, each file, or back to a mark."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fix_examples import Javascript, entered
from fix_snippets import files, runs

MODES = """
import { afterAll, beforeAll, expect, test } from 'bun:test';
import { appendFileSync } from 'node:fs';
import pg from 'pg';
const WHEN: string = '%s';
const pool = new pg.Pool();                                                    // PG*
const sql = new Bun.SQL(process.env.DATABASE_URL!, { max: 1 });
beforeAll(async () => {
  if (WHEN !== 'test') await pool.query("insert into users (name) values ('eve')");
});
afterAll(async () => { await pool.end(); await sql.close(); });
const backends = new Set();
test.each([1, 2, 3])('alone %%i', async (n) => {
  await pool.query('insert into users (name) values ($1)', [WHEN === 'file' ? `ada${n}` : 'ada']);
  await Bun.sleep(100);
  const names = (await sql`select name from users order by id`).map(({ name }) => name);
  expect(names).toEqual({ test: ['ada'], mark: ['eve', 'ada'], file: ['eve', 'ada1', 'ada2', 'ada3'].slice(0, n + 1) }[WHEN]);
  const [{ pid, name }] = await sql`select pg_backend_pid() as pid, current_database()::text as name`;
  backends.add(pid);
  expect(backends.size).toBe(1);                                               // the pool stayed connected over the reset
  expect(process.env.OWN).toBe(`${process.env.DATABASE_URL} own`);
  appendFileSync('entered.txt', `${process.env.JEST_WORKER_ID ?? 1} ${name}\\n`);
});
"""

SETTINGS = """
migrations = ["sql:db/migrations"]

[env]
OWN = "{url} own"
"""


@pytest.fixture(scope="module")
def bun(javascript: Callable[..., Javascript]) -> Javascript:
    project = javascript("bun", "pg")
    project.ok("init", "bun")
    project.write({
        # The lock file tells that Bun's own client comes: it refuses fewer rounds of hashing than RFC 7677's.
        "pg-harness.toml": SETTINGS, "bun.lock": "",
        **{f"{mode}.toml": f'[test]\npreload = ["{module}"]\n' for mode, module in {
            "test": "pg-harness/bun", "file": "pg-harness/bun/file", "mark": "pg-harness/bun/mark", "single": "./pg-harness.bun.mjs",
        }.items()},
        **{f"{mode}/{number}.test.ts": MODES % mode for mode in ("test", "file", "mark") for number in range(4)},
    })  # fmt: skip
    return project


def passed(said: str, expected: int) -> bool:
    """Whether so many tests passed and none failed, by Bun's own summary."""
    return re.findall(r"^ +(\d+) (pass|fail)$", said, re.MULTILINE) == [
        (str(expected), "pass"),
        ("0", "fail"),
    ]


@pytest.mark.parametrize(
    ("mode", "config", "option", "workers"),
    [
        ("test", "test", "--parallel=2", 2), ("file", "file", "--parallel=2", 2), ("mark", "mark", "--parallel=2", 2),
        ("test", "single", "--isolate", 1), ("test", "test", "--no-isolate", 1), ("mark", "mark", "--isolate", 1),
    ],
)  # fmt: skip
def test_modes(bun: Javascript, mode: str, config: str, option: str, workers: int) -> None:
    # All workers at once: a quick first one would take all the files.
    more = ("--parallel-delay=0",) if "parallel" in option else ()
    done = bun.run(
        "run", "-n", "2", "--", "bun", f"--config={config}.toml", "test", option, *more, f"./{mode}/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed(done.stderr, 12), done.stderr
    found = entered(bun)
    assert len(found) == workers, found
    assert all(len(databases) == 1 for databases in found.values()), found
    assert len(set.union(*found.values())) == workers, found


def test_outside_of_a_run_nothing_is_tested(bun: Javascript) -> None:
    precious = "postgresql://developer@localhost/precious"
    done = bun.call("bun", "--config=test.toml", "test", "./test/0.test.ts", DATABASE_URL=precious)
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- bun test`" in done.stderr
    assert not (bun.root / "entered.txt").exists()


def test_more_processes_than_databases(bun: Javascript) -> None:
    done = bun.run(
        "run",
        "--",
        "bun",
        "--config=test.toml",
        "test",
        "--parallel=3",
        "--parallel-delay=0",
        "./test/",
    )
    assert done.returncode == 1
    assert "has no database: this run has 1, numbered from 1" in done.stderr
    assert "fewer workers (--parallel)" in done.stderr
    (bun.root / "entered.txt").unlink(missing_ok=True)


def test_what_cannot_be_pristine_is_refused(bun: Javascript) -> None:
    done = bun.run("run", "--", "bun", "--config=mark.toml", "test", "./mark/")
    assert done.returncode == 1
    assert "has to begin anew with each file: `bun test --isolate`, or --parallel" in done.stderr
    bun.write({
        "once/0.test.ts": "import { test } from 'bun:test';\n"
        "for (const n of [1, 2]) test.concurrent(`${n}`, () => Bun.sleep(300));\ntest('alone', () => {});\n"
    })  # fmt: skip
    done = bun.run("run", "--", "bun", "--config=test.toml", "test", "./once/")
    assert done.returncode == 1
    assert "use pg-harness/bun/file for them" in done.stderr
    ended = re.findall(r"^\((pass|fail)\) (\w+)", done.stderr, re.MULTILINE)
    assert sorted(ended) == [("fail", "2"), ("pass", "1"), ("pass", "alone")]
    done = bun.run("run", "--", "bun", "--config=file.toml", "test", "--isolate", "./once/")
    assert done.returncode == 0, done.stderr
    (bun.root / "entered.txt").unlink(missing_ok=True)


def test_the_page(javascript: Callable[..., Javascript]) -> None:
    project = javascript("page")
    project.write(files("bun.md"))
    assert (project.root / "bunfig.toml").exists()
    for words, expected in zip(runs("bun.md"), (3, 3, 2), strict=True):
        done = project.run(*words, *(() if "mark" in words else ("./test/",)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert passed(done.stderr, expected), done.stderr
