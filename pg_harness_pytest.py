"""pytest's way into the harness: options, markers, and the question whether anything is to be done.

A module with a name of its own: thousands of projects have a package ``harness``, and ``import harness``
would find theirs first. Nothing of ``harness`` is imported where nothing is configured: a look into the
project's files is all that an unconfigured project pays.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OURS = Path(os.path.realpath(__file__)).parent / "harness"
"""Our package: it always lies beside this module."""

_FILE = "pg-harness.toml"
_INSIDE_RUN = "PGHARNESS_WORKERS"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, with the types that pytest 9 checks."""
    group = parser.getgroup("pg-harness", "a pristine PostgreSQL for every worker and test")
    group.addoption(
        "--pg-harness",
        action="store_true",
        default=False,
        help="use it although the project has no [tool.pg-harness] (migrations are detected)",
    )
    group.addoption(
        "--pg-harness-config", metavar="FILE", default=None, help="the settings file, instead of searching"
    )
    group.addoption(
        "--pg-harness-backend",
        # Which ones there are is known to `harness`, and looked up where one is given.
        metavar="BACKEND",
        default=None,
        help="what runs the server, as the setting: auto, or one that `pg-harness --help` names",
    )
    group.addoption(
        "--pg-harness-fresh",
        # Packages add words; which ones there are is known to `harness`, and looked up where one is given.
        metavar="WORD",
        default=None,
        help="what each test gets: the database reset (reset), a new clone (clone), or as the last test left it (none); "
        "or what the word of an installed package says",
    )
    group.addoption(
        "--pg-harness-keep-failed",
        type=int,
        metavar="N",
        default=None,
        help="how many failed tests' databases are kept as copies",
    )
    group.addoption(
        "--pg-harness-rebuild",
        action="store_true",
        default=False,
        help="migrate anew although a template is there",
    )
    group.addoption(
        "--pg-harness-pg-version",
        metavar="VERSION",
        default=None,
        help="version of PostgreSQL, as the setting pg_version: 17, or several, with commas",
    )
    group.addoption(
        "--pg-harness-each-version",
        action="store_true",
        default=False,
        help="run each test once for each version in pg_version: test_x[pg15], test_x[pg17]",
    )
    group.addoption(
        "--pg-harness-skip-missing-versions",
        action="store_true",
        default=False,
        help="with --pg-harness-each-version: skip the tests of versions that are not to be had here, instead of failing them",
    )
    group.addoption(
        "--pg-harness-server-url",
        metavar="URL",
        default=None,
        help="an existing server; a password is safer in the variable PGHARNESS_SERVER_URL",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Markers: known everywhere, so that --strict-markers and -m work in unconfigured runs too."""
    for line in (
        "pg(fresh=...): what this test's database starts from: 'reset', 'clone', 'none' or a package's word (pg-harness)",
        "serial_only: runs while no other test of the run is running in any worker (pg-harness)",
        "parallel_safe: may run beside others, although its module or class is serial_only (pg-harness)",
    ):
        config.addinivalue_line("markers", line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Lease and export before any conftest is imported.

    A wrapper that runs first: a plain hook's messages are swallowed by the capture, and pytest-env sets
    its variables in a hook that is tryfirst too.
    """
    start = folder_to_begin(early_config)
    if not is_configured(early_config, start):
        missing = Missing(
            f"pg-harness is installed and has no settings: no pg-harness.toml and no [tool.pg-harness] in a pyproject.toml were "
            f"found from {start[0]} upwards. Run: pg-harness init"
        )
        early_config.pluginmanager.register(missing, "pg_harness_missing")
        return (yield)
    if shadow := shadowed(early_config, start):
        if _INSIDE_RUN in os.environ:
            # `pg-harness run -- pytest` has exported everything: that is what the message below asks for.
            missing = Missing(
                f"pg-harness has no fixtures in a project with a `harness` of its own ({shadow}), which hides ours. Take "
                f"DATABASE_URL, which `pg-harness run` has set"
            )
            early_config.pluginmanager.register(missing, "pg_harness_missing")
            return (yield)
        raise pytest.UsageError(
            f"pg-harness: this project has a `harness` of its own ({shadow}), which hides ours inside pytest. "
            f"Run: pg-harness run -- pytest"
        )
    with _uncollected():
        from harness.pytest_plugin import bootstrap, guard

        state = bootstrap.begin(early_config, start)
    try:
        result = yield
    except Exception as error:
        bootstrap.explain(state, error)
        raise
    guard.stop_if_changed(state, "while the conftests were loaded")
    return result


class Missing:
    """Tells who asks for a fixture of ours why it is not there, and what to do.

    No fixtures of these names, which would hide those of other plugins; and nothing at all where no test asks for one.
    """

    names = frozenset({"pg", "pg_url", "pg_conn", "pg_harness", "pg_version", "pg_replica"})

    def __init__(self, why: str) -> None:
        self._why = why

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Look once: a test of somebody else's must not pay for it."""
        if any(not self.names.isdisjoint(getattr(item, "fixturenames", ())) for item in session.items):
            session.config.pluginmanager.register(
                MissingReport(self._why, self.names), "pg_harness_missing_report"
            )


class MissingReport:
    """The report of a test that asks for such a fixture, where nobody else has one of the name."""

    def __init__(self, why: str, names: frozenset[str]) -> None:
        self._why = why
        self._names = names

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """In place of "fixture not found" and the list of those that are there."""
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, pytest.FixtureLookupError) and error.argname in self._names:
            report.longrepr = f"fixture {error.argname!r}: {self._why}"
        return report


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection in the block: it would go through all of pytest's objects several times, for nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def folder_to_begin(config: pytest.Config) -> tuple[Path, str]:
    """Where the search for settings begins, and what to call that place."""
    if config.inipath is not None:
        return config.inipath.parent, f"pytest's {config.inipath.name}"
    return config.rootpath, "pytest's rootdir"


