"""What every verb is given: the words of the command line, the environment, a console; settings on demand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.cli.console import Console
from harness.config import decisions
from harness.config.project import Project
from harness.errors import ConfigError, HarnessError
from harness.migrations import registry as sources
from harness.servers import registry as backends

if TYPE_CHECKING:
    from harness.config.settings import Settings
    from harness.servers.inventory import Asked

OVERRIDES = ("backend", "image", "server_url", "isolation", "storage", "pg_version", "binaries")
"""Options that are settings; the rest are in the file or in variables."""


class Context:
    """One run of one verb.

    Attributes:
        arguments: what was said; what was not said is no attribute, unless the verb names a default.
        environ: the process's environment; nothing below the command line reads it by itself.
        console: where to speak.
        command: the words after ``--``; None where there was no ``--``.
    """

    def __init__(
        self,
        arguments: SimpleNamespace,
        environ: Mapping[str, str],
        console: Console,
        command: Sequence[str] | None = None,
    ) -> None:
        self.arguments = arguments
        self.environ = environ
        self.console = console
        self.command = command

    @cached_property
    def settings(self) -> Settings:
        """The project's settings.

        Raises:
            ConfigError: names file, key and the nearest right key, kind of migrations, backend or word.
        """
        # Not for `--help`: it reads no file, and needs no reader of TOML.
        from harness.config.load import SettingWarning, load

        given: dict[str, Any] = {name: getattr(self.arguments, name, None) for name in OVERRIDES}
        explicit = getattr(self.arguments, "config", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SettingWarning)
            settings = load(
                self.environ,
                start=working_directory(),
                explicit=Path(explicit) if explicit else None,
                overrides=given,
                override_origin="the command line",
            )
        sources.check_settings(settings)
        backends.check_settings(settings)
        if "fresh" in settings.origins:
            # Only then: a warm `up` imports nothing to learn that the default is right.
            from harness.databases import freshness

            freshness.check_settings(settings)
        for warning in caught:
            self.console.warn(str(warning.message))
        return settings

    @cached_property
    def project(self) -> Project:
        """The project, with its settings and the environment.

        Raises:
            ConfigError: as :attr:`settings`.
        """
        return Project.of(self.settings, self.environ)

    @cached_property
    def asked(self) -> Asked:
        """The backends: asked once for all that a command wants to know, because one that is silent costs its time-out."""
        from harness.servers.inventory import Asked

        return Asked.of(self.project)

    def check_asked(self, *, warn: bool = False) -> None:
        """Before a command says that there is nothing, where it has asked the backends.

        Args:
            warn: there is something to tell all the same.

        Raises:
            BackendUnavailable: some could not be asked.
        """
        if "asked" not in self.__dict__:
            return
        if not warn:
            self.asked.check("and there may be more")
        for word, why in self.asked.silent.items():
            self.console.warn(f"{word} could not be asked, and there may be more: {why}")

    def note(self, error: HarnessError) -> None:
        """Keep an error for a later report, where it is known of which project it is."""
        if "project" in self.__dict__:
            decisions.note(self.project, "error", error.full_text)

    @property
    def json(self) -> bool:
        """Whether the answer is for a program."""
        return bool(getattr(self.arguments, "json", False))


def working_directory() -> Path:
    """Where the command was called.

    Raises:
        ConfigError: the folder was removed under the shell.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working directory does not exist any more: cd to a folder that does") from None
