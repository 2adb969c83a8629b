"""``build-native``: compile the module that resets by pages, for a PostgreSQL of this machine."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import click

from harness.cli.context import Context
from harness.cli.options import FOLDER, json_flag
from harness.errors import BackendError, BackendUnavailable
from harness.reset.rewind import build, fit, module
from harness.servers.process.binaries import choose, wheel_folder

logger = logging.getLogger("pg_harness.cli")

DESCRIPTION = """\
Compile the module that resets databases by pages, for each PostgreSQL of this machine whose headers are found.

pg-harness brings compiled modules for Linux, x86-64 and aarch64, with any C library. This is for a PostgreSQL that none of
them fits: `pg-harness doctor` lists them. It takes a C compiler (CC, gcc, clang) and PostgreSQL's server headers, in
Debian postgresql-server-dev-17, else postgresql-devel, or of the folder that `pg_config --includedir-server` prints.
"""

EPILOG = """\
Prints the files that were made. They lie in the cache folder and are used from then on, before those that came with
pg-harness; servers that run already take them with the next run.
"""

PARAMETERS: list[click.Parameter] = [
    click.Option(
        ["--headers"],
        type=FOLDER,
        metavar="DIR",
        multiple=True,
        help="a folder with postgres.h and pg_config.h; more than once: several",
    ),
    click.Option(["--out"], type=FOLDER, metavar="DIR", help="where the files go; default: the cache folder"),
    json_flag(),
]


def run(context: Context) -> int:
    """Print what was made."""
    given = vars(context.arguments)
    headers = _headers(context, [Path(folder) for folder in given.get("headers") or ()])
    out = Path(given["out"]).absolute() if given.get("out") else build.own(context.project.cache)
    made = []
    for each in headers:
        path = build.build(each, out, context.environ)
        logger.info(
            "compiled for PostgreSQL %d on %s, with the headers in %s", each.major, each.machine, each.folder
        )
        made.append({"path": str(path), "major": each.major, "machine": each.machine})
    if not given.get("headers"):
        _say_what_lacks(context, [each.major for each in headers])
    if context.json:
        context.console.json(made)
    else:
        for line in made:
            context.console.answer(str(line["path"]))
    return 0


def _say_what_lacks(context: Context, made: list[int]) -> None:
    """Where the PostgreSQL that runs here is none of those: the headers of another were found, and resets stay as they are."""
    try:
        local = choose(context.environ, folder=context.settings.binaries, version=context.settings.pg_version)
    except BackendUnavailable:
        return
    major = local.major
    modules = fit.everything(module.folders(context.project.cache))
    there = [each.major for each in modules if each.machine == platform.machine()]
    if not fit.OLDEST <= major <= fit.NEWEST or major in (*made, *there):
        return
    logger.warning(
        "PostgreSQL %s in %s has no headers here, and no module: its resets stay row-wise. Install them, for "
        "instance: apt install postgresql-server-dev-%d",
        local.version,
        local.folder,
        major,
    )


def _headers(context: Context, folders: list[Path]) -> list[build.Headers]:
    if folders:
        found = []
        for folder in folders:
            headers = build.Headers.read(folder.absolute())
            if headers is None:
                raise BackendError(
                    f"{folder} holds no headers of a PostgreSQL server: no postgres.h and pg_config.h"
                )
            found.append(headers)
        return found
    places = [place for place in (context.settings.binaries, wheel_folder()) if place is not None]
    everything = build.find_headers(context.environ, places)
    found = [each for each in everything if fit.OLDEST <= each.major <= fit.NEWEST]
    if not found:
        raise BackendUnavailable(
            "no headers of a PostgreSQL server were found",
            checked=[
                "pg_config on PATH and beside the setting `binaries`",
                "the usual folders, for instance /usr/include/postgresql/17/server",
                *(f"{each.folder}: of PostgreSQL {each.major}" for each in everything),
            ],
            remedies=[
                "install them, for instance: apt install postgresql-server-dev-17",
                "or name their folder: --headers DIR",
            ],
        )
    return found
