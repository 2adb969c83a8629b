"""What is there: servers, leases, kept databases, templates. Looks; starts and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from harness.cli.context import Context
from harness.config import project
from harness.config.load import nearest
from harness.config.settings import DEFAULT_DATABASE
from harness.dsn import Dsn
from harness.errors import ConfigError, LeaseError
from harness.postgres import databases, names
from harness.postgres.databases import Database
from harness.postgres.names import Kind
from harness.runs.harness import Harness
from harness.servers import inventory


def nothing(context: Context) -> LeaseError:
    """What to raise where there is nothing to name. With the folder: it may be the wrong one."""
    return LeaseError(f"there is no database of {context.settings.root} yet: `pg-harness up` makes one")


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
        harness: of the server that it is on.
    """

    kind: Kind
    words: tuple[str, ...]
    what: str
    run: str
    worker: str
    databases: Mapping[str, Database]
    harness: Harness = field(repr=False)

    @property
    def persons(self) -> bool:
        """Whether it was made by ``up``."""
        return self.kind is Kind.LEASE and self.run == names.PERSON

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

    def dsn(self, name: str = DEFAULT_DATABASE, *, admin: bool = False) -> Dsn:
        """The address of one of its databases, as the application's role or as the admin."""
        database = self.database(name)
        dsn = self.harness.link.dsn.with_database(database.name)
        if admin:
            return dsn
        owner, _ = self.harness.expected_owner()
        return dsn.with_user(owner.name, owner.password)

    def dsns(self) -> dict[str, Dsn]:
        """Name in the settings → address as the application's role, ``default`` first."""
        order = sorted(self.databases, key=lambda name: name != DEFAULT_DATABASE)
        return {name: self.dsn(name) for name in order}


@contextmanager
def harnesses(context: Context, *, purposes: Sequence[str] = ()) -> Iterator[list[Harness]]:
    """One harness for each server of this checkout that answers; no template is looked for.

    Args:
        purposes: which of them; empty for all.
    """
    with ExitStack() as stack:
        found: list[Harness] = []
        for purpose in purposes or all_purposes(context):
            harness = open_one(context, purpose)
            if harness is not None:
                stack.callback(harness.close)
                found.append(harness)
        yield found


def open_one(context: Context, purpose: str) -> Harness | None:
    """The harness of a running server; None where none runs."""
    found = inventory.find(context.settings, context.environ, purpose=purpose)
    if found is None:
        return None
    # PERSON: closing it releases nothing, and it shows no sign of life of its own.
    return Harness(
        context.settings, found, run=names.PERSON, environ=context.environ, story=context.console.story
    )


def all_purposes(context: Context) -> list[str]:
    """``up``, ``run``, and those of servers for one worker each. An external server has one for all."""
    if context.settings.server_url is not None:
        return ["up"]
    folder = project.state_dir(context.environ) / project.project_id(context.settings.root)
    hinted = sorted(path.stem for path in folder.glob("run-*.json")) if folder.is_dir() else []
    return ["up", "run", *hinted]


def places(harness: Harness) -> list[Place]:
    """All that a word can name on one server: a person's leases first, then runs', kept ones, templates."""
    observed = databases.list_ours(harness.link.session, harness.project)
    found = [*_leases(harness, observed), *_kept(harness, observed), *_templates(harness, observed)]
    return sorted(found, key=lambda place: (not place.persons, place.kind is not Kind.LEASE))


def _leases(harness: Harness, observed: Sequence[Database]) -> list[Place]:
    groups: dict[tuple[str, str], dict[str, Database]] = {}
    for database in observed:
        parsed, mark = database.parsed, database.mark or {}
        # A clone that is being handed over still carries a spare's mark.
        if parsed is None or parsed.kind is not Kind.LEASE or mark.get("kind") != "lease":
            continue
        if parsed.tail.endswith("_n"):
            continue
        worker = str(mark.get("worker", parsed.tail.rpartition("_")[0]))
        groups.setdefault((parsed.owner, worker), {})[str(mark.get("database", DEFAULT_DATABASE))] = database
    result = []
    for (run, worker), members in groups.items():
        words: tuple[str, ...]
        if run == names.PERSON:
            words, what = (worker,), f"yours, worker {worker}"
        else:
            words, what = (worker, f"{run[:8]}:{worker}"), f"worker {worker} of the test run {run[:8]}"
        result.append(Place(Kind.LEASE, (*words, *_full(members)), what, run, worker, members, harness))
    return sorted(result, key=lambda place: (place.run, _number(place.worker)))


