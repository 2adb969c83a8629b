"""The grammar of the command line, on ``click``. A verb's module is imported only when it is called or its help is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn, cast

import click
from click.core import ParameterSource

from harness import __version__
from harness.cli.context import Context
from harness.cli.options import COMMON

PROGRAM = "pg-harness"

VERBS: Mapping[str, tuple[str, str]] = {
    "up": ("up", "your own migrated databases; prints their URLs"),
    "down": ("down", "end your server and remove its data"),
    "status": ("status", "servers, templates, workers and connections of this checkout"),
    "url": ("url", "the URL of one database"),
    "env": ("env", "the environment variables of one database"),
    "run": ("run.command", "run a command with databases of its own, and drop them when it ends"),
    "serve": ("serve", "serve a run's databases without a command, until it is told to stop"),
    "psql": ("psql", "open psql on one database"),
    "mark": ("mark", "make your databases' present state the one that `reset` comes back to"),
    "migrate": ("migrate", "apply pending migrations to your databases, and keep their data"),
    "fork": ("fork", "a second copy of your databases beside the first, by a name"),
    "reset": ("reset", "bring databases back to your mark, or to their migrations' state"),
    "mcp": ("mcp", "databases for an agent, by the Model Context Protocol"),
    "logs": ("logs", "the server's log"),
    "bake": ("bake", "keep a migrated server, for later ones to start from"),
    "fingerprint": ("fingerprint", "all that decides the migrated state, as one word: a key for CI's caches"),
    "build-native": ("build_native", "compile the module that resets by pages"),
    "bench": ("bench", "measure on this machine"),
    "stop": ("stop", "end the server of `up`, and keep its data"),
    "gc": ("gc", "drop what dead runs left behind"),
    "doctor": ("doctor", "check everything, one line each, with remedies"),
    "report": ("report", "all that a bug report needs, without secrets"),
    "init": ("init", "look at the project and write the settings"),
    "uninstall": ("uninstall", "remove all that pg-harness has put on this machine for you"),
    "help": ("help", "of one command, or of the options that every command takes"),
    "completion": ("completion", "print what bash, zsh or fish needs to complete all this"),
}
"""Verb → module below ``harness.cli`` and one line of help.

A module has ``PARAMETERS``, the verb's own words and options, and ``run``, which takes the :class:`Context` and returns
the exit code; besides, where it needs them, USAGE, DESCRIPTION, EPILOG and TAKES_COMMAND.
"""

_COLUMN = max(map(len, VERBS)) + 1

EXIT_CODES = """\
exit codes:
  0     done
  120   a mistake in the command line or the settings
  121   no backend: nothing here can run a PostgreSQL server, or it refuses us
  122   the server did not start, or went away
  123   a migration failed
  124   a database could not be leased, reset or released
  125   a bug in pg-harness
  128+n ended by signal n (130: Ctrl-C)
  `run` ends with its command's own code; 126 and 127 where the command cannot be started, as in a shell
"""


class Usage(Exception):
    """The words make no command.

    Attributes:
        message: what is wrong, and where help is.
    """

    exit_code = 120

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


Parsed = tuple[Callable[[Context], int], SimpleNamespace, list[str] | None]
"""The function to call, its options, and the words after ``--``."""


def parse(words: Sequence[str]) -> Parsed:
    """The verb to call, its options, and the words after ``--`` (None where there is no ``--``).

    Options that were not given are missing from the options, except where the verb names a default.

    Raises:
        Usage: they make no command. SystemExit: help or the version was asked for, and printed.
    """
    own, command = split(words)
    program = Program()
    try:
        with program.make_context(PROGRAM, own, obj=command) as context:
            parsed = program.invoke(context)
    except click.exceptions.Exit as asked:
        raise SystemExit(asked.exit_code) from None
    except click.UsageError as error:
        where = cast(click.Context, error.ctx)
        usage = f"usage: {where.command_path} {cast(Program | Verb, where.command).usage}"
        raise Usage(f"{error.format_message()}\n{usage}\nmore: {where.command_path} --help") from None
    if parsed is not None:
        return cast(Parsed, parsed)
    if command is not None:
        raise Usage(f"which command? For instance: {PROGRAM} run -- {' '.join(command[:3])}".rstrip())
    raise Usage(f"no command was given. There are:\n{_table()}\nmore: {PROGRAM} --help")


def split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The words before the first ``--``, which are ours, and those after it, which are nobody's to read."""
    if "--" not in words:
        return list(words), None
    place = list(words).index("--")
    return list(words[:place]), list(words[place + 1 :])


def given(context: click.Context) -> SimpleNamespace:
    """What was said, before and after the verb (the later one holds), and the defaults that a verb names."""
    values: dict[str, Any] = {}
    for level in (context.parent, context):
        if level is None:
            continue
        for name, value in level.params.items():
            said = level.get_parameter_source(name) is not ParameterSource.DEFAULT
            if said and name in ("verbose", "quiet"):
                values[name] = values.get(name, 0) + value
            elif said or value not in (None, False, 0, ()):
                values[name] = value
    return SimpleNamespace(**values)


