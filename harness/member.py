"""One worker's harness on a server of its own: the server ends with its last lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core import Harness
from harness.databases.lease import Lease
from harness.errors import HarnessError
from harness.postgres import databases, names
from harness.postgres.session import literal

if TYPE_CHECKING:
    from harness.fleet import Fleet


class Member(Harness):
    """One worker's harness: its server ends with its last lease, and with it.

    Attributes:
        fleet: the run that it belongs to.
        worker: whose server this is.
    """

    fleet: Fleet
    worker: str

    def _forget(self, lease: Lease) -> None:
        super()._forget(lease)
        if not self._leases and not self.kept():
            self.fleet.end(self.worker)

    def _clean_up(self) -> None:
        """A new server holds nothing that anybody has left."""

    def fill_aside(self, count: int) -> None:
        """The other workers have servers of their own: spares here would be nobody's."""

    def kept(self) -> list[str]:
        """Databases that stay for people; the server outlives its run then, for ``ttl``."""
        try:
            session = self.link.session
            found = [
                database.name
                for database in databases.list_ours(session, self.project)
                if database.parsed is not None and database.parsed.kind is names.Kind.KEPT
            ]
            if found:
                session.execute(
                    f"alter database postgres set harness.ttl = {literal(f'{self.settings.ttl:g}')}"
                )
        except HarnessError:
            # It is gone, and so is all that was kept.
            return []
        return found

    def release_run(self, workers: Sequence[str] | None = None) -> list[str]:
        """End the servers of other workers (one that has crashed), or let go of this one with None."""
        if workers is None:
            return []
        return self.fleet.release_run(workers)

    def close(self) -> None:
        """End the server. Twice is once."""
        self.fleet.close()


def purpose_of(run: str, worker: str) -> str:
    """The purpose of a worker's server; ten workers of two runs have twenty."""
    # The worker's word is a user's text: only its plain form or its hash goes into a container's name.
    plain = names.lease("0" * 10, run, worker, 0).rpartition("_")[0].rpartition("_")[2]
    return f"run-{run[:8]}-{plain}"
