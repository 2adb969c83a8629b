"""The single files that ``init WORD`` writes, made from the sources of the packages in ``clients/``.

A further word needs its line in :data:`RUNNERS`, its sources below ``clients/``, and their line of ``force-include`` in pyproject.toml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "clients", _HERE.parents[1] / "clients")
"""Of a wheel, and of a checkout."""


@dataclass(frozen=True)
class Runner:
    """What a word of ``init`` writes and says.

    Attributes:
        title: the runner's name, for people.
        files: path below the project's root → what makes its text.
        lines: what a person adds to which file, as it is printed.
        command: how the tests are run then.
    """

    title: str
    files: Mapping[str, Callable[[], str]]
    lines: str
    command: str


def source(path: str) -> str:
    """The text of a file below ``clients/``."""
    return next(folder / path for folder in _FOLDERS if (folder / path).is_file()).read_text()


def commonjs(module: str) -> str:
    """An ES module of ours for those who need CommonJS, as Jest does: its imports and its exports are lines of their own."""
    text = re.sub(
        r"^import (.+) from '(.+)';$",
        lambda found: f"const {found[1]} = require('{_other(found[2])}');",
        module,
        flags=re.MULTILINE,
    )
    return re.sub(r"^export (\{.+\});$", r"module.exports = \1;", text, flags=re.MULTILINE)


def _other(name: str) -> str:
    return re.sub(r"^(\.{1,2}/.+)\.js$", r"\1.cjs", name)


def single(edge: str, then: str) -> str:
    """The package's core and one edge in one module.

    Args:
        edge: its name in ``clients/js/edges``.
        then: what comes last, as the edge's set-up file has it.
    """
    core, module = source("js/core.js"), source(f"js/edges/{edge}.js")
    # What the edge takes of the core stands above it now; both export at their ends.
    module = re.sub(r"^import .+ from '\.\./core\.js';\n", "", module, flags=re.MULTILINE)
    imports = re.findall(r"^import .+;\n", core + module, flags=re.MULTILINE)
    body = re.sub(r"^import .+;\n", "", core + "\n" + module, flags=re.MULTILINE)
    head = f"// Written by `pg-harness init {edge}`: the npm package pg-harness in one file. It is yours: change what you like.\n"
    return head + "".join(sorted(imports)) + "\n" + _compact(body) + then


def _compact(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


_MODES = "\n// Pristine before each 'test', before each 'file', or back to a 'mark' that is set after the file's beforeAll.\n"


RUNNERS: Mapping[str, Runner] = {
    "vitest": Runner(
        "Vitest",
        {"pg-harness.vitest.mjs": lambda: single("vitest", _MODES + "await setUp('test');\n")},
        "vitest.config, test: {\n"
        "  setupFiles: ['./pg-harness.vitest.mjs'],                    // before your own\n"
        "  maxWorkers: Number(process.env.PGHARNESS_WORKERS ?? 1),\n"
        "}",
        "pg-harness run -n 4 -- npx vitest run",
    ),
    "jest": Runner(
        "Jest",
        {"pg-harness.jest.cjs": lambda: commonjs(single("jest", _MODES + "setUp('test');\n"))},
        "jest.config: {\n"
        "  setupFilesAfterEnv: ['<rootDir>/pg-harness.jest.cjs'],     // before your own\n"
        "  maxWorkers: Number(process.env.PGHARNESS_WORKERS ?? 1),\n"
        "}",
        "pg-harness run -n 4 -- npx jest",
    ),
    "playwright": Runner(
        "Playwright",
        {"pg-harness.playwright.mjs": lambda: single("playwright", "")},
        "playwright.config: {\n"
        "  workers: Number(process.env.PGHARNESS_WORKERS ?? 1),\n"
        "}\n"
        "each test file:\n"
        "  import { test, expect } from '../pg-harness.playwright.mjs';   // instead of '@playwright/test'",
        "pg-harness run -n 4 -- npx playwright test",
    ),
    "node": Runner(
        "node:test",
        {"pg-harness.node.mjs": lambda: single("node", _MODES + "setUp('test');\n")},
        "package.json, scripts: {\n"
        '  "test": "node --import ./pg-harness.node.mjs --test"\n'
        "}",
        "pg-harness run -n 4 -- npm test",
    ),
    "bun": Runner(
        "Bun",
        {"pg-harness.bun.mjs": lambda: single("bun", _MODES + "setUp('test');\n")},
        'bunfig.toml:\n  [test]\n  preload = ["./pg-harness.bun.mjs"]',
        "pg-harness run -- bun test",
    ),
    "go": Runner(
        "Go",
        {"internal/testdb/testdb.go": lambda: source("go/testdb/testdb.go")},
        "once in each package with such tests:\n"
        "  func TestMain(m *testing.M) { testdb.Main(m) }\n"
        "at the top of a test:\n"
        "  testdb.Reset(t)                    // under t.Parallel(): db := testdb.New(t), and open db.URL",
        "pg-harness run -n 4 -- go test ./...",
    ),
    "junit": Runner(
        "JUnit 5",
        {
            "src/test/java/pgharness/PgHarness.java": lambda: source("jvm/PgHarness.java"),
            "src/test/resources/META-INF/services/org.junit.jupiter.api.extension.Extension": lambda: "pgharness.PgHarness\n",
        },
        "src/test/resources/junit-platform.properties:\n"
        "  junit.jupiter.extensions.autodetection.enabled=true\n"
        "tests connect to PgHarness.jdbcUrl(), or to the system property pgharness.jdbc.url",
        "pg-harness run -n 3 -- mvn test",
    ),
    "rust": Runner(
        "Rust",
        {"tests/pg_harness/mod.rs": lambda: source("rust/pg_harness.rs")},
        "each file of tests/:\n"
        "  mod pg_harness;\n"
        "each test:\n"
        "  let db = pg_harness::lease();       // given back when it is dropped; connect to db.url()",
        "pg-harness run -n 4 -- cargo test",
    ),
    "ruby": Runner(
        "Ruby",
        {"spec/support/pg_harness.rb": lambda: source("ruby/pg_harness.rb")},
        "spec_helper.rb, before the application is loaded:\n"
        "  require_relative 'support/pg_harness'; PgHarness.use\n"
        "RSpec.configure (Minitest: def setup = PgHarness.reset):\n"
        "  config.before { PgHarness.reset }",
        "pg-harness run -n 4 -- parallel_rspec -n 4",
    ),
    "php": Runner(
        "PHP",
        {"tests/PgHarness.php": lambda: source("php/PgHarness.php")},
        "the bootstrap file of the tests:\n"
        "  require __DIR__ . '/PgHarness.php'; PgHarness::use();\n"
        "setUp() of the tests' base class:\n"
        "  PgHarness::reset();",
        "pg-harness run -n 4 -- vendor/bin/paratest -p 4",
    ),
    "dotnet": Runner(
        ".NET",
        {"PgHarness.cs": lambda: source("dotnet/PgHarness.cs")},
        "xUnit, each test class:\n"
        "  public class UsersTests : IClassFixture<PgHarness.Database>\n"
        "its constructor, which comes before each test:\n"
        "  public UsersTests(PgHarness.Database db) { db.Reset(); }      // connect to db.ConnectionString\n"
        "NUnit: new PgHarness.Database() in OneTimeSetUp, db.Reset() in SetUp, db.Dispose() in OneTimeTearDown",
        "pg-harness run -n 4 -- dotnet test",
    ),
    "elixir": Runner(
        "Elixir",
        {"test/support/pg_harness.ex": lambda: source("elixir/pg_harness.ex")},
        "the top of test/test_helper.exs:\n"
        '  Code.require_file("support/pg_harness.ex", __DIR__)\n'
        "  PgHarness.use!()\n"
        "a case's setup:\n"
        "  PgHarness.reset!()                  # with async: true: db = PgHarness.lease!(), and use db.url",
        "pg-harness run -n 4 -- mix test",
    ),
}  # fmt: skip
"""Word of ``init`` → what it writes and says."""
