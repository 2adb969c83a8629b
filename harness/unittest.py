"""Pristine databases for ``unittest``: ``pg-harness run -- python -m unittest``, and one base class.

::

    from harness.unittest import PristineTestCase

    class TestUsers(PristineTestCase):
        def test_the_first_user_is_number_1(self): ...
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

from harness.control.current import CurrentLease, current


class Pristine:
    """A mixin, before a ``TestCase`` of any kind: each test finds the databases as the migrations and its class's ``setUpClass`` left them.

    Connections are kept. Outside of a run each test is an error, and no other database is touched.
    """

    _lease: ClassVar[CurrentLease | None] = None
    """While the class's tests run."""
    _ready: ClassVar[bool] = False
    """Whether the rows of setUpClass have been looked at."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("setUpClass")
        if isinstance(own, classmethod):
            # Before it, whether or not it calls what it overrides.
            def begun(cls: type[Pristine]) -> None:
                cls._begin()
                own.__get__(None, cls)()

            setattr(cls, "setUpClass", classmethod(begun))  # noqa: B010 -- a method is assigned to

    @classmethod
    def setUpClass(cls) -> None:
        """Pristine before the class, too: it may come behind tests of another kind."""
        cls._begin()
        super().setUpClass()  # type: ignore[misc]

    @classmethod
    def _begin(cls) -> None:
        if "_lease" in cls.__dict__:
            return
        cls._lease, cls._ready = current(), False
        cls._lease.reset(to="template")
        cls.addClassCleanup(cls._end)  # type: ignore[attr-defined]

    @classmethod
    def _end(cls) -> None:
        # Behind tearDownClass: for tests of another kind.
        if cls._lease is not None:
            cls._lease.reset(to="template")
        del cls._lease, cls._ready

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Reset, then the test with its setUp."""
        cls = type(self)
        if cls._lease is not None:
            if cls._ready:
                cls._lease.reset()
            elif cls._lease.changes():
                cls._lease.mark()
            cls._ready = True
        return super().run(result)  # type: ignore[misc, no-any-return]


class PristineTestCase(Pristine, unittest.TestCase):
    """:class:`unittest.TestCase`, each test with pristine databases."""


__all__ = ["Pristine", "PristineTestCase"]
