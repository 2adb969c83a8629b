"""``status``: servers, templates, workers, connections by state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from harness.cli import lookup, monitor
from harness.cli.context import Context
from harness.cli.options import json_flag, seconds
from harness.databases import sweep
from harness.errors import HarnessError
from harness.postgres import activity, databases, names
from harness.postgres.names import Kind
from harness.postgres.session import Session
from harness.runs import rewinding
from harness.runs.places import Place, places_on
from harness.runs.session import ServerSession
from harness.sandbox import marks as saved_marks
from harness.servers import registry
from harness.servers.port import OF_VERSION, HostState, of_agents, table

DESCRIPTION = """\
Where the project's root and settings are, which servers of it run, and what is on them. Starts nothing.
"""


PARAMETERS: list[click.Parameter] = [
    click.Option(
        ["--watch"],
        is_flag=False,
        flag_value="1s",
        type=seconds,
        metavar="[TIME]",
        help="connections by worker and state, again and again (every second), until Ctrl-C; with --json a line each",
    ),
    json_flag(),
]


def run(context: Context) -> int:
    """Print it."""
    settings = context.settings
    if (interval := getattr(context.arguments, "watch", None)) is not None:
        return monitor.watch(context, interval)
    with lookup.servers(context) as found:
        report: dict[str, Any] = {
            "root": str(settings.root),
            "root_origin": settings.root_origin,
            "settings": str(settings.file) if settings.file else None,
            "origins": dict(settings.origins),
            "baked_repository": settings.baked_repository,
            "servers": [_server(server) for server in found],
            "hosts": _hosts(context),
        }
    if context.json:
        context.console.json(report)
    else:
        for line in _lines(report):
            context.console.answer(line)
    context.check_asked(warn=bool(report["servers"]))
    return 0


def _hosts(context: Context) -> list[dict[str, Any]]:
    """The Docker hosts of the settings, each asked now; none where they name none."""
    if not context.settings.hosts or registry.wanted(context.settings) != "docker":
        return []
    return [asdict(host) for host in registry.choose(context.project).hosts()]


def _server(server: ServerSession) -> dict[str, Any]:
    session, info = server.link.session, server.server.info
    everything = places_on(server)
    states = _connections(server)
    today = _today(server)
    runs = {place.run for place in everything if place.kind is Kind.LEASE} - {names.SANDBOX}
    alive = sweep.alive_runs(session, sorted(runs))
    observed = databases.list_ours(session, server.project.id)
    kinds = Counter(d.kind for d in observed)
    return {
        "purpose": info.purpose,
        "backend": info.backend,
        "description": info.description,
        "storage": info.storage,
        "bytes": _bytes(session) if info.ours else None,
        "ttl": info.ttl,
        "host": info.host or None,
        "address": info.dsn.masked,
        "standbys": _standbys(server),
        "version": ".".join(map(str, divmod(session.server_version, 10000))),
        "connections": dict(sum((Counter(s) for s in states.values()), Counter())),
        "reset": rewinding.told(rewinding.known(server.project, server.server, session)),
        "max_connections": int(session.value("select current_setting('max_connections')")),
        "templates": [
            _template(place, today)
            for place in everything
            if place.kind is Kind.TEMPLATE and place.words[0] != "template"
        ],
        "workers": [
            {
                "worker": place.worker,
                "run": None if place.sandbox else place.run,
                "alive": place.sandbox or place.run in alive,
                "what": place.what,
                "fork": place.fork,
                "databases": {name: database.name for name, database in place.databases.items()},
                "current": _is_current(place, today),
                "marks": [m.name for m in saved_marks.stack(session, server.project.id, place.databases)]
                if place.sandbox
                else [],
                "connections": dict(
                    sum((Counter(states.get(d.name, {})) for d in place.databases.values()), Counter())
                ),
            }
            for place in everything
            if place.kind is Kind.LEASE
        ],
        "kept": [
            {"word": place.words[0], "database": place.words[-1], "what": place.what}
            for place in everything
            if place.kind is Kind.KEPT
        ],
        "spares": kinds[Kind.SPARE],
        "left_over": kinds[Kind.RETIRED] + kinds[Kind.BUILDING],
    }


def _standbys(server: ServerSession) -> list[str]:
    if not server.server.info.standbys:
        return []
    from harness.servers.replica.standbys import Standbys

    return Standbys.told(server.project, server.server)


def _template(place: Place, today: Mapping[str, str]) -> dict[str, Any]:
    ((name, database),) = place.databases.items()
    label = database.label
    return {
        "name": database.name,
        "database": name,
        "sources": list(label.sources or ()),
        "bytes": label.size,
        "created": label.created,
        "used": label.used,
        "seconds": label.seconds,
        "current": _is_current(place, today),
    }


def _is_current(place: Place, today: Mapping[str, str]) -> bool | None:
    """Whether it was made from today's migrations; None where they cannot be read."""
    if not today:
        return None
    return all(d.label.fingerprint == today.get(name) for name, d in place.databases.items())


