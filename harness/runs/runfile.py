"""What a run's controller tells its workers: one file, readable by its owner only.

A worker joins with it in milliseconds: no settings are read again, no fingerprint is computed, no backend is
imported. And all workers have the same settings, whatever happens to the project's files meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.config import project
from harness.config.settings import DatabaseSettings, Settings, SourceSpec
from harness.databases.spec import Owner
from harness.databases.template import Template
from harness.dsn import Dsn
from harness.errors import ConfigError
from harness.postgres.databases import Attributes
from harness.servers.port import ServerInfo

VARIABLE = "PGHARNESS_RUN_FILE"
_FORMAT = 2


@dataclass(frozen=True)
class RunFile:
    """One run, as its workers need to know it.

    Attributes:
        run: sixteen hex digits.
        pid: the controller's process.
        settings: of the run, with options and with what the controller has found out.
        server: where the server is, with the admin's password; None where every worker starts its own.
        owner: the application's role; None as well.
        templates: database name → template.
        workers: how many there are.
    """

    run: str
    pid: int
    settings: Settings = field(repr=False)
    server: ServerInfo | None = field(repr=False)
    owner: Owner | None
    templates: Mapping[str, Template]
    workers: int = 1

    def write(self, folder: Path) -> Path:
        """Write it in one act; return its path.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        path = folder / f"{self.run}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _forget_the_dead(folder)
            project.replace_file(path, json.dumps({"format": _FORMAT, **asdict(self)}, default=os.fspath))
        except OSError as error:
            raise ConfigError(
                f"cannot write the run file {path}: {error.strerror}. "
                f"Set PGHARNESS_STATE_DIR to a folder that can be written to.",
                origin=str(path),
            ) from error
        return path

    @classmethod
    def read(cls, path: Path) -> RunFile:
        """Read what a controller wrote.

        Raises:
            ConfigError: it is gone (the controller has ended) or no such file.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("another version of pg-harness wrote it")
            server, owner = content.pop("server"), content.pop("owner")
            templates = {name: _template(fields) for name, fields in content.pop("templates").items()}
            return cls(
                settings=_settings(content.pop("settings")),
                server=ServerInfo(**{**server, "dsn": Dsn(**server["dsn"])}) if server else None,
                owner=Owner(**{**owner, "attributes": tuple(owner["attributes"])}) if owner else None,
                templates=templates,
                **content,
            )
        except FileNotFoundError:
            raise ConfigError(
                f"the run file {path} is gone: the pytest that wrote it has ended", origin=str(path)
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the run file {path} cannot be used: {type(error).__name__}: {error}", origin=str(path)
            ) from None


def _template(fields: dict[str, Any]) -> Template:
    attributes = fields.pop("attributes")
    return Template(**fields, attributes=Attributes(tuple(attributes["statements"]), attributes["comment"]))


def _settings(fields: dict[str, Any]) -> Settings:
    """JSON knows neither paths nor tuples."""
    for key in ("root", "file", "binaries"):
        fields[key] = Path(fields[key]) if fields[key] is not None else None
    databases = tuple(_database(database) for database in fields.pop("databases"))
    attributes = tuple(fields.pop("role_attributes"))
    return Settings(**fields, databases=databases, role_attributes=attributes)


def _database(fields: dict[str, Any]) -> DatabaseSettings:
    sources = {
        key: None if fields[key] is None else tuple(_source(source) for source in fields[key])
        for key in ("migrations", "seeds")
    }
    return DatabaseSettings(**{**fields, **sources, "extensions": tuple(fields["extensions"])})


def _source(fields: dict[str, Any]) -> SourceSpec:
    return SourceSpec(**{**fields, "watch": None if fields["watch"] is None else tuple(fields["watch"])})


def _forget_the_dead(folder: Path) -> None:
    """Remove what killed controllers left: the files hold passwords."""
    for path in folder.glob("*.json"):
        try:
            pid = int(json.loads(path.read_text("utf-8"))["pid"])
            alive = _alive(pid)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not alive:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill(pid, 0) ends a process on Windows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
