"""Options and words that several verbs share, and the kinds of values that they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from harness.servers.registry import WORDS

Items = list[Any]
"""``click.shell_completion.CompletionItem``s; that module is imported only while something is completed."""


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


# ParamType takes a type argument in the newest click only.
class Count(click.ParamType):  # type: ignore[type-arg]
    """A number of workers or copies, 1 to 256."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is no number", param, ctx)
        if not 1 <= number <= 256:
            self.fail(f"{number} is not between 1 and 256", param, ctx)
        return number


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, from ``90``, ``30s``, ``15m``, ``2h``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        from harness.config.values import READERS, WrongValue

        try:
            return float(READERS["ttl"](value, True))
        except WrongValue as error:
            self.fail(f"{value!r} {error}", param, ctx)


class Place(click.ParamType):  # type: ignore[type-arg]
    """A path, as it was written; whoever opens it says what is wrong with it.

    Args:
        kind: what a shell completes: ``file`` or ``dir``.
    """

    def __init__(self, kind: str) -> None:
        self.name = self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """The shell knows better."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self.kind)]


class BackendWord(click.ParamType):  # type: ignore[type-arg]
    """The word of a backend. Those of other packages are looked for only where ours are not meant."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word, where there is such a backend."""
        if value not in WORDS:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, WORDS))}.", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """All words that begin so."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in WORDS if word.startswith(incomplete)]


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
        type=Place("file"),
        metavar="FILE",
        help="settings file (default: searched upwards from here)",
    ),
    BackendOption(["--backend"], type=BackendWord(), metavar="BACKEND", help="what runs the server"),
    click.Option(["--image"], metavar="IMAGE", help="image of the docker backend, for instance postgres:17"),
    click.Option(["--server-url"], metavar="URL", help="an external server; DATABASE_URL is never taken"),
    click.Option(["--isolation"], type=click.Choice(["database", "server"]), help="what each worker gets"),
    click.Option(["--storage"], type=click.Choice(["auto", "memory", "disk"]), help="where data lies"),
    click.Option(["--pg-version", "version"], metavar="N", help="version of the local binaries"),
    click.Option(["--binaries"], type=Place("dir"), metavar="DIR", help="folder with postgres and initdb"),
)
"""The options of the project: before the verb or after it."""


def flag(name: str, *, help: str) -> click.Option:
    """An option that is there or not."""
    return click.Option([name], is_flag=True, help=help)


def json_flag() -> click.Option:
    """``--json``, for verbs that have an answer."""
    return flag("--json", help="the answer as JSON")


def lease_words(*, default: str | None = "1", templates: bool = False) -> list[click.Parameter]:
    """``WORKER``, the one word that names a lease everywhere, and ``--database``.

    Args:
        default: the word where none is given.
        templates: whether a template is an answer, too.
    """
    return [
        Word(
            "worker",
            default=default,
            metavar="WORKER",
            help="2 (yours), gw2 (a test run's), a kept database's name, or template"
            + (f"; default {default}" if default else ""),
            shell_complete=every_word if templates else lease_word,
        ),
        click.Option(
            ["--database"],
            metavar="NAME",
            default="default",
            help="which of the worker's databases; default: default",
            shell_complete=database_name,
        ),
    ]


def every_word(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes the words of all places that there are."""
    from harness.cli import words

    return words.places(ctx, incomplete, templates=True)


def lease_word(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes the words of leases and kept databases."""
    from harness.cli import words

    return words.places(ctx, incomplete)


def own_word(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes the words of a person's own databases."""
    from harness.cli import words

    return words.places(ctx, incomplete, mine=True)


def mark_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes the names of marks."""
    from harness.cli import words

    return words.marks(ctx, incomplete)


def database_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes the names of the databases of the settings."""
    from harness.cli import words

    return words.databases(ctx, incomplete)


def server_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Completes what this checkout's servers are for."""
    from harness.cli import words

    return words.servers(ctx, incomplete)
