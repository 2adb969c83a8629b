"""Which compiled module fits a server: by its version, its machine, and how it was built."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.reset.rewind import elf

PACKAGED = Path(__file__).with_name("modules")
"""Where the modules lie that come with this package."""

OLDEST, NEWEST = 15, 18
"""Major versions of PostgreSQL that the module's source is written for."""

BUILD = "pg-harness build-native"
"""What makes a module where none fits."""

_MACHINE = re.compile(r" on (?P<machine>\w+)-(?P<system>[^,]*),")
_NAME = re.compile(r"pgh_rewind-(?P<major>\d+)-(?P<machine>\w+)\.so")
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Module:
    """One compiled module.

    Attributes:
        content: its bytes.
        major: version of PostgreSQL that it was compiled for.
        machine: as ``uname -m`` says.
        path: the file that they were read from.
    """

    content: bytes
    major: int
    machine: str
    path: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its bytes, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file(self) -> str:
        """What it is called beside a server: another content is another file."""
        return file_of(self.schema)

    @property
    def schema(self) -> str:
        """The schema that its functions have in the maintenance database."""
        return f"pgharness_{self.digest[:12]}"


def file_of(schema: str) -> str:
    """What the module of a schema (:attr:`Module.schema`) is called beside a server."""
    return f"pgh_rewind-{schema.rpartition('_')[2]}.so"


def name_of(major: int, machine: str) -> str:
    """What the module of one major version and machine is called.

    Args:
        machine: as ``uname -m`` says, for instance ``"x86_64"``.
    """
    return f"pgh_rewind-{major}-{_SAME.get(machine, machine)}.so"


@dataclass(frozen=True)
class Build:
    """How a server was built and started, by its own word.

    Attributes:
        version: as ``server_version_num``: 150018 is 15.18.
        text: what ``version()`` says.
        settings: name → value, as ``current_setting`` gives it; empty for one that it does not know.
    """

    version: int
    text: str
    settings: Mapping[str, str]

    @property
    def major(self) -> int:
        """The major version: 15 for 150018."""
        return self.version // 10000

    @property
    def machine(self) -> str:
        """As ``uname -m`` says, for instance ``"x86_64"``; empty where the server does not tell."""
        found = _MACHINE.search(self.text)
        return _SAME.get(found["machine"], found["machine"]) if found else ""

    @property
    def system(self) -> str:
        """The operating system that it was built for, for instance ``"pc-linux-gnu"``; empty as :attr:`machine`."""
        found = _MACHINE.search(self.text)
        return found["system"] if found else ""


WANTED: Mapping[str, tuple[str, str]] = {
    "block_size": ("8192", "its blocks have {value} bytes"),
    "wal_block_size": ("8192", "the blocks of its log have {value} bytes"),
    "segment_size": ("1GB", "its files are cut at {value}"),
    # Hints would be logged, and a page that is read must have the checksum of the place where it lies.
    "data_checksums": ("off", "its pages have checksums"),
    # What a test dropped is made again without a sync to disk.
    "fsync": ("off", "it syncs its files to disk (fsync = {value})"),
}
"""Settings of a server → the value that the module is made for, and what another one means, for people."""


def unfit(build: Build) -> str:
    """Why no module can be used on a server of this build; empty where one may fit."""
    if build.major < OLDEST or build.major > NEWEST:
        return f"PostgreSQL {build.major} is not known: {OLDEST} to {NEWEST} are"
    if "linux" not in build.system:
        return f"the server runs on {build.system or 'an unknown system'}, not on Linux"
    for name, (value, otherwise) in WANTED.items():
        if (found := build.settings.get(name, "")) != value:
            return otherwise.format(value=found or "unknown")
    return ""


def everything(folders: Sequence[Path]) -> list[Module]:
    """All modules that can be read: of each version and machine, that of the first folder which has one."""
    found: dict[str, Module] = {}
    for folder in folders:
        for path in sorted(folder.glob("pgh_rewind-*.so")):
            named = _NAME.fullmatch(path.name)
            if named is not None and path.name not in found:
                try:
                    found[path.name] = Module(path.read_bytes(), int(named["major"]), named["machine"], path)
                except OSError:
                    # Said by `find`, where it is the one that is wanted.
                    continue
    return list(found.values())


def find(build: Build, folders: Sequence[Path]) -> Module | str:
    """The module for a server of this build, from the first folder that has one; else why there is none."""
    if why := unfit(build):
        return why
    name = name_of(build.major, build.machine)
    for folder in folders:
        path = folder / name
        try:
            content = path.read_bytes()
            made_for = elf.read(content).machine
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"the module {path} cannot be read: {error.strerror}"
        except elf.NotElf as error:
            # A process that loads such a file is ended by SIGBUS, and its server restarts.
            return f"the module {path} cannot be used: {error}"
        if made_for != build.machine:
            return f"the module {path} is for {made_for}, and the server runs on {build.machine}"
        return Module(content, build.major, build.machine, path)
    return f"there is no module for PostgreSQL {build.major} on {build.machine or 'this machine'}: `{BUILD}` makes one"
