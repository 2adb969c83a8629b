"""The tools: words in, text and structured content out. What they do, people do with ``up``, ``fork``, ``mark`` and ``reset``."""

from __future__ import annotations

import functools
import json
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from harness import __version__
from harness.config.project import Project
from harness.config.settings import DEFAULT_DATABASE
from harness.databases.changed import by_names, for_json
from harness.databases.spec import sources
from harness.errors import ConfigError, HarnessError, LeaseError
from harness.mcp import log
from harness.mcp.allowed import CHANGE, SUPERUSER
from harness.mcp.databases import AgentDatabases
from harness.mcp.describe import describe, lines
from harness.postgres.bounded import Answer, Limits, Statement, StatementFailed
from harness.reset.changes import Changes
from harness.runs.places import Place
from harness.sandbox.marks import TEMPLATE, SavedMark
from harness.servers import registry

logger = logging.getLogger("pg_harness.mcp")

T = TypeVar("T")

LIMITS = Limits()

LONGEST = 300
"""Seconds that a statement may be allowed."""

MOST_ROWS = 1000

INSTRUCTIONS = """\
Throwaway PostgreSQL databases of your own, made from this project's migrations. `create` gives a pristine one, `run_sql` runs SQL
in it, `changes` tells what was changed since, `mark` and `reset` come back, `fork` copies, `drop` drops. All of them are dropped when this
session ends. A program of the project uses one with `eval "$(pg-harness env WORD)"` in a shell, where WORD is what `create` and `list`
tell as `word`: no tool tells a password.
"""

Name = Annotated[str, Field(description="a database of yours by its name, as `list` tells it")]
NewName = Annotated[
    str | None,
    Field(description="what to call it: letters, digits and . _ - (40 at most); without it, the next number"),
]
Which = Annotated[
    str, Field(description="which of its databases, where the project's settings have several ([databases])")
]

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_MAKES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_DESTROYS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)


