"""Ruby, PHP and Elixir: the single files by the real programs, the pages by their real runners; and what is refused."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fix_cli import Project
from fix_languages import CLIENTS, call, living, need, served, write
from fix_snippets import DOCS

# What each of the scripts does: it takes a database, says its variables, writes three rows (by psql, so that no driver is needed) around a
# reset, a mark, a reset to the mark, and one to the template, says how many there are after each, and what an unknown mark is answered with.
RUBY = """
require_relative 'client'
begin
  PgHarness.use
  %w[DATABASE_URL PGDATABASE OWN].each { |name| puts "is #{name} #{ENV[name]}" }
  Process.kill('KILL', Process.pid) if ENV['KILL']
  rows = ->(sql) { IO.popen(['psql', '-XAtqc', sql + '; select count(*) from users'], &:read).strip }
  add = "insert into users (name) values ('ada')"
  told = [rows.(add)]
  PgHarness.reset
  told << rows.('select') << rows.(add)
  mark = PgHarness.mark
  told << rows.(add)
  PgHarness.reset
  told << rows.('select')
  PgHarness.reset(to: 'template')
  puts "rows #{(told << rows.('select')).join(' ').gsub(/\\s+/, ' ')}"
  begin
    PgHarness.unmark("a b#{mark}")
  rescue PgHarness::Error => e
    puts "missing: #{e.message}"
  end
rescue PgHarness::Error => e
  puts "refused: #{e.message}"
  exit 1
end
"""

PHP = """<?php
require __DIR__ . '/client.php';
try {
    PgHarness::use();
    foreach (['DATABASE_URL', 'PGDATABASE', 'OWN'] as $name) {
        if ($_ENV[$name] !== getenv($name)) throw new Exception("$name twice");
        echo "is $name ", getenv($name), "\\n";
    }
    if (getenv('KILL')) exec('kill -9 ' . getmypid());
    $rows = fn ($sql) => implode(' ', array_filter(explode("\\n", shell_exec("psql -XAtqc \\"$sql; select count(*) from users\\"")), 'strlen'));
    $add = "insert into users (name) values ('ada')";
    $told = [$rows($add)];
    PgHarness::reset();
    array_push($told, $rows('select'), $rows($add));
    $mark = PgHarness::mark();
    $told[] = $rows($add);
    PgHarness::reset();
    $told[] = $rows('select');
    PgHarness::reset('template');
    $told[] = $rows('select');
    echo 'rows ', implode(' ', $told), "\\n";
    try {
        PgHarness::unmark("a b$mark");
    } catch (RuntimeException $e) {
        echo 'missing: ', $e->getMessage(), "\\n";
    }
} catch (RuntimeException $e) {
    echo 'refused: ', $e->getMessage(), "\\n";
    exit(1);
}
"""

ELIXIR = """
Code.require_file("client.ex", __DIR__)
try do
  PgHarness.use!()
  for name <- ["DATABASE_URL", "PGDATABASE", "OWN"], do: IO.puts("is #{name} #{System.get_env(name)}")
  if System.get_env("KILL"), do: System.cmd("kill", ["-9", System.pid()])
  rows = fn sql ->
    {told, 0} = System.cmd("psql", ["-XAtqc", sql <> "; select count(*) from users"])
    String.trim(told)
  end
  add = "insert into users (name) values ('ada')"
  one = rows.(add)
  PgHarness.reset!()
  two = rows.("select")
  three = rows.(add)
  mark = PgHarness.mark!()
  four = rows.(add)
  PgHarness.reset!()
  five = rows.("select")
  PgHarness.reset!(%{id: String.to_integer(System.get_env("PGHARNESS_LEASE"))}, "template")
  IO.puts("rows " <> Enum.join([one, two, three, four, five, rows.("select")], " "))
  try do
    PgHarness.unmark!("a b#{mark}")
  rescue
    e in PgHarness.Error -> IO.puts("missing: #{e.message}")
  end
rescue
  e in PgHarness.Error ->
    IO.puts("refused: #{e.message}")
    System.halt(1)
end
"""


@dataclass(frozen=True)
class Language:
    """One of them: its client, our script, the program, the variable with a worker's number, the command that its errors name."""

    client: str
    copy: str
    script: str
    program: tuple[str, ...]
    number: str
    command: str


