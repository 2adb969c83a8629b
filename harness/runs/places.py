"""What is on a server, as people name it: leases, kept databases, templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.config.settings import DEFAULT_DATABASE
from harness.databases.lease import with_direct
from harness.databases.replicas import NoReplica, words
from harness.dsn import Dsn
from harness.errors import ConfigError
from harness.postgres import databases, names
from harness.postgres.databases import Database
from harness.postgres.label import Label
from harness.postgres.names import DatabaseName, Kind
from harness.runs.session import ServerSession

AGENT = "agent-"
"""What the words of databases that ``pg-harness mcp`` has made begin with; its session's eight hex digits and a slash follow."""


@dataclass(frozen=True)
class Place:
    """What one word can name: a lease, a kept database, a template.

    Attributes:
        kind: LEASE, KEPT or TEMPLATE.
        words: what names it; the first is the shortest, the last one is never ambiguous.
        what: for people.
        run: sixteen hex digits; empty for templates.
        worker: for instance ``"gw2"``; empty where it belongs to none.
        databases: name in the settings → database.
        session: of the server that it is on.
    """

    kind: Kind
    words: tuple[str, ...]
    what: str
    run: str
    worker: str
    databases: Mapping[str, Database]
    session: ServerSession = field(repr=False)

    @property
    def sandbox(self) -> bool:
        """Whether it was made by ``up``."""
        return self.kind is Kind.LEASE and self.run == names.SANDBOX

    @property
    def fork(self) -> bool:
        """Whether it is a copy that ``fork`` has made of a person's databases; those of ``up`` have numbers."""
        return self.sandbox and not self.worker.isdigit()

    def database(self, name: str) -> Database:
        """One of its databases.

        Raises:
            ConfigError: it has none of that name; the text lists those that it has.
        """
        if name in self.databases:
            return self.databases[name]
        # A kept database stands alone, whatever its name in the settings was.
        if name == DEFAULT_DATABASE and len(self.databases) == 1:
            return next(iter(self.databases.values()))
        raise ConfigError(
            f"{self.words[0]} has no database {name!r}; it has {', '.join(self.databases)}",
            key="database",
            value=name,
        )

    def dsn(self, name: str = DEFAULT_DATABASE, *, admin: bool = False, direct: bool = False) -> Dsn:
        """The address of one of its databases, as the application's role or as the admin.

        Args:
            direct: at the server itself, as the admin's always is, although a pooler is in front.
        """
        database = self.database(name)
        dsn = self.session.link.dsn.with_database(database.name)
        if admin:
            return dsn
        owner, _ = self.session.expected_owner()
        login = owner.named(database.role)
        dsn = dsn.with_user(login.name, login.password)
        return dsn if direct else self.session.through_front(dsn, login)

    def on_standby(self, name: str, *, admin: bool = False) -> Dsn:
        """The same on the first of the server's standbys.

        Raises:
            NoReplica: it has none.
        """
        if on := self.session.on_standbys(self.dsn(name, admin=admin, direct=True)):
            return on[0]
        raise NoReplica

    def dsns(self) -> dict[str, Dsn]:
        """Name in the settings → address as the application's role, ``default`` first."""
        order = sorted(self.databases, key=lambda name: name != DEFAULT_DATABASE)
        return {name: self.dsn(name) for name in order}

    def addresses(self) -> dict[str, Dsn]:
        """:meth:`dsns`, those at the server itself and on standbys, see :attr:`harness.databases.lease.Lease.addresses`."""
        direct = {name: self.dsn(name, direct=True) for name in self.databases}
        on = {name: self.session.on_standbys(dsn) for name, dsn in direct.items()}
        return with_direct(self.dsns(), direct) | words(on)


def places_on(session: ServerSession) -> list[Place]:
    """All that a word can name on one server: a person's leases first, then runs', kept ones, templates."""
    observed = databases.list_ours(session.link.session, session.project.id)
    found = [*_leases(session, observed), *_kept(session, observed), *_templates(session, observed)]
    return sorted(found, key=lambda place: (not place.sandbox, place.kind is not Kind.LEASE))


def _leases(session: ServerSession, observed: Sequence[Database]) -> list[Place]:
    groups: dict[tuple[str, str], dict[str, Database]] = {}
    for found in observed:
        parsed = found.parsed
        if parsed is None or parsed.kind is not Kind.LEASE or parsed.claiming:
            continue
        database = (
            _by_name(session, found, parsed) if found.sandbox and not _own(found.label, parsed) else found
        )
        label = database.label
        # A clone that is being handed over still carries a spare's label.
        if label.kind != "lease":
            continue
        worker = label.worker if label.worker is not None else parsed.worker
        groups.setdefault((parsed.owner, worker), {})[label.name_in_settings] = database
    result = []
    for (run, worker), members in groups.items():
        words: tuple[str, ...]
        if run == names.SANDBOX:
            words = (worker,)
            what = f"yours, worker {worker}" if worker.isdigit() else f"your fork {worker}"
            if worker.startswith(AGENT):
                what = f"an agent's: {worker}"
        else:
            words, what = (worker, f"{run[:8]}:{worker}"), f"worker {worker} of the test run {run[:8]}"
        result.append(Place(Kind.LEASE, (*words, *_full(members)), what, run, worker, members, session))
    return sorted(result, key=lambda place: (place.run, place.fork, _number(place.worker)))


def _own(label: Label, parsed: DatabaseName) -> bool:
    """Whether a label is of the database's own worker: whoever owns a database may write it, and name another's there."""
    return label.kind == "lease" and (label.worker is None or names.plain(label.worker) == parsed.worker)


def _by_name(session: ServerSession, database: Database, parsed: DatabaseName) -> Database:
    """A person's database whose comment, and with it the label, somebody has overwritten: its name says whose it is."""
    known = session.settings.databases
    name = known[parsed.index].name if parsed.index < len(known) else DEFAULT_DATABASE
    label = Label(kind="lease", worker=parsed.worker, database=name, claimed=database.label.claimed)
    return replace(database, label=label)


def _kept(session: ServerSession, observed: Sequence[Database]) -> list[Place]:
    result = []
    for database in observed:
        parsed, label = database.parsed, database.label
        if parsed is None or parsed.kind is not Kind.KEPT:
            continue
        why = label.why if label.why is not None else "unknown"
        members = {label.name_in_settings: database}
        what = f"kept: {why}, {label.created or ''}"
        words = (parsed.tail, database.name)
        result.append(Place(Kind.KEPT, words, what, parsed.owner, label.worker or "", members, session))
    return result


def _templates(session: ServerSession, observed: Sequence[Database]) -> list[Place]:
    finished = [d for d in observed if d.kind is Kind.TEMPLATE and d.label and d.is_template]
    finished.sort(key=lambda d: d.label.used or "", reverse=True)
    result: list[Place] = []
    newest: dict[str, Database] = {}
    for database in finished:
        newest.setdefault(database.label.name_in_settings, database)
    if newest:
        what = "the newest template"
        result.append(Place(Kind.TEMPLATE, ("template",), what, "", "", newest, session))
    for database in finished:
        label = database.label
        name = label.name_in_settings
        what = f"a template: {', '.join(label.sources or ()) or 'empty'}, {label.created or ''}"
        result.append(Place(Kind.TEMPLATE, (database.name,), what, "", "", {name: database}, session))
    return result


def _full(members: Mapping[str, Database]) -> list[str]:
    return [database.name for database in members.values()]


def _number(worker: str) -> tuple[int, str]:
    digits = "".join(character for character in worker if character.isdigit())
    return (int(digits) if digits else -1, worker)
