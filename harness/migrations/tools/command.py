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
            self.argv(self._environment.get("PATH"))
        except MigrationError as error:
            return error.message.removeprefix(f"{self.text}: ")
        return ""

    def apply(self, context: MigrationContext) -> None:
        path = context.environment.get("PATH")
        argv = self.argv(path)
        # What the program calls, a shell or make, finds them as well.
        context = replace(
            context, environment={**context.environment, "PATH": _with_tools(path or os.defpath)}
        )
        child.migrate(self, argv, context, step=self._spec.argument, cwd=self._root)

    def argv(self, path: str | None) -> list[str]:
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
            places = [os.path.dirname(sys.executable), path]
            places = places if _tools_first() else places[::-1]
            found = next((it for place in places if (it := shutil.which(program, path=place))), None)
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


def _tools_first() -> bool:
    """Whether what is beside the interpreter comes before PATH: an environment that is called without being activated has tools too.

    A virtual environment's come first: alembic of the project, not of the system. What is beside another interpreter
    comes last, for /usr/bin before a PATH would hide the user's own choice of node.
    """
    return sys.prefix != sys.base_prefix


def _with_tools(path: str) -> str:
    beside = os.path.dirname(sys.executable)
    return os.pathsep.join((beside, path) if _tools_first() else (path, beside))
