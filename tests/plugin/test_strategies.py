"""A freshness strategy that a package adds from one file: the example of the docs, installed and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
from fix_backends import ROOT
from fix_packages import install
from fix_plugin import Folder

from harness.databases import freshness

[CODE] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "freshness.md").read_text(), re.DOTALL)

ROWS = """
    import os, psycopg, pytest
    SEEN = []

    def look():
        with psycopg.connect(os.environ["DATABASE_URL"]) as c:
            kinds, users = c.execute("select (select count(*) from kinds), (select count(*) from users)").fetchone()
            (id,) = c.execute("insert into users (name) values ('dirt') returning id").fetchone()
        return kinds, users, id

    @pytest.mark.parametrize("number", range(6))
    def test_rows(number):
        SEEN.append(number)
        # The first test of a process starts from the template, with its rows; a truncate keeps none of them.
        assert look() == (2 if len(SEEN) == 1 else 0, 0, len(SEEN))
"""


def added(
    folder: Folder, code: str = CODE, word: str = "truncate", attribute: str = "STRATEGY"
) -> dict[str, str]:
    """The environment in which a package adds that word."""
    site = folder.path / "site"
    install(
        site, code, name="pg_harness_truncate", group="pg_harness.freshness", word=word, attribute=attribute
    )
    return {"PYTHONPATH": os.pathsep.join([folder.place.environ["PYTHONPATH"], str(site)])}


def call(folder: Folder, env: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder.path, env=folder.env(env), text=True, timeout=90,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", ["0", "2"])
def test_tests_start_from_what_it_makes(workers: str, folder: Folder) -> None:
    folder.write(test_a=ROWS)
    env = added(folder)
    result = folder.pytest("-n", workers, "--pg-harness-fresh", "truncate", env=env).ok(6)
    assert "; each test starts from empty tables; sequences go on" in result.text
    resets = 6 - max(1, int(workers))
    assert re.search(rf"{resets} resets, .*\({resets} put back\)", result.text), result.text


def test_a_marker_may_name_it_and_ours_beside_it(folder: Folder) -> None:
    folder.write(
        test_a=ROWS.partition("    @pytest.mark")[0]
        + """
    def test_1(): assert look() == (2, 0, 1)
    @pytest.mark.pg(fresh="truncate")
    def test_2(): assert look() == (0, 0, 2)
    def test_3(): assert look() == (2, 0, 1)
    @pytest.mark.pg(fresh="none")
    def test_4(): assert look() == (2, 1, 2)
    @pytest.mark.pg(fresh="clone")
    def test_5(): assert look() == (2, 0, 1)
    @pytest.mark.pg(fresh="often")
    def test_6(): assert look() == (2, 0, 1)
"""
    )
    result = folder.pytest(env=added(folder)).ok(6)
    assert "each test starts from a reset database" in result.text
    words = freshness.in_words([*freshness.STRATEGIES, "truncate"])
    assert f"pytest.mark.pg knows fresh={words}, and not fresh='often'" in result.text


@pytest.mark.parametrize("watches", [False, True])
def test_leases_are_watched_as_it_says(watches: bool, folder: Folder) -> None:
    env = added(folder, CODE.replace("watches = False", f"watches = {watches}"))
    script = f"""
from harness import Harness
from harness.databases import freshness
from harness.errors import LeaseError

with Harness.open(fresh="truncate") as harness, harness.lease() as db:
    assert db.untouched is {watches}
    with db.connect() as connection:
        connection.execute("insert into users (name) values ('dirt')")
    try:
        print(str(db.changes()).splitlines())
    except LeaseError as error:
        print(error)
    report = freshness.of(harness.settings).refresh(db)
    print(report.tables)
    with db.connect() as connection:
        print(connection.execute("select count(*) from users").fetchone())
"""
    done = call(folder, env, "-c", script)
    assert done.returncode == 0, done.stderr
    changes, tables, count = done.stdout.splitlines()
    assert ("users: 1 inserted" in changes) is watches, changes
    assert (f"set {freshness.watching()}, or call lease.watch()" in changes) is not watches
    assert (tables, count) == ("('public.kinds', 'public.users')", "(0,)")


def test_spares_are_kept_ready_as_it_says(folder: Folder) -> None:
    folder.write(
        conftest="""
            import threading
            def pytest_sessionfinish():
                print("THREADS", sorted(t.name for t in threading.enumerate()))
        """,
        test_a=ROWS,
    )
    env = added(folder, CODE.replace("spares = 0", "spares = 1"))
    result = folder.pytest("-s", "--pg-harness-fresh", "truncate", env=env).ok(6)
    assert "pg-harness filler" in result.text


def test_what_it_raises_fails_the_next_test(folder: Folder) -> None:
    folder.write(test_a=ROWS)
    env = added(folder, CODE.replace("found = []", "raise RuntimeError('planted')"))
    result = folder.pytest("--pg-harness-fresh", "truncate", env=env)
    assert (result["passed"], result["error"]) == (1, 5), result.text
    assert "could not be brought back after test_a.py::test_rows[0]: Traceback" in result.text
    assert "RuntimeError: planted" in result.text


def test_an_unknown_word_is_told_with_all_that_there_are(folder: Folder) -> None:
    folder.write(test_a="def test_it(): pass\n")
    env = added(folder)
    words = ", ".join(map(repr, [*freshness.STRATEGIES, "truncate"]))
    told = f"fresh must be one of {words} (it is 'truncat')"
    result = folder.pytest("--pg-harness-fresh", "truncat", env=env)
    assert result.code == 4
    assert f"pg-harness: a pytest option (fresh): {told}" in result.text
    doctor = call(folder, {**env, "PGHARNESS_FRESH": "truncat"}, "-m", "harness", "doctor")
    assert doctor.returncode == 120
    assert f"the variable PGHARNESS_FRESH: {told}" in doctor.stdout
    up = call(folder, {**env, "PGHARNESS_FRESH": "truncat"}, "-m", "harness", "up")
    assert up.returncode == 120
    assert told in " ".join(up.stderr.split())


def test_doctor_names_its_package(folder: Folder) -> None:
    doctor = call(folder, {**added(folder), "PGHARNESS_FRESH": "truncate"}, "-m", "harness", "doctor")
    assert "fresh = truncate is a strategy of pg-harness-truncate 1.2" in doctor.stdout


@pytest.mark.parametrize(
    ("code", "word", "told"),
    [
        ("import nothing_of_that_name", "other", "'other' cannot be imported from pg_harness_truncate:STRATEGY (pg-"),
        ("STRATEGY = 7", "other", "must name a harness.databases.freshness.Freshness; pg_harness_truncate:STRATEGY is"),
        (CODE, "other", "the entry point 'other' of pg_harness.freshness (pg-harness-truncate 1.2) names a strategy that"),
        (CODE, "reset", "has the same word as one of pg-harness itself"),
    ],
)  # fmt: skip
def test_a_package_that_is_wrong_is_named(folder: Folder, code: str, word: str, told: str) -> None:
    folder.write(test_a="import pytest\n@pytest.mark.pg(fresh='other')\ndef test_it(): pass\n")
    env = added(folder, code, word)
    by_setting = folder.pytest("--pg-harness-fresh", "other", env=env)
    assert (by_setting.code, told in by_setting.text) == (4, True), by_setting.text
    by_marker = folder.pytest(env=env)
    assert (by_marker.code, told in by_marker.text) == (4, True), by_marker.text
