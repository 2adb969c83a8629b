"""A pristine, real PostgreSQL for every test worker and every test.

Importing this package does no I/O and imports none of docker, testcontainers, psycopg: names are
loaded when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from harness.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    HarnessError,
    LeaseClosed,
    LeaseError,
    LeaseInUse,
    LeaseLost,
    MigrationError,
    PoolTimeout,
    ReplicaBehind,
    ServerLost,
    ServerRefused,
    ServerStartError,
    TemplateBusy,
)

if TYPE_CHECKING:
    from harness.config.settings import Settings
    from harness.control.current import current
    from harness.databases.changed import DatabaseChanges, LeaseChanges, TableChanges
    from harness.databases.lease import Lease, LeaseMark
    from harness.databases.replicas import Replica
    from harness.dsn import Dsn
    from harness.reset.report import ResetReport
    from harness.runs.harness import Harness

__version__ = "0.1.0"

# Without a handler, Python prints warnings of a program that has configured no logging.
logging.getLogger("pg_harness").addHandler(logging.NullHandler())

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "ConfigError",
    "DatabaseChanges",
    "Dsn",
    "Harness",
    "HarnessError",
    "Lease",
    "LeaseChanges",
    "LeaseClosed",
    "LeaseError",
    "LeaseInUse",
    "LeaseLost",
    "LeaseMark",
    "MigrationError",
    "PoolTimeout",
    "Replica",
    "ReplicaBehind",
    "ResetReport",
    "ServerLost",
    "ServerRefused",
    "ServerStartError",
    "Settings",
    "TableChanges",
    "TemplateBusy",
    "__version__",
    "current",
]

_LAZY = {
    "DatabaseChanges": "harness.databases.changed",
    "Dsn": "harness.dsn",
    "Harness": "harness.runs.harness",
    "Lease": "harness.databases.lease",
    "LeaseChanges": "harness.databases.changed",
    "LeaseMark": "harness.databases.lease",
    "Replica": "harness.databases.replicas",
    "ResetReport": "harness.reset.report",
    "Settings": "harness.config.settings",
    "TableChanges": "harness.databases.changed",
    "current": "harness.control.current",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
