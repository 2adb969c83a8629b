"""Snapshots for a Swarm: images of its manager's daemon, as the docker backend keeps them there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.servers.docker.backend import DockerBackend
from harness.servers.docker.snapshots import DockerSnapshots

if TYPE_CHECKING:
    from harness.servers.swarm.backend import SwarmBackend


class SwarmSnapshots(DockerSnapshots):
    """As the docker backend's on the same daemon: what one of them has baked, the other starts from.

    Args:
        swarm: whose services go as leftovers, too.
    """

    def __init__(self, swarm: SwarmBackend, beside: DockerBackend, cache: Path) -> None:
        super().__init__(beside, cache)
        self._swarm = swarm

    def leftovers(self) -> Sequence[str]:
        """Also services whose servers have all ended, with their secrets."""
        return [*super().leftovers(), *self._swarm.leftovers()]
