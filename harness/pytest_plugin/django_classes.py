"""Which test classes hold a transaction open from one test to the next. Imports nothing of Django."""

from __future__ import annotations

import sys


def keeps_transaction_open(cls: type) -> bool:
    """Whether it is a ``django.test.TestCase``: its tests share a transaction until the class ends.

    ``setUpClass`` opens it, ``setUpTestData`` writes into it, and each test is a savepoint.
    """
    testing = sys.modules.get("django.test.testcases")
    if testing is None or not issubclass(cls, testing.TestCase):
        return False
    # SimpleTestCase has none; a TestCase without databases opens none.
    return bool(getattr(cls, "databases", True))
