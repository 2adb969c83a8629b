"""Facts of a baseline that the server's module has to know: which file belongs to which relation."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from harness.postgres.session import Session
from harness.reset.sql import owners

# Of an index its table. Shared catalogs have no file here, and temporary tables are their session's.
_FACTS = """
select pg_relation_filenode(c.oid)::int8, c.oid::int8, coalesce(i.indrelid, c.oid)::int8, c.relkind::text,
       c.relpersistence = 'u'
  from pg_class c
  left join pg_index i on i.indexrelid = c.oid
 where c.relkind in ('r', 'm', 'S', 't', 'i') and not c.relisshared and c.relpersistence <> 't'
   and pg_relation_filenode(c.oid) is not null
"""

_TEMPORARY = "select oid::int8 from pg_namespace where nspname ~ '^pg_(toast_)?temp_'"

_UNUSED = """
select array_agg(oid::int8), exists (select from pg_depend where refclassid = 'pg_namespace'::regclass and refobjid = any({oids}))
  from pg_namespace
 where oid = any({oids}) or nspname in (
       select replace(nspname, 'pg_temp_', 'pg_toast_temp_') from pg_namespace where oid = any({oids}))
"""


class Facts(NamedTuple):
    """What is known of a baseline's files.

    Attributes:
        database: OID of the baseline, as text.
        files: OID → number of its file.
        temporary: OIDs of its temporary namespaces.
        owned: who owns what.
        values: the parameters of ``pgh_know``, as text; but for the first those of ``pgh_mark`` too.
    """

    database: bytes
    files: dict[int, int]
    temporary: frozenset[int]
    owned: owners.Owned
    values: tuple[bytes, ...]


NOTHING = Facts(b"0", {}, frozenset(), owners.Owned(b"", ""), ())
"""Of a baseline that was not read yet."""


def read(session: Session) -> Facts:
    """Read them, in the baseline. Four round trips."""
    database = session.value("select oid::int8 from pg_database where datname = current_database()")
    rows = session.rows(_FACTS)
    nodes, oids, tables, kinds, unlogged = zip(*rows, strict=True)
    return Facts(
        str(database).encode(),
        dict(zip(oids, nodes, strict=True)),
        frozenset(session.column(_TEMPORARY)),
        owners.Owned(session.value(owners.digest(database)).encode(), owners.rows_of(database)),
        (
            str(database).encode(),
            _array(nodes),
            _array(oids),
            _array(tables),
            "".join(kinds).encode(),
            _array(tuple(node for node, is_unlogged in zip(nodes, unlogged, strict=True) if is_unlogged)),
        ),
    )


def unused(session: Session, namespaces: Collection[int], known: Collection[int]) -> bool:
    """Whether these temporary namespaces hold nothing, and a rewind would leave them in place. One round trip.

    Args:
        session: in the lease.
        known: OIDs of those of the baseline.
    """
    found = session.row(_UNUSED.format(oids=f"'{_array(namespaces).decode()}'::oid[]"))
    there, used = found or (None, True)
    return not used and set(there or ()) <= set(known)


def _array(numbers: Collection[int]) -> bytes:
    return f"{{{','.join(map(str, numbers))}}}".encode()
