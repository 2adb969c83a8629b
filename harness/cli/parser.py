"""The grammar of the command line. A verb's module is imported only when it is called or its help is asked for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol, cast

from harness.cli.context import Context
from harness.servers.registry import WORDS

PROGRAM = "pg-harness"

VERBS: Mapping[str, tuple[str, str]] = {
    "up": ("up", "your own migrated databases; prints their URLs"),
    "down": ("down", "end your server and remove its data"),
    "status": ("status", "servers, templates, workers and connections of this checkout"),
    "url": ("url", "the URL of one database"),
    "env": ("env", "the environment variables of one database"),
    "run": ("run.command", "run a command with databases of its own, and drop them when it ends"),
    "psql": ("psql", "open psql on one database"),
    "mark": ("mark", "make your databases' present state the one that `reset` comes back to"),
    "reset": ("reset", "bring databases back to your mark, or to their migrations' state"),
    "logs": ("logs", "the server's log"),
    "bake": ("bake", "keep a migrated server, for later ones to start from"),
    "bench": ("bench", "measure on this machine"),
    "gc": ("gc", "drop what dead runs left behind"),
    "doctor": ("doctor", "check everything, one line each, with remedies"),
    "init": ("init", "look at the project and write the settings"),
}
"""Verb → module below ``harness.cli`` and one line of help."""

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


class VerbModule(Protocol):
    """What a verb's module has."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own options."""
        ...

    def run(self, context: Context) -> int:
        """Do it; return the exit code."""
        ...


class Usage(Exception):
    """The words make no command.

    Attributes:
        message: what is wrong, and where help is.
    """

    exit_code = 120

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code: its own 2 is one of pytest's."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process."""
        raise Usage(f"{message}\n{self.format_usage().strip()}\nmore: {self.prog} --help")


def parse(
    words: Sequence[str],
) -> tuple[Callable[[Context], int], argparse.Namespace, list[str] | None]:
    """The verb to call, its options, and the words after ``--`` (None where there is no ``--``).

    Raises:
        Usage: they make no command. SystemExit: help or the version was asked for, and printed.
    """
    own, command = _split(words)
    top = _top()
    # argparse takes what begins with a dash for an option of its own: the verb's part is cut off before.
    place = _verb_at(own)
    if place is None:
        found = top.parse_args(own)
        if command is not None:
            raise Usage(f"which command? For instance: {PROGRAM} run -- {' '.join(command[:3])}".rstrip())
        commands = "\n".join(f"{verb:<8} {help_}" for verb, (_, help_) in VERBS.items())
        raise Usage(f"no command was given. There are:\n{commands}\nmore: {PROGRAM} --help")
    namespace = top.parse_args(own[:place])
    name = own[place]
    if name not in VERBS:
        raise Usage(f"there is no command {name!r}{_nearest(name)}")
    module = load(name)
    parser = verb_parser(name, module)
    try:
        found = parser.parse_args(own[place + 1 :], namespace)
    except Usage as error:
        _, unknown, rest = error.message.partition("unrecognized arguments: ")
        if not unknown or command is not None or not parser.get_default("takes_command"):
            raise
        what, _, usage = rest.partition("\n")
        raise Usage(
            f"{what}: the words for the command go behind --: {PROGRAM} {name} -- {what}\n{usage}"
        ) from None
    if command is not None and not getattr(found, "takes_command", False):
        raise Usage(f"`{name}` takes nothing after --")
    return module.run, found, command


def load(name: str) -> VerbModule:
    """The module of a verb."""
    return cast(VerbModule, importlib.import_module(f"harness.cli.{VERBS[name][0]}"))


def verb_parser(name: str, module: VerbModule) -> argparse.ArgumentParser:
    """The parser of one verb's own words."""
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} {getattr(module, 'USAGE', '[options]')}",
        description=(getattr(module, "DESCRIPTION", "") or VERBS[name][1]).strip(),
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    module.arguments(parser)
    _common(parser)
    return parser


def _split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in words:
        return list(words), None
    place = list(words).index("--")
    return list(words[:place]), list(words[place + 1 :])


_VALUED = ("--config", "--backend", "--image", "--server-url", "--isolation", "--storage", "--pg-version",
           "--binaries")  # fmt: skip


def _verb_at(words: Sequence[str]) -> int | None:
    """Where the first word is that is neither an option nor an option's value."""
    place = 0
    while place < len(words):
        word = words[place]
        if not word.startswith("-"):
            return place
        place += 2 if word in _VALUED else 1
    return None


def _top() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<8} {help_}" for name, (_, help_) in VERBS.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [options] COMMAND [options]",
        description="A pristine, real PostgreSQL for every test worker.\n\n"
        f"commands:\n{commands}\n\n`{PROGRAM} COMMAND --help` tells more. The answer goes to stdout, the log to stderr.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=_version())
    _common(parser)
    return parser


def _version() -> str:
    import harness

    return f"{PROGRAM} {harness.__version__}"


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "-q", "--quiet", action="count", help="say nothing of what is done; warnings and errors stay"
    )
    group.add_argument(
        "-v", "--verbose", action="count",
        help="say when and where each thing was done; -vv: everything (as PGHARNESS_LOG=debug)",
    )  # fmt: skip
    group.add_argument("--config", metavar="FILE", help="settings file (default: searched upwards from here)")
    group.add_argument(
        "--backend", choices=WORDS, metavar="BACKEND", help="what runs the server: %(choices)s"
    )
    group.add_argument("--image", help="image of the docker backend, for instance postgres:17")
    group.add_argument("--server-url", metavar="URL", help="an external server; DATABASE_URL is never taken")
    group.add_argument("--isolation", choices=("database", "server"), help="what each worker gets")
    group.add_argument("--storage", choices=("auto", "memory", "disk"), help="where data lies")
    group.add_argument("--pg-version", dest="version", metavar="N", help="version of the local binaries")
    group.add_argument("--binaries", metavar="DIR", help="folder with postgres and initdb")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, for verbs that have an answer."""
    parser.add_argument("--json", action="store_true", help="the answer as JSON")


def add_word(parser: argparse.ArgumentParser, *, default: str | None = "1") -> None:
    """``WORKER``: the one word that names a lease everywhere."""
    parser.add_argument(
        "worker",
        nargs="?",
        default=default,
        metavar="WORKER",
        help="2 (yours), gw2 (a test run's), a kept database's name, or template"
        + (f"; default {default}" if default else ""),
    )
    parser.add_argument(
        "--database",
        metavar="NAME",
        default="default",
        help="which of the worker's databases; default: default",
    )


def count(text: str) -> int:
    """A number of workers or copies."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 1 <= number <= 256:
        raise argparse.ArgumentTypeError(f"{number} is not between 1 and 256")
    return number


def duration(text: str) -> float:
    """Seconds, from ``90``, ``30s``, ``15m``, ``2h``."""
    from harness.config.values import READERS, WrongValue

    try:
        return float(READERS["ttl"](text, True))
    except WrongValue as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(VERBS)}"