LANGUAGES = {
    "ruby": Language("ruby/pg_harness.rb", "client.rb", RUBY, ("ruby", "-w"), "TEST_ENV_NUMBER", "bundle exec parallel_rspec -n 4"),
    "php": Language("php/PgHarness.php", "client.php", PHP, ("php", "-d", "error_reporting=-1", "-d", "display_errors=1"), "TEST_TOKEN", "vendor/bin/paratest -p 4"),
    "elixir": Language("elixir/pg_harness.ex", "client.ex", ELIXIR, ("elixir",), "MIX_TEST_PARTITION", "mix test"),
}  # fmt: skip

SETTINGS = 'migrations = ["sql:db/migrations"]\n\n[env]\nOWN = "{url} \\\\ \\"ö\\" own"\n'


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    found = LANGUAGES[request.param]
    need(found.program[0])
    need("psql")
    return found


@pytest.fixture(scope="module")
def scripts(language: Language, new_project: Callable[..., Project]) -> Project:
    """The client and the script, in a folder whose name has a space."""
    project = new_project("a project of ours")
    client = (CLIENTS / language.client).read_text()
    write(project, {language.copy: client, "script": language.script, "pg-harness.toml": SETTINGS})
    project.environ["LC_ALL"] = "C.UTF-8"
    return project


def _says(project: Project, language: Language, **environ: str) -> tuple[int, str]:
    done = call(project, *language.program, "script", **environ)
    return done.returncode, done.stdout


def test_outside_of_a_run(scripts: Project, language: Language) -> None:
    code, said = _says(scripts, language, DATABASE_URL="postgresql://developer@localhost/precious")
    assert code == 1, said
    assert (
        f"refused: these tests have no database: they were started outside of pg-harness. Run `pg-harness run -n 4 -- {language.command}`"
        in said
    )
    assert "is DATABASE_URL" not in said


def test_everything_it_does_and_what_is_refused(scripts: Project, language: Language) -> None:
    with living(scripts, 2) as run:
        for given, number in (({}, 1), ({language.number: "2"}, 2)):
            code, said = _says(scripts, language, **{**run.environ, **given})
            assert code == 0, said
            assert "rows 1 0 1 2 1 0\n" in said, said
            assert re.search(r"missing: pg-harness: .*no mark 'a b\d+'.* 404\)", said, re.DOTALL), said
            told = dict(re.findall(r"^is (\w+) (.+)$", said, re.MULTILINE))
            assert told == {
                "DATABASE_URL": run.environ[f"DATABASE_URL_{number}"], "PGDATABASE": run.environ[f"PGDATABASE_{number}"],
                "OWN": run.environ[f"DATABASE_URL_{number}"] + ' \\ "ö" own',
            }  # fmt: skip
            assert "warning" not in said.lower()
            # No number, or none that was used: what was leased is given back by being gone.
            assert run.leased() == 0

        for given, expected in (
            ({language.number: "3"}, "has no database: this run has 2, numbered from 1"),
            ({language.number: "0"}, "has no database"),
            ({language.number: "many"}, "has no database"),
            ({"PGHARNESS_CONTROL_TOKEN": "wrong"}, "refused: pg-harness: this token is not of the run"),
            ({"PGHARNESS_LEASE_WAIT": "-1"}, "PGHARNESS_LEASE_WAIT is a number of seconds up to 3600"),
            ({"PGHARNESS_CONTROL_URL": "nothing at all"}, "refused: nobody answers at nothing at all"),
        ):
            code, said = _says(scripts, language, **{**run.environ, **given})
            assert (code, expected in said) == (1, True), (given, said)

    with living(scripts) as run:
        code, said = _says(scripts, language, KILL="1", **run.environ)
        assert code != 0
        assert "rows" not in said
        code, said = _says(scripts, language, **run.environ)
        assert code == 0, said

        run.ask("POST", "/v1/lease", worker='the "greedy" 🦀 \\ one')
        code, said = _says(scripts, language, PGHARNESS_LEASE_WAIT="1", **run.environ)
        assert code == 1
        assert '1: the "greedy" 🦀 \\ one, for' in said

        run.kill()
        code, said = _says(scripts, language, **run.environ)
        assert code == 1
        assert f"refused: nobody answers at {run.environ['PGHARNESS_CONTROL_URL']}" in said
        assert "no others are taken in their stead" in said


