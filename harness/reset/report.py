"""What a reset did, for callers and reports; or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import LeaseError
from harness.listing import counted

STRATEGIES = ("nothing", "rewind", "restore", "clone")
"""What a reset may have been, the one that costs the least first."""


@dataclass(frozen=True)
class ResetReport:
    """What one reset did.

    Attributes:
        strategy: ``"nothing"`` (nothing had changed), ``"rewind"`` (pages put back, connections kept), ``"restore"`` (rows
            put back, connections kept) or ``"clone"`` (a fresh clone under the same name; the application's sessions were ended).
        tables: names of the tables that were put back; catalogs are not named.
        rows: how many rows were deleted, inserted or updated; 0 where pages were put back.
        milliseconds: what it took.
        reason: why it was a clone; empty otherwise.
        ended: sessions that had to be ended, one line each.
        idle: pids of the application's sessions that were idle in a transaction when the reset looked, whether in
            its way or not; not looked for where nothing was written on the whole server.
    """

    strategy: str
    tables: tuple[str, ...] = ()
    rows: int = 0
    milliseconds: float = 0.0
    reason: str = ""
    ended: tuple[str, ...] = ()
    idle: tuple[int, ...] = ()

    def __str__(self) -> str:
        what = {
            "nothing": "nothing had changed",
            "rewind": f"pages of {counted(len(self.tables), 'table')} put back",
            "clone": "fresh clone",
        }.get(self.strategy, f"{counted(len(self.tables), 'table')}, {counted(self.rows, 'row')} put back")
        why = f" ({self.reason})" if self.reason else ""
        return f"{what}{why} in {self.milliseconds:.1f} ms"


class RecloneNeeded(LeaseError):
    """The database must be replaced by a fresh clone: putting it back is not certain, or not worth it.

    Attributes:
        reason: why, in one sentence.
        remedy: what would avoid it next time; empty where nothing would.
        lasting: True where every later reset will say the same (a missing right, an old server): say it once.
    """

    def __init__(self, reason: str, *, remedy: str = "", lasting: bool = False) -> None:
        super().__init__(f"{reason}. {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy
        self.lasting = lasting
