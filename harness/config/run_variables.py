"""The variables by which a program knows the run that it belongs to, and finds its control interface."""

URL = "PGHARNESS_CONTROL_URL"
"""``http://127.0.0.1:PORT``."""

TOKEN = "PGHARNESS_CONTROL_TOKEN"  # noqa: S105 — the variable's name
"""The bearer token: of the run, or of one lease."""

RUN = "PGHARNESS_RUN"
"""Sixteen hex digits that name the run."""

LEASE = "PGHARNESS_LEASE"
"""The number of the lease that the program has, where it has only one."""
