"""The npm package: its own tests, its forms that are made from one source, its types."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest
from fix_examples import CLIENT, EXAMPLES, Javascript
from fix_snippets import files, runs

from harness.cli.runner_files import RUNNERS, commonjs


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_its_own_tests() -> None:
    done = subprocess.run(
        ["node", "--test", *map(str, sorted(CLIENT.glob("test/*.test.js")))],
        cwd=CLIENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout or "fail 0" in done.stdout


def test_an_example_gets_a_copy_of_it() -> None:
    """A link's own imports (``@playwright/test``) are looked for beside its target, where they are not."""
    packages = [
        path for path in EXAMPLES.glob("*/package.json") if "file:../../clients/js" in path.read_text()
    ]
    assert len(packages) >= 5
    for path in packages:
        assert "install-links=true" in (path.parent / ".npmrc").read_text().splitlines()


@pytest.mark.parametrize("name", ["core", "edges/jest"])
def test_commonjs_is_made_from_the_module(name: str) -> None:
    """scripts/build-clients writes them."""
    assert (CLIENT / f"{name}.cjs").read_text() == commonjs((CLIENT / f"{name}.js").read_text())


@pytest.mark.parametrize("word", RUNNERS)
def test_a_single_file_has_all_of_it_and_imports_nothing_of_ours(word: str) -> None:
    for name, make in RUNNERS[word].files.items():
        text = make()
        if name.endswith("js"):
            assert "PGHARNESS_CONTROL_URL" in text
            assert "'./" not in text
            assert "'../" not in text
            assert text.count("import ") + text.count("require(") <= 3


USES = """
import { changes, lease, mark, release, reset, unmark, use, workers, PgHarnessError, type ResetReport } from 'pg-harness/core';
import { begin, expect, test } from 'pg-harness/playwright';
import 'pg-harness/vitest';
import 'pg-harness/vitest/file';
import 'pg-harness/jest/mark';
import 'pg-harness/node';
import 'pg-harness/bun';

export const n: number = use(1) + workers();

export async function all(): Promise<ResetReport> {
  const set: string = await mark();
  await unmark(set);
  const lines: string[] = (await changes()).databases['default'] ?? [];
  const inserted: number | undefined = (await changes()).details['default']?.tables['users']?.inserted;
  const { url } = await lease({ worker: 'a', wait: 3 });
  await release();
  try {
    return await reset({ to: 'template' });
  } catch (error) {
    if (error instanceof PgHarnessError) console.log(error.status, error.problem.detail, url, lines, inserted);
    throw error;
  }
}

test.use({ pristineBefore: 'file' });
test.beforeAll(begin);
test('x', async ({ databaseUrl, request }) => {
  const url: string = databaseUrl;
  expect(url).toBeTruthy();
  await request.get('/');
});
// @ts-expect-error there is no such mode
test.use({ pristineBefore: 'never' });
// @ts-expect-error a mark is a string
void unmark(3);
"""


def test_its_types_are_strict(javascript: Callable[..., Javascript]) -> None:
    project = javascript("types", "typescript", "@types/node", "@playwright/test")
    project.write({"use.ts": USES, "package.json": '{"private": true, "type": "module"}'})
    done = project.call(
        "tsc",
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--types",
        "node",
        "use.ts",
    )
    assert done.returncode == 0, done.stdout


PAGE = """
import assert from 'node:assert/strict';
import pg from 'pg';
import { pristine } from './setup.mjs';
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
for (const time of [1, 2]) {
  await pristine();
  assert.deepEqual((await pool.query("insert into users (name) values ('ada') returning id")).rows, [{ id: 1 }]);
}
assert.equal(process.env.DATABASE_URL, process.env.DATABASE_URL_2);
await pool.end();
console.log('as the page says');
"""


def test_the_page_of_other_runners(javascript: Callable[..., Javascript]) -> None:
    project = javascript("page", "pg")
    project.write({**files("javascript.md"), "tests.mjs": PAGE})
    (words,) = runs("javascript.md")
    assert "database 1, true" in project.ok(*words)
    said = project.ok("run", "-n", "2", "--", "node", "tests.mjs", RSTEST_WORKER_ID="2")
    assert "as the page says" in said
    done = project.run("run", "-n", "2", "--", "node", "tests.mjs", RSTEST_WORKER_ID="3")
    assert done.returncode == 1
    assert 'worker "3" has no database: this run has 2' in done.stderr
