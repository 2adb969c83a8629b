"""SQLSTATE codes that decisions are taken by, named as in appendix A of PostgreSQL's manual."""

from __future__ import annotations

CONNECTION_EXCEPTION = "08"
"""A class of codes: the connection broke."""

INTEGRITY_CONSTRAINT_VIOLATION = "23"
"""A class of codes: rows that a constraint forbids."""

FEATURE_NOT_SUPPORTED = "0A000"
"""This server, or its version, cannot do it."""

ACTIVE_SQL_TRANSACTION = "25001"
"""A statement that works outside a transaction only, as CREATE INDEX CONCURRENTLY."""

INVALID_AUTHORIZATION_SPECIFICATION = "28000"
"""A log-in that is refused for another reason than its password."""

INVALID_PASSWORD = "28P01"  # noqa: S105 - what PostgreSQL calls a wrong one
"""A log-in with a wrong password, or with none."""

INVALID_CATALOG_NAME = "3D000"
"""No database of that name; RENAME and DROP say it as well."""

DEADLOCK_DETECTED = "40P01"
"""Two sessions waited for each other, and this one was chosen to give up."""

INVALID_SCHEMA_NAME = "3F000"
"""No schema of that name."""

INSUFFICIENT_PRIVILEGE = "42501"
"""The role may not do it."""

UNDEFINED_OBJECT = "42704"
"""No role, type, setting … of that name."""

UNDEFINED_FUNCTION = "42883"
"""No function of that name and arguments."""

DUPLICATE_DATABASE = "42P04"
"""``duplicate_database``."""

DUPLICATE_SCHEMA = "42P06"
"""A schema of that name is there already."""

TOO_MANY_CONNECTIONS = "53300"
"""The server, the database or the role has as many sessions as it may have."""

OBJECT_NOT_IN_PREREQUISITE_STATE = "55000"
"""A database that accepts no connections, and others that are not ready for what was asked."""

OBJECT_IN_USE = "55006"
"""Somebody is connected to the database."""

LOCK_NOT_AVAILABLE = "55P03"
"""``lock_timeout`` was over, or NOWAIT would have waited."""

QUERY_CANCELED = "57014"
"""``statement_timeout`` was over, or somebody cancelled the statement."""

ADMIN_SHUTDOWN = "57P01"
"""The session was terminated, or the server goes down."""

CRASH_SHUTDOWN = "57P02"
"""Another session crashed, and the server ends all of them."""

CANNOT_CONNECT_NOW = "57P03"
"""The server starts, recovers or goes down: it may answer in a moment."""

UNDEFINED_FILE = "58P01"
"""A file is not there: WAL that was recycled, a module that is not installed."""

INTERNAL_ERROR = "XX000"
"""Also "tuple concurrently deleted" and "tuple concurrently updated": somebody else was at the same catalog row."""

LOST = (ADMIN_SHUTDOWN, CRASH_SHUTDOWN)
"""The server ended the session, beside the class :data:`CONNECTION_EXCEPTION`."""


def is_lost(sqlstate: str) -> bool:
    """Whether the session is gone with this code."""
    return sqlstate.startswith(CONNECTION_EXCEPTION) or sqlstate in LOST
