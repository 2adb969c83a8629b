"""Words inside a run: they name that run's databases, and never a developer's own."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import psycopg
import pytest
from fix_cli import Project

PGH = f"{shlex.quote(sys.executable)} -m harness"


def rows(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute("select name from users order by id").fetchall()]


@pytest.fixture
def mine(project: Project) -> str:
    """The URL of a developer's own database, in which there is something to lose."""
    url = project.ok("up", "-n", "1").splitlines()[0]
    with psycopg.connect(url) as connection:
        connection.execute("delete from users")
        connection.execute("insert into users (name) values ('mine')")
    return url


def inside(project: Project, script: str, *words: str, code: int = 0, **environ: str) -> tuple[str, str]:
    """Run a shell script as the command of a run; both outputs."""
    done = project.run("run", *words, "--", "sh", "-c", script, **environ)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_a_reset_inside_a_run_is_the_runs(project: Project, mine: str) -> None:
    script = f"""
        psql "$DATABASE_URL" -qc "insert into users (name) values ('test')"
        psql "$DATABASE_URL_2" -qc "insert into users (name) values ('other')"
        {PGH} reset 1
        psql "$DATABASE_URL" -Atc 'select count(*) from users'
        psql "$DATABASE_URL_2" -Atc 'select count(*) from users'
        {PGH} reset --all
        psql "$DATABASE_URL_2" -Atc 'select count(*) from users'
    """
    out, err = inside(project, script, "-n", "2")
    assert out.split() == ["0", "1", "0"]
    assert "worker 1 of the run" in err
    assert "users put back, sessions kept" in err or "users, users_id_seq put back, sessions kept" in err
    assert rows(mine) == ["mine"]


def test_two_runs_each_mean_their_own(project: Project, mine: str, tmp_path: Path) -> None:
    """One resets while the other has rows: the other's stay."""
    flag = tmp_path / "written"
    fifo = f"""
        psql "$DATABASE_URL" -qc "insert into users (name) values ('other run')"
        touch {flag}; while [ -e {flag} ]; do sleep 0.05; done
        psql "$DATABASE_URL" -Atc 'select name from users'
    """
    other = project.start("run", "--", "sh", "-c", fifo)
    while not flag.exists():
        assert other.poll() is None
    inside(project, f"{PGH} reset 1 && {PGH} reset --all && {PGH} mark && rm {flag}")
    out, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert out.strip() == "other run"
    assert rows(mine) == ["mine"]


def test_every_verb_that_takes_a_word_means_the_run(project: Project, mine: str) -> None:
    script = f"""
        {PGH} url; {PGH} url 2; {PGH} url "$(echo "$PGHARNESS_RUN" | cut -c1-8):2"
        {PGH} url --form jdbc
        {PGH} psql 2 -- -Atc 'select current_database()'
        {PGH} psql --admin 2 -- -Atc 'select current_database(), current_user'
        {PGH} env 2 --format json; {PGH} env --format json
    """
    out, _ = inside(project, script + 'echo; echo "$DATABASE_URL $DATABASE_URL_2"', "-n", "2")
    first, second, again, jdbc, name, admin, *rest = out.splitlines()
    url_1, url_2 = rest[-1].split()
    assert (first, second, again) == (url_1, url_2, url_2)
    assert jdbc.startswith("jdbc:postgresql://127.0.0.1:")
    assert url_2.endswith("/" + name)
    assert admin == f"{name}|postgres"
    one, both = json.JSONDecoder().raw_decode("\n".join(rest)), "\n".join(rest)
    assert one[0]["DATABASE_URL"] == url_2
    assert one[0]["PGHARNESS_LEASE"] == "2"
    everything = json.JSONDecoder().raw_decode(both[one[1] :].lstrip())[0]
    assert everything["DATABASE_URL"] == everything["DATABASE_URL_1"] == url_1
    assert everything["PGDATABASE_2"] == name
    assert everything["PGHARNESS_WORKERS"] == "2"
    assert rows(mine) == ["mine"]


def test_marks_inside_a_run(project: Project, mine: str) -> None:
    add = 'psql "$DATABASE_URL" -qc "insert into users (name) values (\'%s\')"'
    show = "psql \"$DATABASE_URL\" -Atc 'select name from users order by id'"
    script = f"""
        {add % "file"}; {PGH} mark; {add % "group"}; {PGH} mark --name loaded; {add % "test"}
        {PGH} mark --list; {PGH} reset; {show}
        {PGH} reset --dry-run
        {PGH} mark --release --dry-run; {PGH} mark --release; {PGH} mark --list; {PGH} reset; {show}
        {PGH} reset --to template; {show}; {PGH} mark --list --json
    """
    out, err = inside(project, script)
    assert out.split("\n")[:-1] == ["1  1", "1  loaded", "file", "group", "1  1", "file", "[]"]
    assert "nothing changed" in err
    assert "would release 'loaded'" in err
    assert rows(mine) == ["mine"]


