"""Compiling the module: one file for any C library, the same bytes each time, and plain words where it cannot be made."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from fix_cli import Project
from fix_native import headers, lacking, packaged
from fix_servers import binaries_of

from harness.cli import build_native
from harness.cli.context import Context
from harness.errors import BackendError, BackendUnavailable
from harness.reset.rewind import build, elf, fit, module

C_LIBRARY = {"memcmp", "memcpy", "memset", "memmove", "strcmp", "strlen", "strncmp", "unlink", "__errno_location"} | {
    "__sigsetjmp", "siglongjmp", "strcpy", "strchr", "snprintf", "close", "open", "pread", "qsort", "abort",
    "lseek", "mmap", "munmap", "pwrite", "strspn", "truncate", "access", "statvfs",
}  # fmt: skip
"""Functions that every C library has had for decades, under these names."""


def everywhere() -> list[Path]:
    return sorted(fit.PACKAGED.glob("pgh_rewind-*.so"))


@pytest.mark.parametrize("major", [15, 18])
def test_it_wants_nothing_of_one_c_library(major: int) -> None:
    content = packaged(major).read_bytes()
    made = elf.read(content)
    assert (made.machine, made.needed, made.versioned) == ("x86_64", (), False)
    assert made.defined >= {
        "pgh_know",
        "pgh_rewind",
        "pg_finfo_pgh_know",
        "pg_finfo_pgh_rewind",
        "Pg_magic_func",
    }
    assert {name for name in made.defined if not name.startswith(("pgh_", "pg_finfo_pgh_"))} == {
        "Pg_magic_func"
    }
    assert build.unportable(content, "x86_64") == ""
    # GNU's own tools say the same.
    said = subprocess.run(
        ["readelf", "-dW", packaged(major)], capture_output=True, text=True, check=True
    ).stdout
    assert "NEEDED" not in said
    assert "VERNEED" not in said


@pytest.mark.parametrize("version", ["15", "18"])
def test_postgres_defines_all_that_it_calls(version: str) -> None:
    wanted = elf.read(packaged(int(version)).read_bytes()).wanted
    binaries = binaries_of(version)
    if binaries is None:
        pytest.skip(f"PostgreSQL {version} is not installed on this machine")
    named = subprocess.run(
        ["nm", "-D", "--defined-only", binaries / "postgres"], capture_output=True, text=True, check=True
    ).stdout
    defined = {line.split()[-1].partition("@")[0] for line in named.splitlines()}
    assert wanted - defined <= C_LIBRARY


def test_all_that_were_made_are_for_what_their_names_say() -> None:
    if not everywhere():
        lacking("no module was compiled: scripts/build-native makes them")
    for path in everywhere():
        found = re.fullmatch(r"pgh_rewind-(\d+)-(\w+)\.so", path.name)
        assert found is not None
        assert build.unportable(path.read_bytes(), found[2]) == "", path
        # The magic block's first fields: its length, and the version that it is for.
        assert int(found[1]) in range(15, 19)


MUSL = """
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *module = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (module == NULL) { puts(dlerror()); return 1; }
    if (dlsym(module, "pgh_rewind") == NULL || dlsym(module, "Pg_magic_func") == NULL) { puts("no functions"); return 2; }
    puts("loaded");
    return 0;
}
"""


@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_musl_loads_it(major: int, tmp_path: Path) -> None:
    """As a process linked with musl, that has PostgreSQL's functions, and the C library's from musl alone."""
    path = packaged(major)
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed: apt install musl-tools")
    wanted = sorted(elf.read(path.read_bytes()).wanted - C_LIBRARY)
    (tmp_path / "host.c").write_text(MUSL)
    (tmp_path / "postgres.c").write_text("".join(f"void {name}(void) {{}}\n" for name in wanted))
    command = ["musl-gcc", "-w", "-fno-builtin", "-rdynamic", "-o", "host", "host.c", "postgres.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "host", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "loaded"), done.stdout


def test_the_same_source_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = headers(18)
    code = build.sources()[0].parent
    made = []
    for name in ("here", "elsewhere/deeper"):
        shutil.copytree(code, tmp_path / name / "native")
        shutil.copytree(about.folder, tmp_path / name / "server")
        monkeypatch.setattr(build, "_SOURCES", (tmp_path / name / "native",))
        again = build.Headers.read(tmp_path / name / "server")
        assert again is not None
        made.append(build.build(again, tmp_path / name / "out", dict(os.environ)).read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]


def test_other_sources_have_another_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.mark()
    assert re.fullmatch("[0-9a-f]{12}", before)
    shutil.copytree(build.sources()[0].parent, tmp_path / "native")
    monkeypatch.setattr(build, "_SOURCES", (tmp_path / "native",))
    assert build.mark() == before
    with next(tmp_path.glob("native/*.h")).open("a") as file:
        file.write("\n")
    assert build.mark() != before
    assert build.own(tmp_path) == tmp_path / "native" / build.mark()


def test_another_machine_is_compiled_for(tmp_path: Path) -> None:
    about = headers(15, "aarch64")
    made = build.build(about, tmp_path, dict(os.environ))
    assert made.name == "pgh_rewind-15-aarch64.so"
    assert elf.read(made.read_bytes()).machine == "aarch64"


def test_what_one_c_library_alone_can_load_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = headers(18)
    (tmp_path / "harm.c").write_text(
        "#include <sys/stat.h>\nint pgh_size(const char *path);\n"
        "int pgh_size(const char *path) { struct stat about; return stat(path, &about); }\n"
    )
    monkeypatch.setattr(build, "_SOURCES", (tmp_path,))
    with pytest.raises(BackendError, match="not every C library has stat"):
        build.build(about, tmp_path / "out", dict(os.environ))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_does_not_compile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = headers(18)
    (tmp_path / "harm.c").write_text("#error not today\n")
    monkeypatch.setattr(build, "_SOURCES", (tmp_path,))
    with pytest.raises(BackendError, match="not today"):
        build.build(about, tmp_path / "out", dict(os.environ))
    monkeypatch.setattr(build, "_SOURCES", (tmp_path / "nowhere",))
    with pytest.raises(BackendError, match="nowhere"):
        build.sources()
    assert build.mark() == ""


def test_without_a_compiler_it_says_what_to_install() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        build.compiler(platform.machine(), {"PATH": "/nonexistent"})
    assert any("apt install gcc" in line for line in caught.value.remedies)
    assert build.compiler(platform.machine(), {"PATH": "", "CC": "ccache gcc"}) == ["ccache", "gcc"]
    with pytest.raises(BackendUnavailable, match="riscv64"):
        build.compiler("riscv64", {"PATH": "/nonexistent", "CC": "gcc"})


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    about = headers(18)
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"file/out cannot be written: .*--out names another folder"):
        build.build(about, tmp_path / "file" / "out", dict(os.environ))


def test_headers_of_another_kind_are_none(tmp_path: Path) -> None:
    assert build.Headers.read(tmp_path) is None
    (tmp_path / "pg_config.h").write_text("#define PG_VERSION_NUM 150020\n")
    assert build.Headers.read(tmp_path) is None
    (tmp_path / "pg_config.h").write_text(
        '#define PG_VERSION_NUM 140005\n#define PG_VERSION_STR "PostgreSQL 14.5 on x86_64-pc-linux-gnu, compiled by gcc"\n'
    )
    (tmp_path / "postgres.h").write_text("")
    old = build.Headers.read(tmp_path)
    assert old == build.Headers(tmp_path, 14, "x86_64")
    with pytest.raises(BackendError, match="PostgreSQL 14 is not known"):
        build.build(old, tmp_path / "out", dict(os.environ))


# --- the verb ----------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A folder with a cache of its own: what is compiled there is nobody else's."""
    (tmp_path / "root").mkdir()
    return Project(tmp_path / "root", tmp_path / "state", tmp_path / "cache")


