"""``flask[:migrations]``: the history that Flask-Migrate keeps, by ``flask db upgrade`` of the application that Flask itself finds."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path

from harness.migrations.hashing import files, imports, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import project_child

ADAPTER = "flask 1"
PACKAGES = ("flask", "flask-migrate", "flask-sqlalchemy", "alembic", "sqlalchemy")


class FlaskSource(Configured):
    """``flask db upgrade`` to the one head.

    The fingerprint covers the folder of migrations, what the revisions import of the project, and the versions of the
    packages. The application and its models are not in it: they decide what ``flask db migrate`` writes, not what
    ``upgrade`` does.
    """

    def fingerprint(self) -> str:
        versions = imports.installed_versions(list(PACKAGES))
        return files.digest(
            [ADAPTER, *versions, *watched.hash_files(self._files, self._root, source=self.text)]
        )

    def lacking(self) -> str:
        if imports.installed_versions(["flask-migrate"]):
            return ""
        return f"Flask-Migrate is not installed for {sys.executable}: pip install Flask-Migrate"

    def apply(self, context: MigrationContext) -> None:
        project_child.run(
            "run_flask",
            {
                "directory": self._folder,
                "database": context.dsn.database,
                "host": context.dsn.host,
                "port": str(context.dsn.port),
                # Flask puts the folder of the application first, and nothing else.
                "path": [],
                "last": project_child.source_roots(self._root, self._folder.parent),
            },
            context,
            source=self,
            step="flask db upgrade",
            # Where its users call flask: .flaskenv, wsgi.py and app.py are looked for there.
            cwd=self._folder.parent,
        )

    @cached_property
    def _folder(self) -> Path:
        folder = self._root / (self._spec.argument or "migrations")
        if not (folder / "alembic.ini").is_file():
            raise files.missing(folder / "alembic.ini", self._root, source=self.text, what="the file")
        return folder

    @cached_property
    def _files(self) -> list[Path]:
        found = {path for path in watched.walk(self._folder) if path.suffix != ".mako"}
        revisions = {path for path in found if path.suffix == ".py" and path.name != "env.py"}
        found |= imports.closure(revisions, project_child.source_roots(self._root, self._folder.parent))
        if self._spec.watch is not None:
            found.update(watched.matching(self._root, self._spec.watch, source=self.text))
        return sorted({Path(os.path.realpath(path)) for path in found})
