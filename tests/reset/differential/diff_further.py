"""What the further searches share: how many of each, how a story is made short, and what is said of one that fails.

``PGHARNESS_TEST_FURTHER`` says how many of each kind for each version, half of them with each engine,
``PGHARNESS_TEST_SEED`` where to begin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
from diff_schemas import Schema, Table
from diff_workloads import Operation
from fix_reset_servers import Bench, clone, drop
from fix_rewind import share

from harness.errors import ServerRefused
from harness.reset import watermark
from harness.reset.changes import RecloneNeeded

LONG = os.environ.get("PGHARNESS_TEST_LONG") == "1"
FURTHER = share(int(os.environ.get("PGHARNESS_TEST_FURTHER", "700" if LONG else "10")))
SEED = int(os.environ.get("PGHARNESS_TEST_SEED", "1"))
TIMEOUT = 180 + 3 * FURTHER
PER_SCHEMA = 25
ENOUGH = 50
"""From so many on what was done says something about the search; fewer are a replay."""

ORDERED = 1000
"""Rows up to which docs/reset.md promises their order, whatever was done to the table."""

SHOWN = 40
"""Steps of a story that a failure shows."""

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One step of a story: something other than a write, or one operation.

    Attributes:
        pick: decides between what is there when the step is reached, for instance which mark.
    """

    what: str
    operation: Operation | None = None
    pick: int = 0

    def __str__(self) -> str:
        return str(self.operation) if self.operation is not None else f"{self.what} {self.pick}"


def schemas() -> Iterator[tuple[int, range]]:
    """Seeds of schemas, and of what is done with each."""
    for first in range(SEED, SEED + FURTHER, PER_SCHEMA):
        yield first, range(first, min(first + PER_SCHEMA, SEED + FURTHER))


def enlarge(schema: Schema, *, weight: int = 3) -> Schema:
    """With tables of 300, 1,000 and 1,500 rows, one of 150 pages, and an empty one, each written ``weight`` times as often as others."""
    schema.sql += (
        "; create table few (id serial primary key, v text, n integer)"
        "; insert into few (v, n) select repeat('s', i % 90), i from generate_series(1, 300) i"
        "; create table thousand (id serial primary key, v text, n integer)"
        "; insert into thousand (v, n) select 't' || i, i from generate_series(1, 1000) i"
        "; create table medium (id serial primary key, v text, n integer)"
        "; insert into medium (v, n) select 'm' || i, i from generate_series(1, 1500) i"
        "; create table wide (id serial primary key, v text, n integer)"
        "; insert into wide (v, n) select repeat('w', 900), i from generate_series(1, 1200) i"
        "; create table hollow (id serial primary key, v text, n integer)"
    )
    columns = {"v": "text", "n": "integer"}
    for name in ("few", "thousand", "medium", "wide", "hollow"):
        schema.tables += [Table(name, columns, "id")] * weight
    return schema


def deterministic(schema: Schema) -> Schema:
    """The same schema with keys that come out the same each time."""
    schema.sql = "create sequence keys;\n" + schema.sql.replace(
        "default gen_random_uuid()", "default md5(nextval('keys')::text)::uuid"
    )
    return schema


def shrunk(steps: Sequence[T], fails: Callable[[list[T]], bool], attempts: int = 60) -> list[T]:
    """Leave out what the failure does not need, the boldest cuts first."""
    found = list(steps)
    size = len(found) // 2
    while size:
        start = 0
        while start < len(found):
            candidate = found[:start] + found[start + size :]
            if attempts <= 0:
                return found
            attempts -= 1
            if candidate and fails(candidate):
                found = candidate
            else:
                start += size
        size //= 2
    return found


def fail(version: int, first: int, seed: int, differences: Sequence[str], story: Sequence[object]) -> None:
    """Say what differs, after what, and how to see it again."""
    found = "\n  ".join(differences[:10])
    # The end of it: with company a story is long, and what was lost was mostly written since the reset before the last.
    steps = "\n  ".join(" ".join(str(step).split())[:200] for step in story[-SHOWN:])
    pytest.fail(
        f"PostgreSQL {version}, schema {first}, seed {seed} (PGHARNESS_TEST_VERSIONS={version} PGHARNESS_TEST_SEED={first} "
        f"PGHARNESS_TEST_FURTHER={seed - first + 1}):\n  {found}\nStory:\n  {steps}"
    )


def replace(bench: Bench) -> None:
    """A fresh clone while others go on: as a lease does it, noted before it has the name that they know."""
    name, spare = bench.name, f"{bench.name}_n"
    for attempt in range(20):
        drop(bench.admin, spare)
        clone(bench.admin, f"{name}_t", spare)
        try:
            drop(bench.admin, name)
            noted = watermark.take(bench.admin, spare, "app")
            bench.admin.execute(f"alter database {spare} rename to {name}")
            bench.engine.rebase(noted)
            return
        except (ServerRefused, RecloneNeeded):
            # Somebody has prepared a transaction between the look and the drop, or was in the new clone's way.
            if attempt == 19:
                raise
