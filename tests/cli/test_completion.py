"""Completion: the scripts, in the shells that are here, and what they ask us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_cli import Project

from harness.cli.completion import LONGEST

SHELLS = ["bash", "zsh", "fish"]

PATIENT = "import sys; from harness.cli import completion, main; completion.LONGEST = {}; sys.exit(main())"
"""pg-harness, with another limit of what an answer may take: a busy machine is slower than a person is patient."""


@pytest.fixture(scope="module")
def mine(new_project: Callable[..., Project], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two databases, a mark, and a pg-harness on PATH."""
    programs = tmp_path_factory.mktemp("bin")
    program = programs / "pg-harness"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{PATIENT.format(60.0)}" "$@"\n')
    program.chmod(0o755)
    made = new_project("completed")
    made.environ["PATH"] = f"{programs}{os.pathsep}{made.environ.get('PATH', os.defpath)}"
    made.ok("up", "-n", "2")
    made.ok("mark", "--name", "loaded")
    return made


def asked(project: Project, *words: str, shell: str = "bash", longest: float = 60.0) -> list[str]:
    """What we answer to a shell that completes the last of the words, by its protocol; for `longest` seconds at most."""
    said = {
        "bash": {"COMP_WORDS": " ".join(["pg-harness", *words]), "COMP_CWORD": str(len(words))},
        "zsh": {"COMP_WORDS": " ".join(["pg-harness", *words]), "COMP_CWORD": str(len(words))},
        "fish": {"COMP_WORDS": " ".join(["pg-harness", *words[:-1]]), "COMP_CWORD": words[-1]},
    }[shell]
    done = subprocess.run(
        [sys.executable, "-c", PATIENT.format(longest)], cwd=project.root, text=True, timeout=120,
        env={**project.environ, "_PG_HARNESS_COMPLETE": f"{shell}_complete", **said},
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout.splitlines()


def completed(project: Project, *words: str, longest: float = 60.0) -> list[str]:
    """The words alone, by bash's protocol: newer versions of click have fish get them in other lines than older ones."""
    lines = asked(project, *words, longest=longest)
    return [line.partition(",")[2] for line in lines]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("ma",), ["mark"]),
        (("--backend", "p"), ["process"]),
        (("up", "--fr"), ["--fresh"]),
        (("-q", "up", "--stora"), ["--storage"]),
        (("up", "--storage", ""), ["auto", "memory", "disk"]),
        (("url", "--form", "a"), ["asyncpg"]),
        (("url", ""), ["1", "2"]),
        (("reset", "2"), ["2"]),
        (("mark", ""), ["1", "2"]),
        (("reset", "--to", ""), ["loaded", "template"]),
        (("reset", "2", "--to", ""), ["template"]),
        (("mark", "--release", "lo"), ["loaded"]),
        (("url", "--database", ""), ["default"]),
        (("logs", ""), ["up"]),
        (("completion", ""), SHELLS),
        (("bench", ""), ["reset"]),
    ],
)
def test_what_is_completed(mine: Project, words: tuple[str, ...], found: list[str]) -> None:
    assert completed(mine, *words) == found


def test_all_commands_are_completed_and_psql_knows_templates(mine: Project) -> None:
    assert {"up", "run", "completion"} <= set(completed(mine, ""))
    assert "template" in completed(mine, "psql", "")
    assert {"--help", "--json", "--config"} <= set(completed(mine, "gc", "--"))


def test_files_are_left_to_the_shell(mine: Project) -> None:
    for words in (("up", "--config", "x"), ("run", "--", "pyte"), ("psql", "2", "--", "-f", "")):
        assert asked(mine, *words)[0].startswith("file,")
    assert asked(mine, "up", "--binaries", "x")[0].startswith("dir,")


def test_nothing_is_started_and_nothing_is_said(new_project: Callable[..., Project]) -> None:
    fresh = new_project("untouched")
    assert completed(fresh, "url", "") == []
    assert completed(fresh, "reset", "--to", "") == []
    assert fresh.ok("status").splitlines()[-1].startswith("servers   none runs")
    (fresh.root / "pg-harness.toml").write_text("x = [\n")
    assert completed(fresh, "url", "") == []
    assert completed(fresh, "ur") == ["url"]


def test_a_server_that_says_nothing_is_not_waited_for(mine: Project) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/postgres"
        began = time.monotonic()
        assert completed(mine, "--server-url", url, "url", "", longest=LONGEST) == []
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_script_and_its_protocol(mine: Project, shell: str) -> None:
    script = mine.ok("completion", shell)
    assert f"_PG_HARNESS_COMPLETE={shell}_complete" in script
    assert "\n".join(asked(mine, "up", "--fr", shell=shell)).count("--fresh") == 1


def test_bash_completes(mine: Project) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    script = """
        eval "$(pg-harness completion bash)"
        complete -p pg-harness
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _pg_harness_completion pg-harness
            echo "${COMPREPLY[*]}"
        }
        try pg-harness res
        try pg-harness up --fr
        try pg-harness reset 1 --to lo
        try pg-harness run -- xyz
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=mine.root, env=mine.environ, text=True, timeout=60,
        capture_output=True, check=True,
    )  # fmt: skip
    registered, *answers = done.stdout.split("\n")
    assert registered.endswith("pg-harness")
    assert answers[:3] == ["reset", "--fresh", "loaded"]


def test_zsh_completes(mine: Project, tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh here")
    # What the script hands to zsh: the functions of the completion system work only while a key is handled.
    script = """
        compdef() { echo "compdef $*"; }; compadd() { :; }
        _describe() { echo "${(P@)3}"; }
        eval "$(pg-harness completion zsh)"
        words=(pg-harness up --fr); CURRENT=3; _pg_harness_completion
        words=(pg-harness reset --to lo); CURRENT=4; _pg_harness_completion
    """
    done = subprocess.run(
        [zsh, "-f", "-c", script], cwd=mine.root, env=mine.environ, text=True, timeout=60, capture_output=True,
        check=True,
    )  # fmt: skip
    assert "compdef _pg_harness_completion pg-harness" in done.stdout
    assert "--fresh:" in done.stdout
    assert "loaded:" in done.stdout


def test_fish_completes(mine: Project) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("no fish here")
    script = (
        "pg-harness completion fish | source\n"
        "complete -C 'pg-harness up --fr'\ncomplete -C 'pg-harness reset --to lo'\n"
    )
    done = subprocess.run(
        [fish, "--no-config", "-c", script], cwd=mine.root, env={**mine.environ, "HOME": str(mine.root)},
        text=True, timeout=60, capture_output=True, check=True,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["--fresh", "loaded"]
