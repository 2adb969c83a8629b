"""``serve``: a run's databases and its control interface without a command, for whatever starts the tests."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from harness.cli.context import Context
from harness.cli.env import FORMATS, render
from harness.cli.options import NUMBER, flag, seconds
from harness.cli.parser import Usage
from harness.cli.run.command import close, fits
from harness.config.run_variables import RUN, TOKEN, URL
from harness.config.state_file import StateFile, Unreadable, replace_file
from harness.control.client import ControlClient
from harness.control.server import new_token
from harness.control.serving import Serving
from harness.errors import ConfigError, LeaseLost, ServerLost
from harness.runs.run import Run

logger = logging.getLogger("pg_harness.cli")

USAGE = "[-n N] [--port PORT | --socket PATH] [--detach] [--ttl TIME] [options]; --stop"

DESCRIPTION = """\
Serve a run's databases without a command: for compose files, CI jobs and dev containers. Prints all variables that
`run -n N` gives its command, and serves resets and leases until it is told to stop.

  eval "$(pg-harness serve -n 4 --detach)"             this shell; `pg-harness serve --stop` ends it
  pg-harness serve -n 4 --env-file .env.test --ttl 1h  in the foreground, until Ctrl-C or for an hour
  pg-harness serve -n 4 --detach --format github >> "$GITHUB_ENV"    the following steps of a GitHub job
"""

EPILOG = """\
All databases are pristine and thrown away at the end, as those of `run`. The control interface listens on loopback,
or at a Unix socket that its owner alone may use; who asks needs the token (docs/control.md).
"""

SHORTEST_TOKEN = 16
"""Characters of a token that somebody gives."""

STOPPING = 60.0
"""Seconds that `--stop` waits for the end."""

_FOLDER, _FORM = "serve", 1

PARAMETERS: list[click.Parameter] = [
    click.Option(["-n", "workers"], type=NUMBER, metavar="N", help="how many databases; default: 1"),
    click.Option(
        ["--port"], type=click.IntRange(1, 65535), metavar="PORT", help="of loopback; default: any free one"
    ),
    click.Option(["--socket"], metavar="PATH", help="listen at a Unix socket instead of a port"),
    click.Option(
        ["--token-file"],
        metavar="FILE",
        help="take the token from this file; where it is empty or missing, write a new one there",
    ),
    click.Option(["--env-file"], metavar="FILE", help="write the variables there, too, for dotenv"),
    click.Option(
        ["--format"], type=click.Choice(FORMATS), default="shell", help="of what is printed; default: shell"
    ),
    click.Option(["--ttl"], type=seconds, metavar="TIME", help="end after this long, for instance 90m or 2h"),
    flag(
        "--integresql",
        help="serve IntegreSQL's REST interface too (/api/v1), N test databases for each template",
    ),
    flag("--detach", help="go on in the background, and return once all is ready"),
    flag("--stop", help="end what this checkout serves"),
    flag("--rebuild", help="run the migrations again although nothing changed"),
]


def run(context: Context) -> int:
    """Serve until the end; or have it done in the background, or end it."""
    given = vars(context.arguments)
    if given.get("stop"):
        return _stop(context)
    if "port" in given and "socket" in given:
        raise Usage("--port or --socket: it listens in one place")
    if given.get("detach"):
        return _detach(context, given)
    return _serve(context, given)


def _serve(context: Context, given: Mapping[str, Any], ready: Callable[[], None] = lambda: None) -> int:
    """Serve in this process.

    Args:
        ready: called once the answer is given.
    """
    workers: int = given.get("workers") or 1
    if given.get("integresql") and context.settings.isolation == "server":
        raise Usage(
            '--integresql makes its templates on one server: it does not go with isolation = "server"'
        )
    token = _token(Path(given["token_file"])) if "token_file" in given else ""
    at: int | Path = Path(given["socket"]).absolute() if "socket" in given else given.get("port") or 0
    harness = Run.open_project(
        context.project,
        workers=workers,
        rebuild=bool(given.get("rebuild")),
        progress=context.console.progress,
    )
    asked = threading.Event()
    note: StateFile | None = None
    try:
        # Test databases of a client's template come beside the numbered ones.
        fits(harness, 2 * workers if given.get("integresql") else workers)
        leases = harness.leases(workers, watch=None, apart=True)
        most = workers if given.get("integresql") else 0
        with Serving(harness, leases, at=at, token=token, integresql=most, stop=asked.set) as serving:
            variables = serving.environment()
            note = StateFile(context.project.folder / _FOLDER / f"{harness.run}.json", _FORM)
            note.write({name: variables[name] for name in (URL, TOKEN, RUN)})
            if "env_file" in given:
                _write(Path(given["env_file"]), render(variables, "dotenv") + "\n")
            context.console.answer(render(variables, given["format"]))
            # Whoever reads the answer waits for its end, which is here.
            _redirect(1, os.devnull)
            logger.info("serving %s databases at %s", workers, serving.server.url)
            ready()
            asked.wait(given.get("ttl"))
    finally:
        close(context, harness)
        if note is not None:
            # Last: --stop waits for it.
            note.forget()
    return 0


def _redirect(descriptor: int, path: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, descriptor)
    os.close(target)


def _token(path: Path) -> str:
    """The token in a file; a new one, written there, where there is none."""
    try:
        found = path.read_text("utf-8").strip() if path.exists() else ""
        if not found:
            found = new_token()
            replace_file(path, found + "\n", folder_mode=None)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be used: {error}", key="token_file") from error
    if len(found) < SHORTEST_TOKEN or not found.isascii() or len(found.split()) != 1:
        raise ConfigError(
            f"the token in {path} must be one word of at least {SHORTEST_TOKEN} ASCII characters",
            key="token_file",
        )
    return found


def _write(path: Path, text: str) -> None:
    try:
        # Passwords are in it: nobody else may read it.
        replace_file(path, text, folder_mode=None)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", key="env_file") from error


def _detach(context: Context, given: Mapping[str, Any]) -> int:
    """Serve in a process of its own, which goes on when this one ends; wait until it is ready."""
    log = context.project.folder / _FOLDER / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with open(reading, "rb") as pipe:
            if pipe.read():
                logger.info("in the background as process %s; its log: %s", child, log)
                return 0
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) or 125
    os.setsid()
    # What the caller has open (a job's pipes) would else stay open for as long as this is served.
    os.closerange(3, writing)
    os.closerange(writing + 1, 4096)
    _redirect(0, os.devnull)

    def ready() -> None:
        _redirect(2, str(log))
        os.write(writing, b"ready")
        os.close(writing)

    return _serve(context, given, ready)


def _stop(context: Context) -> int:
    """End all that this checkout serves; wait until it has ended."""
    folder = context.project.folder / _FOLDER
    notes = sorted(folder.glob("*.json")) if folder.is_dir() else []
    ended = 0
    for path in notes:
        try:
            found = StateFile(path, _FORM).read()
            with ControlClient(found[URL], found[TOKEN], run=found[RUN]) as client:
                client.stop()
        except (FileNotFoundError, Unreadable, KeyError, LeaseLost):
            # It was killed, and has left its note.
            path.unlink(missing_ok=True)
            continue
        deadline = time.monotonic() + STOPPING
        while path.exists():
            if time.monotonic() > deadline:
                raise ServerLost(
                    f"the run {found[RUN][:8]} was told to stop, and has not within {STOPPING:g} s"
                )
            time.sleep(0.02)
        logger.info("ended: the run %s", found[RUN][:8])
        ended += 1
    if not ended:
        logger.info("nothing is served from %s", context.settings.root)
    return 0
