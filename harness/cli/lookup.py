"""What is there: servers, leases, kept databases, templates. Looks; starts and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from harness.cli.context import Context
from harness.config.load import nearest
from harness.config.run_variables import RUN
from harness.errors import ConfigError, LeaseError
from harness.postgres.names import Kind
from harness.runs.places import Place, places_on
from harness.runs.session import ServerSession
from harness.servers import inventory
from harness.servers.port import OF_AGENTS


def nothing(context: Context) -> LeaseError:
    """What to raise where there is nothing to name. With the folder: it may be the wrong one.

    Raises:
        BackendUnavailable: what may hold something could not be asked.
    """
    context.check_asked()
    if context.settings.server_url is None and any(
        info.purpose == "up" for info in inventory.servers(context.project, asked=context.asked)
    ):
        return LeaseError(
            f"your server of {context.settings.root} does not run: `pg-harness up` starts it, with your databases as they were"
        )
    return LeaseError(f"there is no database of {context.settings.root} yet: `pg-harness up` makes one")


@contextmanager
def servers(
    context: Context, *, purposes: Sequence[str] = (), guard: bool = True
) -> Iterator[list[ServerSession]]:
    """A session on each server of this checkout that answers; no template is looked for.

    Args:
        purposes: which of them; empty for all.
        guard: as in :func:`harness.servers.inventory.find`.
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(found)
            for purpose in purposes or all_purposes(context)
            if (found := open_one(context, purpose, guard=guard)) is not None
        ]


def open_one(context: Context, purpose: str, *, guard: bool = True) -> ServerSession | None:
    """A session on a running server; None where none runs."""
    found = inventory.find(context.project, purpose=purpose, guard=guard, asked=lambda: context.asked)
    return ServerSession(context.project, found) if found is not None else None


def all_purposes(context: Context) -> list[str]:
    """``up``, ``run``, and those of servers for one worker each, and for agents. An external server has one for all."""
    if context.settings.server_url is not None:
        return ["up"]
    folder = context.project.folder
    # A worker's own, those of several Docker hosts, and agents'.
    patterns = ("run[-.]*.json", f"{OF_AGENTS}*.json") if folder.is_dir() else ()
    hinted = [path.stem for pattern in patterns for path in sorted(folder.glob(pattern))]
    return ["up", "run", *hinted]


@contextmanager
def resolved(context: Context, word: str | None) -> Iterator[Place]:
    """What the word names, on whichever server of this checkout it is; without a word, the first.

    Inside a run it is that run's, or a template; never another's.

    Raises:
        LeaseError: there is nothing to name.
        ConfigError: nothing has that name, or several have; the text lists the choices.
    """
    word = word or "1"
    run = context.environ.get(RUN, "")
    with ExitStack() as stack:
        known: list[Place] = []
        for purpose in all_purposes(context):
            server = open_one(context, purpose)
            if server is None:
                continue
            stack.enter_context(server)
            known += [
                place
                for place in places_on(server)
                if not run or place.run == run or place.kind is Kind.TEMPLATE
            ]
            # Yours come first: then the other servers need not be asked for at all.
            found = [place for place in known if word in place.words]
            if found and found[0].sandbox:
                yield found[0]
                return
        if run and not any(place.run == run for place in known):
            raise LeaseError(
                f"this command belongs to the run {run[:8]} ({RUN}), which has no database of {context.settings.root}: "
                "it is over, or of another project. No others are taken in their stead"
            )
        if not known:
            raise nothing(context)
        yield choose(word, known)


def choose(word: str, known: Sequence[Place]) -> Place:
    """The one place that the word names; see :func:`resolved`."""
    found = [place for place in known if word in place.words]
    mine = [place for place in found if place.sandbox]
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
