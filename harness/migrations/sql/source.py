"""``sql:PATH``: a folder of SQL files in the layout of any known tool, or one file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import MigrationError
from harness.migrations.hashing import files
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.sql import layouts
from harness.migrations.sql.layouts import Mode, Tool
from harness.postgres import sqlstate

if TYPE_CHECKING:
    from harness.migrations.sql import split

ADAPTER = "sql 1"
"""Part of the fingerprint: to be raised when the same files would be run in another way."""

_CALLBACKS_BEFORE = ("beforeMigrate", "beforeVersioned")
_CALLBACKS_AFTER = ("afterVersioned", "afterMigrate", "afterMigrateApplied")
_CALLBACK_NAME = re.compile(r"(?P<event>(?:before|after)[A-Z]\w*?)(?:__.*)?\.sql")
_COPY_STDIN = re.compile(r"COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One file, read.

    Attributes:
        shown: its path below the root. text: all of it. parts: the spans that run.
        mode: how its statements share transactions.
    """

    shown: str
    text: str
    parts: tuple[tuple[int, int], ...]
    mode: Mode


class SqlSource(Configured):
    """SQL files, ordered and run as their own tool does.

    The files are read once: what :meth:`fingerprint` hashed is what :meth:`apply` runs, whoever saves a
    file in between.
    """

    @cached_property
    def _path(self) -> Path:
        return self._root / self._spec.argument

    @property
    def layout(self) -> str:
        """The tool whose layout was recognised, for people."""
        return self._plan[0].name

    @property
    def steps(self) -> tuple[Step, ...]:
        """The files in the order of running."""
        return self._plan[1]

    def fingerprint(self) -> str:
        tool, steps = self._plan
        parts = [ADAPTER, tool.name]
        for step in steps:
            # The name below the folder, not below the root: moving a checkout changes nothing.
            parts += [step.shown, step.mode.value, step.text]
        return files.digest(parts)

    def apply(self, context: MigrationContext) -> None:
        from harness.postgres.script import StatementFailed, StatementTimeout, open_script

        tool, steps = self._plan
        scripts = [(step, self._split(step)) for step in steps]
        notices: list[str] = []
        with open_script(context.dsn, timeout=context.timeout, notice=notices.append) as runner:
            for number, (step, statements) in enumerate(scripts):
                context.progress(number, len(scripts), step.shown)
                notices.clear()
                current: split.Statement | None = None
                together = _in_one_transaction(step.mode, statements)
                try:
                    for statement in tool.between if number else ():
                        runner.run(statement)
                    if together:
                        runner.run("BEGIN")
                    for current in statements:
                        runner.run(current.text)
                    if together:
                        runner.run("COMMIT")
                    elif runner.end_transaction():
                        raise self._error(
                            f"{step.shown} begins a transaction and does not end it (BEGIN without COMMIT): "
                            f"what follows its BEGIN would be lost",
                            step,
                        )
                except (StatementFailed, StatementTimeout) as error:
                    advice = ""
                    if (
                        isinstance(error, StatementFailed)
                        and error.sqlstate == sqlstate.ACTIVE_SQL_TRANSACTION
                        and tool.advice
                    ):
                        advice = f"{tool.name} runs this file without a transaction if it says: {tool.advice}"
                    # Only now: what cuts SQL costs 18 ms to import, and a warm start needs none of it.
                    from harness.migrations.sql.explain import explain

                    raise self._error(
                        explain(step.shown, step.text, current, error, notices=notices, advice=advice), step
                    ) from error
            context.progress(len(scripts), len(scripts), "")

    @cached_property
    def _plan(self) -> tuple[Tool, tuple[Step, ...]]:
        if self._path.is_file():
            text = self._read(self._path)
            tool = _marked_tool({self._path.name: text}) or layouts.PSQL
            return tool, (self._step(tool, self._path, text),)
        if not self._path.is_dir():
            raise files.missing(self._path, self._root, source=self.text, what="the folder or file")
        tool, found = self._arrange()
        if not found:
            raise self._empty()
        return tool, tuple(self._step(tool, path, text) for path, text in found)

    def _arrange(self) -> tuple[Tool, list[tuple[Path, str]]]:
        top = sorted(self._path.glob("*.sql"), key=lambda path: layouts.by_name(path.name))
        flat = [path for path in top if path.is_file() and not path.name.startswith(".")]
        names = [path.name for path in flat]
        if not flat or not any(layouts.FLYWAY_NAME.fullmatch(name) for name in names):
            for tool in (layouts.PRISMA, layouts.DIESEL):
                nested = sorted(
                    self._path.glob(f"*/{tool.nested}"), key=lambda path: tool.key(path.parent.name)
                )
                if nested:
                    return tool, [(path, self._read(path)) for path in nested]
        deep = [path for path in self._path.rglob("*.sql") if layouts.FLYWAY_NAME.fullmatch(path.name)]
        if deep and all(layouts.FLYWAY_NAME.fullmatch(n) or _CALLBACK_NAME.fullmatch(n) for n in names):
            return layouts.FLYWAY, [(path, self._read(path)) for path in self._flyway()]
        ups = [path for path in flat if path.name.endswith(".up.sql")]
        if ups:
            tool = layouts.SQLX if _uses_sqlx(self._path, self._root) else layouts.GOLANG_MIGRATE
            self._refuse_twins(tool, ups)
            return tool, [(p, self._read(p)) for p in sorted(ups, key=lambda path: tool.key(path.name))]
        known = frozenset(names)
        texts = {path: self._read(path) for path in flat if not layouts.is_reverse(path.name, known)}
        marked = _marked_tool({path.name: text for path, text in texts.items()})
        if marked is not None:
            self._refuse_code(marked)
            if marked.key is layouts.by_number:
                self._refuse_twins(marked, list(texts))
            return marked, [(p, texts[p]) for p in sorted(texts, key=lambda path: marked.key(path.name))]
        if self._path.parts[-2:] == ("supabase", "migrations"):
            return layouts.SUPABASE, [(p, t) for p, t in texts.items() if re.match(r"\d+_", p.name)]
        tool = layouts.SQLX if _uses_sqlx(self._path, self._root) else layouts.PSQL
        key = layouts.by_number_if_all(path.name for path in texts)
        return tool, [(path, texts[path]) for path in sorted(texts, key=lambda path: key(path.name))]

    def _flyway(self) -> list[Path]:
        everything = {path.relative_to(self._path).as_posix(): path for path in self._path.rglob("*.sql")}
        callbacks: dict[str, list[Path]] = {}
        seen: dict[tuple[str, tuple[int, ...]], str] = {}
        for name, path in sorted(everything.items()):
            match = layouts.FLYWAY_NAME.fullmatch(path.name)
            if match is None:
                if hook := _CALLBACK_NAME.fullmatch(path.name):
                    callbacks.setdefault(hook["event"], []).append(path)
                continue
            if match["version"] and match["prefix"].upper() in "VB":
                key = (match["prefix"].upper(), layouts.flyway_version(match["version"]))
                if key in seen:
                    raise self._error_at(
                        f"{seen[key]} and {name} have the same version; Flyway refuses that", name
                    )
                seen[key] = name
        repeatable = ("beforeRepeatables",)
        ours = {*_CALLBACKS_BEFORE, *_CALLBACKS_AFTER, *repeatable}
        for name, paths in callbacks.items():
            if name not in ours and ("Each" in name or name in ("createSchema", "beforeConnect")):
                raise self._error_at(
                    f"{paths[0].name} is a Flyway callback that sql: does not run; "
                    f'use "command:flyway migrate"',
                    paths[0].name,
                )
        order = [everything[name] for name in layouts.flyway_order(everything)]
        first_repeatable = next((i for i, path in enumerate(order) if path.name[0] in "Rr"), len(order))
        return [
            *(path for event in _CALLBACKS_BEFORE for path in callbacks.get(event, ())),
            *order[:first_repeatable],
            *callbacks.get("afterVersioned", ()),
            *callbacks.get("beforeRepeatables", ()),
            *order[first_repeatable:],
            *(path for event in _CALLBACKS_AFTER[1:] for path in callbacks.get(event, ())),
        ]

    def _step(self, tool: Tool, path: Path, text: str) -> Step:
        shown = files.relative(path, self._root)
        for pattern, what in tool.refused:
            if match := pattern.search(text):
                from harness.migrations.sql import split

                line, _ = split.position(text, match.start())
                raise self._error_at(
                    f"{shown}, line {line}: {match.group()} is {what}. Let the tool itself run: "
                    f'"command:…" in place of "{self.text}"',
                    shown,
                )
        parts = layouts.up_parts(tool, text)
        if parts is None:
            assert tool.up is not None
            raise self._error_at(
                f"{shown} has no line that begins its up part, as the other files here have for {tool.name}",
                shown,
            )
        return Step(shown, text, tuple(parts), self._mode(tool, path, text))

    def _mode(self, tool: Tool, path: Path, text: str) -> Mode:
        said = text
        if tool is layouts.DIESEL:
            metadata = path.parent / "metadata.toml"
            said = self._read(metadata) if metadata.is_file() else ""
        if tool.opt_out is not None and tool.opt_out.search(said):
            return Mode.EACH
        beside = path.with_name(path.name + ".conf")
        alone = re.compile(r"^\s*executeInTransaction\s*=\s*false", re.MULTILINE)
        if tool is layouts.FLYWAY and beside.is_file() and alone.search(self._read(beside)):
            return Mode.EACH
        return tool.mode

    def _split(self, step: Step) -> list[split.Statement]:
        # Not at the top: a warm start hashes the files and cuts none, and its patterns take 10 ms to compile.
        from harness.migrations.sql import split

        found: list[split.Statement] = []
        try:
            for start, end in step.parts:
                found += split.split(step.text, start, end)
        except split.ScriptError as error:
            where = split.position(step.text, error.offset)
            advice = "For a file that pg_dump wrote, use dump:FILE." if "psql" in error.reason else ""
            raise self._error_at(
                f"{step.shown}, line {where[0]}, column {where[1]}: {error.reason}. {advice}".rstrip(),
                step.shown,
            ) from None
        for statement in found:
            if _COPY_STDIN.match(statement.text):
                line, _ = split.position(step.text, statement.offset)
                raise self._error_at(
                    f"{step.shown}, line {line}: COPY … FROM stdin needs a client that sends the rows. "
                    f'If pg_dump wrote this file, use "dump:{step.shown}"; else write INSERT.',
                    step.shown,
                )
        return found

    def _read(self, path: Path) -> str:
        shown = files.relative(path, self._root)
        data = files.read_bytes(path, source=self.text, shown=shown)
        return files.decode(data, source=self.text, shown=shown)

    def _refuse_twins(self, tool: Tool, paths: list[Path]) -> None:
        seen: dict[int, str] = {}
        for path in sorted(paths):
            if match := re.match(r"\d+", path.name):
                number = int(match.group())
                if number in seen:
                    raise self._error_at(
                        f"{seen[number]} and {path.name} have the same version {number}; "
                        f"{tool.name} refuses that",
                        path.name,
                    )
                seen[number] = path.name

    def _refuse_code(self, tool: Tool) -> None:
        if tool is not layouts.GOOSE:
            return
        for path in sorted(self._path.glob("*.go")):
            if re.match(r"\d+_", path.name) and not path.name.endswith("_test.go"):
                raise self._error_at(
                    f"{path.name} is a goose migration in Go, which sql: cannot run; let goose itself "
                    f'run: "command:goose -dir {self._spec.argument} postgres up"',
                    path.name,
                )

    def _empty(self) -> MigrationError:
        inside = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in self._path.iterdir())[:12]
        there = f"It holds: {', '.join(inside)}." if inside else "It is empty."
        return MigrationError(
            f"{self.text}: no migrations in {files.relative(self._path, self._root)}. {there} "
            f"Known layouts: *.sql, V1__x.sql, *.up.sql, */up.sql, */migration.sql",
            source=self.text,
        )

    def _error(self, message: str, step: Step) -> MigrationError:
        return self._error_at(message, step.shown)

    def _error_at(self, message: str, shown: str) -> MigrationError:
        return MigrationError(f"{self.text}: {message}", source=self.text, step=shown)


def _in_one_transaction(mode: Mode, statements: list[split.Statement]) -> bool:
    if mode is not Mode.AUTO:
        return mode is Mode.WHOLE
    return len(statements) > 1 and not any(statement.needs_no_transaction for statement in statements)


def _marked_tool(texts: dict[str, str]) -> Tool | None:
    for tool in layouts.MARKED:
        marker = tool.up or tool.down
        if marker is not None and any(marker.search(text) for text in texts.values()):
            return tool
    return None


def _uses_sqlx(folder: Path, root: Path) -> bool:
    """Whether a Cargo.toml between the folder and the root depends on sqlx."""
    for parent in (folder, *folder.parents):
        manifest = parent / "Cargo.toml"
        if manifest.is_file() and re.search(r"^\s*sqlx\b|\.sqlx\b", _quietly(manifest), re.MULTILINE):
            return True
        if parent == root:
            return False
    return False


def _quietly(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
