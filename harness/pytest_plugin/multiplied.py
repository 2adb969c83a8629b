"""``--pg-harness-each-version``: each test becomes one for each version, ``test_x[pg15]``, ``test_x[a-pg17]``.

Functions are parametrized as pytest does it. The methods of a ``TestCase`` cannot be, so each of them becomes several items.
"""

from __future__ import annotations

import unittest
from collections.abc import Generator, Sequence
from functools import cache
from typing import Any

import pytest

PARAMETER = "_pg_harness_version"
"""The fixture that functions are parametrized by; see :mod:`harness.pytest_plugin.fixtures`."""

_VERSION = pytest.StashKey[str]()


def version_of(item: pytest.Item) -> str | None:
    """The version that a test is to be run on; None: it could not be multiplied, as a doctest."""
    chosen = getattr(item, "callspec", None)
    if chosen is not None and PARAMETER in chosen.params:
        return str(chosen.params[PARAMETER])
    return item.stash.get(_VERSION, None)


class Multiplied:
    """Multiplies what is collected, and puts the tests of one version together.

    Args:
        versions: in the order of the settings.
    """

    def __init__(self, versions: Sequence[str]) -> None:
        self._versions = versions

    # Last, so that its part of a test's name comes last.
    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Functions, and methods of classes."""
        metafunc.fixturenames.append(PARAMETER)
        ids = [f"pg{version}" for version in self._versions]
        metafunc.parametrize(PARAMETER, self._versions, indirect=True, ids=ids, scope="session")

    # The innermost: --last-failed looks for names in what is collected.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Methods of a TestCase."""
        report = yield
        if report.passed and _is_test_case(getattr(collector, "obj", None)):
            report.result = [each for node in report.result for each in self._each(node)]
        return report

    def _each(self, node: pytest.Item | pytest.Collector) -> list[pytest.Item | pytest.Collector]:
        if not isinstance(node, pytest.Function) or node.parent is None:
            return [node]
        made: list[pytest.Item | pytest.Collector] = []
        for version in self._versions:
            item = _of_version(type(node)).from_parent(node.parent, name=f"{node.name}[pg{version}]")
            item.stash[_VERSION] = version
            if (known := getattr(item, "_id", None)) is not None:
                # pytest 9.2 and later: --last-failed compares ids by their parts, of which the version is one.
                item._id = type(known).parse(item.nodeid)
            made.append(item)
        return made

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """After everybody else (random orders too), and before serial tests are put last."""
        result = yield
        order = {version: place for place, version in enumerate(self._versions)}
        items.sort(key=lambda item: order.get(version_of(item) or "", 0))
        return result


def _is_test_case(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, unittest.TestCase)


@cache
def _of_version(kind: type[pytest.Function]) -> type[pytest.Function]:
    """The same kind of item, whose name is not the method's: pytest takes a TestCase's method by it."""

    def own(item: pytest.Function) -> str:
        return item.name.partition("[")[0]

    def instance(item: pytest.Function) -> Any:
        return item.parent.obj(own(item))  # type: ignore[union-attr]

    def under_its_own(phase: str) -> Any:
        def run(item: pytest.Function) -> None:
            shown, item.name = item.name, own(item)
            try:
                getattr(kind, phase)(item)
            finally:
                item.name = shown

        return run

    return type(
        kind.__name__,
        (kind,),
        {
            # Set by pytest to the name, too.
            "originalname": property(own, lambda item, value: None),
            "_getinstance": instance,
            "setup": under_its_own("setup"),
            "runtest": under_its_own("runtest"),
            "teardown": under_its_own("teardown"),
        },
    )
