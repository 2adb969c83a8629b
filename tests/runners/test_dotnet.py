"""The file for .NET by Mono: compiled, run against living runs, and under NUnit's own runner; and what is refused."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable

import pytest
from fix_cli import Project
from fix_languages import CLIENTS, call, living, need, served, write
from fix_snippets import DOCS

# It takes a database, says its variables, writes rows by psql (no driver is to be had) around a reset, a mark, a reset to the mark and one to the
# template, says how many there are after each, and what an unknown mark is answered with.
PROGRAM = """
using System;
using System.Collections.Generic;
using PgHarness;

static class Program
{
    static int Main()
    {
        try
        {
            using (var db = new Database())
            {
                foreach (var name in new[] { "DATABASE_URL", "PGDATABASE", "OWN" }) Console.WriteLine("is " + name + " " + db.Variables[name]);
                Console.WriteLine("for Npgsql " + db.ConnectionString);
                if (Environment.GetEnvironmentVariable("KILL") != null) System.Diagnostics.Process.GetCurrentProcess().Kill();
                const string add = "insert into users (name) values ('ada')";
                Func<string, string> rows = sql => Psql.Run(db, sql + "; select count(*) from users");
                var told = new List<string> { rows(add) };
                db.Reset();
                told.Add(rows("select"));
                told.Add(rows(add));
                string mark = db.Mark();
                told.Add(rows(add));
                db.Reset();
                told.Add(rows("select"));
                db.Reset("template");
                told.Add(rows("select"));
                Console.WriteLine("rows " + string.Join(" ", told));
                try { db.Unmark("a b" + mark); } catch (PgHarnessException e) { Console.WriteLine("missing: " + e.Message); }
                if (Environment.GetEnvironmentVariable("TWO") != null)
                    using (var other = new Database()) Console.WriteLine("other " + other.Id + " " + Psql.Run(other, "select count(*) from users"));
            }
            return 0;
        }
        catch (PgHarnessException e)
        {
            Console.WriteLine("refused: " + e.Message);
            return 1;
        }
    }
}
"""

PSQL = """
using System.Diagnostics;

