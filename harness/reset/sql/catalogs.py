"""Whether touched system catalogs still say the same: DDL that was rolled back or undone must not cost a clone.

A catalog row that nobody touched lies at the same place, written by the same transaction, as in the
baseline, because both are copies of the same files. So ``(ctid, xmin)`` tells which rows are old, without
reading them; only what is new, and what is gone, is compared as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.postgres.session import Session
from harness.reset.sql import batch
from harness.reset.sql.batch import Tid
from harness.reset.sql.objects import LABELS, Difference, told
from harness.reset.sql.relations import in_blocks
from harness.reset.sql.rows import tid_array

STATISTICS = frozenset({"pg_statistic", "pg_statistic_ext_data"})
"""Planner statistics are not restored; ANALYZE is no change."""

LARGE_OBJECTS = frozenset({"pg_largeobject", "pg_largeobject_metadata"})

# What TRUNCATE, VACUUM and ANALYZE write there, and nobody's schema depends on.
_CLASS_NOISE = (
    "relfilenode",
    "relpages",
    "reltuples",
    "relallvisible",
    "relallfrozen",
    "relfrozenxid",
    "relminmxid",
)

_TEMP_NS = "(select oid from pg_namespace where nspname ~ '^pg_(toast_)?temp_[0-9]+$')"
_TEMP_CLASS = f"(select oid from pg_class where relnamespace in {_TEMP_NS})"
_TEMP_TYPE = f"(select oid from pg_type where typnamespace in {_TEMP_NS})"
_TEMP_PROC = f"(select oid from pg_proc where pronamespace in {_TEMP_NS})"
_TEMP_OBJECT = f"""(({{c}} = 'pg_class'::regclass and {{o}} in {_TEMP_CLASS})
    or ({{c}} = 'pg_type'::regclass and {{o}} in {_TEMP_TYPE})
    or ({{c}} = 'pg_proc'::regclass and {{o}} in {_TEMP_PROC})
    or ({{c}} = 'pg_namespace'::regclass and {{o}} in {_TEMP_NS})
    or ({{c}} = 'pg_attrdef'::regclass and {{o}} in (select oid from pg_attrdef where adrelid in {_TEMP_CLASS}))
    or ({{c}} = 'pg_rewrite'::regclass and {{o}} in (select oid from pg_rewrite where ev_class in {_TEMP_CLASS}))
    or ({{c}} = 'pg_trigger'::regclass and {{o}} in (select oid from pg_trigger where tgrelid in {_TEMP_CLASS}))
    or ({{c}} = 'pg_policy'::regclass and {{o}} in (select oid from pg_policy where polrelid in {_TEMP_CLASS}))
    or ({{c}} = 'pg_constraint'::regclass and {{o}} in
        (select oid from pg_constraint where conrelid in {_TEMP_CLASS} or contypid in {_TEMP_TYPE})))"""

TEMPORARY: Mapping[str, str] = {
    "pg_namespace": f"t.oid in {_TEMP_NS}",
    "pg_class": f"t.relnamespace in {_TEMP_NS}",
    "pg_type": f"t.typnamespace in {_TEMP_NS}",
    "pg_proc": f"t.pronamespace in {_TEMP_NS}",
    "pg_attribute": f"t.attrelid in {_TEMP_CLASS}",
    "pg_attrdef": f"t.adrelid in {_TEMP_CLASS}",
    "pg_index": f"t.indrelid in {_TEMP_CLASS}",
    "pg_sequence": f"t.seqrelid in {_TEMP_CLASS}",
    "pg_inherits": f"t.inhrelid in {_TEMP_CLASS}",
    "pg_trigger": f"t.tgrelid in {_TEMP_CLASS}",
    "pg_rewrite": f"t.ev_class in {_TEMP_CLASS}",
    "pg_constraint": f"(t.conrelid in {_TEMP_CLASS} or t.contypid in {_TEMP_TYPE})",
    "pg_depend": _TEMP_OBJECT.format(c="t.classid", o="t.objid"),
    "pg_description": _TEMP_OBJECT.format(c="t.classoid", o="t.objoid"),
    "pg_init_privs": _TEMP_OBJECT.format(c="t.classoid", o="t.objoid"),
}
"""Catalog → condition that a row of it belongs to some session's temporary schema, and goes with it."""


@dataclass(frozen=True)
class CatalogRow:
    """One row, made comparable.

    Attributes:
        text: the row without what VACUUM and TRUNCATE change.
        temporary: it belongs to a session's temporary schema.
        label: what it describes, for messages; empty: a part of something else.
        owner: the relation that it belongs to; empty: none.
    """

    text: str
    temporary: bool
    label: str = ""
    owner: str = ""


