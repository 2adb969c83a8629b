"""Shared by all tests: real servers, and Docker skipped with its reason or required."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytest_plugins = [
    "fix_logs",
    "fix_last_will",
    "fix_reset_servers",
    "fix_reset_case",
    "fix_rewind",
    "fix_servers",
    "fix_leases",
    "fix_backends",
    "fix_compose",
    "fix_migrations",
    "fix_fleets",
    "fix_daemons",
    "fix_registry",
    "fix_users",
    "fix_engines",
]

REQUIRE_DOCKER = os.environ.get("PGHARNESS_TEST_REQUIRE_DOCKER") == "1"
IMAGES = ("pgharness-test:15", "pgharness-test:17", "pgharness-test:busybox")

SERVER_FIXTURES = frozenset(
    {
        "server",
        "server_of",
        "reset_server",
        "own_server",
        "new_checkout",
        "place",
        "new_project",
        "initialised",
    }
)
"""Fixtures that start a PostgreSQL server, or make a project in which their tests do: all others build on these.

A module's own fixture of one of these names is one of them too. A test that starts a server without any is
marked where it stands.
"""
DOCKER_FIXTURES = frozenset({"own_daemon", "registry", "closed_registry"})

# A suite that is started in the background (`&`, nohup) inherits ignored signals, and so would every command
# that a test interrupts: it would wait for an end that never comes.
for _number, _action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


@cache
def docker_problem() -> str:
    """Why Docker tests cannot run here; empty where they can."""
    try:
        subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=True)
        for image in IMAGES:
            subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=20, check=True)
    except FileNotFoundError:
        return "there is no docker client"
    except subprocess.TimeoutExpired:
        return "the Docker daemon does not answer"
    except subprocess.CalledProcessError as error:
        if "image" in error.cmd:
            return f"the image {error.cmd[-1]} is missing: images/build-offline makes it"
        return "no Docker daemon answers"
    return ""


@pytest.fixture(scope="module", autouse=True)
def garbage_is_collected() -> Iterator[None]:
    """Sessions that nobody closed are told of when the collector finds them, and that is an error: of this module's last test, and
    not of whichever test runs by then. A twentieth of a second for each module."""
    yield
    gc.collect()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") is None:
        return
    if problem := docker_problem():
        if REQUIRE_DOCKER:
            pytest.fail(f"Docker is required here (PGHARNESS_TEST_REQUIRE_DOCKER=1), but {problem}")
        pytest.skip(problem)


def _on_17(item: pytest.Item) -> bool:
    chosen = getattr(item, "callspec", None)
    return chosen is not None and chosen.params.get("reset_server") == 17


BY_TURNS = 6
"""Parameters that a depth must have for each version, to be tried on one of the two by turns."""


def _not_this_turn(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of the depths on 15 and 18, every other parameter on each: all are tried, on one of the two. The long searches have both."""
    groups: dict[tuple[Path, str], dict[str, dict[int, pytest.Item]]] = {}
    for item in items:
        chosen = getattr(item, "callspec", None)
        version = chosen.params.get("reset_server") if chosen is not None else None
        if item.path.name.startswith("test_depth_") and version in (15, 18):
            rest = "-".join(part for part in chosen.id.split("-") if part != f"pg{version}")
            group = groups.setdefault((item.path, item.function.__name__), {})  # type: ignore[attr-defined]
            group.setdefault(rest, {})[version] = item
    left = set()
    for group in groups.values():
        if len(group) < BY_TURNS:
            continue
        for turn, versions in enumerate(group.values()):
            if len(versions) == 2:
                left.add(versions[18 if turn % 2 else 15])
    return left


def _version_of(item: pytest.Item) -> int | None:
    chosen = getattr(item, "callspec", None)
    named = [chosen.params.get(name) for name in ("reset_server", "own_server", "version")] if chosen else []
    return next((version for version in named if isinstance(version, int)), None)


def _planted_elsewhere(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of each bug that is planted, all but one version, by turns: what is asked is whether a search would see it, and the searches
    themselves run on every version. The long searches plant each on all of them."""
    files: dict[Path, dict[str, dict[int, pytest.Item]]] = {}
    for item in items:
        version = _version_of(item)
        if "planted" in item.path.name and version is not None:
            parts = item.callspec.id.split("-")  # type: ignore[attr-defined]
            rest = "-".join(part for part in parts if part not in (f"pg{version}", str(version)))
            plants = files.setdefault(item.path, {})
            plants.setdefault(f"{item.function.__name__} {rest}", {})[version] = item  # type: ignore[attr-defined]
    left = set()
    for plants in files.values():
        for turn, versions in enumerate(plants.values()):
            here = sorted(versions)[turn % len(versions)]
            left |= {item for version, item in versions.items() if version != here}
    return left


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = _not_this_turn(items) | _planted_elsewhere(items)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SERVER_FIXTURES:
            item.add_marker("server")
        if fixtures & DOCKER_FIXTURES:
            item.add_marker("docker")
        if item.path.name.startswith("test_depth_") and _on_17(item):
            # What the log says there, 15 or 18 says too; the random workloads run on all three.
            item.add_marker("slow")
        if item in elsewhere:
            item.add_marker("slow")
        if item.get_closest_marker("slow") is not None and os.environ.get("PGHARNESS_TEST_LONG") != "1":
            item.add_marker(pytest.mark.skip(reason="a longer search: PGHARNESS_TEST_LONG=1 runs it"))
    # The longest files: one of them that begins last is waited for, alone.
    items.sort(key=lambda item: "differential" not in item.path.parts)
