"""``sql:PATH``: a folder of SQL files in the layout of any known tool, or one file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from harness.errors import MigrationError
from harness.migrations.hashing import files
from harness.migrations.port import Configured, MigrationContext, short
from harness.migrations.sql import layouts
from harness.migrations.sql.layouts import Mode, Step, Tool

ADAPTER = "sql 1"
"""Part of the fingerprint: to be raised when the same files would be run in another way."""


class SqlSource(Configured):
    """SQL files, ordered and run as their own tool does.

    The files are read once: what :meth:`fingerprint` hashed is what :meth:`apply` runs, whoever saves a
    file in between.
    """

    @cached_property
    def _path(self) -> Path:
        return self._root / self._spec.argument

    def fingerprint(self) -> str:
        tool, steps = self.plan
        parts = [ADAPTER, tool.name]
        for step in steps:
            # The name below the folder, not below the root: moving a checkout changes nothing.
            parts += [step.shown, step.mode.value, step.text]
        return files.digest(parts)

    def apply(self, context: MigrationContext) -> None:
        # Lazy: what cuts SQL and runs it costs 18 ms to import, and a warm start only hashes.
        from harness.migrations.sql.run import run

        run(self, context)

    def steps(self) -> dict[str, str]:
        """File below the root → hash of the parts that run: a down part may change."""
        _, steps = self.plan
        return {
            step.shown: short(files.digest(step.text[start:end] for start, end in step.parts))
            for step in steps
        }

    def pending(self, applied: Mapping[str, str], *, out_of_order: bool = False) -> list[str]:
        """As ``flyway migrate`` decides: a changed file is refused, and so is one that comes before applied ones; a repeatable
        one (``R__x.sql``) is run again where it changed."""
        tool, _ = self.plan
        here = self.steps()
        repeated = {name for name in here if tool is layouts.FLYWAY and layouts.is_repeatable(name)}
        changed = [n for n, h in here.items() if applied.get(n, h) != h and n not in repeated]
        if changed:
            raise self.failure(
                f"{', '.join(changed)} {'was' if len(changed) == 1 else 'were'} changed since the database has it: "
                "what was applied is not taken back. Put it back as it was and write a new file; or "
                "`pg-harness up --fresh` makes new databases, without the data",
                changed[0],
            )
        found = [name for name, hashed in here.items() if applied.get(name) != hashed]
        order = list(here)
        last = max(
            (order.index(name) for name in here if name in applied and name not in repeated), default=-1
        )
        early = [name for name in found if order.index(name) < last and name not in repeated]
        if early and not out_of_order:
            raise self.failure(
                f"{', '.join(early)} would come before {order[last]}, which the database has already: an empty database "
                "gets them in the other order, so the two may differ. Rename it so that it comes last; or "
                "`pg-harness migrate --out-of-order` applies it now",
                early[0],
            )
        return found

    def upgrade(self, context: MigrationContext, steps: Sequence[str]) -> None:
        from harness.migrations.sql.run import run

        run(self, context, steps)

    @cached_property
    def plan(self) -> tuple[Tool, tuple[Step, ...]]:
        """The tool whose layout was recognised, and the files in the order of running."""
        if self._path.is_file():
            text = self._read(self._path)
            tool = self._marked_tool({self._path: text}) or layouts.PSQL
            return tool, (self._step(tool, self._path, text),)
        if not self._path.is_dir():
            raise files.missing(self._path, self._root, source=self.text, what="the folder or file")
        tool, found = self._arrange()
        if not found:
            raise self._empty()
        return tool, tuple(self._step(tool, path, text) for path, text in found.items())

    def _arrange(self) -> tuple[Tool, dict[Path, str]]:
        flat = [path for path in self._path.glob("*.sql") if path.is_file() and not path.name.startswith(".")]
        names = frozenset(path.name for path in flat)
        versioned = [name for name in names if layouts.FLYWAY_NAME.fullmatch(name)]
        if not versioned:
            for tool in (layouts.PRISMA, layouts.DIESEL):
                nested = sorted(
                    self._path.glob(f"*/{tool.nested}"), key=lambda path: tool.key(path.parent.name)
                )
                if nested:
                    return tool, self._texts(nested)
        others = names.difference(versioned)
        if self._flyway_files and all(layouts.FLYWAY_CALLBACK.fullmatch(name) for name in others):
            return layouts.FLYWAY, self._texts(self._flyway())
        if ups := [path for path in flat if path.name.endswith(".up.sql")]:
            return self._in_order(self._sqlx() or layouts.GOLANG_MIGRATE, self._texts(ups))
        texts = self._texts(path for path in flat if not layouts.is_reverse(path.name, names))
        if marked := self._marked_tool(texts):
            self._refuse_code(marked)
            return self._in_order(marked, texts)
        if self._path.parts[-2:] == ("supabase", "migrations"):
            dated = {path: text for path, text in texts.items() if re.match(r"\d+_", path.name)}
            return self._in_order(layouts.SUPABASE, dated)
        key = layouts.by_number_if_all(path.name for path in texts)
        return self._in_order(self._sqlx() or layouts.PSQL, texts, key)

    def _in_order(
        self, tool: Tool, texts: dict[Path, str], key: layouts.SortKey | None = None
    ) -> tuple[Tool, dict[Path, str]]:
        if key is None and tool.key is layouts.by_number:
            names = ((re.match(r"\d+", path.name), path.name) for path in sorted(texts))
            self._refuse_twins(tool, ((str(int(match.group())), name) for match, name in names if match))
        order = key or tool.key
        return tool, {path: texts[path] for path in sorted(texts, key=lambda path: order(path.name))}

    @cached_property
    def _flyway_files(self) -> dict[str, re.Match[str]]:
        names = (path.relative_to(self._path).as_posix() for path in self._path.rglob("*.sql"))
        matches = ((name, layouts.FLYWAY_NAME.fullmatch(name.rpartition("/")[2])) for name in sorted(names))
        return {name: match for name, match in matches if match}

    def _flyway(self) -> list[Path]:
        for path in sorted(self._path.rglob("*.sql")):
            if layouts.FLYWAY_MIGRATE_CALLBACK.fullmatch(path.name):
                raise self._left_to_the_tool(path, "is a Flyway callback", layouts.FLYWAY_COMMAND)
        versions = (
            (match["prefix"].upper() + ".".join(map(str, layouts.flyway_version(match["version"]))), name)
            for name, match in self._flyway_files.items()
            if match["version"] and match["prefix"].upper() in "VB"
        )
        self._refuse_twins(layouts.FLYWAY, versions)
        return [self._path / name for name in layouts.flyway_order(self._flyway_files)]

    def _marked_tool(self, texts: dict[Path, str]) -> Tool | None:
        for tool in layouts.MARKED:
            if any(re.search(tool.up, text) for text in texts.values()):
                return tool
        for pattern, what, command in layouts.LEFT_TO_THE_TOOL:
            for path in sorted(texts):
                if re.search(pattern, texts[path]):
                    raise self._left_to_the_tool(path, what, command)
        return None

    def _left_to_the_tool(self, path: Path, what: str, command: str) -> MigrationError:
        folder = files.relative(self._path if self._path.is_dir() else self._path.parent, self._root)
        return self.failure(
            f'{path.name} {what}, which sql: does not run. Let the tool itself run: in place of "{self.text}" '
            f'write "command:{command.format(folder=folder)}"',
            path.name,
        )

    def _step(self, tool: Tool, path: Path, text: str) -> Step:
        shown = files.relative(path, self._root)
        for pattern, what in tool.refused:
            if match := re.search(pattern, text):
                line, _ = files.position(text, match.start())
                raise self.failure(
                    f"{shown}, line {line}: {match.group()} is {what}. Let the tool itself run: "
                    f'"command:…" in place of "{self.text}"',
                    shown,
                )
        parts = layouts.up_parts(tool, text)
        if parts is None:
            raise self.failure(
                f"{shown} has no line that begins its up part, as the other files here have for {tool.name}",
                shown,
            )
        return Step(shown, text, tuple(parts), self._mode(tool, path, text))

    def _mode(self, tool: Tool, path: Path, text: str) -> Mode:
        said = text
        if tool.said_in:
            beside = path.with_name(tool.said_in.format(path.name))
            said = self._read(beside) if beside.is_file() else ""
        return Mode.EACH if tool.opt_out and re.search(tool.opt_out, said) else tool.mode

    def _texts(self, paths: Iterable[Path]) -> dict[Path, str]:
        return {path: self._read(path) for path in paths}

    def _read(self, path: Path) -> str:
        shown = files.relative(path, self._root)
        data = files.read_bytes(path, source=self.text, shown=shown)
        return files.decode(data, source=self.text, shown=shown)

    def _refuse_twins(self, tool: Tool, versions: Iterable[tuple[str, str]]) -> None:
        seen: dict[str, str] = {}
        for version, name in versions:
            if (other := seen.setdefault(version, name)) != name:
                raise self.failure(
                    f"{other} and {name} have the same version {version}; {tool.name} refuses that", name
                )

    def _refuse_code(self, tool: Tool) -> None:
        if tool is not layouts.GOOSE:
            return
        for path in sorted(self._path.glob("*.go")):
            if re.match(r"\d+_", path.name) and not path.name.endswith("_test.go"):
                raise self.failure(
                    f"{path.name} is a goose migration in Go, which sql: cannot run; let goose itself "
                    f'run: "command:goose -dir {self._spec.argument} postgres up"',
                    path.name,
                )

    def _empty(self) -> MigrationError:
        inside = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in self._path.iterdir())[:12]
        there = f"It holds: {', '.join(inside)}." if inside else "It is empty."
        return self.failure(
            f"no migrations in {files.relative(self._path, self._root)}. {there} "
            f"Known layouts: *.sql, V1__x.sql, *.up.sql, */up.sql, */migration.sql"
        )

    def _sqlx(self) -> Tool | None:
        """sqlx, if a Cargo.toml between the folder and the root depends on it."""
        for parent in (self._path, *self._path.parents):
            try:
                manifest = (parent / "Cargo.toml").read_text(errors="replace")
            except OSError:
                manifest = ""
            if re.search(r"^\s*sqlx\b|\.sqlx\b", manifest, re.MULTILINE):
                return layouts.SQLX
            if parent == self._root:
                break
        return None
