"""``run``: a command with databases of its own."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import click

from harness.cli.context import Context, working_directory
from harness.cli.options import NUMBER, flag
from harness.cli.parser import Usage
from harness.cli.run.child import NotStarted, call
from harness.cli.run.copies import run_copies
from harness.cli.run.elsewhere import led_elsewhere
from harness.cli.run.reaper import Reaper
from harness.cli.run.watch import not_isolated
from harness.config import environment
from harness.config.project import Project
from harness.config.versions import VARIABLE
from harness.control.serving import Serving
from harness.databases import freshness
from harness.databases.lease import Lease
from harness.errors import HarnessError
from harness.runs import budget, refused
from harness.runs.run import Run

logger = logging.getLogger("pg_harness.cli")

USAGE = "[-n N | --copies N] [--each-version] [options] -- COMMAND [ARGUMENT …]"

DESCRIPTION = """\
Run a command with migrated databases of its own, and drop them when it ends.

  pg-harness run -- pytest                    one database: DATABASE_URL, PGHOST, PGPORT, PGUSER, …
  pg-harness run -n 4 -- npx vitest run       four: DATABASE_URL (the first) and DATABASE_URL_1 … DATABASE_URL_4
  pg-harness run --copies 4 -- ./shard.sh     the command four times side by side, each with its own DATABASE_URL
  pg-harness run --each-version -- pytest     once for each version in pg_version, one after another (docs/versions.md)
"""

EPILOG = """\
Variables of libpq that would bend these addresses (PGHOSTADDR, PGSERVICE, PGOPTIONS, PGSSLMODE, …) are removed.

  PGHARNESS_WORKERS   how many databases the command has (-n)
  PGHARNESS_CONTROL_URL, PGHARNESS_CONTROL_TOKEN
                      resets and leases over HTTP for any language (docs/control.md); `pg-harness reset 2`, `mark`,
                      `url`, `env` and `psql` inside the command mean this run's databases
  PGHARNESS_COPY      with --copies: which copy this is, from 1
  PGHARNESS_COPIES    with --copies: how many there are
  PGHARNESS_SHARD, PGHARNESS_SHARDS
                      with --copies or --shards: which part of the suite is this command's, from 1, and of how many:
                      npx vitest run --shard=$PGHARNESS_SHARD/$PGHARNESS_SHARDS
  PGHARNESS_PG_VERSION
                      with --each-version or --pg-version: the version that the command is run on
  NAME, NAME_1 …      your own variables of [tool.pg-harness.env], and PGHOST … PGDATABASE, one for each worker with -n

Signals are passed on; what the command leaves behind is ended before its databases are dropped (Linux), unless it was
started with an empty PGHARNESS_RUN. The exit code is the command's own, 128 + n where signal n ended it, 127 where it
does not exist, 126 where it cannot be run; with --copies the worst of them all, with --each-version the first that is not 0.
"""

_OF_AN_OUTER_RUN = re.compile(r"PGHARNESS_(WORKERS|COPY|COPIES|SHARDS?|RUN|LEASE|CONTROL_URL|CONTROL_TOKEN)")


TAKES_COMMAND = True


class Shards(click.ParamType[tuple[int, int]]):
    """``2/4``: the second of four machines."""

    name = "shards"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read it.

        Raises:
            click.BadParameter: it is no such pair.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", str(value))
        if found is None or int(found[1]) > int(found[2]):
            self.fail(f"{value!r} is not K/N with K from 1 to N, for instance 2/4", param, ctx)
        return int(found[1]), int(found[2])


PARAMETERS: list[click.Parameter] = [
    click.Option(["-n", "workers"], type=NUMBER, metavar="N", help="how many databases; default: 1"),
    click.Option(
        ["--copies"], type=NUMBER, metavar="N", help="run N copies, each with a database of its own"
    ),
    click.Option(
        ["--shards"],
        type=Shards(),
        metavar="K/N",
        help="this is machine K of N: with --copies, each copy is one of N × COPIES shards",
    ),
    flag("--rebuild", help="run the migrations again although nothing changed"),
    flag("--each-version", help="run it once for each version in pg_version, one after another"),
]


def run(context: Context) -> int:
    """Run the command; return its exit code."""
    given = vars(context.arguments)
    if "workers" in given and "copies" in given:
        raise Usage("-n gives one command several databases, --copies runs it several times: use one of them")
    if not context.command:
        raise Usage("what shall be run? Write it after --, for instance: pg-harness run -- pytest")
    # Before a server is started for nothing.
    code = _cannot_run(context, context.command)
    if code:
        return code
    if given.get("each_version"):
        # Here: the usual run is of one version.
        from harness.cli.run.each_version import run_each

        return run_each(context, run_one)
    return run_one(context, context.project, _chosen(context), [])


def _chosen(context: Context) -> str:
    """The version that a command inside must take too, where it could not know of it: the option is not passed on."""
    return (context.settings.pg_version or "") if "pg_version" in vars(context.arguments) else ""


def run_one(context: Context, project: Project, version: str, heard: list[int]) -> int:
    """Run the command in one project; return its exit code.

    Args:
        version: what the command is told that it runs on; empty: nothing.
        heard: is given each signal by which somebody wants us to end, while the command runs.

    Raises:
        HarnessError: it was not run.
    """
    # Before the databases, which take as long as it takes to be there.
    with Reaper.beside() as reaper:
        return _run(context, project, {VARIABLE: version} if version else {}, reaper, heard)


def _run(
    context: Context,
    project: Project,
    told: Mapping[str, str],
    reaper: Reaper | None,
    heard: list[int],
) -> int:
    given = vars(context.arguments)
    command = context.command or ()
    copies: int | None = given.get("copies")
    workers: int = copies or given.get("workers") or 1
    harness = Run.open_project(
        project,
        workers=workers,
        rebuild=bool(given.get("rebuild")),
        progress=context.console.progress,
    )
    try:
        fits(harness, workers)
        _say_how_resets_are_made(harness)
        leases = harness.leases(workers, watch=None, apart=True)
        with Serving(harness, leases, each=copies is not None) as serving:
            if copies:
                values = [
                    _of_copy(serving, copy, copies) | _shard(given, copy, copies) | dict(told)
                    for copy in range(1, copies + 1)
                ]
                result = run_copies(context, command, [_child(context, v) for v in values], reaper, heard)
            else:
                environ = _child(context, {**serving.environment(), **_shard(given), **told})
                result = _run_one(context, harness, leases, environ, command, reaper, heard)
        _tell_what_was_refused(context, harness, "copy" if copies else "worker")
    except NotStarted as error:
        # It was found before, by the PATH of ours: `env` in the settings may give it another one.
        context.console.error(error.message)
        result = error.exit_code
    except BaseException:
        close(context, harness)
        raise
    close(context, harness)
    return result


def fits(harness: Run, workers: int) -> None:
    """Before anything is leased: else the last worker would fail with the server's own words, in mid-run."""
    # With a server each, nobody takes another's connections.
    if harness.shared is not None:
        budget.check(harness.shared, workers, controller=False)