def is_configured(config: pytest.Config, start: tuple[Path, str]) -> bool:
    """Whether the project has our section or file, or an option or a variable names one."""
    options = config.known_args_namespace
    if options.pg_harness or options.pg_harness_config or os.environ.get("PGHARNESS_CONFIG"):
        return True
    folder = Path(os.path.realpath(start[0]))
    return any(
        (parent / _FILE).is_file() or _has_section(parent / "pyproject.toml")
        for parent in (folder, *folder.parents)
    )


def _has_section(path: Path) -> bool:
    try:
        text = path.read_bytes()
    except OSError:
        return False
    # Parsing is for those files only that name us, for instance among the development dependencies.
    if b"pg-harness" not in text:
        return False
    import tomllib

    try:
        tool = tomllib.loads(text.decode("utf-8-sig")).get("tool")
    except ValueError:
        # The settings' own reader says where the mistake is.
        return True
    return isinstance(tool, dict) and "pg-harness" in tool


def shadowed(config: pytest.Config, start: tuple[Path, str]) -> str:
    """The project's own ``harness`` that an import inside pytest finds, now or later; empty where none is.

    Later: folders of ``pythonpath`` and of rootless test folders come into ``sys.path`` after this hook,
    and then the project's tests would get *our* package.
    """
    loaded = sys.modules.get("harness")
    if loaded is not None and not _is_ours(Path(getattr(loaded, "__file__", None) or ".").parent):
        return str(getattr(loaded, "__file__", "already imported"))
    for folder in _import_folders(config, start[0]):
        for candidate in (folder / "harness", folder / "harness.py"):
            if candidate.is_file() or (_is_package(candidate) and not _is_ours(candidate)):
                return str(candidate)
    return ""


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file() or any(folder.glob("*.py"))


def _is_ours(folder: Path) -> bool:
    return os.path.realpath(folder) == str(OURS)


def _import_folders(config: pytest.Config, start: Path) -> list[Path]:
    """Folders that are, or will be, in ``sys.path`` before the first test is imported."""
    root = config.rootpath
    folders = [start, root, config.invocation_params.dir]
    folders += [root / str(path) for path in config.getini("pythonpath")]
    named = [arg.split("::")[0] for arg in config.known_args_namespace.file_or_dir]
    for name in [*named, *config.getini("testpaths"), "tests", "test"]:
        path = root / str(name)
        folder = path if path.is_dir() else path.parent
        # `prepend` puts the folder above the topmost __init__.py into sys.path.
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        folders.append(folder)
    # An empty entry of sys.path is the working directory (`python -m pytest`).
    folders += [Path(entry or ".") for entry in sys.path[:1]]
    return list(dict.fromkeys(folders))
