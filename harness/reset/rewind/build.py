"""Compiling the module for one PostgreSQL: one file that any C library on Linux can load.

What is compiled asks nobody for a library: PostgreSQL's own functions, and the few of the C library's that it uses, are
found in the process that loads it. So one file works with glibc, of any age, and with musl.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BackendError, BackendUnavailable
from harness.reset.rewind import elf, fit

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "native", _HERE.parents[2] / "native")
"""Where the sources lie: in an installed package; in a checkout."""

COMPILE = 300.0
"""Seconds that a compiler may take: it takes two."""

_FLAGS = (
    "-std=gnu11", "-O2", "-fPIC", "-shared", "-nostdlib", "-fno-strict-aliasing", "-fwrapv", "-Wall",
    # These two would want functions that only glibc has.
    "-fno-stack-protector", "-U_FORTIFY_SOURCE",
    # The same source makes the same bytes.
    "-Wl,--build-id=none", "-s",
    "-Wl,-z,noexecstack", "-Wl,-z,relro",
)  # fmt: skip

_MACHINE_FLAGS: Mapping[str, Sequence[str]] = {
    # Else atomics are calls to libgcc, which is not linked.
    "aarch64": ("-mno-outline-atomics",),
}

_EXPORTS = "{ global: Pg_magic_func; _PG_init; pgh_*; pg_finfo_pgh_*; local: *; };\n"

_ONE_LIBRARY_ONLY = re.compile(
    r".*_chk|__isoc\d+_.*|__(x|l|f)?stat(at)?\d*|l?f?stat(at)?(64)?|__libc_.*|gettext.*|__aarch64_.*"
)
"""Symbols that not every C library has, or not of every age: ``stat`` came into glibc with 2.33."""

_HEADER_FOLDERS = (
    "/usr/include/postgresql/*/server",  # Debian, Ubuntu
    "/usr/pgsql-*/include/server",  # PGDG on Red Hat
    "/usr/include/pgsql/server",  # Red Hat, SUSE
    "/usr/include/postgresql/server",  # Alpine, Arch
    "/usr/local/pgsql/include/server",
)


@dataclass(frozen=True)
class Headers:
    """The headers of one PostgreSQL server.

    Attributes:
        folder: where ``postgres.h`` and ``pg_config.h`` lie.
        major: of the server.
        machine: that the server is for, as ``uname -m`` says.
    """

    folder: Path
    major: int
    machine: str

    @classmethod
    def read(cls, folder: Path) -> Headers | None:
        """What the folder says; None where it holds no headers of a server."""
        text = ""
        # Debian, Red Hat: a header that includes the one of this architecture.
        for path in sorted(folder.glob("pg_config*.h")):
            text += path.read_text(errors="replace")
        version = re.search(r"^#define PG_VERSION_NUM (\d+)", text, re.MULTILINE)
        built = re.search(r'^#define PG_VERSION_STR "(.*)"', text, re.MULTILINE)
        if version is None or built is None or not (folder / "postgres.h").is_file():
            return None
        about = fit.Build(int(version[1]), built[1], {})
        return cls(folder, about.major, about.machine)


def sources() -> list[Path]:
    """The C files, in order of name.

    Raises:
        BackendError: they are not there.
    """
    for folder in _SOURCES:
        if found := sorted(folder.glob("*.c")):
            return found
    raise BackendError(f"the module's sources are not in {' or '.join(str(folder) for folder in _SOURCES)}")


def mark() -> str:
    """Twelve hex digits of the sources: what was compiled of others is not used; empty where there are none."""
    for folder in _SOURCES:
        if found := [*sorted(folder.glob("*.c")), *sorted(folder.glob("*.h"))]:
            return hashlib.sha256(b"\0".join(path.read_bytes() for path in found)).hexdigest()[:12]
    return ""


def own(cache: Path) -> Path:
    """The folder of the modules that a user has compiled of these sources."""
    return cache / "native" / mark()


def find_headers(environ: Mapping[str, str], folders: Sequence[Path] = ()) -> list[Headers]:
    """Headers that are on this machine: in the usual folders, of every ``pg_config`` on PATH; one of each version.

    Args:
        folders: of PostgreSQL's programs, or of headers, that are looked at first.
    """
    found: dict[tuple[int, str], Headers] = {}
    for folder in _header_folders(environ, folders):
        headers = Headers.read(folder)
        if headers is not None:
            found.setdefault((headers.major, headers.machine), headers)
    return [found[key] for key in sorted(found)]


def _header_folders(environ: Mapping[str, str], folders: Sequence[Path]) -> Iterator[Path]:
    path = [Path(entry) for entry in environ.get("PATH", "").split(os.pathsep) if os.path.isabs(entry)]
    for folder in folders:
        yield folder
        for inner in ("include/server", "include/postgresql/server"):
            yield folder.parent / inner
    for program in (folder / "pg_config" for folder in (*folders, *path)):
        if os.access(program, os.X_OK):
            try:
                done = subprocess.run(
                    [str(program), "--includedir-server"],
                    capture_output=True,
                    text=True,
                    timeout=10,
                    check=False,
                )
            except (OSError, subprocess.SubprocessError):
                continue
            if done.returncode == 0 and done.stdout.strip():
                yield Path(done.stdout.strip())
    for pattern in _HEADER_FOLDERS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))


def compiler(machine: str, environ: Mapping[str, str]) -> list[str]:
    """The command of a C compiler for that machine: ``CC``, else gcc, clang, cc; for another machine a cross compiler.

    Raises:
        BackendUnavailable: there is none.
    """
    here = platform.machine() == machine
    if here and (named := environ.get("CC", "").split()):
        return named
    names = ("gcc", "clang", "cc") if here else (f"{machine}-linux-gnu-gcc", f"{machine}-linux-musl-gcc")
    for name in names:
        if found := shutil.which(name, path=environ.get("PATH", os.defpath)):
            return [found]
    raise BackendUnavailable(
        f"there is no C compiler for {machine}",
        checked=[f"PATH: no {', '.join(names)}"],
        remedies=["install one, for instance: apt install gcc", "or name one: CC=/path/to/compiler"],
    )


def build(headers: Headers, out: Path, environ: Mapping[str, str]) -> Path:
    """Compile the module for the server of these headers into a folder; return the file.

    Raises:
        BackendUnavailable: no compiler.
        BackendError: the folder cannot be written to, the compiler refused, or what it made would not load everywhere.
    """
    if not fit.OLDEST <= headers.major <= fit.NEWEST:
        raise BackendError(f"PostgreSQL {headers.major} is not known: {fit.OLDEST} to {fit.NEWEST} are")
    files = sources()
    target = out / fit.name_of(headers.major, headers.machine)
    compile_with = compiler(headers.machine, environ)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".build-", dir=out)
    except OSError as error:
        raise BackendError(
            f"{out} cannot be written: {error.strerror or error}. --out names another folder, PGHARNESS_CACHE_DIR "
            "that of all that pg-harness keeps"
        ) from error
    with folder as scratch:
        exports, made = Path(scratch, "exports"), Path(scratch, "module.so")
        exports.write_text(_EXPORTS)
        command = [
            *compile_with, *_FLAGS, *_MACHINE_FLAGS.get(headers.machine, ()),
            f"-ffile-prefix-map={headers.folder}=.", f"-Wl,--version-script={exports}",
            "-I", str(headers.folder), "-o", str(made), *(file.name for file in files),
        ]  # fmt: skip
        # In the sources' folder, by plain names: paths of this machine would be in the messages.
        try:
            done = subprocess.run(
                command, cwd=files[0].parent, capture_output=True, text=True, errors="replace", check=False,
                timeout=COMPILE,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BackendError(f"{command[0]} did not compile the module within {COMPILE:.0f} s") from error
        if done.returncode != 0:
            raise BackendError(f"the module cannot be compiled with {command[0]}:\n{done.stderr.strip()}")
        if why := unportable(made.read_bytes(), headers.machine):
            raise BackendError(f"what {command[0]} made of the module cannot be used: {why}")
        made.chmod(0o644)
        made.replace(target)
    return target


def unportable(content: bytes, machine: str) -> str:
    """Why a shared object would not load in any PostgreSQL of that machine, whatever its C library; else empty."""
    try:
        made = elf.read(content)
    except elf.NotElf as error:
        return str(error)
    if made.machine != machine:
        return f"it is for {made.machine}, not for {machine}"
    if made.needed or made.versioned:
        return f"it wants {', '.join(made.needed) or 'versions of symbols'}"
    if bad := sorted(name for name in made.wanted if _ONE_LIBRARY_ONLY.fullmatch(name)):
        return f"not every C library has {', '.join(bad)}"
    return ""
