"""What a database holds, as far as a reset needs to know it: files, kinds, obstacles, sequences.

All queries read; they run in the baseline (a clone that nobody else enters) or in the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.postgres.session import Session, ident

FIRST_USER_OID = 16384
"""Objects below it were made by initdb (FirstNormalObjectId, access/transam.h)."""


@dataclass(frozen=True)
class Relation:
    """One relation with a file.

    Attributes:
        oid: stays through TRUNCATE, which changes the file.
        kind: ``pg_class.relkind``: r table, m materialised view, S sequence, t TOAST, i index.
        catalog: a system catalog of this database.
        shared: a catalog of the whole server.
        unlogged: changes to it are not in the log.
        owner: for a TOAST table the OID of its table, else its own.
        pages: size of its file in blocks of 8 kB.
        toast: the same of its TOAST table, where long values lie.
        rows: how many it has, as ANALYZE found; 0 where it never did.
        obstacle: why its rows cannot be put back by DELETE and INSERT; empty where they can.
        referenced_by: OIDs of other tables whose foreign keys point here: a TRUNCATE has to take them too.
    """

    oid: int
    schema: str
    name: str
    kind: str
    catalog: bool = False
    shared: bool = False
    unlogged: bool = False
    owner: int = 0
    pages: int = 0
    obstacle: str = ""
    referenced_by: frozenset[int] = frozenset()
    toast: int = 0
    rows: int = 0

    @property
    def row_bytes(self) -> float:
        """Bytes of an average row, long values included; a guess where ANALYZE never counted them."""
        return 8192 * (self.pages + self.toast) / max(1, self.rows or 40 * self.pages)

    @cached_property
    def sql(self) -> str:
        """Schema-qualified, quoted."""
        return ident(self.schema, self.name)

    def __str__(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class SequenceState:
    """Where a sequence stands.

    Attributes:
        cache: how many values an open session fetches at a time.
        logged_ahead: ``log_cnt``: how many values can be taken without a word in the log.
    """

    last_value: int
    is_called: bool
    cache: int = 1
    logged_ahead: int = 0


# Temporary relations are a session's own: a pool that keeps one has changed nothing.
# As the row says: pg_relation_filenode() asks a cache, and a TRUNCATE that has ended for every snapshot tells caches a moment
# later (xact.c: CommitTransaction). Its table would stay empty: no later record names it. Mapped catalogs have no number there.
_FILES = (
    "select oid::int8, coalesce(nullif(relfilenode, 0), pg_relation_filenode(oid))::int8 from pg_class "
    "where relkind in ('r','m','S','t','i') and relpersistence <> 't'"
)

_RELATIONS = """
select c.oid::int8, n.nspname, c.relname, c.relkind::text,
       c.oid < 16384 and n.nspname in ('pg_catalog', 'pg_toast'), c.relisshared, c.relpersistence = 'u',
       coalesce(p.oid, c.oid)::int8,
       case when c.relkind in ('r', 'm') then pg_relation_size(c.oid) / 8192 else 0 end,
       case when c.reltoastrelid <> 0 then pg_relation_size(c.reltoastrelid) / 8192 else 0 end,
       greatest(c.reltuples, 0)::int8
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_class p on c.relkind = 't' and p.reltoastrelid = c.oid
 where c.relkind in ('r','m','S','t','i') and c.relpersistence <> 't'
"""

# With session_replication_role = replica ordinary triggers and rules are silent; these still fire.
_OBSTACLES = """
select tgrelid::int8, format('trigger %s is enabled ALWAYS or REPLICA', tgname)
  from pg_trigger where tgenabled in ('A', 'R')
union all
select ev_class::int8, format('rule %s is enabled ALWAYS or REPLICA', rulename)
  from pg_rewrite where ev_enabled in ('A', 'R') and ev_type <> '1'
union all
-- A value that was printed is put back as text::type: a cast of the user's own would do whatever it likes.
select attrelid::int8, format('the type of its column %s has a cast from text of its own', attname)
  from pg_attribute
 where attnum > 0 and not attisdropped and attgenerated = '' and atttypid in (
    with recursive cast_to(type) as (
        select casttarget from pg_cast where castsource = 'text'::regtype and castfunc <> 0 and oid >= 16384
        union select t.oid from pg_type t join cast_to on t.typbasetype = cast_to.type)
    select type from cast_to)
"""

_REFERENCES = """
select confrelid::int8, array_agg(distinct conrelid::int8) from pg_constraint
 where contype = 'f' and conrelid <> confrelid group by confrelid
"""

_WATCHFUL = """
select exists (select from pg_event_trigger where evtenabled in ('A', 'R')) or exists (
    select from pg_depend d join pg_proc p on p.oid = d.refobjid join pg_language l on l.oid = p.prolang
     where d.refclassid = 'pg_proc'::regclass and d.refobjid >= 16384 and l.lanname not in ('c', 'internal')
       and (d.classid in ('pg_constraint'::regclass, 'pg_class'::regclass) or exists (
            select from pg_attrdef f join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
             where d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and a.attgenerated <> '')))
