"""Facts of a baseline that the server's module has to know: which file belongs to which relation."""

from __future__ import annotations

from typing import NamedTuple

from harness.postgres.session import Session

# Of TOAST tables and of their indexes the table whose values they hold. Shared catalogs have no file here.
_FACTS = """
select pg_relation_filenode(c.oid)::int8, c.oid::int8, coalesce(t.oid, i.indrelid, c.oid)::int8, c.relkind::text,
       c.relpersistence = 'u'
  from pg_class c
  left join pg_index i on i.indexrelid = c.oid
  left join pg_class t on t.reltoastrelid = coalesce(i.indrelid, c.oid)
 where c.relkind in ('r', 'm', 'S', 't', 'i') and not c.relisshared and c.relpersistence <> 't'
   and pg_relation_filenode(c.oid) is not null
"""


class Facts(NamedTuple):
    """What is known of a baseline's files.

    Attributes:
        database: OID of the baseline, as text.
        files: OID → number of its file.
        values: the parameters of ``pgh_know``, as text.
    """

    database: bytes
    files: dict[int, int]
    values: tuple[bytes, ...]


NOTHING = Facts(b"0", {}, ())
"""Of a baseline that was not read yet."""


def read(session: Session) -> Facts:
    """Read them, in the baseline. Two round trips."""
    database = session.value("select oid::int8 from pg_database where datname = current_database()")
    rows = session.rows(_FACTS)
    nodes, oids, tables, kinds, unlogged = zip(*rows, strict=True)
    return Facts(
        str(database).encode(),
        dict(zip(oids, nodes, strict=True)),
        (
            str(database).encode(),
            _array(nodes),
            _array(oids),
            _array(tables),
            "".join(kinds).encode(),
            _array(tuple(node for node, is_unlogged in zip(nodes, unlogged, strict=True) if is_unlogged)),
        ),
    )


def _array(numbers: tuple[int, ...]) -> bytes:
    return f"{{{','.join(map(str, numbers))}}}".encode()
