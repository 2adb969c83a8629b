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
    ServerLost,
    ServerRefused,
    ServerStartError,
    TemplateBusy,
)

if TYPE_CHECKING:
    from harness.config.settings import Settings
    from harness.control.current import current
    from harness.databases.lease import Lease
    from harness.dsn import Dsn
    from harness.runs.harness import Fleet, Harness

__version__ = "0.1.0"

# Without a handler, Python prints warnings of a program that has configured no logging.
logging.getLogger("pg_harness").addHandler(logging.NullHandler())

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "ConfigError",
    "Dsn",
    "Fleet",
    "Harness",
    "HarnessError",
    "Lease",
    "LeaseClosed",
    "LeaseError",
    "LeaseInUse",
    "LeaseLost",
    "MigrationError",
    "PoolTimeout",
    "ServerLost",
    "ServerRefused",
    "ServerStartError",
    "Settings",
    "TemplateBusy",
    "__version__",
    "current",
]

_LAZY = {
    "Dsn": "harness.dsn",
    "Fleet": "harness.runs.harness",
    "Harness": "harness.runs.harness",
    "Lease": "harness.databases.lease",
    "Settings": "harness.config.settings",
    "current": "harness.control.current",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