def _kept(harness: Harness, observed: Sequence[Database]) -> list[Place]:
    result = []
    for database in observed:
        parsed, mark = database.parsed, database.mark or {}
        if parsed is None or parsed.kind is not Kind.KEPT:
            continue
        what = f"kept: {mark.get('why', 'unknown')}, {mark.get('created', '')}"
        members = {str(mark.get("database", DEFAULT_DATABASE)): database}
        worker = str(mark.get("worker", ""))
        words = (parsed.tail, database.name)
        result.append(Place(Kind.KEPT, words, what, parsed.owner, worker, members, harness))
    return result


def _templates(harness: Harness, observed: Sequence[Database]) -> list[Place]:
    marked = [d for d in observed if d.parsed and d.parsed.kind is Kind.TEMPLATE and d.mark and d.is_template]
    marked.sort(key=lambda d: str((d.mark or {}).get("used", "")), reverse=True)
    result: list[Place] = []
    newest: dict[str, Database] = {}
    for database in marked:
        newest.setdefault(str((database.mark or {}).get("database", DEFAULT_DATABASE)), database)
    if newest:
        what = "the newest template"
        result.append(Place(Kind.TEMPLATE, ("template",), what, "", "", newest, harness))
    for database in marked:
        mark = database.mark or {}
        name = str(mark.get("database", DEFAULT_DATABASE))
        what = f"a template: {', '.join(mark.get('sources', ())) or 'empty'}, {mark.get('created', '')}"
        result.append(Place(Kind.TEMPLATE, (database.name,), what, "", "", {name: database}, harness))
    return result


def _full(members: Mapping[str, Database]) -> list[str]:
    return [database.name for database in members.values()]


def _number(worker: str) -> tuple[int, str]:
    digits = "".join(character for character in worker if character.isdigit())
    return (int(digits) if digits else -1, worker)


@contextmanager
def resolved(context: Context, word: str) -> Iterator[Place]:
    """What the word names, on whichever server of this checkout it is.

    Raises:
        LeaseError: there is nothing to name.
        ConfigError: nothing has that name, or several have; the text lists the choices.
    """
    with ExitStack() as stack:
        known: list[Place] = []
        for purpose in all_purposes(context):
            harness = open_one(context, purpose)
            if harness is None:
                continue
            stack.callback(harness.close)
            known += places(harness)
            # Yours come first: then the other servers need not be asked for at all.
            found = [place for place in known if word in place.words]
            if found and found[0].persons:
                yield found[0]
                return
        if not known:
            raise nothing(context)
        yield choose(word, known)


def choose(word: str, known: Sequence[Place]) -> Place:
    """The one place that the word names; see :func:`resolved`."""
    found = [place for place in known if word in place.words]
    mine = [place for place in found if place.persons]
    if mine:
        return mine[0]
    # Two servers may both have a template: yours was asked first.
    if len(found) == 1 or (found and word == "template"):
        return found[0]
    if found:
        raise ConfigError(
            f"{word!r} names {len(found)} databases; say which:\n{choices(found, exact=True)}",
            key="worker",
            value=word,
        )
    near = nearest(word, [w for place in known for w in place.words[:2]]) if len(word) > 1 else ""
    hint = near if near.startswith("; did you mean") else ""
    raise ConfigError(
        f"there is no database {word!r}{hint}. There are:\n{choices(known)}", key="worker", value=word
    )


def choices(known: Sequence[Place], *, exact: bool = False) -> str:
    """One line for each place, for messages."""
    lines = []
    for place in known:
        word = place.words[min(1, len(place.words) - 1)] if exact else place.words[0]
        lines.append(f"  {word:<10} {place.what}")
    return "\n".join(lines)


def refuse_template(place: Place, verb: str) -> None:
    """Templates take no connections.

    Raises:
        LeaseError: the place is a template.
    """
    if place.kind is Kind.TEMPLATE:
        raise LeaseError(
            f"a template takes no connections: any session in it would stall every clone. "
            f"`pg-harness psql template` opens a copy of it that is dropped afterwards; {verb} a worker instead"
        )
