"""node:test: each file its own database, pristine before each test, each file, or back to a mark, on old and new versions of Node."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable

import pytest
from fix_examples import Javascript, entered
from fix_snippets import files, runs

MODES = """
import assert from 'node:assert/strict';
import { appendFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import pg from 'pg';
const WHEN = '%s';
const pool = new pg.Pool();                                                    // PG*
const byUrl = new pg.Pool({ connectionString: process.env.DATABASE_URL });
before(async () => {
  if (WHEN !== 'test') await pool.query("insert into users (name) values ('eve')");
});
after(async () => { await pool.end(); await byUrl.end(); });
const backends = new Set();
for (const n of [1, 2, 3]) test(`alone ${n}`, async (t) => {
  await pool.query('insert into users (name) values ($1)', [WHEN === 'file' ? `ada${n}` : 'ada']);
  await new Promise((done) => setTimeout(done, 20));
  const names = { test: ['ada'], mark: ['eve', 'ada'], file: ['eve', 'ada1', 'ada2', 'ada3'].slice(0, n + 1) }[WHEN];
  const seen = async () => (await byUrl.query('select name from users order by id')).rows.map(({ name }) => name);
  assert.deepEqual(await seen(), names);
  await t.test('its subtest', async () => assert.deepEqual(await seen(), names));
  const { rows: [{ pid, name }] } = await pool.query('select pg_backend_pid() as pid, current_database()::text as name');
  backends.add(pid);
  assert.equal(backends.size, 1);                                              // the pool stayed connected over the reset
  assert.equal(process.env.OWN, `${process.env.DATABASE_URL} own`);
  appendFileSync('entered.txt', `${process.pid} ${name}\\n`);
});
"""

SETTINGS = """
migrations = ["sql:db/migrations"]

[env]
OWN = "{url} own"
"""

HANGS = """
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
test('never', { timeout: 120000 }, async () => {
  writeFileSync(`here-${process.pid}`, '');
  await new Promise((done) => setTimeout(done, 120000));
});
"""


def nodes() -> list[str]:
    """The machine's own, and the one that is installed where that is older than other tools want it."""
    return ["new", "own"] if shutil.which("node") else ["new"]


@pytest.fixture(scope="module", params=nodes())
def project(request: pytest.FixtureRequest, javascript: Callable[..., Javascript]) -> Javascript:
    project = javascript("node", "pg")
    if request.param == "own":
        project.environ["PATH"] = os.environ["PATH"]
    project.ok("init", "node")
    project.write({
        "pg-harness.toml": SETTINGS, "package.json": '{"private": true, "type": "module"}',
        **{f"{mode}/{number}.test.js": MODES % mode for mode in ("test", "file", "mark") for number in range(4)},
    })  # fmt: skip
    return project


def counted(said: str) -> tuple[int, int]:
    """Tests that passed, and that failed, by the runner's own summary."""
    passed, failed = re.findall(r"^(?:#|ℹ) (?:pass|fail) (\d+)$", said, re.MULTILINE)
    return int(passed), int(failed)


@pytest.mark.parametrize(
    ("mode", "module"),
    [
        ("test", "pg-harness/node"), ("test", "./pg-harness.node.mjs"), ("file", "pg-harness/node/file"),
        ("mark", "pg-harness/node/mark"),
    ],
)  # fmt: skip
def test_modes(project: Javascript, mode: str, module: str) -> None:
    names = [f"{mode}/{number}.test.js" for number in range(4)]
    done = project.run(
        "run", "-n", "2", "--", "node", "--import", module, "--test", "--test-concurrency=3", *names
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(done.stdout) == (24, 0), done.stdout
    assert "not isolated" not in done.stderr
    found = entered(project)
    # A process for each file, each with one database; two of them for four files: one waited for another's.
    assert len(found) == 4
    assert all(len(databases) == 1 for databases in found.values()), found
    assert len(set.union(*found.values())) == 2, found


def test_outside_of_a_run_nothing_is_tested(project: Javascript) -> None:
    done = project.call(
        "node", "--import", "pg-harness/node", "--test", "test/0.test.js",
        DATABASE_URL="postgresql://developer@localhost/precious",
    )  # fmt: skip
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- node --import pg-harness/node --test`" in (
        done.stdout + done.stderr
    )
    assert not (project.root / "entered.txt").exists()


def test_tests_that_run_at_once_are_refused(project: Javascript) -> None:
    at_once = (
        "import { describe, test } from 'node:test';\n"
        "describe('at once', { concurrency: true }, () => {\n"
        "  for (const n of [1, 2]) test(`${n}`, () => new Promise((done) => setTimeout(done, 300)));\n});\n"
        "test('skips itself', (t) => t.skip());\ntest('alone', () => {});\n"
    )
    project.write({"once/0.test.js": at_once})
    words = ("run", "--", "node", "--import", "pg-harness/node", "--test", "once/0.test.js")
    done = project.run(*words)
    assert done.returncode == 1
    assert "use pg-harness/node/file for them" in done.stdout
    # The second of both; suites count in some versions.
    assert "ok 1 - 1" in done.stdout
    assert "not ok 2 - 2" in done.stdout
    assert "ok 3 - alone" in done.stdout
    assert project.run(*words[:4], "pg-harness/node/file", *words[5:]).returncode == 0


def test_a_process_that_is_killed_gives_its_database_back(project: Javascript) -> None:
    project.write({"hang/0.test.js": HANGS, "after/0.test.js": MODES % "test"})
    script = (
        "node --import pg-harness/node --test hang/0.test.js & first=$!\n"
        "for i in $(seq 300); do ls here-* >/dev/null 2>&1 && break; sleep 0.1; done\n"
        "kill -9 $(ls here-* | cut -d- -f2) && rm here-*\n"
        "node --import pg-harness/node --test after/0.test.js || exit 9\n"
        "wait $first; test $? -ne 0\n"
    )
    done = project.run("run", "-n", "1", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(entered(project)) == 1


def test_one_process_for_all_files(project: Javascript) -> None:
    help_text = project.call("node", "--help").stdout
    option = next(
        (name for name in ("--test-isolation", "--experimental-test-isolation") if name in help_text), None
    )
    if option is None:
        pytest.skip("this version of Node has a process for each file only")
    names = [f"test/{number}.test.js" for number in range(4)]
    words = ("run", "--", "node", "--import", "pg-harness/node", "--test", f"{option}=none", *names)
    done = project.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(done.stdout) == (24, 0), done.stdout
    assert len(entered(project)) == 1
    done = project.run(*(word.replace("/node", "/node/mark") for word in words))
    assert done.returncode != 0
    assert "use pg-harness/node instead of pg-harness/node/mark" in done.stdout + done.stderr


def test_the_page(javascript: Callable[..., Javascript]) -> None:
    project = javascript("page", "pg")
    written = files("node.md")
    # JSON has no comments: the first line is the page's.
    written["package.json"] = written["package.json"].partition("\n")[2]
    project.write(written)
    plain, marked = runs("node.md")
    done = project.run(*plain, "--", "test/users.test.js", "test/describe.test.js")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(done.stdout)[1] == 0
    assert "the 3rd time" in done.stdout
    assert "and is there again" in done.stdout
    done = project.run(*marked[:-1], "mark/posts.test.js")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(done.stdout) == (2, 0)
