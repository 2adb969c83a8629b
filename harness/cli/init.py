"""``init``: look at the project, write the settings; with a word, the file by which a runner's workers take their databases."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli.console import Console
from harness.cli.context import Context, working_directory
from harness.cli.options import Word, flag
from harness.cli.runner_files import RUNNERS, Runner
from harness.config.files import FILE, locate
from harness.config.sources import EXAMPLE
from harness.config.state_file import replace_file
from harness.errors import ConfigError, HarnessError
from harness.migrations import registry, url_forms
from harness.migrations.detect import Finding, Tree, detect, looked_for, propose
from harness.migrations.port import Configured

logger = logging.getLogger("pg_harness.cli")

USAGE = "[RUNNER] [options]"

DESCRIPTION = """\
Look at the project, say what was found, and write the settings: [tool.pg-harness] into pyproject.toml, or a
pg-harness.toml where there is no pyproject.toml. Settings that are there already are never overwritten.

With the name of a test runner: write the one file, without dependencies, by which each of its workers takes a database
of `pg-harness run` and finds it pristine, and print the lines that belong into the runner's own settings.
"""


EXAMPLES = (
    'migrations = ["sql:db/migrations"]                 every *.sql of a folder, in the order of their names',
    'migrations = ["dump:schema.sql"]                   what pg_dump wrote',
    'migrations = ["command:npm run migrate"]           any command; DATABASE_URL says where',
    'migrations = ["python:app.db:create_all"]          a function of your project, called with the URL',
    "migrations = []                                    an empty database, on purpose",
)
"""What a user may write who was told that nothing was found."""

PARAMETERS: list[click.Parameter] = [
    Word("runner", metavar="RUNNER", type=click.Choice(list(RUNNERS)), help=", ".join(RUNNERS)),
    flag("--dry-run", help="print the settings, or the file, and write nothing"),
    flag("--yes", help="do not ask before a file of RUNNER that you changed is overwritten"),
]


def run(context: Context) -> int:
    """Write them; what was written is the answer."""
    if word := getattr(context.arguments, "runner", None):
        return _write_for(RUNNERS[word], context)
    return _write_settings(context)


def _write_for(runner: Runner, context: Context) -> int:
    """The files of a runner, beside its own settings: in the working directory."""
    folder = working_directory()
    given = vars(context.arguments)
    texts = {folder / name: make() for name, make in runner.files.items()}
    if given.get("dry_run"):
        for text in texts.values():
            context.console.answer(text.rstrip())
        return 0
    changed = [path for path, text in texts.items() if path.exists() and _read(path) != text.encode()]
    if changed and not given.get("yes"):
        names = ", ".join(path.name for path in changed)
        if not context.console.can_ask:
            raise ConfigError(
                f"{names} in {folder} is there already, with another content, and this is no terminal to ask on: "
                "add --yes to overwrite it, or move it away",
                key="yes",
            )
        if not context.console.ask(f"overwrite {names}?"):
            raise ConfigError("nothing was written", key="yes")
    for path, text in texts.items():
        _replace(path, text.encode())
        logger.info("wrote %s", path)
    context.console.answer(f"{runner.lines}\n\n{runner.command}")
    return 0


def _write_settings(context: Context) -> int:
    location = locate(working_directory(), context.environ)
    if location.configured:
        raise ConfigError(
            f"{location.file} has settings already ({location.origin}): nothing was written. Edit them there",
            key="init",
            origin=str(location.file),
        )
    root = location.root
    console = context.console
    found = detect(root)
    for finding in found:
        logger.info("found %s: %s", finding.tool, finding.evidence)
        for remark in finding.remarks:
            logger.info("  %s", remark)
    if not found:
        _say_none(console, root)
    further = _further(found, context, root)
    env = _env(found, root)
    target = root / "pyproject.toml"
    text = propose(root, further=further, env=env)
    if not target.is_file():
        target, text = root / FILE, propose(root, table="", further=further, env=env)
    if getattr(context.arguments, "dry_run", False):
        console.answer(text.rstrip())
        return 0
    _write(target, text)
    logger.info("wrote %s", target)
    console.answer(text.rstrip())
    if found:
        logger.info("next: `pg-harness up`")
        return 0
    logger.info("next: name there what makes your schema, one of:")
    for line in EXAMPLES:
        logger.info("  %s", line)
    logger.info("then `pg-harness up`; docs/migration-tools.md has all of them")
    return 0


def _further(found: Sequence[Finding], context: Context, root: Path) -> list[str]:
    """The databases that the project has beside the default one."""
    if not found:
        return []
    source = registry.load(found[0].spec, root, environment=context.environ)
    if not isinstance(source, Configured):
        return []
    try:
        names = source.further()
    except HarnessError as error:
        context.console.warn(
            f"whether there is more than one database could not be asked: {error.message.splitlines()[0]}. "
            "Each further one needs a table, [tool.pg-harness.databases.NAME], with migrations"
        )
        return []
    for name in names:
        if not name.isidentifier():
            context.console.warn(
                f"the database {name!r} is left out: only letters, digits and _ can be its name here"
            )
    return [name for name in names if name.isidentifier()]


def _env(found: Sequence[Finding], root: Path) -> dict[str, tuple[str, str]]:
    """Variables that have to be of another form than ``DATABASE_URL`` is by itself, as the project's files have them."""
    # A project in a folder of a larger one has its .env there.
    below = [(root / finding.spec.argument).parent for finding in found if finding.spec.kind == "alembic"]
    wanted = url_forms.wanted(Tree(root), *below)
    for each in wanted:
        logger.info('%s: so %s = "%s"', each.evidence, each.variable, each.template)
    return {each.variable: (each.template, each.evidence) for each in wanted}


def say_what_was_found(context: Context) -> None:
    """Tell what an `up` without configured migrations takes: an empty database must not come as a surprise."""
    root = context.settings.root
    found = detect(root)
    if not found:
        _say_none(context.console, root, ": the database is empty")
        context.console.warn(
            f'`pg-harness init` writes the settings; name them there: migrations = ["{EXAMPLE}"]'
        )
        return
    best = found[0]
    logger.info("migrations: none are configured; found %s (%s: %s)", best.text, best.tool, best.evidence)
    if len(found) > 1:
        others = ", ".join(finding.text for finding in found[1:])
        logger.info("migrations: also found %s; `pg-harness init` writes down which", others)


def _say_none(console: Console, root: Path, so: str = "") -> None:
    console.warn(f"no migrations were found in {root}{so}. Looked for:")
    for line in looked_for():
        console.warn(f"  {line}")


def _write(target: Path, text: str) -> None:
    """Add the text to the file, complete or not at all, whatever its line ends are."""
    old = _read(target) if target.is_file() else b""
    new = text.encode()
    if b"\r\n" in old:
        new = new.replace(b"\n", b"\r\n")
    end = b"\r\n" if b"\r\n" in old else b"\n"
    gap = b"" if not old else end if old.endswith(b"\n") else end + end
    _replace(target, old + gap + new)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key="init", origin=str(path)) from error


def _replace(target: Path, content: bytes) -> None:
    """Write it, complete or not at all."""
    try:
        # Through a link, so that the file it points to changes and not the link.
        real = Path(os.path.realpath(target))
        mode = real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~_umask()
        replace_file(real, content, mode=mode, folder_mode=0o777 & ~_umask())
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror}", key="init", origin=str(target)
        ) from error


def _umask() -> int:
    # It can only be read by setting it.
    present = os.umask(0o022)
    os.umask(present)
    return present
