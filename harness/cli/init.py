"""``init``: look at the project, write the settings."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from harness.cli.console import Console
from harness.cli.context import Context, working_directory
from harness.cli.options import flag
from harness.config.files import FILE, locate
from harness.config.sources import EXAMPLE
from harness.config.state_file import replace_file
from harness.errors import ConfigError
from harness.migrations.detect import detect, looked_for, propose

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Look at the project, say what was found, and write the settings: [tool.pg-harness] into pyproject.toml, or a
pg-harness.toml where there is no pyproject.toml. Settings that are there already are never overwritten.
"""


PARAMETERS: list[click.Parameter] = [
    flag("--dry-run", help="print the settings, write nothing"),
]


def run(context: Context) -> int:
    """Write them; what was written is the answer."""
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
    target = root / "pyproject.toml"
    text = propose(root)
    if not target.is_file():
        target, text = root / FILE, propose(root, table="")
    if getattr(context.arguments, "dry_run", False):
        console.answer(text.rstrip())
        return 0
    _write(target, text)
    logger.info("wrote %s", target)
    console.answer(text.rstrip())
    if found:
        logger.info("next: `pg-harness up`")
    return 0


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
    try:
        old = target.read_bytes() if target.is_file() else b""
        new = text.encode()
        if b"\r\n" in old:
            new = new.replace(b"\n", b"\r\n")
        end = b"\r\n" if b"\r\n" in old else b"\n"
        gap = b"" if not old else end if old.endswith(b"\n") else end + end
        # Through a link, so that the file it points to changes and not the link.
        real = Path(os.path.realpath(target))
        mode = real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~_umask()
        replace_file(real, old + gap + new, mode=mode)
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror}", key="init", origin=str(target)
        ) from error


def _umask() -> int:
    # It can only be read by setting it.
    present = os.umask(0o022)
    os.umask(present)
    return present
