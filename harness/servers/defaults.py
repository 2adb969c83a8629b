"""Server settings for throwaway data."""

from __future__ import annotations

from collections.abc import Mapping

_THROWAWAY: Mapping[str, str] = {
    # A crash of the machine may lose this data: that is what throwaway means.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Resets read the WAL; `minimal` leaves out rows of tables that the same transaction made.
    "wal_level": "replica",
    # A new segment need not be on the disk before it is written to: nothing is flushed there anyway.
    "wal_init_zero": "off",
    # Stock servers have 0: 12 of SQLAlchemy's own tests fail for the lack of it.
    "max_prepared_transactions": "64",
    "superuser_reserved_connections": "10",
    "shared_buffers": "128MB",
    # A client machine that vanished must not keep its sign of life for two hours.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "jit": "off",
    "checkpoint_timeout": "15min",
    "autovacuum_max_workers": "2",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
    "log_lock_waits": "on",
    "logging_collector": "off",
    "log_destination": "stderr",
    "password_encryption": "scram-sha-256",
}

_STORAGE: Mapping[str, Mapping[str, str]] = {
    # max_wal_size is soft: what a small tmpfs must hold is this, wal_keep_size and a burst.
    "memory": {"max_wal_size": "192MB", "min_wal_size": "32MB", "wal_keep_size": "64MB"},
    "disk": {"max_wal_size": "1GB", "min_wal_size": "80MB", "wal_keep_size": "128MB"},
}


_WITH_REPLICAS: Mapping[str, str] = {
    # What the application has committed is in the log within this time, and soon after on the standby; else 200 ms.
    "wal_writer_delay": "10ms",
    # A standby says that it is alive, and a walsender that is stuck gives up, sooner than after a minute.
    "wal_sender_timeout": "20s",
}

_KEPT: Mapping[str, str] = {"memory": "128MB", "disk": "512MB"}
"""How much log a server keeps for standbys, by storage. No slot holds it back: a standby that was killed must not fill the disk."""


def throwaway(*, max_connections: int, user: Mapping[str, str]) -> dict[str, str]:
    """The settings that every server of ours is started with; the user's win."""
    return {**_THROWAWAY, "max_connections": str(max_connections), **user}


def complete(
    settings: Mapping[str, str], *, storage: str, server_id: str, replicas: int = 0
) -> dict[str, str]:
    """``settings``, with what depends on the storage where nobody said otherwise, and the server's identity.

    Args:
        replicas: how many standbys it will have.
    """
    more = {**_WITH_REPLICAS, "wal_keep_size": _KEPT[storage]} if replicas else {}
    return {**_STORAGE[storage], **more, **settings, "harness.server_id": server_id}


def render(settings: Mapping[str, str]) -> str:
    """One ``name=value`` a line, as the start scripts read them."""
    # A line end would begin another setting: no value of PostgreSQL's has one.
    return "".join(f"{name}={' '.join(value.splitlines())}\n" for name, value in settings.items())


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a log, for errors."""
    return "\n".join(text.splitlines()[-lines:])
