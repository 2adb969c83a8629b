"""Test runners, as the "not isolated" warning knows them: by the words of a command, and by what lies in the project.

Which number a runner gives to its workers, and from where it counts, is each runner's own; a lease needs none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LEASE = "ask for a lease, POST $PGHARNESS_CONTROL_URL/v1/lease"


@dataclass(frozen=True)
class Runner:
    """One of them.

    Attributes:
        name: for people.
        called: what its command line has in it.
        files: what its projects have at their root.
        remedy: what to do, beginning with who; ``{n}`` is the number of databases.
        packages: of npm, by which it is known.
        word: by which ``pg-harness init`` writes a file that does it.
    """

    name: str
    called: str
    remedy: str
    files: Sequence[str] = ()
    packages: Sequence[str] = ()
    word: str = ""

    def told(self, many: int) -> str:
        """What to do, for people.

        Args:
            many: how many databases there are.
        """
        file = f" (`pg-harness init {self.word}` writes the file that does it)" if self.word else ""
        return f"{self.name}: {self.remedy.format(n=many)}{file}"


RUNNERS = (
    Runner(
        "Vitest", r"\bvitest\b", "each worker takes DATABASE_URL_<VITEST_POOL_ID>, and maxWorkers is {n}",
        packages=["vitest"], word="vitest",
    ),
    Runner(
        "Jest", r"\bjest\b", "each worker takes DATABASE_URL_<JEST_WORKER_ID>, with --maxWorkers={n}", packages=["jest"], word="jest",
    ),
    Runner(
        "Playwright", r"\bplaywright\b",
        "each worker takes DATABASE_URL_<TEST_PARALLEL_INDEX + 1>, and workers is {n}", packages=["@playwright/test"], word="playwright",
    ),
    Runner(
        "node:test", r"\b(node|nodejs|tsx|c8)\b(?=.*\s--test(\s|$))",
        "each file takes DATABASE_URL_<NODE_TEST_WORKER_ID> where Node sets it, with --test-concurrency={n}; else let each "
        f"{_LEASE}", word="node",
    ),
    Runner(
        "Rstest", r"\brstest\b", "each worker takes DATABASE_URL_<RSTEST_WORKER_ID>, and maxWorkers is {n}",
        packages=["@rstest/core"],
    ),
    Runner(
        "Bun", r"\bbun\s+(.*\s)?test\b",
        "each worker takes DATABASE_URL_<JEST_WORKER_ID>",
        files=["bunfig.toml"], word="bun",
    ),
    Runner(
        "Surefire", r"\bmvnw?\b",
        "<forkCount>{n}</forkCount> and <argLine>-Dworker=${{surefire.forkNumber}}</argLine>: each fork takes "
        "DATABASE_URL_<worker>. Tests that run in threads of one machine: let each " + _LEASE,
        files=["pom.xml"], word="junit",
    ),
    Runner(
        "Gradle", r"\bgradlew?\b",
        "its workers' numbers (org.gradle.test.worker) do not begin with 1 again: with maxParallelForks = {n}, let each "
        f"{_LEASE}",
        files=["build.gradle", "build.gradle.kts"], word="junit",
    ),
    Runner(
        "Go", r"\b(go\s+(.*\s)?test|gotestsum)\b",
        f"it runs packages side by side and numbers none: let each {_LEASE}, in TestMain, or in each test with t.Parallel",
        files=["go.mod"], word="go",
    ),
    Runner(
        "nextest", r"\bnextest\b",
        "each test takes DATABASE_URL_<NEXTEST_TEST_GLOBAL_SLOT + 1>, with --test-threads={n}",
        files=[".config/nextest.toml"], word="rust",
    ),
    Runner(
        "cargo test", r"\bcargo\s+(.*\s)?test\b", f"its tests are threads without a number: let each {_LEASE}",
        files=["Cargo.toml"], word="rust",
    ),
    Runner(
        "parallel_tests", r"\b(parallel_)?(rspec|cucumber|minitest)\b|\b(parallel_test|turbo_tests|rails\s+test)\b",
        "each process takes DATABASE_URL_<TEST_ENV_NUMBER>, of which the first is empty and means 1, with -n {n}",
        files=[".rspec", "Gemfile"], word="ruby",
    ),
    Runner(
        "ParaTest", r"\b(paratest|phpunit|pest)\b",
        "each process takes DATABASE_URL_<TEST_TOKEN>, with paratest --processes={n}",
        files=["phpunit.xml", "phpunit.xml.dist"], word="php",
    ),
    Runner(
        "ExUnit", r"\bmix\s+(.*\s)?test\b",
        "each partition takes DATABASE_URL_<MIX_TEST_PARTITION>, with mix test --partitions {n}", files=["mix.exs"],
        word="elixir",
    ),
    Runner(
        "dotnet test", r"\bdotnet\s+(.*\s)?(test|vstest)\b", f"its workers have no number: let each {_LEASE}",
        files=["*.sln", "*.csproj"], word="dotnet",
    ),
    Runner("Deno", r"\bdeno\s+(.*\s)?test\b", f"its workers have no number: let each {_LEASE}", files=["deno.json"]),
    Runner(
        "pytest", r"\b(pytest|py\.test)\b",
        "its plugin gives each worker of -n a database by itself: leave `pg-harness run` away, or let each worker take "
        "DATABASE_URL_<number in PYTEST_XDIST_WORKER + 1>",
        files=["pytest.ini"],
    ),
)  # fmt: skip

_SCRIPT = re.compile(r"\b(?:npm|pnpm|yarn|bun)\s+(?:run(?:-script)?\s+)?(?:-\S+\s+)*([\w:.-]+)")


def found(command: Sequence[str], root: Path) -> list[Runner]:
    """The runners that a command starts, as far as can be seen; else those that the project is made for; else none.

    Args:
        root: of the project, where its package.json is.
    """
    package = _package(root)
    text = " ".join(command)
    named = [
        runner for runner in RUNNERS if any(re.search(runner.called, each) for each in _texts(text, package))
    ]
    return named or [runner for runner in RUNNERS if _made_for(runner, root, package)]


def _texts(text: str, package: dict[str, Any]) -> Iterator[str]:
    """The command, and the scripts of npm that it runs."""
    seen: set[str] = set()
    todo = [text]
    scripts = package.get("scripts")
    while todo:
        yield (text := todo.pop())
        for match in _SCRIPT.finditer(text):
            name = {"t": "test", "tst": "test"}.get(match[1], match[1])
            script = scripts.get(name) if isinstance(scripts, dict) else None
            if isinstance(script, str) and name not in seen:
                seen.add(name)
                todo.append(script)


def _made_for(runner: Runner, root: Path, package: dict[str, Any]) -> bool:
    depends = [
        name
        for key in ("dependencies", "devDependencies")
        if isinstance(package.get(key), dict)
        for name in package[key]
    ]
    if any(name in depends for name in runner.packages):
        return True
    try:
        return any(next(root.glob(pattern), None) for pattern in runner.files)
    except OSError:
        return False


def _package(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
