"""``django[:settings.module]``: ``migrate`` of a Django project, in a child process."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.state_file import StateFile, Unreadable
from harness.dsn import Dsn
from harness.errors import MigrationError
from harness.migrations.hashing import files, imports, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import project_child

ADAPTER = "django 1"
_LIST_TIMEOUT = 120.0
"""Seconds that importing the settings and the apps may take."""


class DjangoSource(Configured):
    """The migrations of all installed apps, applied to the database that the harness names.

    Which apps there are is learnt from a child that imports the settings. The answer is cached until a
    file of the project that it read changes (size, mtime) or a distribution is installed or upgraded.
    """

    def fingerprint(self) -> str:
        parts = [ADAPTER, self._settings[0], *imports.installed_versions()]
        own: list[Path] = []
        for label, folder in sorted(self._listing["folders"].items()):
            parts.append(label)
            # Files of installed packages: their versions are in the hash already.
            if self._is_own(Path(folder)):
                own += [path for path in watched.walk(Path(folder)) if path.suffix in (".py", ".sql")]
                own += [path for path in (Path(folder).parent / "apps.py",) if path.is_file()]
        project = self._settings[1]
        found = imports.closure(
            (path for path in own if path.suffix == ".py"), [project, *project_child.source_roots(self._root)]
        )
        found |= {Path(os.path.realpath(path)) for path in own}
        if self._spec.watch is not None:
            found.update(watched.matching(self._root, self._spec.watch, source=self.text))
        return files.digest([*parts, *watched.hash_files(sorted(found), self._root, source=self.text)])

    def apply(self, context: MigrationContext) -> None:
        self._child(context, "manage.py migrate", list_to="")

    def _child(self, context: MigrationContext, step: str, *, list_to: str) -> None:
        module, project = self._settings
        project_child.run(
            "run_django",
            {
                "settings": module,
                "path": project_child.search_path(project, *project_child.source_roots(self._root)),
                "root": str(self._root),
                "alias": context.alias,
                "database": context.dsn.database,
                "user": context.dsn.user,
                "password": context.dsn.password,
                "host": context.dsn.host,
                "port": str(context.dsn.port),
                "list": list_to,
            },
            context,
            source=self,
            step=step,
            cwd=project,
        )

    @cached_property
    def _settings(self) -> tuple[str, Path]:
        """The settings module, and the folder that it is imported from."""
        managers = [self._root / "manage.py", *sorted(self._root.glob("*/manage.py"))]
        managers += sorted(self._root.glob("*/*/manage.py"))
        manager = next((path for path in managers if path.is_file() and _module_of(path)), None)
        project = manager.parent if manager else self._root
        if self._spec.argument:
            return self._spec.argument, project
        if named := self._environment.get("DJANGO_SETTINGS_MODULE"):
            return named, project
        if manager is not None:
            return _module_of(manager), project
        for names in (("tool", "pytest", "ini_options"), ("tool", "pytest"), ("tool", "django")):
            value = _pyproject(self._root, names).get("DJANGO_SETTINGS_MODULE")
            if isinstance(value, str):
                return value, project
        raise MigrationError(
            f"{self.text}: no settings module was found: there is no manage.py with DJANGO_SETTINGS_MODULE in "
            f"{self._root} or two folders below, and pyproject.toml names none. "
            f'Name it: "django:config.settings"',
            source=self.text,
        )

    @cached_property
    def _listing(self) -> dict[str, Any]:
        cached = self._cached()
        if cached is not None:
            return cached
        module, _ = self._settings
        with tempfile.TemporaryDirectory(prefix="pg-harness-") as folder:
            answer = Path(folder, "apps.json")
            nowhere = Dsn.parse(project_child.NOWHERE["DATABASE_URL"])
            context = MigrationContext(
                dsn=nowhere,
                admin_dsn=nowhere,
                environment={**self._environment, **project_child.NOWHERE},
                timeout=_LIST_TIMEOUT,
            )
            self._child(context, f"importing the settings {module}", list_to=str(answer))
            listing: dict[str, Any] = json.loads(answer.read_text("utf-8"))
        self._remember(listing)
        return listing

    def _key(self) -> list[str]:
        return [
            ADAPTER,
            sys.executable,
            self._settings[0],
            str(self._root),
            *imports.installed_versions(),
        ]

    def _cached(self) -> dict[str, Any] | None:
        file = self._cache_file()
        if file is None:
            return None
        try:
            record = file.read()
            fits = record["key"] == files.digest(self._key()) and all(
                _state(Path(name)) == state for name, state in record["states"].items()
            )
            if fits and all(isinstance(folder, str) for folder in record["listing"]["folders"].values()):
                listing: dict[str, Any] = record["listing"]
                return listing
        except (FileNotFoundError, Unreadable, KeyError, TypeError, AttributeError):
            pass  # a hint that is corrupt, or of another version of ours, is as good as none
        return None

    def _remember(self, listing: dict[str, Any]) -> None:
        file = self._cache_file()
        if file is None:
            return
        states = {name: _state(Path(name)) for name in listing["loaded"]}
        file.note({"key": files.digest(self._key()), "states": states, "listing": listing})

    def _cache_file(self) -> StateFile | None:
        if self._cache is None:
            return None
        name = files.digest([sys.executable, self._settings[0], os.path.realpath(self._root)])[:24]
        return StateFile(self._cache / f"django-{name}.json", folder_mode=0o755)

    def _is_own(self, folder: Path) -> bool:
        real = os.path.realpath(folder)
        # An editable install outside the root changes without a new version: its files count as well.
        return not any(part in ("site-packages", "dist-packages") for part in Path(real).parts)


def _state(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _module_of(manager: Path) -> str:
    try:
        text = manager.read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(r"""DJANGO_SETTINGS_MODULE['"]\s*[,\]]\s*=?\s*['"]([\w.]+)['"]""", text)
    return match.group(1) if match else ""


def _pyproject(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        table: Any = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
        for name in names:
            table = table[name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return table if isinstance(table, dict) else {}
