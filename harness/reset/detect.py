"""From records of the log to changes of tables: relation files are resolved, noise is dropped."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from harness.reset.changes import UNCHANGED, Changes, TableChange
from harness.reset.sql.relations import Relation
from harness.reset.wal.reader import NOISE, RelationRecords


def changes(
    records: Iterable[RelationRecords],
    *,
    by_file: Mapping[int, int],
    relations: Mapping[int, Relation],
    rewritten: Iterable[int] = (),
) -> Changes:
    """What the records of one window say.

    Args:
        by_file: number of a file → OID, as it is now.
        relations: OID → relation of the baseline.
        rewritten: OIDs of relations whose file is another one than before.
    """
    tables: dict[int, TableChange] = {}
    sequences: set[int] = set()
    catalogs: dict[str, set[int]] = {}
    unknown: set[int] = set()
    undone: dict[int, TableChange] = {}
    ended: set[int] = set()
    shared = False
    for found in records:
        if found.records.keys() <= NOISE:
            continue
        if found.shared:
            shared = True
            continue
        relation = relations.get(by_file.get(found.filenode, 0))
        if relation is None:
            if not found.own:
                unknown.add(found.filenode)
        elif relation.catalog:
            if relation.kind == "r" and not found.own:
                catalogs.setdefault(relation.name, set()).update(found.blocks)
        elif found.own or relation.kind == "i":
            continue
        elif relation.kind == "S":
            sequences.add(relation.oid)
        elif found.aborted:
            # Rolled back, as nextval and catalogs that are written in place are not.
            if relation.kind == "r":
                undone[relation.oid] = merge(undone.get(relation.oid, UNCHANGED), _table(found))
        else:
            oid = relation.owner if relation.kind == "t" else relation.oid
            change = UNCHANGED if relation.kind == "t" else _table(found)
            tables[oid] = merge(tables.get(oid, UNCHANGED), change)
            if not found.unfinished:
                ended.add(oid)
    for oid in rewritten:
        relation = relations.get(oid)
        if relation is None or relation.catalog or relation.kind == "i":
            continue
        if relation.kind == "S":
            sequences.add(oid)
        else:
            owner = relation.owner or oid
            tables[owner] = merge(tables.get(owner, UNCHANGED), TableChange(rewritten=True))
            ended.add(owner)
    return Changes(
        tables=tables,
        sequences=frozenset(sequences),
        catalogs={name: frozenset(blocks) for name, blocks in catalogs.items()},
        shared=shared,
        unknown=frozenset(unknown),
        names={oid: str(relations[oid]) for oid in [*tables, *sequences] if oid in relations},
        aborted=undone,
        unfinished=frozenset(tables.keys() - ended),
    )


def own_catalogs(
    records: Iterable[RelationRecords], *, by_file: Mapping[int, int], relations: Mapping[int, Relation]
) -> dict[str, frozenset[int]]:
    """System catalog → blocks of it that our own transactions wrote."""
    catalogs: dict[str, frozenset[int]] = {}
    for found in records:
        if not found.own:
            continue
        relation = relations.get(by_file.get(found.filenode, 0))
        if relation is not None and relation.catalog and relation.kind == "r":
            catalogs[relation.name] = catalogs.get(relation.name, frozenset()) | found.blocks
    return catalogs


def written_besides(
    records: Iterable[RelationRecords],
    wrote: Container[int],
    inserted: Mapping[int, int],
    *,
    by_file: Mapping[int, int],
    relations: Mapping[int, Relation],
) -> Relation | None:
    """A table or sequence to which our own transactions wrote more than was meant; None where there is none.

    Args:
        wrote: OIDs of the tables and sequences that were put back.
        inserted: table OID → how many rows.
        by_file, relations: as of :func:`changes`.
    """
    for found in records:
        relation = relations.get(by_file.get(found.filenode, 0)) if found.own else None
        if relation is None or relation.catalog or relation.kind == "i":
            continue
        kinds = found.records
        more = relation.kind == "r" and (
            kinds.get("Heap/INSERT", 0) > inserted.get(relation.oid, 0)
            or kinds.keys() & {"Heap/UPDATE", "Heap/HOT_UPDATE"}
        )
        if more or (relation.owner not in wrote and set(kinds) - NOISE):
            return relation
    return None


def _table(found: RelationRecords) -> TableChange:
    inserts = updates = deletes = other = 0
    for kind, count in found.records.items():
        if kind in ("Heap/INSERT", "Heap2/MULTI_INSERT"):
            inserts += count
        elif kind in ("Heap/UPDATE", "Heap/HOT_UPDATE"):
            updates += count
        elif kind == "Heap/DELETE":
            deletes += count
        # A CONFIRM completes a speculative INSERT (ON CONFLICT), whose own record is counted.
        elif kind != "Heap/HEAP_CONFIRM" and kind not in NOISE:
            other += count
    return TableChange(inserts, updates, deletes, other, found.blocks, size=found.size)


def merge(one: TableChange, two: TableChange) -> TableChange:
    """Both."""
    if one is UNCHANGED or two is UNCHANGED:
        return two if one is UNCHANGED else one
    return TableChange(
        one.inserts + two.inserts,
        one.updates + two.updates,
        one.deletes + two.deletes,
        one.other + two.other,
        one.blocks | two.blocks,
        one.rewritten or two.rewritten,
        one.unlogged or two.unlogged,
        one.size + two.size,
    )


def united(one: Changes, two: Changes) -> Changes:
    """Both."""
    if not one:
        return two
    tables = dict(one.tables)
    for oid, change in two.tables.items():
        tables[oid] = merge(tables[oid], change) if oid in tables else change
    catalogs = {name: one.catalogs.get(name, frozenset()) | two.catalogs.get(name, frozenset())
                for name in {*one.catalogs, *two.catalogs}}  # fmt: skip
    return Changes(
        tables=tables,
        sequences=one.sequences | two.sequences,
        catalogs=catalogs,
        shared=one.shared or two.shared,
        unknown=one.unknown | two.unknown,
        ddl=(*one.ddl, *two.ddl),
        names={**one.names, **two.names},
        aborted=two.aborted,
        unfinished=two.unfinished - one.tables.keys(),
    )