def test_the_verb_compiles_into_the_cache_and_that_is_used_first(project: Project, tmp_path: Path) -> None:
    about = headers(18)
    path = Path(project.ok("build-native", "--headers", str(about.folder)).strip())
    assert path == build.own(tmp_path / "cache") / "pgh_rewind-18-x86_64.so"
    places = module.folders(tmp_path / "cache")
    assert places == (path.parent, fit.PACKAGED)
    assert next(m for m in fit.everything(places) if (m.major, m.machine) == (18, "x86_64")).path == path
    answer = json.loads(project.ok("build-native", "--headers", str(about.folder), "--out", "here", "--json"))
    made = project.root / "here" / "pgh_rewind-18-x86_64.so"
    assert answer == [{"path": str(made), "major": 18, "machine": "x86_64"}]
    assert made.read_bytes() == path.read_bytes()


def test_the_verb_says_that_the_postgres_here_has_no_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Headers of another version were found: without a word, resets would stay row-wise as if nothing had been done."""
    folder = binaries_of("15")
    if folder is None:
        lacking("PostgreSQL 15 is not installed on this machine")
    settings = SimpleNamespace(binaries=folder, pg_version=None)
    context = cast(
        Context,
        SimpleNamespace(environ=os.environ, settings=settings, project=SimpleNamespace(cache=tmp_path)),
    )
    build_native._say_what_lacks(context, [15, 18])
    assert caplog.records == []
    monkeypatch.setattr(module.fit, "PACKAGED", tmp_path)
    build_native._say_what_lacks(context, [18])
    assert "apt install postgresql-server-dev-15" in caplog.text


def test_the_verb_says_what_is_missing(project: Project, tmp_path: Path) -> None:
    assert "no headers of a PostgreSQL server" in project.fails(
        121, "build-native", "--headers", str(tmp_path)
    )
    about = headers(18)
    said = project.fails(121, "build-native", "--headers", str(about.folder), PATH=str(tmp_path), CC="")
    assert "there is no C compiler" in said
    assert "apt install gcc" in said
