"""``completion``: the script by which a shell completes words, and the answers that the script asks for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from types import FrameType

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from harness.cli.context import Context
from harness.cli.options import Word
from harness.cli.parser import PROGRAM, Program

USAGE = "SHELL"

DESCRIPTION = """\
Print the script that lets a shell complete commands, options, their choices, databases' words and marks' names.

  bash   eval "$(pg-harness completion bash)"                      in ~/.bashrc (bash 4.4 or later)
  zsh    eval "$(pg-harness completion zsh)"                       in ~/.zshrc, after compinit
  fish   pg-harness completion fish > ~/.config/fish/completions/pg-harness.fish

Words and marks are asked of servers that run; nothing is started, and nothing is waited for longer than 3 s.
"""

SHELLS = ("bash", "zsh", "fish")

PARAMETERS = [
    Word("shell", metavar="SHELL", required=True, type=click.Choice(SHELLS), help="bash, zsh or fish")
]

VARIABLE = "_PG_HARNESS_COMPLETE"
"""What the scripts set when they ask."""

LONGEST = 3.0
"""Seconds that an answer may take: somebody waits for it with a finger on the key."""


def run(context: Context) -> int:
    """Print the script."""
    found = get_completion_class(context.arguments.shell)
    assert found is not None
    context.console.answer(found(Program(), {}, PROGRAM, VARIABLE).source().strip())
    return 0


def answer(environ: Mapping[str, str]) -> int:
    """Print the completions that a script asks for; none where anything goes wrong, and not a word on the terminal.

    Returns:
        The exit code.
    """
    shell, _, instruction = environ.get(VARIABLE, "").partition("_")
    found = get_completion_class(shell)
    if found is None or instruction != "complete":
        return 120
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        try:
            with _at_most(LONGEST):
                text = _of(found).complete()
        except Exception:
            if environ.get("PGHARNESS_DEBUG"):
                raise
            text = ""
    if text:
        click.echo(text)
    return 0


def _of(shell: type[ShellComplete]) -> ShellComplete:
    class Ours(shell):  # type: ignore[valid-type, misc]
        """As the shell's own; what stands behind -- is another command's."""

        def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
            if "--" in args:
                return [CompletionItem(incomplete, type="file")]
            found: list[CompletionItem] = super().get_completions(args, incomplete)
            return found

    return Ours(Program(), {}, PROGRAM, VARIABLE)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
