"""Rows of the baseline, and the statements that put them back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from harness.postgres.session import Session, ident, translated
from harness.reset.sql.batch import Tid, parse_tid
from harness.reset.sql.relations import Relation, block_range, loop_over, runs

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


class Rows:
    """Rows of one table, in the order in which they lie.

    Attributes:
        columns: of the table.
    """

    def __init__(self, columns: Columns, result: PGresult | None) -> None:
        """
        Args:
            result: of a query for ``ctid``, ``xmin``, the columns and the generated ones, as text; None: no rows.
        """
        self.columns = columns
        # Kept as the server sent it, and taken apart when wanted: of a hundred thousand rows a reset puts back three.
        self._result = result
        self._count = result.ntuples if result is not None else 0

    @cached_property
    def places(self) -> tuple[tuple[Tid, int], ...]:
        """Of each row, where it lies and which transaction wrote it (``xmin``)."""
        if self._result is None:
            return ()
        value = self._result.get_value
        return tuple((parse_tid(value(i, 0) or b""), int(value(i, 1) or b"0")) for i in range(self._count))

    def __len__(self) -> int:
        return self._count

    @property
    def last_block(self) -> int:
        """The block in which the last of them lies; 0 where there is none."""
        if self._result is None or not self._count:
            return 0
        return parse_tid(self._result.get_value(self._count - 1, 0) or b"")[0]

    def value(self, index: int) -> Values:
        """The values of one row, as PostgreSQL prints them; None is NULL."""
        if self._result is None:
            return ()
        value = self._result.get_value
        return tuple(value(index, column) for column in range(2, 2 + len(self.columns.names)))

    def generated(self, index: int) -> Values:
        """The values of its generated columns, which PostgreSQL computes again."""
        if self._result is None:
            return ()
        value, first = self._result.get_value, 2 + len(self.columns.names)
        return tuple(value(index, column) for column in range(first, first + len(self.columns.generated)))


PAGE = 8168
"""Bytes of a page that rows can take up (bufpage.h: all but its head)."""

TUPLE_HEAD = 24
"""Bytes of a row before its first value, at least (htup_details.h: SizeofHeapTupleHeader, aligned)."""

Values = tuple[bytes | None, ...]

_COLUMNS = """
select attname, format_type(atttypid, atttypmod), attgenerated = 's' from pg_attribute
 where attrelid = %s and attnum > 0 and not attisdropped and attgenerated in ('', 's') order by attnum
"""


class Columns(NamedTuple):
    """The columns of a table that lie in its rows.

    Attributes:
        names: of those that can be written.
        types: of these, as SQL.
        generated: names of those that are computed.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    generated: tuple[str, ...]

    @property
    def listed(self) -> str:
        """For a query, each after a comma."""
        # An xml printed as text keeps its declaration, and so does a text that is read as xml.
        named = [
            ident(n) + ("::text" if t == "xml" else "") for n, t in zip(self.names, self.types, strict=True)
        ]
        return "".join(", " + name for name in [*named, *map(ident, self.generated)])


def columns_of(session: Session, relation: Relation) -> Columns:
    """Read them."""
    found = session.rows(_COLUMNS, (relation.oid,))
    written = [(name, text) for name, text, generated in found if not generated]
    return Columns(
        tuple(name for name, _ in written),
        tuple(text for _, text in written),
        tuple(name for name, _, generated in found if generated),
    )


def read(session: Session, relation: Relation, *, known: Columns | None = None) -> Rows:
    """The rows of a table.

    Args:
        known: the table's columns, where they have been read before.
    """
    columns = known or columns_of(session, relation)
    return _read(session, relation, columns, "")


def read_at(session: Session, relation: Relation, columns: Columns, places: Iterable[Tid]) -> Rows:
    """The rows that lie there."""
    return _read(session, relation, columns, f" where ctid = any({tid_array(places)})")


def _read(session: Session, relation: Relation, columns: Columns, where: str) -> Rows:
    statement = f"select ctid, xmin{columns.listed} from only {relation.sql}{where}"
    with translated(f"read the rows of {relation}"):
        result = session.connection.execute(statement.encode()).pgresult
    return Rows(columns, result)


def pairs(relation: Relation) -> str:
    """The query for place and writer of each row."""
    return f"select ctid, xmin from only {relation.sql}"


def used(relation: Relation, block: int) -> str:
    """The query for the bytes that rows take up in a block of a table, pointers to them included."""
    return (
        f"select coalesce(sum((pg_column_size(t.*) + 7) / 8 * 8 + 4), 0)::int8 from only {relation.sql} t "
        f"where {block_range(block, block)}"
    )


def has_room(relation: Relation, blocks: range) -> str:
    """The query for whether a row of the table, however short, may fit beside those of any of these blocks."""
    return (
        f"select coalesce(bool_or({PAGE} - coalesce(used.bytes, 0) >= shortest.bytes), false) "
        f"from {loop_over((block, block) for block in blocks)}, "
        "lateral (select sum((pg_column_size(t.*) + 7) / 8 * 8 + 4) as bytes "
        f"from only {relation.sql} t where ctid >= run.first and ctid < run.beyond offset 0) used, "
        f"(select ({TUPLE_HEAD} + coalesce(sum(greatest(attlen, 1)) filter (where attnotnull), 0) + 7) / 8 * 8 + 4 as bytes "
        f"from pg_attribute where attrelid = {relation.oid} and attnum > 0 and not attisdropped) shortest"
    )