static class Psql
{
    public static string Run(PgHarness.Database db, string sql)
    {
        var start = new ProcessStartInfo("psql", "-XAtqc \\"" + sql + "\\"") { UseShellExecute = false, RedirectStandardOutput = true };
        foreach (var pair in db.Variables) start.EnvironmentVariables[pair.Key] = pair.Value;
        using (var process = Process.Start(start))
        {
            string said = process.StandardOutput.ReadToEnd().Trim();
            process.WaitForExit();
            return said;
        }
    }
}
"""

SETTINGS = 'migrations = ["sql:db/migrations"]\n\n[env]\nOWN = "{url} \\\\ \\"ö\\" own"\n'
LIBRARIES = (
    "-langversion:7",
    "-warnaserror",
    "-nowarn:649",
    "-r:System.Data",
    "-r:System.Runtime.Serialization",
)


def compiled(project: Project, *words: str) -> None:
    done = call(project, "mcs", *LIBRARIES, *words)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def program(new_project: Callable[..., Project]) -> Project:
    need("mcs")
    need("mono")
    need("psql")
    project = new_project("a project of ours")
    client = (CLIENTS / "dotnet" / "PgHarness.cs").read_text()
    write(
        project, {"PgHarness.cs": client, "Program.cs": PROGRAM, "Psql.cs": PSQL, "pg-harness.toml": SETTINGS}
    )
    compiled(project, "-out:program.exe", "PgHarness.cs", "Program.cs", "Psql.cs")
    project.environ["LC_ALL"] = "C.UTF-8"
    return project


def says(project: Project, **environ: str) -> tuple[int, str]:
    done = call(project, "mono", "program.exe", **environ)
    return done.returncode, done.stdout


def test_outside_of_a_run(program: Project) -> None:
    code, said = says(program, DATABASE_URL="postgresql://developer@localhost/precious")
    assert code == 1, said
    assert (
        "refused: these tests have no database: they were started outside of pg-harness. Run `pg-harness run -n 4 -- dotnet test`"
        in said
    )
    assert "is DATABASE_URL" not in said


def test_everything_it_does_and_what_is_refused(program: Project) -> None:
    with living(program, 2) as run:
        code, said = says(program, TWO="1", **run.environ)
        assert code == 0, said
        assert "rows 1 0 1 2 1 0\n" in said, said
        assert re.search(r"missing: pg-harness: .*no mark 'a b\d+'.* 404\)", said, re.DOTALL), said
        told = dict(re.findall(r"^is (\w+) (.+)$", said, re.MULTILINE))
        (number,) = (n for n in "12" if run.environ[f"DATABASE_URL_{n}"] == told["DATABASE_URL"])
        assert told["OWN"] == told["DATABASE_URL"] + ' \\ "ö" own'
        assert f"Database={told['PGDATABASE']}" in said
        # Two at once are two, and are given back.
        assert f"other {3 - int(number)} 0" in said
        assert run.leased() == 0
        for given, expected in (
            ({"PGHARNESS_CONTROL_TOKEN": "wrong"}, "refused: pg-harness: this token is not of the run"),
            ({"PGHARNESS_LEASE_WAIT": "-1"}, "PGHARNESS_LEASE_WAIT is a number of seconds up to 3600"),
            ({"PGHARNESS_CONTROL_URL": "nothing at all"}, "refused: nobody answers at nothing at all"),
        ):
            code, said = says(program, **{**run.environ, **given})
            assert (code, expected in said) == (1, True), (given, said)

    with living(program) as run:
        code, said = says(program, KILL="1", **run.environ)
        assert code != 0
        assert "rows" not in said
        code, said = says(program, **run.environ)
        assert code == 0, said
        run.ask("POST", "/v1/lease", worker='the "greedy" 🦀 \\ one')
        code, said = says(program, PGHARNESS_LEASE_WAIT="1", **run.environ)
        assert code == 1
        assert '1: the "greedy" 🦀 \\ one, for' in said
        run.kill()
        code, said = says(program, **run.environ)
        assert code == 1
        assert f"refused: nobody answers at {run.environ['PGHARNESS_CONTROL_URL']}" in said
        assert "no others are taken in their stead" in said


def test_a_copy_has_its_own_and_no_second(program: Project) -> None:
    done = program.run("run", "--copies", "2", "--", "mono", "program.exe")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("rows 1 0 1 2 1 0") == 2
    assert len(set(re.findall(r"is PGDATABASE (\S+)", said))) == 2
    done = program.run("run", "--copies", "1", "--", "env", "TWO=1", "mono", "program.exe")
    assert (
        "a copy of `pg-harness run --copies` has one database, which another object has"
        in done.stdout + done.stderr
    )


def test_over_a_unix_socket(program: Project) -> None:
    with served(program) as environ:
        code, said = says(program, **environ)
        assert code == 0, said
        assert "rows 1 0 1 2 1 0" in said
    code, said = says(program, **environ)
    assert code == 1
    assert f"nobody answers at {environ['PGHARNESS_CONTROL_URL']}" in said


def test_the_page_under_nunit(new_project: Callable[..., Project]) -> None:
    need("mcs")
    need("nunit-console")
    framework = glob.glob("/usr/lib/cli/nunit.framework-*/nunit.framework.dll")
    if not framework:
        pytest.skip("NUnit's library is not where Debian has it")
    need("psql")
    project = new_project("nunit")
    (fixture,) = re.findall(
        r"^```csharp\n(// OrdersTests\.cs\n.*?)^```$",
        (DOCS / "dotnet.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    # What Debian has is older, and calls these two otherwise.
    fixture = fixture.replace("OneTimeSetUp", "TestFixtureSetUp").replace(
        "OneTimeTearDown", "TestFixtureTearDown"
    )
    further = '[Test] public void And{n}() => Assert.AreEqual("1", Psql.Run(_db, "insert into users (name) values (\'ada\') returning id"));\n'
    fixture = (
        fixture.rstrip().removesuffix("}") + "".join(further.replace("{n}", str(n)) for n in range(3)) + "}\n"
    )
    client = (CLIENTS / "dotnet" / "PgHarness.cs").read_text()
    write(project, {"PgHarness.cs": client, "OrdersTests.cs": fixture, "Psql.cs": PSQL})
    compiled(
        project,
        "-target:library",
        "-out:tests.dll",
        f"-r:{framework[0]}",
        "PgHarness.cs",
        "OrdersTests.cs",
        "Psql.cs",
    )
    done = project.run("run", "-n", "2", "--", "nunit-console", "-nologo", "tests.dll")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tests run: 4, Errors: 0, Failures: 0" in done.stdout
    done = call(project, "nunit-console", "-nologo", "tests.dll")
    assert done.returncode != 0
    assert "were started outside of pg-harness" in done.stdout
