"""The databases of one agent's session: made, found by their words, ended with it."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from harness.config.project import Project
from harness.databases import sweep
from harness.errors import ConfigError, HarnessError, LeaseError
from harness.mcp.allowed import CHANGE, EXTERNAL, READ
from harness.migrations.port import Progress, unseen
from harness.postgres import databases, incarnation, locks, names
from harness.postgres.liveness import SignOfLife
from harness.runs import rewinding
from harness.runs.bake import baked_base
from harness.runs.places import AGENT, Place
from harness.runs.session import ServerSession
from harness.sandbox import guests
from harness.sandbox.sandbox import Sandbox
from harness.servers import acquire, inventory
from harness.servers.port import OF_AGENTS, of_agents

if TYPE_CHECKING:
    from harness.servers.port import ServerInfo

logger = logging.getLogger("pg_harness.mcp")

MOST = 16
"""How many databases one session may have: each is a copy of all data."""

CONNECTIONS = 10
"""How many connections each may have, where the settings say nothing: an agent's program is one, not a suite."""

LIFE = "agent"
"""The kind of the lock that a session holds on a server for as long as it lives."""

_LIVES = "pg-harness mcp "
"""What ``pg_stat_activity`` shows for the sessions that hold it; the agent's session follows."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_WORD = re.compile(r"agent-([0-9a-f]{8})/(.+)")


class AgentDatabases:
    """What one session may reach. Safe for several threads: they take turns.

    Attributes:
        session: eight hex digits, which the words of own databases begin with.
    """

    def __init__(self, project: Project, allow: frozenset[str]) -> None:
        """
        Args:
            allow: words of :mod:`harness.mcp.allowed`.

        Raises:
            ConfigError: the settings name somebody else's server, and that is not allowed.
        """
        settings = project.settings
        self.external = settings.server_url is not None or settings.backend == "external"
        if self.external and EXTERNAL not in allow:
            raise ConfigError(
                f"the settings name a server that somebody else runs (server_url, {settings.origin('server_url')}): an agent is not given "
                f"it without `pg-harness mcp --allow {EXTERNAL}`. Or leave the setting out, and it has a server of its own",
                key="server_url",
                origin=settings.origin("server_url"),
            )
        changed: dict[str, object] = {"isolation": "database"}
        if settings.origin("connections_per_worker") == "default":
            changed["connections_per_worker"] = CONNECTIONS
        self._project = project.having(**changed)
        self.allow = allow
        self.session = secrets.token_hex(4)
        self._lock = threading.RLock()
        self._own: Sandbox | None = None
        self._person: Sandbox | None = None
        self._lives: list[SignOfLife] = []
        self._sandboxes: list[tuple[Sandbox, ServerSession]] = []
        # Those of this session, and no label says so: whoever owns a database may write that.
        self._names: set[str] = set()
        self._closed = False

    # --- the servers -------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One thread at a time: a session on a server is no two threads'."""
        with self._lock:
            if self._closed:
                raise LeaseError("the session is over")
            yield

    def _sandbox(self, progress: Progress = unseen) -> Sandbox:
        """Own databases' server: found or started when the first is made."""
        if self._own is None or not self._answers(self._own):
            server = acquire.ensure(
                self._project,
                purpose=OF_AGENTS,
                base=partial(baked_base, self._project),
                files=partial(rewinding.files, self._project),
            )
            self._own = self._opened(ServerSession(self._project, server, progress=progress))
        return self._own

    def _opened(self, session: ServerSession) -> Sandbox:
        sandbox = Sandbox(session)
        # On somebody else's server all databases lie side by side, and one role may own the developer's and ours.
        if self.external or (CHANGE in self.allow and not of_agents(session.server.info.purpose)):
            guests.note(self._project, session.link.server_id)
        held = [(LIFE, self.session)]
        if session.server.info.server_id:
            held.append(("server", session.server.info.server_id))
        name = f"{_LIVES}{self.session}"
        self._lives.append(SignOfLife(session.link.another(), held, name))
        self._sandboxes.append((sandbox, session))
        _sweep(sandbox, session, name)
        return sandbox

    def _answers(self, sandbox: Sandbox) -> bool:
        for known, session in self._sandboxes:
            if known is sandbox:
                with suppress(HarnessError):
                    return bool(session.link.session.value("select true"))
        # It was ended (`down --all`), with all that was on it.
        self._sandboxes = [each for each in self._sandboxes if each[0] is not sandbox]
        return False

    def _developers(self) -> Sandbox | None:
        """The developer's, where that is allowed and a server of `up` runs; none is started."""
        if READ not in self.allow:
            return None
        if self.external:
            return self._sandbox()
        if self._person is None or not self._answers(self._person):
            found = inventory.find(self._project, purpose="up")
            if found is None:
                self._person = None
                return None
            self._person = self._opened(ServerSession(self._project, found))
        return self._person

    # --- which are there ---------------------------------------------------------------------------

    def own(self) -> dict[str, tuple[Sandbox, Place]]:
        """Name → where it is, of this session's."""
        found: dict[str, tuple[Sandbox, Place]] = {}
        for sandbox in dict.fromkeys(filter(None, (self._known(self._own), self._known(self._person)))):
            there = sandbox.everything()
            for name in sorted(self._names):
                word = self._word(name)
                # Without its label it is called as in its name.
                if (place := there.get(word) or there.get(names.plain(word))) is not None:
                    found[name] = sandbox, place
        return found

    def _word(self, name: str) -> str:
        return f"{AGENT}{self.session}/{name}"

    def _name(self, word: str) -> str:
        """What an agent calls one of its own, whose whole word may be said as well; of others the word itself."""
        return word.removeprefix(self._word("")) or word

    def _known(self, sandbox: Sandbox | None) -> Sandbox | None:
        return sandbox if sandbox is not None and self._answers(sandbox) else None

    def developers(self) -> dict[str, tuple[Sandbox, Place]]:
        """Word → where it is, of the developer's; none where that is not allowed."""
        sandbox = self._developers()
        if sandbox is None:
            return {}
        return {
            word: (sandbox, place)
            for word, place in sandbox.everything().items()
            if not _WORD.fullmatch(word)
        }

    def find(self, word: str, *, changing: bool = False) -> tuple[Sandbox, Place]:
        """The database that a word names.

        Args:
            changing: whether it is going to be changed.

        Raises:
            ConfigError: there is none of that name, or it is not this session's and not allowed.
        """
        own, name = self.own(), self._name(word)
        if name in own:
            return own[name]
        theirs = self.developers()
        if word in theirs:
            if changing and CHANGE not in self.allow:
                raise ConfigError(
                    f"{word!r} is the developer's, and may only be read: `pg-harness mcp --allow {CHANGE}` lets an agent change it. "
                    "`create` makes a database of your own",
                    key="database",
                    value=word,
                )
            return theirs[word]
        there = ", ".join([*own, *(f"{each} (the developer's)" for each in theirs)])
        closed = (
            ""
            if READ in self.allow
            else f" The developer's databases are reached with `pg-harness mcp --allow {READ}` only; other sessions', test runs' and "
            "other checkouts' never."
        )
        raise ConfigError(
            f"you have no database {word!r}. There are: {there or 'none, `create` makes one'}.{closed}",
            key="database",
            value=word,
        )

    # --- made, copied, dropped ---------------------------------------------------------------------

    def create(self, name: str | None, progress: Progress = unseen) -> Place:
        """A pristine one, of today's migrations.

        Args:
            name: None: the next number.

        Raises:
            ConfigError: the name cannot be one, or is taken, or there are too many. MigrationError and all that a start raises.
        """
        name = self._free(name)
        sandbox = self._sandbox(progress)
        self._names.add(name)
        sandbox.ensure([self._word(name)])
        return self.own()[name][1]

    def fork(self, of: str, name: str | None, mark: str | None) -> tuple[Place, list[str]]:
        """A copy of one, or of what a mark of it holds, beside it.

        Returns:
            The copy; the sessions in the original that had to end, one line each.
        """
        # A copy ends the sessions of whoever is in it; and one of a developer's belongs to the same role as the original.
        sandbox, place = self.find(of, changing=True)
        name = self._free(name)
        self._names.add(name)
        return sandbox.fork(place, self._word(name), mark)

    def _free(self, name: str | None) -> str:
        own = self.own()
        if len(own) >= MOST:
            raise ConfigError(
                f"you have {len(own)} databases, which is the limit: `drop` one first", key="name"
            )
        if name is None:
            return next(str(number) for number in range(1, MOST + 2) if str(number) not in own)
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a database's name: letters, digits and . _ - (40 at most), a letter or a digit first",
                key="name",
                value=name[:80],
            )
        if name in own:
            raise ConfigError(
                f"you have a database {name!r} already: `reset` or `drop` it", key="name", value=name
            )
        return name

    def drop(self, name: str) -> Place:
        """Drop one of this session's, with its marks.

        Raises:
            ConfigError: it is none of them; a developer's is never dropped.
        """
        own, name = self.own(), self._name(name)
        if name not in own:
            _, place = self.find(name)
            raise ConfigError(
                f"{name!r} is {place.what}: an agent drops databases of its own only",
                key="database",
                value=name,
            )
        sandbox, place = own[name]
        _drop(sandbox, place.session, place)
        return place

    def server(self, place: Place) -> ServerInfo:
        """The server that a database is on."""
        return place.session.server.info

    def close(self, patience: float = 30.0) -> list[str]:
        """End the session: its databases are dropped. Twice is once.

        Args:
            patience: seconds to wait for a call that goes on in another thread.

        Returns:
            The words of what was dropped.
        """
        dropped: list[str] = []
        if not self._lock.acquire(timeout=patience):
            # They go with the next session's beginning, or with their server.
            return dropped
        try:
            if self._closed:
                return dropped
            self._closed = True
            with suppress(HarnessError):
                for sandbox, place in self.own().values():
                    with suppress(HarnessError):
                        _drop(sandbox, place.session, place)
                        dropped.append(place.worker)
            for life in self._lives:
                life.close()
            for sandbox, _ in self._sandboxes:
                with suppress(HarnessError):
                    sandbox.__exit__()
        finally:
            self._lock.release()
        return dropped


