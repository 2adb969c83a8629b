"""Go: packages and parallel tests with a database each, by the real `go test`; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest
from fix_cli import Project
from fix_languages import CLIENTS, EXAMPLES, call, commands, copy_example, living, need, served, write
from fix_snippets import files, runs

CLIENT = CLIENTS / "go" / "testdb" / "testdb.go"

LEASES = """package leases
import (
	"testing"
	"example.com/app/internal/testdb"
)
func TestLease(t *testing.T) {
	db := testdb.New(t)
	t.Log("lease", db.ID, db.URL == db.Env["DATABASE_URL"])
}
"""

MAIN = """package main_test
import (
	"os"
	"syscall"
	"testing"
	"time"
	"example.com/app/internal/testdb"
)
func TestMain(m *testing.M) {
	testdb.Main(m)
}
func TestVariables(t *testing.T) {
	db := testdb.Reset(t)
	for _, name := range []string{"DATABASE_URL", "PGDATABASE", "OWN"} {
		t.Log(name, os.Getenv(name), os.Getenv(name) == db.Env[name])
	}
}
func TestKilled(t *testing.T) {
	if os.Getenv("KILL") != "" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}
func TestAtOnce(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv("AT_ONCE") != "" {
				t.Parallel()
			}
			testdb.Reset(t)
			time.Sleep(200 * time.Millisecond)
		})
	}
}
"""


def results(output: str) -> Counter[str]:
    """pass, fail or skip → how many tests that have no subtests, as `go test -json` tells."""
    found = {}
    for line in output.splitlines():
        if (
            line.startswith("{")
            and (told := json.loads(line)).get("Test")
            and told["Action"] in ("pass", "fail", "skip")
        ):
            found[told["Package"], told["Test"]] = told["Action"]
    inner = [key for key in found if not any(o[0] == key[0] and o[1].startswith(key[1] + "/") for o in found)]
    return Counter(found[key] for key in inner)


@pytest.fixture(scope="module")
def hotel(new_project: Callable[..., Project]) -> Project:
    need("go")
    return copy_example(new_project("go", migrations=False), "go")


@pytest.fixture(scope="module")
def app(new_project: Callable[..., Project]) -> Project:
    """A module without dependencies, in a folder whose name has a space."""
    need("go")
    project = new_project("an app of ours")
    write(project, {
        "go.mod": "module example.com/app\n\ngo 1.22\n", "internal/testdb/testdb.go": CLIENT.read_text(),
        "leases/leases_test.go": LEASES, "main/main_test.go": MAIN,
        "pg-harness.toml": 'migrations = ["sql:db/migrations"]\n\n[env]\nOWN = "{url} own"\n',
    })  # fmt: skip
    return project


def test_the_file_is_as_go_wants_it(app: Project) -> None:
    done = subprocess.run(
        ["gofmt", "-l", str(CLIENT), str(EXAMPLES / "go")], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    done = call(app, "go", "vet", "./...")
    assert done.returncode == 0, done.stdout + done.stderr
    # The standard library only.
    imports = re.search(r"import \((.*?)\)", CLIENT.read_text(), re.DOTALL)
    assert imports is not None
    assert "." not in imports[1]


def test_the_example_fails_on_one_database(hotel: Project) -> None:
    words, variables = commands(hotel)[1]
    done = hotel.run(*words, "-json", **variables)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(done.stdout)
    assert found.total() == 60
    assert found["fail"] >= 10, found
    assert re.search("violates (unique|foreign key) constraint|is number", done.stdout)


def test_the_example_in_parallel_without_clean_up(hotel: Project) -> None:
    words, _ = commands(hotel)[0]
    for path in hotel.root.glob("*/*_test.go"):
        assert not re.search("truncate|delete from|Cleanup", path.read_text(), re.I), path
    done = hotel.run(*words, "-json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(done.stdout) == {"pass": 60}
    assert "not isolated" not in done.stderr


def test_the_page(new_project: Callable[..., Project]) -> None:
    need("go")
    project = new_project("page")
    modules = (EXAMPLES / "go" / "go.mod").read_text().replace("example.com/hotel", "example.com/app")
    write(project, {**files("go.md"), "go.mod": modules, "internal/testdb/testdb.go": CLIENT.read_text()})
    shutil.copy(EXAMPLES / "go" / "go.sum", project.root)
    (words,) = runs("go.md")
    done = project.run(*words, "-json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(done.stdout) == {"pass": 12}


def test_all_variables_are_the_process_s_own(app: Project) -> None:
    done = app.run(
        "run", "-n", "2", "--", "go", "test", "-v", "-run", "Variables", "./main", OWN="developer's"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.findall(r"(DATABASE_URL|PGDATABASE|OWN) (.*) true$", done.stdout, re.MULTILINE)
    assert [name for name, _ in told] == ["DATABASE_URL", "PGDATABASE", "OWN"]
    values = dict(told)
    assert values["OWN"] == f"{values['DATABASE_URL']} own"
    assert values["DATABASE_URL"].split("?")[0].endswith("/" + values["PGDATABASE"])


@pytest.mark.parametrize("package", ["leases", "main"])
def test_outside_of_a_run_nothing_is_tested(app: Project, package: str) -> None:
    done = call(app, "go", "test", f"./{package}", DATABASE_URL="postgresql://developer@localhost/precious")
    assert done.returncode == 1
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- go test ./...`" in done.stdout


def test_what_is_refused_and_who_is_gone(app: Project) -> None:
    with living(app) as run:
        test = ("go", "test", "-count=1", "-v", "./leases")
        done = call(app, *test, **run.environ)
        assert done.returncode == 0, done.stdout
        assert "lease 1 true" in done.stdout
        assert run.leased() == 0

        done = call(app, *test, **{**run.environ, "PGHARNESS_CONTROL_TOKEN": "wrong"})
        assert done.returncode == 1
        assert "this token is not of the run" in done.stdout

        # A process that is killed gives its database back: the only one, and others can have it.
        done = call(app, "go", "test", "-run", "Killed", "./main", KILL="1", **run.environ)
        assert "signal: killed" in done.stdout, done.stdout
        done = call(app, "go", "test", "-count=1", "-run", "Killed", "./main", **run.environ)
        assert done.returncode == 0, done.stdout

        run.ask("POST", "/v1/lease", worker="the greedy one")
        for wait, said in (("1", "1: the greedy one, for"), ("long", 'seconds up to 3600, not "long"')):
            done = call(app, *test, PGHARNESS_LEASE_WAIT=wait, **run.environ)
            assert done.returncode == 1
            assert said in done.stdout

        run.kill()
        done = call(app, *test, **run.environ)
        assert done.returncode == 1
        assert f"nobody answers at {run.environ['PGHARNESS_CONTROL_URL']}" in done.stdout
        assert "no others are taken in their stead" in done.stdout


def test_over_a_unix_socket(app: Project) -> None:
    with served(app) as environ:
        done = call(app, "go", "test", "-count=1", "-v", "./leases", **environ)
        assert done.returncode == 0, done.stdout
        assert "lease 1 true" in done.stdout


def test_two_tests_at_once_on_one_database(app: Project) -> None:
    words = ("run", "--", "go", "test", "-count=1", "-run", "AtOnce", "./main")
    app.ok(*words)
    done = app.run(*words, AT_ONCE="1")
    assert done.returncode == 1
    assert re.search(
        r"is in use by TestAtOnce/(one|two), which runs at the same time: .* by testdb.New\(t\)", done.stdout
    )


def test_copies_are_refused(app: Project) -> None:
    done = app.run("run", "--copies", "2", "--", "go", "test", "-count=1", "./main")
    assert done.returncode == 1
    assert "the processes of `go test` would share it" in done.stdout + done.stderr