class Program(click.Group):
    """All of it: the options before the verb, and the verbs by name."""

    usage = "[options] COMMAND [options]"

    def __init__(self) -> None:
        super().__init__(
            PROGRAM,
            params=[_version(), *COMMON],
            # Without a verb there is an answer of our own.
            invoke_without_command=True,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 112},
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Verb | None:
        """The verb of that name; imports its module."""
        return verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that the first word names.

        Raises:
            Usage: there is none; names the nearest.
        """
        if not ctx.resilient_parsing:
            check(args[0])
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, verbs, options, exit codes; no verb's module is imported for it."""
        formatter.write(
            f"usage: {PROGRAM} {self.usage}\n\nA pristine, real PostgreSQL for every test worker.\n"
        )
        commands = "\n".join(f"  {line}" for line in _table().splitlines())
        formatter.write(f"\ncommands:\n{commands}\n\n`{PROGRAM} COMMAND --help` tells more. ")
        formatter.write("The answer goes to stdout, the log to stderr.\n")
        _write_parameters(self, ctx, formatter)
        formatter.write(f"\n{EXIT_CODES}")


class Verb(click.Command):
    """One verb. Invoking it answers what to call with what: it is called outside of click, whose exits are not ours."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.module = module
        self.usage: str = getattr(module, "USAGE", "[options]")
        self.takes_command: bool = getattr(module, "TAKES_COMMAND", False)
        # `run pytest -x`: what stands behind its first word is meant for pytest, though -- is missing.
        interspersed = not self.takes_command or any(isinstance(p, click.Argument) for p in module.PARAMETERS)
        super().__init__(
            name,
            params=[*module.PARAMETERS, *COMMON],
            context_settings={
                "allow_extra_args": self.takes_command,
                "allow_interspersed_args": interspersed,
            },
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the verb's words.

        Raises:
            Usage: the words of a command do not stand behind ``--``, or the verb takes no command.
        """
        if ctx.resilient_parsing and args and args[-1] in self._valued():
            # Its value is what is being completed: click would forget the words before it, too.
            args = args[:-1]
        words = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            place = next((i for i, word in enumerate(words) if word.startswith(error.option_name)), None)
            if (
                not self.takes_command
                or ctx.obj is not None
                or place is None
                or not ctx.allow_interspersed_args
            ):
                raise
            self._misplaced(words[place:])
        if ctx.resilient_parsing:
            return rest
        if ctx.args and ctx.obj is None:
            self._misplaced(ctx.args)
        if ctx.args:
            ctx.fail(f"too many words before --: {' '.join(ctx.args)}")
        if ctx.obj is not None and not self.takes_command:
            raise Usage(f"`{self.name}` takes nothing after --")
        return rest

    def _valued(self) -> set[str]:
        options = [p for p in self.params if isinstance(p, click.Option) and not p.is_flag and not p.count]
        return {name for option in options for name in option.opts}

    def _misplaced(self, words: Sequence[str]) -> NoReturn:
        what = " ".join(words)
        raise Usage(
            f"{what}: the words for the command go behind --: {PROGRAM} {self.name} -- {what}\n"
            f"usage: {PROGRAM} {self.name} {self.usage}\nmore: {PROGRAM} {self.name} --help"
        )

    def invoke(self, ctx: click.Context) -> Parsed:
        """What is to be called with what."""
        return self.module.run, given(ctx), ctx.obj

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, description and examples as they are written, the options in groups."""
        description = getattr(self.module, "DESCRIPTION", "") or VERBS[str(self.name)][1]
        formatter.write(f"usage: {PROGRAM} {self.name} {self.usage}\n\n{description.strip()}\n")
        _write_parameters(self, ctx, formatter)
        if epilog := getattr(self.module, "EPILOG", ""):
            formatter.write(f"\n{epilog}")


def verb(name: str) -> Verb:
    """The verb of that name; imports its module."""
    return Verb(name, importlib.import_module(f"harness.cli.{VERBS[name][0]}"))


def help_of(topic: str) -> str:
    """What ``pg-harness help TOPIC`` prints; of everything, where no topic is given.

    Raises:
        Usage: there is no such command.
    """
    program = Program()
    context = click.Context(program, info_name=PROGRAM, **program.context_settings)
    if not topic:
        return program.get_help(context)
    if topic == "options":
        formatter = context.make_formatter()
        _write_group(_EVERYWHERE, COMMON, context, formatter)
        return formatter.getvalue().lstrip("\n")
    check(topic)
    found = verb(topic)
    return found.get_help(click.Context(found, info_name=topic, parent=context))


def check(word: str) -> None:
    """Whether a word is a verb.

    Raises:
        Usage: it is none; names the nearest.
    """
    if word not in VERBS:
        raise Usage(f"there is no command {word!r}{_nearest(word)}")


_EVERYWHERE = "options of every command"


def _write_parameters(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    common = set(map(id, COMMON))
    params = command.get_params(ctx)
    _write_group("words", [p for p in params if isinstance(p, click.Argument)], ctx, formatter)
    own = [p for p in params if isinstance(p, click.Option) and id(p) not in common]
    _write_group("options", own, ctx, formatter)
    if isinstance(command, Program):
        _write_group(_EVERYWHERE, COMMON, ctx, formatter)
        return
    names = ", ".join(option.opts[0] for option in COMMON)
    with formatter.section(f"{_EVERYWHERE} (`{PROGRAM} help options`)"):
        formatter.write_text(names)


def _write_group(
    title: str, members: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    records = [record for member in members if (record := member.get_help_record(ctx))]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def _version() -> click.Option:
    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(f"{PROGRAM} {__version__}")
            ctx.exit()

    return click.Option(
        ["--version", "show_version"],
        is_flag=True, is_eager=True, expose_value=False, callback=show, help="tell the version",
    )  # fmt: skip


def _table() -> str:
    return "\n".join(f"{name:<{_COLUMN}} {help_}" for name, (_, help_) in VERBS.items())


def _nearest(name: str) -> str:
    # Only a mistake needs it.
    import difflib

    close = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(VERBS)}"