class Tools:
    """What a client may call.

    Args:
        databases: what the session may reach.
    """

    def __init__(self, project: Project, databases: AgentDatabases) -> None:
        self._project = project
        self._databases = databases
        self._running: set[Statement] = set()
        self._guard = threading.Lock()

    def server(self) -> MCPServer[Any]:
        """All of them, as the SDK serves them."""
        # WARNING: at INFO the SDK would log the text of each failed call.
        made: MCPServer[Any] = MCPServer(
            "pg-harness", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
        )
        for tool, name, title, how in (
            (self.create, "create", "Make a pristine database", _MAKES),
            (self.list_databases, "list", "List databases", _READS),
            (self.describe, "describe", "Describe tables and columns", _READS),
            (self.run_sql, "run_sql", "Run SQL", _DESTROYS),
            (self.changes, "changes", "Tell what changed", _READS),
            (self.mark, "mark", "Mark the present state", _MAKES),
            (self.reset, "reset", "Reset to a mark, or to the migrations", _DESTROYS),
            (self.fork, "fork", "Copy a database", _MAKES),
            (self.drop, "drop", "Drop a database", _DESTROYS),
            (self.logs, "logs", "Read the server's log", _READS),
        ):
            made.add_tool(_told(tool), name=name, title=title, annotations=how)
        return made

    def cancel(self) -> None:
        """End all statements that run."""
        with self._guard:
            for statement in self._running:
                statement.cancel()

    async def create(self, ctx: Context, name: NewName = None) -> CallToolResult:
        """Make a pristine database from today's migrations of this project. The first one may take as long as a server's start
        and the migrations; later ones take a moment. It is dropped when the session ends."""
        progress = _progress(ctx)

        def act() -> Place:
            return self._databases.create(name, progress)

        place = await self._alone(act)
        notes = await anyio.to_thread.run_sync(self._notes)
        text = [f"made {_short(place)}; a program enters it with: {_env(place)}", *notes]
        return self._answer("\n".join(text), {**_place(place), "notes": notes})

    async def list_databases(self) -> CallToolResult:
        """List the databases that may be named: yours, and the developer's where that is allowed."""

        def act() -> list[dict[str, Any]]:
            own = self._databases.own()
            found = [
                {**_place(place), "name": name, "marks": [_mark(m) for m in sandbox.marks(place)]}
                for name, (sandbox, place) in own.items()
            ]
            change = CHANGE in self._databases.allow
            return found + [
                {**_place(place), "yours": False, "may_be_changed": change}
                for _, place in self._databases.developers().values()
            ]

        found = await self._alone(act)
        text = [
            f"{one['name']}  {'yours' if one['yours'] else one['what']} ({one['word']}), made {one['created']}"
            + (f"; marks: {', '.join(m['name'] for m in one['marks'])}" if one.get("marks") else "")
            for one in found
        ]
        return self._answer(
            "\n".join(text) or "you have no database yet: `create` makes one", {"databases": found}
        )

    async def describe(
        self,
        database: Name,
        table: Annotated[
            str | None, Field(description="only this one, for instance users or sales.orders")
        ] = None,
        which: Which = DEFAULT_DATABASE,
    ) -> CallToolResult:
        """Tell tables, columns, keys, indexes, sizes, extensions, and which migrations are applied."""

        def find() -> tuple[Any, Any]:
            _, place = self._databases.find(database)
            return place.dsn(which, direct=True), place.database(which).label

        dsn, label = await self._alone(find)
        told = dict(await anyio.to_thread.run_sync(describe, dsn, table))
        if table is not None and not told["tables"]:
            raise ConfigError(f"there is no table {table!r} that the application's role sees", key="table")
        told["migrations"] = [line.split(" ", 2)[-1] for line in label.applied or ()]
        text = lines(told)
        text.append(f"migrations applied: {', '.join(told['migrations']) or 'not known'}")
        return self._answer(_short_text("\n".join(text)), told)

    async def run_sql(
        self,
        database: Name,
        sql: Annotated[str, Field(description=f"SQL, {LIMITS.text:,} bytes at most")],
        read_only: Annotated[
            bool, Field(description="one statement, in a transaction that can write nothing")
        ] = False,
        rows: Annotated[
            int, Field(ge=1, le=MOST_ROWS, description="rows that are told of each result")
        ] = LIMITS.rows,
        timeout: Annotated[
            float, Field(gt=0, le=LONGEST, description="seconds after which it is cancelled")
        ] = LIMITS.seconds,
        which: Which = DEFAULT_DATABASE,
    ) -> CallToolResult:
        """Run SQL as the application's role, in a session of its own that ends with the call. Several statements are one
        transaction unless they say otherwise. Results are cut, and it is told how much was left out. No psql commands, no COPY from or to
        the client."""
        limits = Limits(rows=rows, seconds=timeout)

        def find() -> Statement:
            allowed = self._databases.allow
            _, place = self._databases.find(database, changing=not read_only)
            # Past a pooler: it keeps neither the limits of a session nor tells whether its role is a superuser.
            dsn = place.dsn(which, direct=True)
            return Statement(dsn, sql, read_only=read_only, superuser=SUPERUSER in allowed, limits=limits)

        statement = await self._alone(find)
        with self._guard:
            self._running.add(statement)
        try:
            answer = await anyio.to_thread.run_sync(statement.run, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            # The client does not want it any more: nor should the server go on with it.
            statement.cancel()
            raise
        finally:
            with self._guard:
                self._running.discard(statement)
        return self._answer(_answer_text(answer), _answer_told(answer))

    async def changes(
        self,
        database: Name,
        since: Annotated[
            str | None,
            Field(
                description="a mark's name, or `template`: the migrations' state; without it, the top mark, else that"
            ),
        ] = None,
    ) -> CallToolResult:
        """Tell what changed in a database since its top mark, else since its migrations: rows by table, sequences, schema. It is
        what `reset` would undo."""

        def act() -> tuple[str, dict[str, Any], list[str]]:
            sandbox, place = self._databases.find(database)
            found = sandbox.changes(place, since)
            told: dict[str, Any] = {}
            text: list[str] = []
            for name, what in found.databases.items():
                before = "" if len(found.databases) == 1 else f"{name}: "
                if isinstance(what, Changes):
                    named = by_names(what)
                    told[name] = for_json(named)
                    text += [f"{before}{line}" for line in named.lines or ["nothing changed"]]
                else:
                    told[name] = {"unknown": what.message}
                    text.append(f"{before}it cannot be told, and a reset makes a fresh copy: {what.message}")
            return _state(found.mark), told, text

        state, told, text = await self._alone(act)
        return self._answer(
            _short_text("\n".join([f"since {state}:", *text])), {"since": state, "databases": told}
        )

    async def mark(
        self,
        database: Name,
        name: Annotated[str | None, Field(description="for `reset`'s `to`; without it, a number")] = None,
    ) -> CallToolResult:
        """Make the present state, rows and schema, the one that `reset` comes back to. Marks are a stack. Sessions that are in the
        database end: PostgreSQL copies none that somebody is in."""
        if name is not None and (
            not name.strip() or name == TEMPLATE or len(name) > 60 or not name.isprintable()
        ):
            raise ConfigError(
                f"{name[:80]!r} cannot be a mark's name (1 to 60 characters, all of them printable; `template` is the migrations' state)",
                key="name",
            )

        def act() -> tuple[SavedMark, list[str], Place]:
            sandbox, place = self._databases.find(database, changing=True)
            return (*sandbox.mark(place, name), place)

        made, ended, place = await self._alone(act)
        return self._answer(
            f"{_short(place)} is marked as {made.name!r}{_ended(ended)}",
            {"mark": _mark(made), "ended": ended},
        )

    async def reset(
        self,
        database: Name,
        to: Annotated[
            str | None,
            Field(
                description="a mark's name: those above it are forgotten; `template`: the migrations' state, all are. Without it, the top mark, else that"
            ),
        ] = None,
    ) -> CallToolResult:
        """Bring a database back to its top mark, else to the state of its migrations. What was written since is lost."""

        def act() -> tuple[str, dict[str, Any], Place]:
            sandbox, place = self._databases.find(database, changing=True)
            back = sandbox.reset(place, to)
            reports = {
                name: {
                    "strategy": report.strategy, "tables": [*report.tables][:200], "rows": report.rows,
                    "reason": report.reason, "ended": [*report.ended],
                }
                for name, report in back.reports.items()
            }  # fmt: skip
            return _state(back.mark), reports, place

        state, reports, place = await self._alone(act)
        return self._answer(f"{_short(place)} is back at {state}", {"state": state, "databases": reports})

    async def fork(
        self,
        database: Name,
        name: NewName = None,
        mark: Annotated[
            str | None, Field(description="copy what this mark holds, not what is there now")
        ] = None,
    ) -> CallToolResult:
        """Copy a database with all that is in it to a new one of yours. `reset` of the copy goes to the migrations' state, or to marks that it
        has of its own."""

        def act() -> tuple[Place, list[str]]:
            return self._databases.fork(database, name, mark)

        place, ended = await self._alone(act)
        return self._answer(
            f"made {_short(place)}, a copy of {database}{_ended(ended)}", {**_place(place), "ended": ended}
        )

    async def drop(self, database: Name) -> CallToolResult:
        """Drop a database of yours, with all that is in it and its marks."""

        def act() -> Place:
            return self._databases.drop(database)

        place = await self._alone(act)
        return self._answer(f"dropped {_short(place)}", _place(place))

    async def logs(
        self,
        database: Name,
        number: Annotated[int, Field(ge=1, le=log.MOST, description="how many lines at most")] = 50,
    ) -> CallToolResult:
        """Read the last lines of the log of a database's server, as far as they are the server's own or about this database."""

        def act() -> list[str]:
            _, place = self._databases.find(database)
            info = self._databases.server(place)
            if not info.ours:
                raise LeaseError("the log of a server that somebody else runs cannot be read from here")
            backend = registry.named(info.backend, self._project)
            names = frozenset(database.name for database in place.databases.values())
            return log.last(backend.logs(info, False), names, number)

        found = await self._alone(act)
        return self._answer("\n".join(found) or "the log says nothing of it", {"lines": found})

    def _notes(self) -> list[str]:
        """What is to be said of a new database: clients often start their servers in another folder than the project's."""
        settings = self._project.settings
        if any(sources(settings, database) for database in settings.databases):
            return []
        note = (
            f"it is empty: no migrations are configured, and none were found in {settings.root}. If that is not the project's folder: whoever "
            'registers this server in the client adds "--config", "/…/pg-harness.toml" (or pyproject.toml) to its args'
        )
        return [note]

    async def _alone(self, act: Callable[[], T]) -> T:
        def locked() -> T:
            with self._databases.alone():
                return act()

        return await anyio.to_thread.run_sync(locked)

    @staticmethod
    def _answer(text: str, told: Mapping[str, Any]) -> CallToolResult:
        content = TextContent(type="text", text=text)
        return CallToolResult(content=[content], structured_content=json.loads(json.dumps(told, default=str)))


def _told(tool: Callable[..., Awaitable[CallToolResult]]) -> Callable[..., Awaitable[CallToolResult]]:
    """A tool whose errors are the harness's own words, and never a traceback."""

    @functools.wraps(tool)
    async def told(*args: Any, **kwargs: Any) -> CallToolResult:
        try:
            return await tool(*args, **kwargs)
        except StatementFailed as error:
            # By hand: an agent looks at the SQLSTATE.
            return CallToolResult(
                content=[TextContent(type="text", text=error.full_text)],
                structured_content={"error": {"message": error.message, **error.fields}},
                is_error=True,
            )
        except HarnessError as error:
            raise ToolError(error.full_text) from None
        except Exception as error:  # noqa: BLE001 — an agent gets words, not a traceback
            # The SDK would write the whole traceback to stderr, and tell the client nothing.
            logger.debug("%s", traceback.format_exc())
            raise ToolError(
                f"{type(error).__name__}: {str(error)[:300]}: this should not have happened, it is a bug in pg-harness. With "
                "PGHARNESS_LOG=debug its log, which the client shows, has the traceback"
            ) from None

    return told


def _progress(ctx: Context) -> Callable[[int, int | None, str], None]:
    """Steps of migrations, told to the client: many give up on a call that says nothing for a minute."""

    def progress(done: int, total: int | None, what: str) -> None:
        # A client that is gone by now is no reason for a migration to fail.
        with suppress(Exception):
            whole = None if total is None else float(total)
            anyio.from_thread.run(ctx.report_progress, float(done), whole, what[:200])

    return progress


def _name(place: Place) -> str:
    return place.worker.partition("/")[2] if place.worker.startswith("agent-") else place.worker


def _place(place: Place) -> dict[str, Any]:
    created = min((database.label.created or "" for database in place.databases.values()), default="")
    return {
        "name": _name(place),
        "word": place.worker,
        "what": place.what,
        "yours": True,
        "created": created[:19].replace("T", " "),
        "databases": {name: database.name for name, database in place.databases.items()},
        "shell": _env(place),
    }


def _short(place: Place) -> str:
    return f"database {_name(place)!r} ({place.worker})"


def _env(place: Place) -> str:
    return f'eval "$(pg-harness env {place.worker})"'


def _mark(mark: SavedMark) -> dict[str, Any]:
    return {"name": mark.name, "number": mark.number, "created": mark.created[:19].replace("T", " ")}


def _state(mark: SavedMark | None) -> str:
    return f"mark {mark.name!r}" if mark else "the migrations' state"


def _ended(sessions: list[str]) -> str:
    return f"; sessions that had to end: {'; '.join(sessions)}" if sessions else ""


def _short_text(text: str, length: int = 60_000) -> str:
    return text if len(text) <= length else f"{text[:length]}\n… ({len(text):,} characters in all)"


def _answer_told(answer: Answer) -> dict[str, Any]:
    return {
        "results": [
            {
                "tag": result.tag,
                "columns": [{"name": name, "type": kind} for name, kind in result.columns],
                "rows": result.rows,
                "rows_left_out": result.left_out,
            }
            for result in answer.results
        ],
        "notices": answer.notices,
        "notes": answer.notes,
        "milliseconds": answer.milliseconds,
    }


def _answer_text(answer: Answer) -> str:
    told: list[str] = []
    for result in answer.results:
        if result.columns:
            told.append(" | ".join(name for name, _ in result.columns))
            told += [" | ".join("NULL" if v is None else str(v) for v in row) for row in result.rows]
        told.append(result.tag)
    return _short_text("\n".join([*told, *answer.notices, *answer.notes]), LIMITS.size)
