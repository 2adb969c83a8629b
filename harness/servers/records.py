"""Where the last server was seen: a file that saves a search, and is never the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config import project
from harness.config.settings import Settings
from harness.dsn import Dsn
from harness.servers.port import ServerInfo

_FORMAT = 1


@dataclass(frozen=True)
class Hint:
    """One file per checkout and purpose, readable by its owner only: it holds the password.

    Attributes:
        project: ten hex digits of the checkout.
        path: ``<state folder>/<project>/<purpose>.json``.
    """

    project: str
    path: Path

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str], purpose: str) -> Hint:
        """The hint of this checkout for one purpose."""
        mine = project.project_id(settings.root)
        return cls(mine, project.state_dir(environ) / mine / f"{purpose}.json")

    def read(self) -> tuple[ServerInfo | None, str]:
        """The server, or None and why: an empty reason where there is no file."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as error:
            return None, f"{self.path} cannot be read ({type(error).__name__})"
        try:
            return _decode(content), ""
        except (KeyError, TypeError, ValueError, AttributeError):
            return None, f"{self.path} has an unknown form"

    def write(self, info: ServerInfo) -> None:
        """Replace the file in one act. A folder that cannot be written to costs speed, not the run."""
        try:
            project.replace_file(self.path, json.dumps({"format": _FORMAT, **asdict(info)}))
        except OSError:
            return

    def forget(self) -> None:
        """Remove the file, if it is there."""
        self.path.unlink(missing_ok=True)


def _decode(content: Any) -> ServerInfo:
    if content.pop("format") != _FORMAT:
        raise ValueError("format")
    address = content.pop("dsn")
    dsn = Dsn(**address)
    if not all(isinstance(part, str) for part in (dsn.host, dsn.user, dsn.password, dsn.database)):
        raise TypeError("dsn")
    if not isinstance(dsn.port, int) or not 0 < dsn.port < 65536:
        raise TypeError("port")
    info = ServerInfo(dsn=dsn, **content)
    if not isinstance(info.server_id, str) or not info.server_id:
        raise TypeError("server_id")
    if not isinstance(info.made_with, dict):
        raise TypeError("made_with")
    return info
