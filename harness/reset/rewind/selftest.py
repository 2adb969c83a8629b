"""The module's trial on one server: write into a copy of ``template0``, rewind it, compare. Once for each server.

``template0`` is there on every server, nobody can enter it, and it has tables with rows, indexes and catalogs: it is the
baseline, so that one database is made and dropped, and no second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError, ServerLost, ServerRefused
from harness.postgres import databases, sqlstate
from harness.postgres.session import Session
from harness.reset.rewind import facts

_PATIENCE = 5.0
"""Seconds to wait for an autovacuum worker, or whoever else is in the copy, to leave."""

_MOST_BYTES, _MOST_PAGES = 64 * 1024**2, 100_000

# Rows: changed, new, gone; more of them than their page holds.
_ROWS = """
insert into information_schema.sql_features (feature_id, feature_name)
select 'pgh' || i, repeat('x', 100) from generate_series(1, 100) i;
update information_schema.sql_features set comments = 'changed' where feature_id like 'B%';
delete from information_schema.sql_features where feature_id like 'E0%'
"""

# Another file; catalogs; a relation, an index and a sequence that are new.
_SCHEMA = """
truncate information_schema.sql_sizing;
alter table information_schema.sql_parts add column pgh_added int default 1;
create table public.pgh_made (id serial primary key, name text);
insert into public.pgh_made (name) select 'made' from generate_series(1, 100)
"""

# Of large catalogs sums only: the trial is part of a cold start.
_PICTURE = """
select (select md5(string_agg(ctid::text || t::text, '|' order by ctid)) from information_schema.sql_features t),
       (select md5(string_agg(ctid::text || t::text, '|' order by ctid)) from information_schema.sql_sizing t),
       (select md5(string_agg(ctid::text || t::text, '|' order by ctid)) from information_schema.sql_parts t),
       (select md5(string_agg(ctid::text || xmin || oid || relfilenode, '|' order by ctid)) from pg_class),
       (select array[count(*), sum(attrelid::int8 * attnum), sum(xmin::text::int8)] from pg_attribute),
       (select array[count(*), sum(objid::int8), sum(xmin::text::int8)] from pg_depend),
       (select sum(pg_relation_size(oid) * oid::int8) from pg_class where pg_relation_filenode(oid) is not null),
       -- By the index, not by the table.
       (select count(*) from pg_class where oid = 'information_schema.sql_sizing'::regclass),
       to_regclass('public.pgh_made')::text
"""


@dataclass(frozen=True)
class Outcome:
    """What a trial has shown.

    Attributes:
        why: why the module must not be used; empty where it did what it has to do.
        lasting: whether another trial on this server would show the same.
    """

    why: str = ""
    lasting: bool = True


def run(admin: Session, schema: str, scratch: str) -> Outcome:
    """Try the module; leave nothing but what a killed process could not drop.

    Args:
        admin: in the maintenance database, which nobody else uses meanwhile.
        schema: of the module's functions.
        scratch: a name for the copy, of a kind that is swept.

    Raises:
        ServerLost: the server crashed, or went away.
    """
    databases.clone(admin, scratch, template="template0", owner=admin.dsn.user, strategy="file_copy")
    try:
        with Session.connect(admin.dsn.with_database(scratch)) as inside:
            return _try(admin, inside, schema)
    except ServerRefused as error:
        return Outcome(f"its trial failed: {error.message}")
    finally:
        if not admin.closed:
            _drop(admin, scratch)


def _try(admin: Session, inside: Session, schema: str) -> Outcome:
    # The files of a copy are those of what was copied; but for the number of the database.
    known = [value.decode() for value in facts.read(inside).values[1:]]
    before = inside.row(_PICTURE)
    lease, baseline, since = admin.row(
        "select (select oid::int8 from pg_database where datname = %s),"
        " (select oid::int8 from pg_database where datname = 'template0'), pg_current_wal_insert_lsn()::text",
        (inside.dsn.database,),
    ) or (0, 0, "")
    for script in (_ROWS, _SCHEMA):
        inside.script(script)
    admin.row(
        f"select {schema}.pgh_know(%s::oid, %s::oid[], %s::oid[], %s::oid[], %s, %s::oid[])",
        (baseline, *known),
    )
    asked = (lease, baseline, since, [admin.pid, inside.pid], _MOST_BYTES, _MOST_PAGES)
    status, why = _rewind(admin, schema, asked)
    if status != "rewound":
        told = f"its trial was not put back: {status}{f' ({why})' if why else ''}"
        return Outcome(told, lasting=status not in ("busy", "locked"))
    after = inside.row(_PICTURE)
    if after != before:
        return Outcome("its trial did not come back as it was")
    return Outcome()


def _rewind(admin: Session, schema: str, asked: tuple[Any, ...]) -> tuple[str, str]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        status, why = admin.row(
            f"select status, why from {schema}.pgh_rewind(%s::oid, %s::oid, %s::pg_lsn, '{{}}', %s::int[], '{{}}', %s, %s)",
            asked,
        ) or ("", "")
        if status not in ("busy", "locked") or time.monotonic() > deadline:
            return status, why
        time.sleep(0.02)


def _drop(admin: Session, scratch: str) -> None:
    try:
        # Of a session that has not quite gone, DROP DATABASE would look again in 100 ms.
        databases.terminate(admin, scratch)
        databases.drop_retired(admin, scratch)
    except ServerLost:
        raise
    except HarnessError as error:
        # Somebody looks into it: it is swept later.
        if not isinstance(error, ServerRefused) or error.sqlstate != sqlstate.OBJECT_IN_USE:
            raise
