"""``python:module:callable``: a function of the project's, in a child process."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from harness.migrations.hashing import files, imports, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import project_child

ADAPTER = "python 1"
_DATA = {".sql", ".csv", ".json", ".toml", ".yaml", ".yml"}


class PythonSource(Configured):
    """A callable that takes the URL, or nothing and reads ``DATABASE_URL``."""

    def fingerprint(self) -> str:
        # A callable of an installed package: its version stands for its files.
        return files.digest(
            [
                ADAPTER,
                self._spec.argument,
                *imports.installed_versions(),
                *watched.hash_files(self._files, self._root, source=self.text),
            ]
        )

    def apply(self, context: MigrationContext) -> None:
        project_child.run(
            "run_python",
            {
                "callable": self._spec.argument,
                "url": context.dsn.url,
                "path": project_child.source_roots(self._root),
            },
            context,
            source=self,
            step=self._spec.argument,
            cwd=self._root,
        )

    @cached_property
    def _files(self) -> list[Path]:
        if self._spec.watch is not None:
            return watched.matching(self._root, self._spec.watch, source=self.text)
        return sorted(self._reachable())

    def _reachable(self) -> set[Path]:
        roots = project_child.source_roots(self._root)
        module = self._spec.argument.partition(":")[0]
        modules = imports.closure(imports.files_of(module, roots), roots)
        data: set[Path] = set()
        for folder in {path.parent for path in modules if path.parent not in [Path(r) for r in roots]}:
            data.update(path for path in watched.walk(folder) if path.suffix in _DATA)
            if len(data) > watched.LIMIT:
                raise self.failure(f'more than {watched.LIMIT} data files below {folder}; use watch = ["…"]')
        return modules | data