def test_what_changed_is_told(project: Project) -> None:
    script = f"""
        psql "$DATABASE_URL" -qc "insert into users (name) values ('test')"; {PGH} reset --dry-run; {PGH} reset --dry-run --json
    """
    out, _ = inside(project, script)
    assert "users" in out.splitlines()[0]
    told = json.loads("\n".join(out.splitlines()[out.splitlines().index("[") :]))
    assert told[0]["worker"] == "1"
    assert any("users" in line for line in told[0]["databases"]["default"])


VERBS = ("reset", "mark", "url", "env", "psql")


def each(script: str, verbs: tuple[str, ...] = VERBS) -> str:
    """A script that calls each of the verbs, and tells how it ended."""
    return "; ".join(f"{script.replace('VERB', verb)}; echo $?" for verb in verbs)


@pytest.mark.parametrize(
    ("word", "says"),
    [("3", "2 databases"), ("gw2", "they have numbers"), ("up", "numbers"), ("0", "numbers")],
)
def test_a_word_that_the_run_has_not_is_an_error(project: Project, mine: str, word: str, says: str) -> None:
    out, err = inside(project, each(f"{PGH} VERB {word}"), "-n", "2")
    assert out.split() == ["120"] * len(VERBS)
    assert err.count(says) == len(VERBS)
    assert rows(mine) == ["mine"]


@pytest.mark.parametrize(
    ("bent", "code", "says"),
    [
        ("PGHARNESS_CONTROL_TOKEN=wrong", "120", "is not of the run"),
        ("PGHARNESS_CONTROL_TOKEN=", "120", "they belong together"),
        ("PGHARNESS_CONTROL_URL=http://127.0.0.1:1", "124", "nobody answers"),
        ("PGHARNESS_CONTROL_URL=localhost:5432", "120", "must be an address"),
        ("PGHARNESS_CONTROL_URL= PGHARNESS_RUN=0123456789abcdef", "124", "has no database of"),
    ],
)
def test_a_way_to_the_run_that_is_broken_leads_nowhere_else(
    project: Project, mine: str, bent: str, code: str, says: str
) -> None:
    out, err = inside(project, each(f"{bent} {PGH} VERB"))
    assert out.split() == [code] * len(VERBS)
    assert err.count(says) == len(VERBS)
    assert rows(mine) == ["mine"]


def test_all_of_a_run_without_a_control_interface_is_not_all_of_ones_own(project: Project, mine: str) -> None:
    _, err = inside(project, f"PGHARNESS_CONTROL_URL= {PGH} reset --all", code=120)
    assert "inside a run" in err
    assert rows(mine) == ["mine"]


def test_a_run_that_was_killed_is_told(project: Project, mine: str) -> None:
    environ = dict(
        line.split("=", 1)
        for line in inside(project, "env")[0].splitlines()
        if line.startswith(("PGHARNESS_RUN", "PGHARNESS_CONTROL", "PGHARNESS_WORKERS"))
    )
    for verb in ("reset", "mark", "url", "env", "psql"):
        err = project.fails(124, verb, **environ)
        assert "is over or was killed" in err
        assert environ["PGHARNESS_CONTROL_TOKEN"] not in err
    assert rows(mine) == ["mine"]


def test_an_inner_run_is_its_own(project: Project) -> None:
    script = f"""
        echo "$PGHARNESS_RUN $PGHARNESS_CONTROL_URL $PGHARNESS_LEASE"
        {PGH} run -- sh -c 'echo "$PGHARNESS_RUN $PGHARNESS_CONTROL_URL $PGHARNESS_LEASE $PGHARNESS_COPY"; {PGH} reset 1; echo "$DATABASE_URL_2"'
    """
    out, err = inside(project, script, "--copies", "2")
    lines = [re.sub(r"^\[\d\] ", "", line).split() for line in sorted(out.splitlines())]
    assert len({words[0] for words in lines if words}) == 3
    assert "worker 1 of the run" in err


def test_a_copy_means_its_own_lease(project: Project) -> None:
    script = f"""
        psql "$DATABASE_URL" -qc "insert into users (name) values ('test')"; {PGH} reset
        psql "$DATABASE_URL" -Atc 'select count(*) from users'
        {PGH} url; echo "$DATABASE_URL"; {PGH} reset $((3 - PGHARNESS_LEASE)); echo "rc $?"
    """
    out, err = inside(project, script, "--copies", "2")
    for copy in ("1", "2"):
        count, url, same, code = [line[4:] for line in out.splitlines() if line.startswith(f"[{copy}]")]
        assert (count, code) == ("0", "rc 120")
        assert url == same
    assert "is good for lease" in err


def test_the_token_is_in_no_process_list_and_no_log(project: Project) -> None:
    script = """
        for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -F "$PGHARNESS_CONTROL_TOKEN" && echo seen; done
        echo "$PGHARNESS_CONTROL_TOKEN" >&3
    """
    out, err = inside(project, f"exec 3>token; {script}", "-vv")
    token = (project.root / "token").read_text().strip()
    assert len(token) > 40
    assert out == ""
    assert token not in err