def places(session: Session, catalog: str, blocks: Iterable[int]) -> set[tuple[Tid, int]]:
    """Place and writer of every live row in these blocks."""
    return batch.run(session, [_places(catalog, blocks)])[0].pairs()


def _places(catalog: str, blocks: Iterable[int]) -> str:
    return in_blocks(f"select ctid, xmin from pg_catalog.{catalog} where true", blocks)


def rows(session: Session, catalog: str, tids: Iterable[Tid]) -> list[CatalogRow]:
    """The rows at these places."""
    wanted = sorted(tids)
    if not wanted:
        return []
    noise = "array[" + ", ".join(f"'{column}'" for column in _CLASS_NOISE) + "]"
    text = f"(to_jsonb(t) - {noise})::text" if catalog == "pg_class" else "t::text"
    label, owner = LABELS.get(catalog, ("null", "null"))
    statement = (
        f"select {text}, {TEMPORARY.get(catalog, 'false')}, coalesce({label}, ''), coalesce({owner}, '') "
        f"from pg_catalog.{catalog} t where t.ctid = any({tid_array(wanted)})"
    )
    return [
        # Of a TOAST table its own table is told. Our search path is empty, and tables are told without the usual schema elsewhere.
        CatalogRow(
            text,
            temporary,
            "" if " pg_toast." in label else label.replace(" public.", " "),
            owner.removeprefix("public."),
        )
        for text, temporary, label, owner in session.rows(statement)
    ]


Known = Callable[[str, Iterable[int]], set[tuple[Tid, int]]]


def compare(lease: Session, baseline: Session, touched: Mapping[str, set[int]], known: Known) -> list[str]:
    """What differs in these catalogs from the baseline, one line for each object; empty where all that changed was undone.

    Args:
        touched: catalog → every block of it that was written since the database was cloned: a row that was
            moved to another block by one reset, and touched by nothing since, is found then too.
        known: tells the places of the baseline's rows.
    """
    names = [name for name in touched if touched[name]]
    if not names:
        return []
    found = batch.run(lease, [_places(name, touched[name]) for name in names])
    differences: list[Difference] = []
    for name, result in zip(names, found, strict=True):
        now = result.pairs()
        before = known(name, touched[name])
        new, gone = now - before, before - now
        if new or gone:
            added = rows(lease, name, (tid for tid, _ in new))
            removed = rows(baseline, name, (tid for tid, _ in gone))
            differences += judge(name, added, removed)
    return told(differences)


def judge(catalog: str, added: Iterable[CatalogRow], removed: Iterable[CatalogRow]) -> list[Difference]:
    """The pure part of :func:`compare`."""
    added, removed = list(added), list(removed)
    now = Counter(row.text for row in added if not row.temporary)
    before = Counter(row.text for row in removed)
    extra, missing = now - before, before - now
    came = {(row.label, row.owner) for row in added if extra[row.text] and not row.temporary}
    went = {(row.label, row.owner) for row in removed if missing[row.text]}
    return [
        Difference(
            catalog,
            *object_,
            "altered" if object_ in came & went else "created" if object_ in came else "dropped",
        )
        for object_ in sorted(came | went)
    ]


_WITH_INDEX = "select coalesce(array_agg(oid::int8 order by oid), '{}') from pg_class where relhasindex and relpersistence <> 't'"


def indexed(session: Session) -> list[int]:
    """OIDs of relations whose ``relhasindex`` is set: a rolled-back CREATE INDEX leaves it set, in place."""
    found: list[int] = session.value(_WITH_INDEX)
    return found


@dataclass(frozen=True)
class LargeObject:
    """One large object: its metadata as text (owner, rights), and a hash of its data."""

    metadata: str
    digest: str


_LARGE_OBJECTS = """
select m.oid::int8, format('%%s|%%s', m.lomowner, m.lomacl),
       (select md5(string_agg(l.pageno || ':' || md5(l.data), ',' order by l.pageno))
          from pg_largeobject l where l.loid = m.oid)
  from pg_largeobject_metadata m
"""


def large_objects(session: Session) -> dict[int, LargeObject]:
    """OID → large object, of the whole database."""
    return {
        oid: LargeObject(meta, digest or "")
        for oid, meta, digest in session.rows(_LARGE_OBJECTS.replace("%%", "%"))
    }


def large_object_data(session: Session, oid: int) -> bytes:
    """All of one large object."""
    data: bytes = session.value("select lo_get(%s)", (oid,))
    return bytes(data)
