"""Rows of the baseline, and the statements that put them back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.catalog.restore_facts import Relation, block_range, block_ranges, runs
from harness.catalog.session import Session, ident, translated

Tid = tuple[int, int]
"""Where a row lies: block, position in it (``ctid``)."""


class Rows:
    """Rows of one table, in the order in which they lie.

    Attributes:
        columns: names of the columns that can be written (generated ones are computed again).
        types: of these columns, as SQL.
        places: of each row, where it lies and which transaction wrote it (``xmin``).
        bytes: size of the rows as COPY prints them.
    """

    def __init__(
        self,
        columns: tuple[str, ...],
        types: tuple[str, ...],
        places: Sequence[tuple[Tid, int]] = (),
        lines: Sequence[bytes] = (),
    ) -> None:
        self.columns, self.types = columns, types
        self.places = tuple(places)
        self._lines = lines
        self.bytes = sum(map(len, lines))

    def __len__(self) -> int:
        return len(self.places)

    def value(self, index: int) -> Values:
        """The values of one row, as PostgreSQL prints them; None is NULL."""
        # Taken apart only now: of a hundred thousand rows a reset puts back three.
        if not self.columns:
            return ()
        return tuple(_field(field) for field in self._lines[index].split(b"\t"))

    def all(self) -> list[Values]:
        """The values of all rows."""
        return [self.value(index) for index in range(len(self))]


Values = tuple[bytes | None, ...]

_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _field(text: bytes) -> bytes | None:
    """One field of COPY's text format (PostgreSQL documentation, COPY, "Text Format")."""
    if text == b"\\N":
        return None
    if b"\\" not in text:
        return text
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), text)


_COLUMNS = """
select attname, format_type(atttypid, atttypmod) from pg_attribute
 where attrelid = %s and attnum > 0 and not attisdropped and attgenerated = '' order by attnum
"""


def read(session: Session, relation: Relation, *, blocks: Iterable[int] | None = None) -> Rows:
    """The rows of a table, of some of its blocks only where ``blocks`` is given."""
    found = session.rows(_COLUMNS, (relation.oid,))
    columns = tuple(name for name, _ in found)
    types = tuple(text for _, text in found)
    listed = "".join(", " + ident(column) for column in columns)
    source = f"select ctid, xmin{listed} from only {relation.sql}"
    if blocks is None:
        statement = source
    else:
        statement = " union all ".join(f"({source} where {where})" for where in block_ranges(blocks))
    places: list[tuple[Tid, int]] = []
    lines: list[bytes] = []
    with (
        translated(statement),
        session.connection.cursor() as cursor,
        cursor.copy(f"copy ({statement}) to stdout".encode()) as copy,
    ):
        text = b"".join(bytes(part) for part in copy)
    for line in text.split(b"\n")[:-1]:
        tid, xmin, *rest = line.split(b"\t", 2)
        places.append((parse_tid(tid), int(xmin)))
        lines.append(rest[0] if rest else b"")
    return Rows(columns, types, places, lines)


def parse_tid(text: bytes | str) -> Tid:
    """``(12,3)`` → (12, 3)."""
    plain = text.decode() if isinstance(text, bytes) else text
    block, _, position = plain.strip("()").partition(",")
    return int(block), int(position)


def tid_array(places: Iterable[Tid]) -> str:
    """A literal of the type ``tid[]``."""
    return "'{" + ",".join(f'"({block},{position})"' for block, position in places) + "}'::tid[]"


def delete_all(relation: Relation) -> str:
    """Delete every row."""
    return f"delete from only {relation.sql}"


def delete_but(relation: Relation, places: Iterable[Tid], blocks: Iterable[int]) -> list[str]:
    """Delete every row of these blocks that lies at none of these places. One statement for a run of blocks."""
    kept = sorted(places)
    statements = []
    for first, last in runs(blocks):
        here = [tid for tid in kept if first <= tid[0] <= last]
        other = f" and ctid <> all({tid_array(here)})" if here else ""
        statements.append(f"delete from only {relation.sql} where {block_range(first, last)}{other}")
    return statements


def delete_at(relation: Relation, places: Sequence[Tid]) -> str:
    """Delete the rows that lie there."""
    return f"delete from only {relation.sql} where ctid = any({tid_array(places)})"


def insert(relation: Relation, rows: Rows, values: Sequence[Values] | None = None) -> str:
    """Insert rows in their order; returns ``ctid`` of each.

    Values go in as arrays of text, cast to the column's type: what PostgreSQL prints, it reads.
    """
    chosen = rows.all() if values is None else values
    if not rows.columns:
        return f"insert into {relation.sql} select from generate_series(1, {len(chosen)}) returning ctid"
    aliases = [f"v{i}" for i in range(len(rows.columns))]
    arrays = [array_literal(row[i] for row in chosen) for i in range(len(rows.columns))]
    cast = ", ".join(f"{alias}::{type_}" for alias, type_ in zip(aliases, rows.types, strict=True))
    return (
        f"insert into {relation.sql} ({', '.join(ident(c) for c in rows.columns)}) overriding system value "
        f"select {cast} from unnest({', '.join(arrays)}) with ordinality as _({', '.join(aliases)}, nr) "
        "order by nr returning ctid"
    )


def array_literal(values: Iterable[bytes | None]) -> str:
    """A literal of the type ``text[]``, safe with ``standard_conforming_strings``."""
    parts = []
    for value in values:
        if value is None:
            parts.append("NULL")
        else:
            text = value.decode("utf-8").replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'"{text}"')
    return "'{" + ",".join(parts).replace("'", "''") + "}'::text[]"
