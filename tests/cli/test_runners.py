"""The "not isolated" warning names what to do for the runner at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

from harness.cli import runner_files
from harness.cli.run import runners

CALLS = [
    ("npx vitest run", "Vitest", "VITEST_POOL_ID"),
    ("node node_modules/vitest/vitest.mjs run", "Vitest", "VITEST_POOL_ID"),
    ("pnpm exec jest --ci", "Jest", "JEST_WORKER_ID"),
    ("npx playwright test", "Playwright", "TEST_PARALLEL_INDEX + 1"),
    ("node --test test/", "node:test", "NODE_TEST_WORKER_ID"),
    ("node --import tsx --test --test-concurrency=4", "node:test", "NODE_TEST_WORKER_ID"),
    ("bun test", "Bun", "JEST_WORKER_ID"),
    ("mvn -B test", "Surefire", "surefire.forkNumber"),
    ("./mvnw verify", "Surefire", "argLine"),
    ("./gradlew check", "Gradle", "/v1/lease"),
    ("go test ./...", "Go", "/v1/lease"),
    ("sh -c 'cd api && go test -race ./...'", "Go", "/v1/lease"),
    ("gotestsum -- -p 4 ./...", "Go", "/v1/lease"),
    ("cargo nextest run", "nextest", "NEXTEST_TEST_GLOBAL_SLOT + 1"),
    ("cargo test --workspace", "cargo test", "/v1/lease"),
    ("bundle exec parallel_rspec spec/", "parallel_tests", "TEST_ENV_NUMBER"),
    ("bundle exec rspec", "parallel_tests", "TEST_ENV_NUMBER"),
    ("vendor/bin/paratest", "ParaTest", "TEST_TOKEN"),
    ("vendor/bin/phpunit tests", "ParaTest", "TEST_TOKEN"),
    ("mix test", "ExUnit", "MIX_TEST_PARTITION"),
    ("dotnet test", "dotnet test", "/v1/lease"),
    ("deno test -A", "Deno", "/v1/lease"),
    ("rstest", "Rstest", "RSTEST_WORKER_ID"),
    ("python -m pytest -n 4", "pytest", "PYTEST_XDIST_WORKER"),
]


@pytest.mark.parametrize(("command", "name", "remedy"), CALLS)
def test_by_the_command(tmp_path: Path, command: str, name: str, remedy: str) -> None:
    for words in (command.split(), ["sh", "-c", command]):
        assert [runner.name for runner in runners.found(words, tmp_path)] == [name]
    assert remedy in runners.found([command], tmp_path)[0].told(4)


@pytest.mark.parametrize(
    "command",
    ["node server.js", "node --test-reporter=spec run.js", "go build ./...", "make check", "cargo build", "./test.sh", "bun run dev"],
)  # fmt: skip
def test_what_is_none(tmp_path: Path, command: str) -> None:
    assert runners.found(command.split(), tmp_path) == []


def test_every_remedy_can_be_written_and_followed() -> None:
    for runner in runners.RUNNERS:
        assert "{" not in runner.told(4).replace("${surefire.forkNumber}", ""), runner
        assert not runner.word or runner.word in runner_files.RUNNERS
    assert {runner.word for runner in runners.RUNNERS} >= set(runner_files.RUNNERS)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("npm test", ["Vitest"]),
        ("npm t", ["Vitest"]),
        ("npm run --silent e2e", ["Playwright"]),
        ("yarn all", ["Vitest", "Playwright"]),
        ("pnpm -s unit", ["Vitest"]),
        ("npm run loop", []),
        ("make test", ["Jest"]),
    ],
)
def test_by_the_scripts_of_a_package(tmp_path: Path, command: str, expected: list[str]) -> None:
    scripts = {
        "test": "npm run unit", "unit": "vitest run", "e2e": "playwright test", "all": "npm run unit && npm run e2e",
        "loop": "npm run loop",
    }  # fmt: skip
    package = {"scripts": scripts, "devDependencies": {"jest": "30"} if "make" in command else {}}
    (tmp_path / "package.json").write_text(json.dumps(package))
    assert [runner.name for runner in runners.found(command.split(), tmp_path)] == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [("pom.xml", "Surefire"), ("build.gradle.kts", "Gradle"), ("go.mod", "Go"), ("phpunit.xml.dist", "ParaTest"), ("mix.exs", "ExUnit")],
)  # fmt: skip
def test_by_what_lies_in_the_project(tmp_path: Path, file: str, expected: str) -> None:
    (tmp_path / file).write_text("")
    assert [runner.name for runner in runners.found(["make", "test"], tmp_path)] == [expected]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"scripts": 7, "dependencies": []}', '{"scripts": {"test": 1}}']
)
def test_a_package_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "package.json").write_text(content)
    assert runners.found(["npm", "test"], tmp_path) == []


QUERY = """
const test = require('node:test');
const { execFileSync } = require('node:child_process');
test('asks', () => { execFileSync('psql', ['-Xqc', 'select pg_sleep(0.3)', process.env.DATABASE_URL]); });
"""


@pytest.mark.skipif(
    shutil.which("npm") is None or shutil.which("psql") is None, reason="no npm or psql on this machine"
)
def test_a_real_one(new_project: Callable[..., Project]) -> None:
    """Two files, in two processes of node:test's, called by a script of npm's."""
    project = new_project("runners")
    (project.root / "package.json").write_text('{"private": true, "scripts": {"test": "node --test"}}')
    for name in ("one", "two"):
        (project.root / f"{name}.test.js").write_text(QUERY)
    done = project.run("-q", "run", "-n", "2", "--", "npm", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stderr.splitlines()
    assert first.endswith(
        "not isolated: only worker 1's database was used, of 2: DATABASE_URL_2 … were ignored"
    )
    assert "node:test: each file takes DATABASE_URL_<NODE_TEST_WORKER_ID>" in second


def test_one_that_nobody_knows(new_project: Callable[..., Project]) -> None:
    project = new_project("unknown")
    if shutil.which("psql") is None:
        pytest.skip("no psql on this machine")
    said = project.run("-q", "run", "-n", "3", "--", "sh", "-c", "psql -Xqc 'select 1' >/dev/null").stderr
    assert "its own of DATABASE_URL_1 … DATABASE_URL_3" in said
    assert "`pg-harness run --copies 3 -- …`" in said