"""

_SEQUENCES = "select {oid}::int8, last_value, is_called, log_cnt::int8 from {name}"


def files(session: Session, blocks: Iterable[int] | None = None) -> dict[int, int]:
    """OID → number of its file, of every relation that has one.

    Args:
        blocks: of ``pg_class``, to ask only for the relations whose rows lie there.
    """
    statement = _FILES if blocks is None else in_blocks(_FILES, blocks)
    return {oid: node for oid, node in session.rows(statement) if node}


def labels(session: Session, oids: Iterable[int]) -> list[str]:
    """Names of relations, for messages: tables rather than their indexes."""
    rows = session.rows(
        "select concat_ws('.', nullif(nspname, 'public'), relname) from pg_class c "
        "join pg_namespace n on n.oid = relnamespace where c.oid = any(%s) order by relkind in ('i', 't', 'S'), c.oid",
        (list(oids),),
    )
    return [name for (name,) in rows]


def files_of_statement(oids: Iterable[int]) -> str:
    """The query of :func:`files` for some tables, their indexes and TOAST tables; to be sent with others."""
    listed = "'{" + ",".join(map(str, oids)) + "}'::oid[]"
    return (
        "with t as (select oid, reltoastrelid from pg_class where oid = any(" + listed + ")), "
        "h as (select oid from t union select reltoastrelid from t where reltoastrelid <> 0), "
        "f as (select oid from h union select indexrelid from pg_index where indrelid in (select oid from h)) "
        "select oid, pg_relation_filenode(oid) from f"
    )


def watchful(session: Session) -> bool:
    """Whether putting rows back may run functions of the user's that write elsewhere.

    Those of CHECK constraints, domains, index expressions and generated columns; and event triggers that fire at all times.
    """
    return bool(session.value(_WATCHFUL))


def relations(session: Session) -> dict[int, Relation]:
    """OID → relation, temporary ones excluded."""
    obstacles = dict(session.rows(_OBSTACLES))
    references = {oid: frozenset(by) for oid, by in session.rows(_REFERENCES)}
    found = {}
    for oid, schema, name, kind, catalog, shared, unlogged, owner, pages, toast, rows in session.rows(
        _RELATIONS
    ):
        obstacle = obstacles.get(oid, "")
        found[oid] = Relation(
            oid, schema, name, kind, catalog, shared, unlogged, owner, pages, obstacle,
            references.get(oid, frozenset()), toast, rows,
        )  # fmt: skip
    return found


def sequences(
    session: Session, wanted: Sequence[Relation], *, caches: Mapping[int, int] | None = None
) -> dict[int, SequenceState]:
    """OID → state of these sequences.

    Args:
        caches: OID → how many values a session fetches, where that is known already.
    """
    states: dict[int, SequenceState] = {}
    if caches is None:
        caches = dict(session.rows("select seqrelid::int8, seqcache from pg_sequence"))
    # Two hundred at a time: a statement of thousands of branches exceeds the parser's stack.
    for start in range(0, len(wanted), 200):
        chunk = wanted[start : start + 200]
        statement = " union all ".join(_SEQUENCES.format(oid=s.oid, name=s.sql) for s in chunk)
        for oid, last, called, ahead in session.rows(statement):
            states[oid] = SequenceState(last, called, caches.get(oid, 1), ahead)
    return states


def runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbouring blocks."""
    found: list[tuple[int, int]] = []
    for block in sorted(set(blocks)):
        if found and block == found[-1][1] + 1:
            found[-1] = (found[-1][0], block)
        else:
            found.append((block, block))
    return found


def block_range(first: int, last: int) -> str:
    """The condition that a row lies in one of these blocks."""
    return f"ctid >= '({first},0)' and ctid < '({last + 1},0)'"


MOST_RANGES = 8
"""Runs of blocks that are asked for in branches of a statement: planning a branch costs more than a loop's turn."""


def loop_over(blocks: Iterable[tuple[int, int]]) -> str:
    """The beginning of a query that goes through runs of blocks, one scan of a range of places (nodeTidrangescan.c)
    for each; what follows is lateral, and needs OFFSET 0: a join would read all of the table."""
    spans = list(blocks)
    firsts = "{" + ",".join(f'"({first},0)"' for first, _ in spans) + "}"
    beyonds = "{" + ",".join(f'"({last + 1},0)"' for _, last in spans) + "}"
    numbers = "{" + ",".join(str(first) for first, _ in spans) + "}"
    return f"unnest('{numbers}'::int8[], '{firsts}'::tid[], '{beyonds}'::tid[]) as run(block, first, beyond)"


def in_blocks(query: str, blocks: Iterable[int]) -> str:
    """A query for the rows that lie in these blocks of a table, and for no others: sixty scattered blocks must not
    become a scan from the first of them to the last.

    Args:
        query: of one table, up to its last condition.
    """
    found = runs(blocks)
    if not found:
        return f"{query} and false"
    if len(found) <= MOST_RANGES:
        branches = [f"{query} and {block_range(*run)}" for run in found]
        return branches[0] if len(branches) == 1 else " union all ".join(f"({branch})" for branch in branches)
    return (
        f"select found.* from {loop_over(found)}, "
        f"lateral ({query} and ctid >= run.first and ctid < run.beyond offset 0) found"
    )