Blocks = dict[int, bytes]
"""Block → place and writer of each row in it, as :func:`in_order` says them."""


def places_in(relation: Relation, blocks: Iterable[int]) -> str:
    """The query for the rows of these blocks, for :func:`blocks_of`: a line for each block, because sixty thousand rows
    take longer to be taken apart here than to be read there."""
    wanted = sorted(set(blocks))
    return (
        f"select run.block, found.places from {loop_over(zip(wanted, wanted, strict=True))}, lateral ("
        f"select string_agg(ctid::text || xmin, '') as places from only {relation.sql} "
        "where ctid >= run.first and ctid < run.beyond offset 0) found"
    )


def blocks_of(rows: Iterable[tuple[bytes | None, ...]]) -> Blocks:
    """From what :func:`places_in` gives."""
    return {int(block or b"0"): places for block, places in rows if places}


def in_order(places: Iterable[tuple[Tid, int]]) -> bytes:
    """As the server says it: ``(0,1)726(0,2)731``."""
    return b"".join(b"(%d,%d)%d" % (*tid, xmin) for tid, xmin in sorted(places))


def written_again(text: bytes, place: tuple[Tid, int]) -> bytes:
    """What :func:`in_order` says once another transaction has written the row that lies there."""
    tid, xmin = place
    begin = text.index(b"(%d,%d)" % tid)
    end = text.find(b"(", begin + 1)
    return text[:begin] + b"(%d,%d)%d" % (*tid, xmin) + (text[end:] if end >= 0 else b"")


def differing(here: Blocks, there: Blocks) -> tuple[set[tuple[Tid, int]], set[tuple[Tid, int]]]:
    """Place and writer of each row that is only here, and of each that is only there."""
    ours: set[tuple[Tid, int]] = set()
    theirs: set[tuple[Tid, int]] = set()
    for block in here.keys() | there.keys():
        one, two = here.get(block, b""), there.get(block, b"")
        if one != two:
            found, wanted = set(one[1:].split(b"(")), set(two[1:].split(b"("))
            ours.update(_place(text) for text in found - wanted if text)
            theirs.update(_place(text) for text in wanted - found if text)
    return ours, theirs


def _place(text: bytes) -> tuple[Tid, int]:
    """``0,1)726`` → ((0, 1), 726)."""
    tid, _, xmin = text.partition(b")")
    block, number = tid.split(b",")
    return (int(block), int(number)), int(xmin)


def tid_array(places: Iterable[Tid]) -> str:
    """A literal of the type ``tid[]``."""
    return "'{" + ",".join(f'"({block},{position})"' for block, position in places) + "}'::tid[]"


def delete_all(relation: Relation) -> str:
    """Delete every row."""
    return f"delete from only {relation.sql}"


MOST_GAPS = 3
"""Ranges of places that are deleted one by one; beyond, each row is compared with all that stay."""


MOST_RUNS = 16
"""Runs of blocks that :func:`delete_but` takes one by one."""


def delete_but(relation: Relation, places: Sequence[Tid], blocks: Iterable[int]) -> list[str]:
    """Delete every row of these blocks that lies at none of these places.

    Args:
        places: sorted.
    """
    statements = []
    found = runs(blocks)
    if len(found) > MOST_RUNS:
        # Of a small table, and all that stays in it is known: the blocks in between do no harm.
        found = [(found[0][0], found[-1][1])]
    for first, last in found:
        kept = places[bisect_left(places, (first, 0)) : bisect_left(places, (last + 1, 0))]
        gaps = _gaps(first, last, kept)
        if len(gaps) <= MOST_GAPS:
            where = [f"ctid >= '({a[0]},{a[1]})' and ctid < '({b[0]},{b[1]})'" for a, b in gaps]
        else:
            where = [f"{block_range(first, last)} and ctid <> all({tid_array(kept)})"]
        statements += [f"delete from only {relation.sql} where {condition}" for condition in where]
    return statements


def _gaps(first: int, last: int, kept: Sequence[Tid]) -> list[tuple[Tid, Tid]]:
    """The ranges between places, from the beginning of one block to the end of another."""
    gaps = []
    begin = (first, 1)  # places in a block are counted from 1
    for tid in kept:
        if tid != begin:
            gaps.append((begin, tid))
        begin = (tid[0], tid[1] + 1)
    return [*gaps, (begin, (last + 1, 0))]


def delete_at(relation: Relation, places: Sequence[Tid]) -> str:
    """Delete the rows that lie there."""
    return f"delete from only {relation.sql} where ctid = any({tid_array(places)})"


def insert(relation: Relation, columns: Columns, values: Sequence[Values]) -> str:
    """Insert rows in their order; returns ``ctid`` and the generated columns of each.

    Values go in as arrays of text, cast to the column's type: what PostgreSQL prints, it reads.
    """
    names, types, generated = columns
    returning = ", ".join(["ctid", *map(ident, generated)])
    if not names:
        return (
            f"insert into {relation.sql} select from generate_series(1, {len(values)}) returning {returning}"
        )
    aliases = [f"v{i}" for i in range(len(names))]
    arrays = [array_literal(row[i] for row in values) for i in range(len(names))]
    cast = ", ".join(f"{alias}::{type_}" for alias, type_ in zip(aliases, types, strict=True))
    return (
        f"insert into {relation.sql} ({', '.join(map(ident, names))}) overriding system value "
        f"select {cast} from unnest({', '.join(arrays)}) with ordinality as _({', '.join(aliases)}, nr) "
        f"order by nr returning {returning}"
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
