"""Inside a run: a command that ``run`` or a test has started. Its words name that run's databases, and never anything else.

Whatever cannot be done there is an error: the databases of ``up`` hold a developer's data, and a test run's are thrown away.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from harness.cli.console import Console
from harness.cli.context import Context
from harness.cli.parser import Usage
from harness.config.run_variables import LEASE, RUN
from harness.control.client import ControlClient, numbers
from harness.databases.replicas import NoReplica
from harness.dsn import Dsn
from harness.errors import ConfigError, LeaseError

logger = logging.getLogger("pg_harness.cli")


def run_of(context: Context) -> str:
    """The run that this command belongs to; empty where it belongs to none."""
    return context.environ.get(RUN, "")


def client_of(context: Context) -> ControlClient | None:
    """The control interface of that run; None where this command belongs to none, or to one that serves none.

    Raises:
        ConfigError: the variables that lead there are not right.
    """
    return ControlClient.of(context.environ)


def number(client: ControlClient, word: str | None) -> int:
    """The lease that a word names inside the run.

    Raises:
        ConfigError: a lease of a run has a number.
    """
    if word is None:
        return client.lease or 1
    plain = word.removeprefix(f"{client.run[:8]}:") if client.run else word
    if not re.fullmatch(r"[1-9][0-9]{0,8}", plain):
        raise ConfigError(
            f"there is no database {word!r} in the run {client.run[:8]}, which this command belongs to: there they have "
            "numbers, as in DATABASE_URL_1. Outside of the run other words name other databases",
            key="worker",
            value=word,
        )
    return int(plain)


def what(client: ControlClient, found: int) -> str:
    """A lease, for people."""
    return f"worker {found} of the run {client.run[:8]}"


def dsn(client: ControlClient, found: int, database: str, *, replica: bool = False) -> Dsn:
    """The address of one database of a lease.

    Args:
        replica: on the first standby of its server.

    Raises:
        ConfigError: it has none of that name; or the server has no standby.
    """
    told = client.environment(found)
    urls = told["urls"]
    if replica:
        urls = {name: on[0] for name, on in told["replicas"].items() if on}
        if not urls:
            raise NoReplica
    if database not in urls:
        raise ConfigError(
            f"{what(client, found)} has no database {database!r}; it has {', '.join(urls)}",
            key="database",
            value=database,
        )
    return Dsn.parse(urls[database], origin="the control interface")


def variables(client: ControlClient, word: str | None) -> dict[str, str]:
    """The environment of one lease; where none is named, of the first, and of all with their numbers."""
    first: dict[str, str] = client.environment(number(client, word))["env"]
    if word is not None or client.lease is not None:
        return first
    values = dict(first)
    del values[LEASE]
    all_of_them = numbers(client.status())
    for each in all_of_them:
        for name, value in client.environment(each)["env"].items():
            if name != LEASE:
                values[f"{name}_{each}"] = value
    return {**values, "PGHARNESS_WORKERS": str(len(all_of_them))}


# --- reset ---------------------------------------------------------------------------------------------


def reset(
    context: Context,
    client: ControlClient,
    word: str | None,
    to: str | None,
    *,
    everything: bool,
    dry_run: bool,
) -> int:
    """Reset leases of the run, or tell what changed in them."""
    chosen = numbers(client.status()) if everything else [number(client, word)]
    if dry_run:
        if to is not None:
            raise Usage("inside a run, --dry-run tells what changed since the top mark: leave --to out")
        return _tell(context, client, chosen)
    reports = []
    for found in chosen:
        report = {"worker": str(found), "what": what(client, found), **client.reset(found, to)}
        reports.append(report)
        _say(context.console, report)
    if context.json:
        context.console.json(reports)
    return 0


def _say(console: Console, report: dict[str, Any]) -> None:
    for session in report["ended"]:
        console.warn(f"ended: {session}")
    did = {
        "nothing": "nothing had changed",
        "clone": f"a fresh clone ({report['reason']})" if report["reason"] else "a fresh clone",
    }.get(report["strategy"], f"{', '.join(report['tables']) or 'nothing'} put back, sessions kept")
    logger.info("%s: %s in %.0f ms", report["what"], did, report["milliseconds"])


def _tell(context: Context, client: ControlClient, chosen: Sequence[int]) -> int:
    told = []
    for found in chosen:
        changes = client.changes(found)["databases"]
        several = len(chosen) > 1 or len(changes) > 1
        told.append({"worker": str(found), "what": what(client, found), "databases": changes})
        if not any(changes.values()):
            logger.info("%s: nothing changed", what(client, found))
        elif not context.json:
            for name, lines in changes.items():
                for line in lines:
                    context.console.answer(f"{found} {name}: {line}" if several else line)
    if context.json:
        context.console.json(told)
    return 0


# --- mark ----------------------------------------------------------------------------------------------


def mark(context: Context, client: ControlClient, given: dict[str, Any]) -> int:
    """Set, list or release marks of a lease, as the verb ``mark`` does with one's own."""
    word: str | None = given.get("worker")
    found = number(client, word)
    if "listed" in given:
        return _list(context, client, word)
    if given.keys() & {"release", "release_all"}:
        return _release(context, client, found, given)
    name = client.mark(found, given.get("name"))
    logger.info("%s: marked as %r; `pg-harness reset` comes back to here", what(client, found), name)
    if context.json:
        context.console.json({"worker": str(found), "name": name})
    return 0


def _marks(client: ControlClient, found: int) -> list[str]:
    return next((list(one["marks"]) for one in client.status()["leases"] if one["id"] == found), [])


def _list(context: Context, client: ControlClient, word: str | None) -> int:
    chosen = [number(client, word)] if word is not None else numbers(client.status())
    told = [{"worker": str(one), "name": name} for one in chosen for name in _marks(client, one)]
    if context.json:
        context.console.json(told)
        return 0
    for one in told:
        context.console.answer(f"{one['worker']}  {one['name']}")
    if not told:
        logger.info("nothing is marked")
    return 0


def _release(context: Context, client: ControlClient, found: int, given: dict[str, Any]) -> int:
    there = _marks(client, found)
    if not there:
        raise LeaseError(f"{what(client, found)} has no mark")
    wanted = there[0] if "release_all" in given else given["release"] or there[-1]
    if wanted not in there:
        raise ConfigError(
            f"{what(client, found)} has no mark {wanted!r}; it has {', '.join(there)}",
            key="mark",
            value=wanted,
        )
    gone = there[there.index(wanted) :]
    if not given.get("dry_run"):
        client.unmark(found, wanted)
    did = "would release" if given.get("dry_run") else "released"
    logger.info("%s: %s %s", what(client, found), did, ", ".join(map(repr, gone)))
    if context.json:
        context.console.json([{"worker": str(found), "name": name} for name in gone])
    return 0
