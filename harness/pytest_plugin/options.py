"""pytest options as settings."""

from __future__ import annotations

from typing import Any


def given_as_options(options: Any) -> dict[str, Any]:
    """The settings that were given as options of pytest."""
    given = {
        "backend": options.pg_harness_backend,
        "fresh": options.pg_harness_fresh,
        "keep_failed": options.pg_harness_keep_failed,
        "server_url": options.pg_harness_server_url,
    }
    return {key: value for key, value in given.items() if value is not None}
