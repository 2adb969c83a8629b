"""The answer of the server's module: what one call has seen, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = (
    "status, why, upto, xid, busy, prepared, advisory, shared, temporary, touched, "
    "read, compared, written, truncated, made, dropped"
)
"""What is asked for, in this order."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call of ``pgh_rewind`` gave.

    Attributes:
        status: ``"nothing"`` (nobody wrote), ``"rewound"`` (the lease equals its baseline); and where nothing was changed:
            ``"busy"``, ``"locked"``, ``"temporary"`` (somebody is in the way), ``"rows"`` (pages are not enough). Of ``pgh_mark``
            ``"marked"``, or ``"relations"`` (it has to be told those of the lease).
        why: for ``"rows"``, the reason.
        upto: position at which the next window begins.
        xid: id of the call's own transaction; 0 where it had none.
        busy: pids of sessions of the application that are in the way; where nobody is, of those that idle in a transaction.
        prepared: whether there is a prepared transaction.
        advisory: advisory locks that sessions of the application hold: pid, and which lock as text.
        shared: ids (32 bits) of transactions that wrote to the catalogs of the whole server; 0 for one that had none.
        temporary: OIDs of the temporary namespaces of sessions that are in the way, for ``"temporary"``.
        touched: OIDs of what was put back: tables and sequences, no catalogs.
        work: blocks and files, for people: read, compared, written, truncated, made, dropped.
    """

    status: str
    why: str = ""
    upto: str = ""
    xid: int = 0
    busy: tuple[int, ...] = ()
    prepared: bool = False
    advisory: tuple[tuple[int, str], ...] = ()
    shared: tuple[int, ...] = ()
    temporary: tuple[int, ...] = ()
    touched: tuple[int, ...] = ()
    work: tuple[int, ...] = ()

    @property
    def wrote(self) -> bool:
        """Whether anything was put back. Unlogged tables are compared in any case."""
        return any(self.work[2:])


def parse(values: Sequence[bytes | None]) -> Answer:
    """From the row as PostgreSQL printed it, in the order of :data:`COLUMNS`.

    Raises:
        ValueError, TypeError: it has another form.
    """
    status, why, upto, xid, busy, prepared, advisory, shared, temporary, touched, *work = values
    return Answer(
        status=(status or b"").decode(),
        why=(why or b"").decode(),
        upto=(upto or b"").decode(),
        xid=int(xid or 0),
        busy=_numbers(busy),
        prepared=prepared == b"t",
        advisory=_locks(advisory),
        shared=_numbers(shared),
        temporary=_numbers(temporary),
        touched=_numbers(touched),
        work=tuple([int(count or 0) for count in work]),
    )


def _numbers(array: bytes | None) -> tuple[int, ...]:
    if array is None or array == b"{}":
        return ()
    return tuple([int(number) for number in array[1:-1].split(b",")])


def _locks(array: bytes | None) -> tuple[tuple[int, str], ...]:
    """``{"12:0,7,1,ExclusiveLock","13:…"}`` → pid, and the rest."""
    if array is None or array == b"{}":
        return ()
    texts = array.decode()[2:-2].split('","')
    return tuple([(int(pid), lock) for pid, _, lock in (text.partition(":") for text in texts)])