def _say_how_resets_are_made(harness: Run) -> None:
    if freshness.of(harness.settings).watches and (told := harness.reset_told):
        logger.debug("reset: %s", told)


def _tell_what_was_refused(context: Context, harness: Run, noun: str) -> None:
    try:
        found = harness.refused()
    except HarnessError:
        # The server went away: the command itself will have said so.
        return
    for line in refused.told(found, harness.settings, noun=noun):
        context.console.warn(line)


def close(context: Context, harness: Run) -> None:
    """Release all of a run's; what cannot be released now is swept later, and must not hide the command's own exit code."""
    try:
        harness.sweep()
        harness.close()
    except HarnessError as error:
        context.console.warn(
            f"not everything could be released, the next run or `pg-harness gc` will: {error.full_text}"
        )


def _run_one(
    context: Context,
    harness: Run,
    leases: Sequence[Lease],
    environ: Mapping[str, str],
    command: Sequence[str],
    reaper: Reaper | None,
    heard: list[int],
) -> int:
    code = call(command, environ, reaper, heard)
    # With a server each there is nobody's first database to be in.
    if len(leases) > 1 and harness.shared is not None:
        names = [lease.dsn.database for lease in leases]
        for line in not_isolated(harness.shared.link.session, names, command, working_directory()):
            context.console.warn(line)
    databases = [dsn.database for lease in leases for dsn in lease.dsns.values()]
    variables = list(harness.variables(leases[0]))
    for line in led_elsewhere(harness, databases, variables, command, code, workers=len(leases)):
        context.console.warn(line)
    return code


def _of_copy(serving: Serving, copy: int, copies: int) -> dict[str, str]:
    """A copy looks like a run with one database: it must not find the others' by accident."""
    return {
        **serving.environment(copy),
        "PGHARNESS_COPY": str(copy),
        "PGHARNESS_COPIES": str(copies),
    }


def _shard(given: Mapping[str, Any], copy: int = 1, copies: int = 1) -> dict[str, str]:
    """Which part of the suite is a command's, over all machines and copies; nothing where it is the whole."""
    machine, machines = given.get("shards") or (1, 1)
    if machines * copies == 1 and "shards" not in given:
        return {}
    return {
        "PGHARNESS_SHARD": str((machine - 1) * copies + copy),
        "PGHARNESS_SHARDS": str(machines * copies),
    }


def _child(context: Context, values: Mapping[str, str]) -> dict[str, str]:
    # It may have had more workers.
    numbered = {name.removesuffix("_1") for name in values if name.endswith("_1")} & values.keys()
    outer = [
        name
        for name in context.environ
        if _OF_AN_OUTER_RUN.fullmatch(name) or re.sub(r"_\d+$", "", name) in numbered - {name}
    ]
    return environment.child_environment(context.environ, values, drop=outer)


def _cannot_run(context: Context, command: Sequence[str]) -> int:
    """127 or 126 and a line, as a shell has it; 0 where it can be run."""
    name = command[0]
    path = context.environ.get("PATH", os.defpath)
    if shutil.which(name, path=path) is not None:
        return 0
    if os.path.exists(name) and os.sep in name:
        reason = "it is a folder" if os.path.isdir(name) else "it is not executable"
        context.console.error(f"{name} cannot be run: {reason}")
        return 126
    hint = " (a shell's own words need a shell: sh -c '…')" if " " in name else ""
    context.console.error(f"the command {name!r} was not found{hint}")
    return 127
