"""Facts of a baseline that the server's module has to know: which file belongs to which relation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from harness.postgres.session import Session
from harness.reset.sql import owners

# Of an index its table; b for a B-tree, o for a table that is no heap. Shared catalogs have no file here, and temporary tables are their session's.
FACTS = """
select pg_relation_filenode(c.oid)::int8, c.oid::int8, coalesce(i.indrelid, c.oid)::int8,
       case when c.relkind = 'i' and c.relam = 403 then 'b' when c.relkind in ('r', 'm') and c.relam <> 2 then 'o'
            else c.relkind::text end,
       c.relpersistence = 'u'
  from pg_class c
  left join pg_index i on i.indexrelid = c.oid
 where c.relkind in ('r', 'm', 'S', 't', 'i') and not c.relisshared and c.relpersistence <> 't'
   and pg_relation_filenode(c.oid) is not null
"""

_TEMPORARY = "select oid::int8 from pg_namespace where nspname ~ '^pg_temp_'"


class Facts(NamedTuple):
    """What is known of a baseline's files.

    Attributes:
        database: OID of the baseline, as text.
        files: OID → number of its file.
        temporary: OIDs of its namespaces for temporary tables, as text.
        owned: who owns what.
        values: the parameters of ``pgh_know``, as text; but for the first those of ``pgh_mark`` too.
    """

    database: bytes
    files: dict[int, int]
    temporary: bytes
    owned: owners.Owned
    values: tuple[bytes, ...]

    @property
    def namespaces(self) -> frozenset[int]:
        """:attr:`temporary`, as numbers."""
        return frozenset([int(number) for number in self.temporary[1:-1].split(b",") if number])


NOTHING = Facts(b"0", {}, b"{}", owners.Owned(b"", ""), ())
"""Of a baseline that was not read yet."""


def read(session: Session) -> Facts:
    """Read them, in the baseline. Four round trips."""
    database = session.value("select oid::int8 from pg_database where datname = current_database()")
    rows = session.rows(FACTS)
    return Facts(
        str(database).encode(),
        {oid: node for node, oid, *_ in rows},
        temporary(session),
        owners.Owned(session.value(owners.digest(database)).encode(), owners.rows_of(database)),
        (str(database).encode(), *_values(rows)),
    )


def relations(session: Session) -> tuple[bytes, ...]:
    """What ``pgh_mark`` is told of the relations of a lease, as text. One round trip."""
    return _values(session.rows(FACTS))


def _values(rows: Sequence[tuple[int, int, int, str, bool]]) -> tuple[bytes, ...]:
    nodes, oids, tables, kinds, unlogged = zip(*sorted(rows), strict=True)
    return (
        array(nodes),
        array(oids),
        array(tables),
        "".join(kinds).encode(),
        array(tuple(node for node, is_unlogged in zip(nodes, unlogged, strict=True) if is_unlogged)),
    )


def temporary(session: Session) -> bytes:
    """OIDs of a database's namespaces for temporary tables, as text, in order."""
    return array(tuple(sorted(session.column(_TEMPORARY))))


def array(numbers: Collection[int]) -> bytes:
    """As PostgreSQL reads it."""
    return f"{{{','.join(map(str, numbers))}}}".encode()
