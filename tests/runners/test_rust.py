"""Rust by the real cargo: a database for each test, given back on drop; and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_cli import Project
from fix_languages import CLIENTS, EXAMPLES, call, commands, copy_example, living, need, served, write
from fix_snippets import files, runs

# It compiles for a minute of both processors: with the long ones.
pytestmark = pytest.mark.slow

CLIENT = CLIENTS / "rust" / "pg_harness.rs"

SMALL = """
#[path = "pg harness.rs"] mod pg_harness;
#[test]
fn small() {
    let first = pg_harness::lease();
    for name in ["DATABASE_URL", "PGDATABASE", "OWN"] {
        println!("is {name} {}", first.variable(name).unwrap());
    }
    println!("has {} {:?}", first.id(), first.url() == first.variable("DATABASE_URL").unwrap());
    if std::env::var("KILL").is_ok() { std::process::abort(); }
}
#[test]
#[ignore]
fn many() {
    let all: Vec<_> = (0..8).map(|_| std::thread::spawn(|| {
        let lease = pg_harness::lease();
        let mark = lease.mark().unwrap();
        lease.reset().unwrap();
        lease.unmark(&mark).unwrap();
        println!("missing: {:?}", lease.unmark("none").unwrap_err());
        lease.id()
    })).collect();
    for thread in all { println!("had {}", thread.join().unwrap()); }
}
"""


def results(output: str) -> Counter[str]:
    """passed or failed → how many tests."""
    found: Counter[str] = Counter()
    for passed, failed in re.findall(
        r"^test result: \w+\. (\d+) passed; (\d+) failed;", output, re.MULTILINE
    ):
        found.update({"passed": int(passed), "failed": int(failed)})
    return +found


def cached(project: Project) -> Project:
    """What is compiled of others is kept between the runs of this suite, in a folder that they share."""
    base = Path(os.environ.get("PGHARNESS_TEST_CACHE") or Path.home() / ".cache" / "pg-harness-tests")
    project.environ.update(
        {"CARGO_TARGET_DIR": str(base / "cargo-target"), "CARGO_TERM_COLOR": "never", "RUST_BACKTRACE": "0"}
    )
    # Cold, that is half a minute of two processors.
    project.patience = 170.0
    return project


@pytest.fixture(scope="module")
def hotel(new_project: Callable[..., Project]) -> Iterator[Project]:
    need("cargo")
    project = cached(copy_example(new_project("rust", migrations=False), "rust"))
    yield project
    call(project, "cargo", "clean", "-p", "hotel")


@pytest.fixture(scope="module")
def page(new_project: Callable[..., Project]) -> Iterator[Project]:
    need("cargo")
    project = cached(new_project("page"))
    manifest = (EXAMPLES / "rust" / "Cargo.toml").read_text().replace('"hotel"', '"page"')
    write(project, {
        **files("rust.md"), "Cargo.toml": manifest, "src/lib.rs": "", "tests/pg_harness/mod.rs": CLIENT.read_text(),
    })  # fmt: skip
    yield project
    call(project, "cargo", "clean", "-p", "page")


@pytest.fixture(scope="module")
def small(new_project: Callable[..., Project]) -> Project:
    """One test without dependencies, compiled; in a folder whose name has a space."""
    need("rustc")
    project = new_project("a small one")
    write(project, {
        "pg harness.rs": CLIENT.read_text(), "small.rs": SMALL,
        "pg-harness.toml": 'migrations = ["sql:db/migrations"]\n\n[env]\nOWN = "{url} own"\n',
    })  # fmt: skip
    done = call(project, "rustc", "--edition", "2021", "--test", "small.rs", "-o", "small")
    assert done.returncode == 0, done.stdout
    project.environ["RUST_BACKTRACE"] = "0"
    return project


def test_its_own_tests_and_its_form(tmp_path: Path) -> None:
    need("rustc")
    whole = tmp_path / "whole.rs"
    whole.write_text(CLIENT.read_text() + (CLIENT.parent / "unit_tests.rs").read_text())
    for words in (
        ["rustc", "--edition", "2021", "-D", "warnings", "--test", str(whole), "-o", str(tmp_path / "unit")],
        [str(tmp_path / "unit")],
        # The newest edition as well.
        ["rustc", "--edition", "2024", "-D", "warnings", "--crate-type", "lib", "--emit", "metadata", str(CLIENT), "-o", str(tmp_path / "lib")],
        ["rustfmt", "--edition", "2021", "--check", str(CLIENT)],
    ):  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert re.findall(r"^use (\w+)", CLIENT.read_text(), re.MULTILINE) == ["std"] * 6


def test_the_example_fails_on_one_database(hotel: Project) -> None:
    words, variables = commands(hotel)[1]
    done = hotel.run(*words, **variables)
    assert done.returncode == 101, done.stdout + done.stderr
    found = results(done.stdout)
    assert found.total() == 42
    assert found["failed"] >= 10, found
    assert re.search("violates (unique|foreign key) constraint|left: [02-9]", done.stdout)


def test_the_example_in_parallel_without_clean_up(hotel: Project) -> None:
    words, _ = commands(hotel)[0]
    for path in hotel.root.glob("tests/*.rs"):
        assert not re.search("truncate|delete from", path.read_text(), re.I), path
    done = hotel.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(done.stdout) == {"passed": 42}


def test_the_page(page: Project) -> None:
    (words,) = runs("rust.md")
    done = page.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(done.stdout) == {"passed": 4}


def test_outside_of_a_run_nothing_is_tested(small: Project) -> None:
    done = call(small, "./small", DATABASE_URL="postgresql://developer@localhost/precious")
    assert done.returncode == 101
    assert "outside of pg-harness. Run `pg-harness run -n 4 -- cargo test`" in done.stdout


def test_variables_and_what_is_refused(small: Project) -> None:
    with living(small) as run:
        test = ("./small", "--nocapture")
        done = call(small, *test, **run.environ)
        assert done.returncode == 0, done.stdout
        told = dict(re.findall(r"^is (\w+) (.+)$", done.stdout, re.MULTILINE))
        assert told["PGDATABASE"] == run.environ["PGDATABASE"]
        assert told["OWN"] == f"{told['DATABASE_URL']} own"
        assert "has 1 true" in done.stdout
        assert run.leased() == 0

        done = call(small, *test, KILL="1", **run.environ)
        assert done.returncode < 0
        done = call(small, *test, **run.environ)
        assert done.returncode == 0, done.stdout

        # Eight threads wait for the one, one after the other.
        done = call(small, *test, "--ignored", **run.environ)
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("had 1") == 8
        assert done.stdout.count("missing: pg-harness: lease 1 has no mark 'none'") == 8

        run.ask("POST", "/v1/lease", worker='the "greedy" 🦀')
        for environ, said in (
            ({"PGHARNESS_LEASE_WAIT": "1"}, '1: the "greedy" 🦀, for'),
            ({"PGHARNESS_LEASE_WAIT": "long"}, 'seconds up to 3600, not "long"'),
            ({"PGHARNESS_CONTROL_TOKEN": "wrong"}, "this token is not of the run"),
            ({"PGHARNESS_CONTROL_URL": "here"}, "this is no address such as"),
            ({"PGHARNESS_COPIES": "2"}, "its tests would share it"),
        ):
            done = call(small, *test, **{**run.environ, **environ})
            assert done.returncode == 101, (environ, done.stdout)
            assert said in done.stdout, (environ, done.stdout)

        run.kill()
        done = call(small, *test, **run.environ)
        assert done.returncode == 101
        assert f"nobody answers at {run.environ['PGHARNESS_CONTROL_URL']}" in done.stdout
        assert "no others are taken in their stead" in done.stdout


def test_over_a_unix_socket(small: Project) -> None:
    with served(small) as environ:
        done = call(small, "./small", "--nocapture", **environ)
        assert done.returncode == 0, done.stdout
        assert "has 1 true" in done.stdout
