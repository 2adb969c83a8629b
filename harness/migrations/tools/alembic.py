"""``alembic[:alembic.ini]``: the project's Alembic history up to its one head, in a child process."""

from __future__ import annotations

import ast
import configparser
import os
import sys
from functools import cached_property
from pathlib import Path

from harness.migrations.hashing import files, imports, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import project_child

ADAPTER = "alembic 1"


class AlembicSource(Configured):
    """``upgrade head`` of an Alembic environment.

    The fingerprint covers the ini file, the script folder (revisions and ``env.py``), what the revisions
    import of the project, and the versions of Alembic and SQLAlchemy. The models that ``env.py`` imports
    are not in it: they decide what ``revision --autogenerate`` writes, not what ``upgrade`` does.
    """

    def fingerprint(self) -> str:
        versions = imports.installed_versions(["alembic", "sqlalchemy"])
        return files.digest(
            [ADAPTER, *versions, *watched.hash_files(self._files, self._root, source=self.text)]
        )

    def lacking(self) -> str:
        # Not by an import: the project's own folder is often called alembic.
        if not imports.installed_versions(["alembic"]):
            return f"Alembic is not installed for {sys.executable}: pip install alembic"
        heads = self.heads()
        if len(heads) < 2:
            return ""
        return (
            f"it has {len(heads)} heads, {', '.join(heads)}: `alembic merge heads` joins them; or, where they are meant, "
            'migrations = "command:alembic upgrade heads"'
        )

    def heads(self) -> list[str]:
        """The revisions that no other revises, in order, as far as their files say it in plain words."""
        ini, toml = self._config
        revisions: set[str] = set()
        revised: set[str] = set()
        for folder in self._script_folders(ini, toml):
            for path in watched.walk(folder):
                if path.suffix == ".py" and path.name != "env.py":
                    named = _identifiers(path)
                    revisions.update(named.get("revision", ()))
                    revised.update(named.get("down_revision", ()))
        return sorted(revisions - revised)

    def apply(self, context: MigrationContext) -> None:
        ini, toml = self._config
        base = (ini or toml or self._root).parent
        project_child.run(
            "run_alembic",
            {
                "ini": ini,
                "toml": toml,
                "url": context.dsn.url,
                "asyncpg": context.dsn.asyncpg,
                "database": context.dsn.database,
                "host": context.dsn.host,
                "port": str(context.dsn.port),
                # Alembic's own path has what prepend_sys_path says, and no more: what comes first is taken for a module of
                # Python's, as a `logging.py` beside the ini file.
                "path": [],
                "last": project_child.source_roots(self._root, base),
            },
            context,
            source=self,
            step="alembic upgrade head",
            cwd=self._start,
        )

    @cached_property
    def _config(self) -> tuple[Path | None, Path | None]:
        """The ini file and the pyproject.toml that holds ``[tool.alembic]``, where they are."""
        ini = self._root / (self._spec.argument or "alembic.ini")
        toml = ini.with_name("pyproject.toml")
        if ini.suffix == ".toml":
            ini, toml = ini.with_name("alembic.ini"), ini
        found = ini if ini.is_file() else None, toml if files.toml_table(toml, "tool", "alembic") else None
        if any(found):
            return found
        raise files.missing(ini, self._root, source=self.text, what="the file")

    @cached_property
    def _start(self) -> Path:
        """Where its users run alembic: relative paths of the ini file, and of prepend_sys_path, start there."""
        ini, toml = self._config
        base = (ini or toml or self._root).parent
        location = Path(self._locations(ini, toml)[0])
        # `alembic -c src/app/alembic.ini`, where the script folder is found from the root, too.
        return self._root if (self._root / location).is_dir() else base

    @cached_property
    def _files(self) -> list[Path]:
        ini, toml = self._config
        folders = self._script_folders(ini, toml)
        found = {path for path in (ini,) if path is not None}
        revisions: set[Path] = set()
        for folder in folders:
            if not folder.is_dir():
                raise files.missing(folder, self._root, source=self.text, what="the script folder")
            found.update(path for path in watched.walk(folder) if path.suffix != ".mako")
            revisions.update(
                path for path in watched.walk(folder) if path.suffix == ".py" and path.name != "env.py"
            )
        found |= imports.closure(revisions, project_child.source_roots(self._root))
        if self._spec.watch is not None:
            found.update(watched.matching(self._root, self._spec.watch, source=self.text))
        return sorted({Path(os.path.realpath(path)) for path in found})

    def _script_folders(self, ini: Path | None, toml: Path | None) -> list[Path]:
        # "package:folder" names a folder of an installed package: its version stands for its files.
        return [
            self._start / place
            for place in self._locations(ini, toml)
            if ":" not in place.replace(":\\", "") or os.path.isabs(place)
        ]

    def _locations(self, ini: Path | None, toml: Path | None) -> list[str]:
        """The script folder, then those with further revisions, as they are written."""
        values: dict[str, str] = {}
        base = (ini or toml or self._root).parent
        if toml is not None:
            table = files.toml_table(toml, "tool", "alembic")
            for key in table.keys() & {"script_location", "version_locations"}:
                items = table[key] if isinstance(table[key], list) else [table[key]]
                values[key] = "\n".join(str(item).replace("%(here)s", str(base)) for item in items)
        if ini is not None:
            parser = configparser.ConfigParser({"here": str(base)})
            try:
                parser.read(ini, encoding="utf-8")
                for key in ("script_location", "version_locations"):
                    if parser.has_option("alembic", key):
                        values.setdefault(key, parser.get("alembic", key))
            except configparser.Error as error:
                message = f"{files.relative(ini, self._root)}: {error}".replace("\n", " ")
                raise self.failure(message) from error
        location = values.get("script_location")
        if not location:
            raise self.failure(
                f"{files.relative(ini or base, self._root)} says no script_location in [alembic]"
            )
        return [location, *_split_locations(values.get("version_locations", ""))]


def _identifiers(path: Path) -> dict[str, tuple[str, ...]]:
    """``revision`` and ``down_revision`` of a file; nothing is imported for it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        value = getattr(node, "value", None)
        if not names & {"revision", "down_revision"} or value is None:
            continue
        items = value.elts if isinstance(value, ast.Tuple | ast.List) else [value]
        words = (item.value for item in items if isinstance(item, ast.Constant))
        found.update(dict.fromkeys(names, tuple(word for word in words if isinstance(word, str))))
    return found


def _split_locations(text: str) -> list[str]:
    for separator in ("\n", ",", os.pathsep, ";"):
        text = text.replace(separator, " ")
    return text.split()
