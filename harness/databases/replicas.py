"""A leased database on the streaming standbys of its server, where the settings ask for some (``replicas``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.config.environment import DEFAULT, replica_word
from harness.databases.address import Addressed
from harness.dsn import Dsn
from harness.errors import ConfigError


class Replica(Addressed):
    """One database of a lease on a standby: the same role, password and name at another port. It can only be read from.

    Attributes:
        number: of the standby, from 1.
    """

    def __init__(self, name: str, dsn: Dsn, number: int) -> None:
        super().__init__(name, dsn)
        self.number = number


def replicas(name: str, dsns: Sequence[Dsn]) -> tuple[Replica, ...]:
    """One database on each standby."""
    return tuple(Replica(name, dsn, number) for number, dsn in enumerate(dsns, 1))


def words(databases: Mapping[str, Sequence[Dsn]]) -> dict[str, Dsn]:
    """Addresses on standbys by the words that variables' templates name them with: ``"replica"``, ``"replica2"``,
    ``"analytics.replica"``.

    Args:
        databases: name → its address on each standby.
    """
    return {
        (replica_word(number) if name == DEFAULT else f"{name}.{replica_word(number)}"): dsn
        for name, dsns in databases.items()
        for number, dsn in enumerate(dsns, 1)
    }


class NoReplica(ConfigError):
    """Somebody waits for a standby, or asks where it is, and there is none."""

    def __init__(
        self, message: str = "the server has no standby: set `replicas = 1` (docs/stack.md)"
    ) -> None:
        super().__init__(message, key="replicas")
