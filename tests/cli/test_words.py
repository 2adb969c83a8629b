"""Help, mistakes, exit codes, documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

from harness.cli.parser import VERBS, load, verb_parser

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(verb: str) -> None:
    text = verb_parser(verb, load(verb)).format_help()
    assert f"pg-harness {verb}" in text
    parser = verb_parser(verb, load(verb))
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_and_option_is_documented(verb: str) -> None:
    text = DOCS.read_text()
    section = re.search(rf"^## `{verb}`$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section ## `{verb}`"
    common = {o for action in verb_parser("gc", load("gc"))._actions for o in action.option_strings} - {
        "--dry-run",
        "--json",
    }
    for action in verb_parser(verb, load(verb))._actions:
        for option in action.option_strings:
            if option.startswith("--") and option not in common:
                assert f"`{option}" in section[1], f"{verb}: {option} is missing from docs/cli.md"
    for option in common - {"-h", "--help", "-q"}:
        assert f"`{option}" in text


def test_help_needs_no_project_and_names_the_exit_codes(project: Project) -> None:
    out = project.ok("--help")
    for verb in VERBS:
        assert f"  {verb} " in out
    for code in ("120", "121", "122", "123", "124", "128+n"):
        assert code in out
        assert code in DOCS.read_text()
    assert project.ok("--version").startswith("pg-harness ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command was given"),
        (["upp"], "did you mean 'up'"),
        (["up", "--freshh"], "--freshh"),
        (["up", "-n", "many"], "no number"),
        (["up", "-n", "0"], "between 1 and 256"),
        (["up", "--ttl", "soon"], "soon"),
        (["up", "--", "x"], "nothing after --"),
        (["--", "pytest"], "run -- pytest"),
        (["run", "pytest", "tests"], "run -- pytest tests"),
        (["status", "--backend", "podman"], "podman"),
        (["--config", "/nowhere/x.toml", "status"], "does not exist"),
        (["status", "--server-url", "mysql://x"], "not a PostgreSQL URL"),
    ],
)
def test_mistakes_in_the_command_line(project: Project, words: list[str], said: str) -> None:
    assert said in project.fails(120, *words)


def test_mistakes_in_the_settings(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    (mine.root / "pg-harness.toml").write_text('bakend = "docker"\n')
    said = mine.fails(120, "up")
    assert "pg-harness.toml" in said
    assert "'backend'" in said
    (mine.root / "pg-harness.toml").write_text("x = [\n")
    assert "not valid TOML" in mine.fails(120, "status")
    (mine.root / "pg-harness.toml").write_text('backend = "external"\n')
    assert "server_url" in mine.fails(120, "up", PGHARNESS_BACKEND="external")


def test_a_variable_that_nearly_is_one_of_ours(project: Project) -> None:
    done = project.run("status", PGHARNESS_STORAG="disk")
    assert done.returncode == 0
    assert "did you mean PGHARNESS_STORAGE" in done.stderr


def test_no_binaries_and_no_daemon(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    said = mine.fails(121, "up", PGHARNESS_BINARIES="/nowhere")
    assert "What to do:" in said
    assert "pg-harness[embedded]" in said
    said = mine.fails(
        121, "up", PGHARNESS_BACKEND="auto", PGHARNESS_BINARIES="/nowhere", DOCKER_HOST="tcp://127.0.0.1:1"
    )
    assert "docker" in said
    done = mine.run("doctor", PGHARNESS_BINARIES="/nowhere")
    assert done.returncode == 121
    assert "fail  process" in done.stdout


def test_an_external_server_that_does_not_answer_hides_its_password(
    new_project: Callable[..., Project],
) -> None:
    mine = new_project()
    said = mine.fails(121, "up", PGHARNESS_SERVER_URL="postgresql://u:s3cret@127.0.0.1:1/postgres")
    assert "s3cret" not in said
    assert "***" in said


def test_a_failed_migration(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    mine.migrate("002_bad.sql", "create table ok (id int);\ncreate tabel x ();\n")
    said = mine.fails(123, "up")
    assert "002_bad.sql" in said
    assert "tabel" in said
    kept = re.search(r"psql (pgh_\w+)", said)
    assert kept
    assert mine.ok("psql", kept[1], "--", "-Atc", "select count(*) from users").strip() == "0"
    mine.migrate("002_bad.sql", "create table ok (id int);\n")
    assert mine.ok("up").startswith("postgresql://")


def test_quiet_says_nothing(project: Project) -> None:
    done = project.run("-q", "run", "--", "true")
    assert (done.stdout, done.stderr) == ("", "")
    assert project.run("up", "-q").stderr == ""


def test_a_hint_that_is_corrupt_is_no_truth(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    url = mine.ok("up")
    state = Path(mine.environ["PGHARNESS_STATE_DIR"])
    (hint,) = [path for path in state.glob("*/up.json") if path.parent.name in url]
    for text in ("{", "[]", "", '{"format": 1}'):
        hint.write_text(text)
        assert mine.ok("up") == url


def test_a_working_directory_that_is_gone(new_project: Callable[..., Project]) -> None:
    import subprocess

    mine = new_project()
    gone = mine.root / "gone"
    gone.mkdir()
    words = " ".join(mine.command("status"))
    done = subprocess.run(
        ["sh", "-c", f"cd '{gone}'; rmdir '{gone}'; {words}"], env=mine.environ, text=True, timeout=60,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 120
    assert "does not exist any more" in done.stderr


def test_a_bug_of_ours_says_how_to_report_it(project: Project) -> None:
    # A state folder that is a file is none of the mistakes that anybody thought of.
    plain = project.root / "plain"
    plain.write_text("")
    done = project.run("up", PGHARNESS_STATE_DIR=str(plain))
    assert done.returncode in (120, 121, 122, 125)
    assert "Traceback" not in done.stderr
    assert str(plain) in done.stderr


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("PGHARNESS_STATE_DIR", ("up",)),
        ("PGHARNESS_STATE_DIR", ("run", "--", "true")),
        ("PGHARNESS_CACHE_DIR", ("bake",)),
    ],
)
def test_a_home_that_cannot_be_written(
    new_project: Callable[..., Project], variable: str, words: tuple[str, ...]
) -> None:
    mine = new_project()
    # Root may write everywhere, but not below a file.
    (mine.root / "file").write_text("")
    text = mine.fails(120, *words, **{variable: str(mine.root / "file" / "below")})
    assert f"{mine.root / 'file' / 'below'}" in text
    assert "cannot be written: Not a directory" in text
    assert "PGHARNESS_STATE_DIR" in text
    assert "PGHARNESS_CACHE_DIR" in text
