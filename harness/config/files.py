"""Where a project's settings are: the nearest section or file of ours, and what it holds."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import trust
from harness.errors import ConfigError

SECTION = "[tool.pg-harness]"
FILE = "pg-harness.toml"


@dataclass(frozen=True)
class Location:
    """Where the settings are.

    Attributes:
        root: the project's root, a real path.
        file: the settings file; None where the project has none.
        table: what our section holds.
        origin: why this folder is the root, for people.
    """

    root: Path
    file: Path | None
    table: Mapping[str, Any]
    origin: str

    @property
    def configured(self) -> bool:
        """Whether the project has a section or file of ours."""
        return self.file is not None

    @property
    def text_origin(self) -> str:
        """What to call the file in messages."""
        if self.file is None:
            return "settings"
        return str(self.file) if self.file.name != "pyproject.toml" else f"{self.file} {SECTION}"


def locate(
    start: Path,
    environ: Mapping[str, str],
    *,
    explicit: Path | None = None,
    start_origin: str = "the working directory",
) -> Location:
    """Find the nearest ancestor of ``start`` (itself included) that has our section or file.

    Where none has, the root is the nearest ancestor that holds ``.git``, else ``start``.

    Args:
        environ: says where the user's own settings are.
        explicit: a settings file that was named (``--config``, ``PGHARNESS_CONFIG``); nothing is searched then.

    Raises:
        ConfigError: a file that is ours cannot be read or is no TOML, both files configure us, or it is
            somebody else's (:mod:`harness.config.trust`).
    """
    if explicit is not None:
        path = explicit.absolute()
        if path.is_dir():
            path = path / FILE if (path / FILE).exists() else path / "pyproject.toml"
        if not path.is_file():
            raise ConfigError(f"the settings file {path} does not exist", key="config", origin=str(path))
        return Location(_real(path.parent), path, _section(path), f"named: {path}")
    start = _real(start)
    for folder in (start, *start.parents):
        own, project = folder / FILE, folder / "pyproject.toml"
        in_project = _section_or_none(project) if project.is_file() else None
        if own.is_file():
            if in_project is not None:
                raise ConfigError(
                    f"both {own} and {project} {SECTION} hold settings: keep one of them", origin=str(own)
                )
            trust.check(own, environ)
            return Location(folder, own, _section(own), f"has {FILE}")
        if in_project is not None:
            trust.check(project, environ)
            return Location(folder, project, in_project, f"has {SECTION} in pyproject.toml")
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            return Location(
                folder, None, {}, "the checkout around " + start_origin + "; it has no settings of ours"
            )
    return Location(start, None, {}, start_origin + "; it has no settings of ours")


def _section_or_none(path: Path) -> Mapping[str, Any] | None:
    text = _text(path)
    # A pyproject.toml of somebody else's that is no valid TOML is not our business unless it names us.
    if "pg-harness" not in text:
        return None
    tool = _toml(path, text).get("tool", {})
    table = tool.get("pg-harness") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{path}: tool.pg-harness is no table", origin=str(path))
    return table


def _section(path: Path) -> Mapping[str, Any]:
    if path.name == "pyproject.toml":
        table = _section_or_none(path)
        if table is None:
            raise ConfigError(f"{path} has no section {SECTION}", origin=str(path))
        return table
    table = _toml(path, _text(path))
    # People copy the section from pyproject.toml with its header: take it as meant.
    nested = table.get("tool")
    if isinstance(nested, dict) and isinstance(nested.get("pg-harness"), dict) and len(table) == 1:
        inner: Mapping[str, Any] = nested["pg-harness"]
        return inner
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", origin=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8, which TOML demands", origin=str(path)) from error


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", origin=str(path)) from error


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
