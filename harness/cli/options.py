"""Options and words that several verbs share, and the kinds of values that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from harness.config.values import READERS, WrongValue
from harness.servers.registry import WORDS


def completing(what: str, **how: bool) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """What completes a value: the function of :mod:`harness.cli.words` of that name.

    Args:
        how: further arguments of it.
    """

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
        # Looks at servers: only while something is completed.
        from harness.cli import words

        found: list[Any] = getattr(words, what)(ctx, incomplete, **how)
        return found

    return complete


class Word(click.Argument):
    """A positional word with a line of help (click's own has one since 8.5 only).

    Args:
        name: of the value.
        help: one line.
        metavar: as it is written in usages.
    """

    def __init__(self, name: str, *, help: str, metavar: str, required: bool = False, **rest: Any) -> None:
        super().__init__([name], required=required, metavar=metavar, **rest)
        self.help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The word and its help."""
        return str(self.metavar), str(self.help)


NUMBER = click.IntRange(1, 256)
"""A number of workers or copies."""

# As it was written; whoever opens it says what is wrong with it. A shell completes it.
FILE = click.Path(readable=False)
FOLDER = click.Path(file_okay=False, readable=False)


def seconds(value: str) -> float:
    """Seconds, from ``90``, ``30s``, ``15m``, ``2h``."""
    try:
        return float(READERS["ttl"](value, True))
    except WrongValue as error:
        raise click.BadParameter(f"{value!r} {error}") from None


def backend_word(value: str) -> str:
    """The word, where there is such a backend. Those of other packages are looked for only where ours are not meant."""
    if value not in WORDS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(map(repr, WORDS))}.")
    return value


class BackendOption(click.Option):
    """``--backend``: its help names all words, also those of other packages."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option, with the words behind its help."""
        record = super().get_help_record(ctx)
        return record and (record[0], f"{record[1]}: {', '.join(WORDS)}")


COMMON: Sequence[click.Option] = (
    click.Option(["-q", "--quiet"], count=True, help="say nothing of what is done; warnings and errors stay"),
    click.Option(
        ["-v", "--verbose"],
        count=True,
        help="say when and where each thing was done; -vv: everything (as PGHARNESS_LOG=debug)",
    ),
    click.Option(
        ["--config"],
        type=FILE,
        metavar="FILE",
        help="settings file (default: searched upwards from here)",
    ),
    BackendOption(
        ["--backend"],
        type=backend_word,
        metavar="BACKEND",
        help="what runs the server",
        shell_complete=lambda ctx, param, incomplete: [word for word in WORDS if word.startswith(incomplete)],
    ),
    click.Option(
        ["--image"], metavar="IMAGE", help="image that containers are started from, for instance postgres:17"
    ),
    click.Option(["--server-url"], metavar="URL", help="an external server; DATABASE_URL is never taken"),
    click.Option(["--isolation"], type=click.Choice(["database", "server"]), help="what each worker gets"),
    click.Option(["--storage"], type=click.Choice(["auto", "memory", "disk"]), help="where data lies"),
    click.Option(["--pg-version"], metavar="N", help="version of PostgreSQL, for instance 17"),
    click.Option(["--binaries"], type=FOLDER, metavar="DIR", help="folder with postgres and initdb"),
)
"""The options of the project: before the verb or after it."""


def flag(name: str, *, help: str) -> click.Option:
    """An option that is there or not."""
    return click.Option([name], is_flag=True, help=help)


def json_flag() -> click.Option:
    """``--json``, for verbs that have an answer."""
    return flag("--json", help="the answer as JSON")


def replica_flag() -> click.Option:
    """``--replica``, for verbs that lead to a database."""
    return flag("--replica", help="on the server's standby (setting replicas), to read from")


def lease_words(*, templates: bool = False) -> list[click.Parameter]:
    """``WORKER``, the one word that names a lease everywhere, and ``--database``. Without it, the first is meant.

    Args:
        templates: whether a template is an answer, too.
    """
    return [
        Word(
            "worker",
            metavar="WORKER",
            help="2 (yours), a fork's name, gw2 (a test run's), a kept database's name, or template; default: 1",
            shell_complete=completing("places", templates=templates),
        ),
        click.Option(
            ["--database"],
            metavar="NAME",
            default="default",
            help="which of the worker's databases; default: default",
            shell_complete=completing("databases"),
        ),
    ]
