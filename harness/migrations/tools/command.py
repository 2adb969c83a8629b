"""``command:…``: any migration tool of any language, as a child process with ``DATABASE_URL`` and ``PG*`` set."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from harness.errors import MigrationError
from harness.migrations.hashing import files, watched
from harness.migrations.port import Configured, MigrationContext
from harness.migrations.tools import child

ADAPTER = "command 1"
_SHELL_CHARACTERS = frozenset("|&;<>()$`*?[]{}~#!\n")


class CommandSource(Configured):
    """A command line of the user's."""

    def fingerprint(self) -> str:
        parts = [ADAPTER, self._spec.argument, *watched.hash_files(self._files, self._root, source=self.text)]
        return files.digest(parts)

    def lacking(self) -> str:
        try:
            self.argv(path_of(self._environment.get("PATH")))
        except MigrationError as error:
            return error.message.removeprefix(f"{self.text}: ")
        return ""

    def apply(self, context: MigrationContext) -> None:
        path = path_of(context.environment.get("PATH"))
        context = replace(context, environment={**context.environment, "PATH": path})
        child.migrate(self, self.argv(path), context, step=self._spec.argument, cwd=self._root)

    def argv(self, path: str) -> list[str]:
        """Words to run without a shell where the text is plain words, else ``sh -c text``.

        Raises:
            MigrationError: a quote without its end, or a program that is not there.
        """
        command = self._spec.argument
        if _SHELL_CHARACTERS & set(command):
            return ["sh", "-c", command]
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise self.failure(str(error), command) from None
        # FOO=bar cmd is the shell's syntax too.
        if "=" in words[0].split("/")[0]:
            return ["sh", "-c", command]
        program = words[0]
        if "/" in program:
            found = program if (self._root / program).is_file() else None
        else:
            found = shutil.which(program, path=path)
        if found is None:
            raise self.failure(
                f"there is no program {program!r} "
                f"{'below ' + str(self._root) if '/' in program else 'on PATH'}; "
                f"install it, or write the path of the one to use",
                command,
            )
        return [str(self._root / program) if "/" in program else found, *words[1:]]

    @cached_property
    def _files(self) -> list[Path]:
        if self._spec.watch is not None:
            return watched.matching(self._root, self._spec.watch, source=self.text)
        return watched.guessed(self._root, self._spec.argument, source=self.text)


def path_of(path: str | None) -> str:
    """Where programs are looked for: an environment that is called without being activated has its tools, too.

    A virtual environment's come first: alembic of the project, not of the system. What else is beside an interpreter
    comes last, for /usr/bin before a PATH would hide the user's own choice of node.
    """
    inherited = os.defpath if path is None else path
    beside = os.path.dirname(sys.executable)
    order = (beside, inherited) if sys.prefix != sys.base_prefix else (inherited, beside)
    return os.pathsep.join(part for part in order if part)
