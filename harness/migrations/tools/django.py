"""``django[:settings.module]``: ``migrate`` of a Django project, in a child process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.state_file import StateFile, Unreadable
from harness.dsn import Dsn
from harness.migrations.detect import DJANGO_TABLES, django_settings
from harness.migrations.hashing import files, imports, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import project_child

ADAPTER = "django 1"
VARIABLE = "DJANGO_SETTINGS_MODULE"
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
            (path for path in own if path.suffix == ".py"), project_child.source_roots(self._root, project)
        )
        found |= {Path(os.path.realpath(path)) for path in own}
        if self._spec.watch is not None:
            found.update(watched.matching(self._root, self._spec.watch, source=self.text))
        return files.digest([*parts, *watched.hash_files(sorted(found), self._root, source=self.text)])

    def apply(self, context: MigrationContext) -> None:
        self._child(context, "manage.py migrate", list_to="")

    def further(self) -> list[str]:
        """The aliases of PostgreSQL beside ``default``; a mirror, or the same database under another name, is none."""
        found: list[str] = self._listing["databases"]
        return found

    def _child(self, context: MigrationContext, step: str, *, list_to: str) -> None:
        module, project = self._settings
        project_child.run(
            "run_django",
            {
                "settings": module,
                "path": project_child.source_roots(self._root, project),
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
        managers = (
            path for level in ("", "*/", "*/*/") for path in sorted(self._root.glob(f"{level}manage.py"))
        )
        modules = ((path.parent, django_settings(_text(path))) for path in managers)
        project, module = next(((folder, found) for folder, found in modules if found), (self._root, ""))
        tables = (files.toml_table(self._root / "pyproject.toml", *names) for names in DJANGO_TABLES)
        chosen = (
            self._spec.argument
            or self._environment.get(VARIABLE)
            or module
            or next((str(table[VARIABLE]) for table in tables if VARIABLE in table), "")
        )
        if not chosen:
            raise self.failure(
                f"no settings module was found: there is no manage.py with {VARIABLE} in {self._root} or two "
                f'folders below, and pyproject.toml names none. Name it: "django:config.settings"'
            )
        return chosen, project

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
            if fits and all(
                isinstance(word, str)
                for word in (*record["listing"]["folders"].values(), *record["listing"]["databases"])
            ):
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


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
