"""The values of one attempt: on which terms it is made, and what it has done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.postgres.activity import Present
from harness.reset.sql.batch import Tid

Place = tuple[Tid, int]
"""Where a row lies, and who wrote it."""


@dataclass
class Outcome:
    """What an attempt has done, as far as it was committed.

    Attributes:
        position: the insert position once the locks were held.
        until: the position up to which the log has to be read for writes of others.
        alone: nobody can have written since the look: no transaction was open then, and ours have the next ids.
        xids: our transactions, as 64-bit ids.
        rows: rows deleted or inserted.
        dead: table OID → rows that a VACUUM has to remove some day.
        vacuumed: tables in which one has done so already.
        anew: tables whose rows have to be written again as a whole, and have not been so far.
        places: table OID → where all its rows lie now.
        replaced: table OID → number of a row → where it lies now, of rows that were put back one by one.
        moved: table OID → rows of a large table that lie elsewhere now.
        displaced: table OID → blocks in which those rows lay, and lie.
        files: OID → number of its new file, where a statement of ours made one.
        inserted: table OID → rows that we inserted, those of attempts at an order too.
        present: who was in a transaction right after the last COMMIT.
        disturbed: somebody wrote between the look and the locks; he may have written elsewhere too.
    """

    position: str = ""
    until: str = ""
    alone: bool = True
    xids: list[int] = field(default_factory=list)
    rows: int = 0
    dead: dict[int, int] = field(default_factory=dict)
    vacuumed: set[int] = field(default_factory=set)
    anew: set[int] = field(default_factory=set)
    places: dict[int, list[Place]] = field(default_factory=dict)
    replaced: dict[int, dict[int, Place]] = field(default_factory=dict)
    moved: dict[int, dict[Tid, Place]] = field(default_factory=dict)
    displaced: dict[int, set[int]] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)
    inserted: dict[int, int] = field(default_factory=dict)
    present: Present = field(default_factory=Present)
    disturbed: bool = False


@dataclass(frozen=True)
class Terms:
    """On which terms an attempt is made.

    Attributes:
        locked: the transaction is open already, and holds the locks.
        lockless: no lock is to be had, because of sessions that hold one, idle, and have written nothing: whoever
            writes meanwhile is found in the log afterwards.
        database, ours: to ask who still sees what was before, or may write into it.
        clear: waits for whoever still sees what was before a transaction of ours, or ends them.
        deadline: of ``time.monotonic()``; past it a fresh clone is the better way.
        next_id: the id that our first transaction gets where nobody else has had one since the look, nor had then.
        quiet: nobody else was in a transaction when the log was looked at.
    """

    locked: bool
    lockless: bool
    database: int
    ours: Sequence[int]
    clear: Callable[[int], bool]
    deadline: float
    next_id: int
    quiet: bool
