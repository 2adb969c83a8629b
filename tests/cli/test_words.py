"""Help, mistakes, exit codes, documentation."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from fix_cli import Project

from harness.cli.init import EXAMPLES
from harness.cli.options import COMMON
from harness.cli.parser import PROGRAM, VERBS, Program, help_of, parse
from harness.cli.parser import verb as find

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def options(verb: str) -> set[str]:
    return {name for param in find(verb).params for name in param.opts if name.startswith("-")}


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(verb: str) -> None:
    program = click.Context(Program(), info_name=PROGRAM, max_content_width=1000, terminal_width=1000)
    context = click.Context(find(verb), info_name=verb, parent=program)
    text = context.get_help()
    assert text.startswith(f"usage: pg-harness {verb}")
    for param in context.command.get_params(context):
        assert param.help
        if param in COMMON:
            # One line names them all.
            assert re.search(rf" {param.opts[0]}(,|\n|$)", text)
            continue
        assert param.help in text
        assert param.opts[-1] in text or str(param.metavar) in text


def test_help_of_the_common_options() -> None:
    text = " ".join(help_of("options").split())
    for param in COMMON:
        assert param.opts[-1] in text
        assert " ".join(str(param.help).split()) in text


def test_help_is_what_the_option_prints(project: Project) -> None:
    assert project.ok("help") == project.ok("--help")
    assert project.ok("help", "up") == project.ok("up", "--help")
    said = project.fails(120, "help", "statsu")
    assert "there is no command 'statsu'; did you mean 'status'?" in said


def test_a_mistyped_option_gets_a_suggestion(project: Project) -> None:
    assert "Did you mean '--fresh'?" in project.fails(120, "up", "--frsh")
    assert "Did you mean '--backend'?" in project.fails(120, "status", "--bakend", "docker")


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_and_option_is_documented(verb: str) -> None:
    text = DOCS.read_text()
    section = re.search(rf"^## `{verb}`$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section ## `{verb}`"
    common = {name for param in COMMON for name in param.opts if name.startswith("--")}
    for option in options(verb):
        if option.startswith("--") and option not in common:
            assert f"`{option}" in section[1], f"{verb}: {option} is missing from docs/cli.md"
    for option in common:
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
        (["--config", "up", "upp"], "did you mean 'up'"),
        (["frobnicate"], "there are up, down, status"),
        (["up", "--freshh"], "--freshh"),
        (["up", "-n", "many"], "not a valid integer"),
        (["up", "-n", "0"], "1<=x<=256"),
        (["up", "--ttl", "soon"], "soon"),
        (["up", "--", "x"], "nothing after --"),
        (["--", "pytest"], "run -- pytest"),
        (["run", "pytest", "tests"], "run -- pytest tests"),
        (["run", "-n", "2", "pytest", "-n", "4", "-x"], "run -- pytest -n 4 -x"),
        (["run", "--rebuidl", "--", "pytest"], "--rebuild"),
        (["psql", "2", "-c", "select 1"], "psql -- -c select 1"),
        (["psql", "2", "3", "--", "-l"], "too many words before --: 3"),
        (["status", "more"], "more"),
        (["bench"], "WHAT"),
        (["completion", "tcsh"], "tcsh"),
        (["status", "--backend", "nothing"], "nothing"),
        (["--config", "/nowhere/x.toml", "status"], "does not exist"),
        (["status", "--server-url", "mysql://x"], "not a PostgreSQL URL"),
    ],
)
def test_mistakes_in_the_command_line(project: Project, words: list[str], said: str) -> None:
    assert said in project.fails(120, *words)


def test_a_mistake_names_the_usage_and_where_help_is(project: Project) -> None:
    said = project.fails(120, "up", "--freshh")
    assert "Did you mean" in said
    assert "'--fresh'" in said
    assert "usage: pg-harness up [options]" in said
    assert "more: pg-harness up --help" in said


def parsed(*words: str) -> dict[str, object]:
    return vars(parse(words)[1])


def test_options_of_the_project_stand_before_or_after_the_command() -> None:
    everything = {
        "backend": "process",
        "config": "x.toml",
        "server_url": "u",
        "pg_version": "16",
        "image": "up",
    }
    options = [
        "--backend",
        "process",
        "--config",
        "x.toml",
        "--server-url=u",
        "--pg-version",
        "16",
        "--image",
        "up",
    ]
    for place in range(len(options) + 1):
        if place != 5 and options[max(0, place - 1)].startswith("--") and "=" not in options[place - 1]:
            continue
        assert parsed(*options[:place], "status", *options[place:]) == everything
    # The later one holds, as with most tools; what can be counted adds up.
    assert parsed("--backend", "docker", "status", "--backend", "process") == {"backend": "process"}
    assert parsed("-v", "up", "-qvn2") == {"verbose": 2, "quiet": 1, "workers": 2}
    assert parsed("status") == {}


def test_the_words_of_a_command_are_nobodys_to_read() -> None:
    words = ["pytest", "-q", "--json", "--", "-n", "4", "--help"]
    for verb in ("run", "psql"):
        _, found, command = parse([verb, "--", *words])
        assert command == words
        assert not vars(found).keys() & {"quiet", "json", "workers"}
    assert parse(["run"])[2] is None
    assert parse(["run", "--"])[2] == []


def test_values_that_may_be_left_out() -> None:
    assert parsed("mark", "--release")["release"] == ""
    assert parsed("mark", "--release", "--json")["release"] == ""
    assert parsed("mark", "--release=one")["release"] == "one"
    assert parsed("bench", "reset", "--json")["json"] == "-"
    assert parsed("bench", "reset", "--json", "f", "--version", "15", "--version", "18") == {
        "what": "reset", "json": "f", "versions": ("15", "18"),
    }  # fmt: skip


def test_help_imports_no_commands_module(project: Project) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    own = {f"harness.cli.{module}" for module, _ in VERBS.values()}

    def imported(*words: str, **environ: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=project.root, env={**project.environ, **environ},
            text=True, timeout=60, capture_output=True, check=True,
        )  # fmt: skip
        return set(done.stderr.split())

    shells = {"COMP_WORDS": "pg-harness ", "COMP_CWORD": "1", "_PG_HARNESS_COMPLETE": "bash_complete"}
    for found in (imported("--help"), imported("upp"), imported("--version")):
        assert not found & own
        assert found.isdisjoint({"psycopg", "docker", "rich", "pytest", "argparse", "tomllib"})
    # The completion of commands comes from the table as well.
    assert imported(**shells) & own == {"harness.cli.completion"}
    assert imported("up", "--help") & own == {"harness.cli.up"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [("n\n", "nothing was dropped"), ("\n", "nothing was dropped"), ("\x04", "nothing was dropped")],
)
def test_a_question_is_asked_on_stderr_and_anything_but_yes_is_no(
    project: Project, typed: str, said: str
) -> None:
    before = project.ok("up")
    code, out, err = asked(project, typed)
    assert (code, out) == (120, "")
    assert "drop and make new ones? [y/N]" in err
    assert said in err
    assert project.ok("up") == before


def test_yes_is_yes_and_the_answer_alone_goes_to_stdout(new_project: Callable[..., Project]) -> None:
    mine = new_project()
    url = mine.ok("up")
    assert asked(mine, "perhaps\nyes\n")[:2] == (0, url)


def test_ctrl_c_at_a_question_is_an_interrupt(project: Project) -> None:
    assert asked(project, None)[:2] == (130, "")


def asked(project: Project, typed: str | None) -> tuple[int, str, str]:
    """`up --fresh` on a terminal, and what is typed there; None: a Ctrl-C."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        project.command("up", "--fresh"), cwd=project.root, env={**project.environ, "TERM": "dumb"},
        text=True, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = ""
    interrupted = False
    try:
        while True:
            # Again, where it came just before the read of the answer began: it does not end a read that begins later.
            while interrupted and not select.select([ours], [], [], 10)[0]:
                child.send_signal(signal.SIGINT)
            chunk = os.read(ours, 4096).decode()
            if not chunk:
                break
            said += chunk
            if "[y/N]" in said and typed != "":
                if typed is None:
                    child.send_signal(signal.SIGINT)
                    interrupted = True
                else:
                    os.write(ours, typed.encode())
                typed = ""
    except OSError:
        # Linux says so when the other end is closed.
        pass
    out, _ = child.communicate(timeout=60)
    os.close(ours)
    return child.returncode, out, said


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
    kept = re.search(r"look at it with: pg-harness psql ([0-9a-f]{8})\)", said)
    assert kept
    assert mine.ok("psql", kept[1], "--", "-Atc", "select count(*) from users").strip() == "0"
    mine.migrate("002_bad.sql", "create table ok (id int);\n")
    assert mine.ok("up").startswith("postgresql://")


def test_quiet_says_nothing(project: Project) -> None:
    enters = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL'])"
    done = project.run("-q", "run", "--", sys.executable, "-c", enters)
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


def test_init_that_finds_nothing_says_what_to_write(new_project: Callable[..., Project]) -> None:
    project = new_project("nothing", migrations=False)
    done = project.run("init")
    assert done.returncode == 0, done.stderr
    for line in EXAMPLES:
        assert line in done.stderr
        written = line.partition("  ")[0]
        (project.root / "pg-harness.toml").write_text(f"{written}\n")
        # Each is a right line, whether its file is there or not.
        told = project.run("doctor").stdout
        assert "setting" in told
        assert "fail  settings" not in told


def test_up_ends_with_the_commands_that_come_next(new_project: Callable[..., Project]) -> None:
    project = new_project("next")
    first = project.run("up")
    assert first.stderr.splitlines()[-1].startswith('pg-harness: next: `eval "$(pg-harness env)"`')
    assert "next:" not in project.run("up").stderr
    assert "next:" not in project.run("up", "-n", "2").stderr
