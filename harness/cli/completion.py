"""``completion``: the script by which a shell completes words, and the answers that the script asks for."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import redirect_stderr
from types import FrameType

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from harness.cli.context import Context
from harness.cli.options import Word
from harness.cli.parser import PROGRAM, VERBS, Program

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
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            text = _of(found).complete()
        except Exception:
            if environ.get("PGHARNESS_DEBUG"):
                raise
            text = ""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
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

    return Ours(_Program(), {}, PROGRAM, VARIABLE)


class _Program(Program):
    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs from the table (click's own would import all of them), and options."""
        verbs = [CompletionItem(n, help=text) for n, (_, text) in VERBS.items() if n.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise TimeoutError