def _today(server: ServerSession) -> dict[str, str]:
    try:
        return server.fingerprints()
    except HarnessError:
        return {}


def _connections(server: ServerSession) -> dict[str, dict[str, int]]:
    """Database → state → how many sessions of clients."""
    found = activity.connections(server.link.session)
    return {name: one.states for name, one in found.items() if one.states}


def _lines(report: Mapping[str, Any]) -> list[str]:
    where = report["settings"] or "none"
    lines = [f"root      {report['root']} ({report['root_origin']})", f"settings  {where}"]
    if report["baked_repository"]:
        lines.append(f"baked in  {report['baked_repository']} (`pg-harness doctor` asks it)")
    lines += [f"host      {line}" for line in table([HostState(**host) for host in report["hosts"]])]
    if not report["servers"]:
        return [*lines, "servers   none runs: `pg-harness up` starts yours, a test run its own"]
    for server in report["servers"]:
        lines += _server_lines(server)
    return lines


def _server_lines(server: Mapping[str, Any]) -> list[str]:
    # One of several versions that stand side by side: its own line says which.
    of_runs = server["purpose"] == "run" or server["purpose"].startswith(OF_VERSION)
    if of_runs:
        whose = "the test runs'"
    elif of_agents(server["purpose"]):
        whose = "agents'"
    else:
        whose = {"up": "yours"}.get(server["purpose"], server["purpose"])
    ttl = f", ends itself after {server['ttl']:g} s without use" if server["ttl"] is not None else ""
    used = sum(server["connections"].values())
    lines = [
        "",
        f"server    {whose}: {server['description']}, data {_storage(server['storage'], server['bytes'])}{ttl}",
        f"          PostgreSQL {server['version']}, {server['address']}, {used} of {server['max_connections']} connections{_states(server['connections'])}",
    ]
    lines += [f"          {line}" for line in server["standbys"]]
    lines.append(f"reset     {server['reset']}")
    for item in server["templates"]:
        age = {True: "current", False: "of other migrations", None: "migrations cannot be read"}[
            item["current"]
        ]
        size = f", {item['bytes'] / 1024**2:.0f} MB" if item["bytes"] else ""
        lines.append(f"template  {item['name']}  {', '.join(item['sources']) or 'empty'}{size}, {age}")
    for item in server["workers"]:
        pending = (
            ", migrations are pending (`pg-harness migrate`)"
            if item["run"] is None
            else ", of other migrations"
        )
        stale = pending if item["current"] is False else ""
        dead = "" if item["alive"] else ", its run is dead"
        marks = f", marked: {', '.join(item['marks'])}" if item["marks"] else ""
        lines.append(
            f"{'fork' if item['fork'] else 'worker':<9} {item['worker']:<8} {item['what']}: {', '.join(item['databases'].values())}"
            f"{stale}{dead}{marks}{_states(item['connections'])}"
        )
    lines += [f"kept      {item['word']:<8} {item['what']}: {item['database']}" for item in server["kept"]]
    if server["spares"]:
        lines.append(f"spares    {server['spares']}")
    if server["left_over"]:
        lines.append(f"left over {server['left_over']} (`pg-harness gc` drops them when they are old enough)")
    return lines


def _storage(storage: str, size: int | None) -> str:
    where = {"memory": "in memory", "disk": "on disk"}.get(storage, storage)
    return where if size is None else f"{where} ({size >> 20} MB)"


def _bytes(session: Session) -> int:
    """What the server's data takes, its log included: in memory it is nobody else's."""
    return int(
        session.value(
            "select (select coalesce(sum(pg_database_size(oid)), 0) from pg_database)"
            " + (select coalesce(sum(size), 0) from pg_ls_waldir())"
        )
    )


def _states(states: Mapping[str, int]) -> str:
    told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return f" ({told})" if told else ""