def _drop(sandbox: Sandbox, session: ServerSession, place: Place) -> None:
    admin, project = session.link.session, session.project.id
    mine = {database.role for database in place.databases.values()} - {session.expected_owner()[0].name}
    others = {
        database.role
        for other in sandbox.everything().values()
        if other.worker != place.worker
        for database in other.databases.values()
    }
    # What its role has created besides goes with it; a role that owns something would stay.
    for name in databases.created_by_tests(admin, sorted(mine - others)):
        databases.drop(admin, name, project)
    sandbox.drop_fork(place)


def _sweep(sandbox: Sandbox, session: ServerSession, name: str) -> None:
    """Drop what sessions have left that were killed: whoever lives holds a lock.

    Args:
        name: of our own sign of life.
    """
    admin, info = session.link.session, session.server.info
    alone = (
        info.ours
        and of_agents(info.purpose)
        and not admin.value(
            "select exists (select from pg_stat_activity where usename = current_user and application_name like %s "
            "and application_name <> %s)",
            (f"{_LIVES}%", name),
        )
    )
    life = session.link.session.value(f"select {incarnation.LIFE}")
    for word, place in sandbox.everything().items():
        match = _WORD.fullmatch(word)
        if match is not None and locks.is_held(admin, LIFE, match[1]):
            continue
        if match is None and not (place.fork and alone):
            continue  # no agent's; or its label is gone, and it may be that of a session that lives
        if sweep.in_grace(admin) and any(d.label.claimed != life for d in place.databases.values()):
            continue  # a crash of the server has ended its sign of life, which comes back
        with suppress(HarnessError):
            _drop(sandbox, session, place)
            logger.info("dropped %s: its session is gone", word)