def test_a_copy_has_its_own(scripts: Project, language: Language) -> None:
    numbered = (
        f"{language.number}=1"
        if language.number != "MIX_TEST_PARTITION"
        else f"{language.number}=$PGHARNESS_COPY"
    )
    script = f"{numbered} {shlex.join(language.program)} script"
    done = scripts.run("run", "--copies", "2", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count("rows 1 0 1 2 1 0") == 2
    assert len(set(re.findall(r"is PGDATABASE (\S+)", said))) == 2


def test_over_a_unix_socket(scripts: Project, language: Language) -> None:
    with served(scripts) as environ:
        code, said = _says(scripts, language, **environ)
        assert code == 0, said
        assert "rows 1 0 1 2 1 0" in said
        code, said = _says(scripts, language, **{**environ, "PGHARNESS_CONTROL_TOKEN": "wrong"})
        assert "this token is not of the run" in said
    code, said = _says(scripts, language, **environ)
    assert code == 1
    assert f"nobody answers at {environ['PGHARNESS_CONTROL_URL']}" in said


def page(name: str) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """The files of a page, whose first comment is their path, and its commands."""
    text = (DOCS / name).read_text()
    found = re.findall(
        r"^```(?:ruby|php|elixir)\n((?:<\?php\n)?(?:#|//) (\S+\.\w+)\n.*?)^```$",
        text,
        re.MULTILINE | re.DOTALL,
    )
    lines = re.findall(r"^\$ pg-harness (run .+)$", text, re.MULTILINE)
    return {path: content for content, path in found}, [tuple(shlex.split(line)) for line in lines]


def _ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_of_ruby(new_project: Callable[..., Project]) -> None:
    need("ruby", "-e 'require %(pg); require %(minitest)'")
    need("parallel_rspec")
    project = new_project("page")
    files, (words,) = page("ruby.md")
    write(project, {**files, "spec/support/pg_harness.rb": (CLIENTS / "ruby" / "pg_harness.rb").read_text()})
    said = _ok(project.run(*words))
    assert "5 examples, 0 failures" in said
    assert "2 processes" in said
    said = _ok(project.run("run", "--", "ruby", "test/users_test.rb"))
    assert "2 runs, 2 assertions, 0 failures, 0 errors" in said


# ParaTest cannot be had from Debian: what it does for us is to start PHPUnit with a TEST_TOKEN for each process.
PARATEST = """#!/bin/sh
[ "$1 $2 $3 $5" = "-p 4 --bootstrap tests" ] || exit 64
TEST_TOKEN=1 phpunit --bootstrap "$4" tests/UsersTest.php & one=$!
TEST_TOKEN=4 phpunit --bootstrap "$4" tests/MarksTest.php && wait $one
"""


def test_the_page_of_php(new_project: Callable[..., Project]) -> None:
    need("php", "-r 'exit(extension_loaded(\"pdo_pgsql\") ? 0 : 1);'")
    need("phpunit")
    project = new_project("page")
    files, (words,) = page("php.md")
    client = (CLIENTS / "php" / "PgHarness.php").read_text()
    write(project, {**files, "tests/PgHarness.php": client, "vendor/bin/paratest": PARATEST})
    (project.root / "vendor/bin/paratest").chmod(0o755)
    said = _ok(project.run(*words))
    assert "OK (3 tests, 3 assertions)" in said
    assert "OK (2 tests, 2 assertions)" in said


MIX = """defmodule Page.MixProject do
  use Mix.Project
  def project, do: [app: :page, version: "0.1.0"]
  def application, do: []
end
"""


def test_the_page_of_elixir(new_project: Callable[..., Project]) -> None:
    need("mix")
    need("psql")
    project = new_project("page")
    files, (words, partitions) = page("elixir.md")
    write(
        project,
        {
            **files,
            "mix.exs": MIX,
            "test/support/pg_harness.ex": (CLIENTS / "elixir" / "pg_harness.ex").read_text(),
        },
    )
    project.environ["LC_ALL"] = "C.UTF-8"
    said = _ok(project.run(*words))
    assert "9 tests, 0 failures" in said
    said = _ok(project.run(*partitions))
    assert sorted(re.findall(r"(\d) tests, 0 failures", said)) == ["2", "3"]
