"""The names of what rows of catalogs describe: a table that was created is one thing to tell, not twelve rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_KIND = (
    "case t.relkind when 'r' then 'table ' when 'p' then 'table ' when 'f' then 'foreign table ' when 'v' then 'view ' "
    "when 'm' then 'materialized view ' when 'i' then 'index ' when 'I' then 'index ' when 'S' then 'sequence ' "
    "when 'c' then 'type ' end || t.oid::regclass"
)
_OF_RELATION = (
    "coalesce((select indrelid::regclass::text from pg_index where indexrelid = t.oid), "
    "(select refobjid::regclass::text from pg_depend where classid = 'pg_class'::regclass and objid = t.oid "
    "and refclassid = 'pg_class'::regclass and deptype in ('a', 'i') limit 1))"
)

LABELS: Mapping[str, tuple[str, str]] = {
    "pg_namespace": ("'schema ' || quote_ident(t.nspname)", "null"),
    "pg_extension": ("'extension ' || quote_ident(t.extname)", "null"),
    "pg_class": (_KIND, _OF_RELATION),
    "pg_proc": ("'function ' || t.oid::regprocedure", "null"),
    "pg_type": (
        "case when t.typrelid = 0 and t.typcategory <> 'A' then 'type ' || t.oid::regtype end",
        "null",
    ),
    "pg_attribute": (
        "case when t.attnum > 0 and not t.attisdropped then 'column ' || t.attrelid::regclass || '.' || quote_ident(t.attname) end",
        "t.attrelid::regclass::text",
    ),
    "pg_trigger": (
        "case when not t.tgisinternal then 'trigger ' || quote_ident(t.tgname) || ' on ' || t.tgrelid::regclass end",
        "t.tgrelid::regclass::text",
    ),
    "pg_policy": (
        "'policy ' || quote_ident(t.polname) || ' on ' || t.polrelid::regclass",
        "t.polrelid::regclass::text",
    ),
    "pg_constraint": (
        "'constraint ' || quote_ident(t.conname) || case when t.conrelid <> 0 then ' on ' || t.conrelid::regclass else '' end",
        "nullif(t.conrelid, 0)::regclass::text",
    ),
    "pg_description": ("'a comment'", "null"),
    "pg_attrdef": ("'a default of ' || t.adrelid::regclass", "t.adrelid::regclass::text"),
    "pg_rewrite": ("null", "null"),
}
"""Catalog → SQL of what a row ``t`` describes (null: a part of something else), and of the relation that it belongs to."""

_RANK = {name: rank for rank, name in enumerate(LABELS)}

SHOWN = 3
"""How many objects a message names."""


@dataclass(frozen=True)
class Difference:
    """One object that differs from the baseline.

    Attributes:
        catalog: where.
        label: ``"table extra"``; empty: a row that describes no object by itself.
        owner: the relation that it belongs to; empty: none.
        verb: ``"created"``, ``"dropped"`` or ``"altered"``.
    """

    catalog: str
    label: str = ""
    owner: str = ""
    verb: str = "altered"

    @property
    def relation(self) -> str:
        """The name of the relation that it is; empty where it is none."""
        return self.label.partition(" ")[2] if self.catalog == "pg_class" else ""

    def __str__(self) -> str:
        return f"{self.label} was {self.verb}" if self.label else f"{self.catalog} was written"


def told(found: Iterable[Difference]) -> list[str]:
    """One line for each object, the most telling first; what came or went with its table is not told."""
    every = list(found)
    named = sorted(
        (one for one in every if one.label), key=lambda one: (_RANK.get(one.catalog, 99), one.label)
    )
    whole = {one.relation for one in named if one.relation and one.verb != "altered"}
    parts = {one.owner for one in named if one.owner and one.owner not in whole}
    lines = [
        str(one)
        for one in named
        if one.owner not in whole and not (one.verb == "altered" and one.relation in parts)
    ]
    if lines:
        return list(dict.fromkeys(lines))
    return list(dict.fromkeys(str(one) for one in every))


def sentence(lines: Sequence[str]) -> str:
    """Why a reset needs a clone, for people, with what would avoid it."""
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    why = f"the schema differs from the template's ({'; '.join(lines[:SHOWN])}{more})"
    if any(line.startswith("table ") and line.endswith(" created") for line in lines):
        return f"{why}: a temporary table needs no clone, nor what a migration creates"
    return f"{why}: what a migration does needs no clone"
